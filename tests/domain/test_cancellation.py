"""A session that is cancelled while it is processed: its worker stops, and it fails with its
refund, unless its picture is stored already."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID, uuid4

import pytest
from structlog.testing import CapturingLogger

from adapters.images.jobs import STOP_SECONDS
from domain.credits import LedgerKind
from domain.errors import ProviderMisconfigured, TryAgain
from domain.generation import Generation, Outcome
from domain.recovery import RecoveryPolicy
from domain.sessions import CANCELLED, SessionStatus
from domain.tasks import GenerationTask
from tests.domain.test_jobs import FakeJobs, Shop
from tests.support.clock import loop_time
from tests.support.examples import LEASE, USER
from tests.support.images import A_PICTURE
from tests.support.service import Service

pytestmark = pytest.mark.anyio

A_THIRD = LEASE.total_seconds() / 3
CHARGED = [LedgerKind.DEBIT]
REFUNDED = [LedgerKind.DEBIT, LedgerKind.REFUND]


async def begun(service: Service, generation: Generation) -> tuple[UUID, asyncio.Task[Outcome]]:
    """A session whose picture is being made."""
    session_id = (await service.submitted()).session.id
    running = asyncio.create_task(service.work(generation))
    await asyncio.sleep(1)
    return session_id, running


async def require_cancelled(service: Service, session_id: UUID) -> None:
    session = await service.session(session_id)
    assert (session.status, session.failure) == (SessionStatus.FAILED, CANCELLED)
    assert service.money_of(session_id) == REFUNDED


async def test_worker_learns_at_its_next_renewal(service: Service) -> None:
    """It stops the work, and the session fails with its refund."""
    service.generator.seconds = 170
    session_id, running = await begun(service, service.generation())
    await service.submission.cancel(session_id, USER)
    cancelled_at = loop_time()

    assert await running is Outcome.CANCELLED

    assert loop_time() - cancelled_at <= A_THIRD
    await require_cancelled(service, session_id)
    assert await service.repo.attempt_faults(session_id) == []


async def test_hint_makes_the_worker_look_at_once(service: Service) -> None:
    """Before its first renewal, and between any two."""
    service.generator.seconds = 170
    for seconds_before in (0.0, A_THIRD * 1.5):
        generation = service.generation()
        session_id, running = await begun(service, generation)
        await asyncio.sleep(seconds_before)
        await service.submission.cancel(session_id, USER)
        cancelled_at = loop_time()

        generation.check_now(session_id)

        assert await running is Outcome.CANCELLED
        assert loop_time() == cancelled_at
        await require_cancelled(service, session_id)


async def test_hint_is_not_trusted(service: Service) -> None:
    """The database decides: without a request the work goes on, and is not disturbed by many
    hints at once, by one for an unknown session or by one for a session that has ended."""
    service.generator.seconds = 20
    generation = service.generation()
    session_id, running = await begun(service, generation)
    before = service.repo.faults.calls.count("renew")

    for _ in range(100):
        generation.check_now(session_id)
    generation.check_now(uuid4())
    await asyncio.sleep(1)

    assert service.repo.faults.calls.count("renew") == before + 1
    assert await running is Outcome.COMPLETED
    generation.check_now(session_id)
    assert generation._in_flight == {}


async def test_hint_that_the_database_does_not_answer_is_no_end(service: Service) -> None:
    """The next renewal tells."""
    service.generator.seconds = 170
    generation = service.generation()
    session_id, running = await begun(service, generation)
    await service.submission.cancel(session_id, USER)
    service.repo.faults.away.add("renew")
    generation.check_now(session_id)
    await asyncio.sleep(1)
    service.repo.faults.away.clear()
    assert not running.done()

    assert await running is Outcome.CANCELLED

    await require_cancelled(service, session_id)


async def test_stored_picture_wins(service: Service) -> None:
    """An earlier attempt may have stored it, or this one just now: it is delivered and paid."""
    service.generator.seconds = 170
    generation = service.generation()
    session_id, running = await begun(service, generation)
    await service.submission.cancel(session_id, USER)
    prefix = (await service.session(session_id)).object_prefix
    picture = await service.storage.save(prefix, A_PICTURE)

    generation.check_now(session_id)

    assert await running is Outcome.COMPLETED
    session = await service.session(session_id)
    assert (session.status, session.picture) == (SessionStatus.COMPLETED, picture)
    assert session.cancel_requested_at is not None
    assert service.money_of(session_id) == CHARGED


async def test_work_that_is_done_wins(service: Service) -> None:
    """The request comes after the last renewal."""
    service.generator.seconds = A_THIRD + 5
    session_id, running = await begun(service, service.generation())
    await asyncio.sleep(A_THIRD)
    await service.submission.cancel(session_id, USER)

    assert await running is Outcome.COMPLETED

    assert service.money_of(session_id) == CHARGED


async def test_storage_that_does_not_answer_has_no_picture(service: Service) -> None:
    """The session is not kept waiting: it would fail anyway, with its lease."""
    service.generator.seconds = 170
    generation = service.generation()
    session_id, running = await begun(service, generation)
    await service.submission.cancel(session_id, USER)
    service.storage.faults.away.add("find")

    generation.check_now(session_id)

    assert await running is Outcome.CANCELLED
    await require_cancelled(service, session_id)


async def test_picture_that_the_storage_does_not_take_is_dropped(service: Service) -> None:
    """It is held in memory, not stored: the cancellation ends the wait."""
    service.storage.faults.away.add("save")
    generation = service.generation()
    session_id, running = await begun(service, generation)
    await service.submission.cancel(session_id, USER)

    generation.check_now(session_id)

    assert await running is Outcome.CANCELLED
    await require_cancelled(service, session_id)


async def fails(running: asyncio.Task[Outcome]) -> None:
    """The attempt ends with a fault that allows another one."""
    assert await running is Outcome.CANCELLED


async def stops(running: asyncio.Task[Outcome]) -> None:
    """The worker is told to stop, and has no time left."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def is_misconfigured(running: asyncio.Task[Outcome]) -> None:
    """The worker can make no picture."""
    with pytest.raises(ProviderMisconfigured):
        await running


