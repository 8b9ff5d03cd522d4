"""Pictures made as provider jobs: whatever fails, a job that may still lead to the picture is
resumed instead of paid for twice, and a job that no attempt waits for is cancelled."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
from itertools import pairwise
from uuid import UUID

import pytest

from adapters.images.jobs import (
    STOP_SECONDS,
    JobPictureGenerator,
    JobProducedNothing,
    Jobs,
)
from adapters.images.limits import JobLimits
from domain.credits import LedgerKind
from domain.errors import ProviderMisconfigured, Refused, StorageUnavailable, TryAgain
from domain.generation import Generation, Outcome, WorkPolicy
from domain.picture_ports import Generated, PictureGeneratorPort, PictureRequest
from domain.recovery import RecoveryPolicy
from domain.sessions import GenerationSession, SessionStatus
from tests.support.clock import loop_time
from tests.support.examples import LEASE, MODEL_URL, TRACEPARENT
from tests.support.images import A_PICTURE, FakePictureGenerator
from tests.support.service import Service, seeded_random

pytestmark = pytest.mark.anyio

POLICY = WorkPolicy()
LIMITS = JobLimits(total_seconds=170, first_pause_seconds=0.5, longest_pause_seconds=3)
CHARGED = [LedgerKind.DEBIT]
REFUNDED = [LedgerKind.DEBIT, LedgerKind.REFUND]


class FakeJobs(Jobs):
    """Each job takes ``seconds``. The next calls of a method raise its ``faults``, unless None, and
    take ``slow`` seconds. Jobs in ``nothing`` produce nothing."""

    def __init__(self) -> None:
        self.seconds = 10.0
        self.begun: list[PictureRequest] = []
        self.cancelled: list[str] = []
        self.polled_at: list[float] = []
        self.faults: dict[str, list[Exception | None]] = {"begin": [], "poll": [], "cancel": []}
        self.slow: dict[str, float] = {}
        self.nothing: set[str] = set()
        self._ready_at: dict[str, float] = {}

    async def begin(self, request: PictureRequest) -> str:
        self.begun.append(request)
        job_id = str(len(self.begun))
        self._ready_at[job_id] = loop_time() + self.seconds
        await self._called("begin")
        return job_id

    async def poll(self, job_id: str) -> Generated | None:
        self.polled_at.append(loop_time())
        await self._called("poll")
        if job_id in self.nothing or job_id in self.cancelled or job_id not in self._ready_at:
            raise JobProducedNothing
        return Generated(picture=A_PICTURE) if loop_time() >= self._ready_at[job_id] else None

    async def cancel(self, job_id: str) -> None:
        await self._called("cancel")
        self.cancelled.append(job_id)

    async def _called(self, method: str) -> None:
        await asyncio.sleep(self.slow.get(method, 0))
        fault = self.faults[method].pop(0) if self.faults[method] else None
        if fault is not None:
            raise fault


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()


class Shop:
    """A service whose pictures are made as jobs, and one session."""

    def __init__(self, service: Service, jobs: FakeJobs) -> None:
        self.service = service
        self.jobs = jobs
        self.session_id = UUID(int=0)

    async def submit(self) -> None:
        self.session_id = (await self.service.submitted()).session.id

    def generation(self) -> Generation:
        """A new worker's."""
        generator = JobPictureGenerator(
            self.jobs, name="fake", limits=LIMITS, random=seeded_random()
        )
        return self.service.generation(generator=generator)

    async def work(self) -> Outcome:
        return await self.service.work(self.generation())

    async def worker_dies_after(self, seconds: float) -> None:
        """A worker begins and is killed: nothing that it does afterwards has an effect."""
        working = asyncio.create_task(self.work())
        await asyncio.sleep(seconds)
        faults = self.service.repo.faults
        faults.away |= {"record_job", "release", "fail", "complete", "renew"}
        self.jobs.faults["cancel"].append(TryAgain("the dead cancel nothing"))
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        faults.clear()
        self.jobs.faults["cancel"].clear()

    async def recovered(self) -> None:
        """Let the lease expire, and recovery push the session again."""
        for _ in range(2):
            self.service.clock.advance(LEASE + RecoveryPolicy().requeue_after)
            await self.service.recover()

    async def session(self) -> GenerationSession:
        assert await self.service.accounts.audit(limit=10) == []
        return await self.service.session(self.session_id)

    @property
    def money(self) -> list[LedgerKind]:
        return self.service.money_of(self.session_id)


