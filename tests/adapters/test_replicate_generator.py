"""Replicate's API against a fake on this machine: whatever it responds, the session, the ledger and
the number of paid jobs are right."""

import base64
import json
import time
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any

import pytest
from aiohttp.test_utils import unused_port

from adapters.images.replicate import CallLimits, ReplicateModel
from domain.errors import ProviderMisconfigured, TryAgain
from domain.generation import Outcome, WorkPolicy
from domain.picture_ports import Picture
from domain.sessions import SessionStatus, Usage
from tests.adapters.generators import (
    REQUEST,
    SAFETY_MESSAGE,
    TRANSIENT_MESSAGE,
    UNUSABLE_MESSAGE,
    ReplicateAdapters,
    submitted_to,
)
from tests.support.images import encoded
from tests.support.provider import Reply, breaks_off, drips, floods, hangs, resets, running, says
from tests.support.replicate import MODEL, SECRET, TOKEN, VERSION, FakeReplicate, serves, tells
from tests.support.shop import CHARGED, REFUNDED

pytestmark = pytest.mark.anyio

POLICY = WorkPolicy()


@pytest.fixture
async def fake() -> AsyncIterator[FakeReplicate]:
    async with running(FakeReplicate()) as fake:
        yield fake


@pytest.fixture
async def adapter(fake: FakeReplicate) -> AsyncIterator[ReplicateAdapters]:
    adapters = ReplicateAdapters(fake.url)
    yield adapters
    await adapters.close()


async def record(job: str) -> None:
    """``tests/domain/test_jobs.py`` covers the recording of jobs."""


async def test_wire_format(fake: FakeReplicate, adapter: ReplicateAdapters) -> None:
    """One JSON request with the prompt, the pictures in order and with their media types, the
    bearer token, an idempotency key for the picture, and the job's deadline. Then polls by the
    job's id."""
    fake.seconds = 0.1

    generated = await adapter().generate(REQUEST, record)

    begin, *polls, _ = fake.calls
    (job,) = fake.jobs.values()
    assert begin.path == f"/v1/models/{MODEL}/predictions"
    assert begin.headers["Authorization"] == f"Bearer {TOKEN}"
    assert begin.headers["Content-Type"] == "application/json"
    assert begin.headers["Idempotency-Key"] == f"wearon-{REQUEST.session_id}-first"
    assert begin.headers["traceparent"] == REQUEST.traceparent
    assert begin.headers["Cancel-After"] == "20s"
    assert "Prefer" not in begin.headers
    assert job.request["input"]["prompt"] == REQUEST.prompt
    assert job.pictures == [(image.media_type, image.data) for image in REQUEST.images]
    assert {(poll.kind, poll.path) for poll in polls} == {("poll", f"/v1/predictions/{job.id}")}
    assert len(polls) > 1
    assert generated.picture == Picture(
        data=encoded("PNG", size=(768, 1024)), media_type="image/png"
    )
    assert generated.usage == Usage(provider="replicate")


