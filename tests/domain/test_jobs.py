"""Pictures made as jobs: whatever becomes of the worker, the store or the provider's answers, a job
that may still lead to the picture is waited for and not paid for again, and none is left running
that nobody waits for."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta
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
from domain.errors import ProviderMisconfigured, Refused, TryAgain
from domain.generation import Generation, Outcome, WorkPolicy
from domain.ports import Generated, PictureGeneratorPort, PictureRequest
from domain.recovery import RecoveryPolicy
from domain.sessions import GenerationSession, SessionStatus
from tests.support.clock import loop_time
from tests.support.examples import LEASE, MODEL_URL
from tests.support.images import A_PICTURE, FakeImageGenerator
from tests.support.service import Service, seeded_random

pytestmark = pytest.mark.anyio

POLICY = WorkPolicy()
LIMITS = JobLimits(total_seconds=170, first_pause_seconds=0.5, longest_pause_seconds=3)
CHARGED = [LedgerKind.DEBIT]
REFUNDED = [LedgerKind.DEBIT, LedgerKind.REFUND]


class FakeJobs(Jobs):
    """Each job takes ``seconds``. ``faults`` are what the next calls of a method raise, if not
    None; a call takes as long as ``slow`` says."""

    def __init__(self) -> None:
        self.seconds = 10.0
        self.begun: list[PictureRequest] = []
        self.cancelled: list[str] = []
        self.looks: list[float] = []
        self.faults: dict[str, list[Exception | None]] = {"begin": [], "look": [], "cancel": []}
        self.slow: dict[str, float] = {}
        self.nothing: set[str] = set()
        self._ready_at: dict[str, float] = {}

    async def begin(self, request: PictureRequest) -> str:
        self.begun.append(request)
        job_id = str(len(self.begun))
        self._ready_at[job_id] = loop_time() + self.seconds
        await self._called("begin")
        return job_id

    async def look(self, job_id: str) -> Generated | None:
        self.looks.append(loop_time())
        await self._called("look")
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
    """A service whose pictures are made as jobs."""

    def __init__(self, service: Service, jobs: FakeJobs) -> None:
        self.service = service
        self.jobs = jobs
        self.session_id = UUID(int=0)

    async def submit(self) -> None:
        self.session_id = (await self.service.submitted()).session.id

    def generation(self) -> Generation:
        """That of a worker of its own."""
        generator = JobPictureGenerator(
            self.jobs, name="fake", limits=LIMITS, random=seeded_random()
        )
        return self.service.generation(generator=generator)

    async def work(self) -> Outcome:
        return await self.service.work(self.generation())

    async def dies_after(self, seconds: float) -> None:
        """A worker begins, and is gone: nothing that it does any more has an effect."""
        working = asyncio.create_task(self.work())
        await asyncio.sleep(seconds)
        faults = (self.service.repo.faults, self.service.queue.faults)
        self.service.repo.faults.away |= {"record_job", "release", "fail", "complete", "renew"}
        self.jobs.faults["cancel"].append(TryAgain("the dead cancel nothing"))
        working.cancel()
        with pytest.raises(asyncio.CancelledError):
            await working
        for fault in faults:
            fault.away.clear()
        self.jobs.faults["cancel"].clear()

    async def recovered(self) -> None:
        """Its lease runs out, and its session is in the queue again."""
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


async def test_a_job_becomes_a_picture(shop: Shop) -> None:
    """It is begun once, its name is kept with the session, and its picture completes that."""
    assert await shop.work() is Outcome.COMPLETED

    session = await shop.session()
    assert (session.status, session.provider_job) == (SessionStatus.COMPLETED, "fake:1")
    assert [request.instead_of for request in shop.jobs.begun] == [None]
    assert (shop.jobs.cancelled, shop.money) == ([], CHARGED)


async def test_looks_come_at_ever_longer_random_pauses(shop: Shop) -> None:
    """From half a second to three, each between its half and its whole."""
    shop.jobs.seconds = 60
    await shop.work()

    pauses = [
        after - before
        for before, after in zip([0.0, *shop.jobs.looks], shop.jobs.looks, strict=False)
    ]
    longest = [min(3.0, 0.5 * 1.5**number) for number in range(len(pauses))]
    assert all(whole / 2 <= pause <= whole for pause, whole in zip(pauses, longest, strict=True)), (
        pauses
    )
    assert len(set(pauses[-10:])) == 10


async def test_a_dead_workers_job_is_waited_for(shop: Shop) -> None:
    """The next attempt gets the picture of the job that is paid for, and asks for no input: a link
    that is dead by now loses nothing."""
    await shop.dies_after(1)
    shop.service.fetcher.pictures[MODEL_URL] = Refused("gone")
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED

    session = await shop.session()
    assert (session.attempt, session.provider_job) == (2, "fake:1")
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)
    assert shop.service.fetcher.fetched == [MODEL_URL]


async def test_a_job_that_came_to_nothing_is_begun_anew(shop: Shop) -> None:
    """The provider lost it while nobody looked: the next attempt makes another one, and tells the
    two apart from a repetition."""
    await shop.dies_after(1)
    shop.jobs.nothing.add("1")
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED

    assert (await shop.session()).provider_job == "fake:2"
    assert [request.instead_of for request in shop.jobs.begun] == [None, "fake:1"]
    assert shop.money == CHARGED


async def test_a_job_that_comes_to_nothing_is_tried_again(shop: Shop) -> None:
    """As any passing fault: after a backoff, by another attempt, with another job."""
    shop.jobs.nothing.add("1")

    assert await shop.work() is Outcome.RELEASED
    await shop.recovered()
    assert await shop.work() is Outcome.COMPLETED

    assert [request.instead_of for request in shop.jobs.begun] == [None, "fake:1"]
    assert (shop.jobs.cancelled, shop.money) == ([], CHARGED)


async def test_a_repetition_asks_for_the_same_picture(shop: Shop) -> None:
    """A worker died before it could note its job: the next one's request is told to be the same,
    for providers that know how to tell."""
    shop.service.repo.faults.away.add("record_job")
    await shop.dies_after(1)
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED

    assert [request.instead_of for request in shop.jobs.begun] == [None, None]
    assert (await shop.session()).provider_job == "fake:2"


async def test_another_generators_job_is_not_asked_for(shop: Shop) -> None:
    """After a change of generators the picture is made by the new one, also where that has a job of
    the same id: it is somebody else's picture."""
    await shop.dies_after(1)
    await shop.recovered()
    other = FakeJobs()
    await other.begin(PictureRequest(session_id=UUID(int=1), prompt="", images=()))
    generator = JobPictureGenerator(other, name="other", limits=LIMITS, random=seeded_random())

    outcome = await shop.service.work(shop.service.generation(generator=generator))

    assert outcome is Outcome.COMPLETED
    assert (await shop.session()).provider_job == "other:2"
    assert [request.instead_of for request in other.begun] == [None, "fake:1"]


