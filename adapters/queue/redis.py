"""The task queue in Redis (or Valkey, or another server that speaks its protocol).

| key                        | type | contents                                                  |
|----------------------------|------|-----------------------------------------------------------|
| ``wearon:tasks:generation``| list | tasks as JSON (payload.py): LPUSH to add, BRPOP to take   |
| ``wearon:tasks:dead``      | list | dead letters, newest first, as ``DeadMessage``; the       |
|                            |      | newest ``MAX_DEAD`` are kept. An entry in another format  |
|                            |      | is shown as a letter too, its id derived from its bytes   |
| ``wearon:tasks:dead:once`` | zset | sessions whose task was buried once, by the time of that; |
|                            |      | the newest ``MAX_DEAD`` are kept                          |
| ``wearon:tasks:probe``     | list | never exists: an LPUSHX to it is rejected like any other  |
|                            |      | write, and else does nothing                              |
"""

import asyncio
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from itertools import chain
from socket import gaierror
from ssl import SSLCertVerificationError
from uuid import UUID, uuid4, uuid5

import msgspec
from redis.asyncio import Redis
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import AuthenticationError, BusyLoadingError, RedisError, ResponseError
from redis.maint_notifications import MaintNotificationsConfig

from adapters.causes import detail_of
from adapters.coalescing import DEFAULT_LIMITS, BatchLimits, Coalescer
from adapters.queue.payload import (
    MAX_DEAD,
    MAX_LETTER_BYTES,
    MAX_REASON_LENGTH,
    decode,
    encode,
)
from adapters.queue.pops import SharedPops
from adapters.queue.urls import redis_py_url
from domain.causes import Cause, CauseKind
from domain.deadlines import SharedTimeout
from domain.errors import QueueUnavailable
from domain.ports import DeadLetterPort, QueueProbePort, TaskQueuePort
from domain.tasks import DeadLetter, GenerationTask, UnreadableTask

TASKS_KEY = "wearon:tasks:generation"
DEAD_KEY = "wearon:tasks:dead"
ONCE_KEY = "wearon:tasks:dead:once"
PROBE_KEY = "wearon:tasks:probe"

REFUSALS = frozenset(
    {
        "READONLY",  # a replica
        "OOM",  # maxmemory
        "NOREPLICAS",  # too few replicas for a write
        "MISCONF",  # a write while snapshots fail
        "NOAUTH",
        "WRONGPASS",
        "NOPERM",
        "DENIED",  # protected mode
        "LOADING",
        "BUSY",  # a script runs
        "MASTERDOWN",
        "CLUSTERDOWN",
        "MOVED",
        "ASK",
        "TRYAGAIN",
        "CROSSSLOT",
        "WRONGTYPE",  # LPUSH looks at the type of the key first
    }
)
"""The codes of errors that Redis returns before it acts. Any other error, a plain ERR above all,
may be a proxy's that lost track of a command after passing it on (twemproxy, Envoy)."""
_NEVER_SENT = (ConnectionRefusedError, FileNotFoundError, gaierror, SSLCertVerificationError)


class DeadMessage(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True):
    """An entry of the dead-letter list. ``raw`` is the message's text; for a message that is not
    UTF-8, ``raw_base64`` has its bytes instead. ``size`` is the number of bytes of a message of
    which only the beginning was kept. The first version wrote no ``id``."""

    id: UUID | None = None
    reason: str
    buried_at: datetime
    session_id: UUID | None = None
    raw: str | None = None
    raw_base64: bytes | None = None
    size: int | None = None


_DEAD_BATCH = 500
_NAMESPACE = UUID("8f2c6a1e-3b0d-4c58-9a77-5d1e0c4b9f36")
_LONG_AGO = datetime.fromtimestamp(0, UTC)
_encode_dead = msgspec.json.Encoder().encode
_decode_dead = msgspec.json.Decoder(DeadMessage).decode

# KEYS: dead letters, tasks. ARGV: the entry, its raw text. Atomic: a letter is requeued once.
_REQUEUE = """
if redis.call('LREM', KEYS[1], 1, ARGV[1]) == 0 then return 0 end
redis.call('LPUSH', KEYS[2], ARGV[2])
return 1"""
# A script because LREM's Python signature requires str, and an entry need not be text.
_DISCARD = "return redis.call('LREM', KEYS[1], 1, ARGV[1])"