async def test_model_version_has_its_own_endpoint(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """Community models are run by their version."""
    model = ReplicateModel(name=f"{MODEL}:{VERSION}", image_field="image_input")

    await adapter(model=model).generate(REQUEST, record)

    assert fake.calls[0].path == "/v1/predictions"
    assert fake.jobs["job1"].request["version"] == VERSION


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_base_urls(fake: FakeReplicate, adapter: ReplicateAdapters, suffix: str) -> None:
    """With and without a version, with and without a trailing slash."""
    await adapter(base_url=fake.url + suffix).generate(REQUEST, record)

    assert len(fake.jobs) == 1


@pytest.mark.parametrize(("deadline", "sent"), [(0.5, "5s"), (20.2, "21s"), (170.0, "170s")])
async def test_deadline_is_rounded_to_what_the_provider_accepts(
    fake: FakeReplicate, adapter: ReplicateAdapters, deadline: float, sent: str
) -> None:
    """Whole seconds, at least five."""
    await adapter(deadline_seconds=deadline).generate(REQUEST, record)

    assert fake.calls[0].headers["Cancel-After"] == sent


async def test_picture_is_stored_and_charged_once(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """Its media type is that of its bytes, whatever its link says. The usage is the provider
    and its price."""
    fake.seconds = 0.1
    fake.script.file = [serves(encoded("WEBP", size=(64, 64)), "image/png")]
    shop = await submitted_to(adapter(usd_per_picture=Decimal("0.039")))

    assert await shop.work() is Outcome.COMPLETED

    session = await shop.service.session(shop.session_id)
    assert session.picture is not None
    assert session.picture.media_type == "image/webp"
    assert (await shop.service.picture(session.picture.object_key)).data == encoded(
        "WEBP", size=(64, 64)
    )
    assert session.provider_job == "replicate:job1"
    assert session.usage == Usage(provider="replicate", estimated_cost_usd=Decimal("0.039"))
    assert (shop.money, len(fake.jobs), fake.cancelled) == (CHARGED, 1, [])


async def test_token_is_sent_to_the_api_only(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """The finished picture may be on any server."""
    await adapter().generate(REQUEST, record)

    (download,) = (call for call in fake.calls if call.kind == "file")
    assert "Authorization" not in download.headers
    assert TOKEN not in str(download.headers)


@pytest.mark.parametrize("form", ["a list", "a data URI", "plain data"])
async def test_output_formats(fake: FakeReplicate, adapter: ReplicateAdapters, form: str) -> None:
    """A list, from models that can make several pictures, of which the first is taken; or the
    picture itself as a data URI."""
    data = encoded("PNG", size=(768, 1024))
    outputs: dict[str, object] = {
        "a list": [fake.picture_url("1.png"), fake.picture_url("2.png")],
        "a data URI": f"data:image/png;base64,{base64.b64encode(data).decode()}",
        "plain data": "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    }
    fake.ends = [{"output": outputs[form]}]

    generated = await adapter().generate(REQUEST, record)

    assert generated.picture == Picture(data=data, media_type="image/png")
    assert [call.path for call in fake.calls if call.kind == "file"] == (
        ["/files/1.png"] if form == "a list" else []
    )


TRANSIENT: dict[str, Reply] = {
    "429": tells(429, "Request was throttled"),
    "429 that says when": tells(429, Retry_After="0"),
    "408": tells(408),
    "409": tells(409),
    "425": tells(425),
    "500": tells(500, "Internal server error"),
    "502 of a proxy": says(502, "<html>Bad Gateway</html>"),
    "503": tells(503),
    "a reset": resets,
    "half an answer": breaks_off,
    "no JSON": says(200, "<html>Welcome</html>"),
    "nothing": says(200, ""),
    "deep brackets": says(200, "[" * 200_000),
    "no id": says(200, {"status": "starting"}),
    "no status": says(200, {"id": "job1"}),
    "an id that is a path": says(200, {"id": "../account", "status": "succeeded"}),
}


@pytest.mark.parametrize("name", TRANSIENT)
async def test_transient_error_of_begin_releases_the_session(
    fake: FakeReplicate, adapter: ReplicateAdapters, name: str
) -> None:
    """After one call, without a refund; the next attempt completes it."""
    shop = await submitted_to(adapter())
    fake.script.begin = [TRANSIENT[name]]

    assert await shop.work() is Outcome.RELEASED

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 1, 0)
    await shop.later(POLICY.provider_patience / 2)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 2, 1)


@pytest.mark.parametrize("name", TRANSIENT)
async def test_transient_error_of_a_poll_is_retried(
    fake: FakeReplicate, adapter: ReplicateAdapters, name: str
) -> None:
    """The job goes on regardless: one attempt, one job, charged once."""
    shop = await submitted_to(adapter())
    fake.script.poll = [TRANSIENT[name]] * 3

    assert await shop.work() is Outcome.COMPLETED

    assert (await shop.service.session(shop.session_id)).attempt == 1
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 1, 1)
    assert (fake.count("poll"), fake.cancelled) == (4, [])


@pytest.mark.parametrize("name", ["429", "500", "a reset"])
async def test_persistent_transient_error_ends_with_a_refund(
    fake: FakeReplicate, adapter: ReplicateAdapters, name: str
) -> None:
    """One call per attempt. The customer's message does not quote the provider."""
    shop = await submitted_to(adapter())
    fake.script.begin = [TRANSIENT[name]] * POLICY.max_attempts

    outcomes = []
    for _ in range(POLICY.max_attempts):
        outcomes.append(await shop.work())
        await shop.later(POLICY.provider_patience / 2)

    assert outcomes == [Outcome.RELEASED, Outcome.RELEASED, Outcome.FAILED]
    assert await shop.state() == (SessionStatus.FAILED, "GENERATION_FAILED")
    assert await shop.message() == TRANSIENT_MESSAGE
    assert (shop.money, len(fake.jobs)) == (REFUNDED, 0)


@pytest.mark.parametrize("reply", [hangs, drips])
async def test_every_call_has_a_timeout(
    fake: FakeReplicate, adapter: ReplicateAdapters, reply: Reply
) -> None:
    """A timeout of ``begin`` ends the attempt; a timeout of a poll is followed by another poll."""
    shop = await submitted_to(adapter(limits=CallLimits(total_seconds=0.3)))
    fake.script.begin, fake.script.poll = [reply], [reply]

    assert await shop.work() is Outcome.RELEASED
    await shop.later(POLICY.provider_patience / 2)
    started_at = time.monotonic()
    assert await shop.work() is Outcome.COMPLETED

    assert 0.3 <= time.monotonic() - started_at < 10
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 2, 1)