async def test_a_generator_without_jobs_resumes_none(shop: Shop) -> None:
    """One whose work does not outlive a call makes the picture as ever."""
    await shop.dies_after(1)
    await shop.recovered()

    class OneCall(FakeImageGenerator):
        resume = PictureGeneratorPort.resume

    generator = OneCall()

    outcome = await shop.service.work(shop.service.generation(generator=generator))

    assert (outcome, len(generator.requests)) == (Outcome.COMPLETED, 1)


async def test_a_stopping_worker_cancels_its_job(shop: Shop) -> None:
    """The session goes back at once, and whoever takes it begins another job."""
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(5)

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert shop.jobs.cancelled == ["1"]
    assert (await shop.session()).status is SessionStatus.QUEUED
    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (2, ["1"], CHARGED)


async def test_a_worker_that_resumed_a_job_cancels_it_too(shop: Shop) -> None:
    """It is this attempt's job now."""
    await shop.dies_after(1)
    await shop.recovered()
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(1)

    working.cancel()
    with pytest.raises(asyncio.CancelledError):
        await working

    assert shop.jobs.cancelled == ["1"]


@pytest.mark.parametrize("slow", [0.0, 3600.0])
async def test_a_job_that_could_not_be_cancelled_is_resumed(shop: Shop, slow: float) -> None:
    """The provider refuses that, or does not answer: the worker stops in time, and the job, which
    goes on, is not lost."""
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


