"""The worker: takes tasks from the queue, has them done, and lets recovery run beside it."""

import asyncio
import signal
from collections.abc import Awaitable, Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from itertools import count
from random import Random
from typing import Any

import structlog
import uvloop
from structlog.contextvars import bind_contextvars, unbind_contextvars

from config.container import Container, close
from config.logging import (
    TASK_LOG,
    buffer_access_logs,
    configure_logging,
    flush_logs,
)
from config.settings import Settings
from domain.circuit import Circuit, Permit
from domain.errors import ClaimFailed, ProviderMisconfigured, Unavailable
from domain.generation import Generation, Outcome
from domain.ports import StartLimitPort, TaskQueuePort
from domain.recovery import Recovery
from domain.tasks import GenerationTask, UnreadableTask
from entrypoints.gc_tuning import freeze_startup_objects

log = structlog.get_logger(__name__)
task_log = structlog.get_logger(TASK_LOG)

POP_SECONDS = 1.0
"""How long a pop waits for a task, and so how long an idle worker takes to stop."""

WRITE_SECONDS = 1.0
"""How long the line of a task that was done may wait for others."""

REFUSALS_ONCE = 5
"""How often a worker that waits for nothing tries to bury what nobody can read."""


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


class _Found(Enum):
    """What a pop brought, and whether a picture was begun from it."""

    NOTHING = auto()
    NO_PICTURE = auto()
    PICTURE = auto()


