"""The table of users' tokens: what the API answers to each, in production and in development."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric.utils import encode_dss_signature

from adapters.auth.claims import Fault
from adapters.auth.user_keys import KeyRules, UserKeys
from adapters.auth.user_tokens import MAX_TOKEN_LENGTH, UserTokens
from domain.callers import Caller
from domain.errors import Unauthenticated
from tests.support.examples import USER
from tests.support.http import Api
from tests.support.tokens import (
    ALGORITHMS,
    NOW,
    PREVIOUS_SECRET,
    RULES,
    SECRET,
    FakeProvider,
    Pair,
    Sign,
    base64url,
    by_secret,
    claims,
    ed448_pair,
    ed25519_pair,
    es256,
    es384,
    hs256,
    rs256,
    seconds,
    token,
)

pytestmark = pytest.mark.anyio

CREDITS = "/api/v1/credits"
ATTACKER = "the attacker's key, which is also long enough"
ES, OTHER_ES, RSA, ED = es256("es"), es256("other"), rs256("rsa"), ed25519_pair("ed")
SMALL_RSA, P384, ED448, STRANGER = rs256("small", 1_024), es384("p384"), ed448_pair("x"), es256("x")
PROVIDER = FakeProvider(
    ES.named("es"),
    OTHER_ES.named("other"),
    RSA.named("rsa", alg="RS256", key_ops=["verify"]),
    ED.named("ed"),
    SMALL_RSA.named("small"),
    P384.named("p384"),
    ED448.named("ed448"),
    STRANGER.named("es"),
    STRANGER.named("encrypts", use="enc"),
    STRANGER.named("wraps", key_ops=["wrapKey"]),
    RSA.named("ps256", alg="PS256"),
    {"kty": "oct", "kid": "oct", "k": base64url(ATTACKER.encode())},
    {"kty": "AKP", "kid": "post-quantum", "alg": "ML-DSA-44", "pub": "AAAA"},
)
"""The first four keys are usable."""


@dataclass(frozen=True, slots=True)
class Row:
    """A token, what is wrong with it (None: it is accepted), and that exactly."""

    token: str
    fault: Fault | None = None
    exactly: str = ""


def es(*, header: dict[str, Any] | None = None, pair: Pair = ES, **changes: Any) -> str:
    """A token of the key ``es``, with changes of header and claims; ``...`` omits a claim."""
    given = {"alg": "ES256", "kid": "es"} | (header or {})
    members = {name: value for name, value in given.items() if value is not ...}
    return token(claims(**changes), members, pair.sign)


def signed(pair: Pair, alg: str, kid: object, **header: Any) -> str:
    named = {} if kid is None else {"kid": kid}
    return token(claims(), {"alg": alg, **named, **header}, pair.sign)


def with_signature(change: Sign) -> str:
    """A token of the key ``es`` whose signature went through ``change``."""
    return token(claims(), {"alg": "ES256", "kid": "es"}, lambda text: change(ES.sign(text)))


def der(signature: bytes) -> bytes:
    r, s = (int.from_bytes(half, "big") for half in (signature[:32], signature[32:]))
    return encode_dss_signature(r, s)


def flipped(signature: bytes) -> bytes:
    return bytes([signature[0] ^ 1]) + signature[1:]


def unsigned(alg: str) -> str:
    return token(claims(), {"alg": alg}, lambda _: b"")


NOT_JWT = "token: must be a signed JSON Web Token"
UNKNOWN = "kid: must name a key of the JWKS, unless only one has the token's alg"
MISMATCH = "signature: does not match the key"
ANY_ALG = "alg: must be HS256 or ES256 or RS256 or EdDSA"
ROLE = "role: must be `authenticated`, or absent"
ISSUER = "iss: must be `https://id/auth/v1`"
AUDIENCE = "aud: must be or contain `them`"
SUBJECT = "sub: must be the user's UUID"
NOT_JSON = "claims: must be a JSON object"
ANONYMOUS = "is_anonymous: must be true or false"


def number(claim: str) -> str:
    return f"{claim}: must be a number of seconds since 1970"


def form(text: str, exactly: str = NOT_JWT) -> Row:
    return Row(text, Fault.FORM, exactly)


def times(text: str, exactly: str) -> Row:
    return Row(text, Fault.TIMES, exactly)


def unknown(text: str) -> Row:
    return Row(text, Fault.KEY, UNKNOWN)


def mismatch(text: str) -> Row:
    return Row(text, Fault.SIGNATURE, MISMATCH)


def algorithm(text: str, exactly: str = ANY_ALG) -> Row:
    return Row(text, Fault.ALGORITHM, exactly)


ACCEPTED = {
    "ES256": Row(es()),
    "RS256": Row(signed(RSA, "RS256", "rsa")),
    "EdDSA": Row(signed(ED, "EdDSA", "ed")),
    "HS256": Row(hs256()),
    "HS256, previous secret": Row(hs256(PREVIOUS_SECRET)),
    "HS256, kid of its own": Row(hs256(header={"kid": "../../dev/null"})),
    "second key of a type": Row(signed(OTHER_ES, "ES256", "other")),
    "no kid, one RSA key": Row(signed(RSA, "RS256", None)),
    "typ at+jwt": Row(es(header={"typ": "at+jwt"})),
    "jku beside a valid kid": Row(es(header={"jku": "https://evil.example/keys"})),
    "role authenticated": Row(es(role="authenticated")),
    "several audiences": Row(es(aud=["others", RULES.audience])),
    "upper-case sub": Row(es(sub=USER.id.upper())),
    "unknown claims": Row(es(email="a@example.com", app_metadata={"role": "admin"})),
    "anonymous": Row(es(is_anonymous=True)),
    "exp 29 s ago": Row(es(exp=seconds(-29))),
    "exp with a fraction": Row(es(exp=seconds() + 0.5)),
    "exp in the year 9999": Row(es(exp=253_402_300_799)),
    "nbf in 30 s": Row(es(nbf=seconds(30))),
    "iat in 30 s": Row(es(iat=seconds(30))),
    "iat and nbf of today": Row(es(iat=seconds(-9), nbf=seconds(-9))),
    "longest": Row(es(note="x" * 5_800)),
}
ALGORITHM_ROWS = {
    "alg none": algorithm(unsigned("none")),
    "alg None": algorithm(unsigned("None")),
    "alg NONE": algorithm(unsigned("NONE")),
    "alg empty": algorithm(unsigned("")),
    "alg none, signed": algorithm(es(header={"alg": "none"})),
    "alg missing": form(es(header={"alg": ...}), "header: Object missing required field `alg`"),
    "alg as list": form(
        es(header={"alg": ["ES256"]}), "header: Expected `str`, got `array` - at `$.alg`"
    ),
    "alg null": form(es(header={"alg": None}), "header: Expected `str`, got `null` - at `$.alg`"),
    "alg lower case": algorithm(es(header={"alg": "es256"})),
    "alg HS512": algorithm(token(claims(), {"alg": "HS512"}, by_secret(ATTACKER, "sha512"))),
    "alg ES384": algorithm(signed(P384, "ES384", "p384")),
    "alg PS256": algorithm(signed(RSA, "PS256", "rsa")),
    "HS256 by the public key as PEM": mismatch(hs256(RSA.pem, header={"kid": "rsa"})),
    "HS256 by the public key as JWK": mismatch(
        hs256(json.dumps(ES.named("es")), header={"kid": "es"})
    ),
    "HS256 by the set's oct key": mismatch(hs256(ATTACKER, header={"kid": "oct"})),
    "HS256 by an empty key": mismatch(hs256("")),
    "ES256 by the HS256 secret": mismatch(
        token(claims(), {"alg": "ES256", "kid": "es"}, by_secret(RULES.secret or ""))
    ),
    "RS256 with an EC key": algorithm(
        signed(RSA, "RS256", "es"), "alg: must be ES256, as of its key"
    ),
    "ES256 with an RSA key": algorithm(
        signed(ES, "ES256", "rsa"), "alg: must be RS256, as of its key"
    ),
    "EdDSA with an EC key": algorithm(
        signed(ED, "EdDSA", "es"), "alg: must be ES256, as of its key"
    ),
}
KEY_ROWS = {
    "no kid, two EC keys": unknown(es(header={"kid": ...})),
    "kid unknown": unknown(es(header={"kid": "new"})),
    "kid in another case": unknown(es(header={"kid": "ES"})),
    "kid empty": unknown(es(header={"kid": ""})),
    "kid with a path": unknown(es(header={"kid": "../../dev/null"})),
    "kid with SQL": unknown(es(header={"kid": "' UNION SELECT 'es"})),
    "kid with NUL": unknown(es(header={"kid": "es\x00"})),
    "kid huge": unknown(es(header={"kid": "k" * 5_000})),
    "kid as number": form(
        es(header={"kid": 1}), "header: Expected `str | null`, got `int` - at `$.kid`"
    ),
    "kid as list": form(
        es(header={"kid": ["es"]}), "header: Expected `str | null`, got `array` - at `$.kid`"
    ),
    "kid of another's key": mismatch(es(pair=STRANGER)),
    "kid twice in the set, second": mismatch(signed(STRANGER, "ES256", "es")),
    "key for encryption": unknown(signed(STRANGER, "ES256", "encrypts")),
    "key for wrapping": unknown(signed(STRANGER, "ES256", "wraps")),
    "key of P-384": unknown(signed(P384, "ES256", "p384")),
    "key of RSA 1024": unknown(signed(SMALL_RSA, "RS256", "small")),
    "key of Ed448": unknown(signed(ED448, "EdDSA", "ed448")),
    "key for PS256": unknown(signed(RSA, "RS256", "ps256")),
    "key oct": unknown(token(claims(), {"alg": "ES256", "kid": "oct"}, by_secret(ATTACKER))),
    "key post-quantum": unknown(signed(ES, "ES256", "post-quantum")),
    "Ed448 as the Ed25519 key": mismatch(signed(ED448, "EdDSA", "ed")),
    "jwk in the header": mismatch(es(pair=STRANGER, header={"jwk": STRANGER.jwk})),
    "jku in the header": unknown(
        es(pair=STRANGER, header={"kid": "x", "jku": "https://evil.example/keys"})
    ),
    "x5u in the header": mismatch(es(pair=STRANGER, header={"x5u": "https://evil.example/c"})),
    "x5c in the header": mismatch(es(pair=STRANGER, header={"x5c": ["MIIB"]})),
    "crit": form(es(header={"crit": ["exp"]}), "crit: is not supported"),
    "crit empty": form(es(header={"crit": []}), "crit: is not supported"),
    "crit null": form(es(header={"crit": None}), "crit: is not supported"),
    "b64 off": form(es(header={"b64": False, "crit": ["b64"]}), "crit: is not supported"),
    "b64 off, no payload": form(token(b"", {"alg": "ES256", "kid": "es", "b64": False}, ES.sign)),
    "b64 off, not critical": form(es(header={"b64": False})),
}
SIGNATURE_ROWS = {
    "no signature": mismatch(with_signature(lambda _: b"")),
    "signature cut": mismatch(with_signature(lambda given: given[:-1])),
    "signature longer": mismatch(with_signature(lambda given: given + b"\0")),
    "signature with a flipped bit": mismatch(with_signature(flipped)),
    "signature in DER": mismatch(with_signature(der)),
    "signature of zeros": mismatch(with_signature(lambda _: bytes(64))),
    "signature with r zero": mismatch(with_signature(lambda given: bytes(32) + given[32:])),
    "signature with s zero": mismatch(with_signature(lambda given: given[:32] + bytes(32))),
    "signature of all ones": mismatch(with_signature(lambda _: b"\xff" * 64)),
    "signature only hashed": mismatch(with_signature(lambda given: hashlib.sha256(given).digest())),
    "payload of another token": mismatch(
        ".".join([*es(sub=...).split(".")[:2], es().rpartition(".")[2]])
    ),
    "HS256 cut": mismatch(
        token(claims(), {"alg": "HS256"}, lambda text: by_secret(SECRET)(text)[:-1])
    ),
    "HS256 with bits after its end": form(hs256()[:-1] + "_"),
    "HS256 by another's key": mismatch(hs256(ATTACKER)),
    "expired and forged": mismatch(es(pair=STRANGER, exp=seconds(-9_999))),
}
FORM_ROWS = {
    "no token": form("abc"),
    "two parts": form("a.b"),
    "four parts": form(es() + ".AAAA"),
    "dots": form(".."),
    "parts joined by a tilde": form(es().replace(".", "~")),
    "five parts, as of JWE": form(
        "e30.e30.e30.e30.e30", "header: Object missing required field `alg`"
    ),
    "header nested": form(
        token(claims(), b"[" * 3_000, ES.sign), "header: Expected `object`, got `array`"
    ),
    "header not UTF-8": form(token(claims(), b"\xff", ES.sign)),
    "header null": form(token(claims(), None, ES.sign), "header: Expected `object`, got `null`"),
    "payload nested": form(token(b"[" * 3_000, {"alg": "ES256", "kid": "es"}, ES.sign), NOT_JSON),
    "payload nested objects": form(
        token(b'{"a":' * 1_000, {"alg": "ES256", "kid": "es"}, ES.sign), NOT_JSON
    ),
    "payload not UTF-8": form(token(b"\xff", {"alg": "ES256", "kid": "es"}, ES.sign), NOT_JSON),
    "payload a list": form(token(["sub"], {"alg": "ES256", "kid": "es"}, ES.sign), NOT_JSON),
    "payload empty": form(token(b"", {"alg": "ES256", "kid": "es"}, ES.sign), NOT_JSON),
    "too long": form(es(note="x" * MAX_TOKEN_LENGTH), "token: is longer than 8192 characters"),
    "API key in upper case": form("WK_" + "0" * 32),
}
TIME_ROWS = {
    "exp missing": times(es(exp=...), "exp: is required"),
    "exp null": times(es(exp=None), number("exp")),
    "exp as text": times(es(exp="tomorrow"), number("exp")),
    "exp as digits in text": times(es(exp=str(seconds(60))), number("exp")),
    "exp as list": times(es(exp=[seconds(60)]), number("exp")),
    "exp true": times(es(exp=True), number("exp")),
    "exp negative": times(es(exp=-1), number("exp")),
    "exp in milliseconds": times(es(exp=seconds(60) * 1_000), number("exp")),
    "exp of 30 digits": times(es(exp=10**30), number("exp")),
    "exp infinite": form(es(exp=float("inf")), NOT_JSON),
    "exp not a number": form(es(exp=float("nan")), NOT_JSON),
    "exp of 5,000 digits": form(
        token(b'{"exp": %s}' % (b"9" * 5_000), {"alg": "ES256", "kid": "es"}, ES.sign), NOT_JSON
    ),
    "exp zero": Row(es(exp=0), Fault.EXPIRED, "exp: is in the past"),
    "exp 30 s ago": Row(es(exp=seconds(-30)), Fault.EXPIRED, "exp: is in the past"),
    "exp of HS256 a day ago": Row(
        hs256(exp=seconds(-86_400)), Fault.EXPIRED, "exp: is in the past"
    ),
    "nbf in 31 s": Row(es(nbf=seconds(31)), Fault.EARLY, "nbf: is in the future"),
    "nbf in 10 years": Row(es(nbf=seconds(3.2e8)), Fault.EARLY, "nbf: is in the future"),
    "nbf null": times(es(nbf=None), number("nbf")),
    "nbf as text": times(es(nbf="now"), number("nbf")),
    "iat in 31 s": Row(es(iat=seconds(31)), Fault.EARLY, "iat: is in the future"),
    "iat as object": times(es(iat={}), number("iat")),
    "iat negative": times(es(iat=-5), number("iat")),
}
CLAIM_ROWS = {
    "iss missing": Row(es(iss=...), Fault.ISSUER, ISSUER),
    "iss null": Row(es(iss=None), Fault.ISSUER, ISSUER),
    "iss of another": Row(es(iss="https://evil.example"), Fault.ISSUER, ISSUER),
    "iss with a slash": Row(es(iss=RULES.issuer + "/"), Fault.ISSUER, ISSUER),
    "iss with http": Row(es(iss=RULES.issuer.replace("https", "http")), Fault.ISSUER, ISSUER),
    "iss in upper case": Row(es(iss=RULES.issuer.upper()), Fault.ISSUER, ISSUER),
    "iss as list": Row(es(iss=[RULES.issuer]), Fault.ISSUER, ISSUER),
    "aud missing": Row(es(aud=...), Fault.AUDIENCE, AUDIENCE),
    "aud null": Row(es(aud=None), Fault.AUDIENCE, AUDIENCE),
    "aud of others": Row(es(aud="others"), Fault.AUDIENCE, AUDIENCE),
    "aud in another case": Row(es(aud="THEM"), Fault.AUDIENCE, AUDIENCE),
    "aud list empty": Row(es(aud=[]), Fault.AUDIENCE, AUDIENCE),
    "aud list nested": Row(es(aud=[[RULES.audience]]), Fault.AUDIENCE, AUDIENCE),
    "aud list with a number": Row(es(aud=[RULES.audience, 1]), Fault.AUDIENCE, AUDIENCE),
    "aud object": Row(es(aud={RULES.audience: True}), Fault.AUDIENCE, AUDIENCE),
    "aud with more": Row(es(aud=f"{RULES.audience} others"), Fault.AUDIENCE, AUDIENCE),
    "role service_role": Row(es(role="service_role"), Fault.ROLE, ROLE),
    "role anon": Row(es(role="anon"), Fault.ROLE, ROLE),
    "role of a service key": Row(
        hs256(iss="supabase", role="service_role", sub=..., aud=...), Fault.ROLE, ROLE
    ),
    "role empty": Row(es(role=""), Fault.ROLE, ROLE),
    "role null": Row(es(role=None), Fault.ROLE, ROLE),
    "role as list": Row(es(role=["authenticated"]), Fault.ROLE, ROLE),
    "role in upper case": Row(es(role="AUTHENTICATED"), Fault.ROLE, ROLE),
    "sub missing": Row(es(sub=...), Fault.SUBJECT, SUBJECT),
    "sub null": Row(es(sub=None), Fault.SUBJECT, SUBJECT),
    "sub empty": Row(es(sub=""), Fault.SUBJECT, SUBJECT),
    "sub a number": Row(es(sub=1), Fault.SUBJECT, SUBJECT),
    "sub a list": Row(es(sub=[USER.id]), Fault.SUBJECT, SUBJECT),
    "sub no UUID": Row(es(sub="admin"), Fault.SUBJECT, SUBJECT),
    "sub without hyphens": Row(es(sub=USER.id.replace("-", "")), Fault.SUBJECT, SUBJECT),
    "sub in braces": Row(es(sub="{" + USER.id + "}"), Fault.SUBJECT, SUBJECT),
    "sub as URN": Row(es(sub=f"urn:uuid:{USER.id}"), Fault.SUBJECT, SUBJECT),
    "sub with more": Row(es(sub=f"{USER.id}/.."), Fault.SUBJECT, SUBJECT),
    "sub with NUL": Row(es(sub=f"{USER.id}\x00"), Fault.SUBJECT, SUBJECT),
    "sub with a new line": Row(es(sub=f"{USER.id}\n"), Fault.SUBJECT, SUBJECT),
    "sub with a surrogate": form(es(sub="\ud800"), NOT_JSON),
    "is_anonymous as text": Row(es(is_anonymous="true"), Fault.CLAIMS, ANONYMOUS),
    "is_anonymous null": Row(es(is_anonymous=None), Fault.CLAIMS, ANONYMOUS),
}
REJECTED = ALGORITHM_ROWS | KEY_ROWS | SIGNATURE_ROWS | FORM_ROWS | TIME_ROWS | CLAIM_ROWS


async def answer_to(sent: str, *, exact: bool) -> tuple[int, str | None, str | None]:
    """Status, code and message of the API's answer to a token."""
    keys = UserKeys(PROVIDER, KeyRules(algorithms=ALGORITHMS))
    api = Api(users=UserTokens(RULES, keys=keys, exact=exact, clock=lambda: NOW))
    answer = await api.get(CREDITS, owner=None, headers=[("authorization", f"Bearer {sent}")])
    if answer.status == 200:
        return 200, None, answer.data["owner_id"]
    return (*answer.error, answer.message)


