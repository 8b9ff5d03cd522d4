"""ClientTokenRepoPort: tokens are added within a limit, found, listed, revoked and purged."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from adapters.client_tokens.postgres import PostgresClientTokenRepo
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.client_tokens import ClientToken, ClientTokenRepoPort
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, InvalidInput, TooManyTokens
from tests.contracts.backends import Backend
from tests.support.examples import MANY, ORIGINS, STORE, a_token

pytestmark = pytest.mark.anyio

OTHER_STORE = Owner(channel=Channel.B2B, id="store-2")
MINUTE, HOUR, DAY = timedelta(minutes=1), timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def backend(backend: Backend) -> Backend:
    """With two stores."""
    for store in (STORE, OTHER_STORE):
        await backend.name_origins(store, ORIGINS)
    return backend


async def added(backend: Backend, **changes: Any) -> ClientToken:
    """A new token, which lives for an hour."""
    token = a_token(**{"created_at": backend.now()} | changes)
    await backend.client_tokens.add(token, max_live=MANY)
    return token


async def test_token_is_found_by_its_hash(backend: Backend) -> None:
    """With all its fields, among several."""
    tokens = [
        await added(backend, store=store, pictures=n)
        for n in (1, 2)
        for store in (STORE, OTHER_STORE)
    ]

    found = [await backend.client_tokens.find(token.token_sha256) for token in tokens]
    by_id = [await backend.client_tokens.get(token.id) for token in tokens]

    assert found == by_id == tokens


@pytest.mark.parametrize(
    "changed", [str.upper, lambda sha256: sha256[:-1], lambda _: "", lambda _: "\N{TOP HAT}"]
)
async def test_unknown_token_is_not_found(backend: Backend, changed: Callable[[str], str]) -> None:
    """The hash has to match exactly."""
    token = await added(backend, token_sha256="ab" * 32)

    assert await backend.client_tokens.find(changed(token.token_sha256)) is None
    assert await backend.client_tokens.get(uuid4()) is None


async def test_expired_token_is_found(backend: Backend) -> None:
    """So its caller can be told that it has expired."""
    token = await added(backend)
    await backend.advance(HOUR)

    found = await backend.client_tokens.find(token.token_sha256)

    assert found is not None
    assert not found.is_live(backend.now())


async def test_revoked_token_is_not_found(backend: Backend) -> None:
    """Once and for all: a repetition changes nothing. The shopper's others stay."""
    token, kept = await added(backend), await added(backend)

    answers = [await backend.client_tokens.revoke(token.id, STORE)]
    revoked = await backend.client_tokens.get(token.id)
    answers.append(await backend.client_tokens.revoke(token.id, STORE))

    assert answers == [True, True]
    assert revoked is not None
    assert revoked.revoked_at is not None
    assert await backend.client_tokens.get(token.id) == revoked
    assert await backend.client_tokens.find(token.token_sha256) is None
    assert await backend.client_tokens.find(kept.token_sha256) == kept


async def test_token_of_another_store_is_not_revoked(backend: Backend) -> None:
    """Nor an unknown one; the operator may revoke every token."""
    token = await added(backend)
    tokens = backend.client_tokens

    others = [await tokens.revoke(token.id, OTHER_STORE), await tokens.revoke(uuid4(), STORE)]

    assert others == [False, False]
    assert await tokens.find(token.token_sha256) == token
    assert await tokens.revoke(token.id, None)
    assert await tokens.find(token.token_sha256) is None


async def test_origin_must_be_the_store_s(backend: Backend) -> None:
    """When the token is added, and whenever it is found."""
    token = await added(backend)
    await backend.name_origins(STORE, {"https://new.example"})

    with pytest.raises(InvalidInput, match="origin: must be one of the store's origins"):
        await added(backend)
    gone = await backend.client_tokens.find(token.token_sha256)
    await backend.name_origins(STORE, {"https://new.example", token.origin})

    assert gone is None
    assert await backend.client_tokens.find(token.token_sha256) == token


async def test_store_must_exist(backend: Backend) -> None:
    """A mistyped id creates nothing."""
    nobody = Owner(channel=Channel.B2B, id="nobody")

    with pytest.raises(InvalidInput):
        await added(backend, store=nobody)

    assert await backend.client_tokens.live(nobody, shopper_id=None, limit=10) == []


