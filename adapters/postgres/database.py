"""A pool of PostgreSQL connections with every wait bounded and every failure named."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from typing import Any, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from adapters.postgres.limits import DatabaseLimits
from domain.deadlines import SharedTimeout
from domain.errors import DatabaseUnavailable

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

_ENDED = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""What a connection raises that does not exist any more."""

_SERVER_SETTINGS = {
    "client_connection_check_interval": "1000",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
"""A statement whose caller gave up ends on the server too, within so many milliseconds (since
PostgreSQL 14).

A prepared statement is planned once. Left to itself the server plans many for every call, and more
of them the fuller the store is, expecting a plan for these very arguments to be much cheaper. Ours
need one plan each: by an index, whatever is asked and however little was there when it was made, or
what came in since then would be read from end to end.

A pooler's connections are not ours to set up."""

READS_ALL = "SET LOCAL enable_seqscan = on"
"""For the transaction of a statement that does read tables from end to end."""


_FORGET_US = "SET LOCAL idle_in_transaction_session_timeout = '10s'"
"""For a machine that vanishes between a pooled statement and its COMMIT: its locks would stay
until the network notices, and one locked account holds up recovery for all."""


class Database:
    """Runs statements. Opens connections when they are needed, so the server may be away at the
    start and come back at any time. Raises ``DatabaseUnavailable``, after which the outcome of a
    writing statement is unknown; so nothing is tried twice.

    A call ends with its bound, or with its caller's, whatever the server does: its connection is
    then thrown away, for it may be waiting for an answer that never comes.

    ``transaction_pooler``: behind PgBouncer and its like a connection belongs to us for one
    transaction only, so nothing is prepared and every statement gets a transaction of its own.
    """

    def __init__(
        self, url: str, *, limits: DatabaseLimits, transaction_pooler: bool = False
    ) -> None:
        self._url = url
        self._limits = limits
        self._bound = SharedTimeout(limits.command_seconds)
        self._pooled = transaction_pooler or urlsplit(url).netloc.endswith(
            f":{TRANSACTION_POOLER_PORT}"
        )
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """All rows of one statement, which is its own transaction."""
        async with self._bounded() as connection:
            return await connection.fetch(sql, *arguments)

    async def fetch_row(self, sql: str, *arguments: object) -> asyncpg.Record | None:
        """The first row of one statement, which is its own transaction."""
        async with self._bounded() as connection:
            return await connection.fetchrow(sql, *arguments)

    async def fetch_value(self, sql: str, *arguments: object) -> Any:  # noqa: ANN401 - a column
        """The first column of the first row; None without a row."""
        row = await self.fetch_row(sql, *arguments)
        return None if row is None else row[0]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection within one transaction, for what is more than one statement. Getting the
        connection and each statement have the bound of a call, the whole has none."""
        with _named_failures():
            async with (
                self._connection(seconds=self._limits.command_seconds) as connection,
                _transaction(connection),
            ):
                yield connection

    async def close(self) -> None:
        """Close the pool, once the calls under way have ended or their bound is over."""
        pool, self._pool = self._pool, None
        if pool is None:
            return
        try:
            async with asyncio.timeout(self._limits.command_seconds):
                await pool.close()
        except TimeoutError:
            pool.terminate()

    @asynccontextmanager
    async def _bounded(self) -> AsyncIterator[Connection]:
        with _named_failures(), self._bound.running():
            async with self._connection() as connection:
                if self._pooled:
                    async with _transaction(connection):
                        await connection.execute(_FORGET_US)
                        yield connection
                else:
                    yield connection

    @asynccontextmanager
    async def _connection(self, *, seconds: float | None = None) -> AsyncIterator[Connection]:
        """A connection of the pool, which gets it back only if it is known to be fit for use: left
        to itself, asyncpg would have a call that was cut off wait for the server once more.

        ``seconds`` bounds the wait for one. Where all has a bound that one is enough: asyncpg's
        costs a task, and two turns of the loop before anything is sent."""
        pool = self._pool or await self._open()
        connection = await pool.acquire(timeout=seconds)
        try:
            yield connection
        except BaseException as error:
            if isinstance(error, _ENDED):  # The others may have ended with it, unheard.
                await pool.expire_connections()
            if not isinstance(error, asyncpg.PostgresError):  # which is the server's answer
                with suppress(asyncpg.InterfaceError):  # It may have ended by itself.
                    connection.terminate()
            raise
        finally:
            await pool.release(connection)

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        """An empty pool: its connections are made one by one, when they are needed."""
        self._pool = asyncpg.create_pool(
            self._url,
            min_size=0,
            max_size=self._limits.connections,
            timeout=self._limits.command_seconds,
            command_timeout=self._limits.command_seconds,
            statement_cache_size=0 if self._pooled else 100,
            server_settings={} if self._pooled else _SERVER_SETTINGS,
            connection_class=_Connection,
            reset=_nothing_to_reset,
        )
        return await self._pool


class _Connection(asyncpg.Connection):
    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002 - asyncpg's
        """Hang up: the server's answer to a goodbye might never come."""
        self.terminate()


@asynccontextmanager
async def _transaction(connection: Connection) -> AsyncIterator[None]:
    """Undone by an error of the server here, by any other with the end of its connection."""
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield
    except asyncpg.PostgresError:
        await transaction.rollback()
        raise
    await transaction.commit()


@contextmanager
def _named_failures() -> Iterator[None]:
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        raise DatabaseUnavailable("The store lacks a table: run `wearon migrate`") from error
    except asyncpg.PostgresError as error:
        if not (error.sqlstate or "").startswith(_PASSING_CLASSES):
            raise
        raise DatabaseUnavailable("The store failed") from error
    except _NO_ANSWER as error:
        raise DatabaseUnavailable("The store does not answer") from error


async def _nothing_to_reset(_: object) -> None:
    """Our statements leave no state in a connection, so giving it back costs no round trip."""
