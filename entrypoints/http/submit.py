"""``POST /api/v1/generations``: the whole route as a plain ASGI application.

It is the busiest route, and Litestar would account for most of a request's cost. Litestar still
declares the route: for the API's description, and for routing requests off the fast path to it.
"""

import re
from collections.abc import Awaitable
from typing import Annotated, TypeAlias

import msgspec
from litestar import post
from litestar.enums import ScopeType
from litestar.exceptions import ClientException, HTTPException
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from domain.callers import Caller
from domain.errors import InvalidInput, Unconfirmed
from domain.ports import Receipt
from domain.submission import Submission, TryOnRequest
from domain.views import SessionViews
from entrypoints.http.access import caller_of, for_shoppers_too
from entrypoints.http.cors import Header
from entrypoints.http.door import Door
from entrypoints.http.errors import envelope_for
from entrypoints.http.generations import GENERATION_TAGS, try_on
from entrypoints.http.inputs import (
    IdempotencyKey,
    check_is_json,
    check_is_plain,
    check_query,
    decoded,
)
from entrypoints.http.openapi import failures
from entrypoints.http.prefer import Prefer, Waits, applied, wait_seconds
from entrypoints.http.rates import rate_headers
from entrypoints.http.request_info import RequestInfo
from entrypoints.http.schemas import (
    GENERATIONS_PATH,
    ErrorEnvelope,
    NewGeneration,
    Session,
    SessionEnvelope,
    Submitted,
    SubmittedEnvelope,
)

Reply: TypeAlias = tuple[int, list[Header], SubmittedEnvelope | SessionEnvelope | ErrorEnvelope]
"""Status, headers and body of a response."""

_EXAMPLE = {
    "model_image_url": "https://images.example.com/person.jpg",
    "outfit_image_url": "https://images.example.com/coat.jpg",
    "accessories": [{"type": "hat", "url": "https://images.example.com/hat.jpg"}],
}
Body = Annotated[NewGeneration, BodyKwarg(examples=[Example(value=_EXAMPLE)])]

# The characters of a host and its port (RFC 3986), as Litestar has it for all other routes.
_HOST = re.compile(rb"[0-9A-Za-z!$&'()*+,;=\-._~:\[\]@%]*")
_ACCESS = for_shoppers_too()
_decoder = msgspec.json.Decoder(NewGeneration)
_encode = msgspec.json.Encoder().encode


class SubmitRoute:
    """Answers every request that it gets, also with errors, which it never raises."""

    def __init__(
        self,
        *,
        door: Door,
        submission: Submission,
        waits: Waits,
        views: SessionViews,
        max_body_bytes: int,
    ) -> None:
        self._door = door
        self._submission = submission
        self._waits = waits
        self._views = views
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP  # noqa: S101 - no other type has this path and method
        info: RequestInfo = scope["state"]["request_info"]
        try:
            request = await self._request(scope, receive, info)
            receipt = await self._submission.submit(request)
            info["session_id"] = receipt.session.id
            reply: Reply = accepted(receipt)
            if seconds := wait_seconds(scope["headers"]):
                reply = await self._waited(reply, receipt, request.caller, seconds, receive)
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is unexpected
            status, headers, envelope = envelope_for(error)
            raw = [(name.lower().encode(), value.encode()) for name, value in headers.items()]
            reply = status, raw, envelope
        await _respond(send, reply)

    async def _waited(
        self, reply: Reply, receipt: Receipt, caller: Caller, seconds: int, receive: Receive
    ) -> Reply:
        """The final session if there is one in time, else ``reply``. The request is accepted, so
        no fault of the wait changes that."""
        session_id = receipt.session.id
        session, has_waited = await self._waits.final(
            session_id, caller, seconds=seconds, receive=receive
        )
        status, headers, envelope = reply
        if has_waited:
            headers = [*headers, applied(seconds)]
        if session is None:
            return status, headers, envelope
        view = self._views.view_of(session)
        return 200, headers, SessionEnvelope(data=Session.seen_by(caller, view), error=None)

    async def _request(self, scope: HTTPScope, receive: Receive, info: RequestInfo) -> TryOnRequest:
        """Raises the errors that ``envelope_for`` knows. An unknown caller gets its 401 before the
        body is read."""
        received = list(scope["headers"])
        headers = dict(reversed(received))  # each header's first value
        if not _HOST.fullmatch(headers.get(b"host", b"")):
            raise ClientException("Invalid host header")
        principal = await self._door.admit(scope)
        info["owner"] = str(principal)
        caller = caller_of(principal, _ACCESS)
        if scope["query_string"]:
            check_query(scope["query_string"])
        if b"content-encoding" in headers:
            check_is_plain(headers[b"content-encoding"].decode("latin-1"))
        body = await self._body(headers, receive)
        if not body:
            raise InvalidInput("body", "is required")
        check_is_json(headers.get(b"content-type", b"").decode("latin-1"))
        data = decoded(body, _decoder)
        key = _idempotency_key(headers, received)
        links = self._submission.links
        return try_on(data, caller=caller, request_id=info["request_id"], key=key, links=links)

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


