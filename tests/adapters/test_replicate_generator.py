"""Replicate's jobs against a provider on this machine: whatever it answers, the session, the ledger
and the number of jobs that were paid for are right."""

import asyncio
import base64
import json
import time
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from aiohttp.test_utils import unused_port

from adapters.images.fetcher import HttpPictureFetcher
from adapters.images.inspection import inspect_picture
from adapters.images.jobs import JobPictureGenerator
from adapters.images.limits import FetchLimits, JobLimits
from adapters.images.replicate import CallLimits, ReplicateJobs, ReplicateModel
from domain.errors import ProviderMisconfigured, TryAgain
from domain.generation import Outcome, WorkPolicy
from domain.ports import Picture, PictureRequest
from domain.recovery import RecoveryPolicy
from domain.sessions import SessionStatus
from tests.support.clock import START
from tests.support.examples import LEASE
from tests.support.images import encoded
from tests.support.provider import Reply, breaks_off, drips, floods, hangs, resets, running, says
from tests.support.replicate import (
    MODEL,
    SECRET,
    TOKEN,
    VERSION,
    FakeReplicate,
    serves,
    tells,
)
from tests.support.service import INPUTS, seeded_random
from tests.support.shop import CHARGED, REFUNDED, Shop

pytestmark = pytest.mark.anyio

POLICY = WorkPolicy()
PATIENT = CallLimits(connect_seconds=5, total_seconds=10, max_bytes=500_000)
QUICK = JobLimits(total_seconds=20, first_pause_seconds=0.01, longest_pause_seconds=0.05)
FETCH = FetchLimits(total_timeout_seconds=5, max_bytes=1_000_000)
REQUEST = PictureRequest(
    session_id=UUID(int=1),
    prompt="In the rain, \N{UMBRELLA}",
    images=tuple(
        Picture(data=encoded(kind), media_type=f"image/{kind.lower()}")
        for kind in ("PNG", "JPEG", "WEBP")
    ),
)


@pytest.fixture
async def fake() -> AsyncIterator[FakeReplicate]:
    async with running(FakeReplicate()) as fake:
        yield fake


async def inspected(data: bytes) -> Picture:
    return inspect_picture(data)


class Adapters:
    """Makes generators for the provider, and closes them."""

    def __init__(self, url: str) -> None:
        self._url = url
        self._results = HttpPictureFetcher(FETCH, prepare=inspected, allow_loopback=True)
        self.made: list[ReplicateJobs] = []

    def jobs(self, **changes: Any) -> ReplicateJobs:
        options: dict[str, Any] = {
            "base_url": self._url,
            "token": TOKEN,
            "model": ReplicateModel(name=MODEL, image_field="image_input"),
            "deadline_seconds": 20,
            "limits": PATIENT,
            "download": self._results.fetch,
            "clock": lambda: START,
        }
        self.made.append(ReplicateJobs(**options | changes))
        return self.made[-1]

    def __call__(self, waiting: JobLimits = QUICK, **changes: Any) -> JobPictureGenerator:
        return JobPictureGenerator(
            self.jobs(**changes), name="replicate", limits=waiting, random=seeded_random()
        )

    async def close(self) -> None:
        for made in self.made:
            await made.close()
        await self._results.close()


@pytest.fixture
async def adapter(fake: FakeReplicate) -> AsyncIterator[Adapters]:
    adapters = Adapters(fake.url)
    yield adapters
    await adapters.close()


async def noted(job: str) -> None:
    """What the store keeps is looked at elsewhere."""


async def until(fake: FakeReplicate, kind: str, count: int = 1) -> None:
    async with asyncio.timeout(5):
        while fake.count(kind) < count:  # noqa: ASYNC110 - the server is in this very loop
            await asyncio.sleep(0.01)


def failed(error: str) -> dict[str, Any]:
    return {"status": "failed", "error": error}


