"""Erasure in this process's memory, for tests."""

from collections.abc import Sequence
from uuid import UUID

from adapters.sessions.memory import InMemorySessionRepo
from domain.credits import Channel, Owner
from domain.erasure import ErasureRepoPort
from domain.ports import Position
from domain.sessions import GenerationSession

MAX_ROWS = 1_000_000


class InMemoryErasureRepo(ErasureRepoPort):
    """On the sessions and the client tokens of ``sessions``."""

    def __init__(self, sessions: InMemorySessionRepo) -> None:
        self._sessions = sessions

    async def sessions_of(
        self, owner: Owner, *, shopper: str | None, limit: int, after: Position | None
    ) -> list[GenerationSession]:
        found = await self._sessions.history(owner, status=None, limit=MAX_ROWS, after=after)
        return [session for session in found if _is_of(session, shopper)][:limit]

    async def erase(self, session_ids: Sequence[UUID], *, with_shopper: bool = False) -> int:
        erased = [
            self._sessions.erase(session_id, with_shopper=with_shopper)
            for session_id in dict.fromkeys(session_ids)
        ]
        return sum(erased)

    async def forget_shoppers(self, owner: Owner, *, shopper: str | None, limit: int) -> int:
        budgets = self._sessions.budgets
        ids = {
            budget.shopper_id
            for budget in budgets.values()
            if owner == Owner(channel=Channel.B2B, id=budget.store_id)
        }
        found = sorted(ids if shopper is None else ids & {shopper})[:limit]
        for token_id, budget in list(budgets.items()):
            if budget.store_id == owner.id and budget.shopper_id in found:
                del budgets[token_id]
        return len(found)


def _is_of(session: GenerationSession, shopper: str | None) -> bool:
    return shopper is None or (session.shopper is not None and session.shopper.id == shopper)
