"""Every expected failure. Each has a stable ``code``; anything else that is raised is a bug.

::

    WearonError
    ├── InvalidInput, InsufficientCredits, NotFound, Conflict, IdempotencyKeyReused,
    │   TooManyActive, TooManyUploads, Unauthenticated: InvalidApiKey            the caller's
    ├── Overloaded, Unavailable: QueueUnavailable, DatabaseUnavailable,
    │   StorageUnavailable                                                       ours, passing
    ├── WorkFailed: TryAgain, Refused, ProviderMisconfigured           one attempt at a picture
    ├── ClaimFailed                                                   ours, until somebody acts
    ├── Superseded                                              an attempt that may not go on
    └── IllegalTransition, InvalidTask                                 a rule of the domain broken
"""

from typing import ClassVar


class WearonError(Exception):
    """Root of the tree. ``str(error)`` is fit for the caller's eyes."""

    code: ClassVar[str] = "INTERNAL_ERROR"


class InvalidInput(WearonError):
    """A value that a caller sent cannot be accepted; ``field`` names it."""

    code = "VALIDATION_ERROR"

    def __init__(self, field: str, problem: str) -> None:
        super().__init__(f"{field}: {problem}")
        self.field = field


class InsufficientCredits(WearonError):
    """The balance does not cover the cost; nothing was charged or created."""

    code = "INSUFFICIENT_CREDITS"

    def __init__(self, *, required: int) -> None:
        super().__init__(f"This costs {required} credit(s), which the balance does not cover")
        self.required = required


class NotFound(WearonError):
    """No such thing, or it is somebody else's: the two are not told apart."""

    code = "NOT_FOUND"


class Conflict(WearonError):
    """The thing is not in a state that allows this."""

    code = "CONFLICT"


class IdempotencyKeyReused(WearonError):
    """The idempotency key belongs to an earlier request that asked for something else."""

    code = "IDEMPOTENCY_KEY_REUSED"


class TooManyActive(WearonError):
    """The owner has as many unfinished sessions as it may have; nothing was charged."""

    code = "RATE_LIMIT_EXCEEDED"


class TooManyUploads(WearonError):
    """The owner has uploaded as many pictures today as it may; the next day begins in
    ``retry_after_seconds``."""

    code = "RATE_LIMIT_EXCEEDED"

    def __init__(self, message: str, *, retry_after_seconds: int) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds


class Overloaded(WearonError):
    """More work waits than we take in; nothing was charged."""

    code = "SERVICE_UNAVAILABLE"


class Unauthenticated(WearonError):
    """The caller did not prove who it is; ``code`` says which kind of proof was bad."""

    code = "INVALID_TOKEN"


class InvalidApiKey(Unauthenticated):
    """The API key is unknown, revoked or malformed."""

    code = "INVALID_API_KEY"


class Unavailable(WearonError):
    """Something that we depend on does not answer; trying again later may work.

    The outcome of the call is unknown: it may have taken effect.
    """

    code = "SERVICE_UNAVAILABLE"


class QueueUnavailable(Unavailable):
    """The task queue failed or did not answer in time.

    ``refused`` says that the call certainly had no effect: the queue said no, or was not reached.
    """

    def __init__(self, message: str, *, refused: bool = False) -> None:
        super().__init__(message)
        self.refused = refused


class DatabaseUnavailable(Unavailable):
    """The store failed or did not answer in time."""


class StorageUnavailable(Unavailable):
    """The picture storage failed or did not answer in time, outside of an attempt at a picture."""


class ClaimFailed(WearonError):
    """The store answered a claim with an error that does not pass by itself, such as a missing
    privilege; ``__cause__`` is that error. Nothing was begun, and its task is back in the queue, or
    recovery pushes it again."""


class WorkFailed(WearonError):
    """An attempt to make a picture failed. ``str(error)`` may be shown to an end user."""

    code = "GENERATION_FAILED"

    def __init__(self, message: str, *, code: str | None = None) -> None:
        super().__init__(message)
        self.reason = code or self.code
        """The session's ``error_code`` if this ends it."""


class TryAgain(WorkFailed):
    """A passing fault: another attempt may succeed, not before ``retry_after_seconds``."""

    def __init__(
        self, message: str, *, code: str | None = None, retry_after_seconds: float = 0.0
    ) -> None:
        super().__init__(message, code=code)
        self.retry_after_seconds = retry_after_seconds


class Refused(WorkFailed):
    """No attempt can succeed: the session fails now, with its refund."""


class ProviderMisconfigured(WorkFailed):
    """Whatever is asked for, the generator turns us away until an operator mends a key, a quota
    or the name of a model: the session is not to blame, and waits. ``detail`` is for the log."""

    def __init__(self, *, detail: str) -> None:
        super().__init__("Pictures cannot be made at the moment")
        self.detail = detail


class Superseded(WearonError):
    """The attempt is not the session's current one: whatever is done for it now is done in vain."""


class IllegalTransition(WearonError):
    """A session was asked for a change of status that ``SessionStatus`` does not have."""


class InvalidTask(WearonError):
    """A task breaks the contract of the queue's payload; ``str(error)`` says how."""

    code = "INVALID_TASK"
