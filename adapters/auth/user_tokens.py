"""Users' tokens: JSON Web Tokens (RFC 7519) that another service issues."""

from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

import jwt

from adapters.auth.bearer import Verified
from domain.callers import Caller
from domain.credits import Channel, Owner
from domain.errors import Unauthenticated

_ALGORITHM = "HS256"
MAX_TOKEN_LENGTH = 8_192


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


class UserTokens:
    """Verifies users' tokens, which may be used from the web pages of ``origins``, or from all."""

    def __init__(
        self,
        rules: JwtRules,
        *,
        origins: frozenset[str] = frozenset(),
        any_origin: bool = False,
    ) -> None:
        self._rules = rules
        self._origins = origins
        self._any_origin = any_origin

    async def __call__(self, token: str) -> Verified:
        """Raises ``Unauthenticated``."""
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
            owner = Owner(channel=Channel.B2C, id=str(UUID(claims["sub"])))
        except jwt.ExpiredSignatureError as error:
            raise Unauthenticated("The token has expired") from error
        except (jwt.PyJWTError, ValueError) as error:
            raise Unauthenticated("The token is not valid") from error
        return Verified(Caller(owner=owner, origins=self._origins, any_origin=self._any_origin))
