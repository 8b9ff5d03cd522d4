"""Users' tokens: JSON Web Tokens (RFC 7519) that another service issues."""

from binascii import Error as InvalidBase64
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from uuid import UUID

import jwt
import msgspec
from jwt.algorithms import AllowedPublicKeys
from jwt.utils import base64url_decode

from adapters.auth.bearer import Verified
from adapters.auth.claims import Fault, JwtRules, TokenRejected, UserClaims, checked_claims
from adapters.auth.jwks import PUBLIC_KEY_ALGORITHMS, SigningKey
from adapters.auth.user_keys import UserKeys
from domain.callers import Caller
from domain.credits import Channel, Owner
from domain.errors import Unauthenticated

_HMAC = "HS256"
_JWS = jwt.PyJWS([_HMAC, *PUBLIC_KEY_ALGORITHMS])
MAX_TOKEN_LENGTH = 8_192


class _Header(msgspec.Struct, frozen=True):
    """What we read of a token's header, to find its key. A key in the header, or a link to one, is
    never used."""

    alg: str
    kid: str | None = None
    crit: msgspec.Raw | msgspec.UnsetType = msgspec.UNSET


_HEADER = msgspec.json.Decoder(_Header)


def mint_user_token(user_id: UUID, *, rules: JwtRules, now: datetime, lifetime: timedelta) -> str:
    """A token for ``user_id``, for development. In production, another service issues tokens.
    Raises ``ValueError`` without a secret."""
    if rules.secret is None:
        raise ValueError("only a token that the HS256 secret signs can be issued here")
    claims = {
        "sub": str(user_id),
        "iss": rules.issuer,
        "aud": rules.audience,
        "iat": now,
        "exp": now + lifetime,
    }
    return jwt.encode(claims, rules.secret, algorithm=_HMAC)


def _utc_now() -> datetime:
    return datetime.now(UTC)


class UserTokens:
    """Verifies users' tokens: with ``keys`` if a key pair signed them, and with the secrets of
    ``rules`` if the algorithm is HS256. ``exact`` messages are for development."""

    def __init__(
        self,
        rules: JwtRules,
        *,
        keys: UserKeys | None = None,
        exact: bool = False,
        clock: Callable[[], datetime] = _utc_now,
    ) -> None:
        self._rules = rules
        self._keys = keys
        self._exact = exact
        self._clock = clock
        self._secrets = [each for each in (rules.secret, rules.previous_secret) if each]

    async def __call__(self, token: str) -> Verified:
        """Raises ``Unauthenticated``, and ``UserKeysUnavailable`` if the token's key may be one
        that could not be fetched."""
        try:
            payload, key = await self._opened(token)
            claims = checked_claims(payload, self._rules, now=self._clock().timestamp())
        except TokenRejected as rejected:
            message = str(rejected) if self._exact else rejected.fault.value
            raise Unauthenticated(message) from None
        caller = Caller(
            owner=Owner(channel=Channel.B2C, id=claims.user_id),
            any_origin=True,
            is_anonymous=claims.is_anonymous,
        )
        return Verified(caller, partial(self._is_valid, claims, key))

    def _is_valid(self, claims: UserClaims, key: SigningKey | None) -> bool:
        """Whether a token that was accepted would be accepted again."""
        if self._clock().timestamp() >= claims.expires_at:
            return False
        return key is None or (self._keys is not None and self._keys.holds(key))

    async def _opened(self, token: str) -> tuple[bytes, SigningKey | None]:
        """The payload, and the key whose signature it has; None is a secret."""
        header = _header(token)
        if header.alg == _HMAC and self._secrets:
            return self._opened_with_secret(token), None
        if self._keys is None or header.alg not in self._keys.algorithms:
            raise TokenRejected(Fault.ALGORITHM, f"alg: must be {self._accepted()}")
        key = await self._keys.find(kid=header.kid, algorithm=header.alg)
        if key is None:
            raise TokenRejected(
                Fault.KEY, "kid: must name a key of the JWKS, unless only one has the token's alg"
            )
        return _payload(token, key.public, key.algorithm), key

    def _opened_with_secret(self, token: str) -> bytes:
        *others, last = self._secrets
        for secret in others:
            try:
                return _payload(token, secret, _HMAC)
            except TokenRejected as rejected:
                if rejected.fault is not Fault.SIGNATURE:
                    raise
        return _payload(token, last, _HMAC)

    def _accepted(self) -> str:
        names = [_HMAC] if self._secrets else []
        if self._keys is not None:
            names += self._keys.algorithms
        return " or ".join(names)


def _header(token: str) -> _Header:
    """Raises ``TokenRejected``."""
    if len(token) > MAX_TOKEN_LENGTH:
        raise TokenRejected(Fault.FORM, f"token: is longer than {MAX_TOKEN_LENGTH} characters")
    try:
        header = _HEADER.decode(base64url_decode(token.partition(".")[0]))
    except msgspec.ValidationError as error:  # names the member and its type, and no value
        raise TokenRejected(Fault.FORM, f"header: {error}") from None
    except (msgspec.DecodeError, InvalidBase64, ValueError, RecursionError):
        raise TokenRejected(Fault.FORM, "token: must be a signed JSON Web Token") from None
    if header.crit is not msgspec.UNSET:
        raise TokenRejected(Fault.FORM, "crit: is not supported")
    return header


def _payload(token: str, key: AllowedPublicKeys | str, algorithm: str) -> bytes:
    """Raises ``TokenRejected``."""
    try:
        payload: bytes = _JWS.decode_complete(token, key, algorithms=[algorithm])["payload"]
    except jwt.InvalidAlgorithmError:
        raise TokenRejected(Fault.ALGORITHM, f"alg: must be {algorithm}, as of its key") from None
    except (jwt.InvalidSignatureError, jwt.InvalidKeyError):
        raise TokenRejected(Fault.SIGNATURE, "signature: does not match the key") from None
    except (jwt.PyJWTError, ValueError):
        raise TokenRejected(Fault.FORM, "token: must be a signed JSON Web Token") from None
    return payload
