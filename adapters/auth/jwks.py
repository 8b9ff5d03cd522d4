"""JSON Web Key Sets (RFC 7517): the public keys of an identity provider, which signs users' tokens.

Key and algorithm come from the set, never from a token: the type of a key fixes its algorithm.
"""

from collections.abc import Collection, Iterator
from dataclasses import dataclass, field
from typing import NamedTuple

import jwt
import msgspec
from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.rsa import RSAPublicKey
from jwt.algorithms import (
    AllowedPublicKeys,
    ECAlgorithm,
    OKPAlgorithm,
    RSAAlgorithm,
)

MAX_KEYS = 20
RSA_BITS = range(2_048, 8_193)

_MAX_KID_LENGTH = 256
_SHOWN_LENGTH = 40


class InvalidKeySet(Exception):
    """The text is not a key set; ``str(error)`` says why, without any of its values."""


@dataclass(frozen=True, slots=True)
class SigningKey:
    """A public key and its one algorithm. Two are equal if they have the same id and numbers."""

    kid: str | None
    algorithm: str
    numbers: tuple[str, ...] = field(repr=False)
    public: AllowedPublicKeys = field(compare=False, repr=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class KeySet:
    """The usable keys, and a sentence for each key that is not usable."""

    keys: tuple[SigningKey, ...] = ()
    ignored: tuple[str, ...] = ()

    def find(self, *, kid: str | None, algorithm: str) -> SigningKey | None:
        """The key with this id, whatever its algorithm. Without an id, the only key for
        ``algorithm``; None if there are several."""
        if kid is not None:
            return next((key for key in self.keys if key.kid == kid), None)
        fitting = [key for key in self.keys if key.algorithm == algorithm]
        return fitting[0] if len(fitting) == 1 else None


class _Jwk(msgspec.Struct, frozen=True, kw_only=True):
    """The members that we read. Private ones are never read."""

    kty: str
    kid: str | None = None
    use: str | None = None
    key_ops: list[str] | None = None
    alg: str | None = None
    crv: str | None = None
    x: str | None = None
    y: str | None = None
    n: str | None = None
    e: str | None = None


class _Jwks(msgspec.Struct, frozen=True):
    keys: list[msgspec.Raw]


class _Kind(NamedTuple):
    algorithm: str
    reader: type[ECAlgorithm | RSAAlgorithm | OKPAlgorithm]
    numbers: tuple[str, ...]


_KINDS = {
    ("EC", "P-256"): _Kind("ES256", ECAlgorithm, ("x", "y")),
    ("RSA", None): _Kind("RS256", RSAAlgorithm, ("n", "e")),
    ("OKP", "Ed25519"): _Kind("EdDSA", OKPAlgorithm, ("x",)),
}
PUBLIC_KEY_ALGORITHMS = tuple(kind.algorithm for kind in _KINDS.values())
_SET = msgspec.json.Decoder(_Jwks)
_KEY = msgspec.json.Decoder(_Jwk)


class _Unusable(Exception):
    """``str(error)`` says why we ignore a key."""


def parse_key_set(text: bytes, *, algorithms: Collection[str]) -> KeySet:
    """The keys for ``algorithms``. A key that we cannot use is ignored, so that a provider may add
    new kinds. Raises ``InvalidKeySet`` if the text is no key set."""
    try:
        entries = _SET.decode(text).keys
    except (msgspec.DecodeError, RecursionError) as error:
        raise InvalidKeySet(f"not a key set: {error}") from None
    keys: list[SigningKey] = []
    ignored = list(_too_many(len(entries)))
    for number, entry in enumerate(entries[:MAX_KEYS], start=1):
        try:
            keys.append(_checked(_key(entry, algorithms), keys))
        except _Unusable as reason:
            ignored.append(f"key {number}: {reason}")
    return KeySet(keys=tuple(keys), ignored=tuple(ignored))


def _too_many(count: int) -> Iterator[str]:
    if count > MAX_KEYS:
        yield f"{count - MAX_KEYS} keys after the first {MAX_KEYS}"


def _checked(key: SigningKey, earlier: list[SigningKey]) -> SigningKey:
    """Of keys with the same id, only the first is used."""
    if key.kid is not None and any(key.kid == other.kid for other in earlier):
        raise _Unusable("an earlier key has its kid")
    return key


def _key(entry: msgspec.Raw, algorithms: Collection[str]) -> SigningKey:
    try:
        jwk = _KEY.decode(entry)
    except (msgspec.DecodeError, RecursionError) as error:
        raise _Unusable(str(error)) from None
    kind = _kind(jwk)
    if kind.algorithm not in algorithms:
        raise _Unusable(f"{kind.algorithm} is not an accepted algorithm")
    if jwk.kid is not None and len(jwk.kid) > _MAX_KID_LENGTH:
        raise _Unusable("its kid is too long")
    public = _public_key(jwk, kind)
    return SigningKey(jwk.kid, kind.algorithm, _numbers(jwk, kind), public)


def _kind(jwk: _Jwk) -> _Kind:
    if (jwk.use or "sig") != "sig":
        raise _Unusable("it is not for signatures (use)")
    if "verify" not in (jwk.key_ops or ["verify"]):
        raise _Unusable("it is not for verification (key_ops)")
    kind = _KINDS.get((jwk.kty, jwk.crv))
    if kind is None:
        raise _Unusable(f"its type is not supported: {_type_name(jwk)}")
    if (jwk.alg or kind.algorithm) != kind.algorithm:
        raise _Unusable("its algorithm (alg) is not that of its type")
    return kind


def _type_name(jwk: _Jwk) -> str:
    return f"{jwk.kty} {jwk.crv or ''}"[:_SHOWN_LENGTH].rstrip()


def _numbers(jwk: _Jwk, kind: _Kind) -> tuple[str, ...]:
    return tuple(getattr(jwk, name) or "" for name in kind.numbers)


def _public_key(jwk: _Jwk, kind: _Kind) -> AllowedPublicKeys:
    members = dict(zip(kind.numbers, _numbers(jwk, kind), strict=True))
    try:
        public = kind.reader.from_jwk(
            {"kty": jwk.kty, **({"crv": jwk.crv} if jwk.crv else {}), **members}
        )
    except (jwt.PyJWTError, ValueError, UnsupportedAlgorithm):
        raise _Unusable("its numbers are not valid") from None
    if isinstance(public, RSAPublicKey) and public.key_size not in RSA_BITS:
        raise _Unusable(f"RSA keys must have {RSA_BITS.start} to {RSA_BITS.stop - 1} bits")
    return public  # type: ignore[return-value]  # no private member was read
