"""The audit log in PostgreSQL. Most entries are written by the statements of the changes: see
``adapters/auth``, ``adapters/credits`` and ``adapters/stores``."""

import json
from uuid import UUID

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
        AND ($4::text IS NULL OR actor = $4)
    ORDER BY id DESC LIMIT $2"""

_ACTIONS_BY = """
    SELECT id, at, actor, action, subject, reason, details FROM operator_actions
    WHERE actor = $3 AND id < coalesce($1::bigint, 9223372036854775807)
    ORDER BY id DESC LIMIT $2"""

_BEGIN = """
    INSERT INTO operator_actions (actor, action, subject, reason, details, action_id)
    VALUES ($1, $2, $3, $4, $5::jsonb, $6)
    ON CONFLICT (action_id) WHERE action_id IS NOT NULL DO NOTHING
    RETURNING id"""

_ADD = """
    INSERT INTO operator_actions (actor, action, subject, reason, details)
    VALUES ($1, $2, $3, $4, $5::jsonb)"""


class PostgresAuditLog(AuditLogPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def actions(
        self,
        *,
        subject: str | None,
        limit: int,
        before_id: int | None = None,
        actor: str | None = None,
    ) -> list[OperatorAction]:
        if subject is not None:
            rows = await self._database.fetch(_ACTIONS_ON, before_id, limit, subject, actor)
        elif actor is not None:
            rows = await self._database.fetch(_ACTIONS_BY, before_id, limit, actor)
        else:
            rows = await self._database.fetch(_ACTIONS, before_id, limit)
        return [_action(row) for row in rows]

    async def begin(
        self, by: Operator, action: str, subject: str, *, action_id: UUID, **details: object
    ) -> bool:
        text = json.dumps(details)
        row = await self._database.fetch_row(
            _BEGIN, by.actor, action, subject, by.reason, text, action_id
        )
        return row is not None

    async def add(self, by: Operator, action: str, subject: str, **details: object) -> None:
        await self._database.fetch(_ADD, by.actor, action, subject, by.reason, json.dumps(details))


def _action(row: asyncpg.Record) -> OperatorAction:
    return OperatorAction(**{**row, "details": json.loads(row["details"])})
