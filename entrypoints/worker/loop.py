"""A worker's loops: its slots, and beside them recovery, the delivery of webhooks, reports and the
check of the books."""

import asyncio
from contextlib import nullcontext
from random import Random

import structlog

from domain.books import BookChecks
from domain.budget import Budget
from domain.changes import ChangeFeedPort
from domain.credits import Owner
from domain.dispatch import Dispatcher
from domain.errors import Unavailable
from domain.generation import Generation
from domain.picture_ports import StartLimitPort
from domain.ports import TaskQueuePort
from domain.recovery import Recovery
from domain.starts import Starts
from entrypoints.worker.cancelling import CancelLoop
from entrypoints.worker.checking import CheckLoop
from entrypoints.worker.dispatching import DispatchLoop
from entrypoints.worker.recovering import RecoveryLoop
from entrypoints.worker.reporting import Reporting, ReportLoop
from entrypoints.worker.stop import Stop
from entrypoints.worker.tasks import Backoff, Patience, TaskRunner, Turn, WorkerLimits

log = structlog.get_logger(__name__)


def _ignore(_: Owner) -> None:
    """This worker delivers no webhooks."""


class Worker:
    """``concurrency`` slots, each taking a task only when it is free to work on it, and beside them
    recovery at its interval and the delivery of webhooks, until a stop."""

    def __init__(
        self,
        *,
        queue: TaskQueuePort,
        generation: Generation,
        recovery: Recovery | None,
        limits: WorkerLimits,
        random: Random,
        start_limit: StartLimitPort | None = None,
        dispatcher: Dispatcher | None = None,
        cancels: ChangeFeedPort | None = None,
        reporting: Reporting | None = None,
        books: BookChecks | None = None,
        budget: Budget | None = None,
    ) -> None:
        self.start_limit = start_limit
        self._limits = limits
        self._stop = Stop(drain_seconds=limits.drain_seconds)
        starts = Starts(
            start_limit, pause=self._stop.pause, is_stopping=lambda: self._stop.has_begun
        )
        self._reports = (
            None
            if reporting is None
            else ReportLoop(reporting, slots=limits.concurrency, stop=self._stop, budget=budget)
        )
        self._backoff = Backoff(limits=limits, random=random, stop=self._stop)
        self._tasks = TaskRunner(
            queue=queue,
            generation=generation,
            starts=starts,
            limits=limits,
            patience=self._patience(),
            backoff=self._backoff,
            stop=self._stop,
            session_ended=_ignore if dispatcher is None else dispatcher.session_ended,
            is_paused=self._is_paused,
            budget=budget,
        )
        self._recovery = (
            None
            if recovery is None
            else RecoveryLoop(
                recovery, interval_seconds=limits.recovery_seconds, random=random, stop=self._stop
            )
        )
        self._recovering: asyncio.Task[bool] | None = None
        self._dispatching = (
            None if dispatcher is None else DispatchLoop(dispatcher, stop=self._stop)
        )
        self._cancelling = (
            None
            if cancels is None
            else CancelLoop(cancels, check_now=generation.check_now, random=random, stop=self._stop)
        )
        self._checking = None if books is None else CheckLoop(books, random=random, stop=self._stop)
        self._slots: list[asyncio.Task[bool]] = []

    def stop(self) -> None:
        """Take no more tasks; ``run`` returns when those in flight are done, or given back after
        ``drain_seconds``. A second call gives them back at once."""
        self._stop.request()

    async def run(self) -> bool:
        """Work until ``stop``, or until there is nothing to do for this kind of worker.

        Returns False if it ended by itself and something was unavailable: then work may be left.
        Raises if a slot or recovery fails: a worker that lacks a part stops.
        """
        async with nullcontext() if self._reports is None else self._reports.running(self._tasks):
            return await self._run()

    async def _run(self) -> bool:
        slots = range(1, self._limits.concurrency + 1)
        self._slots = [asyncio.create_task(self._slot(), name=f"slot-{number}") for number in slots]
        loops = [*self._slots]
        if self._recovery is not None:
            self._recovering = asyncio.create_task(self._recover(self._recovery), name="recovery")
            loops.append(self._recovering)
        if self._dispatching is not None:
            loops.append(asyncio.create_task(self._dispatch(self._dispatching), name="webhooks"))
        if self._cancelling is not None:
            loops.append(asyncio.create_task(self._cancelling.run(), name="cancels"))
        if self._checking is not None:
            loops.append(asyncio.create_task(self._checking.run(), name="books"))
        log.info("worker_started", concurrency=self._limits.concurrency)
        did_all = await self._stop.run(loops)
        return self._stop.is_requested or did_all

    def _is_paused(self) -> bool:
        return self._reports is not None and self._reports.is_paused

    def _patience(self) -> Patience:
        return Patience(pop_seconds=self._limits.pop_seconds, bury_tries=None)

    async def _slot(self) -> bool:
        failures = 0
        while not self._stop.has_begun:
            try:
                turn = await self._tasks.run_next()
            except Exception as error:
                if not isinstance(error, Unavailable):
                    log.exception("slot_crashed")
                failures += 1
                await self._backoff.wait(failures, error)
            else:
                failures = 0
                if turn in {Turn.CIRCUIT_OPEN, Turn.PAUSED}:
                    await self._stop.pause(self._limits.pop_seconds)
        return True

    async def _recover(self, recovery: RecoveryLoop) -> bool:
        return await recovery.run()

    async def _dispatch(self, dispatching: DispatchLoop) -> bool:
        return await dispatching.run()


class OneShotWorker(Worker):
    """Runs recovery once; then each slot works until it finds the queue empty, the circuit open,
    or the queue or the database unavailable; then webhooks are delivered. Waits for nothing but the
    start limit."""

    def _patience(self) -> Patience:
        return Patience(pop_seconds=0.0, bury_tries=5, shares=False)

    async def _slot(self) -> bool:
        if self._recovering is not None:
            await asyncio.wait((self._recovering,))
        did_all = True
        try:
            while not self._stop.has_begun:
                turn = await self._tasks.run_next()
                did_all &= turn not in {Turn.CIRCUIT_OPEN, Turn.PAUSED, Turn.UNSETTLED}
                if turn in {Turn.CIRCUIT_OPEN, Turn.PAUSED, Turn.EMPTY}:
                    break
        except Unavailable as error:
            log.warning("work_left", cause=str(error.cause), reason=str(error))
            return False
        except Exception:
            log.exception("slot_crashed")
            raise
        return did_all

    async def _recover(self, recovery: RecoveryLoop) -> bool:
        return await recovery.run_once()

    async def _dispatch(self, dispatching: DispatchLoop) -> bool:
        """What the slots ended is due only once they have."""
        await asyncio.wait(self._slots)
        return await dispatching.run_once()
