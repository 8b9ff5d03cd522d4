"""A pool of PostgreSQL connections: every wait has a timeout, every failure is a domain error."""

import asyncio
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from ssl import create_default_context
from typing import Any, Final, Literal, TypeAlias
from urllib.parse import urlsplit

import asyncpg

from adapters.causes import detail_of
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.urls import parse_postgres_url
from domain.causes import Cause, CauseKind
from domain.deadlines import SharedTimeout
from domain.errors import DatabaseUnavailable

Connection: TypeAlias = "asyncpg.pool.PoolConnectionProxy[asyncpg.Record]"

TRANSACTION_POOLER_PORT = 6543
"""Supabase's port for its transaction pooler."""

_TRANSIENT_SQLSTATES = ("08", "25006", "28", "3D", "40", "53", "55P03", "57", "58", "XX")
"""SQLSTATE prefixes of failures that our statement did not cause (PostgreSQL, appendix A):
connection, read-only server, authorization, missing database, rollback (deadlock), resources,
lock not available, operator intervention (also statement timeout), system and internal errors."""

_NOT_OURS = (asyncpg.DuplicatePreparedStatementError, asyncpg.InvalidSQLStatementNameError)
"""A prepared statement was made, or lost, on another client's connection."""

_POOLER = "behind a transaction pooler set WEARON_DATABASE_TRANSACTION_POOLER=true"

_NO_ANSWER = (OSError, TimeoutError, asyncpg.InterfaceError, asyncpg.InternalClientError)
"""A connection that broke during a statement raises ``InternalClientError`` until the event loop
has noticed its end."""

_CONNECTION_LOST = (
    ConnectionError,
    asyncpg.PostgresConnectionError,
    asyncpg.InterfaceError,
    asyncpg.InternalClientError,
)
"""Raised by a connection that no longer exists."""

_Isolation: TypeAlias = Literal["read_committed", "repeatable_read"]

_ISOLATION: Final = "read_committed"
"""Our guards rely on it: a write that waited for a row decides by what was committed meanwhile. The
default of the role or the database may be another one."""

_SERVER_SETTINGS = {
    "default_transaction_isolation": _ISOLATION.replace("_", " "),
    "client_connection_check_interval": "1000",
    "plan_cache_mode": "force_generic_plan",
    "enable_seqscan": "off",
}
"""Settings of each connection; a pooler's connections are shared, so there they are not set.

``default_transaction_isolation``: so that a statement without a transaction needs no BEGIN. Behind
a pooler, and in a transaction of several statements, BEGIN says it.

``client_connection_check_interval`` (milliseconds, since PostgreSQL 14): a statement whose caller
gave up ends on the server too.

``plan_cache_mode`` and ``enable_seqscan``: each statement needs one generic plan that uses an
index, whatever the arguments and whatever the size of the table at planning time. By default the
server replans many statements at every call, and more of them as the database grows, because it
expects a plan for the actual arguments to be much cheaper. And a plan made on an empty table would
be a sequential scan, which stays in use while the table grows."""

READS_ALL = "SET LOCAL enable_seqscan = on"
"""For the transaction of a statement that reads whole tables on purpose."""

_READS_INDEXES = "SET LOCAL enable_seqscan = off"
"""The same as in ``_SERVER_SETTINGS``, where a transaction has several statements anyway."""

_LIMIT_IDLE_TRANSACTION = "SET LOCAL idle_in_transaction_session_timeout = '10s'"
"""For a machine that disappears between a pooled statement and its COMMIT: its locks would stay
until the network notices."""


def too_many_calls() -> DatabaseUnavailable:
    """The error for a full queue of calls."""
    return DatabaseUnavailable("Too many calls are waiting for the database")


def is_locked(error: Exception) -> bool:
    """Whether a call failed because it waited for a lock longer than ``lock_seconds``."""
    return isinstance(error.__cause__, asyncpg.LockNotAvailableError)


