"""Changes of sessions in Redis' publish/subscribe.

| channel                       | message                                                       |
|-------------------------------|---------------------------------------------------------------|
| ``wearon:sessions:changed``   | sessions that have a new state: a JSON list of objects with   |
|                               | ``session_id``, ``channel``, and ``store_id`` or ``user_id``, |
|                               | as in a task                                                  |
| ``wearon:sessions:cancelled`` | sessions that their workers are to cancel, likewise           |
"""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from contextvars import Context
from itertools import islice
from typing import Any
from uuid import UUID

import msgspec
import structlog
from redis.asyncio import Redis
from redis.asyncio.client import PubSub
from redis.exceptions import RedisError

from adapters.queue.redis import cause_of
from domain.changes import Change, ChangeFeedPort, ChangePublisherPort
from domain.credits import Channel, Owner
from domain.errors import QueueUnavailable, WearonError
from domain.sessions import GenerationSession

CHANGED = "wearon:sessions:changed"
CANCELLED = "wearon:sessions:cancelled"

BATCH = 500
MAX_UNSENT = 10_000
"""The changes that wait to be published. Further ones are lost."""
HEARD_PAUSE_SECONDS = 0.002
UNHEARD_PAUSE_SECONDS = 0.05
"""The pause between two messages, so that changes share them. The longer one is for the time in
which no process listens."""
BURST = 4
"""The messages that leave without a pause after a quiet time: all that a lone session needs."""
SILENCE_SECONDS = 5.0
"""After this long without a message the connection is tested."""

log = structlog.get_logger(__name__)


class _Message(msgspec.Struct, omit_defaults=True, kw_only=True):
    session_id: UUID
    channel: Channel
    store_id: str | None = None
    user_id: str | None = None


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(list[_Message]).decode


class RedisChanges(ChangePublisherPort, ChangeFeedPort):
    """Changes that are published while a message is on its way share the next one.
    ``timeout_seconds`` bounds each command, connecting included."""

    def __init__(self, *, client: Redis, timeout_seconds: float, channel: str = CHANGED) -> None:
        self._client = client
        self._channel = channel
        self._timeout_seconds = timeout_seconds
        self._unsent: dict[UUID, Owner] = {}
        self._sender: asyncio.Task[None] | None = None
        self._paced_until = 0.0
        self._is_failing = False

    def publish(self, session: GenerationSession) -> None:
        if len(self._unsent) < MAX_UNSENT:
            self._unsent[session.id] = session.owner
        if self._sender is None:
            self._sender = asyncio.get_running_loop().create_task(self._send(), context=Context())

    async def _send(self) -> None:
        try:
            while self._unsent:
                batch = list(islice(self._unsent.items(), BATCH))
                for session_id, _ in batch:
                    del self._unsent[session_id]
                message = _encode([_message(*change) for change in batch])
                listeners = await self._send_message(message)
                await self._pause(HEARD_PAUSE_SECONDS if listeners else UNHEARD_PAUSE_SECONDS)
        finally:
            self._sender = None

    async def _pause(self, seconds: float) -> None:
        """Wait until the messages so far would have been sent at this distance, but for a burst."""
        now = asyncio.get_running_loop().time()
        self._paced_until = max(self._paced_until, now) + seconds
        await asyncio.sleep(max(0.0, self._paced_until - now - BURST * seconds))

    async def _send_message(self, message: bytes) -> int:
        """How many processes heard it."""
        try:
            async with asyncio.timeout(self._timeout_seconds):
                listeners = int(await self._client.publish(self._channel, message))
        except (RedisError, OSError, TimeoutError) as error:
            if not self._is_failing:
                log.warning("changes_not_published", cause=str(cause_of(error)))
            self._is_failing = True
            return 0
        self._is_failing = False
        return listeners

    async def listen(self) -> AsyncGenerator[Sequence[Change], None]:
        pubsub = self._client.pubsub(ignore_subscribe_messages=False)
        try:
            await self._subscribe(pubsub)
            yield ()
            while True:
                message = await self._next_message(pubsub)
                if message is not None and message["type"] == "message":
                    changes = changes_of(message["data"])
                    if changes:
                        yield changes
        except (RedisError, OSError, TimeoutError) as error:
            raise QueueUnavailable("Redis is unavailable", cause=cause_of(error)) from error
        finally:
            with suppress(RedisError, OSError, TimeoutError):
                async with asyncio.timeout(self._timeout_seconds):
                    await pubsub.aclose()  # type: ignore[no-untyped-call]

    async def _subscribe(self, pubsub: PubSub) -> None:
        async with asyncio.timeout(self._timeout_seconds):
            await pubsub.subscribe(self._channel)
            await pubsub.get_message(timeout=self._timeout_seconds)

    async def _next_message(self, pubsub: PubSub) -> dict[str, Any] | None:
        """After a silence, the server's answer to a ping. Raises TimeoutError without one."""
        message: dict[str, Any] | None = await pubsub.get_message(timeout=SILENCE_SECONDS)
        if message is None:
            async with asyncio.timeout(self._timeout_seconds):
                await pubsub.ping()
                message = await pubsub.get_message(timeout=None)
        return message

    async def close(self) -> None:
        """Stop sending, and close the connections."""
        if self._sender is not None:
            self._sender.cancel()
            await asyncio.gather(self._sender, return_exceptions=True)
        with suppress(RedisError, OSError, TimeoutError):
            async with asyncio.timeout(self._timeout_seconds):
                await self._client.aclose()


def _message(session_id: UUID, owner: Owner) -> _Message:
    if owner.channel is Channel.B2B:
        return _Message(session_id=session_id, channel=owner.channel, store_id=owner.id)
    return _Message(session_id=session_id, channel=owner.channel, user_id=owner.id)


def changes_of(data: object) -> Sequence[Change]:
    """None of a message that is not ours to read: its changes count as lost."""
    try:
        messages = _decode(data)  # type: ignore[arg-type]
        return [_change(message) for message in messages]
    except (msgspec.MsgspecError, WearonError, UnicodeDecodeError, RecursionError):
        log.warning("change_unreadable", size=len(data) if isinstance(data, bytes) else 0)
        return ()


def _change(message: _Message) -> Change:
    owner_id = message.store_id if message.channel is Channel.B2B else message.user_id
    if owner_id is None:
        raise msgspec.ValidationError("the owner is missing")
    return Change(session_id=message.session_id, owner=Owner(channel=message.channel, id=owner_id))
