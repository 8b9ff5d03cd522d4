"""The request that is sent most, answered without the framework, which would be most of its cost.

A well-formed request for a picture takes this way; its answer is the framework's route's, byte for
byte. Of any other request that route finds out what is wrong, from the request as it came: nothing
has happened by then.
"""

import re
from collections.abc import Mapping

import msgspec
from litestar.types import ASGIApp, Receive, ReceiveMessage, Scope, Send

from config.logging import RequestInfo
from domain.credits import Owner
from domain.errors import InvalidInput
from domain.submission import Submission, TryOnRequest
from entrypoints.http.errors import envelope_for
from entrypoints.http.generations import accepted, try_on
from entrypoints.http.inputs import NewGenerationBody, decoded
from entrypoints.http.middleware import Authenticate, bearer_token
from entrypoints.http.schemas import GENERATIONS_PATH, ErrorEnvelope, SubmittedEnvelope

_JSON = re.compile(rb"application/json *(;.*)?", re.IGNORECASE | re.DOTALL)
_HOST = re.compile(rb"[A-Za-z0-9.-]+(:[0-9]+)?")
_LENGTH = re.compile(rb"[1-9][0-9]{0,8}")
_encode = msgspec.json.Encoder().encode


class HotSubmission:
    """Stands before ``app``, which gets all other requests."""

    def __init__(
        self,
        app: ASGIApp,
        *,
        authenticate: Authenticate,
        submission: Submission,
        max_body_bytes: int,
    ) -> None:
        self._app = app
        self._authenticate = authenticate
        self._submission = submission
        self._max_body_bytes = max_body_bytes

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        headers = self._usual_headers(scope)
        if headers is None:
            await self._app(scope, receive, send)
            return
        info: RequestInfo = scope["state"]["request_info"]
        messages: list[ReceiveMessage] = []
        answer: tuple[int, dict[str, str], SubmittedEnvelope | ErrorEnvelope] | None = None
        try:
            # First, as the framework does: a stranger is told so without waiting for the body.
            owner = await self._authenticate(bearer_token(scope["headers"]))
            info["owner"] = str(owner)
            messages.append(await receive())
            request = _request(messages[0], headers, owner, info)
            if request is not None:
                receipt = await self._submission.submit(request)
                info["session_id"] = receipt.session.id
                answer = 202, *accepted(receipt)
        except Exception as error:  # noqa: BLE001 - answered, and logged if nobody expected it
            answer = envelope_for(error)
        if answer is None:
            await self._app(scope, _again(messages, receive), send)
        else:
            await _respond(send, *answer)

    def _usual_headers(self, scope: Scope) -> dict[bytes, bytes] | None:
        """The headers, if this asks for a picture, none is there twice and those that matter are as
        most are."""
        if scope["path"] != GENERATIONS_PATH or scope.get("method") != "POST":
            return None
        headers = dict(scope["headers"])
        content_type = headers.get(b"content-type", b"")
        length = headers.get(b"content-length", b"")
        usual = (
            len(headers) == len(scope["headers"])  # type: ignore[arg-type]
            and b"transfer-encoding" not in headers
            and (content_type == b"application/json" or _JSON.fullmatch(content_type))
            and _HOST.fullmatch(headers.get(b"host", b""))
            and _LENGTH.fullmatch(length)
            and int(length) <= self._max_body_bytes
        )
        return headers if usual else None


def _request(
    message: ReceiveMessage, headers: Mapping[bytes, bytes], owner: Owner, info: RequestInfo
) -> TryOnRequest | None:
    """None for what is not right, and for a body in pieces. Whether it is whole tells its length:
    that it ends a server may say in a message of its own."""
    if message["type"] != "http.request":
        return None
    body = message["body"]
    if len(body) != int(headers[b"content-length"]):
        return None
    key = headers.get(b"idempotency-key")
    try:
        return try_on(
            decoded(body, NewGenerationBody.decoder),
            owner=owner,
            request_id=info["request_id"],
            key=None if key is None else key.decode("latin-1"),
        )
    except InvalidInput:
        return None


def _again(messages: list[ReceiveMessage], receive: Receive) -> Receive:
    """``receive`` as if ``messages`` had not been received yet."""
    left = iter(messages)

    async def receive_again() -> ReceiveMessage:
        message = next(left, None)
        return await receive() if message is None else message

    return receive_again


async def _respond(
    send: Send, status: int, headers: dict[str, str], answer: SubmittedEnvelope | ErrorEnvelope
) -> None:
    body = _encode(answer)
    await send(
        {
            "type": "http.response.start",
            "status": status,
            "headers": [
                (b"content-type", b"application/json"),
                *((name.lower().encode(), value.encode()) for name, value in headers.items()),
                (b"content-length", str(len(body)).encode()),
            ],
        }
    )
    await send({"type": "http.response.body", "body": body, "more_body": False})