def fast_path(app: ASGIApp, submit: ASGIApp) -> ASGIApp:
    """``app``, bypassed by requests for ``submit``. Litestar leads other spellings of the path to
    ``submit`` as well, and answers other methods."""

    def route(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        is_submission = scope["path"] == GENERATIONS_PATH and scope.get("method") == "POST"
        return (submit if is_submission else app)(scope, receive, send)

    return route


def declare(submit: ASGIApp) -> HTTPRouteHandler:
    """The route's declaration, for routing and the OpenAPI document. ``submit`` takes the place of
    its handler."""

    @post(
        "/generations",
        status_code=202,
        opt=_ACCESS,
        middleware=[lambda app: submit],  # noqa: ARG005 - Litestar passes it by name
        tags=GENERATION_TAGS,
        summary="Create a generation",
        response_description="Accepted and charged; the picture will be generated.",
        responses={
            200: ResponseSpec(
                SessionEnvelope,
                description="The final session, after a wait.",
                generate_examples=False,
            ),
            **failures(401, 402, 403, Unconfirmed, 413, 415, 422, 429, 503),
        },
    )
    async def submit_generation(  # Litestar reads its signature, and never calls it.
        data: Body,  # noqa: ARG001
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001
        prefer: Prefer = None,  # noqa: ARG001
    ) -> SubmittedEnvelope:
        """Takes one credit and queues the work. After a 202 the session will reach a final status:
        `completed` with a picture, or `failed` with the credit refunded. Follow it by its events,
        or poll `status_url`. With `Prefer: wait=N` the answer is a 200 with the final session if
        there is one within N seconds, else the 202.
        After a 503 the credit is refunded, now or automatically later.

        With an `Idempotency-Key` you can repeat a request, whatever the first response was: you are
        charged once and get the same session, in its current state, with
        `Idempotency-Replayed: true`. While it is not known whether the first request is accepted,
        a repetition waits, and gets a 409 with `Retry-After` in the end."""
        raise AssertionError("Litestar calls the middleware instead")

    return submit_generation


def accepted(receipt: Receipt) -> tuple[int, list[Header], SubmittedEnvelope]:
    """The status, headers and body of the answer to an accepted request."""
    submitted = Submitted.of(receipt)
    rates = () if receipt.session.shopper else receipt.rates  # They are the store's.
    headers = [(b"location", submitted.status_url.encode()), *rate_headers(rates)]
    if receipt.replayed:
        headers.append((b"idempotency-replayed", b"true"))
    return 202, headers, SubmittedEnvelope(data=submitted, error=None)


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


async def _respond(send: Send, reply: Reply) -> None:
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
