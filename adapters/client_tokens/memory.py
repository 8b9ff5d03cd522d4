"""Client tokens in this process's memory, for tests and development."""

from collections.abc import Callable, Collection
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

from domain.client_tokens import ClientToken, ClientTokenRepoPort
from domain.credits import Owner
from domain.errors import InvalidInput, TooManyTokens, Unauthenticated


class InMemoryClientTokenRepo(ClientTokenRepoPort):
    """``clock`` stands for the database's clock. ``origins_of`` returns the origins of a store,
    by its id, and none for an unknown store. ``may_refund`` says whether a session may still be
    refunded to a token; the session repository sets it."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        origins_of: Callable[[str], Collection[str]],
    ) -> None:
        self._clock = clock
        self._origins_of = origins_of
        self._tokens: dict[UUID, ClientToken] = {}
        self.may_refund: Callable[[UUID], bool] = lambda _: False

    async def add(self, token: ClientToken, *, max_live: int) -> None:
        if token.origin not in self._origins_of(token.store.id):
            raise InvalidInput("origin", "must be one of the store's origins")
        if len(self._live(token.store, token.shopper_id)) >= max_live:
            raise TooManyTokens(f"The shopper has {max_live} live client tokens")
        self._tokens[token.id] = token

    async def find(self, token_sha256: str) -> ClientToken | None:
        for token in self._tokens.values():
            if token.token_sha256 == token_sha256 and token.revoked_at is None:
                return token if token.origin in self._origins_of(token.store.id) else None
        return None

    async def get(self, token_id: UUID) -> ClientToken | None:
        return self._tokens.get(token_id)

    async def live(self, store: Owner, *, shopper_id: str | None, limit: int) -> list[ClientToken]:
        found = self._live(store, shopper_id)
        return sorted(found, key=lambda token: (token.created_at, token.id), reverse=True)[:limit]

    async def revoke(self, token_id: UUID, store: Owner | None) -> bool:
        token = self._tokens.get(token_id)
        if token is None or store not in {None, token.store}:
            return False
        if token.revoked_at is None:
            self._tokens[token_id] = replace(token, revoked_at=self._clock())
        return True

    async def purge(self, *, expired_for: timedelta, limit: int) -> int:
        before = self._clock() - expired_for
        expired = [
            token
            for token in self._tokens.values()
            if token.expires_at < before and not self.may_refund(token.id)
        ]
        expired.sort(key=lambda token: token.expires_at)
        for token in expired[:limit]:
            del self._tokens[token.id]
        return min(limit, len(expired))

    def take(self, token_id: UUID) -> int:
        """Count a submission and its picture. Returns how many pictures are left. Raises
        ``Unauthenticated`` and ``TokenUsedUp``."""
        token = self._tokens.get(token_id)
        if token is None:
            raise Unauthenticated("The client token has expired or was revoked")
        token.require_picture(self._clock())
        taken = replace(token, used=token.used + 1, submissions=token.submissions + 1)
        self._tokens[token_id] = taken
        return taken.pictures_left

    def give_back(self, token_id: UUID) -> None:
        """Give the picture of a refunded session back, but not the submission."""
        token = self._tokens.get(token_id)
        if token is not None:
            self._tokens[token_id] = replace(token, used=token.used - 1)

    def _live(self, store: Owner, shopper_id: str | None) -> list[ClientToken]:
        now = self._clock()
        return [
            token
            for token in self._tokens.values()
            if token.store == store
            and shopper_id in {None, token.shopper_id}
            and token.is_live(now)
        ]
