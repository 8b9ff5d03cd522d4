"""One client that waits for new states of sessions."""

import asyncio
from collections.abc import Collection, Sequence
from datetime import datetime
from typing import TypeAlias
from uuid import UUID

from domain.changes import NEVER_READ
from domain.credits import Owner
from domain.errors import NotFound, Overloaded
from domain.sessions import FINAL_REVISION, GenerationSession

MAX_FOLLOWED = 10_000
"""The sessions whose revisions a stream of all an owner's sessions remembers, and whose states it
holds for a client that takes none."""

Whose: TypeAlias = tuple[Owner, str | None]
"""The owner, and the shopper to whose sessions the client is confined."""


class Watch:
    """What one client waits for, what it has, and what it is about to get. ``Watching`` makes it,
    and tells it of states."""

    __slots__ = (
        "_ended",
        "_news",
        "_opened",
        "_revisions",
        "_unfinished",
        "_waiter",
        "due_turn",
        "ends_at",
        "ids",
        "reads_before",
        "since",
        "unread",
        "whose",
    )

    def __init__(
        self, whose: Whose, ids: Collection[UUID] | None, *, after: int, now: datetime
    ) -> None:
        self.whose = whose
        self.ids = None if ids is None else tuple(dict.fromkeys(ids))
        """The sessions that the client named; None for all of the owner's."""
        self.since = now
        """Sessions created before this time were looked for."""
        self.unread = set(ids or ())
        """The named sessions that were not read yet."""
        self.ends_at = 0.0
        """In the time of the event loop."""
        self.reads_before = 0
        """How many reads of ``Watching`` had begun before this client came."""
        self.due_turn = 0
        """When ``Watching`` wakes this client."""
        self._revisions = dict.fromkeys(ids or (), after)
        """Of each session, the newest revision that the client has or is about to get."""
        self._unfinished = set(ids or ())
        self._news: dict[UUID, GenerationSession] = {}
        self._opened: asyncio.Future[None] | None = None
        self._waiter: asyncio.Future[None] | None = None
        self._ended = False

    @property
    def is_over(self) -> bool:
        """Whether the client has the final state of every session that it named."""
        return self.ids is not None and not self._unfinished and not self._news

    async def opened(self) -> None:
        """Waits until each named session was read. Raises ``NotFound`` if the client may not see
        one of them, and the error if they could not be read."""
        self._opened = asyncio.get_running_loop().create_future()
        try:
            await self._opened
        finally:
            self._opened = None

    async def next(self) -> Sequence[GenerationSession] | None:
        """Waits for states that are new since the last call, at most one of each session. Empty if
        it was only woken; None once no more will come."""
        if not (self._news or self._ended or self.is_over):
            self._waiter = asyncio.get_running_loop().create_future()
            try:
                await self._waiter
            finally:
                self._waiter = None
        if not self._news:
            return None if self._ended or self.is_over else ()
        news = list(self._news.values())
        self._news.clear()
        return news

    def wake(self) -> None:
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    def end(self) -> None:
        """No more states: the client has left, or is to come again."""
        self._ended = True
        self.wake()
        self.fail(Overloaded("The process stops; try again"))

    def knows(self, session_id: UUID) -> bool:
        return session_id in self._revisions

    def may_see(self, session: GenerationSession) -> bool:
        owner, shopper_id = self.whose
        return session.owner == owner and shopper_id in {None, session.shopper_id}

    def skip(self, session: GenerationSession) -> None:
        """Leave out this state: the client wants only newer ones."""
        if not self.knows(session.id):
            self._remember(session)

    def offer(self, session: GenerationSession) -> None:
        """Tell the client of this state, if it is newer than what the client has."""
        known = self._revisions.get(session.id, NEVER_READ)
        is_news = session.revision > known and not self._ended
        if is_news:
            self._remember(session)
            self._news[session.id] = session
            if len(self._news) > MAX_FOLLOWED:
                self.end()
        if session.revision == FINAL_REVISION:
            self._unfinished.discard(session.id)
        self._has_read(session.id)
        if is_news or self.is_over:
            self.wake()

    def refuse(self, session_id: UUID) -> None:
        """The client may not see the session that it named, or there is none."""
        if session_id in self.unread:
            self.fail(NotFound("No such generation"))

    def fail(self, error: Exception) -> None:
        """The named sessions could not be read."""
        if self._opened is not None and not self._opened.done():
            self._opened.set_exception(error)

    def _has_read(self, session_id: UUID) -> None:
        self.unread.discard(session_id)
        if not self.unread and self._opened is not None and not self._opened.done():
            self._opened.set_result(None)

    def _remember(self, session: GenerationSession) -> None:
        self._revisions[session.id] = session.revision
        if len(self._revisions) <= MAX_FOLLOWED:
            return
        unfinished = {
            session_id: revision
            for session_id, revision in self._revisions.items()
            if revision != FINAL_REVISION
        }
        self._revisions = unfinished
        if len(unfinished) > MAX_FOLLOWED // 2:
            self.end()
