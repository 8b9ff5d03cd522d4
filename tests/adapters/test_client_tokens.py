"""Client tokens in PostgreSQL: shoppers go after their last token, and no new token is lost."""

import asyncio
from collections.abc import AsyncIterator
from datetime import timedelta

import pytest

from adapters.client_tokens.postgres import PostgresClientTokenRepo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from tests.adapters.batching import waiting_for_a_lock
from tests.contracts.backends import PostgresBackend
from tests.support.examples import MANY, ORIGINS, STORE, a_token

pytestmark = pytest.mark.anyio

HOUR, DAY = timedelta(hours=1), timedelta(days=1)
SHOPPERS = "SELECT count(*) FROM shoppers"
OLD_SHOPPER = """
    INSERT INTO shoppers (store_id, shopper_id, seen_at)
    VALUES ($1, 'anna', now() - interval '3 days')"""
LOCK_SHOPPERS = "SELECT FROM shoppers FOR UPDATE"


@pytest.fixture
async def backend(postgres: EmbeddedPostgres) -> AsyncIterator[PostgresBackend]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    try:
        backend = PostgresBackend(database)
        await backend.empty()
        await backend.name_origins(STORE, ORIGINS)
        yield backend
    finally:
        await database.close()


async def shoppers(backend: PostgresBackend) -> int:
    count: int = await backend._database.fetch_value(SHOPPERS)
    return count


async def test_shopper_is_deleted_after_its_last_token(backend: PostgresBackend) -> None:
    """Not before, and not while refunds count against it."""
    tokens = backend.client_tokens
    await tokens.add(a_token(created_at=backend.now()), max_live=MANY)
    counts = []

    await backend.advance(HOUR + DAY / 2)
    await tokens.purge(expired_for=DAY, limit=10)
    counts.append(await shoppers(backend))
    await backend.advance(DAY)
    await backend._database.fetch("UPDATE shoppers SET refunds_hour = now()")
    await tokens.purge(expired_for=DAY, limit=10)
    counts.append(await shoppers(backend))
    await backend.advance(DAY + HOUR)
    await tokens.purge(expired_for=DAY, limit=10)
    counts.append(await shoppers(backend))

    assert counts == [1, 1, 0]


async def test_new_token_and_purge_do_not_collide(
    backend: PostgresBackend, postgres: EmbeddedPostgres
) -> None:
    """The purge leaves a locked shopper alone, and one that has a new token."""
    tokens = backend.client_tokens
    await backend._database.fetch(OLD_SHOPPER, STORE.id)
    other = Database(postgres.url(), limits=DatabaseLimits())
    new = a_token(created_at=backend.now())
    async with backend._database.transaction() as connection:
        await connection.fetch(LOCK_SHOPPERS)
        adding = asyncio.create_task(PostgresClientTokenRepo(other).add(new, max_live=MANY))
        await waiting_for_a_lock(backend._database)
        await tokens.purge(expired_for=DAY, limit=10)
    await adding
    await tokens.purge(expired_for=DAY, limit=10)
    await other.close()

    assert await tokens.get(new.id) == new
    assert await shoppers(backend) == 1
