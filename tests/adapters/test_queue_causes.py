"""Why the queue is unavailable, in a few words that name no secret."""

import pytest

from adapters.embedded.valkey import EmbeddedValkey
from adapters.queue.redis import RedisTaskQueue, redis_client
from domain.errors import QueueUnavailable
from tests.support.clock import FakeClock

pytestmark = pytest.mark.anyio


async def cause_at(url: str) -> str:
    queue = RedisTaskQueue(client=redis_client(url), timeout_seconds=5, clock=FakeClock().now)
    with pytest.raises(QueueUnavailable) as caught:
        await queue.depth()
    await queue.close()
    assert "hunter2" not in f"{caught.value} {caught.value.cause}"
    return str(caught.value.cause)


async def test_refused_connection() -> None:
    """The system's words, without the address."""
    assert await cause_at("redis://:hunter2@127.0.0.1:1/0") == "queue connection refused"


async def test_missing_socket(valkey: EmbeddedValkey) -> None:
    """As for a TCP port on which nobody listens."""
    assert await cause_at(f"{valkey.url}.gone") == "queue no such file or directory"


async def test_wrong_password(valkey: EmbeddedValkey) -> None:
    """The server's words."""
    url = valkey.url.replace("unix://", "unix://:hunter2@")

    assert (await cause_at(url)).startswith("queue ERR AUTH ")
