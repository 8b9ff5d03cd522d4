"""Every wait for PostgreSQL has a bound, every failure is ``DatabaseUnavailable``, and the pool
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
    nullcontext,
    suppress,
)
from typing import Literal
from urllib.parse import quote

import asyncpg
import pytest

from adapters.embedded.postgres import PORT, EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.errors import DatabaseUnavailable
from tests.support import servers
from tests.support.pause import paused
from tests.support.proxy import HOST, Proxy

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 10.0
SLACK_SECONDS = 1.0
"""What a busy machine may add to a bound."""
ONE = DatabaseLimits(connections=1, command_seconds=0.5)
SLOW = DatabaseLimits(connections=1, command_seconds=1.2)
"""If it were waited for twice, the slack would not cover it."""
PATIENT = DatabaseLimits(connections=2, command_seconds=30)
SLEEP = "SELECT pg_sleep(30)"


@pytest.fixture(scope="module")
def own_postgres() -> Iterator[EmbeddedPostgres]:
    """A server that may be killed, without our tables."""
    with (
        servers.folder() as path,
        EmbeddedPostgres(path / "postgres", durable=False) as server,
    ):
        yield server


@asynccontextmanager
async def connected(
    url: str, limits: DatabaseLimits = ONE, *, transaction_pooler: bool = False
) -> AsyncIterator[Database]:
    database = Database(url, limits=limits, transaction_pooler=transaction_pooler)
    try:
        yield database
    finally:
        await database.close()


@contextmanager
def takes(at_least_seconds: float, at_most_seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    took_seconds = time.monotonic() - began
    assert at_least_seconds <= took_seconds < at_most_seconds + SLACK_SECONDS


@contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a server that takes connections and never says anything."""
    with socket.create_server((HOST, 0)) as listening:
        yield f"postgresql://wearon@{HOST}:{listening.getsockname()[1]}/wearon"


def through(proxy: Proxy) -> str:
    return f"postgresql://wearon@{HOST}:{proxy.port}/wearon"


def proxy_to(server: EmbeddedPostgres) -> Proxy:
    return Proxy(server.sockets / f".s.PGSQL.{PORT}")


@asynccontextmanager
async def talking(
    server: EmbeddedPostgres, limits: DatabaseLimits
) -> AsyncIterator[tuple[Database, Callable[..., AbstractContextManager[None]]]]:
    """A client that has a connection, and what makes the server fall silent."""
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

        await answers(database)
        yield database, silence


async def running(database: Database, count: int) -> None:
    """Return once ``count`` statements sleep on the server."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await database.fetch_value(sql) != count:
            pass


async def one_statement(database: Database) -> None:
    await database.fetch("SELECT 1")


async def one_transaction(database: Database) -> None:
    async with database.transaction():
        pass


async def create_and_fail(database: Database, table: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(f"CREATE TABLE {table} ()")
        await connection.execute("SELECT 1 / 0")


async def under_way(database: Database, calls: int) -> None:
    """Return once so many calls have begun."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while len(database._bound._running) < calls:  # noqa: ASYNC110 - it tells nobody
            await asyncio.sleep(0)


async def answers(database: Database) -> None:
    """Return once the store answers again."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                assert await database.fetch_value("SELECT 1") == 1
            except DatabaseUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def fails(database: Database) -> None:
    """Return once the store is unavailable: what a killed server leaves behind may still answer
    for a moment."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        with suppress(DatabaseUnavailable):
            while True:
                await database.fetch("SELECT 1")


async def test_connecting_has_a_bound() -> None:
    """A server that never says anything is given up after ``command_seconds``."""
    with black_hole() as url:
        async with connected(url) as database:
            with takes(0.5, 0.5), pytest.raises(DatabaseUnavailable):
                await database.fetch("SELECT 1")


@pytest.mark.parametrize("call", [one_statement, one_transaction])
async def test_waiting_for_a_connection_has_a_bound(
    postgres: EmbeddedPostgres, call: Callable[[Database], Awaitable[object]]
) -> None:
    """Where all are in use, a call is given up after ``command_seconds``; the pool is whole
    afterwards."""
    async with connected(postgres.url()) as database:
        async with database.transaction():
            with takes(0.5, 0.5), pytest.raises(DatabaseUnavailable):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await call(database)

        assert await database.fetch_value("SELECT 1") == 1


