"""Tokens and keys: who is let in, and who is not."""

import base64
import hashlib
import hmac
import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta, tzinfo
from typing import Any
from uuid import UUID, uuid4

import jwt
import pytest

from adapters.auth.bearer import (
    MAX_TOKEN_LENGTH,
    BearerAuthenticator,
    JwtRules,
    key_sha256,
    mint_user_token,
    new_api_key,
)
from adapters.auth.memory import InMemoryApiKeyRepo
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, InvalidApiKey, Unauthenticated
from domain.ports import ApiKey
from tests.support.examples import STORE, USER

pytestmark = pytest.mark.anyio

RULES = JwtRules(secret="a key for tests, long enough for HS256", issuer="us", audience="them")
HEADER = {"alg": "HS256", "typ": "JWT"}


@pytest.fixture
def keys() -> InMemoryApiKeyRepo:
    return InMemoryApiKeyRepo(clock=lambda: datetime.now(UTC))


@pytest.fixture
def authenticate(keys: InMemoryApiKeyRepo) -> BearerAuthenticator:
    return BearerAuthenticator(keys=keys, rules=RULES)


def ago(**duration: float) -> int:
    """A time as tokens have it: seconds since 1970."""
    return int((datetime.now(UTC) - timedelta(**duration)).timestamp())


def claims(**changes: Any) -> dict[str, Any]:
    """What a good token says, with changes; ``...`` leaves a claim out."""
    good = {"sub": USER.id, "iss": RULES.issuer, "aud": RULES.audience, "exp": ago(hours=-1)}
    return {name: value for name, value in (good | changes).items() if value is not ...}


def token(
    payload: object, header: object = HEADER, *, secret: str = RULES.secret, digest: str = "sha256"
) -> str:
    """A token signed by hand, so that it can be what no library would make."""
    parts = [part if isinstance(part, bytes) else _json(part) for part in (header, payload)]
    signed = ".".join(_base64url(part) for part in parts)
    return f"{signed}.{_base64url(hmac.digest(secret.encode(), signed.encode(), digest))}"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


async def test_a_minted_token_is_accepted(authenticate: BearerAuthenticator) -> None:
    """The token that development hands out is one that we take."""
    minted = mint_user_token(
        UUID(USER.id), rules=RULES, now=datetime.now(UTC), lifetime=timedelta(minutes=1)
    )

    assert await authenticate(minted) == USER


GOOD = {
    "plain": token(claims()),
    "several audiences": token(claims(aud=["others", RULES.audience])),
    "upper-case sub": token(claims(sub=USER.id.upper())),
    "claims that we do not know": token(claims(role="admin", email="a@example.com")),
    "kid that we do not use": token(claims(), HEADER | {"kid": "../../dev/null"}),
    "longest": token(claims(note="x" * 5_900)),
}


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
async def test_tokens_that_are_accepted(authenticate: BearerAuthenticator, good: str) -> None:
    """A token signed with our key that says who, by whom, for whom and until when."""
    assert await authenticate(good) == USER


@pytest.mark.parametrize("late", [{"exp": 15}, {"nbf": -15}], ids=["expired", "not yet"])
async def test_clocks_may_differ_a_little(
    authenticate: BearerAuthenticator, late: dict[str, float]
) -> None:
    """A token is good for half a minute more, on both sides."""
    fresh = token(claims(**{claim: ago(seconds=seconds) for claim, seconds in late.items()}))

    assert await authenticate(fresh) == USER


