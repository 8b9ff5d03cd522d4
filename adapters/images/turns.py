"""A bounded number of places, for which owners take turns."""

import asyncio
from collections import deque
from collections.abc import AsyncIterator, Hashable
from contextlib import asynccontextmanager


class Turns:
    """Like a semaphore, but a free place goes to the owner whose last turn was longest ago: one
    owner's long row holds up no other."""

    def __init__(self, places: int) -> None:
        self._free = places
        self._rows: dict[Hashable, deque[asyncio.Future[None]]] = {}

    @property
    def waiting(self) -> int:
        return sum(len(row) for row in self._rows.values())

    @asynccontextmanager
    async def place(self, owner: Hashable) -> AsyncIterator[None]:
        """Wait for a place, and hold it in this block."""
        await self._take(owner)
        try:
            yield
        finally:
            self._give_back()

    async def _take(self, owner: Hashable) -> None:
        if self._free:
            self._free -= 1
            return
        turn = asyncio.get_running_loop().create_future()
        self._rows.setdefault(owner, deque()).append(turn)
        try:
            await turn
        except asyncio.CancelledError:
            if not turn.cancelled():  # The place arrived with the cancellation.
                self._give_back()
            raise

    def _give_back(self) -> None:
        while self._rows:
            owner, row = next(iter(self._rows.items()))
            del self._rows[owner]
            turn = row.popleft()
            if row:
                self._rows[owner] = row  # behind the other owners
            if not turn.cancelled():
                turn.set_result(None)
                return
        self._free += 1
