"""Authentication by bearer token: a user's JWT (``b2c``) or a store's API key (``b2b``)."""

import hashlib
import re
import secrets
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from time import monotonic
from uuid import UUID

import jwt

from domain.credits import Channel, Owner
from domain.errors import InvalidApiKey, Unauthenticated
from domain.ports import ApiKeyRepoPort

API_KEY_PREFIX = "wk_"
_API_KEY = re.compile(r"wk_[0-9a-f]{32}")
_ALGORITHM = "HS256"
MAX_TOKEN_LENGTH = 8_192
MAX_CACHED = 10_000


def new_api_key() -> str:
    """A new API key: ``wk_`` and 32 hex digits (128 random bits)."""
    return API_KEY_PREFIX + secrets.token_hex(16)


def key_sha256(api_key: str) -> str:
    """The stored form of an API key. A plain hash is enough because the key is long and random."""
    return hashlib.sha256(api_key.encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRules:
    """What a user's token must match. Key and algorithm come from here, never from the token."""

    secret: str = field(repr=False)
    issuer: str
    audience: str
    leeway: timedelta = timedelta(seconds=30)


def mint_user_token(user_id: UUID, *, rules: JwtRules, now: datetime, lifetime: timedelta) -> str:
    """A token for ``user_id``, for development. In production, another service issues tokens."""
    claims = {
        "sub": str(user_id),
        "iss": rules.issuer,
        "aud": rules.audience,
        "iat": now,
        "exp": now + lifetime,
    }
    return jwt.encode(claims, rules.secret, algorithm=_ALGORITHM)


class BearerAuthenticator:
    """The owner of a token, cached for ``cache_seconds``: a revoked key or an expired token keeps
    working for at most this long. Rejections are not cached."""

    def __init__(
        self,
        *,
        keys: ApiKeyRepoPort,
        rules: JwtRules,
        cache_seconds: float = 0.0,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self._keys = keys
        self._rules = rules
        self._cache_seconds = cache_seconds
        self._clock = clock
        # By the hash of the token, ordered by expiry.
        self._cache: dict[bytes, tuple[Owner, float]] = {}

    async def __call__(self, token: str) -> Owner:
        """Raises ``InvalidApiKey``, ``Unauthenticated`` and ``DatabaseUnavailable``."""
        digest = hashlib.sha256(token.encode(errors="surrogatepass")).digest()
        owner, expires_at = self._cache.get(digest, (None, 0.0))
        if owner is not None and self._clock() < expires_at:
            return owner
        looked_up_at = self._clock()
        if token.startswith(API_KEY_PREFIX):
            owner = await self._store(token)
        else:
            owner = self._user(token)
        self._add_to_cache(digest, owner, looked_up_at + self._cache_seconds)
        return owner

    def _add_to_cache(self, digest: bytes, owner: Owner, expires_at: float) -> None:
        self._cache.pop(digest, None)
        if len(self._cache) >= MAX_CACHED:
            del self._cache[next(iter(self._cache))]
        self._cache[digest] = (owner, expires_at)

    async def _store(self, api_key: str) -> Owner:
        owner = None
        if _API_KEY.fullmatch(api_key):
            owner = await self._keys.owner_of(key_sha256(api_key))
        if owner is None:
            raise InvalidApiKey("The API key is not valid")
        return owner

    def _user(self, token: str) -> Owner:
        if len(token) > MAX_TOKEN_LENGTH:
            raise Unauthenticated("The token is not valid")
        try:
            claims = jwt.decode(
                token,
                self._rules.secret,
                algorithms=[_ALGORITHM],
                audience=self._rules.audience,
                issuer=self._rules.issuer,
                leeway=self._rules.leeway,
                options={"require": ["exp", "sub", "aud", "iss"]},
            )
            return Owner(channel=Channel.B2C, id=str(UUID(claims["sub"])))
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("The token has expired") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthenticated("The token is not valid") from error
