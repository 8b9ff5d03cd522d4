"""RedisTaskQueue never retries a command, never waits beyond its deadline, and raises
``QueueUnavailable`` for every failure of Redis."""

import asyncio
import re
import socket
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from ssl import SSLContext
from uuid import UUID, uuid4

import pytest
from redis.asyncio import SSLConnection

from adapters.embedded.valkey import SOCKET_NAME, EmbeddedValkey
from adapters.queue.redis import DEAD_KEY, TASKS_KEY, RedisTaskQueue, redis_client
from domain.errors import QueueUnavailable
from domain.tasks import UnreadableTask
from tests.support import servers
from tests.support.clock import START
from tests.support.examples import a_task
from tests.support.proxy import HOST, Proxy
from tests.support.tls import self_signed

pytestmark = pytest.mark.anyio

BOUND_SECONDS = 1.0
POP_SECONDS = 0.1
SLACK_SECONDS = 1.0
"""What a busy machine may add to a deadline."""
DEADLINE_SECONDS = 10.0

COMMAND = re.compile(rb"\*\d+\r\n\$")
"""How each command begins: several may come at once."""

Method = Callable[[RedisTaskQueue], Awaitable[object]]
METHODS: dict[str, Method] = {
    "push": lambda queue: queue.push(a_task()),
    "push_next": lambda queue: queue.push_next([a_task()]),
    "pop": lambda queue: queue.pop(timeout_seconds=POP_SECONDS),
    "pop at once": lambda queue: queue.pop(timeout_seconds=0),
    "oldest": lambda queue: queue.oldest(),
    "depth": lambda queue: queue.depth(),
    "check_writes": lambda queue: queue.check_writes(),
    "bury": lambda queue: queue.bury(a_task(), reason=""),
    "dead": lambda queue: queue.dead(limit=10),
    "get": lambda queue: queue.get(uuid4()),
    "count": lambda queue: queue.count(),
    "requeue": lambda queue: queue.requeue(uuid4()),
    "discard": lambda queue: queue.discard(uuid4()),
}


def a_queue(url: str, *, bound_seconds: float = BOUND_SECONDS) -> RedisTaskQueue:
    return RedisTaskQueue(
        client=redis_client(url),
        timeout_seconds=bound_seconds,
        clock=lambda: START,
    )


@asynccontextmanager
async def connected(url: str) -> AsyncIterator[RedisTaskQueue]:
    queue = a_queue(url)
    try:
        yield queue
    finally:
        await queue.close()


@asynccontextmanager
async def replying(
    reply: bytes, *, tls: SSLContext | None = None, after_seconds: float = 0
) -> AsyncIterator[int]:
    """The port of a server that sends ``reply`` to every request."""
    handlers: set[asyncio.Task[None] | None] = set()

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        handlers.add(asyncio.current_task())
        try:
            while data := await reader.read(65_536):
                await asyncio.sleep(after_seconds)
                writer.write(reply * max(1, len(COMMAND.findall(data))))
        finally:
            writer.close()

    async with await asyncio.start_server(serve, HOST, 0, ssl=tls) as server:
        yield server.sockets[0].getsockname()[1]
        for handler in filter(None, handlers):
            handler.cancel()
        await asyncio.gather(*filter(None, handlers), return_exceptions=True)


@contextmanager
def takes(at_most_seconds: float) -> Iterator[None]:
    began = time.monotonic()
    yield
    assert time.monotonic() - began < at_most_seconds + SLACK_SECONDS


@contextmanager
def black_hole() -> Iterator[str]:
    """The URL of a server that accepts connections and never answers."""
    with socket.create_server((HOST, 0)) as listening:
        yield f"redis://{HOST}:{listening.getsockname()[1]}"


@pytest.fixture(scope="module")
def started_valkey() -> Iterator[EmbeddedValkey]:
    with servers.valkey() as server:
        yield server


@pytest.fixture
async def own_valkey(started_valkey: EmbeddedValkey) -> EmbeddedValkey:
    """An empty server that a test may kill; the test has to start it again."""
    client = redis_client(started_valkey.url)
    await client.flushall()
    await client.aclose()
    return started_valkey


