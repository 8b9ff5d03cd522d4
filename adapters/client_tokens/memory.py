"""Client tokens in this process's memory, for tests and development."""

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from domain.client_tokens import ClientToken, ClientTokenRepoPort
from domain.credits import Owner
from domain.errors import InvalidInput, TooManyTokens
from domain.plans import TokenBudget


class InMemoryClientTokenRepo(ClientTokenRepoPort):
    """``clock`` stands for the database's clock. ``origins_of`` returns the origins of a store,
    by its id, and none for an unknown store. ``budgets`` are what the debits and refunds of the
    session repository count, by the ids of the tokens. ``may_refund`` says whether a session may
    still be refunded to a token."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        origins_of: Callable[[str], Collection[str]],
        budgets: dict[UUID, TokenBudget],
        may_refund: Callable[[UUID], bool] = lambda _: False,
    ) -> None:
        self._clock = clock
        self._origins_of = origins_of
        self._budgets = budgets
        self._may_refund = may_refund
        self._tokens: dict[UUID, ClientToken] = {}

    async def add(self, token: ClientToken, *, max_live: int) -> None:
        if token.origin not in self._origins_of(token.store.id):
            raise InvalidInput("origin", "must be one of the store's origins")
        if len(self._live(token.store, token.shopper_id)) >= max_live:
            raise TooManyTokens(f"The shopper has {max_live} live client tokens")
        self._tokens[token.id] = token
        self._budgets[token.id] = TokenBudget(
            store_id=token.store.id,
            shopper_id=token.shopper_id,
            pictures=token.pictures,
            expires_at=token.expires_at,
        )

    async def find(self, token_sha256: str) -> ClientToken | None:
        for token in self._current():
            if token.token_sha256 == token_sha256 and token.revoked_at is None:
                return token if token.origin in self._origins_of(token.store.id) else None
        return None

    async def get(self, token_id: UUID) -> ClientToken | None:
        return next((token for token in self._current() if token.id == token_id), None)

    async def live(self, store: Owner, *, shopper_id: str | None, limit: int) -> list[ClientToken]:
        found = self._live(store, shopper_id)
        return sorted(found, key=lambda token: (token.created_at, token.id), reverse=True)[:limit]

    async def revoke(self, token_id: UUID, store: Owner | None) -> bool:
        token = await self.get(token_id)
        if token is None or store not in {None, token.store}:
            return False
        if token.revoked_at is None:
            budget = self._budgets[token_id]
            self._budgets[token_id] = replace(budget, revoked_at=self._clock())
        return True

    async def purge(self, *, expired_for: timedelta, limit: int) -> int:
        before = self._clock() - expired_for
        expired = [
            token
            for token in self._current()
            if token.expires_at < before and not self._may_refund(token.id)
        ]
        expired.sort(key=lambda token: token.expires_at)
        for token in expired[:limit]:
            del self._tokens[token.id], self._budgets[token.id]
        return min(limit, len(expired))

    def _live(self, store: Owner, shopper_id: str | None) -> list[ClientToken]:
        now = self._clock()
        return [
            token
            for token in self._current()
            if token.store == store
            and shopper_id in {None, token.shopper_id}
            and token.is_live(now)
        ]

    def _current(self) -> list[ClientToken]:
        return [_counted(token, self._budgets[token.id]) for token in self._tokens.values()]


def _counted(token: ClientToken, budget: TokenBudget) -> ClientToken:
    return replace(
        token,
        used=budget.used,
        submissions=budget.submissions,
        revoked_at=budget.revoked_at,
        expires_at=budget.expires_at,
    )
