"""Shoppers in PostgreSQL: their sessions lose their ids, they and their client tokens go."""

import asyncio
from collections.abc import AsyncIterator
from uuid import UUID

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import Channel, Owner
from tests.adapters.batching import waiting_for_a_lock
from tests.adapters.console import Console
from tests.support.examples import FAILURE, FAULT, STORE

pytestmark = pytest.mark.anyio

ANOTHER = Owner(channel=Channel.B2B, id="store-2")
EMPTY = "DELETE FROM client_tokens", "DELETE FROM shoppers", "DELETE FROM stores"
ADD_STORE = "INSERT INTO stores (id, name) VALUES ($1, $1) ON CONFLICT DO NOTHING"
ADD_SHOPPER = "INSERT INTO shoppers (store_id, shopper_id) VALUES ($1, $2)"
ADD_TOKEN = """
    INSERT INTO client_tokens (id, store_id, shopper_id, token_sha256, origin, pictures, expires_at)
    VALUES (gen_random_uuid(), $1, $2, encode(sha256(gen_random_uuid()::text::bytea), 'hex'),
        'https://shop.example', 5, now() + interval '1 hour')"""
OF_SHOPPER = "UPDATE generation_sessions SET shopper_id = $2 WHERE id = $1"
SHOPPERS = "SELECT store_id, shopper_id FROM shoppers ORDER BY 1, 2"
TOKENS = "SELECT store_id, shopper_id FROM client_tokens ORDER BY 1, 2"
SHOPPER_OF = "SELECT shopper_id FROM generation_sessions WHERE id = $1"


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    console = Console(database)
    await console.empty()
    for statement in EMPTY:
        await console.run(statement)
    yield console
    for statement in EMPTY:
        await console.run(statement)
    await database.close()


async def add_shopper(console: Console, store: Owner, shopper: str) -> None:
    """A shopper with two client tokens."""
    await console.run(ADD_STORE, store.id)
    await console.run(ADD_SHOPPER, store.id, shopper)
    for _ in range(2):
        await console.run(ADD_TOKEN, store.id, shopper)


async def failed_session(console: Console, shopper: str, owner: Owner = STORE) -> UUID:
    session = await console.claimed(owner)
    await console._rewrite(OF_SHOPPER, session.id, shopper)
    assert await console.attempts.fail(session.id, FAILURE, attempt=1, fault=FAULT)
    return session.id


async def shopper_of(console: Console, session_id: UUID) -> str | None:
    shopper: str | None = await console.database.fetch_value(SHOPPER_OF, session_id)
    return shopper


async def test_sessions_of_one_shopper_are_found(console: Console) -> None:
    """Neither another shopper's of the store, nor another store's of the same name."""
    wanted = [await failed_session(console, "ann") for _ in range(3)]
    await failed_session(console, "bob")
    await failed_session(console, "ann", ANOTHER)

    found = await console.erasure.sessions_of(STORE, shopper="ann", limit=9, after=None)

    assert [session.id for session in found] == wanted[::-1]


async def test_shopper_id_goes_only_when_asked_for(console: Console) -> None:
    """The shopper's own erasure of one picture leaves the session visible to the shopper; the
    operator's erasure takes the id as well, also afterwards."""
    session_id = await failed_session(console, "ann")
    seen: list[object] = []

    for with_shopper in (False, True, True):
        seen.append(await console.erasure.erase([session_id], with_shopper=with_shopper))
        seen.append(await shopper_of(console, session_id))

    assert seen == [1, "ann", 1, None, 0, None]
    assert await console.erasure.sessions_of(STORE, shopper="ann", limit=9, after=None) == []


async def test_one_shopper_is_forgotten_with_the_tokens(console: Console) -> None:
    """Others stay: of the store, and the namesake at another store."""
    for store, shopper in ((STORE, "ann"), (STORE, "bob"), (ANOTHER, "ann")):
        await add_shopper(console, store, shopper)

    counts = [
        await console.erasure.forget_shoppers(STORE, shopper="ann", limit=9) for _ in range(2)
    ]

    assert counts == [1, 0]
    left = [(STORE.id, "bob"), (ANOTHER.id, "ann")]
    assert [tuple(row) for row in await console.database.fetch(SHOPPERS)] == left
    tokens = [tuple(row) for row in await console.database.fetch(TOKENS)]
    assert tokens == [pair for pair in left for _ in range(2)]


async def test_shoppers_are_forgotten_in_batches(console: Console) -> None:
    """Up to the limit in each call; fewer mean that none is left."""
    for number in range(5):
        await add_shopper(console, STORE, f"shopper-{number}")

    counts = [await console.erasure.forget_shoppers(STORE, shopper=None, limit=2) for _ in range(3)]

    assert counts == [2, 2, 1]
    assert await console.database.fetch(SHOPPERS) == []


async def test_erasure_waits_for_a_locked_session(console: Console) -> None:
    """A session that another transaction holds is erased once that ends, and never passed over as
    if there were nothing to erase."""
    session_id = await failed_session(console, "ann")

    async with console.database.transaction() as connection:
        await connection.execute(
            "SELECT FROM generation_sessions WHERE id = $1 FOR UPDATE", session_id
        )
        waiting = asyncio.create_task(console.erasure.erase([session_id]))
        await waiting_for_a_lock(console.database)

    assert await waiting == 1
