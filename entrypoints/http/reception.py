"""What the plain ASGI routes do before their own work: admit the caller and read the body."""

import re
from typing import Any, TypeAlias

import msgspec
from litestar.exceptions import ClientException, HTTPException
from litestar.types import HTTPScope, Receive, Send

from domain.callers import Caller
from domain.errors import InvalidInput
from entrypoints.http.access import caller_of
from entrypoints.http.cors import Header
from entrypoints.http.door import Door
from entrypoints.http.errors import envelope_for
from entrypoints.http.inputs import check_is_json, check_is_plain, check_query
from entrypoints.http.request_info import RequestInfo

Reply: TypeAlias = tuple[int, list[Header], msgspec.Struct]
"""Status, headers and body of a response."""

# The characters of a host and its port (RFC 3986), as Litestar has it for all other routes.
_HOST = re.compile(rb"[0-9A-Za-z!$&'()*+,;=\-._~:\[\]@%]*")
_encode = msgspec.json.Encoder().encode


class Reception:
    """Receives the requests of one route, whose handler has the ``options`` of ``access``."""

    def __init__(self, *, door: Door, options: dict[str, Any], max_body_bytes: int) -> None:
        self._door = door
        self._options = options
        self._max_body_bytes = max_body_bytes

    async def receive(
        self, scope: HTTPScope, receive: Receive, info: RequestInfo
    ) -> tuple[Caller, bytes, str | None]:
        """The caller, the JSON body, and the idempotency key of the header, if it is there.

        Raises the errors that ``envelope_for`` knows. An unknown caller gets its 401 before the
        body is read."""
        received = list(scope["headers"])
        headers = dict(reversed(received))  # each header's first value
        if not _HOST.fullmatch(headers.get(b"host", b"")):
            raise ClientException("Invalid host header")
        principal = await self._door.admit(scope)
        info["owner"] = str(principal)
        caller = caller_of(principal, self._options)
        if scope["query_string"]:
            check_query(scope["query_string"])
        if b"content-encoding" in headers:
            check_is_plain(headers[b"content-encoding"].decode("latin-1"))
        body = await self._body(headers, receive)
        if not body:
            raise InvalidInput("body", "is required")
        check_is_json(headers.get(b"content-type", b"").decode("latin-1"))
        return caller, body, _idempotency_key(headers, received)

    async def _body(self, headers: dict[bytes, bytes], receive: Receive) -> bytes:
        """The whole body: up to its announced length, or else to the message that ends it."""
        length = _announced_length(headers)
        if length > self._max_body_bytes:
            raise _too_large()
        pieces: list[bytes] = []
        size = 0
        while True:
            message = await receive()
            if message["type"] != "http.request":
                raise ClientException("body: the client disconnected")
            pieces.append(message["body"])
            size += len(message["body"])
            if size > self._max_body_bytes:
                raise _too_large()
            # Some servers announce the end in a message of its own: do not wait for it.
            if 0 < size == length or not message.get("more_body", False):
                return b"".join(pieces)


def _announced_length(headers: dict[bytes, bytes]) -> int:
    """The Content-Length; -1 if the body comes without, or in chunks, which override it."""
    if b"transfer-encoding" in headers:
        return -1
    try:
        return int(headers.get(b"content-length", b"-1"))
    except ValueError as error:
        raise InvalidInput("Content-Length", "is not a number") from error


def _idempotency_key(
    headers: dict[bytes, bytes], received: list[tuple[bytes, bytes]]
) -> str | None:
    key = headers.get(b"idempotency-key")
    if key is None:
        return None
    repeated = len(headers) < len(received)
    if repeated and [name for name, _ in received].count(b"idempotency-key") > 1:
        raise InvalidInput("Idempotency-Key", "is given more than once")
    return key.decode("latin-1")


def _too_large() -> HTTPException:
    return HTTPException(status_code=413)


def reply_to(error: Exception) -> Reply:
    """The reply to a request that failed with ``error``, which is logged if it is unexpected."""
    status, headers, envelope = envelope_for(error)
    return (
        status,
        [(name.lower().encode(), value.encode()) for name, value in headers.items()],
        envelope,
    )


async def respond(send: Send, reply: Reply) -> None:
    """Send the reply."""
    status, headers, envelope = reply
    body = _encode(envelope)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                *headers,
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
