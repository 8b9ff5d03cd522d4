"""A server that answers reads and rejects writes: the probe says so, and says why."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

import pytest
from redis.asyncio import Redis

from adapters.embedded.valkey import EmbeddedValkey
from adapters.queue.redis import RedisTaskQueue, redis_client
from domain.errors import QueueUnavailable
from tests.support.clock import FakeClock
from tests.support.examples import a_task

pytestmark = pytest.mark.anyio


@pytest.fixture
async def admin(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    """Puts the shared server right in the end."""
    async with Redis.from_url(valkey.url) as client:
        await client.flushall()
        try:
            yield client
        finally:
            await client.config_set("maxmemory", 0)
            await client.slaveof()
            await client.config_set("min-replicas-to-write", 0)


@asynccontextmanager
async def connected(valkey: EmbeddedValkey) -> AsyncIterator[RedisTaskQueue]:
    queue = RedisTaskQueue(
        client=redis_client(valkey.url), timeout_seconds=5, clock=FakeClock().now
    )
    try:
        yield queue
    finally:
        await queue.close()


async def fill_up(admin: Redis) -> None:
    await admin.config_set("maxmemory-policy", "noeviction")
    await admin.config_set("maxmemory", 1)


async def demote(admin: Redis) -> None:
    """A replica of a server that does not exist."""
    await admin.slaveof("127.0.0.1", 1)


async def lose_replicas(admin: Redis) -> None:
    await admin.config_set("min-replicas-to-write", 1)


@pytest.mark.parametrize(
    ("refuse", "cause"),
    [
        (fill_up, "queue OOM command not allowed when used memory > 'maxmemory'"),
        (demote, "queue READONLY You can't write against a read only replica"),
        (lose_replicas, "queue NOREPLICAS Not enough good replicas to write"),
    ],
    ids=["out of memory", "replica", "without replicas"],
)
async def test_server_that_rejects_writes(
    valkey: EmbeddedValkey, admin: Redis, refuse: object, cause: str
) -> None:
    """It still answers reads, and a push fails for the same reason."""
    assert callable(refuse)
    async with connected(valkey) as queue:
        await queue.check_writes()
        await refuse(admin)

        with pytest.raises(QueueUnavailable) as probed:
            await queue.check_writes()
        with pytest.raises(QueueUnavailable) as pushed:
            await queue.push(a_task())

        assert await queue.depth() == 0
    assert str(probed.value.cause).startswith(cause)
    assert probed.value.refused
    assert str(pushed.value.cause) == str(probed.value.cause)


async def test_server_that_takes_writes_again(valkey: EmbeddedValkey, admin: Redis) -> None:
    """The probe leaves nothing behind."""
    async with connected(valkey) as queue:
        await fill_up(admin)
        with pytest.raises(QueueUnavailable):
            await queue.check_writes()
        await admin.config_set("maxmemory", 0)

        await queue.check_writes()

    assert await admin.dbsize() == 0
