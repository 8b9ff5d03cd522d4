"""What a worker counts, beside its log lines: what came of tasks, attempts, circuits, recovery."""

import asyncio
from datetime import timedelta
from typing import Any

import pytest

from domain.causes import Cause, CauseKind
from domain.errors import Refused, TryAgain
from domain.sessions import ErrorCode
from tests.entrypoints.test_worker import a_worker, running
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
