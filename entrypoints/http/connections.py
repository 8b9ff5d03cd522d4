"""HTTP/1.1 connections: uvicorn's protocol, plus a bound on everything that a client can send, hold
or leave unsaid, and an answer in our envelope to whatever is not a request.

A connection has one deadline at most, checked by ``sweep`` once a second, so that no request costs
a timer:

- until the headers of a request are complete: ``header_seconds``;
- while the application answers: none. The application bounds the body and its own calls;
- between two requests: ``idle_seconds``;
- while the client takes nothing of a response: ``write_seconds``;
- after the last response: ``CLOSE_SECONDS``.
"""

import asyncio
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from http import HTTPStatus
from typing import Any, Final
from urllib.parse import unquote

import httptools
import structlog
from litestar import Litestar
from litestar.types import ASGIApp
from uvicorn._types import ASGI3Application, ASGISendEvent
from uvicorn.config import Config
from uvicorn.protocols.http.flow_control import FlowControl
from uvicorn.protocols.http.httptools_impl import (
    STATUS_LINE,
    HttpToolsProtocol,
    RequestResponseCycle,
)
from uvicorn.server import ServerState

from entrypoints.http.cors import readable_by
from entrypoints.http.disconnects import DRAIN
from entrypoints.http.refused import Refused, malformed, response_to, too_large, too_many
from entrypoints.http.request_info import RawHeaders, request_id_of

CLOSE_SECONDS = 2.0
"""How long the client may take to receive the last response and to close its side. Closed at once,
the connection would be reset if the client were still sending, and the response lost."""

SURPLUS = 64

MAX_PIPELINED = 100
"""Requests that may wait on one connection for the response to an earlier one."""

UNRESPONSIVE_SECONDS = 30
"""The parent kills a process that does not answer it for so long, and starts another. With little
processor time a process takes many seconds to start: after uvicorn's 5 s, none would ever serve."""

_CLOSE = (b"connection", b"close")
_WITHOUT_BODY = {204, 304}

_NEVER: Final = float("inf")

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class ConnectionLimits:
    """The bounds of one API process. ``header_bytes`` counts the request line too.

    Beyond ``connections``, so many as ``surplus`` are answered 503, and any further ones are closed
    unanswered.
    """

    connections: int
    surplus: int = SURPLUS
    headers: int = 100
    header_bytes: int = 65_536
    header_seconds: float = 10.0
    idle_seconds: float = 75.0
    write_seconds: float = 30.0


class ConnectionConfig(Config):
    """uvicorn's configuration, and our limits, which its protocol takes from here."""

    def __init__(
        self,
        build: Callable[[], ASGIApp],
        *,
        limits: ConnectionLimits,
        host: str,
        port: int,
        processes: int,
        stop_seconds: int,
    ) -> None:
        super().__init__(
            build,
            factory=True,
            host=host,
            port=port,
            workers=processes,
            http=BoundedHttpProtocol,
            loop="uvloop",
            ws="none",
            interface="asgi3",
            lifespan="on",
            log_config=None,
            access_log=False,
            server_header=False,
            proxy_headers=False,
            timeout_graceful_shutdown=stop_seconds,
            timeout_notify=0,
            timeout_worker_healthcheck=UNRESPONSIVE_SECONDS,
            callback_notify=self.sweep,
        )
        self.limits = limits
        self.on_stop: Callable[[], None] = _do_nothing
        """Called when this process begins to stop, perhaps more than once."""
        self.stop_seconds = stop_seconds
        self.open: set[BoundedHttpProtocol] = set()
        self.timed: set[BoundedHttpProtocol] = set()
        """The connections that had a deadline at the last sweep, or got one since. Open streams
        have none, and cost a sweep nothing."""

    def load(self) -> None:
        super().load()
        if isinstance(self.loaded_app, Litestar):
            self.on_stop = self.loaded_app.state[DRAIN]

    async def sweep(self) -> None:
        """Close the connections that are past their deadlines. uvicorn calls this every second."""
        now = asyncio.get_running_loop().time()
        untimed = []
        for connection in tuple(self.timed):
            due_at = min(connection.deadline, connection.stalled_until)
            if due_at == _NEVER or connection not in self.open:
                untimed.append(connection)
            elif due_at <= now:
                connection.close_if_late(now)
        self.timed.difference_update(untimed)