async def test_live_tokens_are_listed_newest_first(backend: Backend) -> None:
    """Of one shopper, or of all shoppers of the store, up to the limit; neither expired nor
    revoked ones."""
    now = backend.now()
    expired = await added(backend, created_at=now - HOUR)
    older = await added(backend, created_at=now - 2 * MINUTE)
    ben = await added(backend, created_at=now - MINUTE, shopper_id="ben")
    newer = await added(backend, created_at=now)
    revoked = await added(backend)
    await backend.client_tokens.revoke(revoked.id, STORE)
    await added(backend, store=OTHER_STORE)
    live = backend.client_tokens.live

    assert await live(STORE, shopper_id="anna", limit=10) == [newer, older]
    assert await live(STORE, shopper_id=None, limit=10) == [newer, ben, older]
    assert await live(STORE, shopper_id="anna", limit=1) == [newer]
    assert await live(STORE, shopper_id=None, limit=2) == [newer, ben]
    assert await live(STORE, shopper_id="ann", limit=10) == []
    assert expired.expires_at <= now


async def test_live_tokens_are_bounded(backend: Backend) -> None:
    """Of each shopper. Neither expired nor revoked ones count."""
    await added(backend, created_at=backend.now() - HOUR)
    first, other_shopper = (
        a_token(created_at=backend.now()),
        a_token(shopper_id="ben", created_at=backend.now()),
    )
    second, third = (a_token(created_at=backend.now()) for _ in range(2))
    tokens = backend.client_tokens

    await tokens.add(first, max_live=1)
    with pytest.raises(TooManyTokens):
        await tokens.add(second, max_live=1)
    await tokens.add(other_shopper, max_live=1)
    await tokens.revoke(first.id, STORE)
    await tokens.add(third, max_live=1)

    assert await tokens.get(second.id) is None
    assert await tokens.live(STORE, shopper_id="anna", limit=10) == [third]


async def test_concurrent_tokens_count_each_other(backend: Backend) -> None:
    """Also those of a shopper who is new."""
    new = [a_token(created_at=backend.now()) for _ in range(20)]

    outcomes = await asyncio.gather(
        *(backend.client_tokens.add(token, max_live=3) for token in new), return_exceptions=True
    )

    assert Counter(type(outcome) for outcome in outcomes) == {TooManyTokens: 17, type(None): 3}
    assert len(await backend.client_tokens.live(STORE, shopper_id="anna", limit=100)) == 3


async def test_expired_tokens_are_purged(backend: Backend) -> None:
    """The oldest first, up to the limit, once they expired long enough ago."""
    now = backend.now()
    oldest, older, young = [
        await added(backend, created_at=now - age) for age in (4 * HOUR, 3 * HOUR, 2 * HOUR)
    ]
    revoked = await added(backend)
    await backend.client_tokens.revoke(revoked.id, STORE)
    tokens = backend.client_tokens
    long_ago = timedelta(minutes=90)

    counts = [await tokens.purge(expired_for=long_ago, limit=1)]
    left = [await tokens.get(token.id) for token in (oldest, older)]
    counts += [await tokens.purge(expired_for=long_ago, limit=10) for _ in range(2)]

    assert counts == [1, 1, 0]
    assert left == [None, older]
    assert await tokens.get(older.id) is None
    assert await tokens.get(young.id) == young
    assert await tokens.get(revoked.id) is not None


async def test_shopper_is_new_again_after_the_purge(backend: Backend) -> None:
    """Of its purged tokens nothing is left that would keep it from getting others."""
    await added(backend, created_at=backend.now() - 2 * DAY)
    await backend.advance(2 * DAY)
    for _ in range(2):
        await backend.client_tokens.purge(expired_for=DAY, limit=10)

    token = await added(backend)

    assert await backend.client_tokens.live(STORE, shopper_id="anna", limit=10) == [token]


CALLS: dict[str, Callable[[ClientTokenRepoPort], Awaitable[object]]] = {
    "add": lambda repo: repo.add(a_token(), max_live=1),
    "find": lambda repo: repo.find("ab" * 32),
    "get": lambda repo: repo.get(uuid4()),
    "live": lambda repo: repo.live(STORE, shopper_id="anna", limit=1),
    "revoke": lambda repo: repo.revoke(uuid4(), STORE),
    "purge": lambda repo: repo.purge(expired_for=DAY, limit=1),
}


@pytest.mark.parametrize("method", CALLS)
async def test_unreachable_database_raises_database_unavailable(
    method: str, tmp_path: Path
) -> None:
    """From every method."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresClientTokenRepo(database))

    await database.close()


def test_every_method_of_the_port_is_called_without_a_server() -> None:
    """No new method is missing above."""
    assert set(CALLS) == {name for name in vars(ClientTokenRepoPort) if not name.startswith("_")}
