"""One turn of a worker's slot: take the next message from the queue and handle it."""

from collections.abc import Callable
from contextlib import closing
from dataclasses import dataclass
from datetime import timedelta
from enum import Enum, auto
from itertools import count
from random import Random
from time import perf_counter

import structlog
from structlog.contextvars import bind_contextvars, unbind_contextvars

from config.logging import TASK_LOG
from config.metrics import (
    ATTEMPTS_FAILED,
    COMPLETED,
    FAILED,
    TASK_SECONDS,
    TASKS,
)
from domain.budget import Budget
from domain.causes import Cause
from domain.circuit import Opening, Permit
from domain.credits import Owner
from domain.errors import (
    ClaimFailed,
    ProviderMisconfigured,
    StorageUnavailable,
    Unavailable,
    WorkerExhausted,
)
from domain.generation import Generation, Outcome
from domain.ports import TaskQueuePort
from domain.sessions import Blame, ErrorCode, Fault, GenerationSession, Usage
from domain.shares import DownloadShares
from domain.slots import Slot
from domain.starts import Starts
from domain.tasks import GenerationTask, UnreadableTask
from domain.traces import trace_id_of
from entrypoints.worker.circuits import WorkerCircuits, log_opening, record_rejection
from entrypoints.worker.stop import Stop

log = structlog.get_logger(__name__)
task_log = structlog.get_logger(TASK_LOG)


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerLimits:
    """Bounds of one worker process. ``drain_seconds`` must be longer than ``pop_seconds``. The
    circuits' say how long nothing is begun after the generator rejected every request, or while the
    storage cannot keep a picture."""

    concurrency: int
    pop_seconds: float
    drain_seconds: float
    recovery_seconds: float
    backoff_base_seconds: float = 0.1
    backoff_cap_seconds: float = 5.0
    circuit_first_seconds: float = 5.0
    circuit_cap_seconds: float = 300.0
    storage_circuit_cap_seconds: float = 30.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Patience:
    """How long a slot waits for a message, and how often it tries to bury an unreadable one
    (None: until it succeeds or the worker stops). With ``shares``, the inputs of one owner take at
    most half of the slots, and its other tasks are postponed."""

    pop_seconds: float
    bury_tries: int | None
    shares: bool = True


class Turn(Enum):
    """What a turn came to."""

    CIRCUIT_OPEN = auto()
    """Nothing may be begun."""
    PAUSED = auto()
    """An operator has paused the workers."""
    NO_START = auto()
    """The provider's limit will allow no call soon, and this turn waited for it."""
    EMPTY = auto()
    """The queue had no message."""
    HANDLED_FREE = auto()
    """A message was handled, and needed no permit of the provider's limit."""
    HANDLED = auto()
    """A message was handled, whatever came of it."""
    UNSETTLED = auto()
    """A picture was begun, and the database did not answer at its end."""


class Backoff:
    """Waits before the next try: exponentially longer, with full jitter, without a bound on the
    number of tries. A stop ends the wait."""

    def __init__(self, *, limits: WorkerLimits, random: Random, stop: Stop) -> None:
        self._limits = limits
        self._random = random
        self._stop = stop

    async def wait(self, failures: int, error: Exception) -> None:
        limits = self._limits
        ceiling = limits.backoff_base_seconds * 2.0 ** min(failures, 32)
        seconds = self._random.uniform(0, min(limits.backoff_cap_seconds, ceiling))
        log.warning("worker_waiting", cause=cause_of(error), seconds=round(seconds, 3))
        await self._stop.pause(seconds)


def cause_of(error: Exception) -> str:
    """The cause of an expected error, the type of any other."""
    return str(error.cause) if isinstance(error, Unavailable) else type(error).__name__


_ENDS = frozenset({Outcome.COMPLETED, Outcome.FAILED, Outcome.CANCELLED})


