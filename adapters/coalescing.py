"""Calls that arrive while others are under way are carried out together.

A call that comes alone begins at once: no timer holds it up, and it waits for nobody. The more
calls arrive, the larger the batches get, so what a round trip and a commit cost is shared where it
counts.
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


class Apart(Enum):
    """What a run answers for a call that it left alone, for it would have to wait for it."""

    APART = auto()


APART: Final = Apart.APART

Run = Callable[[Sequence[Call]], Awaitable[Sequence[Result | Apart]]]
"""Carries out a batch; returns a result for each call, in their order. When it raises anything but
``Unavailable``, nothing may have taken effect."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchLimits:
    """``calls`` in a batch, ``in_flight`` batches at once, ``waiting`` calls that are in none.

    A batch that takes longer than ``patience_seconds`` may be stuck: then those that wait begin
    another one beside it. Until then they had better wait, and become one batch instead of two.
    """

    calls: int = 128
    in_flight: int = 4
    patience_seconds: float = 0.05
    waiting: int = 10_000


DEFAULT_LIMITS = BatchLimits()

_Waiting: TypeAlias = tuple[Call, asyncio.Future[Result]]


class Coalescer(Generic[Call, Result]):
    """Gathers single calls into batches.

    Calls of one ``key`` are carried out in the order of their arrival: they share a batch, or wait
    until the batch of those before them is done; the keys take turns. ``Unavailable`` fails the
    whole batch, for its outcome is unknown. After any other error each call is carried out alone,
    so that what is wrong with one fails that one only. A caller that goes away while its call waits
    takes it along; one whose call is under way leaves it, and its neighbours, to their end. Raises
    ``too_many`` for a call that finds ``limits.waiting`` before it.

    ``apart`` carries out what a run answers by ``APART``, and until it has none of that key left,
    all other calls of the key. With ``one_key`` a batch holds calls of one key, so that nobody
    waits for what another one's key has to wait for.
    """

    def __init__(
        self,
        run: Run[Call, Result],
        *,
        limits: BatchLimits,
        too_many: Callable[[], Unavailable],
        key: Callable[[Call], Hashable] | None = None,
        one_key: bool = False,
        apart: "Coalescer[Call, Result] | None" = None,
    ) -> None:
        self._run = run
        self._limits = limits
        self._too_many = too_many
        self._key = key or _no_key
        self._in_turn = key is not None
        self._one_key = one_key
        self._apart = apart
        self._waiting: dict[Hashable, deque[_Waiting[Call, Result]]] = {}
        self._count = 0
        self._timer: asyncio.TimerHandle | None = None
        self._under_way: set[Hashable] = set()
        self._runners: dict[asyncio.Task[None] | None, float] = {}
        """With the time at which each began its batch."""

    async def __call__(self, call: Call) -> Result:
        if self._apart is not None and self._apart.has(self._key(call)):
            return await self._apart(call)
        if self._count >= self._limits.waiting:
            raise self._too_many()
        answer: asyncio.Future[Result] = asyncio.get_running_loop().create_future()
        self._add((call, answer))
        return await answer

    def has(self, key: Hashable) -> bool:
        """Whether a call of this key waits or is under way."""
        return key in self._waiting or key in self._under_way

    def _add(self, waiting: _Waiting[Call, Result]) -> None:
        self._waiting.setdefault(self._key(waiting[0]), deque()).append(waiting)
        self._count += 1
        self._see_to_runners()

    def _see_to_runners(self) -> None:
        """Have what waits carried out, now or when those under way have taken too long."""
        if len(self._runners) >= self._limits.in_flight:
            return
        loop = asyncio.get_running_loop()
        patient_until = max(self._runners.values(), default=-inf) + self._limits.patience_seconds
        if loop.time() >= patient_until:
            # A runner belongs to no caller, so neither do the variables of its context.
            runner = asyncio.create_task(self._run_batches(), context=Context())
            self._runners[runner] = loop.time()
        elif self._timer is None:
            self._timer = loop.call_at(patient_until, self._lose_patience)

    def _lose_patience(self) -> None:
        self._timer = None
        if self._waiting:
            self._see_to_runners()

    async def _run_batches(self) -> None:
        """One batch after the other, until nothing waits but calls whose key is under way; these
        are left to the runner that has it."""
        runner = asyncio.current_task()
        try:
            while batch := self._next_batch():
                self._runners[runner] = asyncio.get_running_loop().time()
                keys = {self._key(call) for call, _ in batch} if self._in_turn else set()
                self._under_way |= keys
                try:
                    await self._carry_out(batch)
                except asyncio.CancelledError:
                    if runner is None or runner.cancelling():
                        raise
                self._under_way -= keys
        finally:
            # Not in a callback of the task: a call that came before it would find nobody to run it.
            del self._runners[runner]

    def _next_batch(self) -> list[_Waiting[Call, Result]]:
        batch: list[_Waiting[Call, Result]] = []
        for key in [key for key in self._waiting if key not in self._under_way]:
            if len(batch) == self._limits.calls or (batch and self._one_key):
                break
            waiting = self._waiting.pop(key)
            while waiting and len(batch) < self._limits.calls:
                call, answer = waiting.popleft()
                self._count -= 1
                if not answer.done():  # Else its caller went away.
                    batch.append((call, answer))
            if waiting:
                self._waiting[key] = waiting  # Behind all other keys.
        return batch

    async def _carry_out(self, batch: list[_Waiting[Call, Result]]) -> None:
        try:
            results = await self._run([call for call, _ in batch])
        except asyncio.CancelledError:
            for _, answer in batch:
                answer.cancel()
            raise
        except Unavailable as error:
            _fail(batch, error)
        except Exception as error:  # noqa: BLE001 - whatever it is, its caller gets it
            if len(batch) == 1:
                _fail(batch, error)
                return
            for waiting in batch:
                await self._carry_out_alone(waiting)
        else:
            self._answer(batch, results)

    async def _carry_out_alone(self, waiting: _Waiting[Call, Result]) -> None:
        if self._apart is not None and self._apart.has(self._key(waiting[0])):
            self._apart._add(waiting)
        else:
            await self._carry_out([waiting])

    def _answer(
        self, batch: list[_Waiting[Call, Result]], results: Sequence[Result | Apart]
    ) -> None:
        if len(results) != len(batch):
            _fail(batch, RuntimeError(f"{len(results)} results for {len(batch)} calls"))
        for (call, answer), result in zip(batch, results, strict=False):
            if answer.done():
                continue
            if not isinstance(result, Apart):
                answer.set_result(result)
            elif self._apart is not None:
                self._apart._add((call, answer))
        if self._apart is not None:
            self._send_after(self._apart)

    def _send_after(self, apart: "Coalescer[Call, Result]") -> None:
        """Those that wait here behind one of their key that went there follow it."""
        for key in [key for key in self._waiting if apart.has(key)]:
            for waiting in self._waiting.pop(key):
                self._count -= 1
                apart._add(waiting)


def _no_key(_: object) -> None:
    return None


def _fail(batch: list[_Waiting[Call, Result]], error: Exception) -> None:
    for _, answer in batch:
        if not answer.done():
            answer.set_exception(error)
