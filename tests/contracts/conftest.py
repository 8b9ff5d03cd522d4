"""Every adapter of each port, empty."""

import asyncio
from collections.abc import AsyncIterator

import pytest
from fakeredis import FakeServer
from fakeredis.aioredis import FakeRedis
from redis.asyncio import Redis

from adapters.changes.memory import InMemoryChanges
from adapters.changes.redis import RedisChanges
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.queue.redis import redis_client
from config.services import Changes
from tests.contracts.backends import (
    Backend,
    LimitBackend,
    MemoryBackend,
    MemoryLimitBackend,
    MemoryQueueBackend,
    PostgresBackend,
    QueueBackend,
    RedisLimitBackend,
    RedisQueueBackend,
)
from tests.support.roles import create_member, url_as

APPLICATION = "contracts"


@pytest.fixture(params=["memory", "postgres"])
def database_url(request: pytest.FixtureRequest) -> str | None:
    """None stands for the adapters in memory."""
    if request.param == "memory":
        return None
    server: EmbeddedPostgres = request.getfixturevalue("postgres")
    request.getfixturevalue("application_role")
    return server.url()


@pytest.fixture(scope="session")
def application_role(postgres: EmbeddedPostgres) -> str:
    """A role as the API and the workers have it: it owns nothing and is in their group."""
    asyncio.run(create_member(postgres.url(), APPLICATION, "wearon_app"))
    return APPLICATION


@pytest.fixture
async def backend(database_url: str | None) -> AsyncIterator[Backend]:
    """Empty. PostgreSQL is used with the privileges of the API and the workers, and no more."""
    if database_url is None:
        yield MemoryBackend()
        return
    owner = Database(database_url, limits=DatabaseLimits())
    database = Database(url_as(database_url, APPLICATION), limits=DatabaseLimits())
    try:
        postgres = PostgresBackend(database, owner=owner)
        await postgres.empty()
        yield postgres
    finally:
        await database.close()
        await owner.close()


@pytest.fixture(params=["memory", "fakeredis", "valkey"])
def queue_url(request: pytest.FixtureRequest) -> str:
    """The URL of a server, or the name of its substitute."""
    if request.param != "valkey":
        return str(request.param)
    server: EmbeddedValkey = request.getfixturevalue("valkey")
    return server.url


@pytest.fixture
async def queue_backend(queue_url: str) -> AsyncIterator[QueueBackend]:
    if queue_url == "memory":
        yield MemoryQueueBackend()
        return
    client = _client(queue_url)
    try:
        await client.flushall()
        yield RedisQueueBackend(client=client)
    finally:
        await client.aclose()


@pytest.fixture
async def changes(queue_url: str) -> AsyncIterator[tuple[Changes, Changes]]:
    """The same changes, as one process and another have them."""
    if queue_url == "memory":
        within = InMemoryChanges()
        yield within, within
        return
    server = FakeServer()
    clients = [
        FakeRedis(server=server) if queue_url == "fakeredis" else redis_client(queue_url)
        for _ in range(2)
    ]
    one, other = [RedisChanges(client=client, timeout_seconds=2) for client in clients]
    try:
        yield one, other
    finally:
        await one.close()
        await other.close()


@pytest.fixture
async def limit_backend(queue_url: str) -> AsyncIterator[LimitBackend]:
    if queue_url == "memory":
        yield MemoryLimitBackend()
        return
    client = _client(queue_url)
    try:
        await client.flushall()
        yield RedisLimitBackend(client)
    finally:
        await client.aclose()


def _client(url: str) -> Redis:
    return FakeRedis(server=FakeServer()) if url == "fakeredis" else redis_client(url)
