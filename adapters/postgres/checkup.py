"""What ``wearon doctor`` asks the database."""

from collections.abc import Callable
from datetime import UTC, datetime

from adapters.postgres.database import Database
from adapters.postgres.migrate import Schema
from adapters.postgres.roles import TABLES, Group
from domain.doctor import Finding, clock_finding, failed, ok, warning

OLDEST_SERVER = 15

_SERVER = """
    SELECT current_user::text AS role, current_setting('server_version') AS version,
        current_setting('server_version_num')::int / 10000 AS major,
        pg_is_in_recovery() AS is_standby, clock_timestamp() AS at,
        (SELECT rolsuper FROM pg_roles WHERE rolname = current_user) AS is_superuser"""

_MISSING = """
    SELECT wanted.relation, wanted.command
    FROM unnest($1::text[], $2::text[]) AS wanted (relation, command)
    WHERE NOT has_table_privilege(to_regclass(wanted.relation), wanted.command)
    ORDER BY wanted.relation, wanted.command"""


class DatabaseCheckup:
    """Checks the server, the migrations and the role's privileges. Raises
    ``DatabaseUnavailable``."""

    def __init__(
        self, database: Database, schema: Schema, *, clock: Callable[[], datetime]
    ) -> None:
        self._database = database
        self._schema = schema
        self._clock = clock

    async def server(self) -> list[Finding]:
        """The server, its clock and the role."""
        await self._database.fetch_value("SELECT 1")  # connects, which takes its time
        asked_at = self._clock()
        (row,) = await self._database.fetch(_SERVER)
        answered_at = self._clock()
        milliseconds = (answered_at - asked_at).total_seconds() * 1000
        server = ok("database", f"PostgreSQL {row['version']} answers in {milliseconds:.1f} ms.")
        if row["major"] < OLDEST_SERVER:
            server = failed(
                "database",
                f"PostgreSQL {row['version']}.",
                f"Use version {OLDEST_SERVER} or newer.",
            )
        elif row["is_standby"]:
            server = failed(
                "database", "The server is a standby: it rejects writes.",
                "Point DATABASE_URL to the primary.",
            )  # fmt: skip
        clock = clock_finding(
            "database clock", row["at"].astimezone(UTC), asked_at=asked_at, answered_at=answered_at
        )
        return [server, clock, _role(row["role"], is_superuser=row["is_superuser"])]

    async def migrations(self) -> list[Finding]:
        """Whether the schema is this version's."""
        await self._schema.check()
        return [ok("migrations", "The tables are those of this version.")]

    async def privileges(self) -> list[Finding]:
        """Whether the role may do all that the table of privileges grants to the service."""
        pairs = [
            (table, command)
            for table, grants in TABLES.items()
            for command in grants.get(Group.APP, {})
        ]
        rows = await self._database.fetch(
            _MISSING, [table for table, _ in pairs], [command for _, command in pairs]
        )
        if not rows:
            return [ok("privileges", "The role may do all that the service does.")]
        first = f"{rows[0]['command']} on {rows[0]['relation']}"
        return [
            failed(
                "privileges",
                f"The role lacks {len(rows)} privilege(s), first {first}.",
                "Put the role into the group wearon_app; let the owner run `wearon migrate`.",
            )
        ]


def _role(name: str, *, is_superuser: bool) -> Finding:
    if is_superuser:
        return warning(
            "role",
            f"{name} is a superuser.",
            "Give API and workers a role of their own: docs/database.md.",
        )
    return ok("role", f"{name} is no superuser.")
