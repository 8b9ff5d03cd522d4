"""BearerAuthenticator: API keys, and the cache."""

import hashlib
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import jwt
import pytest

from adapters.auth.api_keys import API_KEY_PREFIX, StoreKeys, key_sha256, new_api_key
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.memory import InMemoryApiKeyRepo
from adapters.auth.user_keys import KeyRules, UserKeys
from adapters.auth.user_tokens import UserTokens, mint_user_token
from domain.callers import Caller
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, InvalidApiKey, Unauthenticated
from domain.ports import ApiKey
from tests.support.examples import STORE, USER
from tests.support.tokens import (
    ALGORITHMS,
    NOW,
    RULES,
    FakeProvider,
    claims,
    es256,
    hs256,
    seconds,
    token,
)

pytestmark = pytest.mark.anyio

A_USER = Caller(owner=USER, any_origin=True)
A_STORE = Caller(owner=STORE)


@pytest.fixture
def keys() -> InMemoryApiKeyRepo:
    return InMemoryApiKeyRepo(clock=lambda: datetime.now(UTC))


@pytest.fixture
def authenticate(keys: InMemoryApiKeyRepo) -> BearerAuthenticator:
    return BearerAuthenticator(keys={API_KEY_PREFIX: StoreKeys(keys)}, users=UserTokens(RULES))


async def test_minted_token_is_accepted(authenticate: BearerAuthenticator) -> None:
    """The tokens of a development stack are valid."""
    minted = mint_user_token(
        UUID(USER.id), rules=RULES, now=datetime.now(UTC), lifetime=timedelta(minutes=1)
    )

    assert await authenticate(minted) == A_USER


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
        "iss": RULES.issuer,
        "aud": "them",
        "iat": 1_767_225_600,
        "exp": 1_767_229_200,
    }


SECONDS = 5.0


class Cached:
    """An authenticator with a cache, its keys and its clocks."""

    def __init__(self) -> None:
        self.keys = CountingKeys(clock=lambda: datetime.now(UTC))
        self.time = 100.0
        self.now = NOW
        self.provider = FakeProvider()
        self.user_keys = UserKeys(
            self.provider, KeyRules(algorithms=ALGORITHMS), clock=lambda: self.time
        )
        self.authenticate = BearerAuthenticator(
            keys={API_KEY_PREFIX: StoreKeys(self.keys)},
            users=UserTokens(RULES, keys=self.user_keys, clock=lambda: self.now),
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


@pytest.mark.parametrize("seconds_left", [-25, 1, 60])
async def test_cached_token_expires(cached: Cached, seconds_left: float) -> None:
    """A cached caller never outlives its token and the leeway: both clocks are asked at each use.
    Expired, it is rejected like a token that was never cached."""
    users = hs256(exp=seconds(seconds_left))
    await cached.authenticate(users)

    cached.now = NOW + timedelta(seconds=seconds_left + 29.9)
    from_cache = await cached.authenticate(users)
    cached.now = NOW + timedelta(seconds=seconds_left + 30)

    assert from_cache == A_USER
    with pytest.raises(Unauthenticated, match=r"^The token has expired$"):
        await cached.authenticate(users)


async def test_cached_token_outlives_no_key(cached: Cached) -> None:
    """From the fetch on that shows the key's removal; tokens of other keys stay cached."""
    removed, stays = es256("removed"), es256("stays")
    tokens = [
        token(claims(), {"alg": "ES256", "kid": kid}, pair.sign)
        for kid, pair in (("removed", removed), ("stays", stays))
    ]
    cached.provider.publish(removed.named("removed"), stays.named("stays"))
    first = [await cached.authenticate(each) for each in tokens]
    fetches = cached.provider.fetches
    cached.provider.publish(stays.named("stays"))
    before = await cached.authenticate(tokens[0])
    await cached.user_keys._started_fetch()

    assert [*first, before] == [A_USER] * 3
    with pytest.raises(Unauthenticated, match=r"^The token's key is not known$"):
        await cached.authenticate(tokens[0])
    assert await cached.authenticate(tokens[1]) == A_USER
    assert (fetches, cached.provider.fetches) == (1, 2)


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
    users = hs256()
    for secret in (text, users):
        await cached.authenticate(secret)

    contents = repr(cached.authenticate._cache)

    assert text not in contents
    assert users not in contents
