"""The start limit of a whole fleet, in Redis (or Valkey, or another server of its protocol).

| key                       | type   | holds                                                      |
|---------------------------|--------|------------------------------------------------------------|
| ``wearon:limits:provider``| string | when the bucket will be full again, in microseconds since  |
|                           |        | 1970 on Redis' own clock; it expires then (see memory.py)  |
"""

import asyncio
from contextlib import suppress

import structlog
from redis.asyncio import Redis
from redis.exceptions import RedisError

from adapters.limits.memory import InMemoryStartLimit, Pace
from domain.ports import StartLimitPort

LIMIT_KEY = "wearon:limits:provider"

# KEYS: the limit. ARGV: 1 to take a permit, -1 to give one back; microseconds from one start to
# the next; how many may start at once. Returns the microseconds to wait, 0 if that was done.
# A time further ahead than a whole bucket was left by a clock that went back, or by a slower pace.
_MOVE = """
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local permits, interval = tonumber(ARGV[1]), tonumber(ARGV[2])
local bucket = interval * ARGV[3]
local full_at = tonumber(redis.call('GET', KEYS[1]) or now)
full_at = math.max(now, math.min(full_at, now + bucket)) + permits * interval
if full_at > now + bucket then return full_at - now - bucket end
if full_at > now then
  local expiry = math.ceil((full_at - now) / 1000)
  redis.call('SET', KEYS[1], string.format('%.0f', full_at), 'PX', expiry)
else
  redis.call('DEL', KEYS[1])
end
return 0"""

log = structlog.get_logger(__name__)


class RedisStartLimit(StartLimitPort):
    """Holds for all who use the same Redis. Where that does not answer, or refuses the script,
    ``share`` stands in, each process's own: then the limit is that times the processes.

    ``client`` repeats no command: a permit would be taken twice.
    """

    def __init__(
        self, pace: Pace, *, client: Redis, share: InMemoryStartLimit, timeout_seconds: float
    ) -> None:
        self._pace = pace
        self._client = client
        self._share = share
        self._timeout_seconds = timeout_seconds
        self._move = client.register_script(_MOVE)
        self._is_away = False

    async def take(self) -> float:
        try:
            wait_us = await self._moved(1)
        except (RedisError, OSError, TimeoutError) as error:
            self._fall_back(error)
            return await self._share.take()
        self._come_back()
        return wait_us / 1_000_000

    async def give_back(self) -> None:
        # A permit that was taken before the last change goes to the other side: as many as there
        # are slots, at each change. One that Redis does not take back comes back with time.
        if self._is_away:
            await self._share.give_back()
            return
        with suppress(RedisError, OSError, TimeoutError):
            await self._moved(-1)

    async def close(self) -> None:
        """Close the connections; a server that does not answer is not waited for."""
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_seconds):
                await self._client.aclose()

    async def _moved(self, permits: int) -> int:
        arguments = [permits, self._pace.interval_us, self._pace.burst]
        async with asyncio.timeout(self._timeout_seconds):
            return int(await self._move(keys=[LIMIT_KEY], args=arguments))

    def _fall_back(self, error: Exception) -> None:
        if not self._is_away:
            log.warning("start_limit_fell_back", cause=type(error).__name__)
        self._is_away = True

    def _come_back(self) -> None:
        if self._is_away:
            log.info("start_limit_is_shared_again")
        self._is_away = False
