"""The audit log in PostgreSQL. Most entries are written by the statements of the changes: see
``adapters/auth``, ``adapters/credits`` and ``adapters/stores``."""

import json

import asyncpg

from adapters.postgres.database import Database
from domain.account_ports import AuditLogPort
from domain.operators import Operator, OperatorAction

_ACTIONS = """
    SELECT id, at, actor, action, subject, reason, details FROM operator_actions
    WHERE id < coalesce($1::bigint, 9223372036854775807)
    ORDER BY id DESC LIMIT $2"""

_ACTIONS_ON = """
    SELECT id, at, actor, action, subject, reason, details FROM operator_actions
    WHERE subject = $3 AND id < coalesce($1::bigint, 9223372036854775807)
    ORDER BY id DESC LIMIT $2"""


_ADD = """
    INSERT INTO operator_actions (actor, action, subject, reason, details)
    VALUES ($1, $2, $3, $4, $5::jsonb)"""


class PostgresAuditLog(AuditLogPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def actions(
        self, *, subject: str | None, limit: int, before_id: int | None = None
    ) -> list[OperatorAction]:
        if subject is None:
            rows = await self._database.fetch(_ACTIONS, before_id, limit)
        else:
            rows = await self._database.fetch(_ACTIONS_ON, before_id, limit, subject)
        return [_action(row) for row in rows]

    async def add(self, by: Operator, action: str, subject: str, **details: object) -> None:
        await self._database.fetch(_ADD, by.actor, action, subject, by.reason, json.dumps(details))


def _action(row: asyncpg.Record) -> OperatorAction:
    return OperatorAction(**{**row, "details": json.loads(row["details"])})
