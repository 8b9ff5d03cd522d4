"""Each owner's share of a worker's slots: how many of its sessions may fetch their inputs at once.

Inputs come from hosts of the owner's choice. Without a share, one owner's slow hosts hold every
slot, and everyone else waits for them.
"""

import asyncio
from datetime import timedelta
from uuid import UUID

from domain.credits import Owner

PATIENCE_SECONDS = 2.0
"""How long a download may take before its owner counts as slow and no session waits for it."""
LONGEST_DELAY_SECONDS = 60.0


class DownloadShares:
    """Who is fetching inputs in this process."""

    def __init__(self) -> None:
        self._fetching: dict[UUID, tuple[Owner, float]] = {}
        self._next_turns: dict[Owner, float] = {}
        self._left = asyncio.Event()

    async def enter(self, session_id: UUID, owner: Owner, *, places: int) -> timedelta | None:
        """None if the session may fetch its inputs: one of ``places`` of its owner is free, or gets
        free soon. Otherwise the time by which to postpone it."""
        clock = asyncio.get_running_loop().time
        while len(began := self._began(owner)) >= places:
            wait_seconds = max(began) + PATIENCE_SECONDS - clock()
            if wait_seconds <= 0:
                return self._postponed(owner, places, clock())
            self._left.clear()
            try:
                async with asyncio.timeout(wait_seconds):
                    await self._left.wait()
            except TimeoutError:
                continue
        self._fetching[session_id] = (owner, clock())
        return None

    def leave(self, session_id: UUID) -> None:
        """The session has its inputs, or needs none, or has ended. More than once is allowed."""
        if self._fetching.pop(session_id, None) is not None:
            self._left.set()

    def _began(self, owner: Owner) -> list[float]:
        return [began for other, began in self._fetching.values() if other == owner]

    def _postponed(self, owner: Owner, places: int, now: float) -> timedelta:
        """Postponed sessions come back one after another, no faster than a slow owner's places get
        free, so that a long row of them costs little."""
        self._next_turns = {one: turn for one, turn in self._next_turns.items() if turn > now}
        turn = self._next_turns.get(owner, now) + PATIENCE_SECONDS / places
        turn = min(turn, now + LONGEST_DELAY_SECONDS)
        self._next_turns[owner] = turn
        return timedelta(seconds=max(turn - now, PATIENCE_SECONDS))