@pytest.mark.parametrize("row", ACCEPTED.values(), ids=ACCEPTED)
async def test_accepted_tokens(row: Row) -> None:
    """Signed by a key of the set or by a secret, and with the claims that we require."""
    assert await answer_to(row.token, exact=False) == (200, None, USER.id)


@pytest.mark.parametrize("row", REJECTED.values(), ids=REJECTED)
async def test_rejected_tokens(row: Row) -> None:
    """In production the answer says what kind of thing is wrong; in development, what it must be.
    Neither has any part of the token."""
    assert row.fault is not None
    production = await answer_to(row.token, exact=False)
    development = await answer_to(row.token, exact=True)

    assert production == (401, "INVALID_TOKEN", row.fault.value)
    assert development == (401, "INVALID_TOKEN", row.exactly)


def test_table_has_a_row_for_every_fault() -> None:
    """And enough rows to be a table."""
    assert {row.fault for row in REJECTED.values()} == {*Fault}
    assert len(ACCEPTED | REJECTED) >= 160


async def test_anonymous_user_is_known_as_such() -> None:
    """The claim ``is_anonymous`` of Supabase reaches the caller."""
    users = UserTokens(RULES, clock=lambda: NOW)

    anonymous = await users(hs256(is_anonymous=True))
    other = await users(hs256(is_anonymous=False))

    assert anonymous.principal == Caller(owner=USER, any_origin=True, is_anonymous=True)
    assert other.principal == Caller(owner=USER, any_origin=True)


