"""The latest check of the books in this process's memory."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime, timedelta

from domain.operator_ports import BookCheck, BookCheckRepoPort


class InMemoryBookCheckRepo(BookCheckRepoPort):
    """``clock`` stands for the database's clock. ``latest`` is None before the first check."""

    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        self.latest: BookCheck | None = None
        self._clock = clock
        self._due_at: datetime | None = None
        self._claimed_until: datetime | None = None

    async def claim(self, *, lease: timedelta) -> bool:
        now = self._clock()
        if any(until and now < until for until in (self._due_at, self._claimed_until)):
            return False
        self._claimed_until = now + lease
        return True

    async def record(self, check: BookCheck, *, again_after: timedelta) -> None:
        self.latest = replace(check, at=self._clock())
        await self.postpone(again_after=again_after)

    async def postpone(self, *, again_after: timedelta) -> None:
        self._due_at, self._claimed_until = self._clock() + again_after, None