class Worker:
    """``concurrency`` slots, each popping a task only when it is free to work on it, and none
    while the circuit is open or the limit permits no start: a task that cannot be worked on is
    left to others. Without a ``limit`` there is none.

    With ``once`` nothing is waited for but the limit: recovery runs once, and then each slot works
    until it finds the queue empty or the circuit open, or learns that queue or store is away.
    """

    def __init__(
        self,
        *,
        queue: TaskQueuePort,
        generation: Generation,
        recovery: Recovery | None,
        limits: WorkerLimits,
        random: Random,
        once: bool = False,
        limit: StartLimitPort | None = None,
    ) -> None:
        self._queue = queue
        self._generation = generation
        self._recovery = recovery
        self._limits = limits
        self._random = random
        self._limit = limit
        self._asking = asyncio.Lock()
        self._circuit = Circuit(
            first_seconds=limits.circuit_first_seconds,
            cap_seconds=limits.circuit_cap_seconds,
            clock=lambda: asyncio.get_running_loop().time(),
        )
        self._once = once
        self._may_begin = asyncio.Event()
        self._stopping = asyncio.Event()
        self._grace_is_over = asyncio.Event()
        self._told_to_stop = False
        self._left_work = False
        self._under_way: set[asyncio.Task[Any] | None] = set()

    def stop(self) -> None:
        """Take no more tasks; ``run`` returns when those in flight are done or given back. If it
        was called before, they are given back now."""
        if self._told_to_stop:
            self._grace_is_over.set()
        self._told_to_stop = True
        self._stopping.set()

    async def run(self) -> bool:
        """Work until ``stop``, or with ``once`` until there is no more to do. What is not finished
        ``drain_seconds`` after the stop is given back.

        Returns False if it ended by itself and something was away: then work may be left. Raises
        if a slot or recovery broke: a worker that is not whole stops.
        """
        slots = range(1, self._limits.concurrency + 1)
        slot, recover = self._slot, self._recover
        if self._once:
            slot, recover = self._slot_once, self._recover_once
        loops = [asyncio.create_task(slot(), name=f"slot-{number}") for number in slots]
        if self._recovery is None:
            self._may_begin.set()
        else:
            loops.append(asyncio.create_task(recover(self._recovery), name="recovery"))
        for task in loops:
            task.add_done_callback(lambda task: self._ended(task, loops))
        log.info("worker_started", concurrency=self._limits.concurrency)
        await self._stopping.wait()
        await self._drain()
        done = [task for task in loops if task.done()]
        cut_off = [task for task in loops if task in self._under_way]
        for task in cut_off:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        log.info("worker_stopped", cancelled=len(cut_off))
        for task in done:
            if task.cancelled():
                raise RuntimeError(f"{task.get_name()} cancelled itself")
            task.result()
        return self._told_to_stop or not self._left_work

    def _ended(self, task: asyncio.Task[None], loops: Sequence[asyncio.Task[None]]) -> None:
        """A loop has ended: with ``once`` the others go on, unless it broke."""
        if all(loop.done() for loop in loops):
            self._grace_is_over.set()
        elif self._once and not task.cancelled() and task.exception() is None:
            return
        self._stopping.set()

    async def _drain(self) -> None:
        """Wait until all loops have ended or the grace time is over."""
        if self._grace_is_over.is_set():
            return
        log.info("worker_draining", drain_seconds=self._limits.drain_seconds)
        try:
            async with asyncio.timeout(self._limits.drain_seconds):
                await self._grace_is_over.wait()
        except TimeoutError:
            self._grace_is_over.set()

    @contextmanager
    def _cut_off_after_grace(self) -> Iterator[None]:
        """Mark what is cancelled where the grace time is over. A pop never is: it runs out of its
        own accord, and what it takes too late goes back."""
        task = asyncio.current_task()
        self._under_way.add(task)
        try:
            yield
        finally:
            self._under_way.discard(task)

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

    async def _slot_once(self) -> None:
        await self._may_begin.wait()
        try:
            while not self._stopping.is_set() and await self._next():
                pass
        except Unavailable as error:
            log.warning("work_left", cause=type(error).__name__, reason=str(error))
            self._left_work = True
        except Exception:
            log.exception("slot_crashed")
            raise

    async def _next(self) -> bool:
        """Take a task and have it done. Returns whether there was one that could be taken."""
        permit = self._circuit.permit()
        if permit is None:
            self._left_work = True
            if not self._once:
                await self._pause(self._limits.pop_seconds)
            return False
        with closing(permit):
            if self._limit is None:
                return await self._pop(permit) is not _Found.NOTHING
            if not await self._is_permitted(self._limit):
                return True
            return await self._pop_permitted(permit, self._limit) is not _Found.NOTHING

    async def _is_permitted(self, limit: StartLimitPort) -> bool:
        """Take a permit, or wait until it makes sense to ask again. One slot at a time does that
        for all: the others would be told the same."""
        async with self._asking:
            if self._stopping.is_set():
                return False
            wait_seconds = await limit.take()
            if wait_seconds > 0:
                await self._pause(min(wait_seconds, self._limits.pop_seconds))
            return wait_seconds == 0

    async def _pop_permitted(self, permit: Permit, limit: StartLimitPort) -> _Found:
        """Use the permit, or give it back if no picture was begun."""
        found = _Found.PICTURE  # Who is cancelled may have begun one; errors come from before that.
        try:
            found = await self._pop(permit)
        except Exception:
            found = _Found.NO_PICTURE
            raise
        finally:
            if found is not _Found.PICTURE:
                await limit.give_back()
        return found

    async def _pop(self, permit: Permit) -> _Found:
        """Take the next task and have it done."""
        message = await self._queue.pop(
            timeout_seconds=0.0 if self._once else self._limits.pop_seconds
        )
        if message is None:
            return _Found.NOTHING
        if isinstance(message, UnreadableTask):
            await self._refuse(message)
        elif permit.is_valid and not self._grace_is_over.is_set():
            return await self._work(message, permit)
        else:
            await self._queue.push_next([message])
        return _Found.NO_PICTURE

    async def _work(self, task: GenerationTask, permit: Permit) -> _Found:
        """A picture counts as begun whatever became of it."""
        bind_contextvars(request_id=task.request_id, session_id=str(task.session_id))
        try:
            with self._cut_off_after_grace():
                outcome = await self._generation.run(task)
        except (Unavailable, ClaimFailed):
            raise
        except ProviderMisconfigured as error:
            self._record_rejection(permit, error)
        except Exception:
            log.exception("task_crashed")
        else:
            task_log.info("task_done", outcome=outcome)
            self._left_work |= outcome is Outcome.UNSETTLED
            if outcome is Outcome.COMPLETED and permit.record_success():
                log.info("circuit_closed")
            if outcome is Outcome.SKIPPED:
                return _Found.NO_PICTURE
        finally:
            unbind_contextvars("request_id", "session_id")
        return _Found.PICTURE

    def _record_rejection(self, permit: Permit, error: ProviderMisconfigured) -> None:
        """Say once for each opening why this worker takes no tasks."""
        seconds = permit.record_rejection()
        if seconds is not None:
            log.error("circuit_opened", cause=error.detail, seconds=seconds)

    async def _refuse(self, message: UnreadableTask) -> None:
        """Nobody else has the message any more, so try until that is done or the worker stops."""
        log.error("task_unreadable", reason=message.reason, session_id=str(message.session_id))
        for failures in count(1):
            try:
                failed = await self._generation.refuse(message)
            except Unavailable as error:
                if self._stopping.is_set() or (self._once and failures == REFUSALS_ONCE):
                    raise
                await self._back_off(failures, error)
            else:
                log.info("task_buried", session_failed=failed)
                return

    async def _recover(self, recovery: Recovery) -> None:
        while not self._stopping.is_set():
            await self._recover_once(recovery)
            await self._pause(self._limits.recovery_seconds * self._random.uniform(0.8, 1.2))

    async def _recover_once(self, recovery: Recovery) -> None:
        try:
            with self._cut_off_after_grace():
                report = await recovery.run_once()
        except Unavailable as error:
            self._left_work = True
            log.warning("recovery_postponed", cause=type(error).__name__)
        except Exception:
            self._left_work = True
            log.exception("recovery_crashed")
        else:
            if report.total:
                log.info("recovered", **report.counts())
        finally:
            self._may_begin.set()

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


