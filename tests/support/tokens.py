"""Users' tokens and key sets, signed by hand, so that they can be what no library would issue."""

import base64
import hmac
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import cache
from typing import Any

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, padding, rsa
from cryptography.hazmat.primitives.asymmetric.utils import decode_dss_signature
from cryptography.hazmat.primitives.hashes import SHA256, SHA384
from jwt.algorithms import ECAlgorithm, OKPAlgorithm, RSAAlgorithm

from adapters.auth.claims import JwtRules
from adapters.auth.jwks_client import Fetched, FetchFailed
from tests.support.examples import USER

NOW = datetime(2026, 1, 1, tzinfo=UTC)
SECRET = "the secret of HS256 in tests: 0123456789"
PREVIOUS_SECRET = "the secret of HS256 before: 9876543210"
RULES = JwtRules(
    secret=SECRET, previous_secret=PREVIOUS_SECRET, issuer="https://id/auth/v1", audience="them"
)
ALGORITHMS = ("ES256", "RS256", "EdDSA")

Sign = Callable[[bytes], bytes]


@dataclass(frozen=True, slots=True)
class Pair:
    """A key pair: how it signs, its public JWK, and its public key as PEM."""

    sign: Sign
    jwk: dict[str, Any]
    pem: str

    def named(self, kid: str | None, **changes: Any) -> dict[str, Any]:
        """The JWK in a set; ``None`` omits a member."""
        members = {"kid": kid, "use": "sig"} | self.jwk | changes
        return {name: value for name, value in members.items() if value is not None}


def seconds(offset: float = 0) -> int:
    """``NOW`` and ``offset`` in a token's format: seconds since 1970."""
    return int(NOW.timestamp() + offset)


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a valid token at ``NOW``, with changes; ``...`` omits a claim."""
    good = {"sub": USER.id, "iss": RULES.issuer, "aud": RULES.audience, "exp": seconds(3_600)}
    return {name: value for name, value in (good | changes).items() if value is not ...}


def token(payload: object, header: object, sign: Sign) -> str:
    """Bytes are used unchanged, anything else as JSON."""
    parts = [part if isinstance(part, bytes) else _json(part) for part in (header, payload)]
    signed = ".".join(base64url(part) for part in parts)
    return f"{signed}.{base64url(sign(signed.encode()))}"


def by_secret(secret: str, digest: str = "sha256") -> Sign:
    return lambda signed: hmac.digest(secret.encode(), signed, digest)


def hs256(secret: str = SECRET, *, header: Mapping[str, Any] | None = None, **changes: Any) -> str:
    """A token that ``secret`` signs; ``header`` changes its header."""
    return token(claims(**changes), {"alg": "HS256", **(header or {})}, by_secret(secret))


@cache
def es256(name: str) -> Pair:
    """A P-256 key pair; the same for the same name."""
    return _elliptic(ec.SECP256R1(), name)


@cache
def es384(name: str) -> Pair:
    return _elliptic(ec.SECP384R1(), name)


@cache
def rs256(name: str, bits: int = 2_048) -> Pair:
    del name
    key = rsa.generate_private_key(65_537, bits)
    jwk = RSAAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return Pair(
        lambda signed: key.sign(signed, padding.PKCS1v15(), SHA256()), _plain(jwk), _pem(key)
    )


@cache
def ed25519_pair(name: str) -> Pair:
    del name
    return _edwards(ed25519.Ed25519PrivateKey.generate())


@cache
def ed448_pair(name: str) -> Pair:
    del name
    return _edwards(ed448.Ed448PrivateKey.generate())


def _elliptic(curve: ec.EllipticCurve, name: str) -> Pair:
    del name
    key = ec.generate_private_key(curve)
    digest = SHA256() if curve.key_size == 256 else SHA384()
    length = curve.key_size // 8

    def sign(signed: bytes) -> bytes:
        numbers = decode_dss_signature(key.sign(signed, ec.ECDSA(digest)))
        return b"".join(number.to_bytes(length, "big") for number in numbers)

    return Pair(sign, _plain(ECAlgorithm.to_jwk(key.public_key(), as_dict=True)), _pem(key))


def _edwards(key: ed25519.Ed25519PrivateKey | ed448.Ed448PrivateKey) -> Pair:
    jwk = OKPAlgorithm.to_jwk(key.public_key(), as_dict=True)
    return Pair(key.sign, _plain(jwk), _pem(key))


def _plain(jwk: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in jwk.items() if name not in {"key_ops", "kid", "use"}}


def _pem(key: Any) -> str:
    pem: bytes = key.public_key().public_bytes(
        serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return pem.decode()


def key_set(*keys: object) -> bytes:
    return _json({"keys": keys})


class FakeProvider:
    """An identity provider: the text of its key set, or why it cannot be fetched."""

    def __init__(self, *keys: object) -> None:
        self.body = key_set(*keys)
        self.max_age: int | None = None
        self.problem: str | None = None
        self.fetches = 0

    def publish(self, *keys: object) -> None:
        self.body = key_set(*keys)

    async def __call__(self) -> Fetched:
        self.fetches += 1
        if self.problem is not None:
            raise FetchFailed(self.problem)
        return Fetched(self.body, self.max_age)


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")
