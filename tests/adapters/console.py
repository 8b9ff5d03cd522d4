"""The database with any SQL, as a person at a console or an external program runs it."""

from uuid import UUID

import asyncpg

from adapters.postgres.database import Database
from tests.contracts.backends import PostgresBackend
from tests.support.examples import FAILURE, picture_of

SESSION = """
    INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url,
        {column})
    SELECT gen_random_uuid(), channel, user_id, request_id, prompt, model_image_url, {value}
    FROM generation_sessions WHERE id = $1"""
SET = "UPDATE generation_sessions SET {} WHERE id = $1"


class Console(PostgresBackend):
    """The database, and any SQL on it."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.database = database

    async def run(self, sql: str, *arguments: object) -> None:
        await self.database.fetch(sql, *arguments)

    async def in_state(self, state: str) -> UUID:
        """A session of USER's that our own code brought into ``state``: a status, ``confirmed``
        (queued), ``never pushed`` (failed by recovery), ``completed of age`` or ``erased``
        (completed)."""
        age_verified = True if state == "completed of age" else None
        created = await self.created(idempotency_key="key", age_verified=age_verified)
        session_id = created.session.id
        if state == "confirmed":
            await self.sessions.confirm([session_id])
        elif state == "never pushed":
            await self.sessions.fail_queued(session_id, FAILURE)
        elif state != "queued":
            await self.claim(session_id)
        if state in {"completed", "completed of age", "erased"}:
            await self.attempts.complete(session_id, attempt=1, picture=picture_of(session_id))
        if state == "erased":
            await self.erasure.erase([session_id])
        if state == "failed":
            await self.attempts.fail(session_id, FAILURE, attempt=1)
        return session_id

    async def everything(self) -> list[list[asyncpg.Record]]:
        tables = ("credit_accounts", "credit_ledger", "generation_sessions")
        return [await self.database.fetch(f"SELECT * FROM {table}") for table in tables]  # noqa: S608
