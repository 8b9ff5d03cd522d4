"""Behind a transaction pooler such as PgBouncer a connection is ours for a single transaction."""

from contextlib import nullcontext
from urllib.parse import quote

import asyncpg
import pytest

from adapters.embedded.postgres import PORT, EmbeddedPostgres
from adapters.postgres.limits import BACKGROUND, DatabaseLimits
from tests.adapters.databases import connected, create_and_fail
from tests.support import servers

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("pooled", [True, False])
async def test_nothing_is_prepared_behind_a_pooler(
    postgres: EmbeddedPostgres, *, pooled: bool
) -> None:
    """Another client would find what a transaction leaves on its connection. Without a pooler
    statements are prepared, which is faster."""
    limits = DatabaseLimits(connections=1)
    async with connected(postgres.url(), limits, transaction_pooler=pooled) as database:
        for sql in ("SELECT $1::integer", "SELECT $1::text"):
            await database.fetch(sql, None)
        prepared = await database.fetch("SELECT statement FROM pg_prepared_statements")

    assert (prepared == []) is pooled


@pytest.mark.parametrize("pooled", [True, False])
async def test_statement_has_a_transaction_behind_a_pooler(
    postgres: EmbeddedPostgres, *, pooled: bool
) -> None:
    """It takes two round trips, which only a transaction keeps on one connection. So statements
    that cannot run in a transaction fail."""
    async with connected(postgres.url(), transaction_pooler=pooled) as database:
        expected = pytest.raises(asyncpg.ActiveSQLTransactionError) if pooled else nullcontext()
        with expected:
            await database.fetch("VACUUM schema_migrations")


async def test_locks_are_short_behind_a_pooler(postgres: EmbeddedPostgres) -> None:
    """The server ends the transaction of a machine that disappeared before its COMMIT."""
    async with connected(postgres.url(), transaction_pooler=True) as database:
        setting = await database.fetch_value("SHOW idle_in_transaction_session_timeout")

    assert setting == "10s"


@pytest.mark.parametrize("pooled", [True, False])
async def test_wait_for_a_lock_may_be_short(postgres: EmbeddedPostgres, *, pooled: bool) -> None:
    """Recovery gives it up long before its call's timeout; other calls wait on."""
    settings = []
    for limits in (DatabaseLimits(), BACKGROUND):
        async with connected(postgres.url(), limits, transaction_pooler=pooled) as database:
            settings.append(await database.fetch_value("SHOW lock_timeout"))

    assert settings == ["0", "500ms"]


async def test_transaction_is_atomic_behind_a_pooler(postgres: EmbeddedPostgres) -> None:
    """Committed at its end, rolled back by an error."""
    async with connected(postgres.url(), transaction_pooler=True) as database:
        async with database.transaction() as connection:
            await connection.execute("CREATE TABLE kept ()")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await create_and_fail(database, "half")

        found = "SELECT ARRAY[to_regclass('kept') IS NOT NULL, to_regclass('half') IS NOT NULL]"
        assert await database.fetch_value(found) == [True, False]
        await database.fetch("DROP TABLE kept")


async def test_port_6543_means_a_pooler(postgres: EmbeddedPostgres) -> None:
    """It is the port of Supabase's transaction pooler; no setting is needed."""
    with servers.folder() as folder:
        (folder / ".s.PGSQL.6543").symlink_to(postgres.sockets / f".s.PGSQL.{PORT}")
        url = f"postgresql://wearon@{quote(str(folder), safe='')}:6543/wearon"
        async with connected(url, DatabaseLimits(connections=1)) as database:
            await database.fetch("SELECT $1::integer", 1)

            assert await database.fetch("SELECT FROM pg_prepared_statements") == []


@pytest.mark.parametrize("pooled", [True, False])
async def test_schema_of_the_url(postgres: EmbeddedPostgres, *, pooled: bool) -> None:
    """A pooler refuses or ignores it when connecting, and a setting that stays would reach other
    clients. So each transaction begins with it."""
    sql = "SELECT setting, reset_val FROM pg_settings WHERE name = 'search_path'"
    url = f'{postgres.url()}&search_path="it%27s"'
    async with connected(url, transaction_pooler=pooled) as database:
        single = await database.fetch_row(sql)
        async with database.transaction() as connection:
            within = await connection.fetchrow(sql)

    connected_with = '"$user", public' if pooled else '"it\'s"'
    assert single is not None
    assert tuple(single) == ('"it\'s"', connected_with)
    assert within == single
