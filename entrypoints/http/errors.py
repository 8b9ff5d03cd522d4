"""Error responses: one table, one handler."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Final

import structlog
from litestar import Request, Response
from litestar.exceptions import HTTPException, ValidationException

from domain.errors import (
    AgeVerificationRequired,
    BodyTooSlow,
    Conflict,
    DomainMismatch,
    Forbidden,
    IdempotencyKeyReused,
    InsufficientCredits,
    IntakePaused,
    InvalidApiKey,
    InvalidInput,
    LinkInUse,
    NotFound,
    Overloaded,
    QueueUnavailable,
    RateLimited,
    TooManyActive,
    TooManyUploads,
    Unauthenticated,
    Unavailable,
    Unconfirmed,
    UnknownStore,
    UploadTooLarge,
    WearonError,
)
from domain.submission import UNAVAILABLE_MESSAGE
from entrypoints.http.inputs import humanize
from entrypoints.http.rates import as_text, rate_headers
from entrypoints.http.schemas import ErrorBody, ErrorEnvelope

MAX_MESSAGE_LENGTH = 300

log = structlog.get_logger(__name__)


@dataclass(frozen=True, slots=True)
class Answer:
    """The response to one kind of error. ``message`` None means the error's own message. The code
    of a domain error is the domain's."""

    status: int
    code: str
    message: str | None = None
    headers: Mapping[str, str] = field(default_factory=dict)


_BEARER = {"WWW-Authenticate": "Bearer"}
_RETRY = {"Retry-After": "5"}
_RETRY_LATER = {"Retry-After": "30"}
_INVALID = Answer(400, InvalidInput.code)
_TOO_LARGE = Answer(413, UploadTooLarge.code, "The request body is too large")
_NOT_FOUND = Answer(404, NotFound.code, "Not found")
_UNAVAILABLE = Answer(
    503, Unavailable.code, "A dependency is temporarily unavailable; try again later", _RETRY
)

ERRORS: Final[Mapping[type[Exception] | int, Answer]] = {
    InvalidInput: _INVALID,
    BodyTooSlow: _INVALID,
    Unauthenticated: Answer(401, Unauthenticated.code, headers=_BEARER),
    InvalidApiKey: Answer(401, InvalidApiKey.code, headers=_BEARER),
    InsufficientCredits: Answer(402, InsufficientCredits.code),
    Forbidden: Answer(403, Forbidden.code),
    DomainMismatch: Answer(403, DomainMismatch.code),
    AgeVerificationRequired: Answer(403, AgeVerificationRequired.code),
    NotFound: _NOT_FOUND,
    UnknownStore: Answer(404, NotFound.code),
    Conflict: Answer(409, Conflict.code),
    Unconfirmed: Answer(
        409, Unconfirmed.code, "An earlier request with the same key is not settled yet", _RETRY
    ),
    LinkInUse: Answer(409, LinkInUse.code, headers=_RETRY),
    IdempotencyKeyReused: Answer(422, IdempotencyKeyReused.code),
    TooManyActive: Answer(429, TooManyActive.code, headers=_RETRY),
    TooManyUploads: Answer(429, TooManyUploads.code),
    RateLimited: Answer(429, RateLimited.code),
    Overloaded: Answer(503, Overloaded.code, headers=_RETRY),
    IntakePaused: Answer(503, IntakePaused.code, headers=_RETRY_LATER),
    QueueUnavailable: Answer(503, QueueUnavailable.code, UNAVAILABLE_MESSAGE, _RETRY),
    Unavailable: _UNAVAILABLE,
    400: _INVALID,
    404: _NOT_FOUND,
    405: Answer(405, "METHOD_NOT_ALLOWED", "Method not allowed"),
    UploadTooLarge: _TOO_LARGE,
    413: _TOO_LARGE,
    415: Answer(415, "UNSUPPORTED_MEDIA_TYPE"),
    Exception: Answer(500, WearonError.code, "Internal server error; it has been logged"),
}
"""By the error's type or, for the framework's own errors, by HTTP status."""


def answer_to(error: Exception) -> Answer:
    """The table's row for ``error``."""
    if isinstance(error, HTTPException):
        return ERRORS.get(_status(error), ERRORS[Exception])
    return next(ERRORS[kind] for kind in type(error).__mro__ if kind in ERRORS)


def _status(error: HTTPException) -> int:
    """The framework's status, with two exceptions: 400 for a client that disconnected, and 404 for
    a malformed id in the path."""
    if error.detail == "client disconnected prematurely":
        return 400
    return 404 if _first_violation(error).get("source") == "path" else error.status_code


def _first_violation(error: Exception) -> dict[str, Any]:
    """Litestar's first validation problem (key, message, source); empty for other errors."""
    found = error.extra if isinstance(error, ValidationException) else None
    return found[0] if isinstance(found, list) and found else {}


def _message(error: Exception) -> str:
    violation = _first_violation(error)
    if violation.get("source") == "body":
        return "body: is required"
    if violation:
        return f"{violation['key']}: {humanize(violation['message'])}"
    return error.detail if isinstance(error, HTTPException) else str(error)


def respond(_: Request[Any, Any, Any], error: Exception) -> Response[ErrorEnvelope]:
    """The response to ``error``."""
    status, headers, envelope = envelope_for(error)
    return Response(envelope, status_code=status, headers=headers)


def envelope_for(error: Exception) -> tuple[int, dict[str, str], ErrorEnvelope]:
    """Status, headers and envelope for ``error``. An unexpected error is logged, and so is the
    cause of an unavailable dependency; both are answered without details."""
    answer = answer_to(error)
    if isinstance(error, Unavailable):
        log.warning("unavailable", cause=str(error.cause))
    if answer.status == 500:
        log.error("unexpected_error", exc_info=error)
    message = answer.message or _message(error)[:MAX_MESSAGE_LENGTH]
    envelope = ErrorEnvelope(data=None, error=ErrorBody(code=answer.code, message=message))
    return answer.status, {**answer.headers, **_headers(error)}, envelope


def _headers(error: Exception) -> Mapping[str, str]:
    if isinstance(error, RateLimited):
        return {"Retry-After": str(error.retry_after_seconds), **as_text(rate_headers(error.rates))}
    if isinstance(error, TooManyUploads):
        return {"Retry-After": str(error.retry_after_seconds)}
    return (error.headers if isinstance(error, HTTPException) else None) or {}
