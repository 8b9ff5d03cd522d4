"""HTTP/1.1 connections, byte by byte: what is answered, what is refused, and when one is closed."""

import asyncio
import json
import re
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from typing import Any

import pytest
from litestar.types import ASGIApp, Receive, Scope, Send
from uvicorn.server import ServerState

from entrypoints.http import connections
from entrypoints.http.connections import (
    MAX_PIPELINED,
    BoundedHttpProtocol,
    ConnectionConfig,
    ConnectionLimits,
)

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 10.0
LARGE_BYTES = 30_000_000
HOST = b"Host: a\r\n"
GET = b"GET / HTTP/1.1\r\n" + HOST + b"\r\n"


@dataclass(slots=True)
class Application:
    """Answers with the length of the body, except for the paths that say otherwise."""

    scopes: list[Any] = field(default_factory=list)
    released: asyncio.Event = field(default_factory=asyncio.Event)
    disconnected: list[str] = field(default_factory=list)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.scopes.append(scope)
        path = scope["path"]
        if path in {"/held", "/late"}:
            await self.released.wait()
        size = 0
        more = path not in {"/unread", "/stream"}
        while more:
            message: Any = await receive()
            if message["type"] == "http.disconnect":
                self.disconnected.append(path)
                return
            size += len(message["body"])
            more = message["more_body"]
        if path in {"/stream", "/late"}:
            await send({"type": "http.response.start", "status": 200, "headers": []})
            for piece in (b"abc", b"", b"de") if path == "/stream" else [bytes(LARGE_BYTES)] * 2:
                await send({"type": "http.response.body", "body": piece, "more_body": True})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if path == "/empty":
            await send({"type": "http.response.start", "status": 204, "headers": []})
            await send({"type": "http.response.body", "body": b"", "more_body": False})
            return
        if path == "/split":
            headers = [(b"location", b"/a\r\nset-cookie: b")]
            await send({"type": "http.response.start", "status": 200, "headers": headers})
        if path in {"/short", "/long"}:
            length = (b"content-length", b"3")
            await send({"type": "http.response.start", "status": 200, "headers": [length]})
            text = b"ab" if path == "/short" else b"abcd"
            await send({"type": "http.response.body", "body": text, "more_body": False})
        body = bytes(LARGE_BYTES) if path == "/large" else b"%d" % size
        length = (b"content-length", b"%d" % len(body))
        await send({"type": "http.response.start", "status": 200, "headers": [length]})
        await send({"type": "http.response.body", "body": body, "more_body": False})


@dataclass(slots=True)
class Listening:
    """The application behind our connections."""

    app: Application
    config: ConnectionConfig
    port: int

    @asynccontextmanager
    async def connection(self, *, limit: int = 2**20) -> AsyncIterator["Client"]:
        """``limit`` bounds what the client receives before it is read."""
        reader, writer = await asyncio.open_connection("127.0.0.1", self.port, limit=limit)
        try:
            yield Client(reader, writer)
        finally:
            writer.close()

    async def talk(self, data: bytes) -> bytes:
        """All that comes back for ``data`` until the connection is closed."""
        async with self.connection() as client:
            client.send(data)
            return await client.rest()


