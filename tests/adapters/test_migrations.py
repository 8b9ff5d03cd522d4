"""Each migration is applied once, in order, and completely or not at all."""

import asyncio
import re
import subprocess
from collections.abc import AsyncIterator
from pathlib import Path
from uuid import uuid4
from zipfile import ZipFile

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import (
    Migration,
    MigrationError,
    Schema,
    all_migrations,
    migrate,
)
from domain.errors import SchemaMismatch

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[2]

FIRST = Migration(name="0001_first", sql="CREATE TABLE first (); CREATE TABLE other ();")
SECOND = Migration(name="0002_second", sql="ALTER TABLE first ADD COLUMN number integer;")


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """An empty database for one test."""
    name = f"migrations-{uuid4()}"
    await asyncio.to_thread(postgres.create_database, name)
    database = Database(postgres.url(name), limits=DatabaseLimits(command_seconds=1))
    yield database
    await database.close()


async def contents(database: Database) -> list[str]:
    """Every table and column, and every recorded migration."""
    rows = await database.fetch(
        "SELECT table_name || '.' || coalesce(column_name, '') FROM information_schema.tables"
        " LEFT JOIN information_schema.columns USING (table_schema, table_name)"
        " WHERE table_schema = 'public'"
    )
    found = sorted(row[0] for row in rows)
    if "schema_migrations.name" in found:
        rows = await database.fetch("SELECT name, sha256, applied_at FROM schema_migrations")
        found += sorted(str(tuple(row)) for row in rows)
    return found


async def test_all_migrations_apply_to_an_empty_database(database: Database) -> None:
    applied = await migrate(database, all_migrations())

    assert applied == [migration.name for migration in all_migrations()]
    assert await database.fetch("SELECT FROM generation_sessions") == []


async def test_migration_is_applied_once(database: Database) -> None:
    """A second run changes nothing and returns no names."""
    assert await migrate(database, [FIRST]) == ["0001_first"]
    before = await contents(database)

    assert await migrate(database, [FIRST]) == []

    assert await contents(database) == before


async def test_only_missing_migrations_are_applied(database: Database) -> None:
    """As when a newer version is deployed."""
    await migrate(database, [FIRST])

    assert await migrate(database, [FIRST, SECOND]) == ["0002_second"]

    assert "first.number" in await contents(database)


