"""Applies each migration once, in order, in one transaction under an advisory lock."""

import hashlib
from dataclasses import dataclass
from importlib.resources import files

from adapters.postgres.database import READS_ALL, Connection, Database
from domain.errors import WearonError

_LOCK = 0x7765_6172_6F6E  # "wearon": the key of the advisory lock
_LOCK_TIMEOUT = "60s"
_RUN_SECONDS = 600.0
"""Timeout of a migration, and of the wait for another process that migrates. The timeout of other
statements is too short for both."""

_TABLE = """
    CREATE TABLE IF NOT EXISTS schema_migrations (
        name text PRIMARY KEY, sha256 text NOT NULL, applied_at timestamptz NOT NULL DEFAULT now()
    )"""


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


async def migrate(database: Database, migrations: list[Migration]) -> list[str]:
    """Apply the missing migrations; returns their names.

    Safe to run repeatedly and concurrently. The lock belongs to the transaction, so it also works
    behind a transaction pooler, and a killed process releases it. Raises ``MigrationError``, before
    any change, if an applied migration differs from ours or is unknown to this version.
    """
    async with database.transaction() as connection:
        await connection.execute(f"SET LOCAL lock_timeout = '{_LOCK_TIMEOUT}'")
        await connection.execute(READS_ALL)
        await connection.execute("SELECT pg_advisory_xact_lock($1)", _LOCK, timeout=_RUN_SECONDS)
        await connection.execute(_TABLE)
        missing = _missing(await _applied(connection), migrations)
        for migration in missing:
            await connection.execute(migration.sql, timeout=_RUN_SECONDS)
            await connection.execute(
                "INSERT INTO schema_migrations (name, sha256) VALUES ($1, $2)",
                migration.name,
                migration.sha256,
            )
    return [migration.name for migration in missing]


async def _applied(connection: Connection) -> dict[str, str]:
    rows = await connection.fetch("SELECT name, sha256 FROM schema_migrations")
    return {row["name"]: row["sha256"] for row in rows}


def _missing(applied: dict[str, str], migrations: list[Migration]) -> list[Migration]:
    ours = {migration.name: migration.sha256 for migration in migrations}
    for name, sha256 in applied.items():
        if name not in ours:
            raise MigrationError(f"Migration {name} was applied by a newer version of wearon")
        if ours[name] != sha256:
            raise MigrationError(f"Migration {name} was changed after it was applied")
    return [migration for migration in migrations if migration.name not in applied]
