"""The pace of a provider's limit, and the fallback while Redis is unavailable."""

import asyncio
import math
import re
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from redis.asyncio import Redis
from structlog.testing import capture_logs

from adapters.embedded.valkey import EmbeddedValkey
from adapters.limits.memory import InMemoryStartLimit, Pace
from adapters.limits.redis import LIMIT_KEY, RedisStartLimit
from adapters.queue.redis import redis_client

pytestmark = pytest.mark.anyio

Logs = list[MutableMapping[str, Any]]
LONG_US = 600_000_000
FALLBACK_EVENTS = ["start_limit_fallback_started", "start_limit_fallback_ended"]


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as captured:
        yield captured


@pytest.fixture
async def admin(valkey: EmbeddedValkey) -> AsyncIterator[Redis]:
    """An administrator of an empty Valkey, whose settings are restored afterwards."""
    async with redis_client(valkey.url) as client:
        await client.flushall()
        try:
            yield client
        finally:
            await client.config_set("maxmemory", 0)
            await client.acl_deluser("worker")


@asynccontextmanager
async def limited(url: str, *, burst: int = 4, share: int = 2) -> AsyncIterator[RedisStartLimit]:
    """A limit with ``burst`` permits in Redis and ``share`` in the fallback, and then none."""
    limit = RedisStartLimit(
        Pace(burst=burst, interval_us=LONG_US),
        client=redis_client(url),
        share=InMemoryStartLimit(Pace(burst=share, interval_us=LONG_US), clock=lambda: 0.0),
        timeout_seconds=1,
    )
    try:
        yield limit
    finally:
        await limit.close()


async def taken(limit: RedisStartLimit, times: int) -> int:
    """The number of permits taken in this many attempts."""
    return [await limit.take() for _ in range(times)].count(0.0)


@pytest.mark.parametrize(
    ("per_minute", "burst", "refilled_per_minute"),
    [(1, 1, 1), (4, 1, 2), (59, 1, 57), (60, 2, 55), (300, 10, 271), (1_000_000, 33_333, 900_002)],
)
def test_pace_of_a_limit(per_minute: int, burst: int, refilled_per_minute: int) -> None:
    """A thirtieth at once; the starts of a minute leave a reserve of two thirtieths."""
    pace = Pace.of(per_minute)

    assert pace.burst == burst
    assert pace.interval_us == math.ceil(60_000_000 / refilled_per_minute)


@given(
    per_minute=st.integers(1, 90),
    steps=st.lists(
        st.tuples(st.sampled_from([0, 0, 0.1, 1, 7, 31]), st.booleans(), st.booleans()),
        max_size=150,
    ),
)
def test_no_minute_has_more_starts_than_the_limit(
    per_minute: int, steps: list[tuple[float, bool, bool]]
) -> None:
    """However permits are used, held, given back or waited for: those that are used stay within
    the limit, in any 60 seconds."""
    now = 0.0
    limit = InMemoryStartLimit(Pace.of(per_minute), clock=lambda: now)
    used: list[float] = []
    held = 0

    async def walk() -> None:
        nonlocal now, held
        for seconds, gives_back, keeps_time in steps:
            now += seconds
            while (wait := await limit.take()) == 0:
                held += gives_back
                used.extend([] if gives_back else [now])
            if held and keeps_time:
                held -= 1
                await limit.give_back()
            now += 0 if keeps_time else wait

    asyncio.run(walk())

    for first, began in enumerate(used):
        assert sum(at < began + 60 for at in used[first:]) <= per_minute


async def test_key_expires_with_a_full_bucket(admin: Redis, valkey: EmbeddedValkey) -> None:
    """It lives until the bucket is full again, and is deleted once all permits are given back."""
    async with limited(valkey.url) as limit:
        await taken(limit, 2)
        ttl_ms = await admin.pttl(LIMIT_KEY)
        await limit.give_back()
        await limit.give_back()

        assert LONG_US * 2 / 1_000 - 60_000 < ttl_ms <= LONG_US * 2 / 1_000
        assert not await admin.exists(LIMIT_KEY)