@pytest.fixture
async def proxy(own_valkey: EmbeddedValkey) -> AsyncIterator[Proxy]:
    """A proxy in front of it."""
    async with Proxy(own_valkey.sockets / SOCKET_NAME).running() as proxy:
        yield proxy


def through(proxy: Proxy) -> str:
    return f"redis://{HOST}:{proxy.port}"


async def answers(queue: RedisTaskQueue) -> int:
    """The depth, once Redis answers again."""
    async with asyncio.timeout(DEADLINE_SECONDS):
        while True:
            try:
                return await queue.depth()
            except QueueUnavailable:
                await asyncio.sleep(0.01)


@pytest.mark.parametrize(
    ("url", "tls"),
    [
        ("rediss://queue.example", True),
        ("rediss://user:secret@queue.example:6380/1", True),
        ("redis://eu1-cat-1.upstash.io:6379", True),
        ("redis://:secret@eu1-cat-1.UPSTASH.IO", True),
        ("redis://upstash.io", True),
        ("redis://queue.example", False),
        ("redis://evilupstash.io", False),
        ("redis://upstash.io.example", False),
        ("redis://upstash.io@queue.example", False),
        ("redis://queue.example/upstash.io", False),
        ("unix:///run/upstash.io/redis.sock", False),
    ],
)
def test_tls_is_used(url: str, tls: bool) -> None:
    """For ``rediss://``, and for all hosts of upstash.io, which require it."""
    pool = redis_client(url).connection_pool

    assert issubclass(pool.connection_class, SSLConnection) is tls


def test_tls_for_upstash_keeps_the_rest_of_the_url() -> None:
    """User, password, port and database."""
    client = redis_client("redis://me:secret@x.upstash.io:6380/3")

    options = client.connection_pool.connection_kwargs
    named = {name: options[name] for name in ("host", "port", "username", "password", "db")}
    assert named == {
        "host": "x.upstash.io",
        "port": 6380,
        "username": "me",
        "password": "secret",
        "db": 3,
    }