async def test_a_statement_has_a_bound(postgres: EmbeddedPostgres) -> None:
    """It is given up after ``command_seconds`` and ends on the server as well."""
    async with connected(postgres.url()) as database:
        with takes(0.5, 0.5), pytest.raises(DatabaseUnavailable):
            await database.fetch(SLEEP)

        await running(database, 0)


SILENCES = {"paused": True, "a black hole": False}


@pytest.mark.parametrize("is_paused", SILENCES.values(), ids=SILENCES)
async def test_a_call_has_one_bound(own_postgres: EmbeddedPostgres, *, is_paused: bool) -> None:
    """Whether it had a connection when the server fell silent, wants a new one or waits for
    another call's: all of it together takes ``command_seconds``."""
    async with talking(own_postgres, SLOW) as (database, silence):
        with silence(is_paused=is_paused):
            for _ in range(2):
                with takes(1.2, 1.2):
                    calls = [database.fetch("SELECT 1") for _ in range(20)]
                    results = await asyncio.gather(*calls, return_exceptions=True)

                assert {type(result) for result in results} == {DatabaseUnavailable}

        with takes(0, 0):
            await answers(database)


async def test_waiting_and_running_share_the_bound(postgres: EmbeddedPostgres) -> None:
    """A call that had to wait for its connection has the less time for its statement."""
    async with connected(postgres.url(), SLOW) as database:
        with takes(1.2, 1.2):
            results = await asyncio.gather(
                database.fetch("SELECT pg_sleep(1.1)"),
                database.fetch(SLEEP),
                return_exceptions=True,
            )

    assert [type(result) for result in results] == [list, DatabaseUnavailable]


@pytest.mark.parametrize("is_paused", SILENCES.values(), ids=SILENCES)
async def test_a_caller_s_own_bound_holds(
    own_postgres: EmbeddedPostgres, *, is_paused: bool
) -> None:
    """A caller that gives up earlier is let go at once, as one that gave up. However many did,
    every connection of the pool can be had when the server answers again."""
    async with talking(own_postgres, PATIENT) as (database, silence):
        with silence(is_paused=is_paused), takes(0.3, 0.3):
            calls = [gives_up_after(0.3, database) for _ in range(100)]
            results = await asyncio.gather(*calls, return_exceptions=True)

        with takes(0, 0):
            async with database.transaction(), database.transaction():
                pass
    assert {type(result) for result in results} == {TimeoutError}


@pytest.mark.parametrize("pooled", [True, False])
async def test_a_transaction_that_is_cut_off_is_not_waited_for(
    own_postgres: EmbeddedPostgres, *, pooled: bool
) -> None:
    """A statement has its bound within a transaction as well, and undoing it takes no time."""
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


async def gives_up_after(seconds: float, database: Database) -> None:
    async with asyncio.timeout(seconds):
        await database.fetch("SELECT 1")


async def test_a_lost_commit_is_told_as_unknown(postgres: EmbeddedPostgres) -> None:
    """The statement took effect, only its reply is lost: DatabaseUnavailable, and no more."""
    async with proxy_to(postgres).running() as proxy, connected(through(proxy)) as database:
        await answers(database)
        await database.fetch("CREATE TABLE lost (number integer)")
        await database.fetch("INSERT INTO lost VALUES ($1)", 1)
        proxy.replies.clear()

        with pytest.raises(DatabaseUnavailable):
            await database.fetch("INSERT INTO lost VALUES ($1)", 2)

        proxy.replies.set()
        await answers(database)
        assert await database.fetch_value("SELECT count(*) FROM lost") == 2
        await database.fetch("DROP TABLE lost")


async def test_the_server_may_be_away_at_the_start_and_come_back(
    own_postgres: EmbeddedPostgres,
) -> None:
    """Killed under a client, it is unavailable; started again, the same client goes on."""
    async with connected(own_postgres.url(), DatabaseLimits(connections=3)) as database:
        for _ in range(2):
            own_postgres.kill()
            await fails(database)
            own_postgres.start()

            await answers(database)


