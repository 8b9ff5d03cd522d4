"""How failures are answered: one table, one handler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from domain.errors import (
    Conflict,
    IdempotencyKeyReused,
    InsufficientCredits,
    InvalidApiKey,
    InvalidInput,
    NotFound,
    Overloaded,
    QueueUnavailable,
    TooManyActive,
    TooManyUploads,
    TryAgain,
    Unauthenticated,
    Unavailable,
    WearonError,
)
from domain.submission import UNAVAILABLE_MESSAGE
from entrypoints.http.inputs import humanize
from entrypoints.http.schemas import ErrorBody, ErrorEnvelope

MAX_MESSAGE_LENGTH = 300

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """How one kind of failure is answered; without a message, in the error's own words. The code is
    the domain's where the failure is."""

    status: int
    code: str
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


_BEARER = {"WWW-Authenticate": "Bearer"}
_RETRY = {"Retry-After": "5"}
_INVALID = Answer(400, InvalidInput.code)
_NOTHING_HERE = Answer(404, NotFound.code, "There is nothing here that you may see")
_UNAVAILABLE = Answer(
    503, Unavailable.code, "Something that we need does not answer; try again", _RETRY
)

ERRORS: Final[Mapping[type[Exception] | int, Answer]] = {
    InvalidInput: _INVALID,
    Unauthenticated: Answer(401, Unauthenticated.code, headers=_BEARER),
    InvalidApiKey: Answer(401, InvalidApiKey.code, headers=_BEARER),
    InsufficientCredits: Answer(402, InsufficientCredits.code),
    NotFound: _NOTHING_HERE,
    Conflict: Answer(409, Conflict.code),
    IdempotencyKeyReused: Answer(422, IdempotencyKeyReused.code),
    TooManyActive: Answer(429, TooManyActive.code, headers=_RETRY),
    TooManyUploads: Answer(429, TooManyUploads.code),
    Overloaded: Answer(503, Overloaded.code, headers=_RETRY),
    QueueUnavailable: Answer(503, QueueUnavailable.code, UNAVAILABLE_MESSAGE, _RETRY),
    Unavailable: _UNAVAILABLE,
    TryAgain: _UNAVAILABLE,  # from the image storage
    400: _INVALID,
    404: _NOTHING_HERE,
    405: Answer(405, "METHOD_NOT_ALLOWED", "This path does not know this method"),
    413: Answer(413, "PAYLOAD_TOO_LARGE", "The body is too large"),
    415: Answer(415, "UNSUPPORTED_MEDIA_TYPE"),
    Exception: Answer(500, WearonError.code, "This is our fault; we have taken note of it"),
}
"""By the type of the error or, for the framework's own, by its HTTP status."""


def answer_to(error: Exception) -> Answer:
    """The row of the table for ``error``."""
    if isinstance(error, HTTPException):
        return ERRORS.get(_status(error), ERRORS[Exception])
    return next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)


def _status(error: HTTPException) -> int:
    """As the framework has it, but for a caller who hung up, and for an id that cannot exist."""
    if error.detail == "client disconnected prematurely":
        return 400
    return 404 if _complaint(error).get("source") == "path" else error.status_code


def _complaint(error: Exception) -> dict[str, Any]:
    """What Litestar found wrong first (its key, message and source); empty for other errors."""
    found = error.extra if isinstance(error, ValidationException) else None
    return found[0] if isinstance(found, list) and found else {}


def _own_words(error: Exception) -> str:
    complaint = _complaint(error)
    if complaint.get("source") == "body":
        return "body: is required"
    if complaint:
        return f"{complaint['key']}: {humanize(complaint['message'])}"
    return error.detail if isinstance(error, HTTPException) else str(error)


def respond(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorEnvelope]:
    """The response to ``error``."""
    status, headers, envelope = envelope_for(error)
    return Response(envelope, status_code=status, headers=headers)


def envelope_for(error: Exception) -> tuple[int, dict[str, str], ErrorEnvelope]:
    """The status, the headers and the envelope for ``error``; what nobody expected is logged, and
    answered without detail."""
    answer = answer_to(error)
    if answer.status == 500:
        log.error("unexpected_error", exc_info=error)
    message = answer.message or _own_words(error)[:MAX_MESSAGE_LENGTH]
    envelope = ErrorEnvelope(data=None, error=ErrorBody(code=answer.code, message=message))
    return answer.status, {**answer.headers, **_own_headers(error)}, envelope


def _own_headers(error: Exception) -> Mapping[str, str]:
    if isinstance(error, TooManyUploads):
        return {"Retry-After": str(error.retry_after_seconds)}
    return (error.headers if isinstance(error, HTTPException) else None) or {}
