"""What happens around every request: its id, its line in the log, and who is asking."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter

from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, ReceiveMessage, Scope, Send

from config.logging import REQUEST_INFO, AccessLine, RequestInfo, logged_access_line
from domain.credits import Owner
from domain.deadlines import SharedTimeout
from domain.errors import InvalidApiKey, InvalidInput, Unauthenticated

Authenticate = Callable[[str], Awaitable[Owner]]
"""From a bearer token to its owner. Raises Unauthenticated, InvalidApiKey, DatabaseUnavailable."""

RawHeaders = Iterable[tuple[bytes, bytes]]

BODY_SECONDS = 10.0
"""How long a body may take to arrive, from when we begin to read it."""

UPLOAD_SECONDS = 60.0
"""The same of a picture: 10 MB at a little more than a megabit per second."""

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_LOOKS_LIKE_A_KEY = re.compile(rb"bearer +wk_", re.IGNORECASE)


class RequestContext:
    """Outermost: gives every request an id, every response its header, every body a bound, and the
    log one line."""

    def __init__(self, app: ASGIApp, *, access_line: AccessLine = logged_access_line) -> None:
        self._app = app
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
            # Litestar fails on bytes that are not UTF-8; this makes them a value that nothing
            # accepts.
            scope["query_string"] = scope["query_string"].decode(errors="replace").encode()
        request_id = _request_id(scope["headers"])
        info: RequestInfo = {"request_id": request_id}
        scope["state"]["request_info"] = info
        REQUEST_INFO.set(info)
        is_upload = path.startswith("/uploads/")
        body = _Body(receive, self._uploads if is_upload else self._bodies)
        answer = _Answer(send, request_id)
        try:
            await self._app(scope, body.receive, answer.send)
        finally:
            duration_ms = round((perf_counter() - started) * 1000, 1)
            self._access_line(info, scope["method"], path, answer.status, duration_ms)


class _Answer:
    """Has the request's id in its headers."""

    __slots__ = ("_request_id", "_send", "status")

    def __init__(self, send: Send, request_id: str) -> None:
        self._send = send
        self._request_id = request_id
        self.status: int | None = None

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self.status = message["status"]
            header = (b"x-request-id", self._request_id.encode())
            message["headers"] = [*message["headers"], header]
        await self._send(message)


class _Body:
    """To receive it raises InvalidInput when it is not there in time. What comes after it, such as
    the caller hanging up, has no bound."""

    __slots__ = ("_deadline", "_first_in_time", "_is_there", "_receive")

    def __init__(self, receive: Receive, first_in_time: SharedTimeout) -> None:
        self._receive = receive
        self._first_in_time = first_in_time
        self._deadline: float | None = None
        self._is_there = False

    async def receive(self) -> ReceiveMessage:
        if self._is_there:
            return await self._receive()
        try:
            if self._deadline is None:
                with self._first_in_time.running() as wait:
                    self._deadline = wait.deadline
                    message = await self._receive()
            else:
                async with asyncio.timeout_at(self._deadline):
                    message = await self._receive()
        except TimeoutError as error:
            raise InvalidInput("body", "did not arrive in time") from error
        self._is_there = not message.get("more_body", False)
        return message


def _request_id(headers: RawHeaders) -> str:
    """The caller's, if it is well formed, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return f"req_{random.getrandbits(96):024x}"


class Authentication:
    """Lets only known callers through; preflight requests carry no token and need none."""

    def __init__(self, app: ASGIApp, authenticate: Authenticate) -> None:
        self._app = app
        self._authenticate = authenticate

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope.get("method") != "OPTIONS":
            owner = await self._authenticate(bearer_token(scope["headers"]))
            scope["user"] = owner
            scope["state"]["request_info"]["owner"] = str(owner)
        await self._app(scope, receive, send)


def bearer_token(headers: RawHeaders) -> str:
    """Raises Unauthenticated unless there is one well-formed Authorization header."""
    given = [value for name, value in headers if name == b"authorization"]
    match = _BEARER.fullmatch(given[0]) if len(given) == 1 else None
    if match:
        return match[1].decode()
    problem = "Send one header 'Authorization: Bearer <token>'"
    if any(_LOOKS_LIKE_A_KEY.match(value) for value in given):
        raise InvalidApiKey(problem)
    raise Unauthenticated(problem)
