"""Every expected failure. Each has a stable ``code``; any other exception is a bug.

::

    WearonError
    ├── InvalidInput, InsufficientCredits, NotFound: UnknownStore;
    │   Conflict: Unconfirmed, TruncatedLetter, LinkInUse;
    │   IdempotencyKeyReused, BodyTooSlow, UploadTooLarge,
    │   TooManyActive: TooManyTokens, TooManyStreams; TooManyUploads, RateLimited,
    │   Unauthenticated: InvalidApiKey, Forbidden: DomainMismatch,
    │   TokenUsedUp, Suspended, AgeVerificationRequired                     the caller's fault
    ├── Overloaded, IntakePaused,
    │   Unavailable: QueueUnavailable, StorageUnavailable, WorkerExhausted,
    │   UserKeysUnavailable,
    │   DatabaseUnavailable: SchemaMismatch                               our fault, temporary
    ├── WorkFailed: Refused, ProviderMisconfigured,
    │   TryAgain: InputUnavailable, ProviderUnavailable                   one attempt failed
    ├── NotStarted                                                        the provider is busy
    ├── NotDelivered                                                      an endpoint is silent
    ├── ClaimFailed                                                       our fault, permanent
    ├── Superseded                                                        an attempt lost its lease
    ├── CancelRequested                                                   the caller ends an attempt
    └── IllegalTransition, InvalidTask                                    a domain rule was broken
"""

from collections.abc import Sequence
from typing import ClassVar

from domain.causes import Cause, CauseKind
from domain.plans import RateUse


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


class UnknownStore(NotFound):
    """No store has the id that an operator gave; ``similar`` are those that may be meant."""

    def __init__(self, store_id: str, *, similar: Sequence[str]) -> None:
        hint = f"; similar: {', '.join(similar)}" if similar else ""
        super().__init__(f"No store has the id {store_id}{hint}")


class Conflict(WearonError):
    """The resource is not in a state that allows the operation."""

    code = "CONFLICT"


class Unconfirmed(Conflict):
    """It is not known yet whether the first request with this idempotency key will stand. Nothing
    was charged twice; repeat the request with the same key later."""


class TruncatedLetter(Conflict):
    """Only the beginning of the dead letter's text was kept, so it is no task."""


class LinkInUse(Conflict):
    """The upload link is receiving a picture at the moment."""


class IdempotencyKeyReused(WearonError):
    """The idempotency key belongs to an earlier request with another input."""

    code = "IDEMPOTENCY_KEY_REUSED"


class TooManyActive(WearonError):
    """The owner has reached its limit of unfinished sessions; nothing was charged."""

    code = "TOO_MANY_ACTIVE"


class TooManyTokens(TooManyActive):
    """The shopper has reached its limit of live client tokens."""


class TooManyStreams(TooManyActive):
    """Too many clients of the caller wait for new states already."""


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


class RateLimited(WearonError):
    """The caller has used up a rate, which allows the next call in ``retry_after_seconds``; nothing
    was charged. ``rates`` are the rates of this call, as far as they are known."""

    code = "RATE_LIMIT_EXCEEDED"

    def __init__(
        self, message: str, *, retry_after_seconds: int, rates: Sequence[RateUse] = ()
    ) -> None:
        super().__init__(message)
        self.retry_after_seconds = retry_after_seconds
        self.rates = rates


class Overloaded(WearonError):
    """The queue is full; nothing was charged."""

    code = "SERVICE_UNAVAILABLE"


class IntakePaused(WearonError):
    """An operator paused the intake of new requests; nothing was charged."""

    code = "SERVICE_UNAVAILABLE"


class Unauthenticated(WearonError):
    """The credential is missing or invalid; ``code`` names its kind."""

    code = "INVALID_TOKEN"


class InvalidApiKey(Unauthenticated):
    """The API key is unknown, revoked or malformed."""

    code = "INVALID_API_KEY"


class Forbidden(WearonError):
    """The credential is valid, but not for this call; nothing was done."""

    code = "FORBIDDEN"


class TokenUsedUp(Forbidden):
    """The client token allows no further pictures, or no further submissions."""


class Suspended(Forbidden):
    """An operator suspended the account: it gets nothing new."""


class DomainMismatch(Forbidden):
    """The credential may not be used from the web page that sent the request."""

    code = "DOMAIN_MISMATCH"


class AgeVerificationRequired(Forbidden):
    """The request must say that the person's age was verified; nothing was charged."""

    code = "AGE_VERIFICATION_REQUIRED"


