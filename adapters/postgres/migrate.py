"""Applies each migration once, in order, each in a transaction of its own under an advisory lock,
and tells whether the database fits this version."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from adapters.postgres.database import READS_ALL, Connection, Database
from domain.errors import DatabaseUnavailable, SchemaMismatch, WearonError

_LOCK = 0x7765_6172_6F6E  # "wearon": the key of the advisory lock
_OTHER_RUN_TIMEOUT = "60s"
_LOCK_TIMEOUT = "2s"
"""How long a migration waits for a table's lock. All later statements on that table wait behind it,
so it gives up soon, and tries again a little later."""
_TRIES = 60
_PAUSE_SECONDS = 1.0
_RUN_SECONDS = 600.0
"""Timeout of a migration, and of the wait for another process that migrates. The timeout of other
statements is too short for both."""

_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
    )"""


_APPLIED = "SELECT name, sha256 FROM schema_migrations ORDER BY name"


class MigrationError(WearonError):
    """The database was migrated with files that differ from ours."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Migration:
    """One SQL file."""

    name: str
    sql: str

    @property
    def sha256(self) -> str:
        return hashlib.sha256(self.sql.encode()).hexdigest()


def all_migrations() -> list[Migration]:
    """The migrations of this version, in order."""
    folder = files("adapters.postgres") / "migrations"
    return [
        Migration(name=file.name.removesuffix(".sql"), sql=file.read_text("utf-8"))
        for file in sorted(folder.iterdir(), key=lambda file: file.name)
        if file.name.endswith(".sql")
    ]


async def migrate(
    database: Database,
    migrations: list[Migration],
    *,
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Apply the missing migrations; returns their names.

    Safe to run repeatedly and concurrently. The lock belongs to the transaction, so it also works
    behind a transaction pooler, and a killed process releases it. A migration that does not get a
    table's lock is rolled back and repeated for some minutes; ``report`` gets who holds the lock.
    Raises ``MigrationError``, before any change, if an applied migration differs from ours or is
    unknown to this version, and if a lock was never free.
    """
    applied: list[str] = []
    while (name := await _apply_next(database, migrations, report)) is not None:
        applied.append(name)
    return applied


async def _apply_next(
    database: Database, migrations: list[Migration], report: Callable[[str], None]
) -> str | None:
    """Apply one migration; returns its name, or None if there is none left."""
    holders = ""
    for _ in range(_TRIES):
        try:
            return await _try_next(database, migrations)
        except DatabaseUnavailable as error:
            if not isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                raise
            holders = await _lock_holders(database)
            report(f"waiting for {holders}")
            await asyncio.sleep(_PAUSE_SECONDS)
    raise MigrationError(f"A table's lock was never free; end {holders}, then run this again")


async def _try_next(database: Database, migrations: list[Migration]) -> str | None:
    async with database.transaction() as connection:
        await connection.execute(f"SET LOCAL lock_timeout = '{_OTHER_RUN_TIMEOUT}'")
        await connection.execute(READS_ALL)
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=_RUN_SECONDS)
        await connection.execute(_TABLE)
        missing = _missing(await _applied(connection), migrations)
        if not missing:
            return None
        migration = missing[0]
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        await connection.execute(migration.sql, timeout=_RUN_SECONDS)
        await connection.execute(
            "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)",
            migration.name,
            migration.sha256,
        )
    return migration.name


_LOCK_HOLDERS = """
    SELECT DISTINCT a.pid, a.usename, a.application_name, a.state,
        extract(epoch FROM now() - a.xact_start)::int AS seconds
    FROM pg_locks AS l JOIN pg_stat_activity AS a USING (pid)
    WHERE l.granted AND a.datname = current_database() AND l.relation = ANY (ARRAY (
        SELECT oid FROM pg_class WHERE relnamespace = current_schema()::regnamespace))
    ORDER BY seconds DESC NULLS LAST LIMIT 3"""


async def _lock_holders(database: Database) -> str:
    """The oldest transactions that have a lock on a table of ours."""
    async with database.transaction() as connection:
        await connection.execute(READS_ALL)
        rows = await connection.fetch(_LOCK_HOLDERS)
    return (
        "; ".join(
            f"process {row['pid']} of {row['usename']}"
            f" ({row['application_name'] or 'no application name'}, {row['state']},"
            f" in a transaction for {row['seconds'] or 0} s)"
            for row in rows
        )
        or "a transaction that has ended meanwhile"
    )


class Schema:
    """The schema of the database, as this version needs it."""

    def __init__(self, database: Database, migrations: list[Migration]) -> None:
        self._database = database
        self._migrations = migrations
        self._fits = False

    async def check(self) -> None:
        """Raises ``SchemaMismatch`` unless the database was migrated to exactly our version.

        Once it was, later migrations are none of our business: they leave the running version
        working, which is replaced by the next one.
        """
        if self._fits:
            return
        if not await self._database.fetch_value(
            "SELECT to_regclass('schema_migrations') IS NOT NULL"
        ):
            raise SchemaMismatch("The database is empty: run `wearon migrate`")
        rows = await self._database.fetch(
            "SELECT name, sha256 FROM schema_migrations ORDER BY name"
        )
        try:
            missing = _missing({row["name"]: row["sha256"] for row in rows}, self._migrations)
        except MigrationError as error:
            raise SchemaMismatch(str(error)) from error
        if missing:
            raise SchemaMismatch(
                f"The database lacks migration {missing[0].name}: run `wearon migrate`"
            )
        self._fits = True


async def _applied(connection: Connection) -> dict[str, str]:
    return _names(await connection.fetch(_APPLIED))


def _names(rows: list[asyncpg.Record]) -> dict[str, str]:
    return {row["name"]: row["sha256"] for row in rows}


def _missing(applied: dict[str, str], migrations: list[Migration]) -> list[Migration]:
    ours = {migration.name: migration.sha256 for migration in migrations}
    for name, sha256 in applied.items():
        if name not in ours:
            raise MigrationError(f"Migration {name} was applied by a newer version of wearon")
        if ours[name] != sha256:
            raise MigrationError(f"Migration {name} was changed after it was applied")
    return [migration for migration in migrations if migration.name not in applied]
