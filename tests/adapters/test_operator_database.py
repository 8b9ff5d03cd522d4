"""The connections for operators: read-only, bounded on the server, and one state of the database in
a transaction."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import replace
from datetime import timedelta

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.operations.postgres import PostgresOperatorReads
from adapters.postgres.database import Database
from adapters.postgres.limits import OPERATORS, DatabaseLimits
from domain.errors import DatabaseUnavailable
from domain.ids import uuid7_floor
from tests.adapters.databases import connected
from tests.contracts.backends import SETTLED_WITHIN, PostgresBackend
from tests.support.examples import USER

pytestmark = pytest.mark.anyio

SHORT = replace(OPERATORS, command_seconds=30, statement_seconds=0.1)
SET = "UPDATE book_checks SET due_at = now()"
COUNT = "SELECT count(*) FROM credit_accounts"


@pytest.fixture
async def backend(postgres: EmbeddedPostgres) -> AsyncIterator[PostgresBackend]:
    async with connected(postgres.url(), DatabaseLimits()) as database:
        backend = PostgresBackend(database)
        await backend.empty()
        yield backend


def sqlstate_of(error: DatabaseUnavailable) -> str:
    assert error.cause is not None
    return error.cause.detail.split()[0]


@pytest.mark.parametrize("pooled", [False, True])
async def test_operators_cannot_write(postgres: EmbeddedPostgres, *, pooled: bool) -> None:
    """Neither by a statement of its own nor in a transaction of any kind."""
    async with connected(postgres.url(), OPERATORS, transaction_pooler=pooled) as database:
        with pytest.raises(DatabaseUnavailable) as single:
            await database.fetch(SET)
        with pytest.raises(DatabaseUnavailable) as plain:
            async with database.transaction() as connection:
                await connection.execute(SET)
        with pytest.raises(DatabaseUnavailable) as snapshot:
            async with database.snapshot() as connection:
                await connection.execute(SET)

    assert [sqlstate_of(one.value) for one in (single, plain, snapshot)] == ["25006"] * 3


async def test_snapshot_refuses_to_write_on_any_connection(postgres: EmbeddedPostgres) -> None:
    """Also where the connection may write otherwise."""
    async with connected(postgres.url(), DatabaseLimits()) as database:
        with pytest.raises(DatabaseUnavailable) as refusal:
            async with database.snapshot() as connection:
                await connection.execute(SET)

    assert sqlstate_of(refusal.value) == "25006"


@pytest.mark.parametrize("pooled", [False, True])
async def test_server_ends_a_slow_statement(postgres: EmbeddedPostgres, *, pooled: bool) -> None:
    """By itself: the caller would have waited."""
    async with connected(postgres.url(), SHORT, transaction_pooler=pooled) as database:
        with pytest.raises(DatabaseUnavailable) as single:
            await database.fetch("SELECT pg_sleep(60)")
        with pytest.raises(DatabaseUnavailable) as snapshot:
            async with database.snapshot() as connection:
                await connection.execute("SELECT pg_sleep(60)")

    assert [sqlstate_of(one.value) for one in (single, snapshot)] == ["57014"] * 2


async def nap_often(database: Database) -> None:
    async with database.snapshot() as connection:
        for _ in range(100):
            await connection.execute("SELECT pg_sleep(0.2)")


async def test_timeout_covers_all_statements_of_a_snapshot(postgres: EmbeddedPostgres) -> None:
    """None of them reaches it."""
    limits = replace(OPERATORS, command_seconds=1.0)
    async with connected(postgres.url(), limits) as database:
        with pytest.raises(DatabaseUnavailable, match="does not answer"):
            await nap_often(database)


@pytest.mark.parametrize("pooled", [False, True])
async def test_statements_of_a_snapshot_agree(
    postgres: EmbeddedPostgres, backend: PostgresBackend, *, pooled: bool
) -> None:
    """What is committed meanwhile is seen by the next one."""
    async with connected(postgres.url(), OPERATORS, transaction_pooler=pooled) as database:
        async with database.snapshot() as connection:
            before = await connection.fetchval(COUNT)
            await backend.credits.grant(USER, 1, note="test")
            after = await connection.fetchval(COUNT)
        later = await database.fetch_value(COUNT)

    assert (before, after, later) == (0, 0, 1)


@pytest.mark.parametrize("pooled", [False, True])
async def test_reads_need_no_more_than_these_connections(
    postgres: EmbeddedPostgres, backend: PostgresBackend, *, pooled: bool
) -> None:
    """All calls work on them, also many at once."""
    session_id = await backend.queued()
    async with connected(postgres.url(), OPERATORS, transaction_pooler=pooled) as database:
        reads = PostgresOperatorReads(database, settled_within=SETTLED_WITHIN)
        snapshots = await asyncio.gather(*(reads.snapshot() for _ in range(10)))
        file = await reads.session_file(session_id)

    assert {snapshot.queued for snapshot in snapshots} == {1}
    assert file.session.id == session_id


async def test_totals_are_read_once_a_minute(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """They read every account. The rest of the snapshot is new."""
    async with connected(postgres.url(), OPERATORS) as database:
        reads = PostgresOperatorReads(database, settled_within=SETTLED_WITHIN)
        await backend.set_externally("completed")
        first = await reads.snapshot()
        await backend.set_externally("completed")
        second = await reads.snapshot()
        assert reads._totals is not None
        reads._totals = replace(reads._totals, at=first.at - timedelta(seconds=61))
        third = await reads.snapshot()

    assert [found.completed_total for found in (first, second, third)] == [1, 1, 2]
    assert [found.last_minute.completed for found in (first, second, third)] == [1, 2, 2]


async def test_windows_read_the_ids_of_sessions_that_may_end_in_them(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """And of no older ones, however many there are: a session that is older than a day and all that
    a session may take is not looked at."""
    bound = timedelta(days=1) + SETTLED_WITHIN
    async with connected(postgres.url(), OPERATORS) as database:
        reads = PostgresOperatorReads(database, settled_within=SETTLED_WITHIN)
        for age in (bound, bound + timedelta(minutes=5)):
            made_at = backend.now() - age
            id_ = (await backend.created(id=uuid7_floor(made_at))).session.id
            await backend.external_write(id_, status="completed")
        found = await reads.snapshot()

    assert found.last_day.completed == 1