@dataclass(slots=True)
class Client:
    reader: asyncio.StreamReader
    writer: asyncio.StreamWriter

    def send(self, data: bytes) -> None:
        self.writer.write(data)

    async def answer(self) -> bytes:
        """The next response."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            head = await self.reader.readuntil(b"\r\n\r\n")
            length = re.search(rb"content-length: (\d+)", head)
            assert length is not None
            return head + await self.reader.readexactly(int(length[1]))

    async def rest(self) -> bytes:
        """What comes until the server closes the connection."""
        async with asyncio.timeout(DEADLINE_SECONDS):
            return await self.reader.read()


Listen = Callable[..., Any]


@pytest.fixture
async def listen() -> AsyncIterator[Listen]:
    """Starts a server with these limits."""
    stop = []

    async def start(**limits: Any) -> Listening:
        app = Application()
        build: Callable[[], ASGIApp] = lambda: app  # noqa: E731
        config = ConnectionConfig(
            build,
            limits=ConnectionLimits(**{"connections": 100, **limits}),
            host="127.0.0.1",
            port=0,
            processes=1,
            stop_seconds=1,
        )
        config.load()
        state = ServerState()
        server = await asyncio.get_running_loop().create_server(
            lambda: BoundedHttpProtocol(config, state, {}), "127.0.0.1", 0
        )
        sweeping = asyncio.create_task(_sweep_often(config))
        stop.append((server, sweeping, app, config))
        return Listening(app, config, server.sockets[0].getsockname()[1])

    yield start
    for server, sweeping, app, config in stop:
        sweeping.cancel()
        app.released.set()
        for connection in tuple(config.open):
            connection.transport.abort()
        server.close()


async def _sweep_often(config: ConnectionConfig) -> None:
    while True:
        await config.sweep()
        await asyncio.sleep(0.01)


def status_of(answer: bytes) -> int:
    return int(answer.split(b" ", 2)[1])


def lines(*given: bytes, body: bytes = b"") -> bytes:
    return b"\r\n".join([*given, b"", b""]) + body


POST = b"POST / HTTP/1.1"
A = b"Host: a"
CHUNKED = b"Transfer-Encoding: chunked"
REFUSED = {
    "no host": (lines(b"GET / HTTP/1.1"), 400),
    "two hosts": (lines(b"GET / HTTP/1.1", A, A), 400),
    "two hosts in HTTP/1.0": (lines(b"GET / HTTP/1.0", A, A), 400),
    "length and chunks": (lines(POST, A, b"Content-Length: 3", CHUNKED, body=b"0\r\n\r\n"), 400),
    "chunks and length": (lines(POST, A, CHUNKED, b"Content-Length: 3", body=b"0\r\n\r\n"), 400),
    "two lengths": (lines(POST, A, b"Content-Length: 3", b"Content-Length: 4", body=b"abcd"), 400),
    "list of lengths": (lines(POST, A, b"Content-Length: 3, 3", body=b"abc"), 400),
    "signed length": (lines(POST, A, b"Content-Length: +3", body=b"abc"), 400),
    "negative length": (lines(POST, A, b"Content-Length: -3"), 400),
    "hexadecimal length": (lines(POST, A, b"Content-Length: 0x3", body=b"abc"), 400),
    "enormous length": (lines(POST, A, b"Content-Length: " + b"9" * 30), 400),
    "unknown coding": (lines(POST, A, b"Transfer-Encoding: chunkedx"), 400),
    "chunked is not last": (lines(POST, A, b"Transfer-Encoding: chunked, gzip"), 400),
    "chunked twice": (lines(POST, A, CHUNKED, b"Transfer-Encoding: identity"), 400),
    "bad chunk size": (lines(POST, A, CHUNKED, body=b"x\r\n"), 400),
    "enormous chunk": (lines(POST, A, CHUNKED, body=b"f" * 20 + b"\r\n"), 400),
    "longer chunk than said": (lines(POST, A, CHUNKED, body=b"1\r\nabc\r\n0\r\n\r\n"), 400),
    "bare LF": (b"GET / HTTP/1.1\nHost: a\n\n", 400),
    "bare LF between headers": (b"GET / HTTP/1.1\r\nHost: a\nB: c\r\n\r\n", 400),
    "bare CR": (b"GET / HTTP/1.1\r\nHost: a\rB: c\r\n\r\n", 400),
    "NUL": (lines(b"GET / HTTP/1.1", A, b"B: \x00"), 400),
    "space before the colon": (lines(POST, A, b"Content-Length : 3", body=b"abc"), 400),
    "space before a name": (lines(b"GET / HTTP/1.1", b" B: c", A), 400),
    "line that continues": (lines(b"GET / HTTP/1.1", A, b"B: c", b" d"), 400),
    "no name": (lines(b"GET / HTTP/1.1", A, b": c"), 400),
    "no colon": (lines(b"GET / HTTP/1.1", A, b"B"), 400),
    "not ASCII name": (lines(b"GET / HTTP/1.1", A, b"\xc3\xa9: c"), 400),
    "unknown version": (lines(b"GET / HTTP/3.0", A), 400),
    "HTTP/0.9": (b"GET /\r\n\r\n", 400),
    "HTTP/2 in the version": (lines(b"GET / HTTP/2.0", A), 400),
    "HTTP/2": (b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", 400),
    "unknown method": (lines(b"GETS / HTTP/1.1", A), 400),
    "lower-case method": (lines(b"get / HTTP/1.1", A), 400),
    "CONNECT": (lines(b"CONNECT a:443 HTTP/1.1", A), 400),
    "no target": (lines(b"GET  HTTP/1.1", A), 400),
    "relative target": (lines(b"GET a HTTP/1.1", A), 400),
    "space in the target": (lines(b"GET /a b HTTP/1.1", A), 400),
    "TLS": (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(64), 400),
    "5,000 headers": (lines(b"GET / HTTP/1.1", A, *[b"B: c"] * 5_000), 431),
    "header of 1 MiB": (lines(b"GET / HTTP/1.1", A, b"B: " + b"c" * 2**20), 431),
    "endless header": (lines(b"GET / HTTP/1.1", A) [:-2] + b"B: " + b"c" * 2**20, 431),
    "name of 1 MiB": (lines(b"GET / HTTP/1.1", A, b"B" * 2**20 + b": c"), 431),
    "target of 1 MiB": (lines(b"GET /" + b"a" * 2**20 + b" HTTP/1.1", A), 431),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "status"), REFUSED.values(), ids=REFUSED)
async def test_refused_requests(listen: Listen, sent: bytes, status: int) -> None:
    """Answered in the envelope, with the request's id, and then the connection is closed. Nothing
    that follows on it is read as another request."""
    server = await listen()

    answer = await server.talk(sent + GET)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert status_of(answer) == status
    assert json.loads(body)["error"]["code"] == "VALIDATION_ERROR"
    assert re.search(rb"\r\nx-request-id: req_[0-9a-f]{24}\r\n", head)
    assert b"\r\nconnection: close" in head
    assert b"\r\naccess-control-allow-origin: *\r\n" in head
    assert b"\r\nvary: Origin\r\n" in head
    assert b"\r\nx-content-type-options: nosniff\r\n" in head
    assert [scope["method"] for scope in server.app.scopes] in ([], ["POST"])


@pytest.mark.parametrize("end", [b"", b"\r\n\r\n"], ids=["endless", "complete"])
async def test_size_of_headers(listen: Listen, end: bytes) -> None:
    """Refused as soon as it is known, whether the headers have an end or not."""
    server = await listen(header_bytes=1_000)

    async with server.connection() as client:
        client.send(b"GET / HTTP/1.1\r\nHost: a\r\nB: " + b"c" * 700)
        await _eventually(lambda: server.config.open != set())
        client.send(b"c" * 700 + end)
        answer = await client.rest()

    assert status_of(answer) == 431


async def test_complete_headers_that_arrive_at_once(listen: Listen) -> None:
    """Are measured as well."""
    server = await listen(header_bytes=1_000)

    answer = await server.talk(lines(b"GET / HTTP/1.1", A, b"B: " + b"c" * 1_500))

    assert status_of(answer) == 431


async def test_body_does_not_count_as_headers(listen: Listen) -> None:
    """Not to those of the next request."""
    server = await listen(header_bytes=1_000)

    async with server.connection() as client:
        client.send(lines(POST, A, b"Content-Length: 5000"))
        await _eventually(lambda: server.app.scopes != [])
        client.send(bytes(5_000))
        first = await client.answer()
        (connection,) = server.config.open
        client.send(GET[:20])
        await _eventually(lambda: connection._in_head)
        client.send(GET[20:])
        second = await client.answer()

    assert [status_of(first), status_of(second)] == [200, 200]


async def test_request_id_of_a_refused_request(listen: Listen) -> None:
    """The caller's own, if it came before the mistake."""
    server = await listen()

    answer = await server.talk(lines(b"GET / HTTP/1.1", b"X-Request-Id: mine", A, A))

    assert b"\r\nx-request-id: mine\r\n" in answer


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        (b"https://shop.example", b"https://shop.example"),
        (b"null", b"null"),
        (b"https://shop.example\xff", b"*"),
    ],
)
async def test_page_may_read_why_its_request_is_refused(
    listen: Listen, origin: bytes, allowed: bytes
) -> None:
    """Its origin is repeated if it came before the mistake, and is one."""
    server = await listen()

    answer = await server.talk(lines(b"GET / HTTP/1.1", b"Origin: " + origin, A, A))

    assert b"\r\naccess-control-allow-origin: " + allowed + b"\r\n" in answer
    assert b"\r\naccess-control-expose-headers: x-request-id, " in answer


