"""Batching of concurrent calls, the technique that databases call group commit.

While a batch is in flight, arriving calls queue up and form the next batch. No call waits for
others to fill a batch: a lone one starts at once, and the batches grow with the load. So the cost
of a round trip and a commit is shared exactly when there is something to share it with.
"""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Hashable, Sequence
from contextvars import Context
from dataclasses import dataclass
from enum import Enum, auto
from math import inf
from typing import Final, Generic, TypeAlias, TypeVar

from domain.errors import Unavailable

Call = TypeVar("Call")
Result = TypeVar("Result")


class Blocked(Enum):
    """Returned by a run for a call it skipped because its row is locked."""

    BLOCKED = auto()


BLOCKED: Final = Blocked.BLOCKED

Run = Callable[[Sequence[Call]], Awaitable[Sequence[Result | Blocked]]]
"""Executes a batch and returns one result per call, in the order of the calls. If it raises
anything but ``Unavailable``, the batch must have had no effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """At most ``calls`` in a batch, ``in_flight`` batches at once, and ``waiting`` queued calls.

    A batch that takes longer than ``patience_seconds`` may be stuck, so the queued calls start
    another batch beside it. Until then they wait, because one batch is cheaper than two.
    """

    calls: int = 128
    in_flight: int = 4
    patience_seconds: float = 0.05
    waiting: int = 10_000

    def coalescer(
        self,
        run: Run[Call, Result],
        *,
        too_many: Callable[[], Unavailable],
        key: Callable[[Call], Hashable] | None = None,
        one_key: bool = False,
        blocked: "Coalescer[Call, Result] | None" = None,
    ) -> "Coalescer[Call, Result]":
        """A coalescer with these limits. Its class is up to the limits' class."""
        return Coalescer(
            run, limits=self, too_many=too_many, key=key, one_key=one_key, blocked=blocked
        )


DEFAULT_LIMITS = BatchLimits()

_Waiting: TypeAlias = tuple[Call, asyncio.Future[Result]]


