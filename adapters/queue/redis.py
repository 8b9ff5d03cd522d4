"""The task queue in Redis (or Valkey, or another server of its protocol).

| key                        | type | holds                                                     |
|----------------------------|------|-----------------------------------------------------------|
| ``wearon:tasks:generation``| list | tasks as JSON (payload.py): LPUSH to add, BRPOP to take   |
| ``wearon:tasks:dead``      | list | what was taken out, newest first: ``DeadMessage``; the    |
|                            |      | newest ``MAX_DEAD`` are kept. What is no such entry is    |
|                            |      | shown as one, with an id made of its bytes                |
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from socket import gaierror
from urllib.parse import urlsplit, urlunsplit
from uuid import UUID, uuid4, uuid5

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from adapters.coalescing import DEFAULT_LIMITS, BatchLimits, Coalescer
from adapters.queue.payload import MAX_DEAD, MAX_REASON_LENGTH, decode, encode
from adapters.queue.pops import SharedPops
from domain.deadlines import SharedTimeout
from domain.errors import QueueUnavailable
from domain.ports import DeadLetterPort, TaskQueuePort
from domain.tasks import DeadLetter, GenerationTask, UnreadableTask

TASKS_KEY = "wearon:tasks:generation"
DEAD_KEY = "wearon:tasks:dead"


class DeadMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the dead list. ``raw`` is the message's text; where that is not UTF-8,
    ``raw_base64`` holds its bytes instead. The first version wrote no ``id``."""

    id: UUID | None = None
    reason: str
    buried_at: datetime
    session_id: UUID | None = None
    raw: str | None = None
    raw_base64: bytes | None = None


_DEAD_BATCH = 500
_NAMESPACE = UUID("8f2c6a1e-3b0d-4c58-9a77-5d1e0c4b9f36")
_LONG_AGO = datetime.fromtimestamp(0, UTC)
_encode_dead = msgspec.json.Encoder().encode
_decode_dead = msgspec.json.Decoder(DeadMessage).decode