class _Exchange(RequestResponseCycle):
    """One request and its response."""

    _left: int | None = None
    """The bytes of the body that are still to be sent; None if their number is not known."""
    _head = b""
    """The head of the response, while it waits for the body."""

    async def run_asgi(self, app: ASGI3Application) -> None:
        """Run the application. It answers its own errors, so an exception here is a bug, or a stop
        that has waited long enough."""
        try:
            await app(self.scope, self.receive, self.send)
        except asyncio.CancelledError:
            log.warning("request_cut_off", path=self.scope["path"])
        except Exception:
            log.exception("application_failed", path=self.scope["path"])
        finally:
            if not (self.response_complete or self.disconnected):
                self.transport.abort()
            self.on_response = _do_nothing  # It would keep the connection's objects in a cycle.

    async def send(self, message: ASGISendEvent) -> None:
        """Like uvicorn's, with fewer steps. If the length of the response is known, its head is
        sent together with its body, which spares a system call."""
        if self.flow.write_paused and not self.disconnected:
            await self.flow.drain()
        if self.disconnected:
            return
        if message["type"] == "http.response.start" and not self.response_started:
            self._begin(message["status"], [*self.default_headers, *message["headers"]])
        elif message["type"] == "http.response.body" and not self.response_complete:
            self._continue(message.get("body", b""), has_more=message.get("more_body", False))
        else:
            raise RuntimeError(f"unexpected {message['type']}")

    def _begin(self, status: int, headers: Sequence[tuple[bytes, bytes]]) -> None:
        """A response to an unfinished request is the last: nobody wants the rest of the body."""
        self.response_started = True
        self.waiting_for_100_continue = False
        lengths = [value for name, value in headers if name == b"content-length"]
        self._left = int(lengths[0]) if lengths else None
        if status in _WITHOUT_BODY:
            self._left = 0  # Without a Content-Length: the response ends with its head.
        own = []
        if _CLOSE in headers:
            self.keep_alive = False
        elif self.more_body or not self.keep_alive:
            self.keep_alive = False
            own.append(_CLOSE)
        if self._left is None:
            own.append((b"transfer-encoding", b"chunked"))
        lines = [b": ".join(header) for header in (*headers, *own)]
        head = STATUS_LINE[status] + b"\r\n".join([*lines, b"\r\n"])
        if head.count(b"\n") != len(lines) + 2 or head.count(b"\r") != len(lines) + 2:
            raise RuntimeError("a header has a line end")
        if self._left is None or self._is_head:
            self.transport.write(head)
        else:
            self._head = head

    def _continue(self, body: bytes, *, has_more: bool) -> None:
        if self._is_head:
            pass
        elif self._left is None:
            ends = b"" if has_more else b"0\r\n\r\n"
            self.transport.write((b"%x\r\n%s\r\n" % (len(body), body) if body else b"") + ends)
        else:
            self._left -= len(body)
            if self._left < 0 or (self._left > 0 and not has_more):
                raise RuntimeError("the response has another length than announced")
            self.transport.write(self._head + body)
            self._head = b""
        if not has_more:
            self.response_complete = True
            self.message_event.set()
            if not self.keep_alive:
                self.transport.close()
            self.on_response()

    @property
    def _is_head(self) -> bool:
        return self.scope["method"] == "HEAD"


def _do_nothing() -> None: ...


class _Outlet(asyncio.Transport):
    """What a response is written to: the transport, except that closing it waits for the client."""

    def __init__(self, protocol: "BoundedHttpProtocol") -> None:
        super().__init__()
        self._protocol = protocol
        self.write = protocol.transport.write  # type: ignore[method-assign]
        self.abort = protocol.transport.abort  # type: ignore[method-assign]
        self.is_closing = protocol.transport.is_closing  # type: ignore[method-assign]

    def close(self) -> None:
        self._protocol.end_response()


class _Flow(FlowControl):
    """Reads nothing while requests wait: a client could send faster than we answer, without an
    end."""

    def __init__(self, transport: asyncio.Transport, waiting: Collection[object]) -> None:
        super().__init__(transport)
        self._waiting = waiting

    def resume_reading(self) -> None:
        if not self._waiting:
            super().resume_reading()