ACCEPTED = {
    "HTTP/1.0 without a host": (lines(b"GET / HTTP/1.0"), b"0"),
    "100 headers": (lines(b"GET / HTTP/1.1", A, *[b"B: c"] * 99), b"0"),
    "64 kB of headers": (lines(b"GET / HTTP/1.1", A, b"B: " + b"c" * 65_000), b"0"),
    "absolute target": (lines(b"GET http://a/ HTTP/1.1", A), b"0"),
    "line end before the request": (b"\r\n" + GET, b"0"),
    "length": (lines(POST, A, b"Content-Length: 3", body=b"abc"), b"3"),
    "chunks": (lines(POST, A, CHUNKED, body=b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"), b"5"),
    "upgrade": (
        lines(POST, A, b"Connection: Upgrade", b"Upgrade: h2c", b"Content-Length: 3", body=b"abc"),
        b"3",
    ),
    "web socket": (lines(b"GET / HTTP/1.1", A, b"Connection: Upgrade", b"Upgrade: b"), b"0"),
}  # fmt: skip


@pytest.mark.parametrize(("sent", "body"), ACCEPTED.values(), ids=ACCEPTED)
async def test_accepted_requests(listen: Listen, sent: bytes, body: bytes) -> None:
    """What a client may send; another protocol is declined by answering in this one."""
    server = await listen()

    async with server.connection() as client:
        client.send(sent)
        answer = await client.answer()

    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\n" + body)


async def test_trailers_are_no_headers(listen: Listen) -> None:
    """A header after the body is dropped: it could name another caller."""
    server = await listen()

    async with server.connection() as client:
        client.send(lines(POST, A, CHUNKED, body=b"1\r\na\r\n0\r\nAuthorization: b\r\n\r\n"))
        await client.answer()

    (scope,) = server.app.scopes
    assert [name for name, _ in scope["headers"]] == [b"host", b"transfer-encoding"]


async def test_pipelined_requests_are_answered_in_order(listen: Listen) -> None:
    """One at a time."""
    server = await listen()

    async with server.connection() as client:
        for body in (b"a", b"bcd", b"", b"ef"):
            client.send(lines(POST, A, b"Content-Length: %d" % len(body), body=body))
        answers = [await client.answer() for _ in range(4)]

    assert [answer[-1:] for answer in answers] == [b"1", b"3", b"0", b"2"]


async def test_requests_sent_ahead_are_bounded(listen: Listen) -> None:
    """A client that sends more than may wait gets its first response, and no other."""
    server = await listen()

    async with server.connection() as client:
        client.send(GET.replace(b"/", b"/held", 1) + GET * (MAX_PIPELINED + 1))
        await _eventually(lambda: server.app.scopes != [])
        server.app.released.set()
        answer = await client.rest()

    assert answer.count(b"HTTP/1.1 200 OK") == 1
    assert len(server.app.scopes) == 1


async def test_requests_sent_ahead_wait_in_the_network(listen: Listen) -> None:
    """A client may send any number one after the other: no more is read while some wait here."""
    server = await listen()

    async with server.connection() as client:
        client.send(GET.replace(b"/", b"/held", 1) + GET * 60)
        await _eventually(lambda: server.app.scopes != [])
        client.send(GET * 60)
        server.app.released.set()
        answers = [await client.answer() for _ in range(121)]

    assert {status_of(answer) for answer in answers} == {200}


async def test_mistake_after_a_request_spares_its_response(listen: Listen) -> None:
    """The valid request is answered, and the connection closed."""
    server = await listen()

    answer = await server.talk(GET + b"nonsense\r\n\r\n")

    assert answer.count(b"HTTP/1.1 ") == 1
    assert status_of(answer) == 200


async def test_response_is_sent_in_one_piece(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Head and body together: in two pieces, each response would cost another system call here and
    another turn of the client's event loop."""
    server = await listen()
    pieces: list[bytes] = []
    plain = asyncio.selector_events._SelectorSocketTransport.write  # type: ignore[attr-defined]

    def write(transport: Any, data: bytes) -> None:
        pieces.append(bytes(data))
        plain(transport, data)

    monkeypatch.setattr(
        asyncio.selector_events._SelectorSocketTransport,  # type: ignore[attr-defined]
        "write",
        write,
    )

    async with server.connection() as client:
        client.send(GET)
        answer = await client.answer()

    assert pieces == [GET, answer]


@pytest.mark.parametrize("close", [b"", b"Connection: close"])
async def test_response_of_unknown_length(listen: Listen, close: bytes) -> None:
    """In chunks, each sent at once."""
    server = await listen()

    async with server.connection() as client:
        client.send(lines(*filter(None, (b"GET /stream HTTP/1.1", A, close))))
        answer = await asyncio.wait_for(client.reader.readuntil(b"0\r\n\r\n"), DEADLINE_SECONDS)

    head, _, body = answer.partition(b"\r\n\r\n")
    assert b"\r\ntransfer-encoding: chunked" in head
    assert (b"\r\nconnection: close" in head) is (close != b"")
    assert body == b"3\r\nabc\r\n2\r\nde\r\n0\r\n\r\n"


async def test_response_without_a_body(listen: Listen) -> None:
    """It ends with its head: a browser would take anything else for the next response, and would
    give up."""
    server = await listen()

    async with server.connection() as client:
        client.send(GET.replace(b"/", b"/empty", 1) + GET)
        head = await asyncio.wait_for(client.reader.readuntil(b"\r\n\r\n"), DEADLINE_SECONDS)
        second = await client.answer()

    assert head == b"HTTP/1.1 204 No Content\r\n\r\n"
    assert status_of(second) == 200


@pytest.mark.parametrize("path", [b"/short", b"/long"])
async def test_response_of_another_length_than_announced(listen: Listen, path: bytes) -> None:
    """It is not sent: the client would take the next response for its rest, or the reverse."""
    server = await listen()

    assert await server.talk(GET.replace(b"/", path, 1)) == b""


async def test_header_with_a_line_end(listen: Listen) -> None:
    """It is not sent: it would be another header, or another response."""
    server = await listen()

    answer = await server.talk(GET.replace(b"/", b"/split", 1))

    assert answer == b""


async def test_response_to_head_is_sent(listen: Listen) -> None:
    """Although no body follows."""
    server = await listen()

    async with server.connection() as client:
        client.send(lines(b"HEAD / HTTP/1.1", A, b"Connection: close"))
        answer = await client.rest()

    assert status_of(answer) == 200
    assert answer.endswith(b"\r\n\r\n")


async def test_silent_and_slow_clients(listen: Listen) -> None:
    """Headers have a deadline, from the connection or from their first byte, however they drip."""
    server = await listen(header_seconds=0.05)

    async with server.connection() as silent, server.connection() as slow:
        slow.send(b"GET / HTTP/1.1\r\nHost: a\r\n")
        dripping = asyncio.create_task(_drip(slow))
        unanswered = await silent.rest()
        answer = await slow.rest()
        dripping.cancel()

    assert unanswered == b""
    assert status_of(answer) == 408
    assert b"headers: did not arrive in time" in answer


async def _drip(client: Client) -> None:
    while True:
        client.send(b"A: b\r\n")
        await asyncio.sleep(0.01)


async def test_slow_client_between_two_requests(listen: Listen) -> None:
    """From the first byte of the second request on, the headers' deadline counts, and not the
    longer one of an idle connection."""
    server = await listen(header_seconds=0.05)

    async with server.connection() as client:
        client.send(GET)
        await client.answer()
        client.send(b"GET / HTTP/1.1\r\nHost: a")
        answer = await client.rest()

    assert status_of(answer) == 408


async def test_idle_connections(listen: Listen) -> None:
    """Closed after their time, also if line ends arrive that begin no request."""
    server = await listen(idle_seconds=0.05)

    async with server.connection() as idle:
        idle.send(GET)
        first = await idle.answer()
        idle.send(b"\r\n")
        rest = await idle.rest()

    assert status_of(first) == 200
    assert rest == b""


async def test_busy_connection_has_no_deadline(listen: Listen) -> None:
    """While the application works, neither the headers' nor the idle time counts."""
    server = await listen(header_seconds=0.03, idle_seconds=0.03)

    async with server.connection() as client:
        client.send(GET.replace(b"/", b"/held", 1))
        await _eventually(lambda: server.app.scopes != [])
        await _sweeps_after(server, seconds=0.1)
        server.app.released.set()
        answer = await client.answer()

    assert status_of(answer) == 200


async def test_early_response_is_not_lost(listen: Listen) -> None:
    """The application answers without reading a large body: the client, which is still sending,
    gets the response instead of a reset, and then the connection is closed."""
    server = await listen()

    async with server.connection() as client:
        client.send(lines(b"POST /unread HTTP/1.1", A, b"Content-Length: 9000000"))
        client.send(bytes(5_000_000))
        answer = await client.rest()

    assert status_of(answer) == 200
    assert b"\r\nconnection: close\r\n" in answer


async def test_endless_body_after_the_response(
    listen: Listen, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A client that goes on sending is cut off."""
    monkeypatch.setattr(connections, "CLOSE_SECONDS", 0.05)
    server = await listen()

    async with server.connection() as client:
        client.send(lines(b"POST /unread HTTP/1.1", A, CHUNKED))
        dripping = asyncio.create_task(_drip(client))
        await client.rest()
        await _eventually(lambda: not server.config.open)
        dripping.cancel()

    assert len(server.app.scopes) == 1


async def test_client_that_reads_nothing(listen: Listen) -> None:
    """It is cut off, and its response's memory is freed."""
    server = await listen(write_seconds=0.05)

    async with server.connection(limit=1_000) as client:
        client.send(GET.replace(b"/", b"/large", 1))
        await _eventually(lambda: server.app.scopes != [])
        await _eventually(lambda: not server.config.open)


async def test_client_that_stops_reading_later(listen: Listen) -> None:
    """A sweep has found before that its connection has no deadline, as that of an open stream."""
    server = await listen(write_seconds=0.05)

    async with server.connection(limit=1_000) as client:
        client.send(GET.replace(b"/", b"/late", 1))
        await _eventually(lambda: server.app.scopes != [])
        await _eventually(lambda: not server.config.timed)
        server.app.released.set()
        await _eventually(lambda: not server.config.open)


async def test_lost_connection_with_requests_ahead(listen: Listen) -> None:
    """The application learns it for the request that runs, not only for the last one that waits."""
    server = await listen()

    async with server.connection() as client:
        client.send(GET.replace(b"/", b"/held", 1) + GET)
        await _eventually(lambda: server.app.scopes != [])
        (connection,) = server.config.open
        connection.transport.abort()
        await _eventually(lambda: not server.config.open)
        server.app.released.set()

        await _eventually(lambda: server.app.disconnected == ["/held"])


async def test_disconnected_client(listen: Listen) -> None:
    """The application learns it while it waits for the rest of a body."""
    server = await listen()

    async with server.connection() as client:
        client.send(lines(b"POST /slow HTTP/1.1", A, b"Content-Length: 9", body=b"abc"))
        await _eventually(lambda: server.app.scopes != [])

    await _eventually(lambda: server.app.disconnected == ["/slow"])


async def test_too_many_connections(listen: Listen) -> None:
    """Above the limit, a connection is answered 503 with its first request; once others are
    closed, requests are served again."""
    server = await listen(connections=2)

    async with server.connection() as first, server.connection() as second:
        first.send(GET)
        second.send(GET)
        answers = [await first.answer(), await second.answer()]
        surplus = await server.talk(lines(POST, A, b"Content-Length: 3", body=b"abc"))
    await _eventually(lambda: not server.config.open)
    later = await server.talk(GET.replace(b"\r\n\r\n", b"\r\nConnection: close\r\n\r\n"))

    assert [status_of(answer) for answer in answers] == [200, 200]
    assert status_of(surplus) == 503
    assert b"\r\nretry-after: " in surplus
    assert json.loads(surplus.partition(b"\r\n\r\n")[2])["error"]["code"] == "SERVICE_UNAVAILABLE"
    assert status_of(later) == 200


async def test_connections_far_above_the_limit(listen: Listen) -> None:
    """They cannot use up the descriptors with which others are answered."""
    server = await listen(connections=1, surplus=1)

    async with server.connection() as first, server.connection():
        first.send(GET)
        await first.answer()
        refused = await server.talk(b"")

    assert refused == b""


async def _eventually(is_true: Callable[[], bool]) -> None:
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not is_true():  # noqa: ASYNC110 - what it waits for has no event
            await asyncio.sleep(0.005)


async def _sweeps_after(server: Listening, *, seconds: float) -> None:
    """Let this time pass for the connections' deadlines."""
    loop = asyncio.get_running_loop()
    until = loop.time() + seconds
    await _eventually(lambda: loop.time() >= until)
    await server.config.sweep()