ATTACKER = "the attacker's key, which is also long enough"
JWK = {"kty": "oct", "k": _base64url(ATTACKER.encode())}
BAD = {
    "empty": "",
    "no token": "abc",
    "two parts": "a.b",
    "four parts": token(claims()) + ".AAAA",
    "dots": "..",
    "not base64": "a!.b!.c!",
    "no signature": token(claims()).rpartition(".")[0] + ".",
    "alg none": token(claims(), {"alg": "none"}).rpartition(".")[0] + ".",
    "alg None": token(claims(), {"alg": "None"}),
    "alg missing": token(claims(), {"typ": "JWT"}),
    "alg as list": token(claims(), {"alg": ["HS256"]}),
    "alg lower case": token(claims(), {"alg": "hs256"}),
    "alg HS512": token(claims(), {"alg": "HS512"}, digest="sha512"),
    "alg RS256, signed as HS256": token(claims(), {"alg": "RS256"}),
    "another's key": token(claims(), secret=ATTACKER),
    "empty key": token(claims(), secret=""),
    "signature cut": token(claims())[:-4],
    "payload changed": token(claims()).replace(".", ".e30", 1),
    "jwk": token(claims(), HEADER | {"jwk": JWK}, secret=ATTACKER),
    "jku": token(claims(), HEADER | {"jku": "https://evil.example/keys"}, secret=ATTACKER),
    "x5u": token(claims(), HEADER | {"x5u": "https://evil.example/cert"}, secret=ATTACKER),
    "x5c": token(claims(), HEADER | {"x5c": ["MIIB"]}, secret=ATTACKER),
    "kid with a path": token(claims(), HEADER | {"kid": "../../dev/null"}, secret=""),
    "kid with SQL": token(
        claims(), HEADER | {"kid": f"' UNION SELECT '{ATTACKER}"}, secret=ATTACKER
    ),
    "kid that is no text": token(claims(), HEADER | {"kid": 1}),
    "crit": token(claims(), HEADER | {"crit": ["exp"]}),
    "b64 off": token(claims(), HEADER | {"b64": False, "crit": ["b64"]}),
    "nested header": token(claims(), b"[" * 3_000),
    "nested payload": token(b"[" * 3_000),
    "header not UTF-8": token(claims(), b"\xff"),
    "payload not UTF-8": token(b"\xff"),
    "payload not an object": token(["sub", USER.id]),
    "no exp": token(claims(exp=...)),
    "no sub": token(claims(sub=...)),
    "no aud": token(claims(aud=...)),
    "no iss": token(claims(iss=...)),
    "null exp": token(claims(exp=None)),
    "null sub": token(claims(sub=None)),
    "null aud": token(claims(aud=None)),
    "null iss": token(claims(iss=None)),
    "wrong iss": token(claims(iss="else")),
    "iss as list": token(claims(iss=[RULES.issuer])),
    "iss that begins alike": token(claims(iss=RULES.issuer + "/")),
    "wrong aud": token(claims(aud="others")),
    "aud in another case": token(claims(aud=RULES.audience.upper())),
    "aud of others": token(claims(aud=["others", 1])),
    "aud empty": token(claims(aud=[])),
    "exp as text": token(claims(exp="tomorrow")),
    "exp as list": token(claims(exp=[1])),
    "exp infinite": token(claims(exp=float("inf"))),
    "exp not a number": token(claims(exp=float("nan"))),
    "exp of 5,000 digits": token(b'{"exp": %s}' % (b"9" * 5_000)),
    "nbf far in the future": token(claims(nbf=ago(days=-3650))),
    "nbf infinite": token(claims(nbf=float("inf"))),
    "iat far in the future": token(claims(iat=ago(days=-3650))),
    "sub is no UUID": token(claims(sub="admin")),
    "sub is a number": token(claims(sub=1)),
    "sub is a list": token(claims(sub=[USER.id])),
    "sub is empty": token(claims(sub="")),
    "sub with more": token(claims(sub=f"{USER.id}/../{uuid4()}")),
    "sub with NUL": token(claims(sub=f"{USER.id}\x00")),
    "sub with a surrogate": token(claims(sub="\ud800")),
    "service role": token(claims(sub=..., role="service_role")),
    "too long": token(claims(note="x" * MAX_TOKEN_LENGTH)),
    "key in upper case": "WK_" + "0" * 32,
}


@pytest.mark.parametrize("bad", BAD.values(), ids=BAD)
async def test_tokens_that_are_refused(authenticate: BearerAuthenticator, bad: str) -> None:
    """Unless everything is right, nothing is said about what was wrong."""
    with pytest.raises(Unauthenticated) as refusal:
        await authenticate(bad)

    assert refusal.type is Unauthenticated
    assert str(refusal.value) == "The token is not valid"


async def test_an_expired_token_is_told_so(authenticate: BearerAuthenticator) -> None:
    """Its holder can get a new one; the signature is checked before."""
    with pytest.raises(Unauthenticated, match=r"^The token has expired$"):
        await authenticate(token(claims(exp=ago(seconds=45))))
    with pytest.raises(Unauthenticated, match=r"^The token is not valid$"):
        await authenticate(token(claims(exp=ago(seconds=45)), secret=ATTACKER))


async def test_a_public_key_is_not_a_secret(keys: InMemoryApiKeyRepo) -> None:
    """Where the secret is set to a public key by mistake, no token is good: else everybody who
    has it could sign."""
    public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
    rules = JwtRules(secret=public, issuer=RULES.issuer, audience=RULES.audience)

    with pytest.raises(Unauthenticated):
        await BearerAuthenticator(keys=keys, rules=rules)(token(claims(), secret=public))