class _Slot(Slot):
    """One turn. Logs what goes wrong, and records the provider's failures with its permit."""

    def __init__(
        self, permit: Permit, starts: Starts, shares: DownloadShares, budget: Budget | None
    ) -> None:
        self._permit = permit
        self._budget = budget
        self._starts = starts
        self._shares = shares
        self._began = perf_counter()
        self.code: str | None = None
        """The session's ``error_code``, once it has failed here."""

    @property
    def outcome(self) -> Outcome | None:
        """What came of the session, if it failed here."""
        if self.code is None:
            return None
        return Outcome.CANCELLED if self.code == ErrorCode.CANCELLED else Outcome.FAILED

    def count(self, outcome: Outcome) -> None:
        """What came of the task, beside its log line."""
        TASKS.inc(outcome.value)
        if outcome not in _ENDS:
            return
        seconds = perf_counter() - self._began
        TASK_SECONDS.observe(seconds, COMPLETED if outcome is Outcome.COMPLETED else FAILED)

    def has_inputs(self, session: GenerationSession) -> None:
        self._shares.leave(session.id)

    def needs_no_start(self, session: GenerationSession) -> None:
        self._starts.skip(session.id)

    async def take_start(self, session: GenerationSession, *, at_most: timedelta) -> None:
        await self._starts.take(session.id, at_most=at_most)

    def waited(self, session: GenerationSession) -> float:
        return self._starts.waited(session.id)

    def picture_made(self, session: GenerationSession, usage: Usage | None) -> None:
        if self._budget is not None and usage is not None:
            self._budget.made(session.id, usage.estimated_cost_usd)

    def attempt_failed(self, session: GenerationSession, fault: Fault) -> None:
        cause = str(fault.cause)
        log.warning("attempt_failed", attempt=session.attempt, cause=cause, code=fault.code)
        ATTEMPTS_FAILED.inc(fault.cause.kind.value, fault.code)
        if fault.blame is Blame.PROVIDER:
            seconds = self._permit.record_failure(session.id, fault.cause)
            log_opening(seconds, fault.cause)

    def session_failed(self, session: GenerationSession, code: str) -> None:  # noqa: ARG002
        self.code = code

    def picture_held(self, session: GenerationSession, cause: Cause) -> None:
        log.warning("picture_held", attempt=session.attempt, cause=str(cause))


def _turn_of(permit: Permit, outcome: Outcome) -> Turn:
    if outcome is Outcome.COMPLETED and permit.record_success():
        log.info("circuit_closed")
    return Turn.UNSETTLED if outcome is Outcome.UNSETTLED else Turn.HANDLED


