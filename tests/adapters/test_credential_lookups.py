"""Credentials are looked up together: a busy process does it all the time, and a new page of a
shop's makes all its requests at once."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.client_tokens import ClientToken
from domain.credits import Channel, Owner
from domain.ports import ApiKey
from tests.adapters.console import Console
from tests.support.clock import START
from tests.support.examples import STORE

pytestmark = pytest.mark.anyio

LOOKUPS = 60


class CountingDatabase(Database):
    """Counts its statements."""

    statements = 0

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        self.statements += 1
        return await super().fetch(sql, *arguments)


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[CountingDatabase]:
    database = CountingDatabase(postgres.url(), limits=DatabaseLimits())
    await Console(database).empty()
    yield database
    await database.close()


async def together(database: CountingDatabase, find: Any, hashes: list[str]) -> list[Any]:
    """What is found by concurrent look-ups, which have to share one statement."""
    database.statements = 0
    found = await asyncio.gather(*map(find, hashes))
    assert database.statements == 1
    return found


async def test_keys_are_looked_up_together(database: CountingDatabase) -> None:
    """Each look-up gets its own answer, also if two are for the same key, or one for none."""
    console = Console(database)
    owners = [Owner(channel=Channel.B2B, id=f"store-{number}") for number in range(LOOKUPS)]
    keys = [
        ApiKey(id=uuid4(), owner=owner, key_sha256=uuid4().hex * 2, label="", created_at=START)
        for owner in owners
    ]
    for key in keys:
        await console.api_keys.add(key)
    hashes = [key.key_sha256 for key in keys]

    found = await together(database, console.api_keys.caller_of, [*hashes, hashes[0], "0" * 64])

    assert [caller and caller.owner for caller in found] == [*owners, owners[0], None]


async def test_client_tokens_are_looked_up_together(database: CountingDatabase) -> None:
    console = Console(database)
    await console.name_origins(STORE, ["https://a.example"])
    now = datetime.now(UTC)
    tokens = [
        ClientToken(
            id=uuid4(),
            store=STORE,
            shopper_id=f"shopper-{number}",
            token_sha256=uuid4().hex * 2,
            origin="https://a.example",
            pictures=1,
            created_at=now,
            expires_at=now + timedelta(minutes=5),
        )
        for number in range(LOOKUPS)
    ]
    for token in tokens:
        await console.client_tokens.add(token, max_live=1)
    hashes = [token.token_sha256 for token in tokens]

    found = await together(database, console.client_tokens.find, [*hashes, hashes[0], "0" * 64])

    ids = [token.id for token in tokens]
    assert [token and token.id for token in found] == [*ids, ids[0], None]
