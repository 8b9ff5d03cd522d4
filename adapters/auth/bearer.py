"""Authentication by bearer token: what a token stands for, cached."""

import hashlib
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from time import monotonic
from typing import TypeAlias

from domain.callers import Principal

MAX_CACHED = 10_000


def _always() -> bool:
    return True


@dataclass(frozen=True, slots=True)
class Verified:
    """What a credential stands for. The cache asks ``is_valid`` at every use: whether the
    credential is still within its lifetime, and its key still trusted."""

    principal: Principal
    is_valid: Callable[[], bool] = _always


Verify: TypeAlias = Callable[[str], Awaitable[Verified]]
"""Verifies a token. Raises ``Unauthenticated``, ``InvalidApiKey`` and ``DatabaseUnavailable``."""


class BearerAuthenticator:
    """The principal of a token. ``keys`` verify the tokens that begin with their prefix, ``users``
    all others.

    Results are cached for ``cache_seconds``: a revoked key keeps working for at most this long.
    Rejections are not cached.
    """

    def __init__(
        self,
        *,
        keys: Mapping[str, Verify],
        users: Verify,
        cache_seconds: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._keys = keys
        self._users = users
        self._cache_seconds = cache_seconds
        self._clock = clock
        # By the hash of the token, ordered by expiry.
        self._cache: dict[bytes, tuple[Verified, float]] = {}

    async def __call__(self, token: str) -> Principal:
        """Raises ``InvalidApiKey``, ``Unauthenticated`` and ``DatabaseUnavailable``."""
        if (principal := self.known(token)) is not None:
            return principal
        looked_up_at = self._clock()
        verified = await self._verifier(token)(token)
        self._add_to_cache(_digest(token), verified, looked_up_at + self._cache_seconds)
        return verified.principal

    def known(self, token: str) -> Principal | None:
        """The principal of a token that is cached and still valid."""
        verified, expires_at = self._cache.get(_digest(token), (None, 0.0))
        if verified is not None and self._clock() < expires_at and verified.is_valid():
            return verified.principal
        return None

    def _verifier(self, token: str) -> Verify:
        for prefix, verify in self._keys.items():
            if token.startswith(prefix):
                return verify
        return self._users

    def _add_to_cache(self, digest: bytes, verified: Verified, expires_at: float) -> None:
        self._cache.pop(digest, None)
        if len(self._cache) >= MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[digest] = (verified, expires_at)


def _digest(token: str) -> bytes:
    return hashlib.sha256(token.encode(errors="surrogatepass")).digest()
