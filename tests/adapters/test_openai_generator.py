"""OpenAI's image edits against a fake on this machine: whatever it responds, the session, the
ledger and the number of paid calls are right."""

import asyncio
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from adapters.images.limits import ProviderLimits
from adapters.images.openai import OpenAiPictureGenerator, Prices, edits_url
from domain.errors import ProviderMisconfigured, TryAgain
from domain.generation import Outcome, WorkPolicy
from domain.picture_ports import Picture
from domain.recovery import RecoveryPolicy
from domain.sessions import SessionStatus, Usage
from tests.adapters.generators import (
    REQUEST,
    SAFETY_MESSAGE,
    TRANSIENT_MESSAGE,
    UNUSABLE_MESSAGE,
    submitted_to,
)
from tests.support.clock import START
from tests.support.examples import LEASE
from tests.support.images import encoded, no_job
from tests.support.provider import (
    KEY,
    MODEL,
    SECRET,
    FakeProvider,
    Reply,
    breaks_off,
    drips,
    edited,
    error,
    floods,
    hangs,
    in_pieces,
    provider,
    resets,
    says,
)
from tests.support.shop import CHARGED, REFUNDED

pytestmark = pytest.mark.anyio

PRICES = Prices(input_usd_per_million=Decimal(8), output_usd_per_million=Decimal(32))
LIMITS = ProviderLimits(connect_seconds=5, answer_seconds=10, total_seconds=10, max_bytes=500_000)
POLICY = WorkPolicy()


@pytest.fixture
async def fake() -> AsyncIterator[FakeProvider]:
    async with provider() as fake:
        yield fake


class Adapters:
    """Makes generators for a provider at ``url``."""

    def __init__(self, url: str) -> None:
        self._url = url
        self.made: list[OpenAiPictureGenerator] = []

    def __call__(self, **changes: Any) -> OpenAiPictureGenerator:
        options: dict[str, Any] = {
            "base_url": self._url,
            "api_key": KEY,
            "model": MODEL,
            "quality": "medium",
            "output_format": "jpeg",
            "prices": PRICES,
            "limits": LIMITS,
            "clock": lambda: START,
        }
        self.made.append(OpenAiPictureGenerator(**options | changes))
        return self.made[-1]


@pytest.fixture
async def adapter(fake: FakeProvider) -> AsyncIterator[Adapters]:
    adapters = Adapters(fake.url)
    yield adapters
    for made in adapters.made:
        await made.close()


async def test_wire_format(fake: FakeProvider, adapter: Adapters) -> None:
    """One multipart request with the pictures in order as ``image[]``, with their real types, every
    option, the bearer key, and the session's id, which the provider's support can look up."""
    await adapter().generate(REQUEST, no_job)

    (call,) = fake.calls
    assert call.path == "/v1/images/edits"
    assert call.headers["Authorization"] == f"Bearer {KEY}"
    assert call.headers["Content-Type"].startswith("multipart/form-data; boundary=")
    assert call.headers["X-Client-Request-Id"] == str(REQUEST.session_id)
    assert call.headers["traceparent"] == REQUEST.traceparent
    assert call.fields == {
        "model": MODEL,
        "prompt": REQUEST.prompt,
        "size": "1024x1536",
        "quality": "medium",
        "output_format": "jpeg",
    }
    assert [upload.data for upload in call.uploads] == [image.data for image in REQUEST.images]
    assert [(upload.field, upload.filename, upload.media_type) for upload in call.uploads] == [
        ("image[]", "1.png", "image/png"),
        ("image[]", "2.jpg", "image/jpeg"),
        ("image[]", "3.webp", "image/webp"),
    ]


async def test_large_pictures_are_sent_whole(fake: FakeProvider, adapter: Adapters) -> None:
    large = Picture(data=b"\x89PNG" + bytes(8_000_000), media_type="image/png")
    request = replace(REQUEST, images=(large,))

    await adapter().generate(request, no_job)

    assert fake.calls[0].uploads[0].data == large.data


@pytest.mark.parametrize(
    ("base_url", "url"),
    [
        ("https://api.openai.com", "https://api.openai.com/v1/images/edits"),
        ("https://api.openai.com/", "https://api.openai.com/v1/images/edits"),
        ("https://api.openai.com/v1", "https://api.openai.com/v1/images/edits"),
        ("https://api.openai.com/v1/", "https://api.openai.com/v1/images/edits"),
        ("http://litellm:4000", "http://litellm:4000/v1/images/edits"),
        ("https://gateway.example/api", "https://gateway.example/api/v1/images/edits"),
        ("https://us.openai.azure.com/openai/v1", "https://us.openai.azure.com/openai/v1/images/edits"),
        ("https://a.example/v1beta/openai", "https://a.example/v1beta/openai/images/edits"),
        ("https://v1.example", "https://v1.example/v1/images/edits"),
    ],
)  # fmt: skip
def test_base_urls(base_url: str, url: str) -> None:
    """With and without a version in the path, with and without a trailing slash."""
    assert str(edits_url(base_url)) == url