async def test_connections_that_ended_while_idle_are_replaced(
    own_postgres: EmbeddedPostgres,
) -> None:
    """After a restart that all of them were told of, no call fails."""
    async with connected(own_postgres.url(), DatabaseLimits(connections=10)) as database:
        await use_all(database, 10)

        await asyncio.to_thread(own_postgres.stop)
        own_postgres.start()

        await use_all(database, 10)


async def test_connections_that_ended_unheard_cost_one_call(postgres: EmbeddedPostgres) -> None:
    """Of those that only learn of their end when they are used, the first one speaks for all."""
    async with proxy_to(postgres).running() as proxy:
        proxy.requests = way = Way()
        async with connected(through(proxy), DatabaseLimits(connections=10)) as database:
            await use_all(database, 10)
            way.has_forgotten = True

            with pytest.raises(DatabaseUnavailable):
                await database.fetch("SELECT 1")

            await use_all(database, 10)


class Way(asyncio.Event):
    """What has forgotten its connections, as a server that lost its power has, says so to whoever
    sends something on one of them."""

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


async def test_statements_under_way_fail_with_the_server(own_postgres: EmbeddedPostgres) -> None:
    """All of them, at once, and as unavailable."""
    async with connected(own_postgres.url(), DatabaseLimits(connections=4)) as database:
        under_way = [asyncio.create_task(database.fetch(SLEEP)) for _ in range(3)]
        await running(database, 3)

        own_postgres.kill()
        with takes(0, 1):
            results = await asyncio.gather(*under_way, return_exceptions=True)
        own_postgres.start()

        assert [type(result) for result in results] == [DatabaseUnavailable] * 3
        await answers(database)


async def test_a_cancelled_call_gives_its_connection_back(postgres: EmbeddedPostgres) -> None:
    """The statement ends on the server, and the next call has the pool's only connection."""
    limits = DatabaseLimits(connections=1)
    async with connected(postgres.url(), limits) as database, connected(postgres.url()) as other:
        call = asyncio.create_task(database.fetch(SLEEP))
        await running(other, 1)

        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call

        assert await database.fetch_value("SELECT 1") == 1
        await running(other, 0)


async def test_a_cancelled_wait_takes_no_connection(postgres: EmbeddedPostgres) -> None:
    """Who gave up waiting does not get the connection that becomes free."""
    async with connected(postgres.url(), DatabaseLimits(connections=1)) as database:
        async with database.transaction():
            waits = [asyncio.create_task(database.fetch("SELECT 1")) for _ in range(5)]
            await under_way(database, 5)
            for wait in waits:
                wait.cancel()
            await asyncio.wait(waits)

        assert all(wait.cancelled() for wait in waits)
        assert await database.fetch_value("SELECT 1") == 1


async def test_a_transaction_is_whole(postgres: EmbeddedPostgres) -> None:
    """An error within it undoes what was done before, and passes through as it is."""
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
async def test_what_is_not_the_statements_fault_is_unavailable(
    postgres: EmbeddedPostgres, failure: str, *, pooled: bool
) -> None:
    """It may work at another time or on another server."""
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
async def test_our_mistakes_are_not_the_stores(postgres: EmbeddedPostgres, sql: str) -> None:
    """They would be there at any time: they pass through, and end as a bug that somebody sees."""
    async with connected(postgres.url()) as database:
        with pytest.raises(MISTAKES[sql]):
            await database.fetch(sql)


@pytest.mark.parametrize("argument", ["text", 2**40])
async def test_an_argument_that_does_not_fit_is_our_mistake(
    postgres: EmbeddedPostgres, argument: object
) -> None:
    """Also where it is found before the statement leaves this process."""
    async with connected(postgres.url()) as database:
        with pytest.raises(asyncpg.DataError):
            await database.fetch("SELECT $1::integer", argument)


@pytest.mark.parametrize("pooled", [True, False])
async def test_behind_a_transaction_pooler_nothing_is_prepared(
    postgres: EmbeddedPostgres, *, pooled: bool
) -> None:
    """What one transaction leaves on a connection, another client would find. Without a pooler
    statements stay prepared, which is faster."""
    limits = DatabaseLimits(connections=1)
    async with connected(postgres.url(), limits, transaction_pooler=pooled) as database:
        for sql in ("SELECT $1::integer", "SELECT $1::text"):
            await database.fetch(sql, None)
        prepared = await database.fetch("SELECT statement FROM pg_prepared_statements")

    assert (prepared == []) is pooled