class BoundedHttpProtocol(HttpToolsProtocol):
    """One connection."""

    config: ConnectionConfig

    def __init__(
        self,
        config: ConnectionConfig,
        server_state: ServerState,
        app_state: dict[str, Any],
        _loop: asyncio.AbstractEventLoop | None = None,
    ) -> None:
        super().__init__(config, server_state, app_state, _loop)
        self._limits = config.limits
        self._timed = config.timed
        self.deadline = _NEVER
        self.stalled_until = _NEVER
        self._is_over = False  # No further request is read.
        self._is_surplus = False
        self._in_head = False
        self._head_bytes = 0
        self._answering: RequestResponseCycle | None = None

    # What the transport calls.

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        super().connection_made(transport)
        connections = self.config.open
        connections.add(self)
        self._outlet = _Outlet(self)
        self.flow = _Flow(transport, self.pipeline)
        self._end_by(self._limits.header_seconds)
        self._is_surplus = len(connections) > self._limits.connections
        if len(connections) > self._limits.connections + self._limits.surplus:
            transport.abort()

    def connection_lost(self, exc: Exception | None) -> None:
        self.config.open.discard(self)
        self._disconnect_answering()  # uvicorn tells only the newest of pipelined requests.
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        if self._is_over:
            return
        self._head_bytes += len(data)
        try:
            if self._is_surplus:
                raise too_many()
            self.parser.feed_data(data)
            if self._in_head and self._head_bytes > self._limits.header_bytes:
                raise too_large(f"are longer than {self._limits.header_bytes} bytes")
        except Refused as refusal:
            self._refuse(refusal)
        except httptools.HttpParserUpgrade as upgrade:
            self._decline_upgrade(data[upgrade.args[0] :])
        except httptools.HttpParserError as error:
            cause = error.__context__
            self._refuse(cause if isinstance(cause, Refused) else malformed())

    def shutdown(self) -> None:
        """uvicorn stops. Streams end now, and other requests are finished."""
        self.config.on_stop()
        super().shutdown()

    def pause_writing(self) -> None:
        self.stalled_until = self.loop.time() + self._limits.write_seconds
        self._timed.add(self)
        super().pause_writing()

    def resume_writing(self) -> None:
        self.stalled_until = _NEVER
        super().resume_writing()

    # What the parser calls. Its ``feed_data`` raises with an error from here as the context.

    def on_message_begin(self) -> None:
        super().on_message_begin()
        self._in_head = True
        if not self._is_answering:
            self._end_by(self._limits.header_seconds)

    def on_header(self, name: bytes, value: bytes) -> None:
        if not self._in_head:
            return  # A trailer, after the body. uvicorn would add it to the headers.
        if len(self.headers) >= self._limits.headers:
            raise too_large(f"are more than {self._limits.headers}")
        super().on_header(name, value)

    def on_headers_complete(self) -> None:
        if self.parser.should_upgrade():
            return  # The parser stops here, and ``data_received`` goes on.
        self._in_head = False
        size, hosts = len(self.url), 0
        for name, value in self.headers:
            size += len(name) + len(value)
            if name == b"host":
                hosts += 1
        if size > self._limits.header_bytes:
            raise too_large(f"are longer than {self._limits.header_bytes} bytes")
        version = self.parser.get_http_version()
        if version not in {"1.0", "1.1"}:
            raise malformed()
        if hosts > 1 or (hosts == 0 and version == "1.1"):
            raise Refused(HTTPStatus.BAD_REQUEST, "Host: is required, once")
        self._complete_scope(version)
        self.cycle = _Exchange(
            scope=self.scope,
            transport=self._outlet,
            flow=self.flow,
            logger=self.logger,
            access_logger=self.access_logger,
            access_log=False,
            default_headers=self.server_state.default_headers,
            message_event=asyncio.Event(),
            expect_100_continue=self.expect_100_continue,
            keep_alive=version == "1.1" and self.parser.should_keep_alive(),
            on_response=self.on_response_complete,
        )
        if not self._is_answering:
            self._start_asgi_task(self.cycle, self.app)
        elif len(self.pipeline) < MAX_PIPELINED:
            self.flow.pause_reading()
            self.pipeline.appendleft((self.cycle, self.app))
        else:
            raise Refused(HTTPStatus.BAD_REQUEST, "Too many requests were sent ahead")

    def on_message_complete(self) -> None:
        if not self._in_head:
            self._head_bytes = 0  # What arrives from now on is the next request.
            super().on_message_complete()

    def _decline_upgrade(self, rest: bytes) -> None:
        """Read the request again without its wish for another protocol, which the parser would
        follow, taking the body for that protocol's first bytes."""
        method = self.parser.get_method()
        if method == b"CONNECT":
            self._refuse(malformed())
            return
        line = b"%s %s HTTP/%s" % (method, self.url, self.parser.get_http_version().encode())
        headers = [b"%s: %s" % header for header in self.headers if header[0] != b"upgrade"]
        self.parser = httptools.HttpRequestParser(self)
        self.data_received(b"\r\n".join([line, *headers, b"", rest]))

    def _complete_scope(self, version: str) -> None:
        target = httptools.parse_url(self.url)
        if target.path is None:
            raise malformed()
        path = target.path.decode("ascii")
        self.scope["http_version"] = version
        self.scope["method"] = self.parser.get_method().decode("ascii")
        self.scope["path"] = unquote(path) if "%" in path else path
        self.scope["raw_path"] = target.path
        self.scope["query_string"] = target.query or b""

    # The life of a connection.

    @property
    def _is_answering(self) -> bool:
        return self._answering is not None and not self._answering.response_complete

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: ASGI3Application) -> None:
        self._answering = cycle
        self.deadline = _NEVER
        super()._start_asgi_task(cycle, app)

    def on_response_complete(self) -> None:
        """Start the next request that waits, or wait for one."""
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        if self.pipeline and not self._is_over:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self.flow.resume_reading()
        if not self._is_over:
            self._end_by(self._limits.idle_seconds)

    def _end_by(self, seconds: float) -> None:
        """Set the deadline."""
        self.deadline = self.loop.time() + seconds
        self._timed.add(self)

    def end_response(self) -> None:
        """The last response of this connection is written."""
        current = self._answering
        self._end(has_unread=current is not None and current.more_body)

    def _end(self, *, has_unread: bool) -> None:
        """Close the connection: at once, or while something is on its way, once the client has
        closed its side. Otherwise the response would be lost in a reset."""
        self._is_over = True
        self.pipeline.clear()
        self._end_by(CLOSE_SECONDS)
        if not has_unread:
            self.transport.close()
        elif not self.transport.is_closing():
            self.flow.resume_reading()
            self.transport.write_eof()

    def close_if_late(self, now: float) -> None:
        """A client that does not take what was sent is cut off at the second deadline."""
        if now >= self.stalled_until or (now >= self.deadline and self.transport.is_closing()):
            self.transport.abort()
        elif now >= self.deadline:
            if self._in_head:
                message = "headers: did not arrive in time"
                self._refuse(Refused(HTTPStatus.REQUEST_TIMEOUT, message))
            else:
                self._end_by(CLOSE_SECONDS)
                self.transport.close()

    def _end_after_response(self) -> None:
        self._is_over = True
        self.pipeline.clear()
        if self._answering is not None:
            self._answering.keep_alive = False

    def _refuse(self, refusal: Refused) -> None:
        """Answer with an error, and end the connection. If an earlier request is complete, it is
        answered, and this one is not."""
        current = self._answering
        if current is not None and not current.response_complete:
            if not current.more_body:
                self._end_after_response()
                return
            self._disconnect_answering()  # It is the refused one: the rest of its body is wrong.
            if current.response_started:
                self.transport.abort()
                return
        known: RawHeaders = self.headers or ()
        request_id = request_id_of(known)
        log.info("request_refused", request_id=request_id, reason=str(refusal))
        self.transport.write(response_to(refusal, request_id, origin=readable_by(known) or b"*"))
        self._end(has_unread=True)

    def _disconnect_answering(self) -> None:
        if self._answering is not None and not self._answering.response_complete:
            self._answering.disconnected = True
            self._answering.message_event.set()
