"""Batches that know whom they serve, so that the span of a batch has links to its callers."""

import asyncio
from collections import deque
from collections.abc import Callable, Hashable
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from opentelemetry.trace import SpanContext, get_current_span

from adapters.coalescing import BatchLimits, Call, Coalescer, Result, Run
from adapters.tracing.spans import BATCH
from domain.errors import Unavailable

_CALLERS: WeakKeyDictionary[asyncio.Future[object], SpanContext] = WeakKeyDictionary()
"""Of waiting calls, by the future of their answer: a call may move to another coalescer."""


class TracedCoalescer(Coalescer[Call, Result]):
    """Keeps the span of each call until its batch runs."""

    def _add(self, waiting: tuple[Call, asyncio.Future[Result]]) -> None:
        span = get_current_span()
        if span.is_recording():
            _CALLERS[_key(waiting[1])] = span.get_span_context()
        super()._add(waiting)

    async def _execute(
        self,
        batch: list[tuple[Call, asyncio.Future[Result]]],
        rest: deque[tuple[Call, asyncio.Future[Result]]] | None = None,
    ) -> None:
        callers = [
            caller for _, answer in batch if (caller := _CALLERS.get(_key(answer))) is not None
        ]
        token = BATCH.set(callers)
        try:
            await super()._execute(batch, rest)
        finally:
            BATCH.reset(token)


def _key(answer: "asyncio.Future[Result]") -> "asyncio.Future[object]":
    return answer  # type: ignore[return-value]  # A future is invariant; as a key it is only hashed.


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedBatches(BatchLimits):
    """Builds traced coalescers."""

    def coalescer(
        self,
        run: Run[Call, Result],
        *,
        too_many: Callable[[], Unavailable],
        key: Callable[[Call], Hashable] | None = None,
        one_key: bool = False,
        blocked: Coalescer[Call, Result] | None = None,
    ) -> Coalescer[Call, Result]:
        return TracedCoalescer(
            run, limits=self, too_many=too_many, key=key, one_key=one_key, blocked=blocked
        )