@pytest.mark.parametrize("pooled", [True, False])
async def test_behind_a_transaction_pooler_a_statement_has_a_transaction(
    postgres: EmbeddedPostgres, *, pooled: bool
) -> None:
    """It takes two round trips, which only a transaction keeps on one connection; so what no
    transaction allows is refused."""
    async with connected(postgres.url(), transaction_pooler=pooled) as database:
        expected = pytest.raises(asyncpg.ActiveSQLTransactionError) if pooled else nullcontext()
        with expected:
            await database.fetch("VACUUM schema_migrations")


async def test_behind_a_transaction_pooler_nobody_holds_locks_for_long(
    postgres: EmbeddedPostgres,
) -> None:
    """The server ends the transaction of a machine that vanished before its COMMIT."""
    async with connected(postgres.url(), transaction_pooler=True) as database:
        setting = await database.fetch_value("SHOW idle_in_transaction_session_timeout")

    assert setting == "10s"


async def test_behind_a_transaction_pooler_a_transaction_is_whole(
    postgres: EmbeddedPostgres,
) -> None:
    """Committed at its end, undone by an error."""
    async with connected(postgres.url(), transaction_pooler=True) as database:
        async with database.transaction() as connection:
            await connection.execute("CREATE TABLE kept ()")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await create_and_fail(database, "half")

        found = "SELECT ARRAY[to_regclass('kept') IS NOT NULL, to_regclass('half') IS NOT NULL]"
        assert await database.fetch_value(found) == [True, False]
        await database.fetch("DROP TABLE kept")


async def test_supabases_port_means_a_transaction_pooler(postgres: EmbeddedPostgres) -> None:
    """Without being told so: 6543 in the URL's address."""
    with servers.folder() as folder:
        (folder / ".s.PGSQL.6543").symlink_to(postgres.sockets / f".s.PGSQL.{PORT}")
        url = f"postgresql://wearon@{quote(str(folder), safe='')}:6543/wearon"
        async with connected(url, DatabaseLimits(connections=1)) as database:
            await database.fetch("SELECT $1::integer", 1)

            assert await database.fetch("SELECT FROM pg_prepared_statements") == []


async def test_a_url_may_name_several_servers(postgres: EmbeddedPostgres) -> None:
    """As PostgreSQL's own clients understand it: the first one that answers is used."""
    async with proxy_to(postgres).running() as proxy:
        url = f"postgresql://wearon@{HOST}:1,{HOST}:{proxy.port}/wearon"
        async with connected(url) as database:
            assert await database.fetch_value("SELECT 1") == 1


async def test_closing_has_a_bound(postgres: EmbeddedPostgres) -> None:
    """Whoever does not give a connection back loses it; a closed pool opens again when it is
    used."""
    database, taken = Database(postgres.url(), limits=ONE), asyncio.Event()

    async def keep_a_connection() -> None:
        async with database.transaction():
            taken.set()
            await asyncio.Event().wait()

    keeper = asyncio.create_task(keep_a_connection())
    await taken.wait()

    with takes(0.5, 0.5):
        await database.close()

    keeper.cancel()
    await asyncio.gather(keeper, return_exceptions=True)
    await answers(database)
    await database.close()


async def test_closing_does_not_wait_for_a_server_that_fell_silent(
    postgres: EmbeddedPostgres,
) -> None:
    """Also with a statement under way, which fails."""
    async with proxy_to(postgres).running() as proxy:
        database = Database(through(proxy), limits=ONE)
        await answers(database)
        proxy.requests.clear()
        call = asyncio.create_task(database.fetch("SELECT 1"))
        await under_way(database, 1)

        with takes(0, 1):
            await database.close()
            await asyncio.wait([call])

        assert isinstance(call.exception(), DatabaseUnavailable)


async def test_closing_what_was_never_opened_is_nothing() -> None:
    """Also twice."""
    database = Database("postgresql://wearon@127.0.0.1:1/wearon", limits=ONE)

    await database.close()
    await database.close()