@pytest.fixture
async def shop(service: Service, jobs: FakeJobs) -> AsyncIterator[Shop]:
    before = len(asyncio.all_tasks())
    shop = Shop(service, jobs)
    await shop.submit()
    yield shop
    assert len(asyncio.all_tasks()) == before
    assert await service.accounts.audit(limit=10) == []


async def test_job_becomes_a_picture(shop: Shop) -> None:
    """It is begun once, the session records its name, and its picture completes the session."""
    assert await shop.work() is Outcome.COMPLETED

    session = await shop.session()
    assert (session.status, session.provider_job) == (SessionStatus.COMPLETED, "fake:1")
    assert [request.instead_of for request in shop.jobs.begun] == [None]
    assert (shop.jobs.cancelled, shop.money) == ([], CHARGED)


async def test_polls_have_growing_random_pauses(shop: Shop) -> None:
    """From half a second to three seconds, each between half and all of that."""
    shop.jobs.seconds = 60
    await shop.work()

    polled_at = shop.jobs.polled_at
    pauses = [after - before for before, after in pairwise([0.0, *polled_at])]
    longest = [min(3.0, 0.5 * 1.5**number) for number in range(len(pauses))]
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(pauses, longest, strict=True)), (
        pauses
    )
    assert len(set(pauses[-10:])) == 10


async def test_job_of_a_dead_worker_is_resumed(shop: Shop) -> None:
    """The next attempt gets the picture of the job that is paid for, and fetches no input, whose
    link may have expired."""
    await shop.worker_dies_after(1)
    shop.service.fetcher.pictures[MODEL_URL] = Refused("gone")
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED

    session = await shop.session()
    assert (session.attempt, session.provider_job) == (2, "fake:1")
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)
    assert shop.service.fetcher.fetched == [MODEL_URL]


async def test_lost_job_is_replaced_by_the_next_attempt(shop: Shop) -> None:
    """The provider lost it while no worker polled: the next attempt begins another one, whose
    request names the first, so that it is no repetition of it."""
    await shop.worker_dies_after(1)
    shop.jobs.nothing.add("1")
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED

    assert (await shop.session()).provider_job == "fake:2"
    assert [request.instead_of for request in shop.jobs.begun] == [None, "fake:1"]
    assert shop.money == CHARGED


async def test_job_without_a_picture_is_retried(shop: Shop) -> None:
    """Like any transient failure: after a backoff, by another attempt, with another job."""
    shop.jobs.nothing.add("1")

    assert await shop.work() is Outcome.RELEASED
    await shop.recovered()
    assert await shop.work() is Outcome.COMPLETED

    assert [request.instead_of for request in shop.jobs.begun] == [None, "fake:1"]
    assert (shop.jobs.cancelled, shop.money) == ([], CHARGED)


async def test_unrecorded_job_is_requested_again(shop: Shop) -> None:
    """A worker died before it could record its job: the next request equals the first, so that a
    provider with idempotency keys can tell."""
    shop.service.repo.faults.away.add("record_job")
    await shop.worker_dies_after(1)
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED

    assert [request.instead_of for request in shop.jobs.begun] == [None, None]
    assert (await shop.session()).provider_job == "fake:2"


async def test_job_of_another_generator_is_not_resumed(shop: Shop) -> None:
    """After a change of generators the new one makes the picture, even if it has a job with the
    same id: that is another customer's picture."""
    await shop.worker_dies_after(1)
    await shop.recovered()
    other = FakeJobs()
    await other.begin(
        PictureRequest(session_id=UUID(int=1), prompt="", images=(), traceparent=TRACEPARENT)
    )
    generator = JobPictureGenerator(other, name="other", limits=LIMITS, random=seeded_random())

    outcome = await shop.service.work(shop.service.generation(generator=generator))

    assert outcome is Outcome.COMPLETED
    assert (await shop.session()).provider_job == "other:2"
    assert [request.instead_of for request in other.begun] == [None, "fake:1"]


async def test_generator_without_jobs_resumes_none(shop: Shop) -> None:
    """A generator whose work does not outlive a call makes the picture as usual."""
    await shop.worker_dies_after(1)
    await shop.recovered()

    class OneCall(FakePictureGenerator):
        resume = PictureGeneratorPort.resume

    generator = OneCall()

    outcome = await shop.service.work(shop.service.generation(generator=generator))

    assert (outcome, len(generator.requests)) == (Outcome.COMPLETED, 1)


async def test_stopping_worker_cancels_its_job(shop: Shop) -> None:
    """The session goes back at once, and the next worker begins another job."""
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(5)

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert shop.jobs.cancelled == ["1"]
    assert (await shop.session()).status is SessionStatus.QUEUED
    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (2, ["1"], CHARGED)


