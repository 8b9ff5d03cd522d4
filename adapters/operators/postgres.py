"""The console's operators in PostgreSQL."""

from collections.abc import Sequence
from datetime import timedelta

import asyncpg

from adapters.postgres.database import Database
from domain.console_ports import ConsoleOperator, OperatorRepoPort, Role
from domain.operators import Operator

_INVITE = """
    WITH invited AS (
        INSERT INTO operators AS operator (name, role, link_sha256, link_expires_at)
        VALUES ($1, $2, $3, now() + $4::interval)
        ON CONFLICT (name) DO UPDATE
        SET role = excluded.role, epoch = operator.epoch + 1, password_hash = NULL,
            link_sha256 = excluded.link_sha256, link_expires_at = excluded.link_expires_at,
            revoked_at = NULL
        RETURNING name, role, epoch, made_at, revoked_at, password_hash
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $5, 'operator.invite', 'operator:' || name, $6, jsonb_build_object('role', role)
        FROM invited
    )
    SELECT * FROM invited"""

_GET = """
    SELECT name, role, epoch, made_at, revoked_at, password_hash FROM operators WHERE name = $1"""

_ALL = """
    SELECT name, role, epoch, made_at, revoked_at, password_hash FROM operators
    ORDER BY name LIMIT $1"""

_BY_LINK = """
    SELECT name, role, epoch, made_at, revoked_at, password_hash FROM operators
    WHERE link_sha256 = $1 AND link_expires_at > now()"""

_SET_PASSWORD = """
    WITH changed AS (
        UPDATE operators SET password_hash = $2, epoch = epoch + 1, link_sha256 = NULL,
            link_expires_at = NULL
        WHERE link_sha256 = $1 AND link_expires_at > now()
        RETURNING name, role, epoch, made_at, revoked_at, password_hash
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject)
        SELECT 'console:' || name, 'operator.password', 'operator:' || name FROM changed
    )
    SELECT * FROM changed"""

_REVOKE = """
    WITH revoked AS (
        UPDATE operators SET revoked_at = now(), epoch = epoch + 1, password_hash = NULL,
            link_sha256 = NULL, link_expires_at = NULL
        WHERE name = $1 AND revoked_at IS NULL
        RETURNING name
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason)
        SELECT $2, 'operator.revoke', 'operator:' || name, $3 FROM revoked
    )
    SELECT name FROM revoked"""


class PostgresOperatorRepo(OperatorRepoPort):
    """Stores hashes only. A revoked operator has no link, so a link needs no look at that."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def invite(
        self, name: str, role: Role, *, link_sha256: str, lifetime: timedelta, by: Operator
    ) -> ConsoleOperator:
        row = await self._database.fetch_row(
            _INVITE, name, role, link_sha256, lifetime, by.actor, by.reason
        )
        assert row is not None  # noqa: S101 - the statement inserts or updates
        return _operator(row)

    async def get(self, name: str) -> ConsoleOperator | None:
        return _found(await self._database.fetch_row(_GET, name))

    async def all(self, *, limit: int) -> Sequence[ConsoleOperator]:
        return [_operator(row) for row in await self._database.fetch(_ALL, limit)]

    async def by_link(self, link_sha256: str) -> ConsoleOperator | None:
        return _found(await self._database.fetch_row(_BY_LINK, link_sha256))

    async def set_password(self, link_sha256: str, password_hash: str) -> ConsoleOperator | None:
        return _found(await self._database.fetch_row(_SET_PASSWORD, link_sha256, password_hash))

    async def revoke(self, name: str, *, by: Operator) -> bool:
        return await self._database.fetch_row(_REVOKE, name, by.actor, by.reason) is not None


def _found(row: asyncpg.Record | None) -> ConsoleOperator | None:
    return None if row is None else _operator(row)


def _operator(row: asyncpg.Record) -> ConsoleOperator:
    return ConsoleOperator(**{**row, "role": Role(row["role"])})