async def test_refused_connection_releases_the_session(adapter: ReplicateAdapters) -> None:
    """Without a refund: there is no job yet, and another attempt may succeed."""
    shop = await submitted_to(adapter(base_url=f"http://127.0.0.1:{unused_port()}"))

    assert await shop.work() is Outcome.RELEASED

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert shop.money == CHARGED


@pytest.mark.parametrize("kind", ["begin", "poll"])
@pytest.mark.parametrize(
    ("header", "seconds"), [("7", 7.0), ("Thu, 01 Jan 2026 12:00:40 GMT", 40.0), ("soon", 0.0)]
)
async def test_retry_after_is_respected(
    fake: FakeReplicate, adapter: ReplicateAdapters, kind: str, header: str, seconds: float
) -> None:
    """Given in seconds or as a date, which is compared with our clock; other values are ignored."""
    setattr(fake.script, kind, [tells(429, Retry_After=header)])
    jobs = adapter.jobs()

    with pytest.raises(TryAgain) as failure:
        await (jobs.begin(REQUEST) if kind == "begin" else jobs.poll("job1"))

    assert failure.value.retry_after_seconds == seconds


async def test_long_retry_after_holds_no_slot(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """The attempt ends at once, and the session waits in the database for the half hour."""
    shop = await submitted_to(adapter())
    fake.script.begin = [tells(429, Retry_After="1800")]

    assert await shop.work() is Outcome.RELEASED

    await shop.later(timedelta(seconds=1790))
    assert shop.service.waiting() == []
    await shop.later(timedelta(seconds=10))
    assert await shop.work() is Outcome.COMPLETED


@pytest.mark.parametrize(
    "message",
    [
        "The input or output was flagged as sensitive. Please try again with other inputs. (E005)",
        "NSFW content detected in all outputs. Try running it again, or try a different prompt.",
        "NSFW content detected. Try running it again, or try a different prompt.",
        "Request blocked by content moderation",
        "Your request was rejected by the safety system",
        "The request violates our content policy",
    ],
)
async def test_failed_safety_check_fails_the_session_at_once(
    fake: FakeReplicate, adapter: ReplicateAdapters, message: str
) -> None:
    """One job, a refund, and a message that is fit for the end user."""
    shop = await submitted_to(adapter())
    fake.ends = [{"status": "failed", "error": message}]

    assert await shop.work() is Outcome.FAILED

    assert await shop.state() == (SessionStatus.FAILED, "MODERATION_BLOCKED")
    assert await shop.message() == SAFETY_MESSAGE
    assert (shop.money, len(fake.jobs)) == (REFUNDED, 1)


async def test_too_large_pictures_fail_the_session_at_once(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """Another attempt at this provider cannot succeed."""
    shop = await submitted_to(adapter())
    fake.script.begin = [says(413, "<html>Request Entity Too Large</html>")]

    assert await shop.work() is Outcome.FAILED

    assert await shop.state() == (SessionStatus.FAILED, "INVALID_IMAGE")
    assert await shop.message() == UNUSABLE_MESSAGE
    assert (shop.money, fake.count("begin")) == (REFUNDED, 1)


@pytest.mark.parametrize("kind", ["begin", "poll"])
@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (tells(400, "Bad request"), "400 Bad request"),
        (says(400, "not JSON"), "400"),
        (says(400, [1]), "400"),
        (tells(422, "Input validation failed"), "422 Input validation failed"),
        (tells(422, "A key: r8_1"), "422"),
        (tells(405), "405 An error"),
        (floods, "The provider's response exceeds 500000 bytes"),
    ],
)
async def test_rejected_request_fails_the_session_and_is_raised(
    fake: FakeReplicate, adapter: ReplicateAdapters, kind: str, reply: Reply, detail: str
) -> None:
    """One call, a refund and a generic message; the log gets the error's title only."""
    shop = await submitted_to(adapter())
    setattr(fake.script, kind, [reply])

    with pytest.raises(RuntimeError) as bug:
        await shop.work()

    assert str(bug.value).endswith(detail)
    assert SECRET not in str(bug.value)
    assert await shop.state() == (SessionStatus.FAILED, "GENERATION_FAILED")
    assert await shop.message() == "The picture could not be made; the credit was refunded"
    assert (shop.money, fake.count("begin")) == (REFUNDED, 1)