class TaskRunner:
    """Takes and handles messages for all slots of a worker.

    A message is taken only when its work may begin: not while a circuit is open or the worker
    ``is_paused``, and no faster than ``starts`` will allow calls of the provider. So other workers
    can have it.

    ``session_ended`` is told of the owner of each session that ended here. ``budget`` is told what
    pictures cost; once it is spent, no message is taken.
    """

    def __init__(
        self,
        *,
        queue: TaskQueuePort,
        generation: Generation,
        starts: Starts,
        limits: WorkerLimits,
        patience: Patience,
        backoff: Backoff,
        stop: Stop,
        session_ended: Callable[[Owner], None],
        is_paused: Callable[[], bool] = lambda: False,
        budget: Budget | None = None,
    ) -> None:
        self._queue = queue
        self._session_ended = session_ended
        self._generation = generation
        self._starts = starts
        self._shares = DownloadShares()
        self._limits = limits
        self._patience = patience
        self._backoff = backoff
        self._stop = stop
        self._is_paused = is_paused
        self._budget = budget
        self._circuits = WorkerCircuits(
            first_seconds=limits.circuit_first_seconds,
            cap_seconds=limits.circuit_cap_seconds,
            storage_cap_seconds=limits.storage_circuit_cap_seconds,
            budget=budget,
        )
        self.busy = 0
        """How many tasks are being handled."""
        self.done = 0
        """The sessions that were completed here."""
        self.failed = 0
        """The sessions that failed here."""

    @property
    def opening(self) -> Opening | None:
        """Why nothing is taken, and until when on the event loop's clock; None if no circuit is
        open."""
        return self._circuits.opening

    @property
    def throttled_until(self) -> float | None:
        """When the provider's limit will have a permit, on the event loop's clock; None if it has
        one."""
        return self._starts.throttled_until

    @property
    def limit_is_local(self) -> bool:
        """Whether the provider's limit is not shared at the moment."""
        return self._starts.is_local

    async def run_next(self) -> Turn:
        """Take the next message, if its work may begin, and handle it; and another in its place if
        it needed no permit of the provider's limit.

        Raises ``Unavailable`` and ``ClaimFailed`` if the next message would fare no better.
        """
        if self._is_paused():
            return Turn.PAUSED
        if not await self._circuits.can_store(self._generation):
            return Turn.CIRCUIT_OPEN
        permit = self._circuits.permit()
        if permit is None:
            return Turn.CIRCUIT_OPEN
        with closing(permit):
            longest_pause = self._limits.pop_seconds
            if not await self._starts.expect(longest_pause=longest_pause):
                return Turn.NO_START
            while (turn := await self._take(permit)) is Turn.HANDLED_FREE:
                if self._stop.has_begun or not self._starts.expect_another():
                    break
            return turn

    async def _pop(self) -> GenerationTask | UnreadableTask | None:
        session_id = None
        try:
            message = await self._queue.pop(timeout_seconds=self._patience.pop_seconds)
            if isinstance(message, GenerationTask):
                session_id = message.session_id
            return message
        finally:
            self._starts.expected(session_id)

    async def _take(self, permit: Permit) -> Turn:
        message = await self._pop()
        if message is None:
            return Turn.EMPTY
        self.busy += 1
        try:
            return await self._handle(message, permit)
        finally:
            self.busy -= 1

    async def _handle(self, message: GenerationTask | UnreadableTask, permit: Permit) -> Turn:
        if isinstance(message, UnreadableTask):
            await self._refuse(message)
            return Turn.HANDLED_FREE
        try:
            turn = await self._begin(message, permit)
        finally:
            self._shares.leave(message.session_id)
            asked = self._starts.leave(message.session_id)
        return Turn.HANDLED_FREE if turn is Turn.HANDLED and not asked else turn

    async def _begin(self, task: GenerationTask, permit: Permit) -> Turn:
        """Work on a task unless its owner's share is taken, or nothing may begin any more."""
        if self._is_paused():
            await self._queue.push_next([task])
            return Turn.PAUSED
        delay = await self._enter(task)
        if delay is not None:
            log.info("task_postponed", session_id=str(task.session_id), seconds=delay.seconds)
            await self._generation.postpone(task, delay)
            return Turn.HANDLED
        may_begin = permit.is_valid and not self._circuits.budget_is_spent
        if may_begin and not self._stop.grace_is_over:
            return await self._work(task, permit)
        await self._queue.push_next([task])
        return Turn.CIRCUIT_OPEN

    async def _enter(self, task: GenerationTask) -> timedelta | None:
        """Take the owner's share of the slots: None, or the time to postpone the task by."""
        if not self._patience.shares:
            return None
        places = max(1, self._limits.concurrency // 2)
        return await self._shares.enter(task.session_id, task.owner, places=places)

    async def _work(self, task: GenerationTask, permit: Permit) -> Turn:
        bind_contextvars(
            request_id=task.request_id,
            trace_id=trace_id_of(task.request_id, task.traceparent),
            session_id=str(task.session_id),
        )
        slot = _Slot(permit, self._starts, self._shares, self._budget)
        outcome: Outcome | None = None
        try:
            with self._stop.interruptible():
                outcome = await self._generation.run(task, slot)
        except StorageUnavailable as error:
            self._circuits.storage_failed(error.cause)
            return Turn.HANDLED
        except (ProviderMisconfigured, WorkerExhausted) as error:
            record_rejection(permit, error.cause)
            return Turn.HANDLED
        except (Unavailable, ClaimFailed):
            raise
        except Exception:
            log.exception("task_crashed")
            return Turn.HANDLED
        else:
            return _turn_of(permit, outcome)
        finally:
            self._record_outcome(outcome or slot.outcome, slot, task.owner)
            if self._budget is not None:
                self._budget.ended(task.session_id)
            unbind_contextvars("request_id", "trace_id", "session_id")

    def _record_outcome(self, outcome: Outcome | None, slot: _Slot, owner: Owner) -> None:
        """Log and count what came of a task. None if its run raised and its session goes on."""
        if outcome is None:
            return
        if slot.code is None:
            task_log.info("task_done", outcome=outcome)
        else:
            task_log.info("task_done", outcome=outcome, code=slot.code)
        slot.count(outcome)
        if outcome in _ENDS:
            self._session_ended(owner)
            self.done += outcome is Outcome.COMPLETED
            self.failed += outcome is not Outcome.COMPLETED

    async def _refuse(self, message: UnreadableTask) -> None:
        """Try until it is done or the worker stops: the message is no longer in the queue."""
        log.error("task_unreadable", reason=message.reason, session_id=str(message.session_id))
        for failures in count(1):
            try:
                failed = await self._generation.refuse(message)
            except Unavailable as error:
                if self._stop.has_begun or failures == self._patience.bury_tries:
                    raise
                await self._backoff.wait(failures, error)
            else:
                self.failed += failed
                log.info("task_buried", session_failed=failed)
                return