@pytest.mark.parametrize("sent", [hs256(), es()], ids=["HS256", "ES256"])
async def test_without_its_kind_of_key_a_token_is_rejected(sent: str) -> None:
    """HS256 needs a secret, ES256 a key set: neither is ever used for the other."""
    keys = UserKeys(PROVIDER, KeyRules(algorithms=("RS256",)))
    no_secret = type(RULES)(issuer=RULES.issuer, audience=RULES.audience)
    users = UserTokens(no_secret, keys=keys, clock=lambda: NOW)
    api = Api(users=users)

    answer = await api.get(CREDITS, owner=None, headers=[("authorization", f"Bearer {sent}")])

    assert (*answer.error, answer.message) == (401, "INVALID_TOKEN", Fault.ALGORITHM.value)


async def test_public_key_as_the_secret_is_rejected() -> None:
    """If the secret is a public key by mistake, no token is valid: anyone could sign one."""
    rules = type(RULES)(secret=ES.pem, issuer=RULES.issuer, audience=RULES.audience)

    with pytest.raises(Unauthenticated, match=r"^The token's signature is not valid$"):
        await UserTokens(rules, clock=lambda: NOW)(hs256(ES.pem))


@pytest.mark.parametrize("sent", ["\ud800", es() + "\ud800", "\xe9." + es(), ""])
async def test_token_of_other_characters_is_malformed(sent: str) -> None:
    """No header can have them, and another caller of the authenticator gets no crash."""
    keys = UserKeys(PROVIDER, KeyRules(algorithms=ALGORITHMS))

    with pytest.raises(Unauthenticated, match=r"^The token is malformed$"):
        await UserTokens(RULES, keys=keys, clock=lambda: NOW)(sent)


async def test_several_headers_are_rejected() -> None:
    """Even if each has a valid token."""
    api = Api(users=UserTokens(RULES, clock=lambda: NOW))
    header = ("authorization", f"Bearer {hs256()}")

    once = await api.get(CREDITS, owner=None, headers=[header])
    twice = await api.get(CREDITS, owner=None, headers=[header, header])

    assert once.status == 200
    assert twice.error == (401, "INVALID_TOKEN")
    assert twice.message == "Send one header 'Authorization: Bearer <token>'"