MISCONFIGURED: list[tuple[Reply, str]] = [
    (tells(401, "Unauthenticated"), "401 Unauthenticated"),
    (says(401, "no JSON"), "401"),
    (tells(402, "Insufficient credit"), "402 Insufficient credit"),
    (tells(403), "403"),
    (says(302, "", Location="https://elsewhere.example/"), "302"),
]


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        *MISCONFIGURED,
        (tells(404, "Not found"), "404 Not found"),
        (tells(422, "Invalid version or not permitted"), "422 Invalid version"),
    ],
)
async def test_misconfigured_provider_fails_no_session(
    fake: FakeReplicate, adapter: ReplicateAdapters, reply: Reply, detail: str
) -> None:
    """One call; the session returns to the front of the queue without a refund, and is completed
    once the configuration is fixed."""
    shop = await submitted_to(adapter())
    fake.script.begin = [reply]

    with pytest.raises(ProviderMisconfigured) as error:
        await shop.work()

    assert error.value.cause.detail.startswith(detail)
    assert SECRET not in f"{error.value} {error.value.cause.detail}"
    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, len(fake.jobs)) == (CHARGED, 0)
    assert await shop.work() is Outcome.COMPLETED


@pytest.mark.parametrize(("reply", "detail"), MISCONFIGURED)
async def test_misconfigured_provider_loses_no_job(
    fake: FakeReplicate, adapter: ReplicateAdapters, reply: Reply, detail: str
) -> None:
    """The token was revoked while the job ran: with a new token the same job is resumed."""
    shop = await submitted_to(adapter())
    fake.script.poll = [reply]

    with pytest.raises(ProviderMisconfigured, match="cannot be made at the moment") as error:
        await shop.work()

    assert error.value.cause.detail.startswith(detail)
    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs), fake.cancelled) == (CHARGED, 1, [])


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"token": "r8_wrong"}, "401"),
        ({"model": ReplicateModel(name="google/banana", image_field="image_input")}, "404"),
        (
            {"model": ReplicateModel(name=f"{MODEL}:{'0' * 64}", image_field="image_input")},
            "422",
        ),
    ],
)
async def test_wrong_token_or_model_is_reported(
    fake: FakeReplicate, adapter: ReplicateAdapters, changes: dict[str, Any], detail: str
) -> None:
    """The fake rejects them as the provider does; no message contains the token."""
    with pytest.raises(ProviderMisconfigured) as error:
        await adapter(**changes).generate(REQUEST, record)

    assert error.value.cause.detail.startswith(detail)
    assert "r8_wrong" not in f"{error.value!r} {error.value.cause.detail} {adapter.made[-1]!r}"
    assert fake.count("begin") == 1


async def test_large_responses_are_read(fake: FakeReplicate, adapter: ReplicateAdapters) -> None:
    """Responses repeat the input, so large pictures make large responses."""
    large = Picture(data=b"\x89PNG" + bytes(8_000_000), media_type="image/png")
    request = replace(REQUEST, images=(large,))

    generated = await adapter(limits=CallLimits()).generate(request, record)

    assert generated.picture.media_type == "image/png"
    assert len(json.dumps(fake.jobs["job1"].body())) > 10_000_000


async def test_unused_adapter_can_be_closed(adapter: ReplicateAdapters) -> None:
    await adapter.jobs().close()
