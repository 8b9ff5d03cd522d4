"""A pool of PostgreSQL connections with every wait bounded and every failure named."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from domain.errors import StoreUnavailable

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

TRANSACTION_POOLER_PORT = 6543
"""Supabase's port for its transaction pooler."""

_PASSING_CLASSES = ("08", "25006", "28", "3D", "40", "53", "55P03", "57", "58", "XX")
"""SQLSTATE prefixes of failures that are not our statement's fault (PostgreSQL, appendix A):
connection, read-only server, authorization, missing database, rollback (deadlock), resources,
lock not available, operator intervention (also statement timeout), system and internal errors."""

_NO_ANSWER = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""The last one is what a connection raises that broke in the middle of a statement, until the
event loop has heard of its end."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseLimits:
    """Bounds, in seconds where not said otherwise."""

    connections: int = 10
    connect_seconds: float = 3.0
    acquire_seconds: float = 3.0
    command_seconds: float = 5.0


class Database:
    """Runs statements. Opens connections when they are needed, so the server may be away at the
    start and come back at any time. Raises ``StoreUnavailable``, after which the outcome of a
    writing statement is unknown.

    ``transaction_pooler``: behind PgBouncer and its like a connection belongs to us for one
    transaction only, so nothing is prepared and every statement gets a transaction of its own.
    """

    def __init__(
        self, url: str, *, limits: DatabaseLimits, transaction_pooler: bool = False
    ) -> None:
        self._url = url
        self._limits = limits
        self._pooled = transaction_pooler or urlsplit(url).netloc.endswith(
            f":{TRANSACTION_POOLER_PORT}"
        )
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """All rows of one statement, which is its own transaction."""
        async with self._connection() as connection:
            return await connection.fetch(sql, *arguments)

    async def fetch_row(self, sql: str, *arguments: object) -> asyncpg.Record | None:
        """The first row of one statement, which is its own transaction."""
        async with self._connection() as connection:
            return await connection.fetchrow(sql, *arguments)

    async def fetch_value(self, sql: str, *arguments: object) -> Any:  # noqa: ANN401 - a column
        """The first column of the first row; None without a row."""
        row = await self.fetch_row(sql, *arguments)
        return None if row is None else row[0]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection within one transaction, for what is more than one statement."""
        async with self._connection() as connection, connection.transaction():
            yield connection

    async def close(self) -> None:
        """Close the pool, waiting no longer than a command may take."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(self._limits.command_seconds):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def _connection(self) -> AsyncIterator[Connection]:
        try:
            pool = self._pool or await self._open()
            async with pool.acquire(timeout=self._limits.acquire_seconds) as connection:
                if self._pooled:
                    async with connection.transaction():
                        yield connection
                else:
                    yield connection
        except asyncpg.UndefinedTableError as error:
            raise StoreUnavailable("The store lacks a table: run `wearon migrate`") from error
        except asyncpg.PostgresError as error:
            if not (error.sqlstate or "").startswith(_PASSING_CLASSES):
                raise
            raise StoreUnavailable("The store failed") from error
        except _NO_ANSWER as error:
            raise StoreUnavailable("The store does not answer") from error

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        """An empty pool: its connections are made one by one, when they are needed."""
        self._pool = asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._limits.connections,
            timeout=self._limits.connect_seconds,
            command_timeout=self._limits.command_seconds,
            statement_cache_size=0 if self._pooled else 100,
            reset=_nothing_to_reset,
        )
        return await self._pool


async def _nothing_to_reset(_: object) -> None:
    """Our statements leave no state in a connection, so giving it back costs no round trip."""
