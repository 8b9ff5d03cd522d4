"""Client tokens: with one, a shopper's browser may request a few pictures. The store pays for them.

A store's server creates the token. It is bound to one shopper, one origin, a lifetime and a number
of pictures. The debit of a session counts the picture, and the refund gives it back.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from domain.credits import Owner
from domain.errors import InvalidInput, NotFound, Suspended, TokenUsedUp, Unauthenticated
from domain.plans import SUBMISSIONS_PER_PICTURE
from domain.ports import CreditRepoPort, SessionReadPort, SessionStats

MAX_PICTURES = 1_000
MIN_LIFETIME = timedelta(minutes=1)
MAX_LIFETIME = timedelta(hours=1)
MAX_LIVE = 100
"""The most tokens that one shopper can have at a time."""

SHOPPER_ID = r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}"
"""Like an owner's id: it goes into log lines. No e-mail address fits."""

_SHOPPER_ID = re.compile(SHOPPER_ID)


def check_shopper_id(shopper_id: str) -> None:
    """Raises ``InvalidInput`` unless it may be the id of a shopper."""
    if not _SHOPPER_ID.fullmatch(shopper_id):
        raise InvalidInput(
            "shopper_id",
            "must be 1 to 128 of A-Z a-z 0-9 . _ : - and begin with one of A-Z a-z 0-9",
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class ClientToken:
    """A client token. Only its SHA-256 (hex) is kept, never the token itself.

    ``used`` counts the pictures: a debit takes one, a refund gives it back. ``submissions`` shrinks
    only when a creation is undone.
    """

    id: UUID
    store: Owner
    shopper_id: str
    token_sha256: str = field(repr=False)
    origin: str
    pictures: int
    created_at: datetime
    expires_at: datetime
    used: int = 0
    submissions: int = 0
    revoked_at: datetime | None = None

    @property
    def pictures_left(self) -> int:
        """How many more pictures it allows, were none refunded."""
        return min(self.pictures - self.used, self._submissions_left)

    @property
    def _submissions_left(self) -> int:
        return SUBMISSIONS_PER_PICTURE * self.pictures - self.submissions

    def is_live(self, now: datetime) -> bool:
        """Neither expired nor revoked."""
        return self.revoked_at is None and now < self.expires_at

    def require_picture(self, now: datetime) -> None:
        """Raises ``Unauthenticated`` unless it is live, and ``TokenUsedUp``."""
        if not self.is_live(now):
            raise Unauthenticated("The client token has expired or was revoked")
        if self.pictures_left < 1:
            raise TokenUsedUp("The client token allows no further pictures")


class ClientTokenRepoPort(Protocol):
    """Client tokens. Raises ``DatabaseUnavailable``."""

    async def add(self, token: ClientToken, *, max_live: int) -> None:
        """Add a new token. Raises, and changes nothing: ``InvalidInput`` unless the store exists
        and names the token's origin; ``TooManyTokens`` if the shopper has ``max_live`` live tokens,
        where concurrent calls count each other."""

    async def find(self, token_sha256: str) -> ClientToken | None:
        """The token with this hash, which may have expired. None if it is unknown or revoked, or if
        its store no longer names its origin."""

    async def get(self, token_id: UUID) -> ClientToken | None:
        """The token in its current state, or None."""

    async def live(self, store: Owner, *, shopper_id: str | None, limit: int) -> list[ClientToken]:
        """The tokens of a shopper, or of all shoppers of the store, that are neither expired nor
        revoked; newest first."""

    async def revoke(self, token_id: UUID, store: Owner | None) -> bool:
        """Revoke the token; a revoked one stays as it is. False if the store has no such token. A
        ``store`` of None means the operator, who sees every token."""

    async def purge(self, *, expired_for: timedelta, limit: int) -> int:
        """Delete tokens that expired at least ``expired_for`` ago, the oldest first, and shoppers
        who got no token for that long and have none left. Tokens stay while a session may still be
        refunded to them. Returns the number of tokens."""


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedToken:
    """A new client token. ``secret`` is the token itself, which is not stored."""

    secret: str = field(repr=False)
    token: ClientToken


@dataclass(frozen=True, slots=True, kw_only=True)
class ShopperSummary:
    """What a store's shopper has requested, and what its live tokens still allow."""

    sessions: SessionStats
    live_tokens: int
    pictures_left: int


class ClientTokens:
    """Issues, lists and revokes a store's client tokens. ``hash_secret`` is applied before a token
    is stored."""

    def __init__(
        self,
        *,
        tokens: ClientTokenRepoPort,
        accounts: CreditRepoPort,
        reads: SessionReadPort,
        new_secret: Callable[[], str],
        hash_secret: Callable[[str], str],
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._tokens = tokens
        self._accounts = accounts
        self._reads = reads
        self._new_secret = new_secret
        self._hash_secret = hash_secret
        self._new_id = new_id
        self._clock = clock

    async def issue(
        self, store: Owner, *, shopper_id: str, origin: str, lifetime: timedelta, pictures: int
    ) -> IssuedToken:
        """A new token for a shopper of ``store``. Raises ``InvalidInput``, which names the
        field, ``Suspended`` and ``TooManyTokens``."""
        check_shopper_id(shopper_id)
        if not MIN_LIFETIME <= lifetime <= MAX_LIFETIME:
            raise InvalidInput("lifetime_seconds", "must be 60 to 3600")
        if not 1 <= pictures <= MAX_PICTURES:
            raise InvalidInput("pictures", f"must be 1 to {MAX_PICTURES}")
        if (await self._accounts.account(store)).suspended:
            raise Suspended("The account is suspended")
        secret, now = self._new_secret(), self._clock()
        token = ClientToken(
            id=self._new_id(),
            store=store,
            shopper_id=shopper_id,
            token_sha256=self._hash_secret(secret),
            origin=origin,
            pictures=pictures,
            created_at=now,
            expires_at=now + lifetime,
        )
        await self._tokens.add(token, max_live=MAX_LIVE)
        return IssuedToken(secret=secret, token=token)

    async def live(self, store: Owner, shopper_id: str) -> list[ClientToken]:
        """The shopper's live tokens, newest first. Raises ``InvalidInput``."""
        check_shopper_id(shopper_id)
        return await self._tokens.live(store, shopper_id=shopper_id, limit=MAX_LIVE)

    async def revoke(self, token_id: UUID, store: Owner) -> None:
        """Revoke a token of the store, once or again. Raises ``NotFound``."""
        if not await self._tokens.revoke(token_id, store):
            raise NotFound("No such client token")

    async def summary(self, store: Owner, shopper_id: str) -> ShopperSummary:
        """The shopper's numbers; of an unknown one, zeros. Raises ``InvalidInput``."""
        live = await self.live(store, shopper_id)
        return ShopperSummary(
            sessions=await self._reads.stats(store, shopper_id=shopper_id),
            live_tokens=len(live),
            pictures_left=sum(token.pictures_left for token in live),
        )
