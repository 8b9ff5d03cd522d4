"""Every wait for PostgreSQL has a timeout, every failure is ``DatabaseUnavailable``, and the pool
recovers by itself."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import (
    AbstractContextManager,
    ExitStack,
    asynccontextmanager,
    contextmanager,
    suppress,
)
from typing import Literal

import asyncpg
import pytest

from adapters.embedded.postgres import PORT, EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.errors import DatabaseUnavailable
from tests.adapters.databases import ONE_CONNECTION, connected, create_and_fail
from tests.support import servers
from tests.support.pause import paused
from tests.support.proxy import HOST, Proxy

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 10.0
SLACK_SECONDS = 1.0
"""Tolerance of a timeout on a busy machine."""
SLOW = DatabaseLimits(connections=1, command_seconds=1.2)
"""Longer than the slack, so that waiting twice is noticed."""
PATIENT = DatabaseLimits(connections=2, command_seconds=30)
SLEEP = "SELECT pg_sleep(30)"


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server of this module's own, which may be killed; without our tables."""
    with (
        servers.folder() as path,
        EmbeddedPostgres(path / "postgres", durable=False) as server,
    ):
        yield server


@contextmanager
def takes(at_least_seconds: float, at_most_seconds: float) -> Iterator[None]:
    started_at = time.monotonic()
    yield
    elapsed_seconds = time.monotonic() - started_at
    assert at_least_seconds <= elapsed_seconds < at_most_seconds + SLACK_SECONDS


@contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a server that accepts connections and never sends anything."""
    with socket.create_server((HOST, 0)) as listening:
        yield f"postgresql://wearon@{HOST}:{listening.getsockname()[1]}/wearon"


def through(proxy: Proxy) -> str:
    return f"postgresql://wearon@{HOST}:{proxy.port}/wearon"


def proxy_to(server: EmbeddedPostgres) -> Proxy:
    return Proxy(server.sockets / f".s.PGSQL.{PORT}")


@asynccontextmanager
async def silenceable(
    server: EmbeddedPostgres, limits: DatabaseLimits
) -> AsyncIterator[tuple[Database, Callable[..., AbstractContextManager[None]]]]:
    """A client with an open connection, and a context manager that silences the server."""
    async with proxy_to(server).running() as proxy, connected(through(proxy), limits) as database:

        @contextmanager
        def silence(*, is_paused: bool) -> Iterator[None]:
            if is_paused:
                with paused(server.pid):
                    yield
                return
            proxy.requests.clear()
            yield
            proxy.requests.set()

        await wait_until_available(database)
        yield database, silence


async def wait_for_sleeping(database: Database, count: int) -> None:
    """Return once ``count`` statements sleep on the server."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await database.fetch_value(sql) != count:
            pass


async def run_statement(database: Database) -> None:
    await database.fetch("SELECT 1")


async def run_transaction(database: Database) -> None:
    async with database.transaction():
        pass