@pytest.mark.parametrize("output_format", ["png", "jpeg", "webp"])
async def test_picture_is_stored_and_charged_once(
    fake: FakeProvider, adapter: Adapters, output_format: str
) -> None:
    """The session keeps the usage: 1,923 tokens at $8 per million and 6,240 at $32."""
    shop = await submitted_to(adapter(output_format=output_format))

    assert await shop.work() is Outcome.COMPLETED

    session = await shop.service.session(shop.session_id)
    assert session.picture is not None
    assert session.picture.media_type == f"image/{output_format}"
    assert (await shop.service.picture(session.picture.object_key)).data == encoded(
        output_format.upper(), size=(1024, 1536)
    )
    assert session.usage == Usage(
        provider="openai",
        input_tokens=1_923,
        output_tokens=6_240,
        estimated_cost_usd=Decimal("0.215064"),
    )
    assert (shop.money, len(fake.calls)) == (CHARGED, 1)


async def test_media_type_comes_from_the_bytes(fake: FakeProvider, adapter: Adapters) -> None:
    """A response that calls its PNG a JPEG is not believed."""
    fake.replies = [says(200, edited("png") | {"output_format": "jpeg"})]

    generated = await adapter(output_format="jpeg").generate(REQUEST, no_job)

    assert generated.picture.media_type == "image/png"


@pytest.mark.parametrize(
    "usage",
    [
        None,
        {},
        "many",
        {"input_tokens": 1},
        {"input_tokens": "1", "output_tokens": 2},
        {"input_tokens": -1, "output_tokens": 2},
        {"input_tokens": 1, "output_tokens": 10**30},
    ],
)
async def test_invalid_usage_is_ignored(
    fake: FakeProvider, adapter: Adapters, usage: object
) -> None:
    """The picture is still used."""
    fake.replies = [says(200, edited(usage=usage))]

    generated = await adapter().generate(REQUEST, no_job)

    assert generated.usage == Usage(provider="openai")


@pytest.mark.parametrize(
    ("input_price", "output_price", "tokens", "cost"),
    [
        ("8", "32", (1, 1), "0.000040"),
        ("0.1", "0.2", (1, 1), "0.000000"),
        ("0.1", "0.2", (3, 3), "0.000001"),
        ("0.5", "0.5", (5, 0), "0.000002"),
        ("0.1", "0.2", (10_000_000, 10_000_000), "3.000000"),
        ("10000", "10000", (100_000_000, 100_000_000), "2000000.000000"),
    ],
)
def test_costs_are_exact(
    input_price: str, output_price: str, tokens: tuple[int, int], cost: str
) -> None:
    """Decimals, rounded to a millionth of a dollar, where a float would be inexact."""
    prices = Prices(
        input_usd_per_million=Decimal(input_price), output_usd_per_million=Decimal(output_price)
    )

    assert str(prices.usage(*tokens).estimated_cost_usd) == cost


TRANSIENT: dict[str, Reply] = {
    "429": says(429, error("rate_limit_exceeded", type_="tokens")),
    "429 of a rising rate": says(429, error("slow_down", type_="rate_limit_error")),
    "408": says(408),
    "409": says(409),
    "425": says(425),
    "500": says(500, error(type_="server_error")),
    "502 of a proxy": says(502, "<html>Bad Gateway</html>"),
    "503": says(503, error("server_is_overloaded")),
    "503 of a gateway without a channel": says(503, error("model_not_found")),
    "a reset": resets,
    "half an answer": breaks_off,
    "no JSON": says(200, "<html>Welcome</html>"),
    "nothing": says(200, ""),
    "deep brackets": says(200, "[" * 200_000),
    "no picture": says(200, edited(data=[])),
    "a link instead": says(200, edited(data=[{"url": "https://pictures.example/1.png"}])),
    "no base64": says(200, edited(data=[{"b64_json": "***"}])),
    "another file": says(200, edited(data=[{"b64_json": "JVBERi0xLjcK"}])),
}


@pytest.mark.parametrize("name", TRANSIENT)
async def test_transient_error_releases_the_session(
    fake: FakeProvider, adapter: Adapters, name: str
) -> None:
    """After one call, without a refund; the next attempt completes it."""
    shop = await submitted_to(adapter())
    fake.replies = [TRANSIENT[name]]

    assert await shop.work() is Outcome.RELEASED

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, len(fake.calls)) == (CHARGED, 1)
    await shop.later(POLICY.provider_patience / 2)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.calls)) == (CHARGED, 2)


