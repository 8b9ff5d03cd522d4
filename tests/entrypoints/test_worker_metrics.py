"""What a worker counts, beside its log lines: what came of tasks, attempts, circuits, recovery."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from domain.causes import Cause, CauseKind
from domain.errors import ProviderMisconfigured, Refused, TryAgain
from domain.sessions import ErrorCode
from tests.entrypoints.test_worker import Logs, a_worker, events, running
from tests.support.clock import VirtualTimeLoop
from tests.support.counted import Counted
from tests.support.service import Service

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs(processors=[merge_contextvars]) as captured:
        yield captured


async def test_sessions_are_counted_with_their_end(service: Service) -> None:
    """A repeated attempt is a failed attempt, and no failed session."""
    await service.backlog(3)
    provider = Cause(CauseKind.PROVIDER, "400 moderation")
    service.generator.outcomes = [
        Refused("no", code=ErrorCode.MODERATION_BLOCKED, cause=provider),
        TryAgain("no", cause=Cause(CauseKind.INPUT, "404")),
    ]
    counted = Counted()

    async with running(a_worker(service, concurrency=1, recovery=True)):
        await asyncio.sleep(60)

    assert counted("wearon_sessions_ended_total") == {
        ("completed", ""): 2,
        ("failed", "MODERATION_BLOCKED"): 1,
    }
    assert counted("wearon_attempts_failed_total") == {
        ("provider", "MODERATION_BLOCKED"): 1,
        ("input", "GENERATION_FAILED"): 1,
    }
    assert counted("wearon_tasks_total") == {("completed",): 2, ("failed",): 1, ("released",): 1}


async def test_crash_of_a_task_is_a_failed_session(service: Service) -> None:
    await service.backlog(1)
    service.generator.outcomes = [RuntimeError("a bug")]
    counted = Counted()

    async with running(a_worker(service, concurrency=1)):
        await asyncio.sleep(1)

    assert counted("wearon_sessions_ended_total") == {("failed", "GENERATION_FAILED"): 1}


async def test_each_opening_of_a_circuit_is_counted(service: Service) -> None:
    """A full disk: the circuit opens anew, with each probe that fails."""
    service.storage.faults.away |= {"check", "save"}
    counted = Counted()

    async with running(a_worker(service)):
        await asyncio.sleep(40)

    assert counted("wearon_circuit_openings_total") == {("storage",): 4}


async def test_recovery_counts_what_it_failed(service: Service) -> None:
    """A session that has waited for too long."""
    await service.submitted(confirmed=True)
    await service.queue.pop(timeout_seconds=0)  # another program has taken it
    service.clock.advance(timedelta(days=1))
    counted = Counted()

    async with running(a_worker(service, concurrency=1, recovery=True)):
        pass

    assert counted("wearon_recovered_total")[("expired",)] == 1
    assert counted("wearon_sessions_ended_total") == {("failed", "EXPIRED"): 1}


async def test_expiry_after_a_failed_attempt_is_an_expiry(service: Service, logs: Logs) -> None:
    """Not what the attempt failed with, in the counter and in the log."""
    await service.backlog(1, apart=timedelta(days=1))
    service.generator.outcomes = [TryAgain("no", cause=Cause(CauseKind.INPUT, "404"))]
    counted = Counted()

    async with running(a_worker(service, concurrency=1)):
        await asyncio.sleep(1)

    assert counted("wearon_sessions_ended_total") == {("failed", "EXPIRED"): 1}
    (done,) = events(logs, "task_done")
    assert (done["outcome"], done["code"]) == ("failed", "EXPIRED")


async def test_failure_of_what_is_to_be_cancelled_is_a_cancellation(
    service: Service, logs: Logs
) -> None:
    """The row says CANCELLED, whatever else went wrong; so do the counter and the log."""
    (session_id,) = await service.backlog(1)
    service.generator.seconds = 0.5
    service.generator.outcomes = [
        Refused("no", code=ErrorCode.INVALID_IMAGE, cause=Cause(CauseKind.INPUT, "no image"))
    ]
    counted = Counted()

    async with running(a_worker(service, concurrency=1)):
        await asyncio.sleep(0.2)
        await service.repo.cancel(session_id)
        await asyncio.sleep(1)

    assert counted("wearon_sessions_ended_total") == {("failed", "CANCELLED"): 1}
    assert counted("wearon_tasks_total") == {("cancelled",): 1}
    (done,) = events(logs, "task_done")
    assert (done["outcome"], done["code"]) == ("cancelled", "CANCELLED")


async def test_crash_whose_session_the_database_did_not_fail(service: Service) -> None:
    """It is counted by recovery, when that has failed the session, and only there."""
    await service.backlog(1)
    service.generator.outcomes = [RuntimeError("a bug")] * 3
    service.repo.faults.away.add("fail")
    counted = Counted()

    async with running(a_worker(service, concurrency=1)):
        await asyncio.sleep(1)
    before_recovery = counted("wearon_sessions_ended_total")
    service.clock.advance(timedelta(days=1))
    async with running(a_worker(service, concurrency=1, recovery=True)):
        await asyncio.sleep(1)

    assert before_recovery == {}
    assert sum(counted("wearon_sessions_ended_total").values()) == 1


async def test_session_that_is_given_back_after_its_time_has_failed(
    service: Service, logs: Logs
) -> None:
    """A misconfigured provider is no session's fault, but this one had waited for too long. Its end
    is logged and counted beside the opening of the circuit."""
    await service.backlog(1, apart=timedelta(days=1))
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")]
    counted = Counted()

    async with running(a_worker(service, concurrency=1)):
        await asyncio.sleep(1)

    assert counted("wearon_sessions_ended_total") == {("failed", "EXPIRED"): 1}
    assert counted("wearon_tasks_total") == {("failed",): 1}
    (done,) = events(logs, "task_done")
    assert (done["outcome"], done["code"]) == ("failed", "EXPIRED")


async def test_recovery_counts_a_cancellation_as_one(service: Service) -> None:
    """A session whose worker died, and which was to be cancelled."""
    session = (await service.submitted(confirmed=True)).session
    await service.claimed(session.id)
    await service.repo.cancel(session.id)
    service.clock.advance(timedelta(minutes=10))
    counted = Counted()

    async with running(a_worker(service, concurrency=1, recovery=True)):
        pass

    assert counted("wearon_recovered_total")[("exhausted",)] == 1
    assert counted("wearon_sessions_ended_total") == {("failed", "CANCELLED"): 1}


async def test_run_of_recovery_that_fails_midway_counts_what_it_did(
    service: Service, logs: Logs
) -> None:
    """The steps before the failure are committed."""
    await service.submitted(confirmed=True)
    await service.queue.pop(timeout_seconds=0)  # another program has taken it
    service.clock.advance(timedelta(days=1))
    service.queue.faults.away.add("oldest")
    counted = Counted()

    async with running(a_worker(service, concurrency=1, recovery=True)):
        await asyncio.sleep(1)

    assert events(logs, "recovery_postponed")
    assert counted("wearon_recovered_total")[("expired",)] == 1
    assert sum(entry["expired"] for entry in events(logs, "recovered")) == 1


async def test_unreadable_task_fails_its_session(service: Service) -> None:
    """One that names no session fails none."""
    session = (await service.submitted()).session
    await service.queue.pop(timeout_seconds=0)
    named = f'{{"session_id": "{session.id}"}}'.encode()
    service.queue.messages.extend([named, b"{"])
    counted = Counted()

    async with running(a_worker(service, concurrency=1)):
        await asyncio.sleep(1)

    assert counted("wearon_sessions_ended_total") == {("failed", "INVALID_TASK"): 1}
