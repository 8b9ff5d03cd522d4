"""The connections of a process leave room for other processes after a burst, and a burst leaves one
for recovery and the confirmation of pushes."""

import asyncio
from collections.abc import AsyncIterator
from pathlib import Path

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import BACKGROUND, DatabaseLimits
from config import options
from config.closing import close
from config.container import Container
from config.settings import Settings
from domain.sessions import SessionStatus
from tests.adapters.databases import connected
from tests.contracts.backends import PostgresBackend
from tests.support.examples import USER, a_request

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 10.0
BURST = 5
OTHERS = """
    SELECT count(*) FROM pg_stat_activity
    WHERE backend_type = 'client backend' AND pid <> pg_backend_pid()"""


@pytest.fixture
async def observer(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with connected(postgres.url(), DatabaseLimits(connections=1)) as database:
        await PostgresBackend(database).empty()
        yield database


async def _until(observer: Database, connections: int) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await observer.fetch_value(OTHERS) != connections:
            pass


async def test_idle_connections_are_closed(postgres: EmbeddedPostgres, observer: Database) -> None:
    """All of a burst; the next call opens one again."""
    before = await observer.fetch_value(OTHERS)
    limits = DatabaseLimits(connections=BURST, idle_seconds=0.3)
    async with connected(postgres.url(), limits) as database:
        await asyncio.gather(*(database.fetch("SELECT pg_sleep(0.1)") for _ in range(BURST)))
        in_burst = await observer.fetch_value(OTHERS)

        await _until(observer, before)

        assert in_burst == before + BURST
        assert await database.fetch_value("SELECT 1") == 1


def test_connections_of_a_burst_are_idle_for_seconds() -> None:
    """Those of recovery and confirmation stay, because the server may have no room for others."""
    assert DatabaseLimits().idle_seconds <= 15
    assert BACKGROUND.connections == 1
    assert BACKGROUND.idle_seconds >= 300


async def test_busy_pool_stops_neither_recovery_nor_confirmation(
    postgres: EmbeddedPostgres, observer: Database, tmp_path: Path
) -> None:
    """All its connections are taken. A refund, a lost task and a confirmed push have their own."""
    backend = PostgresBackend(observer)
    failed = await backend.set_externally("failed")
    await backend.credits.grant(USER, 1, note="test")
    container = Container(
        settings=Settings(
            environment=options.Environment.DEVELOPMENT,
            database_url=postgres.url(),
            queue=options.Queue.MEMORY,
            storage=options.Storage.MEMORY,
            data_dir=tmp_path,
            jwt_secret="s" * 32,
            signing_secret="s" * 32,
            database_connections=1,
            database_seconds=1.0,
        )
    )
    submitted = (await container.submission().submit(a_request(USER))).session.id

    async with container.database().transaction():
        await container.submission().confirm_pushed()
        report = await container.recovery().run_once()
    await close(container)

    assert (await backend.get(submitted)).confirmed
    assert (await backend.get(submitted)).status is SessionStatus.QUEUED
    assert report.refunded == 1
    assert await backend.money_of(failed) == ["debit", "refund"]
