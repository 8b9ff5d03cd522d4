"""Replicate's jobs over several attempts: a job that may still produce the picture is not paid for
twice, and a job without a usable picture is replaced."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest

from adapters.images.limits import JobLimits
from domain.generation import Outcome, WorkPolicy
from domain.recovery import RecoveryPolicy
from domain.sessions import SessionStatus
from tests.adapters.generators import ReplicateAdapters, submitted_to
from tests.support.examples import LEASE
from tests.support.images import encoded
from tests.support.provider import Reply, breaks_off, floods, resets, running, says
from tests.support.replicate import SECRET, FakeReplicate, serves, tells
from tests.support.service import INPUTS
from tests.support.shop import CHARGED, Shop

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


@pytest.mark.parametrize(
    "end",
    [
        {"status": "failed", "error": f"CUDA out of memory. {SECRET}"},
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
async def test_job_without_a_usable_picture_is_replaced(
    fake: FakeReplicate, adapter: ReplicateAdapters, end: dict[str, Any]
) -> None:
    """It failed, was cancelled or has no usable output: the session is released, and the next
    attempt begins another job with another idempotency key."""
    shop = await submitted_to(adapter())
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
async def test_job_whose_link_leads_to_no_picture_is_replaced(
    fake: FakeReplicate, adapter: ReplicateAdapters, reply: Reply
) -> None:
    """The link of an output is checked like an untrusted link."""
    shop = await submitted_to(adapter())
    fake.script.file = [reply, reply]

    assert await shop.work() is Outcome.RELEASED

    assert (shop.money, len(fake.jobs)) == (CHARGED, 1)
    await shop.later(POLICY.backoff_cap)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs)) == (CHARGED, 2)


@pytest.mark.parametrize("reply", [serves(b"", status=503), resets, breaks_off])
async def test_failed_download_of_a_picture_is_retried(
    fake: FakeReplicate, adapter: ReplicateAdapters, reply: Reply
) -> None:
    """The picture exists and is paid for, so no other job is begun."""
    shop = await submitted_to(adapter())
    fake.script.file = [reply, reply]

    assert await shop.work() is Outcome.COMPLETED

    assert (shop.money, len(fake.jobs), fake.count("file")) == (CHARGED, 1, 3)


async def test_crash_during_a_job_begins_no_other(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """The worker died and the input pictures are gone: the next attempt polls the recorded job."""
    fake.seconds = 0.2
    shop = await submitted_to(adapter())
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
async def test_unknown_job_is_replaced(
    fake: FakeReplicate, adapter: ReplicateAdapters, name: str, reply: Reply | None
) -> None:
    """It was deleted, or belongs to another provider, whose jobs are never polled."""
    fake.accept({"input": {}})
    fake.script.poll = [reply] if reply and name == "replicate:job7" else []
    shop = await submitted_to(adapter())
    claimed = await shop.service.claimed(shop.session_id)
    assert await shop.service.repo.record_job(claimed.id, attempt=1, job=name)
    for _ in range(2):
        await shop.later(LEASE + RecoveryPolicy().requeue_after)

    assert await shop.work() is Outcome.COMPLETED

    assert (shop.money, fake.count("begin")) == (CHARGED, 1)
    assert fake.jobs["job2"].pictures[0][1] == next(iter(INPUTS.values())).data


async def test_idempotent_provider_makes_one_job(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """The worker died before it could record the job: the next request gets the same job."""
    fake.is_idempotent = True
    shop = await submitted_to(adapter())
    shop.service.repo.faults.away |= {"record_job", "complete", "fail", "release"}
    fake.script.poll = [floods]  # The worker dies at its first poll.
    with pytest.raises(RuntimeError):
        await shop.work()
    shop.service.repo.faults.away.clear()
    for _ in range(2):
        await shop.later(LEASE + RecoveryPolicy().requeue_after)

    assert await shop.work() is Outcome.COMPLETED

    assert (fake.count("begin"), len(fake.jobs), shop.money) == (2, 1, CHARGED)


async def cancel_after_first_poll(fake: FakeReplicate, shop: Shop) -> None:
    """Start work, wait for a poll, and cancel the work as a stopping worker does."""
    working = asyncio.create_task(shop.work())
    async with asyncio.timeout(5):
        while not fake.count("poll"):  # noqa: ASYNC110 - the server runs in this event loop
            await asyncio.sleep(0.01)
    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working


async def test_stopping_worker_cancels_its_job(
    fake: FakeReplicate, adapter: ReplicateAdapters
) -> None:
    """The session is released, and another job completes it."""
    fake.seconds = 60
    shop = await submitted_to(adapter())

    await cancel_after_first_poll(fake, shop)

    assert fake.cancelled == ["job1"]
    assert fake.calls[-1].path == "/v1/predictions/job1/cancel"
    assert await shop.state() == (SessionStatus.QUEUED, None)
    fake.seconds = 0
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs)) == (CHARGED, 2)


@pytest.mark.parametrize("reply", [tells(404), tells(402), tells(500), tells(422), resets])
async def test_failed_cancellation_delays_no_session(
    fake: FakeReplicate, adapter: ReplicateAdapters, reply: Reply
) -> None:
    """The session is released regardless, and the next attempt resumes the job, which goes on."""
    fake.seconds = 0.5
    fake.script.cancel = [reply]
    shop = await submitted_to(adapter())

    await cancel_after_first_poll(fake, shop)

    assert fake.count("cancel") == 1
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs), fake.cancelled) == (CHARGED, 1, [])


async def test_slow_job_is_cancelled(fake: FakeReplicate, adapter: ReplicateAdapters) -> None:
    """The session is released after ``total_seconds``, and the next attempt begins another job."""
    fake.seconds = 60
    shop = await submitted_to(adapter(JobLimits(total_seconds=0.3, first_pause_seconds=0.05)))

    assert await shop.work() is Outcome.RELEASED

    assert fake.cancelled == ["job1"]
    fake.seconds = 0
    await shop.later(POLICY.backoff_cap)
    assert await shop.work() is Outcome.COMPLETED
    assert (shop.money, len(fake.jobs)) == (CHARGED, 2)
