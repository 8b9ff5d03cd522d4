"""What a user's token must claim, once its signature is checked."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import timedelta
from enum import StrEnum

import msgspec

_UUID = re.compile(r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}", re.IGNORECASE)
_LAST_SECOND = 253_402_300_799
"""Of the year 9999. A later time is in milliseconds, or a mistake."""

_CLAIMS = msgspec.json.Decoder(dict[str, object])


class Fault(StrEnum):
    """What is wrong with a token, as its sender may know it."""

    FORM = "The token is malformed"
    ALGORITHM = "The token's algorithm is not accepted"
    KEY = "The token's key is not known"
    SIGNATURE = "The token's signature is not valid"
    EXPIRED = "The token has expired"
    EARLY = "The token is not valid yet"
    TIMES = "The token's times are not valid"
    ROLE = "The token's role is not accepted"
    ISSUER = "The token's issuer is not accepted"
    AUDIENCE = "The token's audience is not accepted"
    SUBJECT = "The token's subject is not accepted"
    CLAIMS = "The token's claims are not valid"


class TokenRejected(Exception):
    """``str(error)`` says for developers what the token must have, and nothing of what it has."""

    def __init__(self, fault: Fault, exactly: str) -> None:
        super().__init__(exactly)
        self.fault = fault


@dataclass(frozen=True, slots=True, kw_only=True)
class JwtRules:
    """What a user's token must match. ``secret`` and ``previous_secret`` are for HS256; ``roles``
    are allowed if the token has a role."""

    secret: str | None = field(default=None, repr=False)
    previous_secret: str | None = field(default=None, repr=False)
    issuer: str
    audience: str
    roles: frozenset[str] = frozenset({"authenticated"})
    leeway: timedelta = timedelta(seconds=30)


@dataclass(frozen=True, slots=True, kw_only=True)
class UserClaims:
    """``expires_at`` is the last second (since 1970) of the token, with the leeway."""

    user_id: str
    expires_at: float
    is_anonymous: bool


def checked_claims(payload: bytes, rules: JwtRules, *, now: float) -> UserClaims:
    """The claims of a token at ``now``, in seconds since 1970. Raises ``TokenRejected``."""
    try:
        claims = _CLAIMS.decode(payload)
    except (msgspec.DecodeError, RecursionError):
        raise TokenRejected(Fault.FORM, "claims: must be a JSON object") from None
    leeway = rules.leeway.total_seconds()
    expires_at = _time(claims, "exp") + leeway
    if now >= expires_at:
        raise TokenRejected(Fault.EXPIRED, "exp: is in the past")
    for name in ("nbf", "iat"):
        if name in claims and _time(claims, name) > now + leeway:
            raise TokenRejected(Fault.EARLY, f"{name}: is in the future")
    _check_role(claims, rules)
    _check_issuer_and_audience(claims, rules)
    return UserClaims(
        user_id=_user_id(claims), expires_at=expires_at, is_anonymous=_is_anonymous(claims)
    )


def _time(claims: Mapping[str, object], name: str) -> float:
    if name not in claims:
        raise TokenRejected(Fault.TIMES, f"{name}: is required")
    value = claims[name]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 <= value <= _LAST_SECOND:  # type: ignore[operator]
        raise TokenRejected(Fault.TIMES, f"{name}: must be a number of seconds since 1970")
    return value  # type: ignore[return-value]


def _check_role(claims: Mapping[str, object], rules: JwtRules) -> None:
    role = claims.get("role")
    if "role" in claims and not (isinstance(role, str) and role in rules.roles):
        allowed = " or ".join(f"`{role}`" for role in sorted(rules.roles))
        raise TokenRejected(Fault.ROLE, f"role: must be {allowed}, or absent")


def _check_issuer_and_audience(claims: Mapping[str, object], rules: JwtRules) -> None:
    if claims.get("iss") != rules.issuer:
        raise TokenRejected(Fault.ISSUER, f"iss: must be `{rules.issuer}`")
    given = claims.get("aud")
    audiences = given if isinstance(given, list) else [given]
    if not all(isinstance(each, str) for each in audiences) or rules.audience not in audiences:
        raise TokenRejected(Fault.AUDIENCE, f"aud: must be or contain `{rules.audience}`")


def _user_id(claims: Mapping[str, object]) -> str:
    subject = claims.get("sub")
    if not isinstance(subject, str) or not _UUID.fullmatch(subject):
        raise TokenRejected(Fault.SUBJECT, "sub: must be the user's UUID")
    return subject.lower()


def _is_anonymous(claims: Mapping[str, object]) -> bool:
    value = claims.get("is_anonymous", False)
    if not isinstance(value, bool):
        raise TokenRejected(Fault.CLAIMS, "is_anonymous: must be true or false")
    return value