class Database:
    """Runs statements. Connections are opened on demand, so the server may be down at the start and
    return at any time.

    Raises ``DatabaseUnavailable``. The outcome of a write is then unknown, so nothing is retried.

    A call ends at its own timeout or its caller's, whatever the server does. Its connection is then
    discarded, because it may be waiting for an answer that never comes.

    ``transaction_pooler``: behind PgBouncer and similar poolers a connection is ours for a single
    transaction, so nothing is prepared and every statement runs in a transaction of its own.
    """

    def __init__(
        self, url: str, *, limits: DatabaseLimits, transaction_pooler: bool = False
    ) -> None:
        self._url = parse_postgres_url(url)
        self._limits = limits
        self._timeout = SharedTimeout(limits.command_seconds)
        self._is_pooled = (
            transaction_pooler
            or self._url.transaction_pooler
            or urlsplit(url).netloc.endswith(f":{TRANSACTION_POOLER_PORT}")
        )
        self._bounds = _bounds(limits)
        self._pooled_path = _set_local_path(self._url.search_path) if self._is_pooled else ""
        self._pooled_settings = "; ".join(
            [
                *([self._pooled_path] if self._pooled_path else []),
                _LIMIT_IDLE_TRANSACTION,
                *(f"SET LOCAL {name} = {value}" for name, value in self._bounds.items()),
            ]
        )
        self._pool: asyncpg.Pool[asyncpg.Record] | None = None

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        """All rows of one statement, in its own transaction."""
        async with self._bounded() as connection:
            return await connection.fetch(sql, *arguments)

    async def fetch_row(self, sql: str, *arguments: object) -> asyncpg.Record | None:
        """The first row of one statement, in its own transaction."""
        async with self._bounded() as connection:
            return await connection.fetchrow(sql, *arguments)

    async def fetch_value(self, sql: str, *arguments: object) -> Any:  # noqa: ANN401 - a column
        """The first column of the first row; None if there is no row."""
        row = await self.fetch_row(sql, *arguments)
        return None if row is None else row[0]

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        """A connection within a transaction, for several statements. Acquiring the connection and
        each statement have the timeout of a call; the transaction as a whole has none."""
        with _domain_errors():
            async with (
                self._connection(seconds=self._limits.command_seconds) as connection,
                _transaction(connection, readonly=self._limits.read_only),
            ):
                if self._pooled_path:
                    await connection.execute(self._pooled_path)
                yield connection

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        """A connection within a read-only transaction, whose statements all see the database as it
        was at the first one. The timeout of a call covers the whole transaction."""
        with _domain_errors(), self._timeout.running():
            async with (
                self._connection() as connection,
                _transaction(connection, "repeatable_read", readonly=True),
            ):
                if self._is_pooled:
                    await connection.execute(f"{self._pooled_settings}; {_READS_INDEXES}")
                yield connection

    async def close(self) -> None:
        """Close the pool when the calls in flight have ended, or at their timeout."""
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
        with _domain_errors(), self._timeout.running():
            async with self._connection() as connection:
                if self._is_pooled:
                    async with _transaction(connection, readonly=self._limits.read_only):
                        await connection.execute(self._pooled_settings)
                        yield connection
                else:
                    yield connection

    @asynccontextmanager
    async def _connection(self, *, seconds: float | None = None) -> AsyncIterator[Connection]:
        """A connection of the pool, which is returned only if it is known to be usable. Otherwise
        asyncpg would make an interrupted call wait for the server once more.

        ``seconds`` bounds the wait for a connection. It is not needed inside a timeout for the
        whole call: asyncpg's costs a task, and two loop iterations before anything is sent."""
        pool = self._pool or await self._open()
        connection = await pool.acquire(timeout=seconds)
        try:
            yield connection
        except BaseException as error:
            if isinstance(error, _CONNECTION_LOST):  # The others may be lost too, unnoticed.
                await pool.expire_connections()
            if not isinstance(error, asyncpg.PostgresError):  # That one is a complete answer.
                with suppress(asyncpg.InterfaceError):  # It may be closed already.
                    connection.terminate()
            raise
        finally:
            await pool.release(connection)

    async def _open(self) -> "asyncpg.Pool[asyncpg.Record]":
        """An empty pool, which opens connections one by one, on demand."""
        own_settings = {} if self._is_pooled else _SERVER_SETTINGS | self._bounds
        if self._url.search_path and not self._is_pooled:
            own_settings["search_path"] = self._url.search_path
        self._pool = asyncpg.create_pool(
            self._url.dsn,
            min_size=0,
            max_size=self._limits.connections,
            timeout=min(
                self._limits.command_seconds,
                self._url.connect_seconds or self._limits.command_seconds,
            ),
            command_timeout=self._limits.command_seconds,
            max_inactive_connection_lifetime=self._limits.idle_seconds,
            statement_cache_size=0 if self._is_pooled else 100,
            server_settings={**self._url.server_settings, **own_settings},
            ssl=create_default_context() if self._url.system_ca else None,
            connection_class=_Connection,
            reset=_nothing_to_reset,
        )
        return await self._pool


