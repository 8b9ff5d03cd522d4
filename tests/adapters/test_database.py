"""Every wait for PostgreSQL has a bound, every failure of it is ``StoreUnavailable``, and the pool
comes back by itself."""

import asyncio
import socket
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager, nullcontext, suppress
from urllib.parse import quote

import asyncpg
import pytest

from adapters.embedded.postgres import PORT, EmbeddedPostgres
from adapters.postgres.database import Database, DatabaseLimits
from domain.errors import StoreUnavailable
from tests.adapters.proxy import HOST, Proxy
from tests.support import servers

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 10.0
SLACK_SECONDS = 1.0
"""What a busy machine may add to a bound."""
ONE = DatabaseLimits(connections=1, connect_seconds=0.5, acquire_seconds=0.5, command_seconds=0.5)
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


async def running(database: Database, count: int) -> None:
    """Return once ``count`` statements sleep on the server."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event = 'PgSleep'"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await database.fetch_value(sql) != count:
            pass


async def create_and_fail(database: Database, table: str) -> None:
    async with database.transaction() as connection:
        await connection.execute(f"CREATE TABLE {table} ()")
        await connection.execute("SELECT 1 / 0")


async def answers(database: Database) -> None:
    """Return once the store answers again."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                assert await database.fetch_value("SELECT 1") == 1
            except StoreUnavailable:
                await asyncio.sleep(0.01)
            else:
                return


async def fails(database: Database) -> None:
    """Return once the store is unavailable: what a killed server leaves behind may still answer
    for a moment."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        with suppress(StoreUnavailable):
            while True:
                await database.fetch("SELECT 1")


async def test_connecting_has_a_bound() -> None:
    """A server that never says anything is given up after ``connect_seconds``."""
    limits = DatabaseLimits(connect_seconds=0.3, acquire_seconds=30, command_seconds=30)
    with black_hole() as url:
        async with connected(url, limits) as database:
            with takes(0.3, 0.3), pytest.raises(StoreUnavailable):
                await database.fetch("SELECT 1")


async def test_waiting_for_a_connection_has_a_bound(postgres: EmbeddedPostgres) -> None:
    """Where all are in use, a call is given up after ``acquire_seconds``; the pool is whole
    afterwards."""
    limits = DatabaseLimits(connections=1, acquire_seconds=0.3)
    async with connected(postgres.url(), limits) as database:
        async with database.transaction():
            with takes(0.3, 0.3), pytest.raises(StoreUnavailable):
                async with asyncio.timeout(DEADLINE_SECONDS):
                    await database.fetch("SELECT 1")

        assert await database.fetch_value("SELECT 1") == 1


async def test_a_statement_has_a_bound(postgres: EmbeddedPostgres) -> None:
    """It is given up after ``command_seconds`` and ends on the server as well."""
    limits = DatabaseLimits(connections=1, command_seconds=0.3)
    async with connected(postgres.url(), limits) as database:
        with takes(0.3, 0.3), pytest.raises(StoreUnavailable):
            await database.fetch(SLEEP)

        await running(database, 0)


async def test_a_server_that_falls_silent_has_a_bound(postgres: EmbeddedPostgres) -> None:
    """The statement's time, and as long again for taking it back as for getting a connection.
    When the way is free again, the same client goes on."""
    async with proxy_to(postgres).running() as proxy, connected(through(proxy)) as database:
        await answers(database)
        proxy.requests.clear()
        for _ in range(2):  # with a connection, and for want of one
            with takes(0.5, 1), pytest.raises(StoreUnavailable):
                await database.fetch("SELECT 1")

        proxy.requests.set()

        await answers(database)


async def test_a_lost_commit_is_told_as_unknown(postgres: EmbeddedPostgres) -> None:
    """The statement took effect, only its reply is lost: StoreUnavailable, which says no more."""
    async with proxy_to(postgres).running() as proxy, connected(through(proxy)) as database:
        await answers(database)
        await database.fetch("CREATE TABLE lost (number integer)")
        await database.fetch("INSERT INTO lost VALUES ($1)", 1)
        proxy.replies.clear()

        with pytest.raises(StoreUnavailable):
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


async def test_statements_under_way_fail_with_the_server(own_postgres: EmbeddedPostgres) -> None:
    """All of them, at once, and as unavailable."""
    async with connected(own_postgres.url(), DatabaseLimits(connections=4)) as database:
        under_way = [asyncio.create_task(database.fetch(SLEEP)) for _ in range(3)]
        await running(database, 3)

        own_postgres.kill()
        with takes(0, 1):
            results = await asyncio.gather(*under_way, return_exceptions=True)
        own_postgres.start()

        assert [type(result) for result in results] == [StoreUnavailable] * 3
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
            await asyncio.sleep(0)  # each begins to wait
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

        with pytest.raises(StoreUnavailable):
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
        await asyncio.sleep(0)  # the call begins

        with takes(0, 1):
            await database.close()
            await asyncio.wait([call])

        assert isinstance(call.exception(), StoreUnavailable)


async def test_closing_what_was_never_opened_is_nothing() -> None:
    """Also twice."""
    database = Database("postgresql://wearon@127.0.0.1:1/wearon", limits=ONE)

    await database.close()
    await database.close()
