"""Erasure in this process's memory, for tests."""

from collections.abc import Sequence
from uuid import UUID

from adapters.sessions.memory import InMemorySessionRepo
from domain.credits import Owner
from domain.erasure import ErasureRepoPort
from domain.ports import Position
from domain.sessions import GenerationSession


class InMemoryErasureRepo(ErasureRepoPort):
    """On the sessions of ``sessions``."""

    def __init__(self, sessions: InMemorySessionRepo) -> None:
        self._sessions = sessions

    async def sessions_of(
        self, owner: Owner, *, shopper: str | None, limit: int, after: Position | None
    ) -> list[GenerationSession]:
        del shopper  # Sessions in memory have no shopper.
        return await self._sessions.history(owner, status=None, limit=limit, after=after)

    async def erase(self, session_ids: Sequence[UUID], *, with_shopper: bool = False) -> int:
        del with_shopper
        return sum(map(self._sessions.erase, dict.fromkeys(session_ids)))

    async def forget_shoppers(self, owner: Owner, *, shopper: str | None, limit: int) -> int:
        del owner, shopper, limit
        return 0  # There are none in memory.