def redis_client(url: str) -> Redis:
    """A client that connects on first use. Raises ``InvalidUrl``.

    It never retries a command: retrying an LPUSH whose reply was lost leaves copies. It has no
    timeouts either: its users set one deadline over everything that a command takes, and the
    client's own timeouts would cost each command a task and two timers more.
    """
    return Redis.from_url(
        redis_py_url(url),
        socket_timeout=None,
        socket_connect_timeout=None,
        retry=Retry(NoBackoff(), 0),
        protocol=2,
        driver_info=None,
        maint_notifications_config=MaintNotificationsConfig(enabled=False),
    )


class RedisTaskQueue(TaskQueuePort, QueueProbePort, DeadLetterPort):
    """``timeout_seconds`` bounds a command, connecting included; a ``pop`` adds its own wait.

    Concurrent pushes are batched: those that arrive while an LPUSH is in flight go into the next
    one. ``batches`` allows one LPUSH in flight, which keeps their order."""

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
        self._push: Coalescer[Sequence[bytes], None] = batches.coalescer(
            self._run_push, too_many=_too_many
        )
        self._pops = SharedPops(
            take=self._take, await_next=self._await_next, put_back=self._put_back
        )

    async def push(self, task: GenerationTask) -> None:
        await self._push((encode(task),))

    async def push_many(self, tasks: Sequence[GenerationTask]) -> None:
        if tasks:
            await self._push([encode(task) for task in tasks])

    async def _run_push(self, calls: Sequence[Sequence[bytes]]) -> Sequence[None]:
        with self._bounded():
            await self._client.lpush(TASKS_KEY, *chain.from_iterable(calls))
        return [None] * len(calls)

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        if tasks:
            await self._put_back([encode(task) for task in tasks])

    async def _put_back(self, messages: Sequence[bytes]) -> None:
        with self._bounded():
            await self._client.rpush(TASKS_KEY, *messages)

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        if timeout_seconds > 0:
            raw = await self._pops.pop(timeout_seconds)
        else:  # BRPOP would take zero seconds as no timeout
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

    async def check_writes(self) -> None:
        with self._bounded():
            await self._client.llen(TASKS_KEY)  # Rejected, as a push is, if the key is no list.
            await self._client.lpushx(PROBE_KEY, "")

    async def bury(
        self, message: GenerationTask | UnreadableTask, *, reason: str, once: bool = False
    ) -> None:
        if once and await self._was_buried_once(message.session_id):
            return
        raw = message.raw if isinstance(message, UnreadableTask) else encode(message)
        now = self._clock()
        dead = _dead(raw, reason, message.session_id, now)
        with self._bounded():
            async with self._client.pipeline(transaction=True) as transaction:
                transaction.lpush(DEAD_KEY, _encode_dead(dead))
                transaction.ltrim(DEAD_KEY, 0, self._max_dead - 1)
                if once:
                    transaction.zadd(ONCE_KEY, {str(message.session_id): now.timestamp()})
                    transaction.zremrangebyrank(ONCE_KEY, 0, -1 - self._max_dead)
                await transaction.execute()

    async def _was_buried_once(self, session_id: UUID | None) -> bool:
        with self._bounded():
            return await self._client.zscore(ONCE_KEY, str(session_id)) is not None

    async def dead(self, *, limit: int) -> list[DeadLetter]:
        return [_letter(entry) for entry in await self._dead_entries(0, limit)]

    async def get(self, letter_id: UUID) -> DeadLetter | None:
        entry = await self._find_dead(letter_id)
        return None if entry is None else _letter(entry)

    async def count(self) -> int:
        with self._bounded():
            return await self._client.llen(DEAD_KEY)

    async def requeue(self, letter_id: UUID) -> bool:
        entry = await self._find_dead(letter_id)
        if entry is None or (letter := _letter(entry)).is_truncated:
            return False
        with self._bounded():
            # Before the move: a worker may take the task at once, and has to bury it again.
            await self._client.zrem(ONCE_KEY, str(letter.session_id))
            moved = await self._client.eval(_REQUEUE, 2, DEAD_KEY, TASKS_KEY, entry, letter.raw)
        return bool(moved)

    async def discard(self, letter_id: UUID) -> bool:
        entry = await self._find_dead(letter_id)
        if entry is None:
            return False
        with self._bounded():
            return bool(await self._client.eval(_DISCARD, 1, DEAD_KEY, entry))

    async def _find_dead(self, letter_id: UUID) -> bytes | None:
        """The entry's bytes in the list."""
        for start in range(0, self._max_dead, _DEAD_BATCH):
            for entry in await self._dead_entries(start, _DEAD_BATCH):
                if _letter(entry).id == letter_id:
                    return entry
        return None

    async def _dead_entries(self, start: int, count: int) -> list[bytes]:
        if count < 1:
            return []  # LRANGE would take an end of -1 as the last entry.
        with self._bounded():
            entries = await self._client.lrange(DEAD_KEY, start, start + count - 1)
        return [entry if isinstance(entry, bytes) else entry.encode() for entry in entries]

    async def close(self) -> None:
        """Close the connections. A server that does not answer is no error, and the wait for it is
        bounded."""
        with suppress(QueueUnavailable), self._bounded():
            await self._client.aclose()

    @contextmanager
    def _bounded(self) -> Iterator[None]:
        """One deadline over connecting, sending and waiting for the reply."""
        with _named_failures(), self._timeout.running():
            yield