async def test_an_attempt_that_takes_too_long_cancels_its_job(shop: Shop) -> None:
    """A job that hangs is not waited for again; the last attempt fails with the refund."""
    shop.jobs.seconds = 3600

    outcomes = []
    for _ in range(POLICY.max_attempts):
        outcomes.append(await shop.work())
        await shop.recovered()

    assert outcomes == [Outcome.RELEASED, Outcome.RELEASED, Outcome.FAILED]
    assert shop.jobs.cancelled == ["1", "2", "3"]
    assert shop.money == REFUNDED


async def test_a_stop_before_the_id_is_known_cancels_as_well(shop: Shop) -> None:
    """The provider has the job already: its answer is waited for a little."""
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
async def test_a_stop_waits_for_no_id_for_ever(
    shop: Shop, slow: float, fault: Exception | None
) -> None:
    """Where none comes there is nothing to cancel, and the session goes back all the same."""
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


async def test_a_lost_lease_robs_the_newer_attempt_of_nothing(shop: Shop) -> None:
    """Taken for dead, a slow worker leaves the job alone: the other waits for it, and completes."""
    shop.jobs.seconds = 40
    slow = asyncio.create_task(shop.work())
    await asyncio.sleep(1)
    await shop.recovered()
    newer = asyncio.create_task(shop.work())

    assert await slow is Outcome.OVERTAKEN
    assert await newer is Outcome.COMPLETED

    assert (await shop.session()).attempt == 2
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)


async def test_a_job_that_the_session_cannot_have_is_cancelled(shop: Shop) -> None:
    """Another attempt took over while the provider answered: nobody will wait for this job. What
    the other one noted stays."""
    shop.jobs.slow["begin"] = 3
    slow = asyncio.create_task(shop.work())
    await asyncio.sleep(1)
    await shop.recovered()
    newer = await shop.service.claimed(shop.session_id)
    assert await shop.service.repo.record_job(newer.id, attempt=2, job="fake:other")

    assert await slow is Outcome.OVERTAKEN

    assert shop.jobs.cancelled == ["1"]
    assert (await shop.session()).provider_job == "fake:other"


async def test_a_store_that_is_away_for_a_moment_is_told_later(shop: Shop) -> None:
    """The job goes on meanwhile, and is noted as soon as that is possible."""
    shop.service.repo.faults.away.add("record_job")
    working = asyncio.create_task(shop.work())
    await asyncio.sleep(3)
    unknown = (await shop.session()).provider_job
    shop.service.repo.faults.away.clear()

    await asyncio.sleep(4)

    assert (unknown, (await shop.session()).provider_job) == (None, "fake:1")
    assert await working is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled) == (1, [])


async def test_a_picture_counts_although_its_job_was_never_noted(shop: Shop) -> None:
    """It is there: nobody has to find it again."""
    shop.service.repo.faults.away.add("record_job")

    assert await shop.work() is Outcome.COMPLETED

    assert ((await shop.session()).provider_job, shop.money) == (None, CHARGED)


async def test_a_reply_that_got_lost_keeps_the_job(shop: Shop) -> None:
    """The name was kept although nobody was told so, and a newer attempt waits for the job: the
    older one, which learns of that at its next try, leaves it alone."""
    shop.jobs.seconds = 60
    shop.service.repo.faults.deaf.add("record_job")
    slow = asyncio.create_task(shop.work())
    await asyncio.sleep(0.1)
    await shop.recovered()
    newer = asyncio.create_task(shop.work())

    assert await slow is Outcome.OVERTAKEN
    assert await newer is Outcome.COMPLETED

    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (1, [], CHARGED)


