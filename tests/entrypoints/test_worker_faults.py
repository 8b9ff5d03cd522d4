"""What a worker does, and says, while the storage or the provider is in trouble."""

import asyncio
from collections.abc import Iterator
from datetime import timedelta
from typing import Any

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from domain.causes import Cause, CauseKind
from domain.errors import ProviderUnavailable, Refused
from domain.sessions import ErrorCode, SessionStatus
from domain.traces import trace_id_of
from tests.entrypoints.test_worker import (
    Logs,
    a_worker,
    completed,
    events,
    in_status,
    running,
)
from tests.support.clock import VirtualTimeLoop, loop_time
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


BUSY = ProviderUnavailable("busy", cause=Cause(CauseKind.PROVIDER, "500 server_error"))


async def test_failed_attempt_is_logged_as_a_warning(service: Service, logs: Logs) -> None:
    """With its session, request, number, cause and code."""
    (session_id,) = await service.backlog(1)
    refusal = Refused(
        "no", code=ErrorCode.MODERATION_BLOCKED, cause=Cause(CauseKind.PROVIDER, "400 moderation")
    )
    service.generator.outcomes = [refusal]

    async with running(a_worker(service)):
        await asyncio.sleep(1)

    (entry,) = events(logs, "attempt_failed")
    assert dict(entry) == {
        "event": "attempt_failed",
        "log_level": "warning",
        "session_id": str(session_id),
        "request_id": "req_1",
        "trace_id": trace_id_of("req_1"),
        "attempt": 1,
        "cause": "provider 400 moderation",
        "code": "MODERATION_BLOCKED",
    }


async def test_full_storage_takes_no_tasks(service: Service, logs: Logs) -> None:
    """Nothing is taken or paid for, which is logged once for each opening. All is done soon after
    there is room again."""
    ids = await service.backlog(8)
    service.storage.faults.away |= {"check", "save"}
    async with running(a_worker(service, concurrency=4)):
        await asyncio.sleep(600)
        taken = service.queue.faults.calls.count("pop")
        assert await in_status(service, SessionStatus.QUEUED) == ids
        service.storage.faults.clear()
        fixed_at = loop_time()

        assert await completed(service, 8) - fixed_at < 32

    opened = events(logs, "circuit_opened")
    assert (taken, len(service.generator.requests)) == (0, 8)
    assert opened[0]["cause"] == "storage check: refused"
    assert [entry["seconds"] for entry in opened[:5]] == [5, 10, 20, 30, 30]
    assert len(events(logs, "circuit_closed")) == 1


async def test_storage_that_fills_up_costs_one_call_per_session(
    service: Service, logs: Logs
) -> None:
    """Pictures in flight are held and stored later; no others are paid for meanwhile."""
    await service.backlog(8)
    service.generator.seconds = 2
    async with running(a_worker(service, concurrency=4, recovery=True)):
        await asyncio.sleep(1)
        service.storage.faults.away |= {"check", "save"}
        await asyncio.sleep(300)
        paid = len(service.generator.requests)
        service.storage.faults.clear()

        await completed(service, 8)

    assert (paid, len(service.generator.requests)) == (4, 8)
    assert len(events(logs, "picture_held")) == 4
    assert not events(logs, "attempt_failed")


async def test_storage_that_fails_only_in_use_is_not_asked_all_the_time(
    service: Service, logs: Logs
) -> None:
    """Its check succeeds, so tasks are taken; the circuit opens after each that fails."""
    await service.backlog(3)
    service.storage.faults.away.add("find")

    async with running(a_worker(service)):
        await asyncio.sleep(60)

    assert 5 < len(events(logs, "attempt_failed")) < 30
    assert service.generator.requests == []
    assert events(logs, "circuit_opened")[0]["cause"] == "storage find: refused"


async def test_blip_of_a_minute_fails_no_session(service: Service, logs: Logs) -> None:
    """A provider that answers 500 to everybody for 60 seconds: the circuit opens, so few calls are
    made, and all sessions are completed soon after."""
    await service.backlog(10, apart=timedelta(0))
    service.generator.outcomes = [BUSY] * 10_000
    async with running(a_worker(service, concurrency=4, recovery=True)):
        await asyncio.sleep(60)
        asked = len(service.generator.requests)
        service.generator.outcomes.clear()
        fixed_at = loop_time()

        assert await completed(service, 10) - fixed_at < 35

    assert await in_status(service, SessionStatus.FAILED) == []
    assert asked <= 20
    (first, *_) = events(logs, "circuit_opened")
    assert first["cause"] == "provider 500 server_error"


async def test_one_failing_session_does_not_stop_the_others(service: Service) -> None:
    """A provider that fails on one request only is no reason to open the circuit."""
    await service.backlog(1)
    service.generator.outcomes = [BUSY]
    async with running(a_worker(service, concurrency=1, recovery=True)):
        await asyncio.sleep(0.5)
        began = loop_time()
        await service.backlog(3, apart=timedelta(0))

        assert await completed(service, 4) - began < 5