async def add(
    keys: InMemoryApiKeyRepo, owner: Owner = STORE, *, text: str | None = None
) -> tuple[ApiKey, str]:
    """A store's new key, and its text."""
    text = text or new_api_key()
    key = ApiKey(
        id=uuid4(),
        owner=owner,
        key_sha256=key_sha256(text),
        label="test",
        created_at=datetime.now(UTC),
    )
    await keys.add(key)
    return key, text


async def test_a_key_is_accepted(
    authenticate: BearerAuthenticator, keys: InMemoryApiKeyRepo
) -> None:
    """A key is its owner's; two keys of one store are both good."""
    _, first = await add(keys)
    _, second = await add(keys)

    assert [await authenticate(first), await authenticate(second)] == [STORE, STORE]


async def test_keys_that_are_refused(
    authenticate: BearerAuthenticator, keys: InMemoryApiKeyRepo
) -> None:
    """Cut, longer, in another case, unknown: a key is good to the letter or not at all."""
    _, text = await add(keys)
    bad = [
        text[:-1],
        text + "0",
        text + "\n",
        "wk_" + text.removeprefix("wk_").upper(),
        "wk_wk_" + text.removeprefix("wk_")[3:],
        new_api_key(),
        "wk_",
        "wk_" + "\uff10" * 32,
        "wk_" + key_sha256(text),
        "wk_\ud800",
    ]

    for key in bad:
        with pytest.raises(InvalidApiKey, match=r"^The API key is not valid$"):
            await authenticate(key)


async def test_a_revoked_key_is_refused(
    authenticate: BearerAuthenticator, keys: InMemoryApiKeyRepo
) -> None:
    """From the moment of its revocation; the store's other keys stay good."""
    first, text = await add(keys)
    _, other = await add(keys)

    await keys.revoke(first.id)

    with pytest.raises(InvalidApiKey):
        await authenticate(text)
    assert await authenticate(other) == STORE


def test_what_is_stored_is_not_the_key() -> None:
    """A key has 128 random bits, and what is kept of it is its SHA-256."""
    first, second = new_api_key(), new_api_key()

    assert first != second
    assert len(bytes.fromhex(first.removeprefix("wk_"))) == 16
    assert key_sha256(first) == hashlib.sha256(first.encode()).hexdigest()


def test_minting_is_what_the_library_would_do() -> None:
    """The claims are the registered ones of RFC 7519, with times in whole seconds."""
    now = datetime(2026, 1, 1, tzinfo=UTC)

    minted = mint_user_token(UUID(USER.id), rules=RULES, now=now, lifetime=timedelta(hours=1))

    assert jwt.decode(minted, options={"verify_signature": False}) == {
        "sub": USER.id,
        "iss": "us",
        "aud": "them",
        "iat": 1_767_225_600,
        "exp": 1_767_229_200,
    }


SECONDS = 5.0


class Memory:
    """An authenticator with a memory, its keys and its clock."""

    def __init__(self) -> None:
        self.keys = CountingKeys(clock=lambda: datetime.now(UTC))
        self.time = 100.0
        self.authenticate = BearerAuthenticator(
            keys=self.keys, rules=RULES, memory_seconds=SECONDS, clock=lambda: self.time
        )

    async def new_key(self, owner: Owner = STORE) -> tuple[ApiKey, str]:
        return await add(self.keys, owner)


class CountingKeys(InMemoryApiKeyRepo):
    """Counts how often it is asked, and does not answer while ``away``."""

    asked = 0
    away = False
    meanwhile: Callable[[], None] | None = None

    async def owner_of(self, key_sha256: str) -> Owner | None:
        self.asked += 1
        if self.away:
            raise DatabaseUnavailable("owner_of: refused")
        owner = await super().owner_of(key_sha256)
        if self.meanwhile is not None:
            self.meanwhile()
        return owner


@pytest.fixture
def memory() -> Memory:
    return Memory()


async def test_a_caller_is_remembered_for_so_long(memory: Memory) -> None:
    """Until then the store is not asked, and from then on it is."""
    _, text = await memory.new_key()

    first = await memory.authenticate(text)
    memory.time += SECONDS - 0.01
    second = await memory.authenticate(text)
    asked_before = memory.keys.asked
    memory.time += 0.01
    third = await memory.authenticate(text)

    assert first == second == third == STORE
    assert (asked_before, memory.keys.asked) == (1, 2)


