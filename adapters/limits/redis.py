"""The start limit of all worker processes, in Redis, Valkey or a compatible server.

| key                       | type   | holds                                                      |
|---------------------------|--------|------------------------------------------------------------|
| ``wearon:limits:provider``| string | when the bucket will be full again (see memory.py), in     |
|                           |        | microseconds since 1970 on Redis' clock; expires then      |
"""

import asyncio
from contextlib import suppress

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from adapters.limits.memory import InMemoryStartLimit, Pace
from adapters.queue.redis import cause_of
from domain.picture_ports import StartLimitPort

LIMIT_KEY = "wearon:limits:provider"

# KEYS: the limit. ARGV: how many permits to take, or -1 to give one back; the pace's interval in
# microseconds; its burst; 1 to move the permits, 0 only to ask. Returns the microseconds to wait,
# or 0 if the permits were moved or can be.
# A time further ahead than a whole bucket is cut: the clock went back, or the pace was slower.
_MOVE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local permits, interval = tonumber(ARGV[1]), tonumber(ARGV[2])
local bucket = interval * ARGV[3]
local full_at = tonumber(redis.call('GET', KEYS[1]) or now)
full_at = math.max(now, math.min(full_at, now + bucket)) + permits * interval
if full_at > now + bucket then return full_at - now - bucket end
if ARGV[4] == '0' then return 0 end
if full_at > now then
  local expiry = math.ceil((full_at - now) / 1000)
  redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', expiry)
else
  redis.call('DEL', KEYS[1])
end
return 0"""

log = structlog.get_logger(__name__)


class RedisStartLimit(StartLimitPort):
    """Shared by all users of the same Redis. While Redis does not answer or rejects the script, the
    process falls back to ``share``: the total limit is then ``share`` times the processes.

    ``client`` must not retry commands, or a permit could be taken twice.
    """

    def __init__(
        self, pace: Pace, *, client: Redis, share: InMemoryStartLimit, timeout_seconds: float
    ) -> None:
        self._pace = pace
        self._client = client
        self._share = share
        self._timeout_seconds = timeout_seconds
        self._move = client.register_script(_MOVE)
        self._is_fallback = False

    @property
    def is_local(self) -> bool:
        return self._is_fallback

    async def take(self) -> float:
        try:
            wait_us = await self._move_permits(1)
        except (RedisError, OSError, TimeoutError) as error:
            self._start_fallback(error)
            return await self._share.take()
        self._end_fallback()
        return wait_us / 1_000_000

    async def wait(self, permits: int) -> float:
        try:
            wait_us = await self._move_permits(permits, only_ask=True)
        except (RedisError, OSError, TimeoutError) as error:
            self._start_fallback(error)
            return await self._share.wait(permits)
        self._end_fallback()
        return wait_us / 1_000_000

    async def give_back(self) -> None:
        # A permit taken before the last switch is returned to the wrong limit: at most one per slot
        # and switch. A permit that Redis does not take back is available again after its interval.
        if self._is_fallback:
            await self._share.give_back()
            return
        with suppress(RedisError, OSError, TimeoutError):
            await self._move_permits(-1)

    async def close(self) -> None:
        """Close the connections, within ``timeout_seconds``."""
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_seconds):
                await self._client.aclose()

    async def _move_permits(self, permits: int, *, only_ask: bool = False) -> int:
        arguments = [permits, self._pace.interval_us, self._pace.burst, int(not only_ask)]
        async with asyncio.timeout(self._timeout_seconds):
            return int(await self._move(keys=[LIMIT_KEY], args=arguments))

    def _start_fallback(self, error: Exception) -> None:
        if not self._is_fallback:
            log.warning("start_limit_fallback_started", cause=str(cause_of(error)))
        self._is_fallback = True

    def _end_fallback(self) -> None:
        if self._is_fallback:
            log.info("start_limit_fallback_ended")
        self._is_fallback = False