async def run_until_signalled(worker: Worker, close: Callable[[], Awaitable[None]]) -> bool:
    """Run ``worker`` until SIGTERM or SIGINT, then ``close``. A second signal ends its grace time.
    Returns what the worker's ``run`` does."""
    loop = asyncio.get_running_loop()
    for signum in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(signum, worker.stop)
    try:
        return await worker.run()
    finally:
        await close()


def run_worker(
    settings: Settings, *, concurrency: int | None, recovery: bool, once: bool = False
) -> bool:
    """The worker process. Returns once it has come to rest: after SIGTERM or, with ``once``, when
    there is no more to do; False if something was away then, so that work may be left."""
    configure_logging(settings)
    container = Container(settings=settings)
    if not settings.drain_outlasts_attempt:
        log.warning(
            "drain_shorter_than_attempt",
            drain_seconds=settings.drain_seconds,
            attempt_seconds=settings.attempt_seconds,
        )
    return run_on(container, concurrency=concurrency, recovery=recovery, once=once)


def run_on(
    container: Container, *, concurrency: int | None, recovery: bool, once: bool = False
) -> bool:
    """A worker with all the process to itself, on these adapters. Returns as ``run_worker``."""
    buffer_access_logs()
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        worker = build_worker(container, concurrency=concurrency, recovery=recovery, once=once)
        freeze_startup_objects()
        return runner.run(_writing_lines(run_until_signalled(worker, lambda: close(container))))


async def _writing_lines(work: Awaitable[bool]) -> bool:
    """Do ``work``, and write the lines of the tasks that were done meanwhile. The last ones go out
    with that of the worker's stop."""

    async def write() -> None:
        while True:
            await asyncio.sleep(WRITE_SECONDS)
            flush_logs()

    writing = asyncio.create_task(write())
    try:
        return await work
    finally:
        writing.cancel()


def build_worker(
    container: Container, *, concurrency: int | None, recovery: bool, once: bool = False
) -> Worker:
    """A worker as the settings say, unless ``concurrency`` does."""
    settings = container.settings()
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
        once=once,
        limit=container.start_limit(),
    )
