"""A worker's loops: its slots, and recovery beside them."""

import asyncio
from random import Random

import structlog

from domain.errors import Unavailable
from domain.generation import Generation
from domain.ports import StartLimitPort, TaskQueuePort
from domain.recovery import Recovery
from entrypoints.worker.stop import Stop
from entrypoints.worker.tasks import Backoff, Patience, TaskRunner, Turn, WorkerLimits

log = structlog.get_logger(__name__)


class Worker:
    """``concurrency`` slots, each taking a task only when it is free to work on it, and recovery
    beside them at its interval, until a stop."""

    def __init__(
        self,
        *,
        queue: TaskQueuePort,
        generation: Generation,
        recovery: Recovery | None,
        limits: WorkerLimits,
        random: Random,
        start_limit: StartLimitPort | None = None,
    ) -> None:
        self.start_limit = start_limit
        self._recovery = recovery
        self._limits = limits
        self._random = random
        self._stop = Stop(drain_seconds=limits.drain_seconds)
        self._backoff = Backoff(limits=limits, random=random, stop=self._stop)
        self._tasks = TaskRunner(
            queue=queue,
            generation=generation,
            start_limit=start_limit,
            limits=limits,
            patience=self._patience(),
            backoff=self._backoff,
            stop=self._stop,
        )
        self._recovering: asyncio.Task[bool] | None = None

    def stop(self) -> None:
        """Take no more tasks; ``run`` returns when those in flight are done, or given back after
        ``drain_seconds``. A second call gives them back at once."""
        self._stop.request()

    async def run(self) -> bool:
        """Work until ``stop``, or until there is nothing to do for this kind of worker.

        Returns False if it ended by itself and something was unavailable: then work may be left.
        Raises if a slot or recovery fails: a worker that lacks a part stops.
        """
        slots = range(1, self._limits.concurrency + 1)
        loops = [asyncio.create_task(self._slot(), name=f"slot-{number}") for number in slots]
        if self._recovery is not None:
            recover = self._recover(self._recovery)
            self._recovering = asyncio.create_task(recover, name="recovery")
            loops.append(self._recovering)
        log.info("worker_started", concurrency=self._limits.concurrency)
        did_all = await self._stop.run(loops)
        return self._stop.is_requested or did_all

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
                if turn is Turn.CIRCUIT_OPEN:
                    await self._stop.pause(self._limits.pop_seconds)
        return True

    async def _recover(self, recovery: Recovery) -> bool:
        while not self._stop.has_begun:
            await self._recover_once(recovery)
            interval = self._limits.recovery_seconds * self._random.uniform(0.8, 1.2)
            await self._stop.pause(interval)
        return True

    async def _recover_once(self, recovery: Recovery) -> bool:
        """Returns whether recovery did everything that was due."""
        try:
            with self._stop.interruptible():
                report = await recovery.run_once()
        except Unavailable as error:
            log.warning("recovery_postponed", cause=type(error).__name__)
            return False
        except Exception:
            log.exception("recovery_crashed")
            return False
        finally:
            for blocked in recovery.take_blocked():
                log.error(
                    "session_blocked",
                    session_id=blocked.id,
                    owner=blocked.owner,
                    problem=blocked.problem,
                )
        if report.total:
            log.info("recovered", **report.counts())
        return True


class OneShotWorker(Worker):
    """Runs recovery once; then each slot works until it finds the queue empty, the circuit open,
    or the queue or the database unavailable. Waits for nothing but the start limit."""

    def _patience(self) -> Patience:
        return Patience(pop_seconds=0.0, bury_tries=5)

    async def _slot(self) -> bool:
        if self._recovering is not None:
            await asyncio.wait((self._recovering,))
        did_all = True
        try:
            while not self._stop.has_begun:
                turn = await self._tasks.run_next()
                did_all &= turn not in {Turn.CIRCUIT_OPEN, Turn.UNSETTLED}
                if turn in {Turn.CIRCUIT_OPEN, Turn.EMPTY}:
                    break
        except Unavailable as error:
            log.warning("work_left", cause=type(error).__name__, reason=str(error))
            return False
        except Exception:
            log.exception("slot_crashed")
            raise
        return did_all

    async def _recover(self, recovery: Recovery) -> bool:
        return await self._recover_once(recovery)
