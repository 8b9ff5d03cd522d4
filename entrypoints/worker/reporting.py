"""A worker's reports: that it is alive, what it does, and why it takes no task. Each answer says
whether operators have paused the workers."""

import asyncio
import os
import socket
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from importlib.metadata import version
from uuid import UUID

import structlog

from domain.budget import Budget
from domain.errors import Unavailable
from domain.operator_ports import Controls, WorkerRepoPort, WorkerState
from entrypoints.worker.stop import Stop
from entrypoints.worker.tasks import TaskRunner, cause_of

log = structlog.get_logger(__name__)

REPORT_SECONDS = 5.0
LEAVE_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Reporting:
    """Where a worker reports, and what stays the same in all its reports."""

    workers: WorkerRepoPort
    worker_id: UUID
    host: str
    pid: int
    version: str
    started_at: datetime
    clock: Callable[[], datetime]

    @classmethod
    def of_this_process(
        cls, workers: WorkerRepoPort, *, worker_id: UUID, clock: Callable[[], datetime]
    ) -> "Reporting":
        return cls(
            workers=workers,
            worker_id=worker_id,
            host=socket.gethostname()[:100] or "localhost",
            pid=os.getpid(),
            version=version("wearon"),
            started_at=clock(),
            clock=clock,
        )


class ReportLoop:
    """Reports every ``REPORT_SECONDS`` from the start to the end of the worker. A database that
    does not answer stops nothing: its last answer stands, and the outage is logged once. If there
    is a ``budget``, each answer tells what has been spent of it."""

    def __init__(
        self, reporting: Reporting, *, slots: int, stop: Stop, budget: Budget | None = None
    ) -> None:
        self._budget = budget
        self._workers = reporting.workers
        self._clock = reporting.clock
        self._stop = stop
        self._me = WorkerState(
            id=reporting.worker_id,
            host=reporting.host,
            pid=reporting.pid,
            version=reporting.version,
            started_at=reporting.started_at,
            slots=slots,
        )
        self._controls = Controls()
        self._is_answered = True

    @property
    def is_paused(self) -> bool:
        """Whether operators have paused the workers, as of the last answer."""
        return self._controls.paused is not None

    @asynccontextmanager
    async def running(self, tasks: TaskRunner) -> AsyncIterator[None]:
        """Reports once before the block, because workers may be paused, and during the block."""
        await self._report(tasks)
        loop = asyncio.create_task(self._run(tasks), name="reports")
        try:
            yield
        finally:
            loop.cancel()
            await asyncio.wait((loop,))
            await self._leave()

    async def _run(self, tasks: TaskRunner) -> None:
        while True:
            await asyncio.sleep(REPORT_SECONDS)
            await self._report(tasks)

    async def _report(self, tasks: TaskRunner) -> None:
        try:
            state = self._state(tasks)
            if self._budget is not None:
                self._budget.asking()
            controls = await self._workers.report(state, with_spending=self._budget is not None)
        except Exception as error:
            if self._is_answered:
                log.warning("report_failed", cause=cause_of(error), exc_info=_unexpected(error))
            self._is_answered = False
            return
        self._is_answered = True
        self._obey(controls)

    def _obey(self, controls: Controls) -> None:
        was_paused, pause = self.is_paused, controls.paused
        self._controls = controls
        if self._budget is not None and controls.spent_today_usd is not None:
            self._budget.answered(controls.spent_today_usd)
        if pause is not None and not was_paused:
            log.warning("worker_paused", actor=pause.actor, reason=pause.reason)
        elif pause is None and was_paused:
            log.info("worker_resumed")

    def _state(self, tasks: TaskRunner) -> WorkerState:
        opening, throttled_until = tasks.opening, tasks.throttled_until
        return replace(
            self._me,
            busy=min(tasks.busy, self._me.slots),
            draining=self._stop.has_begun,
            throttled_until=None if throttled_until is None else self._time_of(throttled_until),
            limit_is_local=tasks.limit_is_local,
            circuit_until=None if opening is None else self._time_of(opening.until),
            circuit_cause=None if opening is None else str(opening.cause),
            done=tasks.done,
            failed=tasks.failed,
        )

    def _time_of(self, loop_time: float) -> datetime:
        """The time of day of a time of the event loop."""
        ahead = loop_time - asyncio.get_running_loop().time()
        return self._clock() + timedelta(seconds=ahead)

    async def _leave(self) -> None:
        """The row of a worker that could not leave is forgotten after a day."""
        try:
            async with asyncio.timeout(LEAVE_SECONDS):
                await self._workers.leave(self._me.id)
        except (Unavailable, TimeoutError) as error:
            log.warning("leave_failed", cause=cause_of(error))


def _unexpected(error: Exception) -> Exception | None:
    """The error whose traceback belongs in the log."""
    return None if isinstance(error, Unavailable) else error
