"""A worker's reports: what they say, that they delay no task, and that a pause is obeyed. On
virtual time."""

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from adapters.limits.memory import InMemoryStartLimit, Pace
from adapters.workers.memory import InMemoryWorkerRepo
from domain.causes import Cause, CauseKind
from domain.errors import (
    DatabaseUnavailable,
    ProviderMisconfigured,
    ProviderUnavailable,
    Refused,
)
from domain.operator_ports import Controls, Pause, Switch, WorkerState
from domain.sessions import SessionStatus
from domain.tasks import UnreadableTask
from entrypoints.worker import Worker, WorkerLimits
from entrypoints.worker.reporting import LEAVE_SECONDS, REPORT_SECONDS, Reporting
from tests.support.clock import START, VirtualTimeLoop, loop_time
from tests.support.service import Service, seeded_random

pytestmark = pytest.mark.anyio

Logs = list[MutableMapping[str, Any]]

ME = uuid4()
SLOTS = 2
POP_SECONDS = 1.0


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as captured:
        yield captured


class Reports(InMemoryWorkerRepo):
    """Keeps every report with its time. ``error`` is raised instead, and ``hangs`` never answers,
    while they are set."""

    def __init__(self, service: Service) -> None:
        self.pauses: dict[Switch, Pause] = {}
        super().__init__(
            clock=service.clock.now, pauses=self.pauses, spent_since=lambda _: Decimal(0)
        )
        self.kept: list[WorkerState] = []
        self.times: list[float] = []
        self.error: Exception | None = None
        self.hangs = False

    async def report(self, state: WorkerState, *, with_spending: bool = False) -> Controls:
        self.times.append(loop_time())
        await self._answer()
        self.kept.append(state)
        return await super().report(state, with_spending=with_spending)

    async def leave(self, worker_id: Any) -> bool:
        await self._answer()
        return await super().leave(worker_id)

    async def _answer(self) -> None:
        if self.hangs:
            await asyncio.Event().wait()
        if self.error is not None:
            raise self.error

    def pause(self) -> None:
        pause = Pause(switch=Switch.WORKERS, since=START, actor="cli:ann@host", reason="bad key")
        self.pauses[Switch.WORKERS] = pause

    async def latest(self) -> WorkerState:
        """The next report, which has all that happened until now."""
        known = len(self.kept)
        async with asyncio.timeout(100):
            while len(self.kept) == known:  # noqa: ASYNC110 - costs no time on a virtual loop
                await asyncio.sleep(0.1)
        return self.kept[-1]


@dataclass
class Rig:
    service: Service
    reports: Reports = field(init=False)

    def __post_init__(self) -> None:
        self.reports = Reports(self.service)

    def worker(self, limit: InMemoryStartLimit | None = None) -> Worker:
        return Worker(
            queue=self.service.queue,
            generation=self.service.generation(),
            recovery=None,
            limits=WorkerLimits(
                concurrency=SLOTS, pop_seconds=POP_SECONDS, drain_seconds=25, recovery_seconds=2
            ),
            random=seeded_random(),
            start_limit=limit,
            reporting=Reporting(
                workers=self.reports,
                worker_id=ME,
                host="host-a",
                pid=7,
                version="1.2.3",
                started_at=self.service.clock.now(),
                clock=self.service.clock.now,
            ),
        )

    async def ended(self, count: int) -> float:
        """Wait until this many sessions are final. Returns the time."""
        async with asyncio.timeout(1_000):
            while True:
                sessions = await self.service.sessions()
                if sum(session.status.is_final for session in sessions) >= count:
                    return loop_time()
                await asyncio.sleep(0.01)


@pytest.fixture
def rig(service: Service) -> Rig:
    return Rig(service)


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator[None]:
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0.1)
    try:
        yield
    finally:
        worker.stop()
        await task


async def test_first_report_is_made_at_once_and_others_follow(rig: Rig) -> None:
    began = loop_time()
    async with running(rig.worker()):
        await asyncio.sleep(3 * REPORT_SECONDS)

    assert rig.reports.times == [began + number * REPORT_SECONDS for number in range(4)]


async def test_idle_worker_reports_who_it_is(rig: Rig) -> None:
    started_at = rig.service.clock.now()
    async with running(rig.worker()):
        first = rig.reports.kept[0]

    assert first == WorkerState(
        id=ME, host="host-a", pid=7, version="1.2.3", started_at=started_at, slots=SLOTS
    )


