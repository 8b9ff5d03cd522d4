"""Every expected failure. Each has a stable ``code``; any other exception is a bug.

::

    WearonError
    ├── InvalidInput, InsufficientCredits, NotFound, Conflict: LinkInUse, IdempotencyKeyReused,
    │   BodyTooSlow, UploadTooLarge, TooManyActive, TooManyUploads,
    │   Unauthenticated: InvalidApiKey                                    the caller's fault
    ├── Overloaded, Unavailable: QueueUnavailable, DatabaseUnavailable,
    │   StorageUnavailable                                                our fault, temporary
    ├── WorkFailed: TryAgain: InputUnavailable, Refused,
    │   ProviderMisconfigured                                             one attempt failed
    ├── NotStarted                                                        the provider is busy
    ├── ClaimFailed                                                       our fault, permanent
    ├── Superseded                                                        an attempt lost its lease
    └── IllegalTransition, InvalidTask                                    a domain rule was broken
"""

from typing import ClassVar


class WearonError(Exception):
    """Root of the tree. ``str(error)`` may be shown to the caller."""

    code: ClassVar[str] = "INTERNAL_ERROR"


class InvalidInput(WearonError):
    """The caller sent an invalid value in ``field``."""

    code = "VALIDATION_ERROR"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class BodyTooSlow(WearonError):
    """A body did not arrive in time. Another try may succeed."""

    code = InvalidInput.code


class InsufficientCredits(WearonError):
    """The balance does not cover the cost; nothing was charged or created."""

    code = "INSUFFICIENT_CREDITS"

    def __init__(self, *, required: int) -> None:
        super().__init__(f"This costs {required} credit(s), which the balance does not cover")
        self.required = required


class NotFound(WearonError):
    """It does not exist or belongs to another owner. Callers cannot distinguish the two."""

    code = "NOT_FOUND"


class Conflict(WearonError):
    """The resource is not in a state that allows the operation."""

    code = "CONFLICT"


class LinkInUse(Conflict):
    """The upload link is receiving a picture at the moment."""


class IdempotencyKeyReused(WearonError):
    """The idempotency key belongs to an earlier request with another input."""

    code = "IDEMPOTENCY_KEY_REUSED"


class TooManyActive(WearonError):
    """The owner has reached its limit of unfinished sessions; nothing was charged."""

    code = "RATE_LIMIT_EXCEEDED"


class UploadTooLarge(WearonError):
    """The body of an upload exceeds the limit."""

    code = "PAYLOAD_TOO_LARGE"


class TooManyUploads(WearonError):
    """The owner has reached its daily upload quota, whose next day begins in
    ``retry_after_seconds``, or has too many uploads in progress."""

    code = "RATE_LIMIT_EXCEEDED"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(WearonError):
    """The queue is full; nothing was charged."""

    code = "SERVICE_UNAVAILABLE"


class Unauthenticated(WearonError):
    """The credential is missing or invalid; ``code`` names its kind."""

    code = "INVALID_TOKEN"


class InvalidApiKey(Unauthenticated):
    """The API key is unknown, revoked or malformed."""

    code = "INVALID_API_KEY"


class Unavailable(WearonError):
    """A dependency does not answer. A later retry may succeed.

    The outcome of the call is unknown: it may have taken effect.
    """

    code = "SERVICE_UNAVAILABLE"


class QueueUnavailable(Unavailable):
    """The task queue failed or did not answer in time.

    ``refused`` means that the call certainly had no effect: Redis rejected the command, or was not
    reached.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class DatabaseUnavailable(Unavailable):
    """The database failed or did not answer in time."""


class StorageUnavailable(Unavailable):
    """The picture storage failed or did not answer in time, outside an attempt."""


class ClaimFailed(WearonError):
    """The database rejected a claim with an error that needs an operator, such as a missing
    privilege; ``__cause__`` is that error. No work was started. The task is back in the queue, or
    recovery pushes it again."""


class WorkFailed(WearonError):
    """An attempt failed to make its picture. ``str(error)`` may be shown to an end user."""

    code = "GENERATION_FAILED"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.reason = code or self.code
        """The ``error_code`` of the session if this error ends it."""


class TryAgain(WorkFailed):
    """A temporary fault: another attempt may succeed after ``retry_after_seconds``."""

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_seconds: float = 0.0
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class InputUnavailable(TryAgain):
    """The caller's own host failed; at most one more attempt, behind the others."""


class Refused(WorkFailed):
    """No attempt can succeed: the session fails at once, with its refund."""


class ProviderMisconfigured(WorkFailed):
    """The generator rejects every request until an operator fixes the key, the quota or the name of
    the model. The session is not at fault and stays queued. ``detail`` is for the log."""

    def __init__(self, *, detail: str) -> None:
        super().__init__("Pictures cannot be made at the moment")
        self.detail = detail


class NotStarted(WearonError):
    """The provider's limit allowed no start in time, or the worker stops. The session is not at
    fault and goes back without using an attempt."""


class Superseded(WearonError):
    """The attempt is no longer the session's current one: its results would be discarded."""


class IllegalTransition(WearonError):
    """The session's status does not allow the transition, or a write would change what was paid
    for."""


class InvalidTask(WearonError):
    """A task breaks the contract of the payload; ``str(error)`` says how."""

    code = "INVALID_TASK"