async def test_time_in_the_far_future_is_cut(admin: Redis, valkey: EmbeddedValkey) -> None:
    """Redis' clock went back, or the limit was lower before: the wait is no longer than that of an
    empty bucket."""
    seconds, _ = await admin.time()
    await admin.set(LIMIT_KEY, (seconds + 86_400) * 1_000_000)

    async with limited(valkey.url) as limit:
        wait = await limit.take()

    assert LONG_US / 1e6 - 1 < wait <= LONG_US / 1e6


async def test_time_in_the_past_is_a_full_bucket(admin: Redis, valkey: EmbeddedValkey) -> None:
    """Also if the key lost its expiry years ago."""
    await admin.set(LIMIT_KEY, 1)

    async with limited(valkey.url) as limit:
        assert await taken(limit, 8) == 4


async def refuse_scripts(admin: Redis) -> str:
    """Returns the credentials of a worker that may do anything except run scripts."""
    await admin.acl_setuser(
        "worker",
        enabled=True,
        passwords=["+secret"],
        keys=["*"],
        categories=["+@all", "-@scripting"],
    )
    return "worker:secret@"


async def allow_scripts(admin: Redis) -> None:
    await admin.acl_setuser("worker", enabled=True, categories=["+@scripting"])


async def refuse_memory(admin: Redis) -> str:
    await admin.config_set("maxmemory", 1)
    return ""


async def allow_memory(admin: Redis) -> None:
    await admin.config_set("maxmemory", 0)


@pytest.mark.parametrize(
    ("refuse", "allow"),
    [(refuse_scripts, allow_scripts), (refuse_memory, allow_memory)],
    ids=["may not run scripts", "out of memory"],
)
async def test_rejected_script_starts_the_fallback(
    admin: Redis, valkey: EmbeddedValkey, logs: Logs, refuse: Any, allow: Any
) -> None:
    """The process uses its own share until Redis accepts the script again. Each switch is logged
    once, and permits are given back to the limit in use."""
    credentials = await refuse(admin)
    async with limited(valkey.url.replace("unix://", f"unix://{credentials}")) as limit:
        at_first = await taken(limit, 6)
        await limit.give_back()
        given_back = await taken(limit, 6)
        logged = [entry["event"] for entry in logs]
        await allow(admin)
        afterwards = await taken(limit, 6)
        await limit.give_back()

        assert (at_first, given_back, logged) == (2, 1, FALLBACK_EVENTS[:1])
        assert (afterwards, await taken(limit, 6)) == (4, 1)

    assert [entry["event"] for entry in logs] == FALLBACK_EVENTS
    assert logs[0]["log_level"] == "warning"
    assert re.match("queue (NOPERM|OOM) ", logs[0]["cause"])


async def test_unreachable_redis_starts_the_fallback(tmp_path: Path, logs: Logs) -> None:
    """Neither giving a permit back nor closing raises."""
    async with limited(f"unix://{tmp_path}/missing.sock") as limit:
        free = await limit.wait(2)
        permitted = await taken(limit, 6)
        await limit.give_back()
        again = await taken(limit, 6)
        wait = await limit.wait(1)

    assert (free, permitted, again) == (0, 2, 1)
    assert wait == LONG_US / 1e6
    assert [entry["event"] for entry in logs] == FALLBACK_EVENTS[:1]


async def test_failed_return_of_a_permit_is_ignored(
    admin: Redis, valkey: EmbeddedValkey, logs: Logs
) -> None:
    """The permit is unavailable for its interval; the fallback's share does not grow by it."""
    credentials = await refuse_scripts(admin)
    await allow_scripts(admin)
    async with limited(valkey.url.replace("unix://", f"unix://{credentials}")) as limit:
        permitted = await taken(limit, 4)
        await refuse_scripts(admin)
        await limit.give_back()
        logged = list(logs)

        assert (permitted, logged) == (4, [])
        assert await taken(limit, 6) == 2
