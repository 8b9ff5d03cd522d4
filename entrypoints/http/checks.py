"""Checks of dependencies whose results are kept for a moment."""

import asyncio
from collections.abc import Awaitable, Callable

from domain.errors import QueueUnavailable

LATELY_SECONDS = 1.0


class CheckedLately:
    """``check`` of the queue, at most once in ``LATELY_SECONDS``, however many ask. ``clock`` is
    monotonic, in seconds."""

    def __init__(self, check: Callable[[], Awaitable[None]], *, clock: Callable[[], float]) -> None:
        self._check = check
        self._clock = clock
        self._lock = asyncio.Lock()
        self._valid_until = 0.0
        self._failure: QueueUnavailable | None = None

    async def check(self) -> None:
        """Raises ``QueueUnavailable`` if the latest check did."""
        async with self._lock:
            if self._clock() >= self._valid_until:
                await self._refresh()
        if (failure := self._failure) is not None:
            raise QueueUnavailable(str(failure), refused=failure.refused, cause=failure.cause)

    async def _refresh(self) -> None:
        self._failure = None
        try:
            await self._check()
        except QueueUnavailable as error:
            self._failure = error.with_traceback(None)
        self._valid_until = self._clock() + LATELY_SECONDS
