"""Erasure in PostgreSQL beside other transactions."""

import asyncio
from collections.abc import AsyncIterator

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from tests.adapters.batching import waiting_for_a_lock
from tests.adapters.console import Console

pytestmark = pytest.mark.anyio


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    console = Console(database)
    await console.empty()
    yield console
    await database.close()


async def test_erasure_waits_for_a_locked_session(console: Console) -> None:
    """A session that another transaction holds is erased once that ends, and never passed over as
    if there were nothing to erase."""
    session_id = await console.in_state("failed")

    async with console.database.transaction() as connection:
        await connection.execute(
            "SELECT FROM generation_sessions WHERE id = $1 FOR UPDATE", session_id
        )
        waiting = asyncio.create_task(console.erasure.erase([session_id]))
        await waiting_for_a_lock(console.database)

    assert await waiting == 1
