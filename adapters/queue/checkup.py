"""What ``wearon doctor`` asks Redis."""

import asyncio
from collections.abc import Callable, Iterator, Mapping
from datetime import UTC, datetime
from typing import Any

from redis.asyncio import Redis
from redis.exceptions import RedisError

from adapters.queue.redis import cause_of
from domain.doctor import Finding, clock_finding, failed, ok, warning
from domain.errors import QueueUnavailable
from domain.ports import QueueProbePort

FULL = 0.9


class RedisCheckup:
    """Checks the server, its memory and whether it accepts writes. The calls raise
    ``QueueUnavailable``."""

    def __init__(
        self,
        client: Redis,
        *,
        probe: QueueProbePort,
        timeout_seconds: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._probe = probe
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    async def server(self) -> list[Finding]:
        """The server, its clock, its memory and its persistence."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                await self._client.ping()
                asked_at = self._clock()
                seconds, microseconds = await self._client.time()
                answered_at = self._clock()
                info = await self._client.info()
        except (RedisError, OSError, TimeoutError) as error:
            raise QueueUnavailable("Redis does not answer", cause=cause_of(error)) from error
        theirs = datetime.fromtimestamp(seconds + microseconds / 1e6, UTC)
        milliseconds = (answered_at - asked_at).total_seconds() * 1000
        name = "Valkey" if "valkey_version" in info else "Redis"
        version = info.get("valkey_version") or info.get("redis_version", "of unknown version")
        return [
            ok("redis", f"{name} {version} answers in {milliseconds:.1f} ms."),
            clock_finding("redis clock", theirs, asked_at=asked_at, answered_at=answered_at),
            *findings(info),
        ]

    async def writes(self) -> list[Finding]:
        """Whether a task could be added."""
        await self._probe.check_writes()
        return [ok("redis writes", "Redis accepts writes.")]

    async def close(self) -> None:
        """Close the connections."""
        await self._client.aclose()


def findings(info: Mapping[str, Any]) -> Iterator[Finding]:
    """What INFO tells: role, memory and persistence. A field that a server does not have is no
    finding."""
    if info.get("role") not in {None, "master"}:
        yield failed("redis role", "The server is a replica.", "Point REDIS_URL to the primary.")
    yield _memory(info)
    yield _persistence(info)


def _memory(info: Mapping[str, Any]) -> Finding:
    limit, used = int(info.get("maxmemory", 0)), int(info.get("used_memory", 0))
    policy = info.get("maxmemory_policy", "noeviction")
    if policy != "noeviction":
        return warning(
            "redis memory",
            f"maxmemory-policy is {policy}: Redis may drop the list of tasks.",
            "Set maxmemory-policy to noeviction.",
        )
    if limit and used >= FULL * limit:
        return warning(
            "redis memory",
            f"{min(used, limit) / limit:.0%} of maxmemory is used.",
            "Raise maxmemory: at the limit Redis rejects every task.",
        )
    share = f"{used / limit:.0%} of maxmemory used" if limit else "no limit"
    return ok("redis memory", f"noeviction, {share}.")


def _persistence(info: Mapping[str, Any]) -> Finding:
    if info.get("rdb_last_bgsave_status", "ok") != "ok":
        return warning(
            "redis persistence",
            "The last snapshot failed; Redis may reject writes because of that (MISCONF).",
            "Make room on Redis' disk, or switch snapshots off: wearon needs none.",
        )
    kinds = "append-only file" if int(info.get("aof_enabled", 0)) else "snapshots or none"
    return ok("redis persistence", f"{kinds}; none is needed, recovery rebuilds the list.")