async def test_the_wire(fake: FakeReplicate, adapter: Adapters) -> None:
    """One JSON request with the prompt and the pictures in their order, as what they are; the
    token as a bearer's; a name for the picture that is asked for; and the time after which the
    job is not wanted any more. Then looks at the job by its id."""
    fake.seconds = 0.1

    generated = await adapter().generate(REQUEST, noted)

    begin, *looks, _ = fake.calls
    (job,) = fake.jobs.values()
    assert begin.path == f"/v1/models/{MODEL}/predictions"
    assert begin.headers["Authorization"] == f"Bearer {TOKEN}"
    assert begin.headers["Content-Type"] == "application/json"
    assert begin.headers["Idempotency-Key"] == f"wearon-{REQUEST.session_id}-first"
    assert begin.headers["Cancel-After"] == "20s"
    assert "Prefer" not in begin.headers
    assert job.order["input"]["prompt"] == REQUEST.prompt
    assert job.pictures == [(image.media_type, image.data) for image in REQUEST.images]
    assert {(look.kind, look.path) for look in looks} == {("look", f"/v1/predictions/{job.id}")}
    assert len(looks) > 1
    assert generated.picture == Picture(
        data=encoded("PNG", size=(768, 1024)), media_type="image/png"
    )
    assert generated.usage is None


async def test_a_version_has_its_own_address(fake: FakeReplicate, adapter: Adapters) -> None:
    """A model of the community is run by its version."""
    model = ReplicateModel(name=f"{MODEL}:{VERSION}", image_field="image_input")

    await adapter(model=model).generate(REQUEST, noted)

    assert fake.calls[0].path == "/v1/predictions"
    assert fake.jobs["job1"].order["version"] == VERSION


@pytest.mark.parametrize("suffix", ["", "/", "/v1", "/v1/"])
async def test_base_urls(fake: FakeReplicate, adapter: Adapters, suffix: str) -> None:
    """With a version or without, and with a slash at its end or without."""
    await adapter(base_url=fake.url + suffix).generate(REQUEST, noted)

    assert len(fake.jobs) == 1


@pytest.mark.parametrize(("wanted", "told"), [(0.5, "5s"), (20.2, "21s"), (170.0, "170s")])
async def test_a_deadline_is_one_that_the_provider_takes(
    fake: FakeReplicate, adapter: Adapters, wanted: float, told: str
) -> None:
    """Whole seconds, five at least."""
    await adapter(deadline_seconds=wanted).generate(REQUEST, noted)

    assert fake.calls[0].headers["Cancel-After"] == told


async def test_a_picture_arrives(fake: FakeReplicate, adapter: Adapters) -> None:
    """It is kept as what it is, not as what its link is called; the session is completed, paid
    once, and what that took is not known."""
    fake.seconds = 0.1
    fake.script.file = [serves(encoded("WEBP", size=(64, 64)), "image/png")]
    shop = Shop(adapter())
    await shop.submit()

    assert await shop.work() is Outcome.COMPLETED

    session = await shop.service.session(shop.session_id)
    assert session.picture is not None
    assert session.picture.media_type == "image/webp"
    assert (await shop.service.picture(session.picture.object_key)).data == encoded(
        "WEBP", size=(64, 64)
    )
    assert (session.provider_job, session.usage) == ("replicate:job1", None)
    assert (shop.money, len(fake.jobs), fake.cancelled) == (CHARGED, 1, [])


async def test_the_token_goes_to_the_api_alone(fake: FakeReplicate, adapter: Adapters) -> None:
    """Not to where the picture lies, which may be anybody's server."""
    await adapter().generate(REQUEST, noted)

    (download,) = (call for call in fake.calls if call.kind == "file")
    assert "Authorization" not in download.headers
    assert TOKEN not in str(download.headers)


@pytest.mark.parametrize("form", ["a list", "a data URI", "plain data"])
async def test_forms_of_an_output(fake: FakeReplicate, adapter: Adapters, form: str) -> None:
    """The first of a list, which models have that can make several; or the picture itself."""
    data = encoded("PNG", size=(768, 1024))
    outputs: dict[str, object] = {
        "a list": [fake.picture_url("1.png"), fake.picture_url("2.png")],
        "a data URI": f"data:image/png;base64,{base64.b64encode(data).decode()}",
        "plain data": "data:image/png," + "".join(f"%{byte:02x}" for byte in data),
    }
    fake.ends = [{"output": outputs[form]}]

    generated = await adapter().generate(REQUEST, noted)

    assert generated.picture == Picture(data=data, media_type="image/png")
    assert [call.path for call in fake.calls if call.kind == "file"] == (
        ["/files/1.png"] if form == "a list" else []
    )