async def test_stopping_worker_cancels_a_resumed_job(shop: Shop) -> None:
    """It is this attempt's job now."""
    await shop.worker_dies_after(1)
    await shop.recovered()
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(1)

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert shop.jobs.cancelled == ["1"]


@pytest.mark.parametrize("slow", [0.0, 3600.0])
async def test_job_that_could_not_be_cancelled_is_resumed(shop: Shop, slow: float) -> None:
    """The provider refuses to cancel it, or does not answer: the worker stops in time, and the
    next one resumes the job."""
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(5)
    shop.jobs.slow["cancel"] = slow
    shop.jobs.faults["cancel"] = [TryAgain("not now")]
    stopped_at = loop_time()

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert loop_time() - stopped_at <= STOP_SECONDS
    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)


async def test_attempt_timeout_cancels_the_job(shop: Shop) -> None:
    """A hanging job is not resumed; the last attempt fails the session with its refund."""
    shop.jobs.seconds = 3600

    outcomes = []
    for _ in range(POLICY.max_attempts):
        outcomes.append(await shop.work())
        await shop.recovered()

    assert outcomes == [Outcome.RELEASED, Outcome.RELEASED, Outcome.FAILED]
    assert shop.jobs.cancelled == ["1", "2", "3"]
    assert shop.money == REFUNDED


async def test_stop_before_the_id_is_known_cancels_the_job(shop: Shop) -> None:
    """The provider has the job already: the worker waits shortly for its id."""
    shop.jobs.slow["begin"] = 2
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(1)

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert shop.jobs.cancelled == ["1"]
    assert (await shop.session()).status is SessionStatus.QUEUED


@pytest.mark.parametrize(
    ("slow", "fault"), [(3600, None), (1, TryAgain("busy")), (1, Refused("no"))]
)
async def test_stop_waits_for_an_id_with_a_bound(
    shop: Shop, slow: float, fault: Exception | None
) -> None:
    """Without an id there is nothing to cancel, and the session goes back all the same."""
    shop.jobs.slow["begin"] = slow
    shop.jobs.faults["begin"] = [fault]
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(0.5)

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert loop_time() <= 0.5 + STOP_SECONDS
    assert shop.jobs.cancelled == []
    assert (await shop.session()).status is SessionStatus.QUEUED


async def test_stale_attempt_leaves_its_job_to_the_newer_one(shop: Shop) -> None:
    """A slow worker that was taken for dead does not cancel the job: the newer attempt waits for it
    and completes the session."""
    shop.jobs.seconds = 40
    slow = asyncio.create_task(shop.work())
    await asyncio.sleep(1)
    await shop.recovered()
    newer = asyncio.create_task(shop.work())

    assert await slow is Outcome.OVERTAKEN
    assert await newer is Outcome.COMPLETED

    assert (await shop.session()).attempt == 2
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)


async def test_job_of_a_stale_attempt_is_cancelled(shop: Shop) -> None:
    """Another attempt took over while the provider answered: no attempt will wait for this job.
    The job that the newer attempt recorded stays."""
    shop.jobs.slow["begin"] = 3
    slow = asyncio.create_task(shop.work())
    await asyncio.sleep(1)
    await shop.recovered()
    newer = await shop.service.claimed(shop.session_id)
    assert await shop.service.repo.record_job(newer.id, attempt=2, job="fake:other")

    assert await slow is Outcome.OVERTAKEN

    assert shop.jobs.cancelled == ["1"]
    assert (await shop.session()).provider_job == "fake:other"


async def test_job_is_recorded_after_a_database_outage(shop: Shop) -> None:
    """The job goes on meanwhile, and is recorded as soon as the database answers."""
    shop.service.repo.faults.away.add("record_job")
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(3)
    unknown = (await shop.session()).provider_job
    shop.service.repo.faults.away.clear()

    await asyncio.sleep(4)

    assert (unknown, (await shop.session()).provider_job) == (None, "fake:1")
    assert await working is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled) == (1, [])


async def test_picture_of_an_unrecorded_job_completes_the_session(shop: Shop) -> None:
    """The picture is there: the job need not be found again."""
    shop.service.repo.faults.away.add("record_job")

    assert await shop.work() is Outcome.COMPLETED

    assert ((await shop.session()).provider_job, shop.money) == (None, CHARGED)


