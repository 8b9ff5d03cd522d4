"""Middleware around every request: its id, its log line, its body's deadline, authentication."""

import asyncio
from collections.abc import Collection, Mapping, Sequence
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, ReceiveMessage, Scope, Send

from config.logging import AccessLine, logged_access_line
from config.metrics import HTTP_REQUESTS, HTTP_SECONDS
from domain.deadlines import SharedTimeout
from domain.errors import InvalidInput
from entrypoints.http.access import check_access
from entrypoints.http.cors import (
    BrowserHeaders,
    Header,
    answer_preflight,
    is_preflight,
    readable_by,
)
from entrypoints.http.door import Door
from entrypoints.http.rates import rate_headers
from entrypoints.http.request_info import REQUEST_INFO, new_info

BODY_SECONDS = 10.0
"""The deadline for a body to arrive, counted from when we start reading it."""

UPLOAD_SECONDS = 60.0
"""The same for a picture: 10 MB at a little more than one megabit per second."""

_METHODS = frozenset({"DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"})

_LISTS_METHODS = {204, 405}
"""The statuses of answers with ``Allow``: to ``OPTIONS``, and to a method that is not allowed."""


class RequestContext:
    """The outermost layer: gives every request an id, every response its general headers, every
    body a deadline, and the log one line per request. Answers ``HEAD`` like ``GET``, without the
    body, and browsers' preflight requests itself. ``methods`` has those of each route, by its path
    template."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        methods: Mapping[str, Collection[str]],
        access_line: AccessLine = logged_access_line,
        browser_headers: BrowserHeaders | None = None,
    ) -> None:
        self._app = app
        self.methods = methods
        self.browser_headers = browser_headers or BrowserHeaders()
        self._access_line = access_line
        self._bodies = SharedTimeout(BODY_SECONDS)
        self._uploads = SharedTimeout(UPLOAD_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        path = scope["path"]
        if scope["query_string"]:
            # Litestar crashes on bytes that are not UTF-8; replaced, they are just invalid values.
            scope["query_string"] = scope["query_string"].decode(errors="replace").encode()
        info = new_info(scope["headers"])
        request_id = info["request_id"]
        origin = readable_by(scope["headers"])
        scope["state"]["request_info"] = info
        REQUEST_INFO.set(info)
        is_upload = path.startswith("/uploads/")
        body = _Body(receive, self._uploads if is_upload else self._bodies)
        method = scope["method"]
        if method == "HEAD":
            scope = {**scope, "method": "GET"}
            scope["state"]["is_head"] = True
            send = _without_body(send)
        answer = _Answer(send, request_id, origin, scope, self)
        app = answer_preflight if origin is not None and is_preflight(scope) else self._app
        try:
            await app(scope, body.receive, answer.send)
        finally:
            seconds = perf_counter() - started
            self._count(scope, method, answer.status, seconds)
            self._access_line(info, method, path, answer.status, round(seconds * 1000, 1))

    def _count(self, scope: HTTPScope, method: str, status: int | None, seconds: float) -> None:
        """A path of no route is counted as ``other``: there is no end to such paths."""
        route = scope.get("path_template") or (
            scope["path"] if scope["path"] in self.methods else "other"
        )
        if method not in _METHODS:
            method = "other"
        HTTP_REQUESTS.inc(method, route, status or 0)
        HTTP_SECONDS.observe(seconds, method, route)


def _without_body(send: Send) -> Send:
    async def send_headers(message: Message) -> None:
        await send({**message, "body": b""} if message["type"] == "http.response.body" else message)

    return send_headers


class _Answer:
    """Adds the general headers to a response, and keeps its status for the log."""

    __slots__ = ("_context", "_origin", "_request_id", "_scope", "_send", "status")

    def __init__(
        self,
        send: Send,
        request_id: str,
        origin: bytes | None,
        scope: HTTPScope,
        context: RequestContext,
    ) -> None:
        self._send = send
        self._request_id = request_id
        self._origin = origin
        self._scope = scope
        self._context = context
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            headers = [*message["headers"], (b"x-request-id", self._request_id.encode())]
            if self.status in _LISTS_METHODS:
                headers = [self._allow(header) for header in headers]
            self._context.browser_headers.add_to(headers, origin=self._origin)
            message["headers"] = headers
        await self._send(message)

    def _allow(self, header: tuple[bytes, bytes]) -> tuple[bytes, bytes]:
        """Litestar omits ``HEAD`` and, answering ``OPTIONS``, other methods of the route."""
        if header[0] != b"allow":
            return header
        template = self._scope.get("path_template", "")
        methods = set(self._context.methods.get(template) or header[1].decode().split(", "))
        if "GET" in methods:
            methods.add("HEAD")
        return b"allow", ", ".join(sorted(methods)).encode()


class _Body:
    """``receive`` raises InvalidInput once the body's deadline has passed. Messages after the body,
    such as the client's disconnect, have no deadline."""

    __slots__ = ("_complete", "_deadline", "_receive", "_shared_timeout")

    def __init__(self, receive: Receive, shared_timeout: SharedTimeout) -> None:
        self._receive = receive
        self._shared_timeout = shared_timeout
        self._deadline: float | None = None
        self._complete = False

    async def receive(self) -> ReceiveMessage:
        if self._complete:
            return await self._receive()
        try:
            if self._deadline is None:
                with self._shared_timeout.running() as wait:
                    self._deadline = wait.deadline
                    message = await self._receive()
            else:
                async with asyncio.timeout_at(self._deadline):
                    message = await self._receive()
        except TimeoutError as error:
            raise InvalidInput("body", "did not arrive in time") from error
        self._complete = not message.get("more_body", False)
        return message


class Authentication:
    """Rejects requests without a valid credential, or with one that the route does not allow, and
    reads beyond the caller's rate. Preflight requests carry no credential."""

    def __init__(self, app: ASGIApp, door: Door) -> None:
        self._app = app
        self._door = door

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == ScopeType.HTTP and scope["method"] != "OPTIONS":
            principal = await self._door.admit(scope)
            scope["state"]["request_info"]["owner"] = str(principal)
            check_access(scope, principal)
            scope["user"] = principal
            if scope["method"] == "GET" and (rates := self._door.count_read(principal)):
                send = _with_headers(send, rate_headers(rates))
        await self._app(scope, receive, send)


def _with_headers(send: Send, added: Sequence[Header]) -> Send:
    async def send_more(message: Message) -> None:
        if message["type"] == "http.response.start":
            names = {name for name, _ in message["headers"]}
            more = [header for header in added if header[0] not in names]
            message["headers"] = [*message["headers"], *more]
        await send(message)

    return send_more
