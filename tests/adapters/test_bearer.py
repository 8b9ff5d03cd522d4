"""BearerAuthenticator: valid and invalid tokens and keys, and the cache."""

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

from adapters.auth.api_keys import API_KEY_PREFIX, StoreKeys, key_sha256, new_api_key
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.memory import InMemoryApiKeyRepo
from adapters.auth.user_tokens import MAX_TOKEN_LENGTH, JwtRules, UserTokens, mint_user_token
from domain.callers import Caller
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, InvalidApiKey, Unauthenticated
from domain.ports import ApiKey
from tests.support.examples import STORE, USER

pytestmark = pytest.mark.anyio

RULES = JwtRules(secret="a key for tests, long enough for HS256", issuer="us", audience="them")
A_USER = Caller(owner=USER)
A_STORE = Caller(owner=STORE)
HEADER = {"alg": "HS256", "typ": "JWT"}


@pytest.fixture
def keys() -> InMemoryApiKeyRepo:
    return InMemoryApiKeyRepo(clock=lambda: datetime.now(UTC))


@pytest.fixture
def authenticate(keys: InMemoryApiKeyRepo) -> BearerAuthenticator:
    return BearerAuthenticator(keys={API_KEY_PREFIX: StoreKeys(keys)}, users=UserTokens(RULES))


def ago(**duration: float) -> int:
    """A time in a token's format: seconds since 1970."""
    return int((datetime.now(UTC) - timedelta(**duration)).timestamp())


def claims(**changes: Any) -> dict[str, Any]:
    """The claims of a valid token, with changes; ``...`` omits a claim."""
    good = {"sub": USER.id, "iss": RULES.issuer, "aud": RULES.audience, "exp": ago(hours=-1)}
    return {name: value for name, value in (good | changes).items() if value is not ...}


def token(
    payload: object, header: object = HEADER, *, secret: str = RULES.secret, digest: str = "sha256"
) -> str:
    """A token signed by hand, so that it can be one that no library would issue."""
    parts = [part if isinstance(part, bytes) else _json(part) for part in (header, payload)]
    signed = ".".join(_base64url(part) for part in parts)
    return f"{signed}.{_base64url(hmac.digest(secret.encode(), signed.encode(), digest))}"


def _json(value: object) -> bytes:
    return json.dumps(value).encode()


def _base64url(data: bytes) -> str:
    return base64.urlsafe_b64encode(data).decode().rstrip("=")


async def test_minted_token_is_accepted(authenticate: BearerAuthenticator) -> None:
    """The tokens of a development stack are valid."""
    minted = mint_user_token(
        UUID(USER.id), rules=RULES, now=datetime.now(UTC), lifetime=timedelta(minutes=1)
    )

    assert await authenticate(minted) == A_USER


GOOD = {
    "plain": token(claims()),
    "several audiences": token(claims(aud=["others", RULES.audience])),
    "upper-case sub": token(claims(sub=USER.id.upper())),
    "unknown claims": token(claims(role="admin", email="a@example.com")),
    "unused kid": token(claims(), HEADER | {"kid": "../../dev/null"}),
    "longest": token(claims(note="x" * 5_900)),
}


@pytest.mark.parametrize("good", GOOD.values(), ids=GOOD)
async def test_valid_tokens(authenticate: BearerAuthenticator, good: str) -> None:
    """Signed with our key, with subject, issuer, audience and expiry."""
    assert await authenticate(good) == A_USER


@pytest.mark.parametrize("late", [{"exp": 15}, {"nbf": -15}], ids=["expired", "not yet"])
async def test_clock_skew_is_tolerated(
    authenticate: BearerAuthenticator, late: dict[str, float]
) -> None:
    """Half a minute, at both ends of a token's lifetime."""
    fresh = token(claims(**{claim: ago(seconds=seconds) for claim, seconds in late.items()}))

    assert await authenticate(fresh) == A_USER


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
async def test_invalid_tokens(authenticate: BearerAuthenticator, bad: str) -> None:
    """Rejected without details."""
    with pytest.raises(Unauthenticated) as rejection:
        await authenticate(bad)

    assert rejection.type is Unauthenticated
    assert str(rejection.value) == "The token is not valid"