async def test_job_recorded_with_a_lost_reply_is_not_cancelled(shop: Shop) -> None:
    """The job was recorded without the worker's knowledge, and a newer attempt waits for it: the
    older attempt learns of that at its next try and leaves the job alone."""
    shop.jobs.seconds = 60
    shop.service.repo.faults.deaf.add("record_job")
    slow = asyncio.create_task(shop.work())
    await asyncio.sleep(0.1)
    await shop.recovered()
    newer = asyncio.create_task(shop.work())

    assert await slow is Outcome.OVERTAKEN
    assert await newer is Outcome.COMPLETED

    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)


async def test_stopping_worker_without_the_database_leaves_its_job(shop: Shop) -> None:
    """It cannot know whether a newer attempt waits for the job; the next attempt resumes it."""
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(5)
    shop.service.repo.faults.away |= {"record_job", "release"}

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    shop.service.repo.faults.away.clear()
    await shop.recovered()
    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)


async def test_expired_lease_does_not_cancel_the_job(shop: Shop) -> None:
    """The database was unavailable for a whole lease: the worker stops, since another may have the
    session and resume the job."""
    shop.jobs.seconds = 100
    shop.service.repo.faults.away |= {"renew", "record_job"}
    assert await shop.work() is Outcome.OVERTAKEN
    shop.service.repo.faults.away.clear()

    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED
    assert shop.jobs.cancelled == []


async def test_failed_polls_are_repeated(shop: Shop) -> None:
    """They say nothing about the job, which goes on. Retry-After is respected."""
    shop.jobs.faults["poll"] = [
        TryAgain("busy"),
        None,
        TryAgain("slow down", retry_after_seconds=20),
        TryAgain("gone"),
    ]

    assert await shop.work() is Outcome.COMPLETED

    polled_at = shop.jobs.polled_at
    assert polled_at[3] - polled_at[2] == 20
    assert (len(polled_at), len(shop.jobs.begun)) == (5, 1)
    assert (await shop.session()).attempt == 1


@pytest.mark.parametrize("method", ["begin", "poll"])
async def test_refused_job_fails_the_session(shop: Shop, method: str) -> None:
    """With its refund, whether it is refused before it begins or afterwards."""
    shop.jobs.faults[method] = [Refused("Not this one")]

    assert await shop.work() is Outcome.FAILED

    assert (len(shop.jobs.begun), shop.money) == (1, REFUNDED)


@pytest.mark.parametrize(("method", "begun"), [("begin", 2), ("poll", 1)])
async def test_misconfigured_provider_fails_no_session(shop: Shop, method: str, begun: int) -> None:
    """The session goes back and stays charged, and a job that was begun is resumed once the
    settings are fixed."""
    shop.jobs.faults[method] = [ProviderMisconfigured(detail="401")]

    with pytest.raises(ProviderMisconfigured):
        await shop.work()

    assert (await shop.session()).status is SessionStatus.QUEUED
    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (begun, [], CHARGED)


async def test_unsaved_picture_is_not_paid_for_again(shop: Shop) -> None:
    """The storage is unavailable for longer than a picture is held: the next attempt gets the
    picture from the job."""
    shop.service.storage.faults.away.add("save")
    with pytest.raises(StorageUnavailable):
        await shop.work()
    shop.service.storage.faults.clear()
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.money) == (1, CHARGED)


async def test_generator_may_raise_the_databases_error(service: Service) -> None:
    """For example if it must not continue without having recorded its job: the lease expires, and
    the next attempt takes over. The session does not fail."""
    session_id = (await service.submitted()).session.id
    service.generator.jobs = ["plain:1", "plain:2"]
    service.repo.faults.away.add("record_job")

    assert await service.work() is Outcome.UNSETTLED

    assert (await service.session(session_id)).status is SessionStatus.PROCESSING
    service.repo.faults.away.clear()
    for _ in range(2):
        service.clock.advance(LEASE + timedelta(seconds=60))
        await service.recover()
    assert await service.work() is Outcome.COMPLETED


async def test_recorded_job_is_resumed_before_anything_is_fetched(service: Service) -> None:
    """It is resumed by its whole name."""
    session = await service.claimed((await service.submitted()).session.id)
    assert await service.repo.record_job(session.id, attempt=1, job="plain:1")
    await service.repo.release(session.id, attempt=1, delay=timedelta(0))
    await service.recover()
    service.generator.finished.add("plain:1")

    assert await service.work() is Outcome.COMPLETED

    assert service.generator.resumed == ["plain:1"]
    assert (service.generator.requests, service.fetcher.fetched) == ([], [])