@pytest.mark.parametrize("name", TRANSIENT)
async def test_persistent_transient_error_ends_with_a_refund(
    fake: FakeProvider, adapter: Adapters, name: str
) -> None:
    """One call per attempt. The customer's message does not quote the provider."""
    shop = await submitted_to(adapter())
    fake.replies = [TRANSIENT[name]] * POLICY.max_attempts

    outcomes = []
    for _ in range(POLICY.max_attempts):
        outcomes.append(await shop.work())
        await shop.later(POLICY.provider_patience / 2)

    assert outcomes == [Outcome.RELEASED, Outcome.RELEASED, Outcome.FAILED]
    assert await shop.state() == (SessionStatus.FAILED, "GENERATION_FAILED")
    assert await shop.message() == TRANSIENT_MESSAGE
    assert (shop.money, len(fake.calls)) == (REFUNDED, POLICY.max_attempts)


@pytest.mark.parametrize(
    ("reply", "limits"),
    [
        (hangs, ProviderLimits(answer_seconds=0.3, total_seconds=60)),
        (drips, ProviderLimits(answer_seconds=60, total_seconds=0.3)),
    ],
)
async def test_each_phase_of_a_call_has_a_timeout(
    fake: FakeProvider, adapter: Adapters, reply: Reply, limits: ProviderLimits
) -> None:
    """The time to the first byte and the total time. A timeout is a transient error."""
    shop = await submitted_to(adapter(limits=limits))
    fake.replies = [reply]
    started_at = time.monotonic()

    assert await shop.work() is Outcome.RELEASED

    assert 0.3 <= time.monotonic() - started_at < 10
    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, len(fake.calls)) == (CHARGED, 1)


async def test_refused_connection_releases_the_session(adapter: Adapters) -> None:
    """Without a refund: another attempt may succeed."""
    shop = await submitted_to(adapter(base_url=f"http://127.0.0.1:{unused_port()}"))

    assert await shop.work() is Outcome.RELEASED

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert shop.money == CHARGED


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        ("7", 7.0),
        ("Thu, 01 Jan 2026 12:00:40 GMT", 40.0),
        ("Thu, 01 Jan 2026 11:00:00 GMT", 0.0),
        ("Thu, 01 Jan 2026 12:00:40", 0.0),
        ("soon", 0.0),
        ("-5", 0.0),
    ],
)
async def test_retry_after_is_respected(
    fake: FakeProvider, adapter: Adapters, header: str, seconds: float
) -> None:
    """Given in seconds or as a date, which is compared with our clock; other values are ignored."""
    fake.replies = [says(429, Retry_After=header)]

    with pytest.raises(TryAgain) as failure:
        await adapter().generate(REQUEST, no_job)

    assert failure.value.retry_after_seconds == seconds


async def test_long_retry_after_holds_no_slot(fake: FakeProvider, adapter: Adapters) -> None:
    """The attempt ends at once, and the session waits in the database for the half hour."""
    shop = await submitted_to(adapter())
    fake.replies = [says(429, Retry_After="1800")]
    started_at = time.monotonic()

    assert await shop.work() is Outcome.RELEASED

    assert time.monotonic() - started_at < 5
    await shop.later(timedelta(seconds=1790))
    assert shop.service.waiting() == []
    await shop.later(timedelta(seconds=10))
    assert await shop.work() is Outcome.COMPLETED


UNSAFE = ("MODERATION_BLOCKED", SAFETY_MESSAGE)
UNUSABLE = ("INVALID_IMAGE", UNUSABLE_MESSAGE)
USER_ERROR = "image_generation_user_error"