async def test_concurrent_runs_apply_migrations_once(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    """Every process of a deployment may migrate when it starts. One applies each migration; the
    others wait for it, longer than the timeout of other statements if needed."""
    slow = Migration(name="0003_slow", sql="SELECT pg_sleep(1.5); CREATE TABLE slow ();")
    name = await database.fetch_value("SELECT current_database()")
    limits = DatabaseLimits(command_seconds=1)
    processes = [Database(postgres.url(name), limits=limits) for _ in range(10)]

    results = await asyncio.gather(*(migrate(each, [FIRST, SECOND, slow]) for each in processes))

    assert sorted(name for names in results for name in names) == [
        "0001_first",
        "0002_second",
        "0003_slow",
    ]
    await asyncio.gather(*(each.close() for each in processes))


async def test_changed_migration_is_rejected(database: Database) -> None:
    """Before any change, so no other missing migration is applied either."""
    await migrate(database, [FIRST])
    before = await contents(database)
    changed = Migration(name=FIRST.name, sql=FIRST.sql + " ")

    with pytest.raises(MigrationError, match="0001_first was changed"):
        await migrate(database, [changed, SECOND])

    assert await contents(database) == before


async def test_newer_database_is_rejected(database: Database) -> None:
    """An older version does not change a database with unknown migrations."""
    third = Migration(name="0003_third", sql="CREATE TABLE third ();")
    await migrate(database, [FIRST, third])
    before = await contents(database)

    with pytest.raises(MigrationError, match="0003_third was applied by a newer version"):
        await migrate(database, [FIRST, SECOND])

    assert await contents(database) == before


async def test_failed_migration_leaves_nothing_behind(database: Database) -> None:
    """Earlier migrations of the same run stay applied; of the failed one there is no half."""
    broken = Migration(name="0002_broken", sql="CREATE TABLE half (); SELECT 1 / 0;")

    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(database, [FIRST, broken])

    assert "half." not in await contents(database)
    assert await migrate(database, [FIRST, SECOND]) == ["0002_second"]


async def test_migration_that_is_blocked(postgres: EmbeddedPostgres, database: Database) -> None:
    """While a transaction holds a table, the migration gives up its place in the line again and
    again, so that other statements on the table get through; it names who holds the lock, and
    nobody else, and is applied once the lock is free."""
    await migrate(database, [FIRST])
    name = await database.fetch_value("SELECT current_database()")
    await database.fetch("CREATE SCHEMA elsewhere")
    await database.fetch("CREATE TABLE elsewhere.first ()")
    await database.close()
    console = await asyncpg.connect(postgres.url("postgres"))
    await console.execute(f'CREATE DATABASE "{name}-copy" TEMPLATE "{name}"')
    await console.close()
    others = [
        await _in_transaction(postgres.url(name), "SELECT 1"),
        await _in_transaction(postgres.url(name), "SELECT FROM elsewhere.first"),
        await _in_transaction(postgres.url(f"{name}-copy"), "SELECT FROM first"),
    ]
    holder = await _in_transaction(postgres.url(name), "SELECT FROM first")
    waiting = await asyncpg.connect(postgres.url(name))
    altering = asyncio.create_task(waiting.execute("ALTER TABLE first ADD COLUMN other integer"))
    reported: asyncio.Queue[str] = asyncio.Queue()

    migrating = asyncio.create_task(migrate(database, [FIRST, SECOND], report=reported.put_nowait))
    line = await asyncio.wait_for(reported.get(), 20)
    await holder.execute("COMMIT")
    await asyncio.wait_for(altering, 20)
    applied = await asyncio.wait_for(migrating, 20)

    assert re.fullmatch(
        rf"waiting for process {holder.get_server_pid()} of \S+"
        r" \(holder, idle in transaction, in a transaction for \d+ s\)",
        line,
    )
    assert applied == ["0002_second"]
    for connection in (*others, holder, waiting):
        await connection.close()


async def _in_transaction(url: str, sql: str) -> "asyncpg.Connection[asyncpg.Record]":
    """A connection that holds the locks of ``sql``."""
    connection = await asyncpg.connect(url, server_settings={"application_name": "holder"})
    await connection.execute(f"BEGIN; {sql}")
    return connection


async def test_migration_lets_others_through(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    """A reader waits for a migration that waits for a lock, and for no longer than its timeout."""
    await migrate(database, [FIRST])
    url = postgres.url(await database.fetch_value("SELECT current_database()"))
    holder = await _in_transaction(url, "SELECT FROM first")
    reported: asyncio.Queue[str] = asyncio.Queue()
    migrating = asyncio.create_task(migrate(database, [FIRST, SECOND], report=reported.put_nowait))
    await asyncio.wait_for(reported.get(), 20)

    reader = await asyncpg.connect(url)
    async with asyncio.timeout(10):
        await reader.execute("SELECT FROM first")

    await holder.execute("COMMIT")
    assert await asyncio.wait_for(migrating, 20) == ["0002_second"]
    await holder.close()
    await reader.close()


async def test_schema_of_this_version(database: Database) -> None:
    """The check names the first missing migration, and passes once all are applied."""
    schema = Schema(database, [FIRST, SECOND])

    with pytest.raises(SchemaMismatch, match="The database is empty: run `wearon migrate`"):
        await schema.check()
    await migrate(database, [FIRST])
    with pytest.raises(SchemaMismatch, match="lacks migration 0002_second: run `wearon migrate`"):
        await schema.check()
    await migrate(database, [FIRST, SECOND])
    await schema.check()


async def test_schema_of_a_newer_version(database: Database) -> None:
    """An older version does not start on it. One that runs already goes on: a deployment migrates
    before it replaces the processes."""
    running = Schema(database, [FIRST])
    await migrate(database, [FIRST])
    await running.check()
    await migrate(database, [FIRST, SECOND])

    await running.check()

    with pytest.raises(SchemaMismatch, match="0002_second was applied by a newer version"):
        await Schema(database, [FIRST]).check()


async def test_migrations_apply_behind_a_transaction_pooler(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    """The lock belongs to the transaction, so none remains."""
    name = await database.fetch_value("SELECT current_database()")
    pooled = Database(postgres.url(name), limits=DatabaseLimits(), transaction_pooler=True)

    assert await migrate(pooled, [FIRST]) == ["0001_first"]

    assert await database.fetch("SELECT FROM pg_locks WHERE locktype = 'advisory'") == []
    await pooled.close()


def test_migrations_are_ordered_by_name() -> None:
    """The names begin with a sequence number."""
    names = [migration.name for migration in all_migrations()]

    assert names == sorted(names)
    assert names[0] == "0001_initial"


def test_wheel_contains_the_migrations(tmp_path: Path) -> None:
    """Exactly the files that the tests use."""
    uv, options = REPOSITORY / ".uv/bin/uv", ["--wheel", "--offline", "--quiet"]
    build: list[str | Path] = [uv, "build", *options, "--out-dir", tmp_path, REPOSITORY]
    subprocess.run(build, check=True, timeout=60)

    (wheel,) = tmp_path.glob("*.whl")
    with ZipFile(wheel) as files:
        shipped = {
            Path(name).stem: files.read(name).decode()
            for name in files.namelist()
            if name.startswith("adapters/postgres/migrations/") and name.endswith(".sql")
        }
    assert shipped == {migration.name: migration.sql for migration in all_migrations()}