PASSING: dict[str, Reply] = {
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


@pytest.mark.parametrize("name", PASSING)
async def test_a_passing_fault_at_the_beginning_is_tried_again(
    fake: FakeReplicate, adapter: Adapters, name: str
) -> None:
    """The session is released, its credit kept, after one call; the next attempt completes it."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.begin = [PASSING[name]]

    assert await shop.work() is Outcome.RELEASED

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 1, 0)
    await shop.later(POLICY.backoff_cap)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 2, 1)


@pytest.mark.parametrize("name", PASSING)
async def test_a_passing_fault_at_a_look_is_borne(
    fake: FakeReplicate, adapter: Adapters, name: str
) -> None:
    """The job goes on, whatever became of the question: one attempt, one job, paid once."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.look = [PASSING[name]] * 3

    assert await shop.work() is Outcome.COMPLETED

    assert (await shop.service.session(shop.session_id)).attempt == 1
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 1, 1)
    assert (fake.count("look"), fake.cancelled) == (4, [])


@pytest.mark.parametrize("name", ["429", "500", "a reset"])
async def test_a_fault_that_does_not_pass_ends_with_a_refund(
    fake: FakeReplicate, adapter: Adapters, name: str
) -> None:
    """After as many calls as attempts; the customer hears nothing of the provider's words."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.begin = [PASSING[name]] * POLICY.max_attempts

    outcomes = []
    for _ in range(POLICY.max_attempts):
        outcomes.append(await shop.work())
        await shop.later(POLICY.backoff_cap)

    assert outcomes == [Outcome.RELEASED, Outcome.RELEASED, Outcome.FAILED]
    assert await shop.state() == (SessionStatus.FAILED, "GENERATION_FAILED")
    assert await shop.message() == "The picture could not be made this time; the credit is back"
    assert (shop.money, len(fake.jobs)) == (REFUNDED, 0)


@pytest.mark.parametrize("reply", [hangs, drips])
async def test_every_call_has_a_bound(fake: FakeReplicate, adapter: Adapters, reply: Reply) -> None:
    """One that begins a job ends the attempt, one that looks is followed by another."""
    shop = Shop(adapter(limits=CallLimits(total_seconds=0.3)))
    await shop.submit()
    fake.script.begin, fake.script.look = [reply], [reply]

    assert await shop.work() is Outcome.RELEASED
    await shop.later(POLICY.backoff_cap)
    started_at = time.monotonic()
    assert await shop.work() is Outcome.COMPLETED

    assert 0.3 <= time.monotonic() - started_at < 10
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 2, 1)


async def test_nobody_there_is_a_passing_fault(adapter: Adapters) -> None:
    """No connection, no job, no harm."""
    shop = Shop(adapter(base_url=f"http://127.0.0.1:{unused_port()}"))
    await shop.submit()

    assert await shop.work() is Outcome.RELEASED

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert shop.money == CHARGED


@pytest.mark.parametrize("kind", ["begin", "look"])
@pytest.mark.parametrize(
    ("asked", "seconds"), [("7", 7.0), ("Thu, 01 Jan 2026 12:00:40 GMT", 40.0), ("soon", 0.0)]
)
async def test_retry_after_is_read(
    fake: FakeReplicate, adapter: Adapters, kind: str, asked: str, seconds: float
) -> None:
    """In seconds, or as a date by our clock; what is neither asks for nothing."""
    setattr(fake.script, kind, [tells(429, Retry_After=asked)])
    jobs = adapter.jobs()

    with pytest.raises(TryAgain) as fault:
        await (jobs.begin(REQUEST) if kind == "begin" else jobs.look("job1"))

    assert fault.value.retry_after_seconds == seconds


async def test_a_long_retry_after_holds_no_slot(fake: FakeReplicate, adapter: Adapters) -> None:
    """The work ends at once; the session waits in the store for half an hour, and not less."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.begin = [tells(429, Retry_After="1800")]

    assert await shop.work() is Outcome.RELEASED

    await shop.later(timedelta(seconds=1790))
    assert shop.service.waiting() == []
    await shop.later(timedelta(seconds=10))
    assert await shop.work() is Outcome.COMPLETED