class Coalescer(Generic[Call, Result]):
    """Collects single calls into batches.

    Order: calls with the same ``key`` run in the order of arrival. They share a batch, or wait for
    the batch in flight that has their key. Keys take turns.

    Errors: ``Unavailable`` fails the whole batch, because its outcome is unknown. After any other
    error each call runs again in a batch of its own, so an invalid call fails alone. A call that
    finds ``limits.waiting`` calls queued fails with ``too_many``.

    Cancellation: a queued call is dropped when its caller is cancelled. A call in flight runs to
    its end, so the other calls of its batch are not disturbed.

    Locks: calls that a run returns as ``BLOCKED`` move to the coalescer ``blocked``. While that one
    has calls of a key, it also takes all new calls of the key. With ``one_key`` a batch holds calls
    of a single key, so that no call waits for another key's lock.
    """

    def __init__(
        self,
        run: Run[Call, Result],
        *,
        limits: BatchLimits,
        too_many: Callable[[], Unavailable],
        key: Callable[[Call], Hashable] | None = None,
        one_key: bool = False,
        blocked: "Coalescer[Call, Result] | None" = None,
    ) -> None:
        self._run = run
        self._limits = limits
        self._too_many = too_many
        self._key = key or _no_key
        self._has_keys = key is not None
        self._one_key = one_key
        self._blocked = blocked
        self._waiting: dict[Hashable, deque[_Waiting[Call, Result]]] = {}
        self._waiting_count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._in_flight_keys: set[Hashable] = set()
        self._runners: dict[asyncio.Task[None] | None, float] = {}
        """Each runner with the loop time at which its current batch started."""

    async def __call__(self, call: Call) -> Result:
        if self._blocked is not None and self._blocked.has(self._key(call)):
            return await self._blocked(call)
        if self._waiting_count >= self._limits.waiting:
            raise self._too_many()
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._add((call, answer))
        return await answer

    def has(self, key: Hashable) -> bool:
        """Whether a call with this key is queued or in flight."""
        return key in self._waiting or key in self._in_flight_keys

    def _add(self, waiting: _Waiting[Call, Result]) -> None:
        self._waiting.setdefault(self._key(waiting[0]), deque()).append(waiting)
        self._waiting_count += 1
        self._ensure_runner()

    def _ensure_runner(self) -> None:
        """Start a runner now, or after the patience of the latest batch in flight. A timer that is
        set looks again."""
        if len(self._runners) >= self._limits.in_flight or self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        patient_until = max(self._runners.values(), default=-inf) + self._limits.patience_seconds
        if loop.time() >= patient_until:
            # The runner serves many callers, so it must not inherit one caller's context variables.
            runner = asyncio.create_task(self._run_batches(), context=Context())
            self._runners[runner] = loop.time()
        else:
            self._timer = loop.call_at(patient_until, self._start_extra_runner)

    def _start_extra_runner(self) -> None:
        self._timer = None
        if self._waiting:
            self._ensure_runner()

    async def _run_batches(self) -> None:
        """Run batch after batch until no call is queued, except for keys that are in flight: those
        belong to the runner that has the key."""
        runner = asyncio.current_task()
        try:
            while batch := self._next_batch():
                self._runners[runner] = asyncio.get_running_loop().time()
                keys = {self._key(call) for call, _ in batch} if self._has_keys else set()
                self._in_flight_keys |= keys
                try:
                    await self._execute(batch)
                except asyncio.CancelledError:
                    if runner is None or runner.cancelling():
                        raise
                self._in_flight_keys -= keys
        finally:
            # A done callback would be too late: a call that arrives before it would see a runner
            # here and start none.
            del self._runners[runner]
            # The next call counts its patience from what is still in flight.
            if self._timer is not None:
                self._timer.cancel()
                self._timer = None

    def _next_batch(self) -> list[_Waiting[Call, Result]]:
        batch: list[_Waiting[Call, Result]] = []
        for key in [key for key in self._waiting if key not in self._in_flight_keys]:
            if len(batch) == self._limits.calls or (batch and self._one_key):
                break
            waiting = self._waiting.pop(key)
            while waiting and len(batch) < self._limits.calls:
                call, answer = waiting.popleft()
                self._waiting_count -= 1
                if not answer.done():  # Done means that its caller was cancelled.
                    batch.append((call, answer))
            if waiting:
                self._waiting[key] = waiting  # Now behind all other keys.
        return batch

    async def _execute(
        self,
        batch: list[_Waiting[Call, Result]],
        rest: deque[_Waiting[Call, Result]] | None = None,
    ) -> None:
        """Run a batch. ``rest`` is what follows it of a batch that is split."""
        rest = deque() if rest is None else rest
        try:
            results = await self._run([call for call, _ in batch])
        except asyncio.CancelledError:
            for _, answer in (*batch, *rest):
                answer.cancel()
            raise
        except Unavailable as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - any error goes to the callers
            if len(batch) == 1:
                _fail(batch, error)
                return
            rest.extend(batch)
            while rest:
                await self._execute([rest.popleft()], rest)
        else:
            self._deliver(batch, results)
            if self._blocked is not None:
                self._move_followers(rest, self._blocked)

    def _deliver(
        self, batch: list[_Waiting[Call, Result]], results: Sequence[Result | Blocked]
    ) -> None:
        if len(results) != len(batch):
            _fail(batch, RuntimeError(f"{len(results)} results for {len(batch)} calls"))
        for (call, answer), result in zip(batch, results, strict=False):
            if answer.done():
                continue
            if not isinstance(result, Blocked):
                answer.set_result(result)
            elif self._blocked is not None:
                self._blocked._add((call, answer))

    def _move_followers(
        self, rest: deque[_Waiting[Call, Result]], blocked: "Coalescer[Call, Result]"
    ) -> None:
        """Keep the order: calls follow those of their key that moved to ``blocked``, first the
        rest of a split batch, then the queued ones. Later arrivals go there by themselves."""
        for _ in range(len(rest)):
            waiting = rest.popleft()
            if blocked.has(self._key(waiting[0])):
                blocked._add(waiting)
            else:
                rest.append(waiting)
        for key in [key for key in self._waiting if blocked.has(key)]:
            for waiting in self._waiting.pop(key):
                self._waiting_count -= 1
                blocked._add(waiting)


def _no_key(_: object) -> None:
    return None


def _fail(batch: list[_Waiting[Call, Result]], error: Exception) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