@contextmanager
def _named_failures() -> Iterator[None]:
    """Translates every failure to ``QueueUnavailable``. READONLY, OOM, NOAUTH and similar replies
    are no connection errors, but have the same consequence."""
    try:
        yield
    except (RedisError, OSError, TimeoutError) as error:
        refused, cause = _had_no_effect(error), cause_of(error)
        raise QueueUnavailable("Redis queue unavailable", refused=refused, cause=cause) from error


def cause_of(error: BaseException) -> Cause:
    """The server's own words, or the system's about the connection; neither has a password."""
    telling = (ResponseError, AuthenticationError, BusyLoadingError, OSError)
    below = next((cause for cause in _chain(error) if isinstance(cause, telling)), error)
    if isinstance(below, ResponseError) or (isinstance(below, RedisError) and below.status_code):
        words = f"{below.status_code or ''} {below}"  # The client takes the code of some off.
        return Cause(CauseKind.QUEUE, words)
    if isinstance(below, RedisError):
        return Cause(CauseKind.QUEUE, f"{type(below).__name__} {below}")
    return Cause(CauseKind.QUEUE, detail_of(below))


def _too_many() -> QueueUnavailable:
    return QueueUnavailable("Too many calls are waiting for the queue", refused=True)


def _had_no_effect(error: BaseException) -> bool:
    """Whether Redis rejected the command before it acted, or was never reached."""
    if isinstance(error, RedisError) and (
        isinstance(error, AuthenticationError) or _code(error) in REFUSALS
    ):
        return True
    return any(isinstance(cause, _NEVER_SENT) for cause in _chain(error))


def _code(error: RedisError) -> str:
    """The first word of the reply. The client cuts it off from the messages of errors it knows."""
    return error.status_code or str(error).partition(" ")[0]


def _chain(error: BaseException | None) -> Iterator[BaseException]:
    """The error and those that led to it."""
    while error is not None:
        yield error
        error = error.__cause__ or error.__context__


def _dead(raw: bytes, reason: str, session_id: UUID | None, buried_at: datetime) -> DeadMessage:
    kept = raw[:MAX_LETTER_BYTES]
    dead = DeadMessage(
        id=uuid4(),
        reason=reason,
        buried_at=buried_at,
        session_id=session_id,
        size=len(raw) if len(kept) < len(raw) else None,
    )
    try:
        return msgspec.structs.replace(dead, raw=kept.decode())
    except UnicodeDecodeError:
        return msgspec.structs.replace(dead, raw_base64=kept)


def _letter(entry: bytes) -> DeadLetter:
    """The letter of an entry. An entry in another format becomes a letter too, so that operators
    can discard it: its bytes are the message, and its time is unknown."""
    derived_id = uuid5(_NAMESPACE, entry.hex())
    try:
        dead = _decode_dead(entry)
    except (msgspec.MsgspecError, UnicodeDecodeError, RecursionError) as error:
        reason = f"not a dead-letter entry: {error}"[:MAX_REASON_LENGTH]
        return DeadLetter(
            id=derived_id,
            raw=entry,
            reason=reason,
            session_id=None,
            buried_at=_LONG_AGO,
            size=len(entry),
        )
    raw = (dead.raw or "").encode() if dead.raw_base64 is None else dead.raw_base64
    return DeadLetter(
        id=dead.id or derived_id,
        raw=raw,
        reason=dead.reason,
        session_id=dead.session_id,
        buried_at=dead.buried_at,
        size=len(raw) if dead.size is None else dead.size,
    )