async def test_without_a_memory_the_store_is_asked_each_time() -> None:
    """That is what 0 seconds mean, also where no time passes."""
    counting = CountingKeys(clock=lambda: datetime.now(UTC))
    authenticate = BearerAuthenticator(
        keys=counting, rules=RULES, memory_seconds=0, clock=lambda: 1.0
    )
    _, text = await add(counting)

    for _ in range(3):
        await authenticate(text)

    assert counting.asked == 3


async def test_a_revoked_key_is_let_in_for_so_long_at_most(memory: Memory) -> None:
    """Counted from when the store was asked, however slowly it answered, and not from the last
    use: who calls again and again is out at the same time."""
    key, text = await memory.new_key()

    def slowly() -> None:
        memory.time += 2

    memory.keys.meanwhile = slowly
    asked_at = memory.time
    await memory.authenticate(text)
    await memory.keys.revoke(key.id)
    while memory.time < asked_at + SECONDS:
        assert await memory.authenticate(text) == STORE
        memory.time += 0.5

    for _ in range(2):
        with pytest.raises(InvalidApiKey):
            await memory.authenticate(text)


async def test_an_expired_token_is_let_in_for_so_long_at_most(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A token's end is looked at when the memory of it ends."""
    users = token(claims(exp=ago(hours=-1)))
    await memory.authenticate(users)

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Later":
            return super().now(tz) + timedelta(hours=2)

    monkeypatch.setattr("jwt.api_jwt.datetime", Later)
    remembered = await memory.authenticate(users)
    memory.time += SECONDS

    assert remembered == USER
    with pytest.raises(Unauthenticated, match=r"^The token has expired$"):
        await memory.authenticate(users)


async def test_who_is_turned_away_is_not_remembered(memory: Memory) -> None:
    """A key is good from the moment that it is there."""
    text = new_api_key()
    with pytest.raises(InvalidApiKey):
        await memory.authenticate(text)
    await add(memory.keys, text=text)

    assert await memory.authenticate(text) == STORE


async def test_a_store_that_is_away_is_not_remembered(memory: Memory) -> None:
    """It keeps out nobody who is known, and only until it is back those who are not."""
    _, known = await memory.new_key()
    _, unknown = await memory.new_key()
    await memory.authenticate(known)
    memory.keys.away = True

    remembered = await memory.authenticate(known)
    with pytest.raises(DatabaseUnavailable):
        await memory.authenticate(unknown)
    memory.keys.away = False

    assert remembered == STORE
    assert await memory.authenticate(unknown) == STORE


async def test_each_token_is_remembered_by_itself(memory: Memory) -> None:
    """Two keys of one owner end each at its own time; what only resembles a known token, or is
    its hash, is unknown."""
    first, text = await memory.new_key()
    _, other = await memory.new_key()
    _, others = await memory.new_key(Owner(channel=Channel.B2B, id="store-2"))
    await memory.authenticate(text)
    memory.time += 3
    owners = [await memory.authenticate(other), await memory.authenticate(others)]
    await memory.keys.revoke(first.id)
    memory.time += 2

    assert [owner.id for owner in owners] == ["store-1", "store-2"]
    assert await memory.authenticate(other) == STORE
    for bad in (text, other[:-1], other + "0", other.upper(), key_sha256(other)):
        with pytest.raises(Unauthenticated):
            await memory.authenticate(bad)


async def test_the_memory_is_bounded(memory: Memory, monkeypatch: pytest.MonkeyPatch) -> None:
    """Who has been known longest is forgotten first; to be seen again before the end does not
    count, to be asked for again does."""
    monkeypatch.setattr("adapters.auth.bearer.MAX_REMEMBERED", 3)
    texts = [(await memory.new_key())[1] for _ in range(5)]
    for text in texts[:3]:
        await memory.authenticate(text)
    memory.time += SECONDS
    await memory.authenticate(texts[1])  # the youngest now, and nobody else is forgotten for it
    await memory.authenticate(texts[3])
    await memory.authenticate(texts[4])
    asked = memory.keys.asked

    for text in (texts[1], texts[3], texts[4]):
        await memory.authenticate(text)
    assert (asked, memory.keys.asked, len(memory.authenticate._known)) == (6, 6, 3)
    await memory.authenticate(texts[0])
    assert (memory.keys.asked, len(memory.authenticate._known)) == (7, 3)


async def test_no_token_is_kept(memory: Memory) -> None:
    """What is in memory lets in nobody who reads it."""
    _, text = await memory.new_key()
    users = token(claims())
    for secret in (text, users):
        await memory.authenticate(secret)

    kept = repr(memory.authenticate._known)

    assert text not in kept
    assert users not in kept