async def test_expired_token_has_its_own_message(authenticate: BearerAuthenticator) -> None:
    """Only after the signature has been checked."""
    with pytest.raises(Unauthenticated, match=r"^The token has expired$"):
        await authenticate(token(claims(exp=ago(seconds=45))))
    with pytest.raises(Unauthenticated, match=r"^The token is not valid$"):
        await authenticate(token(claims(exp=ago(seconds=45)), secret=ATTACKER))


async def test_public_key_as_the_secret_is_rejected(keys: InMemoryApiKeyRepo) -> None:
    """If the secret is set to a public key by mistake, no token is valid: otherwise anyone with
    the public key could sign one."""
    public = "-----BEGIN PUBLIC KEY-----\nMCowBQYDK2VwAyEA\n-----END PUBLIC KEY-----\n"
    rules = JwtRules(secret=public, issuer=RULES.issuer, audience=RULES.audience)

    with pytest.raises(Unauthenticated):
        await BearerAuthenticator(keys={API_KEY_PREFIX: StoreKeys(keys)}, users=UserTokens(rules))(
            token(claims(), secret=public)
        )


async def add(
    keys: InMemoryApiKeyRepo, owner: Owner = STORE, *, text: str | None = None
) -> tuple[ApiKey, str]:
    """A new key and its text."""
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


async def test_valid_keys(authenticate: BearerAuthenticator, keys: InMemoryApiKeyRepo) -> None:
    """A store may have several."""
    _, first = await add(keys)
    _, second = await add(keys)

    assert [await authenticate(first), await authenticate(second)] == [A_STORE, A_STORE]


async def test_invalid_keys(authenticate: BearerAuthenticator, keys: InMemoryApiKeyRepo) -> None:
    """Truncated, extended, in another case, unknown: a key has to match exactly."""
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


async def test_revoked_key_is_rejected(
    authenticate: BearerAuthenticator, keys: InMemoryApiKeyRepo
) -> None:
    """Immediately, without a cache; the store's other keys keep working."""
    first, text = await add(keys)
    _, other = await add(keys)

    await keys.revoke(first.id)

    with pytest.raises(InvalidApiKey):
        await authenticate(text)
    assert await authenticate(other) == A_STORE


def test_key_format() -> None:
    """128 random bits, stored as their SHA-256."""
    first, second = new_api_key(), new_api_key()

    assert first != second
    assert len(bytes.fromhex(first.removeprefix("wk_"))) == 16
    assert key_sha256(first) == hashlib.sha256(first.encode()).hexdigest()


def test_minted_claims() -> None:
    """The registered ones of RFC 7519, with times in whole seconds."""
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


class Cached:
    """An authenticator with a cache, its keys and its clock."""

    def __init__(self) -> None:
        self.keys = CountingKeys(clock=lambda: datetime.now(UTC))
        self.time = 100.0
        self.authenticate = BearerAuthenticator(
            keys={API_KEY_PREFIX: StoreKeys(self.keys)},
            users=UserTokens(RULES),
            cache_seconds=SECONDS,
            clock=lambda: self.time,
        )

    async def new_key(self, owner: Owner = STORE) -> tuple[ApiKey, str]:
        return await add(self.keys, owner)


class CountingKeys(InMemoryApiKeyRepo):
    """Counts lookups, and does not answer while ``away``."""

    lookups = 0
    away = False
    meanwhile: Callable[[], None] | None = None

    async def caller_of(self, key_sha256: str) -> Caller | None:
        self.lookups += 1
        if self.away:
            raise DatabaseUnavailable("caller_of: refused")
        caller = await super().caller_of(key_sha256)
        if self.meanwhile is not None:
            self.meanwhile()
        return caller


@pytest.fixture
def cached() -> Cached:
    return Cached()


async def test_owner_is_cached(cached: Cached) -> None:
    """For ``cache_seconds``; then the database is queried again."""
    _, text = await cached.new_key()

    first = await cached.authenticate(text)
    cached.time += SECONDS - 0.01
    second = await cached.authenticate(text)
    lookups_before = cached.keys.lookups
    cached.time += 0.01
    third = await cached.authenticate(text)

    assert first == second == third == A_STORE
    assert (lookups_before, cached.keys.lookups) == (1, 2)


async def test_cache_of_zero_seconds() -> None:
    """The database is queried every time, even if no time passes in between."""
    counting = CountingKeys(clock=lambda: datetime.now(UTC))
    authenticate = BearerAuthenticator(
        keys={API_KEY_PREFIX: StoreKeys(counting)},
        users=UserTokens(RULES),
        cache_seconds=0,
        clock=lambda: 1.0,
    )
    _, text = await add(counting)

    for _ in range(3):
        await authenticate(text)

    assert counting.lookups == 3


