"""The answers, in our envelope, to what is not a request."""

from http import HTTPStatus

import msgspec

from domain.errors import InvalidInput, Unavailable
from entrypoints.http.cors import REFUSAL_HEADERS
from entrypoints.http.schemas import ErrorBody, ErrorEnvelope

_encode = msgspec.json.Encoder().encode


class Refused(Exception):
    """What arrived is answered with ``status``, and is the last of its connection."""

    def __init__(self, status: HTTPStatus, message: str, *, code: str = InvalidInput.code) -> None:
        super().__init__(message)
        self.status = status
        self.code = code


def malformed() -> Refused:
    return Refused(HTTPStatus.BAD_REQUEST, "The request is not valid HTTP/1.1")


def too_large(problem: str) -> Refused:
    return Refused(HTTPStatus.REQUEST_HEADER_FIELDS_TOO_LARGE, f"headers: {problem}")


def too_many() -> Refused:
    message = "Too many open connections; try again later"
    return Refused(HTTPStatus.SERVICE_UNAVAILABLE, message, code=Unavailable.code)


def response_to(refusal: Refused, request_id: str, *, origin: bytes) -> bytes:
    """``origin`` is ``*`` if it is not known: any page may read this."""
    error = ErrorBody(code=refusal.code, message=str(refusal))
    body = _encode(ErrorEnvelope(data=None, error=error))
    lines = [
        f"HTTP/1.1 {refusal.status.value} {refusal.status.phrase}",
        "content-type: application/json",
        f"content-length: {len(body)}",
        f"x-request-id: {request_id}",
        f"access-control-allow-origin: {origin.decode()}",
        *(f"{name.decode()}: {value.decode()}" for name, value in REFUSAL_HEADERS),
        "connection: close",
        *(["retry-after: 5"] if refusal.status is HTTPStatus.SERVICE_UNAVAILABLE else []),
    ]
    return "\r\n".join([*lines, "", ""]).encode() + body
