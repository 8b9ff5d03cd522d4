"""How often changes are published."""

import asyncio
from itertools import pairwise
from typing import Any, cast

import pytest
from redis.asyncio import Redis

from adapters.changes.redis import (
    BURST,
    HEARD_PAUSE_SECONDS,
    UNHEARD_PAUSE_SECONDS,
    RedisChanges,
    changes_of,
)
from tests.support.clock import VirtualTimeLoop
from tests.support.examples import a_session

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Server:
    """Answers after a millisecond, for ``listeners`` processes."""

    def __init__(self, listeners: int) -> None:
        self.listeners = listeners
        self.sent: list[tuple[float, int]] = []
        """When each message arrived, and its changes."""

    async def publish(self, _: str, message: bytes) -> int:
        self.sent.append((asyncio.get_running_loop().time(), len(changes_of(message))))
        await asyncio.sleep(0.001)
        return self.listeners


@pytest.mark.parametrize(
    ("listeners", "pause_seconds"), [(1, HEARD_PAUSE_SECONDS), (0, UNHEARD_PAUSE_SECONDS)]
)
async def test_messages_keep_a_distance_after_a_burst(listeners: int, pause_seconds: float) -> None:
    """The states of a lone session are published at once; many changes share messages."""
    server = Server(listeners)
    changes = RedisChanges(client=cast("Redis", server), timeout_seconds=1.0)

    for _ in range(2_000):
        changes.publish(a_session())
        await asyncio.sleep(0.0005)

    times = [at for at, _ in server.sent]
    gaps = [later - earlier for earlier, later in pairwise(times)]
    assert max(gaps[: BURST - 1]) < 0.002
    assert 0.5 / pause_seconds < len(times) <= 1.0 / pause_seconds + BURST + 1


async def test_quiet_time_allows_another_burst() -> None:
    server = Server(1)
    changes = RedisChanges(client=cast("Redis", server), timeout_seconds=1.0)

    for _ in range(3):
        began = asyncio.get_running_loop().time()
        for _ in range(BURST):
            changes.publish(a_session())
            await asyncio.sleep(0.001)
        assert server.sent[-1][0] - began < BURST * 0.001
        await asyncio.sleep(1)