@pytest.mark.parametrize(
    "end",
    [
        failed(f"CUDA out of memory. {SECRET}"),
        {"status": "failed", "error": {"a form": "of its own"}},
        {"status": "failed", "error": None},
        {"status": "canceled"},
        {"status": "aborted"},
        {"output": None},
        {"output": []},
        {"output": [17]},
        {"output": {"image": "https://pictures.example/1.png"}},
        {"output": ""},
        {"output": "not a link"},
        {"output": "data:image/png;base64,***"},
        {"output": "data:application/pdf;base64,JVBERi0xLjcK"},
        {"output": "file:///etc/passwd"},
        {"output": "http://10.0.0.1/1.png"},
        {"output": "http://169.254.169.254/latest/meta-data/"},
        {"output": "https://user@pictures.example/1.png"},
    ],
    ids=repr,
)
async def test_a_job_that_comes_to_nothing_is_followed_by_another(
    fake: FakeReplicate, adapter: Adapters, end: dict[str, Any]
) -> None:
    """It failed, was cancelled by somebody, or has no picture that may be used: the session is
    released, and the next attempt begins another job, which it tells from the first."""
    shop = Shop(adapter())
    await shop.submit()
    fake.ends = [end]

    assert await shop.work() is Outcome.RELEASED

    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, len(fake.jobs)) == (CHARGED, 1)
    await shop.later(POLICY.backoff_cap)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs), fake.cancelled) == (CHARGED, 2, [])
    keys = [job.key for job in fake.jobs.values()]
    assert keys == [f"wearon-{shop.session_id}-{name}" for name in ("first", "replicate:job1")]


@pytest.mark.parametrize(
    "reply",
    [
        serves(b"<html>Sorry</html>", "image/png"),
        serves(encoded(size=(8, 8))),
        serves(bytes(1_000_001)),
        serves(b"", status=404),
        serves(b"", status=410),
        says(302, "", Location="http://10.0.0.1/1.png"),
    ],
)
async def test_a_link_that_leads_to_no_picture_is_followed_by_another_job(
    fake: FakeReplicate, adapter: Adapters, reply: Reply
) -> None:
    """What lies there is looked at like a stranger's picture."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.file = [reply, reply]

    assert await shop.work() is Outcome.RELEASED

    assert (shop.money, len(fake.jobs)) == (CHARGED, 1)
    await shop.later(POLICY.backoff_cap)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs)) == (CHARGED, 2)


@pytest.mark.parametrize("reply", [serves(b"", status=503), resets, breaks_off])
async def test_a_picture_that_its_server_does_not_deliver_is_asked_for_again(
    fake: FakeReplicate, adapter: Adapters, reply: Reply
) -> None:
    """It is made and paid for: no other job."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.file = [reply, reply]

    assert await shop.work() is Outcome.COMPLETED

    assert (shop.money, len(fake.jobs), fake.count("file")) == (CHARGED, 1, 3)


MODERATION = "The pictures or the prompt did not pass the safety check; the credit is back"
UNUSABLE = "A picture could not be used to make a new one; the credit is back"


@pytest.mark.parametrize(
    "words",
    [
        "The input or output was flagged as sensitive. Please try again with other inputs. (E005)",
        "NSFW content detected in all outputs. Try running it again, or try a different prompt.",
        "NSFW content detected. Try running it again, or try a different prompt.",
        "Request blocked by content moderation",
        "Your request was rejected by the safety system",
        "The request violates our content policy",
    ],
)
async def test_what_a_safety_check_refused_fails_at_once(
    fake: FakeReplicate, adapter: Adapters, words: str
) -> None:
    """One job, the credit back, and words of ours that an end user may read."""
    shop = Shop(adapter())
    await shop.submit()
    fake.ends = [failed(words)]

    assert await shop.work() is Outcome.FAILED

    assert await shop.state() == (SessionStatus.FAILED, "MODERATION_BLOCKED")
    assert await shop.message() == MODERATION
    assert (shop.money, len(fake.jobs)) == (REFUNDED, 1)