async def test_tls_checks_the_certificate(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It has to be trusted by this machine, for this host."""
    tls, _ = self_signed("localhost", tmp_path)
    async with replying(b":7\r\n", tls=tls) as port:
        async with connected(f"rediss://localhost:{port}") as queue:
            with pytest.raises(QueueUnavailable) as failure:
                await queue.depth()
        assert failure.value.refused

        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "server.pem"))
        async with connected(f"rediss://localhost:{port}") as queue:
            assert await queue.depth() == 7
        async with connected(f"rediss://{HOST}:{port}") as queue:
            with pytest.raises(QueueUnavailable):
                await queue.depth()


@pytest.mark.parametrize("method", ["push", "push_next"])
async def test_push_with_a_lost_reply_is_not_retried(proxy: Proxy, method: str) -> None:
    """One copy in the list and one error: the caller handles the unknown outcome."""
    async with connected(through(proxy)) as queue:
        assert await queue.depth() == 0
        proxy.replies.clear()

        with pytest.raises(QueueUnavailable):
            await METHODS[method](queue)

        proxy.replies.set()
        assert await answers(queue) == 1


@pytest.mark.parametrize("method", ["push", "push_next"])
async def test_push_with_a_lost_connection_is_not_retried(
    own_valkey: EmbeddedValkey, proxy: Proxy, method: str
) -> None:
    """Even if its deadline leaves time for it."""
    queue = a_queue(through(proxy), bound_seconds=5)
    async with connected(own_valkey.url) as other:
        await queue.depth()
        proxy.replies.clear()
        push = asyncio.ensure_future(METHODS[method](queue))
        async with asyncio.timeout(DEADLINE_SECONDS):
            while await other.depth() == 0:
                pass

        await proxy.cut()
        proxy.replies.set()
        with pytest.raises(QueueUnavailable):
            await push

        assert await other.depth() == 1
    await queue.close()


async def test_late_reply_is_not_taken_for_the_next_one(proxy: Proxy) -> None:
    """A connection with an outstanding reply is not used again."""
    async with connected(through(proxy)) as queue:
        for _ in range(3):
            await queue.push(a_task())
        proxy.replies.clear()
        with pytest.raises(QueueUnavailable):
            await queue.depth()
        proxy.replies.set()

        oldest = await queue.oldest()

        assert not isinstance(oldest, UnreadableTask)
        assert oldest is not None


async def outcomes(queue: RedisTaskQueue) -> dict[str, object]:
    """The result of every method, or the type of its error, all called concurrently."""
    results = await asyncio.gather(
        *(method(queue) for method in METHODS.values()), return_exceptions=True
    )
    return {
        name: type(result) if isinstance(result, BaseException) else result
        for name, result in zip(METHODS, results, strict=True)
    }


UNAVAILABLE = dict.fromkeys(METHODS, QueueUnavailable)


async def test_deadline_for_a_silent_server() -> None:
    """Connecting included; only a pop takes longer, by its own wait."""
    with black_hole() as url:
        async with connected(url) as queue:
            with takes(BOUND_SECONDS + POP_SECONDS):
                assert await outcomes(queue) == UNAVAILABLE


async def test_deadline_for_a_slow_server() -> None:
    """One deadline over the whole call, here with two commands before its own."""
    async with (
        replying(b"+OK\r\n", after_seconds=0.9 * BOUND_SECONDS) as port,
        connected(f"redis://:secret@{HOST}:{port}/3") as queue,
    ):
        with takes(BOUND_SECONDS), pytest.raises(QueueUnavailable):
            await queue.depth()


async def test_deadline_for_a_server_that_falls_silent(proxy: Proxy) -> None:
    """The same client continues once the server answers again."""
    async with connected(through(proxy)) as queue:
        await outcomes(queue)
        proxy.requests.clear()

        with takes(BOUND_SECONDS + POP_SECONDS):
            assert await outcomes(queue) == UNAVAILABLE

        proxy.requests.set()
        await answers(queue)


ERRORS = [
    "READONLY You can't write against a read only replica.",
    "OOM command not allowed when used memory > 'maxmemory'.",
    "NOAUTH Authentication required.",
    "NOPERM this user has no permissions to run the 'lpush' command",
    "WRONGPASS invalid username-password pair or user is disabled.",
    "LOADING Redis is loading the dataset in memory",
    "MISCONF Redis is configured to save RDB snapshots, but it's currently unable to persist",
    "NOREPLICAS Not enough good replicas to write.",
    "MASTERDOWN Link with MASTER is down and replica-serve-stale-data is set to 'no'.",
    "CLUSTERDOWN The cluster is down",
    "MOVED 3999 127.0.0.1:6381",
    "TRYAGAIN Multiple keys request during rehashing of slot",
    "BUSY Redis is busy running a script.",
    "WRONGTYPE Operation against a key holding the wrong kind of value",
    "ERR max number of clients reached",
    "ERR max requests limit exceeded. Limit: 500000, Usage: 500000.",
]


@pytest.mark.parametrize("error", ERRORS, ids=lambda error: error.split()[0])
async def test_every_redis_error_raises_queue_unavailable(error: str) -> None:
    """The caller can only try again later, whatever the reason."""
    async with (
        replying(f"-{error}\r\n".encode()) as port,
        connected(f"redis://{HOST}:{port}") as queue,
    ):
        assert await outcomes(queue) == UNAVAILABLE


FROM_A_PROXY = [
    "ERR Connection timed out",
    "ERR unknown error",
    "upstream failure",
    "no upstream host",
    "EXECABORT Transaction discarded because of previous errors.",
    "UNBLOCKED force unblock from blocking operation, instance state changed",
]
"""Errors that may follow a command that took effect, of twemproxy, Envoy and Redis."""


@pytest.mark.parametrize("error", [*ERRORS, *FROM_A_PROXY])
async def test_only_what_redis_says_before_it_acts_is_a_refusal(error: str) -> None:
    """A plain ERR may come from a proxy that lost track of the command after passing it on."""
    async with (
        replying(f"-{error}\r\n".encode()) as port,
        connected(f"redis://{HOST}:{port}") as queue,
    ):
        with pytest.raises(QueueUnavailable) as failure:
            await queue.push(a_task())

    assert failure.value.refused == (error in ERRORS and not error.startswith("ERR"))


async def test_server_that_is_not_reached_is_a_refusal() -> None:
    """Nothing was sent."""
    with socket.create_server((HOST, 0)) as unused:
        port = unused.getsockname()[1]
    for url in (f"redis://{HOST}:{port}", "redis://no-such-host.invalid", "unix:///no/such.sock"):
        async with connected(url) as queue:
            with pytest.raises(QueueUnavailable) as failure:
                await queue.push(a_task())

        assert failure.value.refused


async def test_error_reply_after_the_push_took_effect(proxy: Proxy) -> None:
    """The task is in the list, so it is no refusal, and the next push is answered again."""
    async with connected(through(proxy)) as queue:
        proxy.replace_replies(b"LPUSH", b"-ERR Connection timed out\r\n")
        with pytest.raises(QueueUnavailable) as failure:
            await queue.push(a_task())
        proxy.lose_nothing()
        await queue.push(a_task())

        assert not failure.value.refused
        assert await queue.depth() == 2


@pytest.mark.parametrize(
    "reply", [b"HTTP/1.1 400 Bad Request\r\n\r\n", b"$-9\r\n", b"\x00\xff\r\n"]
)
async def test_another_protocol_raises_queue_unavailable(reply: bytes) -> None:
    """When another service listens on that port."""
    async with replying(reply) as port, connected(f"redis://{HOST}:{port}") as queue:
        assert await outcomes(queue) == UNAVAILABLE


async def test_another_type_under_our_keys_raises_queue_unavailable(
    own_valkey: EmbeddedValkey, proxy: Proxy
) -> None:
    """When another application uses the same key names."""
    client = redis_client(own_valkey.url)
    await client.mset({TASKS_KEY: "not a list", DEAD_KEY: "neither"})
    await client.aclose()

    async with connected(through(proxy)) as queue:
        assert await outcomes(queue) == UNAVAILABLE


SOME_ID = UUID("0d4ff3a4-4c5b-4c70-8b3c-6f4b6d3f6a01")
FIRST_VERSION = (
    b'{"reason":"version 2 is newer than 1, ours","buried_at":"2026-01-02T03:04:05Z",'
    b'"session_id":"0d4ff3a4-4c5b-4c70-8b3c-6f4b6d3f6a01","raw":"{\\"version\\":2}"}'
)
FOREIGN = {
    "no JSON": b"hello",
    "bytes": b"\xff\xfe\x00",
    "not UTF-8": b'{"reason":"\xff\xfe"}',
    "empty": b"",
    "another JSON": b'{"task": 1}',
    "an id that is none": FIRST_VERSION.replace(b'{"reason', b'{"id":"1","reason'),
    "200,000 brackets": b'{"a":' + b"[" * 200_000,
}


async def test_dead_letter_of_the_first_version(own_valkey: EmbeddedValkey, proxy: Proxy) -> None:
    """Entries had no id, so it is derived from the bytes and never changes."""
    client = redis_client(own_valkey.url)
    await client.lpush(DEAD_KEY, FIRST_VERSION)
    async with connected(through(proxy)) as queue:
        letters = [await queue.dead(limit=10) for _ in range(2)]

        assert await queue.requeue(letters[0][0].id)

    (letter,) = letters[0]
    assert letters[0] == letters[1]
    assert (letter.raw, letter.session_id) == (b'{"version":2}', SOME_ID)
    assert letter.reason == "version 2 is newer than 1, ours"
    assert letter.buried_at == datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert await client.lrange(TASKS_KEY, 0, -1) == [b'{"version":2}']
    assert await client.llen(DEAD_KEY) == 0
    await client.aclose()


@pytest.mark.parametrize("entry", FOREIGN.values(), ids=FOREIGN)
@pytest.mark.parametrize("requeue", [False, True])
async def test_entry_in_another_format_is_a_dead_letter(
    own_valkey: EmbeddedValkey, proxy: Proxy, entry: bytes, *, requeue: bool
) -> None:
    """It hides no other letters, has a reason, and can be discarded or requeued."""
    client = redis_client(own_valkey.url)
    async with connected(through(proxy)) as queue:
        for raw in (b"1", b"2"):
            await queue.bury(UnreadableTask(raw=raw, reason="", session_id=None), reason="")
            if raw == b"1":
                await client.lpush(DEAD_KEY, entry)
        newest, foreign, oldest = await queue.dead(limit=10)

        done = await (queue.requeue if requeue else queue.discard)(foreign.id)

        assert await queue.dead(limit=10) == [newest, oldest]
    assert done
    assert (newest.raw, foreign.raw, oldest.raw) == (b"2", entry, b"1")
    assert foreign.reason.startswith("not a dead-letter entry: ")
    assert foreign.session_id is None
    assert await client.lrange(TASKS_KEY, 0, -1) == [entry] * requeue
    await client.aclose()


async def test_client_reconnects_after_a_restart(own_valkey: EmbeddedValkey) -> None:
    """``QueueUnavailable`` while the server is down, also before the first connection."""
    async with connected(own_valkey.url) as queue:
        for _ in range(2):
            own_valkey.kill()
            with pytest.raises(QueueUnavailable):
                await queue.depth()
            with pytest.raises(QueueUnavailable):
                await queue.pop(timeout_seconds=0.1)
            own_valkey.start()

            task = a_task()
            assert await answers(queue) == 0
            await queue.push(task)
            assert await queue.pop(timeout_seconds=1) == task


async def test_waiting_pop_fails_when_the_server_dies(own_valkey: EmbeddedValkey) -> None:
    """Before its timeout."""
    async with connected(own_valkey.url) as queue, connected(own_valkey.url) as other:
        pop = asyncio.create_task(queue.pop(timeout_seconds=30))
        client = other._client
        async with asyncio.timeout(DEADLINE_SECONDS):
            while not any("brpop" in line["cmd"] for line in await client.client_list()):
                pass

        own_valkey.kill()
        with takes(0):
            await asyncio.wait([pop])
        own_valkey.start()

        assert isinstance(pop.exception(), QueueUnavailable)


async def test_close_of_an_unused_queue() -> None:
    """No error, also when called twice and without a server."""
    queue = a_queue("redis://127.0.0.1:1")

    await queue.close()
    await queue.close()


async def test_close_is_bounded_without_a_server(own_valkey: EmbeddedValkey, proxy: Proxy) -> None:
    """Whether it was killed or fell silent, without an error."""
    silent, killed = a_queue(through(proxy)), a_queue(own_valkey.url)
    for queue in (silent, killed):
        await queue.depth()
        await queue.pop(timeout_seconds=0.01)
    proxy.requests.clear()
    proxy.replies.clear()
    own_valkey.kill()

    with takes(2 * BOUND_SECONDS):
        await silent.close()
        await killed.close()

    own_valkey.start()


async def test_hanging_close_is_bounded(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the client does, because a process has to end."""
    async with connected(valkey.url) as queue:
        await queue.depth()

        async def hang() -> None:
            await asyncio.Event().wait()

        with monkeypatch.context() as patch, takes(BOUND_SECONDS):
            patch.setattr(queue._client, "aclose", hang)
            async with asyncio.timeout(DEADLINE_SECONDS):
                await queue.close()


async def test_commands_share_one_timer(
    valkey: EmbeddedValkey, monkeypatch: pytest.MonkeyPatch
) -> None:
    """That of the first command. The client's own timeouts would cost two timers and a task for
    each command."""
    async with connected(valkey.url) as queue:
        await queue.depth()
        set_up: list[object] = []
        loop = asyncio.get_running_loop()
        monkeypatch.setattr(loop, "call_at", lambda when, *_, **__: set_up.append(when))

        for _ in range(3):
            await queue.depth()

        assert set_up == []
        monkeypatch.undo()