class Unavailable(WearonError):
    """A dependency does not answer. A later retry may succeed.

    The outcome of the call is unknown: it may have taken effect. ``cause`` is for the log; by
    default it repeats the message.
    """

    code = "SERVICE_UNAVAILABLE"
    kind: ClassVar[CauseKind] = CauseKind.BUG

    def __init__(self, message: str, *, cause: Cause | None = None) -> None:
        super().__init__(message)
        self.cause = cause or Cause(self.kind, message)


class QueueUnavailable(Unavailable):
    """The task queue failed or did not answer in time.

    ``refused`` means that the call certainly had no effect: Redis rejected the command, or was not
    reached.
    """

    kind = CauseKind.QUEUE

    def __init__(self, message: str, *, refused: bool = False, cause: Cause | None = None) -> None:
        super().__init__(message, cause=cause)
        self.refused = refused


class DatabaseUnavailable(Unavailable):
    """The database failed or did not answer in time."""

    kind = CauseKind.DATABASE


class SchemaMismatch(DatabaseUnavailable):
    """The database's schema is older or newer than this version of the service, or missing;
    ``str(error)`` says what to do."""


class StorageUnavailable(Unavailable):
    """The picture storage failed, is full or did not answer in time. Never a session's fault."""

    kind = CauseKind.STORAGE


class WorkerExhausted(Unavailable):
    """This worker lacks descriptors, memory or processes. Never a session's fault."""

    kind = CauseKind.WORKER


class UserKeysUnavailable(Unavailable):
    """The keys that sign users' tokens could not be fetched, so a token can be neither accepted nor
    rejected."""

    kind = CauseKind.USER_KEYS


class NotDelivered(WearonError):
    """An endpoint gave no response: its name, the connection or the time ran out. ``detail`` says
    which, in a word or two, and may be shown to its owner."""

    def __init__(self, detail: str) -> None:
        super().__init__(f"The endpoint gave no response: {detail}")
        self.detail = detail


class ClaimFailed(WearonError):
    """The database rejected a claim with an error that needs an operator, such as a missing
    privilege; ``__cause__`` is that error. No work was started. The task is back in the queue, or
    recovery pushes it again."""


class WorkFailed(WearonError):
    """An attempt failed to make its picture. ``str(error)`` may be shown to an end user; ``cause``
    is for logs and operators, and by default repeats the message."""

    code = "GENERATION_FAILED"
    kind: ClassVar[CauseKind] = CauseKind.PROVIDER

    def __init__(
        self, message: str, *, code: str | None = None, cause: Cause | None = None
    ) -> None:
        super().__init__(message)
        self.reason = code or self.code
        """The ``error_code`` of the session if this error ends it."""
        self.cause = cause or Cause(self.kind, message)


class TryAgain(WorkFailed):
    """A temporary fault: another attempt may succeed after ``retry_after_seconds``."""

    def __init__(
        self,
        message: str,
        *,
        code: str | None = None,
        retry_after_seconds: float = 0.0,
        cause: Cause | None = None,
    ) -> None:
        super().__init__(message, code=code, cause=cause)
        self.retry_after_seconds = retry_after_seconds


class InputUnavailable(TryAgain):
    """The caller's own host failed: at most one more attempt, behind other sessions."""

    code = "IMAGE_UNREACHABLE"
    kind = CauseKind.INPUT


class ProviderUnavailable(TryAgain):
    """The provider is busy or broken (429, 5xx, network). No session is at fault: more attempts
    follow for minutes, and spend none of the session's."""


class Refused(WorkFailed):
    """No attempt can succeed: the session fails at once, with its refund."""

    kind = CauseKind.INPUT


class ProviderMisconfigured(WorkFailed):
    """The generator rejects every request until an operator fixes the key, the quota or the name of
    the model. The session is not at fault and stays queued. ``detail`` is for the log."""

    def __init__(self, *, detail: str) -> None:
        super().__init__(
            "Pictures cannot be made at the moment", cause=Cause(CauseKind.PROVIDER, detail)
        )


class NotStarted(WearonError):
    """The provider's limit allowed no start in time, or the worker stops. The session is not at
    fault and goes back without using an attempt."""


class Superseded(WearonError):
    """The attempt is no longer the session's current one: its results would be discarded."""


class CancelRequested(WearonError):
    """The caller asked to cancel the session: its attempt stops."""


class IllegalTransition(WearonError):
    """The session's status does not allow the transition, or a write would change what was paid
    for."""


class InvalidTask(WearonError):
    """A task breaks the contract of the payload; ``str(error)`` says how."""

    code = "INVALID_TASK"
