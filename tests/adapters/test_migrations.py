"""Migrations are applied once each, in order, as a whole or not at all."""

import asyncio
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
from adapters.postgres.migrate import Migration, MigrationError, all_migrations, migrate

pytestmark = pytest.mark.anyio

REPOSITORY = Path(__file__).parents[2]

FIRST = Migration(name="0001_first", sql="CREATE TABLE first (); CREATE TABLE other ();")
SECOND = Migration(name="0002_second", sql="ALTER TABLE first ADD COLUMN number integer;")


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A database of its own, in which there is nothing yet."""
    name = f"migrations-{uuid4()}"
    await asyncio.to_thread(postgres.create_database, name)
    database = Database(postgres.url(name), limits=DatabaseLimits(command_seconds=1))
    yield database
    await database.close()


async def contents(database: Database) -> list[str]:
    """Every table and column that somebody made, and every migration that was noted."""
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


async def test_our_migrations_make_our_tables(database: Database) -> None:
    """All of them, on a database in which there is nothing."""
    applied = await migrate(database, all_migrations())

    assert applied == [migration.name for migration in all_migrations()]
    assert await database.fetch("SELECT FROM generation_sessions") == []


async def test_what_was_applied_is_not_applied_again(database: Database) -> None:
    """The second run does nothing, and says so."""
    assert await migrate(database, [FIRST]) == ["0001_first"]
    before = await contents(database)

    assert await migrate(database, [FIRST]) == []

    assert await contents(database) == before


async def test_only_what_is_missing_is_applied(database: Database) -> None:
    """A newer version brings its own migrations on top of what is there."""
    await migrate(database, [FIRST])

    assert await migrate(database, [FIRST, SECOND]) == ["0002_second"]

    assert "first.number" in await contents(database)


async def test_ten_at_once_apply_once(postgres: EmbeddedPostgres, database: Database) -> None:
    """Every process of a deployment may migrate at its start: one does, the others wait for it,
    also when it takes longer than a statement otherwise may."""
    slow = Migration(name="0003_slow", sql="SELECT pg_sleep(1.5); CREATE TABLE slow ();")
    name = await database.fetch_value("SELECT current_database()")
    limits = DatabaseLimits(command_seconds=1)
    processes = [Database(postgres.url(name), limits=limits) for _ in range(10)]

    results = await asyncio.gather(*(migrate(each, [FIRST, SECOND, slow]) for each in processes))

    assert sorted(results) == [[]] * 9 + [["0001_first", "0002_second", "0003_slow"]]
    await asyncio.gather(*(each.close() for each in processes))


async def test_a_changed_migration_is_refused(database: Database) -> None:
    """Before anything is changed, also what would have been new."""
    await migrate(database, [FIRST])
    before = await contents(database)
    changed = Migration(name=FIRST.name, sql=FIRST.sql + " ")

    with pytest.raises(MigrationError, match="0001_first was changed"):
        await migrate(database, [changed, SECOND])

    assert await contents(database) == before


async def test_a_newer_database_is_refused(database: Database) -> None:
    """An older version of ours does not touch what it does not know."""
    third = Migration(name="0003_third", sql="CREATE TABLE third ();")
    await migrate(database, [FIRST, third])
    before = await contents(database)

    with pytest.raises(MigrationError, match="0003_third was applied by a newer version"):
        await migrate(database, [FIRST, SECOND])

    assert await contents(database) == before


async def test_a_failing_migration_leaves_nothing_behind(database: Database) -> None:
    """Not its own first half, not the ones before it in the same run, not even our own table."""
    broken = Migration(name="0002_broken", sql="CREATE TABLE half (); SELECT 1 / 0;")

    with pytest.raises(asyncpg.DivisionByZeroError):
        await migrate(database, [FIRST, broken])

    assert await contents(database) == []
    assert await migrate(database, [FIRST, SECOND]) == ["0001_first", "0002_second"]


async def test_migrating_works_behind_a_transaction_pooler(
    postgres: EmbeddedPostgres, database: Database
) -> None:
    """Its lock belongs to the transaction."""
    name = await database.fetch_value("SELECT current_database()")
    pooled = Database(postgres.url(name), limits=DatabaseLimits(), transaction_pooler=True)

    assert await migrate(pooled, [FIRST]) == ["0001_first"]

    assert await database.fetch("SELECT FROM pg_locks WHERE locktype = 'advisory'") == []
    await pooled.close()


def test_migrations_are_in_the_order_of_their_names() -> None:
    """The names begin with a number that says when."""
    names = [migration.name for migration in all_migrations()]

    assert names == sorted(names)
    assert names[0] == "0001_initial"


def test_the_wheel_ships_the_migrations(tmp_path: Path) -> None:
    """An installed wearon brings the very files that it is tested with."""
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