async def wait_until_available(database: Database) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                assert await database.fetch_value("SELECT 1") == 1
            except DatabaseUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def wait_until_unavailable(database: Database) -> None:
    """The processes of a killed server may answer for another moment."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        with suppress(DatabaseUnavailable):
            while True:
                await database.fetch("SELECT 1")


async def test_connecting_has_a_timeout() -> None:
    """A call to a server that never sends anything ends after ``command_seconds``."""
    with black_hole() as url:
        async with connected(url) as database:
            with takes(0.5, 0.5), pytest.raises(DatabaseUnavailable):
                await database.fetch("SELECT 1")


@pytest.mark.parametrize("call", [run_statement, run_transaction])
async def test_waiting_for_a_connection_has_a_timeout(
    postgres: EmbeddedPostgres, call: Callable[[Database], Awaitable[object]]
) -> None:
    """While all connections are in use, a call ends after ``command_seconds``. The pool keeps its
    connections."""
    async with connected(postgres.url()) as database:
        async with database.transaction():
            with takes(0.5, 0.5), pytest.raises(DatabaseUnavailable):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await call(database)

        assert await database.fetch_value("SELECT 1") == 1


async def test_statement_has_a_timeout(postgres: EmbeddedPostgres) -> None:
    """After ``command_seconds`` it also ends on the server."""
    async with connected(postgres.url()) as database:
        with takes(0.5, 0.5), pytest.raises(DatabaseUnavailable):
            await database.fetch(SLEEP)

        await wait_for_sleeping(database, 0)


SILENCES = {"paused": True, "a black hole": False}


@pytest.mark.parametrize("is_paused", SILENCES.values(), ids=SILENCES)
async def test_call_has_one_timeout(own_postgres: EmbeddedPostgres, *, is_paused: bool) -> None:
    """Any call to a silent server takes ``command_seconds`` in all: one that has a connection, one
    that needs a new connection, and one that waits for a connection in use."""
    async with silenceable(own_postgres, SLOW) as (database, silence):
        with silence(is_paused=is_paused):
            for _ in range(2):
                with takes(1.2, 1.2):
                    calls = [database.fetch("SELECT 1") for _ in range(20)]
                    results = await asyncio.gather(*calls, return_exceptions=True)

                assert {type(result) for result in results} == {DatabaseUnavailable}

        with takes(0, 0):
            await wait_until_available(database)


async def test_wait_and_statement_share_the_timeout(postgres: EmbeddedPostgres) -> None:
    """The wait for a connection is deducted from the time for the statement."""
    async with connected(postgres.url(), SLOW) as database:
        with takes(1.2, 1.2):
            results = await asyncio.gather(
                database.fetch("SELECT pg_sleep(1.1)"),
                database.fetch(SLEEP),
                return_exceptions=True,
            )

    assert [type(result) for result in results] == [list, DatabaseUnavailable]


@pytest.mark.parametrize("is_paused", SILENCES.values(), ids=SILENCES)
async def test_callers_timeout_ends_the_call(
    own_postgres: EmbeddedPostgres, *, is_paused: bool
) -> None:
    """At once, with the caller's ``TimeoutError``. After any number of such calls, all connections
    of the pool are usable when the server answers again."""
    async with silenceable(own_postgres, PATIENT) as (database, silence):
        with silence(is_paused=is_paused), takes(0.3, 0.3):
            calls = [fetch_within(0.3, database) for _ in range(100)]
            results = await asyncio.gather(*calls, return_exceptions=True)

        with takes(0, 0):
            async with database.transaction(), database.transaction():
                pass
    assert {type(result) for result in results} == {TimeoutError}


@pytest.mark.parametrize("pooled", [True, False])
async def test_statement_in_a_transaction_has_a_timeout(
    own_postgres: EmbeddedPostgres, *, pooled: bool
) -> None:
    """The rollback of the interrupted transaction takes no further time."""
    async with connected(own_postgres.url(), SLOW, transaction_pooler=pooled) as database:
        with takes(1.2, 1.2), pytest.raises(DatabaseUnavailable):
            await create_and_pause(database, "half", own_postgres)

        assert await database.fetch_value("SELECT to_regclass('half')") is None


async def create_and_pause(database: Database, table: str, server: EmbeddedPostgres) -> None:
    with ExitStack() as pause:
        async with database.transaction() as connection:
            await connection.execute(f"CREATE TABLE {table} ()")
            pause.enter_context(paused(server.pid))
            await connection.execute("SELECT 1")


async def fetch_within(seconds: float, database: Database) -> None:
    async with asyncio.timeout(seconds):
        await database.fetch("SELECT 1")


async def test_lost_reply_is_an_unknown_outcome(postgres: EmbeddedPostgres) -> None:
    """The statement took effect once, and the call raises ``DatabaseUnavailable``."""
    async with proxy_to(postgres).running() as proxy, connected(through(proxy)) as database:
        await wait_until_available(database)
        await database.fetch("CREATE TABLE lost (number integer)")
        await database.fetch("INSERT INTO lost VALUES ($1)", 1)
        proxy.replies.clear()

        with pytest.raises(DatabaseUnavailable):
            await database.fetch("INSERT INTO lost VALUES ($1)", 2)

        proxy.replies.set()
        await wait_until_available(database)
        assert await database.fetch_value("SELECT count(*) FROM lost") == 2
        await database.fetch("DROP TABLE lost")


async def test_client_recovers_after_a_restart(own_postgres: EmbeddedPostgres) -> None:
    """A killed server is unavailable; once it is started again, the same client works."""
    async with connected(own_postgres.url(), DatabaseLimits(connections=3)) as database:
        for _ in range(2):
            own_postgres.kill()
            await wait_until_unavailable(database)
            own_postgres.start()

            await wait_until_available(database)


async def test_connections_closed_while_idle_are_replaced(own_postgres: EmbeddedPostgres) -> None:
    """After a regular restart, which closes all connections, no call fails."""
    async with connected(own_postgres.url(), DatabaseLimits(connections=10)) as database:
        await use_all(database, 10)

        await asyncio.to_thread(own_postgres.stop)
        own_postgres.start()

        await use_all(database, 10)


async def test_connections_lost_unnoticed_fail_one_call(postgres: EmbeddedPostgres) -> None:
    """The first call on a lost connection fails; the pool then replaces all its connections."""
    async with proxy_to(postgres).running() as proxy:
        proxy.requests = requests = ForgetfulRequests()
        async with connected(through(proxy), DatabaseLimits(connections=10)) as database:
            await use_all(database, 10)
            requests.has_forgotten = True

            with pytest.raises(DatabaseUnavailable):
                await database.fetch("SELECT 1")

            await use_all(database, 10)


class ForgetfulRequests(asyncio.Event):
    """Resets each earlier connection at its next request, as a server does after a power cut."""

    def __init__(self) -> None:
        super().__init__()
        self.has_forgotten = False
        self._known: set[object] = set()

    async def wait(self) -> Literal[True]:
        link = asyncio.current_task()
        if not self.has_forgotten:
            self._known.add(link)
        elif link in self._known:
            raise ConnectionResetError
        return True


async def use_all(database: Database, count: int) -> None:
    """Use ``count`` connections at once."""
    await asyncio.gather(*[database.fetch("SELECT pg_sleep(0.05)") for _ in range(count)])


async def test_statements_in_flight_fail_with_the_server(own_postgres: EmbeddedPostgres) -> None:
    """All of them, at once, with ``DatabaseUnavailable``."""
    async with connected(own_postgres.url(), DatabaseLimits(connections=4)) as database:
        in_flight = [asyncio.create_task(database.fetch(SLEEP)) for _ in range(3)]
        await wait_for_sleeping(database, 3)

        own_postgres.kill()
        with takes(0, 1):
            results = await asyncio.gather(*in_flight, return_exceptions=True)
        own_postgres.start()

        assert [type(result) for result in results] == [DatabaseUnavailable] * 3
        await wait_until_available(database)


async def test_cancelled_call_frees_its_connection(postgres: EmbeddedPostgres) -> None:
    """The statement ends on the server, and the next call gets the pool's only connection."""
    limits = DatabaseLimits(connections=1)
    async with connected(postgres.url(), limits) as database, connected(postgres.url()) as other:
        call = asyncio.create_task(database.fetch(SLEEP))
        await wait_for_sleeping(other, 1)

        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        assert await database.fetch_value("SELECT 1") == 1
        await wait_for_sleeping(other, 0)