async def test_pictures_that_are_too_large_fail_at_once(
    fake: FakeReplicate, adapter: Adapters
) -> None:
    """For this provider at least: no other attempt can succeed."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.begin = [says(413, "<html>Request Entity Too Large</html>")]

    assert await shop.work() is Outcome.FAILED

    assert await shop.state() == (SessionStatus.FAILED, "INVALID_IMAGE")
    assert await shop.message() == UNUSABLE
    assert (shop.money, fake.count("begin")) == (REFUNDED, 1)


@pytest.mark.parametrize("kind", ["begin", "look"])
@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        (tells(400, "Bad request"), "HTTP 400 title=Bad request"),
        (says(400, "not JSON"), "HTTP 400"),
        (says(400, [1]), "HTTP 400"),
        (tells(422, "Input validation failed"), "HTTP 422 title=Input validation failed"),
        (tells(422, "A key: r8_1"), "HTTP 422"),
        (tells(405), "HTTP 405 title=An error"),
        (floods, "The provider's answer exceeds 500000 bytes"),
    ],
)
async def test_what_we_did_wrong_fails_and_is_raised(
    fake: FakeReplicate, adapter: Adapters, kind: str, reply: Reply, detail: str
) -> None:
    """One call, the credit back, a message that tells nothing; the log gets a title, no more."""
    shop = Shop(adapter())
    await shop.submit()
    setattr(fake.script, kind, [reply])

    with pytest.raises(RuntimeError) as bug:
        await shop.work()

    assert str(bug.value).endswith(detail)
    assert SECRET not in str(bug.value)
    assert await shop.state() == (SessionStatus.FAILED, "GENERATION_FAILED")
    assert await shop.message() == "The picture could not be made; the credit is back"
    assert (shop.money, fake.count("begin")) == (REFUNDED, 1)


OPERATORS: list[tuple[Reply, str]] = [
    (tells(401, "Unauthenticated"), "HTTP 401 title=Unauthenticated"),
    (says(401, "no JSON"), "HTTP 401"),
    (tells(402, "Insufficient credit"), "HTTP 402 title=Insufficient credit"),
    (tells(403), "HTTP 403"),
    (says(302, "", Location="https://elsewhere.example/"), "HTTP 302"),
]


@pytest.mark.parametrize(
    ("reply", "detail"),
    [
        *OPERATORS,
        (tells(404, "Not found"), "HTTP 404 title=Not found"),
        (tells(422, "Invalid version or not permitted"), "HTTP 422 title=Invalid version"),
    ],
)
async def test_an_operators_fault_harms_no_session(
    fake: FakeReplicate, adapter: Adapters, reply: Reply, detail: str
) -> None:
    """One call; the session waits at the front of the queue with its credit kept, and is
    completed once the fault is mended."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.begin = [reply]

    with pytest.raises(ProviderMisconfigured) as fault:
        await shop.work()

    assert fault.value.detail.startswith(detail)
    assert SECRET not in f"{fault.value} {fault.value.detail}"
    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert (shop.money, len(fake.jobs)) == (CHARGED, 0)
    assert await shop.work() is Outcome.COMPLETED


@pytest.mark.parametrize(("reply", "detail"), OPERATORS)
async def test_an_operators_fault_loses_no_job(
    fake: FakeReplicate, adapter: Adapters, reply: Reply, detail: str
) -> None:
    """The token was taken away while the job was made: it is waited for once there is another."""
    shop = Shop(adapter())
    await shop.submit()
    fake.script.look = [reply]

    with pytest.raises(ProviderMisconfigured, match="cannot be made at the moment") as fault:
        await shop.work()

    assert fault.value.detail.startswith(detail)
    assert await shop.state() == (SessionStatus.QUEUED, None)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs), fake.cancelled) == (CHARGED, 1, [])


@pytest.mark.parametrize(
    ("changes", "detail"),
    [
        ({"token": "r8_wrong"}, "HTTP 401"),
        ({"model": ReplicateModel(name="google/banana", image_field="image_input")}, "HTTP 404"),
        (
            {"model": ReplicateModel(name=f"{MODEL}:{'0' * 64}", image_field="image_input")},
            "HTTP 422",
        ),
    ],
)
async def test_a_wrong_token_or_model(
    fake: FakeReplicate, adapter: Adapters, changes: dict[str, Any], detail: str
) -> None:
    """The provider itself finds it, and the token is in no word of ours."""
    with pytest.raises(ProviderMisconfigured) as fault:
        await adapter(**changes).generate(REQUEST, noted)

    assert fault.value.detail.startswith(detail)
    assert "r8_wrong" not in f"{fault.value!r} {fault.value.detail} {adapter.made[-1]!r}"
    assert fake.count("begin") == 1


async def test_a_crash_while_the_job_is_made_costs_no_other(
    fake: FakeReplicate, adapter: Adapters
) -> None:
    """The worker is gone; its inputs are too. The next one looks at the job that is noted."""
    fake.seconds = 0.2
    shop = Shop(adapter())
    await shop.submit()
    job = fake.accept({"input": {}})
    claimed = await shop.service.claimed(shop.session_id)
    assert await shop.service.repo.record_job(claimed.id, attempt=1, job=f"replicate:{job.id}")
    shop.service.fetcher.pictures.clear()
    for _ in range(2):
        await shop.later(LEASE + RecoveryPolicy().requeue_after)

    assert await shop.work() is Outcome.COMPLETED

    assert (await shop.service.session(shop.session_id)).attempt == 2
    assert (shop.money, fake.count("begin"), len(fake.jobs)) == (CHARGED, 0, 1)
    assert shop.service.fetcher.fetched == []


