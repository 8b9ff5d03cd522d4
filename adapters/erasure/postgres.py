"""Erasure in PostgreSQL. What an erased session loses is said by the table of columns."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from adapters.postgres.database import Database
from adapters.sessions.columns import ERASED
from adapters.sessions.rows import SELECTED, session_of
from domain.credits import Channel, Owner
from domain.erasure import ErasureRepoPort
from domain.errors import DatabaseUnavailable
from domain.ids import END_OF_TIME, LAST_ID
from domain.ports import Position
from domain.sessions import GenerationSession

_OF_OWNER = f"""
    SELECT {SELECTED} FROM generation_sessions AS s
    WHERE s.channel = $1 AND s.owner_id = $2 AND (s.created_at, s.id) < ($3, $4)
    ORDER BY s.created_at DESC, s.id DESC LIMIT $5"""
_OF_SHOPPER = f"""
    SELECT {SELECTED} FROM generation_sessions AS s
    WHERE s.channel = $1 AND s.owner_id = $2 AND (s.created_at, s.id) < ($3, $4)
        AND s.shopper_id = $6
    ORDER BY s.created_at DESC, s.id DESC LIMIT $5"""

_LOST = ", ".join(f"{column.name} = {column.erased}" for column in ERASED)

# Waits for a row that is locked: its session would be reported as erased otherwise.
_ERASE = f"""
    WITH erased AS (
        UPDATE generation_sessions
        SET {_LOST}, erased_at = coalesce(erased_at, now()),
            shopper_id = CASE WHEN NOT $2::boolean THEN shopper_id END
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE id = ANY ($1::uuid[]) AND status IN ('completed', 'failed')
                AND (erased_at IS NULL OR ($2 AND shopper_id IS NOT NULL))
            ORDER BY id FOR NO KEY UPDATE))
        RETURNING id
    ), forgotten AS (
        DELETE FROM attempt_faults WHERE session_id IN (SELECT id FROM erased)
    )
    SELECT count(*) FROM erased"""

# Locks the account before client tokens, and these before shoppers, like the debit and the refund.
# The refund locks several tokens of one account in any order. A token issued meanwhile waits for
# its shopper, and fails. One that was issued just before makes this statement fail: repeat it.
_FORGET_SHOPPERS = """
    WITH found AS MATERIALIZED (
        SELECT shopper_id FROM shoppers
        WHERE store_id = $1 AND shopper_id = coalesce($2::text, shopper_id)
        ORDER BY shopper_id LIMIT $3
    ), account AS MATERIALIZED (
        SELECT owner_id FROM credit_accounts
        WHERE channel = 'b2b' AND owner_id = $1 FOR NO KEY UPDATE
    ), token AS MATERIALIZED (
        SELECT id FROM client_tokens
        WHERE store_id = $1 AND shopper_id = ANY (ARRAY (SELECT shopper_id FROM found))
            AND (SELECT count(*) FROM account) >= 0
        ORDER BY id FOR UPDATE
    ), shopper AS MATERIALIZED (
        SELECT shopper_id FROM shoppers
        WHERE store_id = $1 AND shopper_id = ANY (ARRAY (SELECT shopper_id FROM found))
            AND (SELECT count(*) FROM token) >= 0
        ORDER BY shopper_id FOR UPDATE
    ), deleted_token AS (
        DELETE FROM client_tokens WHERE id = ANY (ARRAY (SELECT id FROM token))
    ), deleted_shopper AS (
        DELETE FROM shoppers
        WHERE store_id = $1 AND shopper_id = ANY (ARRAY (SELECT shopper_id FROM shopper))
    )
    SELECT count(*) FROM shopper"""


class PostgresErasureRepo(ErasureRepoPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def sessions_of(
        self, owner: Owner, *, shopper: str | None, limit: int, after: Position | None
    ) -> list[GenerationSession]:
        place = (END_OF_TIME, LAST_ID) if after is None else (after.created_at, after.id)
        arguments = (owner.channel, owner.id, *place, limit)
        if shopper is None:
            rows = await self._database.fetch(_OF_OWNER, *arguments)
        else:
            rows = await self._database.fetch(_OF_SHOPPER, *arguments, shopper)
        return [session_of(row) for row in rows]

    async def erase(self, session_ids: Sequence[UUID], *, with_shopper: bool = False) -> int:
        erased: int = await self._database.fetch_value(_ERASE, session_ids, with_shopper)
        return erased

    async def forget_shoppers(self, owner: Owner, *, shopper: str | None, limit: int) -> int:
        if owner.channel is not Channel.B2B:
            return 0
        arguments = (owner.id, shopper, limit)
        try:
            found: int = await self._database.fetch_value(_FORGET_SHOPPERS, *arguments)
        except asyncpg.ForeignKeyViolationError as error:
            raise DatabaseUnavailable("A client token was issued meanwhile; repeat it") from error
        return found