async def test_cancelled_wait_takes_no_connection(postgres: EmbeddedPostgres) -> None:
    """A freed connection does not go to a cancelled call."""
    async with connected(postgres.url(), DatabaseLimits(connections=1)) as database:
        async with database.transaction():
            waits = [asyncio.create_task(database.fetch("SELECT 1")) for _ in range(5)]
            await asyncio.sleep(0)  # Each task runs until it waits for the connection.
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

        assert all(wait.cancelled() for wait in waits)
        assert await database.fetch_value("SELECT 1") == 1


async def test_transaction_is_atomic(postgres: EmbeddedPostgres) -> None:
    """An error rolls it back and propagates unchanged."""
    async with connected(postgres.url()) as database:
        with pytest.raises(asyncpg.DivisionByZeroError):
            await create_and_fail(database, "half")

        assert await database.fetch_value("SELECT to_regclass('half')") is None


FAILURES = {
    "a read-only server": ("?", "?default_transaction_read_only=on&", "CREATE TABLE refused ()"),
    "a statement that the server ended": ("?", "?statement_timeout=100&", SLEEP),
    "a lock that is not free": ("?", "?lock_timeout=100&", "DROP TABLE schema_migrations"),
    "an unknown user": ("//wearon", "//nobody", "SELECT 1"),
    "an unknown database": ("/wearon?", "/nothing?", "SELECT 1"),
    "a database that was not migrated": ("", "", "SELECT * FROM nothing"),
    "an ended connection": ("", "", "SELECT pg_terminate_backend(pg_backend_pid())"),
}