async def test_stopped_worker_is_forgotten(rig: Rig) -> None:
    async with running(rig.worker()):
        known = dict(rig.reports.states)

    assert [*known] == [ME]
    assert rig.reports.states == {}


async def test_busy_slots_and_ends_are_counted(rig: Rig) -> None:
    """A picture, a refusal, and a bug, which fails its session too."""
    rig.service.generator.outcomes = [Refused("no"), ValueError("bug")]
    for _ in range(3):
        await rig.service.submitted()
    async with running(rig.worker()):
        await rig.ended(3)
        state = await rig.reports.latest()

    assert (state.busy, state.done, state.failed) == (0, 1, 2)


async def test_unreadable_task_counts_as_its_failed_session(rig: Rig) -> None:
    session = (await rig.service.submitted()).session
    rig.service.queue.messages.clear()
    bad = UnreadableTask(raw=b"{}", reason="no channel", session_id=session.id)
    rig.service.queue.messages.append(f'{{"session_id": "{bad.session_id}"}}'.encode())
    async with running(rig.worker()):
        await rig.ended(1)
        state = await rig.reports.latest()

    assert (state.done, state.failed) == (0, 1)


async def test_slots_that_work_are_busy(rig: Rig) -> None:
    rig.service.generator.seconds = 60
    await rig.service.submitted()
    async with running(rig.worker()):
        working = await rig.reports.latest()
        await rig.ended(1)

    assert working.busy == 1
    assert working.slots == SLOTS


async def test_draining_worker_says_so(rig: Rig) -> None:
    rig.service.generator.seconds = 20
    await rig.service.submitted()
    worker = rig.worker()
    async with running(worker):
        worker.stop()
        draining = await rig.reports.latest()

    assert draining.draining


async def test_open_circuit_is_reported_with_its_cause(rig: Rig) -> None:
    """Also while it is half-open: nothing has shown yet that the cause is gone."""
    rig.service.generator.outcomes = [ProviderMisconfigured(detail="401 invalid_api_key")]
    rig.service.generator.seconds = 3.1
    await rig.service.submitted()
    async with running(rig.worker()):
        opened, now = await rig.reports.latest(), rig.service.clock.now()
        probing = await rig.reports.latest()
        await rig.ended(1)
        closed = await rig.reports.latest()

    assert opened.circuit_cause == probing.circuit_cause == "provider 401 invalid_api_key"
    assert opened.circuit_until == probing.circuit_until
    assert opened.circuit_until is not None
    assert timedelta(seconds=2) <= opened.circuit_until - now <= timedelta(seconds=4)
    assert (closed.circuit_until, closed.circuit_cause) == (None, None)


async def test_failing_provider_is_reported_with_its_cause(rig: Rig) -> None:
    """Five sessions failed in a row."""
    cause = Cause(CauseKind.PROVIDER, "500 server_error")
    rig.service.generator.outcomes = [ProviderUnavailable("no", cause=cause) for _ in range(5)]
    for _ in range(5):
        await rig.service.submitted()
    async with running(rig.worker()):
        state = await rig.reports.latest()

    assert state.circuit_cause == "provider 500 server_error"


async def test_idle_worker_reports_a_storage_that_keeps_nothing(rig: Rig) -> None:
    rig.service.storage.faults.away.add("check")
    async with running(rig.worker()):
        failing = await rig.reports.latest()
        rig.service.storage.faults.clear()
        await asyncio.sleep(60)
        working = await rig.reports.latest()

    assert failing.circuit_cause == "storage check: refused"
    assert working.circuit_cause is None


async def test_storage_fault_is_reported_while_the_provider_works(rig: Rig) -> None:
    """The circuit that stays open for longer is the one that counts."""
    rig.service.generator.outcomes = [ProviderMisconfigured(detail="401 invalid_api_key")]
    await rig.service.submitted()
    async with running(rig.worker()):
        rig.service.storage.faults.away.add("check")
        await asyncio.sleep(30)
        state = await rig.reports.latest()

    assert state.circuit_cause == "storage check: refused"


async def test_throttled_worker_says_until_when(rig: Rig) -> None:
    """One permit, and the next one a minute later."""
    limit = InMemoryStartLimit(Pace(burst=1, interval_us=60_000_000), clock=loop_time)
    for _ in range(2):
        await rig.service.submitted()
    async with running(rig.worker(limit)):
        idle = rig.reports.kept[0]
        await rig.ended(1)
        free_at = rig.service.clock.now() + timedelta(seconds=60)
        throttled = await rig.reports.latest()
        await rig.ended(2)
        await asyncio.sleep(70)
        free = await rig.reports.latest()

    assert idle.throttled_until is None
    assert throttled.throttled_until is not None
    assert abs(throttled.throttled_until - free_at) < timedelta(seconds=1)
    assert free.throttled_until is None


