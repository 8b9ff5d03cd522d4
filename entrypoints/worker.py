"""The worker: takes tasks from the queue, has them done, and lets recovery run beside it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable
from contextlib import closing
from dataclasses import dataclass
from itertools import count
from random import Random

import structlog
import uvloop

from config.container import POP_SECONDS, Container, close
from config.logging import configure_logging
from config.settings import Settings
from domain.circuit import Circuit, Turn
from domain.errors import ClaimFailed, ProviderMisconfigured, Unavailable
from domain.generation import Generation, Outcome
from domain.ports import TaskQueuePort
from domain.recovery import Recovery
from domain.tasks import GenerationTask, UnreadableTask

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Bounds of one worker process. ``drain_seconds`` must be longer than ``pop_seconds``. The
    circuit's are how long nothing is begun after the generator turned us away."""

    concurrency: int
    pop_seconds: float
    drain_seconds: float
    recovery_seconds: float
    backoff_base_seconds: float = 0.1
    backoff_cap_seconds: float = 5.0
    circuit_first_seconds: float = 5.0
    circuit_cap_seconds: float = 300.0


class Worker:
    """``concurrency`` slots, each popping a task only when it is free to work on it, and none
    while the circuit is open: a task that cannot be worked on is left to others."""

    def __init__(
        self,
        *,
        queue: TaskQueuePort,
        generation: Generation,
        recovery: Recovery | None,
        limits: WorkerLimits,
        random: Random,
    ) -> None:
        self._queue = queue
        self._generation = generation
        self._recovery = recovery
        self._limits = limits
        self._random = random
        self._circuit = Circuit(
            first_seconds=limits.circuit_first_seconds,
            cap_seconds=limits.circuit_cap_seconds,
            clock=lambda: asyncio.get_running_loop().time(),
        )
        self._stopping = asyncio.Event()

    def stop(self) -> None:
        """Take no more tasks; ``run`` returns when those in flight are done or given back."""
        self._stopping.set()

    async def run(self) -> None:
        """Work until ``stop``. What is not finished ``drain_seconds`` later is given back.

        Raises if a slot or recovery ended by itself: a worker that is not whole stops.
        """
        slots = range(1, self._limits.concurrency + 1)
        loops = [asyncio.create_task(self._slot(), name=f"slot-{number}") for number in slots]
        if self._recovery is not None:
            loops.append(asyncio.create_task(self._recover(self._recovery), name="recovery"))
        for task in loops:
            task.add_done_callback(lambda _: self.stop())
        log.info("worker_started", concurrency=self._limits.concurrency)
        await self._stopping.wait()
        log.info("worker_draining", drain_seconds=self._limits.drain_seconds)
        # By then every pop has run out of its own accord, so only work is cancelled, never a pop.
        done, unfinished = await asyncio.wait(loops, timeout=self._limits.drain_seconds)
        for task in unfinished:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        log.info("worker_stopped", cancelled=len(unfinished))
        for task in done:
            if task.cancelled():
                raise RuntimeError(f"{task.get_name()} cancelled itself")
            task.result()

    async def _slot(self) -> None:
        failures = 0
        while not self._stopping.is_set():
            try:
                await self._next()
                failures = 0
            except Exception as error:
                if not isinstance(error, Unavailable):
                    log.exception("slot_crashed")
                failures += 1
                await self._back_off(failures, error)

    async def _next(self) -> None:
        turn = self._circuit.turn()
        if turn is None:
            await self._pause(self._limits.pop_seconds)
            return
        with closing(turn):
            message = await self._queue.pop(timeout_seconds=self._limits.pop_seconds)
            if isinstance(message, UnreadableTask):
                await self._refuse(message)
            elif message is not None and turn.is_valid:
                await self._work(message, turn)
            elif message is not None:
                await self._queue.push_next([message])

    async def _work(self, task: GenerationTask, turn: Turn) -> None:
        with structlog.contextvars.bound_contextvars(
            request_id=task.request_id, session_id=str(task.session_id)
        ):
            try:
                outcome = await self._generation.run(task)
            except (Unavailable, ClaimFailed):
                raise
            except ProviderMisconfigured as error:
                self._turned_away(turn, error)
            except Exception:
                log.exception("task_crashed")
            else:
                log.info("task_done", outcome=outcome)
                if outcome is Outcome.COMPLETED and turn.succeeded():
                    log.info("circuit_closed")

    def _turned_away(self, turn: Turn, error: ProviderMisconfigured) -> None:
        """Say once for each opening why this worker takes no tasks."""
        seconds = turn.turned_away()
        if seconds is not None:
            log.error("circuit_opened", cause=error.detail, seconds=seconds)

    async def _refuse(self, message: UnreadableTask) -> None:
        """Nobody else has the message any more, so try until that is done or the worker stops."""
        log.error("task_unreadable", reason=message.reason, session_id=str(message.session_id))
        for failures in count(1):
            try:
                failed = await self._generation.refuse(message)
            except Unavailable as error:
                if self._stopping.is_set():
                    raise
                await self._back_off(failures, error)
            else:
                log.info("task_buried", session_failed=failed)
                return

    async def _recover(self, recovery: Recovery) -> None:
        while not self._stopping.is_set():
            try:
                report = await recovery.run_once()
            except Unavailable as error:
                log.warning("recovery_postponed", cause=type(error).__name__)
            except Exception:
                log.exception("recovery_crashed")
            else:
                if report.total:
                    log.info("recovered", **report.counts())
            await self._pause(self._limits.recovery_seconds * self._random.uniform(0.8, 1.2))

    async def _back_off(self, failures: int, error: Exception) -> None:
        """Wait before the next try: exponentially longer, with full jitter, for ever."""
        limits = self._limits
        ceiling = limits.backoff_base_seconds * 2.0 ** min(failures, 32)
        seconds = self._random.uniform(0, min(limits.backoff_cap_seconds, ceiling))
        log.warning("worker_waiting", cause=type(error).__name__, seconds=round(seconds, 3))
        await self._pause(seconds)

    async def _pause(self, seconds: float) -> None:
        """Wait, but not longer than until ``stop``."""
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return


async def run_until_signalled(worker: Worker, close: Callable[[], Awaitable[None]]) -> None:
    """Run ``worker`` until SIGTERM or SIGINT, then ``close``."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.stop)
    try:
        await worker.run()
    finally:
        await close()


def run_worker(settings: Settings, *, concurrency: int | None, recovery: bool) -> None:
    """The worker process. Returns after SIGTERM, once it has come to rest."""
    configure_logging(settings)
    container = Container(settings=settings)
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        worker = build_worker(container, concurrency=concurrency, recovery=recovery)
        runner.run(run_until_signalled(worker, lambda: close(container)))


def build_worker(container: Container, *, concurrency: int | None, recovery: bool) -> Worker:
    """A worker as the settings say, unless ``concurrency`` does."""
    settings: Settings = container.settings()
    return Worker(
        queue=container.queue(),
        generation=container.generation(),
        recovery=container.recovery() if recovery else None,
        limits=WorkerLimits(
            concurrency=concurrency or settings.worker_concurrency,
            pop_seconds=POP_SECONDS,
            drain_seconds=settings.drain_seconds,
            recovery_seconds=settings.recovery_seconds,
        ),
        random=container.random(),
    )
