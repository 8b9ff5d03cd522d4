"""What happens around every request: its id, its line in the log, and who is asking."""

import asyncio
import random
import re
from collections.abc import Awaitable, Callable, Iterable
from time import perf_counter
from typing import Any

import structlog
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Message, Receive, Scope, Send
from structlog.contextvars import bind_contextvars, clear_contextvars

from config.logging import ACCESS_LOG
from domain.credits import Owner
from domain.deadlines import SharedTimeout
from domain.errors import InvalidApiKey, InvalidInput, Unauthenticated

Authenticate = Callable[[str], Awaitable[Owner]]
"""From a bearer token to its owner. Raises Unauthenticated, InvalidApiKey or StoreUnavailable."""

RawHeaders = Iterable[tuple[bytes, bytes]]

BODY_SECONDS = 10.0
"""How long a body may take to arrive, from when we begin to read it."""

UPLOAD_SECONDS = 60.0
"""The same of a picture: 10 MB at a little more than a megabit per second."""

access_log = structlog.get_logger(ACCESS_LOG)

_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")
_BEARER = re.compile(rb"bearer +([A-Za-z0-9._~+/-]+=*)", re.IGNORECASE)
_LOOKS_LIKE_A_KEY = re.compile(rb"bearer +wk_", re.IGNORECASE)


class RequestContext:
    """Outermost: gives every request an id, every response its header, every body a bound, and the
    log one line."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self._bodies = SharedTimeout(BODY_SECONDS)
        self._uploads = SharedTimeout(UPLOAD_SECONDS)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        started = perf_counter()
        path = scope["path"]
        status: int | None = None
        request_id = _request_id(scope["headers"])
        scope["state"]["request_id"] = request_id
        # Litestar fails on bytes that are not UTF-8; this makes them a value that nothing accepts.
        scope["query_string"] = scope["query_string"].decode(errors="replace").encode()
        bind_contextvars(request_id=request_id)

        async def send_with_id(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                header = (b"x-request-id", request_id.encode())
                message["headers"] = [*message["headers"], header]
            await send(message)

        try:
            await self._app(scope, self._bounded(receive, path), send_with_id)
        finally:
            access_log.info(
                "request",
                method=scope["method"],
                path=path,
                status=status,
                duration_ms=round((perf_counter() - started) * 1000, 1),
            )
            clear_contextvars()

    def _bounded(self, receive: Receive, path: str) -> Receive:
        if path.startswith("/uploads/"):
            return _in_time(receive, UPLOAD_SECONDS, self._uploads)
        return _in_time(receive, BODY_SECONDS, self._bodies)


def _in_time(receive: Receive, seconds: float, first_in_time: SharedTimeout) -> Receive:
    """``receive``, but it raises InvalidInput when the body is not there after ``seconds``, which
    is also ``first_in_time``'s. What comes after the body, such as the caller hanging up, has no
    bound."""
    deadline: float | None = None
    is_there = False

    async def receive_in_time() -> Any:  # noqa: ANN401 - whatever message it is
        nonlocal deadline, is_there
        if is_there:
            return await receive()
        try:
            if deadline is None:
                deadline = asyncio.get_running_loop().time() + seconds
                with first_in_time.running():
                    message = await receive()
            else:
                async with asyncio.timeout_at(deadline):
                    message = await receive()
        except TimeoutError as error:
            raise InvalidInput("body", "did not arrive in time") from error
        is_there = not message.get("more_body", False)
        return message

    return receive_in_time


def _request_id(headers: RawHeaders) -> str:
    """The caller's, if it is well formed, else a new one."""
    theirs = next((value for name, value in headers if name == b"x-request-id"), b"")
    if _REQUEST_ID.fullmatch(theirs):
        return theirs.decode()
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
            bind_contextvars(owner=str(owner))
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