@pytest.mark.parametrize("is_local", [False, True])
async def test_limit_of_this_process_alone_is_reported(rig: Rig, is_local: bool) -> None:
    class Limit(InMemoryStartLimit):
        @property
        def is_local(self) -> bool:
            return is_local

    limit = Limit(Pace(burst=1, interval_us=1), clock=loop_time)
    async with running(rig.worker(limit)):
        state = await rig.reports.latest()

    assert state.limit_is_local is is_local


async def test_paused_worker_takes_no_task(rig: Rig, logs: Logs) -> None:
    """Not even before its first report. Once the pause ends, within one report."""
    rig.reports.pause()
    await rig.service.submitted()
    async with running(rig.worker()):
        await asyncio.sleep(60)
        waiting = len(rig.service.waiting())
        rig.reports.pauses.clear()
        resumed = loop_time()
        ended = await rig.ended(1)

    assert waiting == 1
    assert ended - resumed <= REPORT_SECONDS + POP_SECONDS + 0.1
    assert [log["event"] for log in logs if log["event"].startswith("worker_")][:3] == [
        "worker_paused",
        "worker_started",
        "worker_resumed",
    ]


async def test_paused_worker_finishes_what_it_has(rig: Rig) -> None:
    """And takes nothing in its place, although a pop was waiting when the pause began."""
    rig.service.generator.seconds = 30
    await rig.service.submitted()
    async with running(rig.worker()):
        rig.reports.pause()
        await asyncio.sleep(REPORT_SECONDS)
        await rig.service.submitted()
        await asyncio.sleep(60)
        sessions = await rig.service.sessions()

    assert [session.status for session in sessions] == [
        SessionStatus.QUEUED,
        SessionStatus.COMPLETED,
    ]


async def test_task_that_a_pop_brings_into_a_pause_goes_back(rig: Rig) -> None:
    """To the front of the queue, where the next worker finds it."""
    async with running(rig.worker()):
        rig.service.queue.faults.slow["pop"] = REPORT_SECONDS
        rig.reports.pause()
        first = (await rig.service.submitted()).session.id
        await rig.service.submitted()
        await asyncio.sleep(4 * REPORT_SECONDS)
        waiting = [task.session_id for task in rig.service.waiting()]
        returned = len(rig.service.queue.pushed_next)

    assert len(waiting) == returned == 2
    assert first in waiting


async def test_unanswered_report_leaves_the_last_answer_standing(rig: Rig, logs: Logs) -> None:
    """The worker works on, or stays paused, and the outage is logged once."""
    rig.reports.pause()
    await rig.service.submitted()
    async with running(rig.worker()):
        rig.reports.error = DatabaseUnavailable("no")
        rig.reports.pauses.clear()
        await asyncio.sleep(10 * REPORT_SECONDS)
        waiting = len(rig.service.waiting())
        rig.reports.error = None
        await rig.ended(1)

    assert waiting == 1
    assert [log["cause"] for log in logs if log["event"] == "report_failed"] == ["database no"]


async def test_worker_works_while_no_report_is_answered(rig: Rig) -> None:
    rig.reports.error = DatabaseUnavailable("no")
    await rig.service.submitted()
    async with running(rig.worker()):
        waited = await rig.ended(1)

    assert waited < POP_SECONDS


async def test_bug_in_a_report_stops_no_work(rig: Rig, logs: Logs) -> None:
    rig.reports.error = RuntimeError("bug")
    await rig.service.submitted()
    async with running(rig.worker()):
        await rig.ended(1)
        await asyncio.sleep(2 * REPORT_SECONDS)
        rig.reports.error = None

    (failed,) = [log for log in logs if log["event"] == "report_failed"]
    assert failed["exc_info"] is not None


async def test_stop_waits_little_for_the_last_word(rig: Rig, logs: Logs) -> None:
    """The database does not answer: the row is forgotten later."""
    worker = rig.worker()
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(POP_SECONDS / 2)
    rig.reports.hangs = True
    worker.stop()
    asked = loop_time()
    await task

    assert loop_time() - asked <= POP_SECONDS + LEAVE_SECONDS
    assert [log["event"] for log in logs if log["event"] == "leave_failed"]
