"""Reading watched sessions in memory."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from datetime import datetime
from uuid import UUID

from adapters.sessions.memory import InMemorySessionRepo
from domain.changes import WatchReadPort
from domain.credits import Owner
from domain.errors import NotFound
from domain.sessions import GenerationSession, SessionStatus


class InMemoryWatchReads(WatchReadPort):
    def __init__(self, sessions: InMemorySessionRepo) -> None:
        self._sessions = sessions

    async def newer(self, known: Sequence[tuple[UUID, int]]) -> list[GenerationSession]:
        found = []
        for session_id, revision in known:
            with suppress(NotFound):
                session = await self._sessions.get(session_id, None)
                if session.revision > revision:
                    found.append(session)
        return found

    async def recent(
        self, since: Mapping[tuple[Owner, str | None], datetime], *, limit: int
    ) -> list[tuple[UUID, Owner]]:
        found = []
        for (owner, shopper_id), after in since.items():
            for status in SessionStatus:
                newest = await self._sessions.history(
                    owner, status=status, limit=limit, after=None, shopper_id=shopper_id
                )
                found += [s for s in newest if not status.is_final or s.created_at > after]
        return [(session.id, session.owner) for session in found]
