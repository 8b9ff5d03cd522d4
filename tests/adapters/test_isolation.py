"""The guards rely on READ COMMITTED: a write that waited for a row sees what was committed
meanwhile. So we ask for it, whatever is the default of the role or the database."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from tests.adapters.databases import connected
from tests.contracts.backends import PostgresBackend
from tests.support.examples import FAILURE, LEASE, MANY, USER, a_session, picture_of

pytestmark = pytest.mark.anyio

TASKS, SUBMITS = 12, 10
PROCESSES = 3


@pytest.fixture(params=["repeatable read", "serializable"])
async def url(postgres: EmbeddedPostgres, request: pytest.FixtureRequest) -> AsyncIterator[str]:
    """A database whose role has another default."""
    url = postgres.url()
    async with connected(url, DatabaseLimits()) as database:
        await PostgresBackend(database).empty()
        await database.fetch(
            f"ALTER ROLE wearon SET default_transaction_isolation = '{request.param}'"
        )
        try:
            yield url
        finally:
            await database.fetch("ALTER ROLE wearon RESET default_transaction_isolation")


async def _work(repo: PostgresSessionRepo) -> None:
    """Submits of one user, one after the other, of which every other one fails."""
    for number in range(SUBMITS):
        session = a_session(owner=USER)
        await repo.create(session, max_active=MANY)
        await repo.confirm([session.id])
        claimed = await repo.claim(session.id, lease=LEASE)
        assert claimed is not None
        if number % 2:
            assert await repo.fail(session.id, FAILURE, attempt=1)
        else:
            assert await repo.complete(session.id, attempt=1, picture=picture_of(session.id))


@pytest.mark.parametrize("pooled", [False, True])
async def test_default_isolation_of_the_role_changes_nothing(url: str, *, pooled: bool) -> None:
    """Of several processes that work for one user at once none fails, and the books balance."""
    async with AsyncExitStack() as stack:
        databases = [
            await stack.enter_async_context(
                connected(url, DatabaseLimits(), transaction_pooler=pooled)
            )
            for _ in range(PROCESSES)
        ]
        backend = PostgresBackend(databases[0])
        await backend.credits.grant(USER, TASKS * SUBMITS, note="test")
        repos = [PostgresSessionRepo(database) for database in databases]

        async with asyncio.TaskGroup() as tasks:
            for number in range(TASKS):
                tasks.create_task(_work(repos[number % PROCESSES]))

        stats = await backend.reads.stats(USER)
        assert (stats.completed, stats.failed) == (TASKS * SUBMITS // 2, TASKS * SUBMITS // 2)
        assert await backend.credits.audit(limit=10) == []


@pytest.mark.parametrize("pooled", [False, True])
async def test_statements_and_transactions_are_read_committed(url: str, *, pooled: bool) -> None:
    """Both ways to use a connection."""
    async with connected(url, transaction_pooler=pooled) as database:
        alone = await database.fetch_value("SELECT current_setting('transaction_isolation')")
        async with database.transaction() as connection:
            within = await connection.fetchval("SELECT current_setting('transaction_isolation')")

    assert (alone, within) == ("read committed", "read committed")