@pytest.mark.parametrize("failure", FAILURES)
@pytest.mark.parametrize("pooled", [True, False])
async def test_transient_failure_is_unavailable(
    postgres: EmbeddedPostgres, failure: str, *, pooled: bool
) -> None:
    """Failures that the statement did not cause: it may succeed later or on another server."""
    part, instead, sql = FAILURES[failure]
    url = postgres.url().replace(part, instead)
    async with (
        connected(url, DatabaseLimits(), transaction_pooler=pooled) as database,
        connected(postgres.url()) as other,
        other.transaction() as connection,
    ):
        await connection.execute("LOCK TABLE schema_migrations IN ACCESS SHARE MODE")

        with pytest.raises(DatabaseUnavailable):
            await database.fetch(sql)


MISTAKES = {
    "SELEC 1": asyncpg.PostgresSyntaxError,
    "SELECT 1 / 0": asyncpg.DivisionByZeroError,
}


@pytest.mark.parametrize("sql", MISTAKES)
async def test_invalid_statement_is_a_bug(postgres: EmbeddedPostgres, sql: str) -> None:
    """It would always fail, so its error propagates unchanged."""
    async with connected(postgres.url()) as database:
        with pytest.raises(MISTAKES[sql]):
            await database.fetch(sql)


@pytest.mark.parametrize("argument", ["text", 2**40])
async def test_invalid_argument_is_a_bug(postgres: EmbeddedPostgres, argument: object) -> None:
    """Also if it is detected before the statement is sent."""
    async with connected(postgres.url()) as database:
        with pytest.raises(asyncpg.DataError):
            await database.fetch("SELECT $1::integer", argument)


async def test_url_may_name_several_servers(postgres: EmbeddedPostgres) -> None:
    """As with PostgreSQL's own clients, the first server that answers is used."""
    async with proxy_to(postgres).running() as proxy:
        url = f"postgresql://wearon@{HOST}:1,{HOST}:{proxy.port}/wearon"
        async with connected(url) as database:
            assert await database.fetch_value("SELECT 1") == 1


async def test_close_has_a_timeout(postgres: EmbeddedPostgres) -> None:
    """A connection that is not returned in time is terminated. A closed pool opens again when it is
    used."""
    database, acquired = Database(postgres.url(), limits=ONE_CONNECTION), asyncio.Event()

    async def keep_a_connection() -> None:
        async with database.transaction():
            acquired.set()
            await asyncio.Event().wait()

    keeper = asyncio.create_task(keep_a_connection())
    await acquired.wait()

    with takes(0.5, 0.5):
        await database.close()

    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    await wait_until_available(database)
    await database.close()


async def test_close_does_not_wait_for_a_silent_server(postgres: EmbeddedPostgres) -> None:
    """A statement in flight fails."""
    async with proxy_to(postgres).running() as proxy:
        database = Database(through(proxy), limits=ONE_CONNECTION)
        await wait_until_available(database)
        proxy.requests.clear()
        call = asyncio.create_task(database.fetch("SELECT 1"))
        await asyncio.sleep(0)  # The task runs until it waits for the server.

        with takes(0, 1):
            await database.close()
            await asyncio.wait([call])

        assert isinstance(call.exception(), DatabaseUnavailable)


async def test_unused_database_can_be_closed_twice() -> None:
    database = Database("postgresql://wearon@127.0.0.1:1/wearon", limits=ONE_CONNECTION)

    await database.close()
    await database.close()