def _bounds(limits: DatabaseLimits) -> dict[str, str]:
    """The settings with which the server keeps the limits."""
    bounds = {}
    if limits.lock_seconds is not None:
        bounds["lock_timeout"] = f"{limits.lock_seconds * 1000:.0f}"
    if limits.statement_seconds is not None:
        bounds["statement_timeout"] = f"{limits.statement_seconds * 1000:.0f}"
    if limits.read_only:
        bounds["default_transaction_read_only"] = "on"
    return bounds


def _set_local_path(search_path: str | None) -> str:
    """The statement that sets it for a transaction; empty if there is none. A pooler does not pass
    it on when connecting, and a setting that outlives the transaction would reach other clients."""
    if not search_path:
        return ""
    literal = search_path.replace("'", "''")
    return f"SELECT set_config('search_path', '{literal}', true)"


class _Connection(asyncpg.Connection):
    async def close(self, *, timeout: float | None = None) -> None:  # noqa: ARG002 - asyncpg's
        """Closes without the goodbye to the server, whose answer might never come."""
        self.terminate()


@asynccontextmanager
async def _transaction(
    connection: Connection, isolation: _Isolation = _ISOLATION, *, readonly: bool = False
) -> AsyncIterator[None]:
    """Rolled back here after an error of the server; any other error ends the connection, and the
    transaction with it."""
    transaction = connection.transaction(isolation=isolation, readonly=readonly)
    await transaction.start()
    try:
        yield
    except asyncpg.PostgresError:
        await transaction.rollback()
        raise
    await transaction.commit()


@contextmanager
def _domain_errors() -> Iterator[None]:
    try:
        yield
    except asyncpg.UndefinedTableError as error:
        message = "The database lacks a table: run `wearon migrate`"
        raise _unavailable(message, _server_detail(error)) from error
    except asyncpg.InsufficientPrivilegeError as error:
        raise _unavailable("The database role lacks a privilege", _server_detail(error)) from error
    except _NOT_OURS as error:
        detail = f"{error.sqlstate} prepared statement of another connection; {_POOLER}"
        raise _unavailable("The database failed", detail) from error
    except asyncpg.PostgresError as error:
        if not (error.sqlstate or "").startswith(_TRANSIENT_SQLSTATES):
            raise
        raise _unavailable("The database failed", _server_detail(error)) from error
    except asyncpg.ClientConfigurationError as error:
        raise _unavailable("The database's address is not valid", _client_detail(error)) from error
    except _NO_ANSWER as error:
        raise _unavailable("The database does not answer", _client_detail(error)) from error


def _unavailable(message: str, detail: str) -> DatabaseUnavailable:
    return DatabaseUnavailable(message, cause=Cause(CauseKind.DATABASE, detail))


def _server_detail(error: asyncpg.PostgresError) -> str:
    """The server's code and sentence. They never have a password or the values of a row."""
    detail = f"{error.sqlstate} {error}"
    return f"{detail}; {_POOLER}" if "startup parameter" in detail else detail


def _client_detail(error: BaseException) -> str:
    """asyncpg's own errors are sentences about the URL's parameters or the connection."""
    if isinstance(error, asyncpg.InterfaceError):
        return str(error) or type(error).__name__
    return detail_of(error)


async def _nothing_to_reset(_: object) -> None:
    """Our statements leave no state in a connection, so returning it needs no round trip."""