# KEYS: dead list, tasks. ARGV: the entry, its raw text. Nobody else can requeue it in between.
_REQUEUE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1"""
# An entry need not be text, and so no str, which is what LREM's Python signature asks for.
_DISCARD = "return redis.call('LREM', KEYS[1], 1, ARGV[1])"


def redis_client(url: str) -> Redis:
    """A client that connects when it is first used.

    It never repeats a command by itself: a repeated LPUSH whose reply was lost leaves copies. Nor
    does it end one: whoever uses it bounds all that a command takes, and the client's own bounds
    would cost each one a task and two timers beside that.
    """
    return Redis.from_url(
        _with_tls(url),
        socket_timeout=None,
        socket_connect_timeout=None,
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


class RedisTaskQueue(TaskQueuePort, DeadLetterPort):
    """``timeout_seconds`` is for all that a command takes; a ``pop`` may wait besides.

    Pushes that arrive while one is under way go together into the next; ``batches`` has one in
    flight, which keeps their order."""

    def __init__(
        self,
        *,
        client: Redis,
        timeout_seconds: float,
        clock: Callable[[], datetime],
        batches: BatchLimits = DEFAULT_LIMITS,
        max_dead: int = MAX_DEAD,
    ) -> None:
        self._client = client
        self._timeout_seconds = timeout_seconds
        self._timeout = SharedTimeout(timeout_seconds)
        self._clock = clock
        self._max_dead = max_dead
        self._push = Coalescer(self._run_push, limits=batches, too_many=_too_many)
        self._pops = SharedPops(
            take=self._take, await_next=self._await_next, put_back=self._put_back
        )

    async def push(self, task: GenerationTask) -> None:
        await self._push(encode(task))

    async def _run_push(self, messages: Sequence[bytes]) -> Sequence[None]:
        with self._bounded():
            await self._client.lpush(TASKS_KEY, *messages)
        return [None] * len(messages)

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        if tasks:
            await self._put_back([encode(task) for task in tasks])

    async def _put_back(self, messages: Sequence[bytes]) -> None:
        with self._bounded():
            await self._client.rpush(TASKS_KEY, *messages)

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        if timeout_seconds > 0:
            raw = await self._pops.pop(timeout_seconds)
        else:  # to BRPOP, zero seconds are for ever
            raw = next(iter(await self._take(1)), None)
        return None if raw is None else decode(raw)

    async def _await_next(self, seconds: float) -> bytes | None:
        with _named_failures():
            async with asyncio.timeout(self._timeout_seconds + seconds):
                reply = await self._client.brpop([TASKS_KEY], timeout=seconds)
        message = reply[1] if reply else None
        return message if isinstance(message, bytes) else None

    async def _take(self, count: int) -> Sequence[bytes]:
        with self._bounded():
            reply = await self._client.rpop(TASKS_KEY, count)
        return [message for message in reply or () if isinstance(message, bytes)]

    async def oldest(self) -> GenerationTask | UnreadableTask | None:
        with self._bounded():
            raw = await self._client.lindex(TASKS_KEY, -1)
        return None if raw is None else decode(raw)

    async def depth(self) -> int:
        with self._bounded():
            return await self._client.llen(TASKS_KEY)

    async def bury(self, message: GenerationTask | UnreadableTask, *, reason: str) -> None:
        raw = message.raw if isinstance(message, UnreadableTask) else encode(message)
        dead = _dead(raw, reason, message.session_id, self._clock())
        with self._bounded():
            async with self._client.pipeline(transaction=True) as transaction:
                transaction.lpush(DEAD_KEY, _encode_dead(dead))
                transaction.ltrim(DEAD_KEY, 0, self._max_dead - 1)
                await transaction.execute()

    async def dead(self, *, limit: int) -> list[DeadLetter]:
        return [_letter(entry) for entry in await self._dead_entries(0, limit)]

    async def requeue(self, letter_id: UUID) -> bool:
        entry = await self._find_dead(letter_id)
        if entry is None:
            return False
        with self._bounded():
            moved = await self._client.eval(
                _REQUEUE, 2, DEAD_KEY, TASKS_KEY, entry, _letter(entry).raw
            )
        return bool(moved)

    async def discard(self, letter_id: UUID) -> bool:
        entry = await self._find_dead(letter_id)
        if entry is None:
            return False
        with self._bounded():
            return bool(await self._client.eval(_DISCARD, 1, DEAD_KEY, entry))

    async def _find_dead(self, letter_id: UUID) -> bytes | None:
        """The entry as it stands in the list."""
        for start in range(0, self._max_dead, _DEAD_BATCH):
            for entry in await self._dead_entries(start, _DEAD_BATCH):
                if _letter(entry).id == letter_id:
                    return entry
        return None

    async def _dead_entries(self, start: int, count: int) -> list[bytes]:
        if count < 1:
            return []  # To LRANGE, an end of -1 is the last one.
        with self._bounded():
            entries = await self._client.lrange(DEAD_KEY, start, start + count - 1)
        return [entry if isinstance(entry, bytes) else entry.encode() for entry in entries]

    async def close(self) -> None:
        """Close the connections; a server that does not answer is not waited for, nor is it an
        error."""
        with suppress(QueueUnavailable), self._bounded():
            await self._client.aclose()

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """One deadline over connecting, sending and waiting."""
        with _named_failures(), self._timeout.running():
            yield


@contextmanager
def _named_failures() -> Iterator[None]:
    """Every failure becomes ours: READONLY, OOM, NOAUTH and their kin are no connection errors, but
    mean the same to us."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        refused = _had_no_effect(error)
        raise QueueUnavailable("Redis queue unavailable", refused=refused) from error


def _too_many() -> QueueUnavailable:
    return QueueUnavailable("Too many calls wait for the queue", refused=True)


def _had_no_effect(error: BaseException) -> bool:
    """Whether the server answered with an error, or was not reached at all."""
    if isinstance(error, ResponseError | AuthenticationError | BusyLoadingError):
        return True
    causes: set[type[BaseException]] = set()
    cause: BaseException | None = error
    while cause is not None:
        causes.add(type(cause))
        cause = cause.__cause__ or cause.__context__
    return not causes.isdisjoint({ConnectionRefusedError, FileNotFoundError, gaierror})


def _dead(raw: bytes, reason: str, session_id: UUID | None, buried_at: datetime) -> DeadMessage:
    dead = DeadMessage(id=uuid4(), reason=reason, buried_at=buried_at, session_id=session_id)
    try:
        return msgspec.structs.replace(dead, raw=raw.decode())
    except UnicodeDecodeError:
        return msgspec.structs.replace(dead, raw_base64=raw)


def _letter(entry: bytes) -> DeadLetter:
    """What an entry says. One that is not ours is a letter too, or nobody could get rid of it: its
    bytes are the message, and when it came nobody knows."""
    made_of_it = uuid5(_NAMESPACE, entry.hex())
    try:
        dead = _decode_dead(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = f"not an entry of the dead list: {error}"[:MAX_REASON_LENGTH]
        return DeadLetter(
            id=made_of_it, raw=entry, reason=reason, session_id=None, buried_at=_LONG_AGO
        )
    return DeadLetter(
        id=dead.id or made_of_it,
        raw=(dead.raw or "").encode() if dead.raw_base64 is None else dead.raw_base64,
        reason=dead.reason,
        session_id=dead.session_id,
        buried_at=dead.buried_at,
    )
