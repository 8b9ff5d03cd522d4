"""Applies each migration once, in order, each in a transaction of its own under an advisory lock,
and tells whether the database fits this version."""

import asyncio
import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from importlib.resources import files

import asyncpg

from adapters.postgres.access import apply_access, create_roles, open_points
from adapters.postgres.database import READS_ALL, Connection, Database
from adapters.postgres.roles import TABLES, VIEWS, RoleNames
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
_OLDEST_SERVER = 15
"""The first with views that run with their caller's privileges."""
_ACCESS = "0014_access"
"""From this migration on, roles and privileges follow the table in ``roles.py``."""

_EXISTS_ALREADY = (
    asyncpg.DuplicateTableError,
    asyncpg.DuplicateFunctionError,
    asyncpg.DuplicateObjectError,
    asyncpg.UndefinedColumnError,
)
"""Raised where another program has an object of the same name, ``schema_migrations`` for one."""

_NAMED_LIKE_OURS = """
    SELECT relname::text AS name FROM pg_class
    WHERE relnamespace = current_schema()::regnamespace AND relname = ANY ($1)
        AND relname <> 'schema_migrations' ORDER BY 1"""

_OWN_SCHEMA = (
    "Give wearon a schema of its own: run `CREATE SCHEMA wearon`, add `search_path=wearon` to the"
    " parameters of DATABASE_URL, for every process"
)
_MOVE = "Wearon's own tables are there as well: rename the other object or move it elsewhere"

_SCHEMA = """
    SELECT current_schema()::text AS name, current_setting('search_path') AS search_path,
        current_setting('server_version') AS version,
        current_setting('server_version_num')::integer / 10000 AS major"""

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
    roles: RoleNames = RoleNames(),  # noqa: B008 - frozen
    report: Callable[[str], None] = lambda _: None,
) -> list[str]:
    """Apply the missing migrations; returns their names.

    Creates the group roles, if the role of the connection may, and brings all privileges in line
    with ``roles.py``, in the transaction of each migration; ``report`` gets what is left to do.

    Safe to run repeatedly and concurrently. The lock belongs to the transaction, so it also works
    behind a transaction pooler, and a killed process releases it. A migration that does not get a
    table's lock is rolled back and repeated for some minutes; ``report`` gets who holds the lock.
    Raises ``MigrationError``, before any change, if an applied migration differs from ours or is
    unknown to this version, if the server is too old, or if the schema is missing or has another
    program's tables of the same names; and if a lock was never free.
    """
    schema = await _usable_schema(database)
    governed = any(migration.name == _ACCESS for migration in migrations)
    if governed:
        await _check_names(database, schema)
        await create_roles(database, roles)
    applied: list[str] = []
    try:
        while (name := await _apply_next(database, migrations, roles, report)) is not None:
            applied.append(name)
    except _EXISTS_ALREADY as error:
        way_out = _MOVE if await _has_migrations(database) else _OWN_SCHEMA
        raise _occupied(schema, str(error), way_out) from error
    if governed:
        for line in await open_points(database, roles):
            report(line)
    return applied


async def _usable_schema(database: Database) -> str:
    """The name of the schema that we are to use. Raises ``MigrationError`` if there is none."""
    found = await database.fetch_row(_SCHEMA)
    assert found is not None  # noqa: S101 - a SELECT without FROM has one row
    if found["major"] < _OLDEST_SERVER:
        raise MigrationError(
            f"PostgreSQL {_OLDEST_SERVER} or newer is needed; this is {found['version']}"
        )
    if found["name"] is None:
        raise MigrationError(
            f"No schema of the search_path ({found['search_path']}) exists, or none that this role"
            " may use: create it with CREATE SCHEMA"
        )
    return str(found["name"])


async def _check_names(database: Database, schema: str) -> None:
    """Raises ``MigrationError`` if a database without a migration has relations of our names, some
    of which only a later migration would meet. In this order, because another process may apply
    the first migration meanwhile."""
    found = await database.fetch(_NAMED_LIKE_OURS, [*TABLES, *VIEWS])
    if found and not await _has_migrations(database):
        raise _occupied(schema, ", ".join(row["name"] for row in found), _OWN_SCHEMA)


def _occupied(schema: str, found: str, way_out: str) -> MigrationError:
    return MigrationError(
        f"The schema {schema} has objects of another program: {found}. {way_out},"
        " and run `wearon migrate` again"
    )


async def _has_migrations(database: Database) -> bool:
    try:
        return bool(await database.fetch(_APPLIED))
    except asyncpg.UndefinedColumnError:
        return False
    except DatabaseUnavailable as error:
        if not isinstance(error.__cause__, asyncpg.UndefinedTableError):
            raise
        return False


async def _apply_next(
    database: Database,
    migrations: list[Migration],
    roles: RoleNames,
    report: Callable[[str], None],
) -> str | None:
    """Apply one migration; returns its name, or None if there is none left."""
    holders = ""
    for _ in range(_TRIES):
        try:
            return await _try_next(database, migrations, roles)
        except DatabaseUnavailable as error:
            if not isinstance(error.__cause__, asyncpg.LockNotAvailableError):
                raise
            holders = await _lock_holders(database)
            report(f"waiting for {holders}")
            await asyncio.sleep(_PAUSE_SECONDS)
    raise MigrationError(f"A table's lock was never free; end {holders}, then run this again")


async def _try_next(
    database: Database, migrations: list[Migration], roles: RoleNames
) -> str | None:
    async with database.transaction() as connection:
        await connection.execute(f"SET LOCAL lock_timeout = '{_OTHER_RUN_TIMEOUT}'")
        await connection.execute(READS_ALL)
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=_RUN_SECONDS)
        await connection.execute(_TABLE)
        applied = await _applied(connection)
        migration = next(iter(_missing(applied, migrations)), None)
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        if migration is not None:
            await connection.execute(migration.sql, timeout=_RUN_SECONDS)
            await connection.execute(
                "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)",
                migration.name,
                migration.sha256,
            )
            applied[migration.name] = migration.sha256
        if _ACCESS in applied:
            await apply_access(connection, roles)
    return None if migration is None else migration.name


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