async def test_without_the_store_a_stopping_worker_leaves_its_job(shop: Shop) -> None:
    """It cannot know whose the job is; the next attempt resumes it."""
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


async def test_a_store_that_is_away_for_a_lease_costs_no_job(shop: Shop) -> None:
    """The worker stops, since another may have the session; the job is there for that one."""
    shop.jobs.seconds = 100
    shop.service.repo.faults.away |= {"renew", "record_job"}
    assert await shop.work() is Outcome.OVERTAKEN
    shop.service.repo.faults.away.clear()

    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED
    assert shop.jobs.cancelled == []


async def test_questions_that_fail_are_borne(shop: Shop) -> None:
    """They say nothing of the job, which goes on; as long a wait as was asked for is kept."""
    shop.jobs.faults["look"] = [
        TryAgain("busy"),
        None,
        TryAgain("slow down", retry_after_seconds=20),
        TryAgain("gone"),
    ]

    assert await shop.work() is Outcome.COMPLETED

    looks = shop.jobs.looks
    assert looks[3] - looks[2] == 20
    assert (len(looks), len(shop.jobs.begun)) == (5, 1)
    assert (await shop.session()).attempt == 1


@pytest.mark.parametrize("method", ["begin", "look"])
async def test_what_is_refused_fails_at_once(shop: Shop, method: str) -> None:
    """Before the job or after it: with the refund."""
    shop.jobs.faults[method] = [Refused("Not this one")]

    assert await shop.work() is Outcome.FAILED

    assert (len(shop.jobs.begun), shop.money) == (1, REFUNDED)


@pytest.mark.parametrize(("method", "begun"), [("begin", 2), ("look", 1)])
async def test_an_operators_fault_harms_no_session(shop: Shop, method: str, begun: int) -> None:
    """The session goes back with its credit kept, and a job that was begun is waited for once the
    fault is mended."""
    shop.jobs.faults[method] = [ProviderMisconfigured(detail="401")]

    with pytest.raises(ProviderMisconfigured):
        await shop.work()

    assert (await shop.session()).status is SessionStatus.QUEUED
    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.jobs.cancelled, shop.money) == (begun, [], CHARGED)


async def test_a_picture_that_could_not_be_kept_is_not_paid_for_again(shop: Shop) -> None:
    """The storage is away when the picture is there: the next attempt has it from the job."""
    save = shop.service.storage.save

    async def away(*_: object) -> None:
        raise TryAgain("the storage is away")

    shop.service.storage.save = away  # type: ignore[method-assign,assignment]
    assert await shop.work() is Outcome.RELEASED
    shop.service.storage.save = save  # type: ignore[method-assign]
    await shop.recovered()

    assert await shop.work() is Outcome.COMPLETED
    assert (len(shop.jobs.begun), shop.money) == (1, CHARGED)


async def test_a_generator_may_let_the_stores_fault_through(service: Service) -> None:
    """One that cannot go on without having noted its job: the lease runs out, and the next attempt
    begins where this one ended. The session has not failed."""
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


async def test_a_finished_job_is_resumed_before_anything_is_fetched(service: Service) -> None:
    """What the session has noted is asked for first, by its whole name."""
    session = await service.claimed((await service.submitted()).session.id)
    assert await service.repo.record_job(session.id, attempt=1, job="plain:1")
    await service.repo.release(session.id, attempt=1, delay=timedelta(0))
    await service.recover()
    service.generator.finished.add("plain:1")

    assert await service.work() is Outcome.COMPLETED

    assert service.generator.resumed == ["plain:1"]
    assert (service.generator.requests, service.fetcher.fetched) == ([], [])