async def test_cached_key_expires_after_its_revocation(cached: Cached) -> None:
    """``cache_seconds`` count from the start of the lookup, however slow it was, and not from the
    last use."""
    key, text = await cached.new_key()

    def slowly() -> None:
        cached.time += 2

    cached.keys.meanwhile = slowly
    looked_up_at = cached.time
    await cached.authenticate(text)
    await cached.keys.revoke(key.id)
    while cached.time < looked_up_at + SECONDS:
        assert await cached.authenticate(text) == A_STORE
        cached.time += 0.5

    for _ in range(2):
        with pytest.raises(InvalidApiKey):
            await cached.authenticate(text)


async def test_cached_token_expires(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its own expiry is checked again after ``cache_seconds``."""
    users = token(claims(exp=ago(hours=-1)))
    await cached.authenticate(users)

    class Later(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> "Later":
            return super().now(tz) + timedelta(hours=2)

    monkeypatch.setattr("jwt.api_jwt.datetime", Later)
    from_cache = await cached.authenticate(users)
    cached.time += SECONDS

    assert from_cache == A_USER
    with pytest.raises(Unauthenticated, match=r"^The token has expired$"):
        await cached.authenticate(users)


async def test_rejection_is_not_cached(cached: Cached) -> None:
    """A new key works immediately, even if it was tried before."""
    text = new_api_key()
    with pytest.raises(InvalidApiKey):
        await cached.authenticate(text)
    await add(cached.keys, text=text)

    assert await cached.authenticate(text) == A_STORE


async def test_unavailable_database_is_not_cached(cached: Cached) -> None:
    """Cached owners are still accepted; others are, once the database is back."""
    _, used = await cached.new_key()
    _, unused = await cached.new_key()
    await cached.authenticate(used)
    cached.keys.away = True

    from_cache = await cached.authenticate(used)
    with pytest.raises(DatabaseUnavailable):
        await cached.authenticate(unused)
    cached.keys.away = False

    assert from_cache == A_STORE
    assert await cached.authenticate(unused) == A_STORE


async def test_each_token_is_cached_separately(cached: Cached) -> None:
    """Two keys of one owner expire separately. A token that only resembles a cached one, or is its
    hash, is rejected."""
    first, text = await cached.new_key()
    _, other = await cached.new_key()
    _, others = await cached.new_key(Owner(channel=Channel.B2B, id="store-2"))
    await cached.authenticate(text)
    cached.time += 3
    owners = [await cached.authenticate(other), await cached.authenticate(others)]
    await cached.keys.revoke(first.id)
    cached.time += 2

    assert [str(owner) for owner in owners] == ["b2b:store-1", "b2b:store-2"]
    assert await cached.authenticate(other) == A_STORE
    for bad in (text, other[:-1], other + "0", other.upper(), key_sha256(other)):
        with pytest.raises(Unauthenticated):
            await cached.authenticate(bad)


async def test_cache_size_is_bounded(cached: Cached, monkeypatch: pytest.MonkeyPatch) -> None:
    """The entry with the oldest lookup is evicted first; a cache hit does not renew an entry, a new
    lookup does."""
    monkeypatch.setattr("adapters.auth.bearer.MAX_CACHED", 3)
    texts = [(await cached.new_key())[1] for _ in range(5)]
    for text in texts[:3]:
        await cached.authenticate(text)
    cached.time += SECONDS
    await cached.authenticate(texts[1])  # the newest entry now; this evicts none
    await cached.authenticate(texts[3])
    await cached.authenticate(texts[4])
    lookups = cached.keys.lookups

    for text in (texts[1], texts[3], texts[4]):
        await cached.authenticate(text)
    assert (lookups, cached.keys.lookups, len(cached.authenticate._cache)) == (6, 6, 3)
    await cached.authenticate(texts[0])
    assert (cached.keys.lookups, len(cached.authenticate._cache)) == (7, 3)


async def test_cache_holds_no_tokens(cached: Cached) -> None:
    """Reading the process's memory does not reveal a usable token."""
    _, text = await cached.new_key()
    users = token(claims())
    for secret in (text, users):
        await cached.authenticate(secret)

    contents = repr(cached.authenticate._cache)

    assert text not in contents
    assert users not in contents