@pytest.mark.parametrize("reply", [None, tells(410)])
@pytest.mark.parametrize("name", ["replicate:job7", "replicate:", "openai:job1", "job1"])
async def test_a_job_that_nobody_knows_is_begun_anew(
    fake: FakeReplicate, adapter: Adapters, name: str, reply: Reply | None
) -> None:
    """Deleted, or of another provider: which is not even asked for."""
    fake.accept({"input": {}})
    fake.script.look = [reply] if reply and name == "replicate:job7" else []
    shop = Shop(adapter())
    await shop.submit()
    claimed = await shop.service.claimed(shop.session_id)
    assert await shop.service.repo.record_job(claimed.id, attempt=1, job=name)
    for _ in range(2):
        await shop.later(LEASE + RecoveryPolicy().requeue_after)

    assert await shop.work() is Outcome.COMPLETED

    assert (shop.money, fake.count("begin")) == (CHARGED, 1)
    assert fake.jobs["job2"].pictures[0][1] == next(iter(INPUTS.values())).data


async def test_a_provider_that_heeds_keys_makes_one_job(
    fake: FakeReplicate, adapter: Adapters
) -> None:
    """The worker died between the provider's answer and the note: the next one's request is
    answered with the same job."""
    fake.heeds_keys = True
    shop = Shop(adapter())
    await shop.submit()
    shop.service.repo.faults.away |= {"record_job", "complete", "fail", "release"}
    fake.script.look = [floods]  # It is gone at its first look.
    with pytest.raises(RuntimeError):
        await shop.work()
    shop.service.repo.faults.away.clear()
    for _ in range(2):
        await shop.later(LEASE + RecoveryPolicy().requeue_after)

    assert await shop.work() is Outcome.COMPLETED

    assert (fake.count("begin"), len(fake.jobs), shop.money) == (2, 1, CHARGED)


async def test_a_stopped_worker_cancels_its_job(fake: FakeReplicate, adapter: Adapters) -> None:
    """At the provider; the session goes back, and another job completes it."""
    fake.seconds = 60
    shop = Shop(adapter())
    await shop.submit()
    working = asyncio.create_task(shop.work())
    await until(fake, "look")

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert fake.cancelled == ["job1"]
    assert fake.calls[-1].path == "/v1/predictions/job1/cancel"
    assert await shop.state() == (SessionStatus.QUEUED, None)
    fake.seconds = 0
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs)) == (CHARGED, 2)


@pytest.mark.parametrize("reply", [tells(404), tells(402), tells(500), tells(422), resets])
async def test_a_job_that_cannot_be_cancelled_holds_nobody_up(
    fake: FakeReplicate, adapter: Adapters, reply: Reply
) -> None:
    """The session goes back all the same, and the job, which goes on, is not lost."""
    fake.seconds = 0.5
    fake.script.cancel = [reply]
    shop = Shop(adapter())
    await shop.submit()
    working = asyncio.create_task(shop.work())
    await until(fake, "look")

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert fake.count("cancel") == 1
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs), fake.cancelled) == (CHARGED, 1, [])


async def test_a_job_that_takes_too_long_is_cancelled(
    fake: FakeReplicate, adapter: Adapters
) -> None:
    """The attempt ends as a passing fault, and the next one begins another job."""
    fake.seconds = 60
    shop = Shop(adapter(JobLimits(total_seconds=0.3, first_pause_seconds=0.05)))
    await shop.submit()

    assert await shop.work() is Outcome.RELEASED

    assert fake.cancelled == ["job1"]
    fake.seconds = 0
    await shop.later(POLICY.backoff_cap)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs)) == (CHARGED, 2)


async def test_what_was_sent_may_come_back(fake: FakeReplicate, adapter: Adapters) -> None:
    """Answers hold the input: large pictures make large answers, which are read whole."""
    large = Picture(data=b"\x89PNG" + bytes(8_000_000), media_type="image/png")
    request = PictureRequest(session_id=UUID(int=1), prompt="p", images=(large,))

    generated = await adapter(limits=CallLimits()).generate(request, noted)

    assert generated.picture.media_type == "image/png"
    assert len(json.dumps(fake.jobs["job1"].body())) > 10_000_000


async def test_an_adapter_may_be_closed_unused(adapter: Adapters) -> None:
    """Nothing was opened, so there is nothing to close."""
    await adapter.jobs().close()
