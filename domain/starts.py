"""When a session may call the provider: the permits of the provider's limit.

A permit is taken once the session's inputs are there, so sessions that never call the provider
(expired, cancelled, with links that lead nowhere) cost none. Sessions are taken off the queue only
as fast as permits will be free for them, and the others stay there for other workers.
"""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from uuid import UUID

from domain.errors import NotStarted
from domain.picture_ports import StartLimitPort

SOON_SECONDS = 2.0
"""A session is taken off the queue if its permit will be free this soon, and counts as about to
need one for as long. If its inputs take longer, others go ahead."""
_ROW, _HELPERS = 10, 8
"""After so many sessions in a row that needed no permit, so many slots may look for one that does.
The sessions that they find beyond the permits wait for theirs."""
_SHORTEST_PAUSE_SECONDS = 0.01
_LONGEST_PAUSE_SECONDS = 1.0

Pause = Callable[[float], Awaitable[None]]
"""Waits for some seconds, but not beyond the beginning of a stop."""


async def _until_soon(seconds: float) -> None:
    await asyncio.sleep(seconds)


class Starts:
    """The permits of one process's sessions. Without a ``limit``, there is no need to wait."""

    def __init__(
        self,
        limit: StartLimitPort | None = None,
        *,
        pause: Pause = _until_soon,
        is_stopping: Callable[[], bool] = lambda: False,
    ) -> None:
        self._limit = limit
        self._pause = pause
        self._is_stopping = is_stopping
        self._asking, self._taking = asyncio.Lock(), asyncio.Lock()
        self._expecting = 0
        self._needless = 0
        self._fetching: dict[UUID, float] = {}
        self._waiting: dict[UUID, float] = {}
        self._waited: dict[UUID, float] = {}
        self._asked: set[UUID] = set()
        self._free_at = 0.0

    @property
    def throttled_until(self) -> float | None:
        """When the limit will have a permit for the next session, on the event loop's clock, by its
        latest answer; None if it has one, or if no session waits."""
        return self._free_at if self._free_at > _now() else None

    @property
    def is_local(self) -> bool:
        """Whether the limit is not shared with other processes at the moment."""
        return self._limit is not None and self._limit.is_local

    async def expect(self, *, longest_pause: float) -> bool:
        """Whether another session may be taken off the queue, which then counts as about to need a
        permit; call ``expected`` once it is taken. Otherwise pauses until it makes sense to ask
        again, and up to ``longest_pause``."""
        if self._limit is None:
            return True
        if self._needless >= _ROW and self._expecting < _HELPERS:
            self._expecting += 1
            return True
        async with self._asking:  # One at a time asks: the others would get the same answer.
            if self._is_stopping():
                return False
            free_seconds = await self._limit.wait(self._needed() + 1)
            if not self._expecting:  # Otherwise the queue has no session that would wait for it.
                self._free_at = _now() + free_seconds
            wait_seconds = free_seconds - SOON_SECONDS
            if wait_seconds > 0:
                await self._pause(min(wait_seconds, longest_pause))
                return False
            self._expecting += 1
            return True

    def expect_another(self) -> bool:
        """The session that was taken needed no permit: take another in its place, without asking.
        False if there is no limit, and so no need for that."""
        if self._limit is None:
            return False
        self._needless += 1
        self._expecting += 1
        return True

    def expected(self, session_id: UUID | None) -> None:
        """The session that was taken; None if there was none."""
        if self._limit is None:
            return
        self._expecting -= 1
        if session_id is None:
            self._needless = 0
        else:
            self._fetching[session_id] = _now()

    async def take(self, session_id: UUID, *, at_most: timedelta) -> None:
        """Take a permit for this session, whose inputs are there, and use it at once.

        Raises ``NotStarted`` if the limit has none for ``at_most``, or when the process stops.
        """
        if self._limit is None:
            return
        self._fetching.pop(session_id, None)
        self._asked.add(session_id)
        self._needless = 0
        self._waiting[session_id] = began = _now()
        try:
            async with self._taking:  # First come, first served.
                await self._take(self._limit, until=began + at_most.total_seconds())
        finally:
            self._waited[session_id] = self.waited(session_id)
            del self._waiting[session_id]

    def waited(self, session_id: UUID) -> float:
        """How many seconds the session has waited for a permit. They are no part of its work."""
        since = self._waiting.get(session_id)
        return self._waited.get(session_id, 0.0) + (0.0 if since is None else _now() - since)

    def skip(self, session_id: UUID) -> None:
        """The session needs no permit soon."""
        self._fetching.pop(session_id, None)

    def leave(self, session_id: UUID) -> bool:
        """The session's attempt has ended. Returns whether it asked for a permit."""
        self._fetching.pop(session_id, None)
        self._waited.pop(session_id, None)
        asked = session_id in self._asked
        self._asked.discard(session_id)
        return asked

    async def _take(self, limit: StartLimitPort, *, until: float) -> None:
        while not self._is_stopping():
            wait_seconds = await limit.take()
            self._free_at = _now() + wait_seconds
            if wait_seconds == 0:
                if not self._is_stopping():
                    return
                await limit.give_back()
                break
            left = until - _now()
            if left <= 0:
                break
            longest = min(wait_seconds, left, _LONGEST_PAUSE_SECONDS)
            await self._pause(max(longest, _SHORTEST_PAUSE_SECONDS))
        raise NotStarted("The provider's limit allowed no start")

    def _needed(self) -> int:
        """How many permits sessions of this process need soon."""
        since = _now() - SOON_SECONDS
        young = sum(began > since for began in self._fetching.values())
        return self._expecting + len(self._waiting) + young


def _now() -> float:
    return asyncio.get_running_loop().time()