@pytest.mark.parametrize("ends", [fails, stops, is_misconfigured])
async def test_session_is_never_given_back(
    service: Service, ends: Callable[[asyncio.Task[Outcome]], Awaitable[None]]
) -> None:
    """Whatever ends the attempt before the worker has learned of the request."""
    service.generator.seconds = 5
    fault = ProviderMisconfigured(detail="no") if ends is is_misconfigured else TryAgain("no")
    service.generator.outcomes = [fault]
    session_id, running = await begun(service, service.generation())
    await service.submission.cancel(session_id, USER)

    await ends(running)

    await require_cancelled(service, session_id)
    assert service.waiting() == []


async def test_dead_worker_s_session_fails_with_its_lease(service: Service) -> None:
    """Recovery fails it in its first run after that, and buries no task: it killed no worker."""
    session_id = (await service.submitted()).session.id
    await service.claimed(session_id)
    await service.submission.cancel(session_id, USER)
    service.clock.advance(LEASE + timedelta(seconds=1))

    report = await service.recover()

    assert (report.exhausted, report.released) == (1, 0)
    await require_cancelled(service, session_id)
    assert await service.queue.dead(limit=9) == []
    assert service.waiting() == []


async def test_lost_lease_of_a_cancelled_session_changes_nothing(service: Service) -> None:
    """The attempt fences: recovery has failed the session already."""
    service.generator.seconds = 170
    generation = service.generation()
    session_id, running = await begun(service, generation)
    await service.submission.cancel(session_id, USER)
    service.repo.faults.away.add("renew")
    await asyncio.sleep(LEASE.total_seconds() + 5)
    await service.recover(RecoveryPolicy())
    service.repo.faults.away.clear()

    assert await running is Outcome.OVERTAKEN

    await require_cancelled(service, session_id)


async def test_newer_attempt_keeps_its_own_hint(service: Service) -> None:
    """In a process that still stops the attempt before it."""
    service.generator.seconds = 170
    generation = service.generation()
    session_id, stale = await begun(service, generation)
    await service.repo.release(session_id, attempt=1, delay=timedelta(0))
    task = GenerationTask.of(await service.session(session_id), task_id=uuid4())
    running = asyncio.create_task(generation.run(task))
    assert await stale is Outcome.OVERTAKEN
    await service.submission.cancel(session_id, USER)
    cancelled_at = loop_time()

    generation.check_now(session_id)

    assert await running is Outcome.CANCELLED
    assert loop_time() == cancelled_at


@pytest.mark.parametrize("is_recorded", [True, False])
async def test_provider_job_is_cancelled(
    service: Service, jobs: FakeJobs, *, is_recorded: bool
) -> None:
    """Whether it has begun, or the provider has just been asked for it."""
    jobs.seconds = 170
    jobs.slow["begin"] = 0 if is_recorded else 3
    generation = Shop(service, jobs).generation()
    session_id, running = await begun(service, generation)
    await service.submission.cancel(session_id, USER)

    generation.check_now(session_id)

    assert await running is Outcome.CANCELLED
    assert jobs.cancelled == ["1"]
    await require_cancelled(service, session_id)


@pytest.mark.parametrize("fault", ["error", "slow"])
async def test_provider_that_does_not_cancel_costs_the_session_nothing(
    service: Service, jobs: FakeJobs, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It fails all the same, after a bounded time, and a line in the log names the job."""
    jobs.seconds = 170
    if fault == "error":
        jobs.faults["cancel"].append(TryAgain("busy"))
    else:
        jobs.slow["cancel"] = 100
    generation = Shop(service, jobs).generation()
    session_id, running = await begun(service, generation)
    await service.submission.cancel(session_id, USER)
    cancelled_at = loop_time()

    # Not capture_logs: the module's logger may have another test's configuration.
    log = CapturingLogger()
    monkeypatch.setattr("adapters.images.jobs.log", log)
    generation.check_now(session_id)
    assert await running is Outcome.CANCELLED

    assert [(*call.args, call.kwargs["job"]) for call in log.calls] == [
        ("job_not_cancelled", "fake:1")
    ]
    assert loop_time() - cancelled_at <= STOP_SECONDS
    assert jobs.cancelled == []
    await require_cancelled(service, session_id)


@pytest.fixture
def jobs() -> FakeJobs:
    return FakeJobs()