@pytest.mark.parametrize(
    ("reply", "code", "message"),
    [
        (in_pieces(400, error("moderation_blocked", type_=USER_ERROR)), *UNSAFE),
        (says(400, error("content_policy_violation")), *UNSAFE),
        (says(400, error("content_filter")), *UNSAFE),
        (says(403, error("content_policy_violation")), *UNSAFE),
        (says(400, error("invalid_image_file", type_=USER_ERROR)), *UNUSABLE),
        (says(400, error(type_=USER_ERROR)), *UNUSABLE),
        (says(400, error("unsupported_file_mimetype")), *UNUSABLE),
        (says(413, "<html>Request Entity Too Large</html>"), *UNUSABLE),
    ],
)
async def test_refused_input_fails_the_session_at_once(
    fake: FakeProvider, adapter: Adapters, reply: Reply, code: str, message: str
) -> None:
    """One call, a refund, and a message that is fit for the end user."""
    shop = await submitted_to(adapter())
    fake.replies = [reply]

    assert await shop.work() is Outcome.FAILED

    assert await shop.state() == (SessionStatus.FAILED, code)
    assert await shop.message() == message
    assert (shop.money, len(fake.calls)) == (REFUNDED, 1)


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (says(400, error("unknown_parameter", param="size")),
         "400 unknown_parameter invalid_request_error size"),
        (says(400, "not JSON"), "400"),
        (says(400, {"error": "a sentence"}), "400"),
        (says(400, [1]), "400"),
        (says(400, error(code="A sentence, or a key: sk-1", type_="x" * 100)), "400"),
        (says(422), "422 invalid_request_error"),
        (floods, "The provider's response exceeds 500000 bytes"),
    ],
)  # fmt: skip
async def test_rejected_request_fails_the_session_and_is_raised(
    fake: FakeProvider, adapter: Adapters, reply: Reply, detail: str
) -> None:
    """One call, a refund and a generic message; the log gets the names of an error only."""
    shop = await submitted_to(adapter())
    fake.replies = [reply]

    with pytest.raises(RuntimeError) as bug:
        await shop.work()

    assert str(bug.value).endswith(detail)
    assert SECRET not in str(bug.value)
    assert await shop.state() == (SessionStatus.FAILED, "GENERATION_FAILED")
    assert await shop.message() == "The picture could not be made; the credit was refunded"
    assert (shop.money, len(fake.calls)) == (REFUNDED, 1)


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (says(401, error("invalid_api_key")), "401 invalid_api_key"),
        (says(401, "no JSON"), "401"),
        (says(402), "402"),
        (says(403, error("unsupported_country_region_territory")), "403"),
        (says(404, error("model_not_found")), "404 model_not_found"),
        (says(404, "<html>Not Found</html>"), "404"),
        (says(302, "", Location="https://elsewhere.example/"), "302"),
        (says(400, error("billing_hard_limit_reached")), "400"),
        (says(429, error("insufficient_quota", type_="insufficient_quota")), "429"),
        (says(429, error(type_="insufficient_quota")), "429 insufficient_quota"),
        (says(429, error("credit_balance_exhausted", type_="insufficient_quota")), "429"),
        (says(429, error("project_spend_limit_exceeded")), "429"),
    ],
)
async def test_misconfigured_provider_fails_no_session(
    fake: FakeProvider, adapter: Adapters, reply: Reply, detail: str
) -> None:
    """One call; the session returns to the front of the queue without a refund, and is completed
    once the configuration is fixed."""
    shop = await submitted_to(adapter())
    fake.replies = [reply]

    with pytest.raises(ProviderMisconfigured) as failure:
        await shop.work()

    assert failure.value.cause.detail.startswith(detail)
    assert SECRET not in f"{failure.value} {failure.value.cause.detail}"
    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, len(fake.calls)) == (CHARGED, 1)
    assert await shop.work() is Outcome.COMPLETED


@pytest.mark.parametrize(
    ("changes", "detail"),
    [({"api_key": "sk-wrong"}, "401"), ({"model": "dall-e-1"}, "404")],
)
async def test_wrong_key_or_model_is_reported(
    fake: FakeProvider, adapter: Adapters, changes: dict[str, str], detail: str
) -> None:
    """The fake rejects them as the provider does; no message contains the key."""
    with pytest.raises(ProviderMisconfigured) as failure:
        await adapter(**changes).generate(REQUEST, no_job)

    assert failure.value.cause.detail.startswith(detail)
    assert "sk-wrong" not in f"{failure.value!r} {failure.value.cause.detail} {adapter.made[-1]!r}"
    assert len(fake.calls) == 1


async def test_crash_after_the_response_costs_no_second_call(
    fake: FakeProvider, adapter: Adapters
) -> None:
    """The worker died after storing the picture: the next attempt finds it, without its usage."""
    shop = await submitted_to(adapter())
    shop.service.repo.faults.away.add("complete")
    assert await shop.work() is Outcome.UNSETTLED
    shop.service.repo.faults.away.clear()

    for _ in range(2):
        await shop.later(LEASE + RecoveryPolicy().requeue_after)

    assert await shop.work() is Outcome.COMPLETED
    session = await shop.service.session(shop.session_id)
    assert (session.attempt, session.usage) == (2, None)
    assert session.picture is not None
    assert (shop.money, len(fake.calls)) == (CHARGED, 1)


async def test_stopping_worker_ends_the_call(fake: FakeProvider, adapter: Adapters) -> None:
    """It does not wait for the response, and releases the session."""
    shop = await submitted_to(adapter())
    fake.replies = [hangs]
    working = asyncio.create_task(shop.work())
    async with asyncio.timeout(5):
        while not fake.calls:  # noqa: ASYNC110 - the server runs in this event loop
            await asyncio.sleep(0.01)

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert [task.session_id for task in shop.service.waiting()] == [shop.session_id]


async def test_unused_adapter_can_be_closed(adapter: Adapters) -> None:
    await adapter().close()
