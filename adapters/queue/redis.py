"""The task queue in Redis (or Valkey, or another server of its protocol).

| key                        | type | holds                                                     |
|----------------------------|------|-----------------------------------------------------------|
| ``wearon:tasks:generation``| list | tasks as JSON (payload.py): LPUSH to add, BRPOP to take   |
| ``wearon:tasks:dead``      | list | what could not be read, newest first: ``DeadMessage``     |
"""

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import RedisError
from redis.maint_notifications import MaintNotificationsConfig

from adapters.queue.payload import decode, encode
from domain.errors import QueueUnavailable
from domain.ports import TaskQueuePort
from domain.tasks import GenerationTask, UnreadableTask

TASKS_KEY = "wearon:tasks:generation"
DEAD_KEY = "wearon:tasks:dead"


class DeadMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the dead list. ``raw`` is the message's text; where that is not UTF-8,
    ``raw_base64`` holds its bytes instead."""

    reason: str
    buried_at: datetime
    session_id: UUID | None = None
    raw: str | None = None
    raw_base64: bytes | None = None


_encode_dead = msgspec.json.Encoder().encode


def redis_client(url: str, *, timeout_seconds: float) -> Redis:
    """A client that connects when it is first used.

    It never repeats a command by itself: a repeated LPUSH whose reply was lost leaves copies.
    """
    return Redis.from_url(
        _with_tls(url),
        socket_timeout=timeout_seconds,
        socket_connect_timeout=timeout_seconds,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )


def _with_tls(url: str) -> str:
    """Upstash wants TLS even where its URL says ``redis://``."""
    parts = urlsplit(url)
    if parts.scheme == "redis" and f".{parts.hostname}".endswith(".upstash.io"):
        return urlunsplit(parts._replace(scheme="rediss"))
    return url


class RedisTaskQueue(TaskQueuePort):
    """``client`` serves what must answer soon and has a short timeout; ``blocking_client`` serves
    ``pop`` only, and its timeout is longer than any ``pop`` may wait."""

    def __init__(
        self,
        *,
        client: Redis,
        blocking_client: Redis,
        timeout_seconds: float,
        clock: Callable[[], datetime],
    ) -> None:
        self._client = client
        self._blocking_client = blocking_client
        self._timeout_seconds = timeout_seconds
        self._clock = clock

    async def push(self, task: GenerationTask) -> None:
        async with self._bounded():
            await self._client.lpush(TASKS_KEY, encode(task))

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        if not tasks:
            return
        async with self._bounded():
            await self._client.rpush(TASKS_KEY, *map(encode, tasks))

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        raw: object
        async with self._bounded(waiting_seconds=timeout_seconds):
            if timeout_seconds > 0:
                reply = await self._blocking_client.brpop([TASKS_KEY], timeout=timeout_seconds)
                raw = reply[1] if reply else None
            else:  # to BRPOP, zero seconds are for ever
                raw = await self._client.rpop(TASKS_KEY)
        return decode(raw) if isinstance(raw, bytes | str) else None

    async def oldest(self) -> GenerationTask | UnreadableTask | None:
        async with self._bounded():
            raw = await self._client.lindex(TASKS_KEY, -1)
        return None if raw is None else decode(raw)

    async def depth(self) -> int:
        async with self._bounded():
            return await self._client.llen(TASKS_KEY)

    async def bury(self, message: UnreadableTask) -> None:
        async with self._bounded():
            await self._client.lpush(DEAD_KEY, _encode_dead(self._dead(message)))

    async def close(self) -> None:
        """Close the connections; a server that does not answer is not waited for, nor is it an
        error."""
        for client in (self._client, self._blocking_client):
            with suppress(QueueUnavailable):
                async with self._bounded():
                    await client.aclose()

    def _dead(self, message: UnreadableTask) -> DeadMessage:
        dead = DeadMessage(
            reason=message.reason, buried_at=self._clock(), session_id=message.session_id
        )
        try:
            return msgspec.structs.replace(dead, raw=message.raw.decode())
        except UnicodeDecodeError:
            return msgspec.structs.replace(dead, raw_base64=message.raw)

    @asynccontextmanager
    async def _bounded(self, *, waiting_seconds: float = 0.0) -> AsyncIterator[None]:
        """One deadline over connecting, sending and waiting; every failure becomes ours.

        READONLY, OOM, NOAUTH and their kin are no connection errors, but mean the same to us.
        """
        try:
            async with asyncio.timeout(self._timeout_seconds + waiting_seconds):
                yield
        except (RedisError, OSError, TimeoutError) as error:
            raise QueueUnavailable("Redis queue unavailable") from error
