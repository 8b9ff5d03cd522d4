"""The interfaces that the domain needs from adapters, one protocol per consumer: the database and
the queue. ``picture_ports`` has those for pictures.

If a method raises the ``Unavailable`` error that its port names, its outcome is unknown: it may
have taken effect. ``tests/contracts`` checks every sentence here against every adapter.
"""

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import Enum, auto
from typing import Protocol, TypeAlias
from uuid import UUID

from domain.callers import Caller
from domain.credits import Booked, CreditAccount, Discrepancy, LedgerEntry, Owner
from domain.errors import WearonError
from domain.operators import Operator
from domain.plans import RateUse
from domain.sessions import (
    AttemptFault,
    Blocked,
    Failure,
    Fault,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)
from domain.tasks import DeadLetter, GenerationTask, UnreadableTask

MAX_KEYS = 1_000
"""Keys that a listing shows."""


class TaskQueuePort(Protocol):
    """A first-in, first-out list of tasks. It may lose any of them at any time.

    Every method raises ``QueueUnavailable`` if the queue does not answer, whatever the cause.
    """

    async def push(self, task: GenerationTask) -> None:
        """Add a task at the end of the queue."""

    async def push_many(self, tasks: Sequence[GenerationTask]) -> None:
        """Add tasks at the end of the queue, all or none. The first one of ``tasks`` is popped
        first."""

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        """Add tasks at the front of the queue. The last one of ``tasks`` is popped first."""

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        """Take the next message, waiting for up to ``timeout_seconds``; None if none arrived.

        Never cancel it, let it time out: a cancelled pop can lose a task.
        """

    async def oldest(self) -> GenerationTask | UnreadableTask | None:
        """The message that the next pop would take, left in place; None if the queue is empty."""

    async def depth(self) -> int:
        """The number of messages in the queue."""

    async def bury(
        self, message: GenerationTask | UnreadableTask, *, reason: str, once: bool = False
    ) -> None:
        """Add an unreadable message, or a task that no worker can work on, to the dead-letter list.
        The list is bounded and keeps the newest.

        With ``once``, a message is dropped if one of the same session was buried so before and was
        not requeued since. The newest such sessions are remembered, as many as letters are kept."""


class QueueProbePort(Protocol):
    """Whether the queue takes tasks. Raises ``QueueUnavailable``."""

    async def check_writes(self) -> None:
        """Raises ``QueueUnavailable``, whose cause names what is wrong, if a push would be rejected
        now: a server may answer reads while it rejects every write. Changes nothing."""


class DeadLetterPort(Protocol):
    """The dead-letter list, for operators. Of a text longer than the adapter's limit, only the
    beginning is kept. Raises ``QueueUnavailable``."""

    async def dead(self, *, limit: int) -> list[DeadLetter]:
        """Dead letters, newest first."""

    async def get(self, letter_id: UUID) -> DeadLetter | None:
        """The letter; None if there is no such letter."""

    async def count(self) -> int:
        """How many dead letters there are."""

    async def requeue(self, letter_id: UUID) -> bool:
        """Move the raw text of a dead letter to the end of the queue. False if there is no such
        dead letter, or only the beginning of its text was kept."""

    async def discard(self, letter_id: UUID) -> bool:
        """Delete a dead letter. False if there is no such dead letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """The session that a request has, and the owner's balance.

    ``replayed`` means that an earlier request with the same idempotency key created the session;
    it is shown in its current state. A replay counts against no limit, so it has no ``rates``.
    ``pictures_remaining`` are those of the client token, if one was used.
    """

    session: GenerationSession
    credits_remaining: int
    replayed: bool = False
    rates: Sequence[RateUse] = ()
    pictures_remaining: int | None = None


CountEnded: TypeAlias = Callable[[SessionStatus, str, int], None]
"""Told of sessions that this process ended: their final status, their ``error_code`` as it is in
the row, empty if ``completed``, and their number. An adapter calls this when a write has returned,
whatever becomes of the caller. It must neither wait nor raise."""


def count_nothing(_status: SessionStatus, _code: str, _number: int) -> None:
    """For a process whose counts no reader sees."""


class SessionRepoPort(Protocol):
    """Submitting: creating sessions, and failing those that are still ``queued``. Each transition
    is atomic with its credit and guarded in its write. Raises ``DatabaseUnavailable``."""

    async def create(
        self, session: GenerationSession, *, max_active: int, signup_credits: int = 0
    ) -> Receipt:
        """Nothing -> ``queued``: debit the owner, add the ledger entry and the session, all or
        nothing. A shopper's session also takes a picture and a submission of its client token.

        A user whose account has no ledger entry is granted ``signup_credits`` before the debit, in
        the same transaction, as far as the day's cap allows.

        The database sets ``created_at``. If the owner already has a session with the same
        idempotency key, nothing changes, and the receipt is that session's, ``replayed``. Of many
        concurrent requests with one key, exactly one creates the session. Raises, and changes
        nothing:

        - ``IdempotencyKeyReused`` if the session with that key has another input;
        - ``Suspended``;
        - ``TooManyActive`` if the owner has ``max_active`` (at least 1) unfinished sessions, or the
          client token too many; concurrent requests count each other;
        - ``RateLimited`` if the rate of the owner's plan is used up, or if too many of the owner's
          or the shopper's sessions were refunded within an hour through the caller's own fault;
        - ``Unauthenticated`` if the client token has expired or was revoked, ``TokenUsedUp``;
        - ``InsufficientCredits``.

        A refund gives the credit and the token's picture back, but neither the rate nor the token's
        submission, unless the creation is undone.
        """

    async def create_many(
        self, sessions: Sequence[GenerationSession], *, max_active: int, signup_credits: int = 0
    ) -> Sequence[Receipt | WearonError | None]:
        """What ``create`` returns or raises for each of ``sessions``, in their order, as if they
        were created one after another. All are of one owner, and none is a shopper's. The last
        receipt has ``rates``; the others may have none.

        None if nothing was done for a session that needs a ``create`` of its own: its idempotency
        key is taken, also by an earlier one of ``sessions``; the user may be granted
        ``signup_credits``; or the database rejects one of ``sessions``, and so all of them.
        """

    async def find_replay(self, session: GenerationSession) -> Receipt | None:
        """The receipt of ``create`` if ``session`` would be a replay, else None. Changes nothing.
        Raises ``IdempotencyKeyReused``."""

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        """Record that the tasks of these sessions reached the queue. Returns how many sessions
        changed; only ``queued`` ones need it."""

    async def fail_queued(self, session_id: UUID, failure: Failure, *, undo: bool = False) -> bool:
        """``queued -> failed``, with the refund in the same transaction. False if the session is
        not ``queued``. It keeps its idempotency key.

        ``undo`` is for the caller of ``create`` alone: it frees the key. Then it is also False if
        the session is confirmed, because its key may have been answered to a replay."""

    async def undo_many(self, session_ids: Sequence[UUID], failure: Failure) -> Collection[UUID]:
        """What ``fail_queued`` with ``undo`` does, for each session. Returns those that failed."""

    async def cancel(self, session_id: UUID) -> GenerationSession | None:
        """``queued -> failed`` as CANCELLED, with the refund in the same transaction. Of a
        ``processing`` session the request is recorded: ``cancel_requested_at`` is the time of the
        first one. From then on it goes to ``completed``, or to ``failed`` as CANCELLED, with the
        refund, and never back to ``queued``: at any writer, and whatever else went wrong.

        Returns the session as it is then; None, and nothing changes, if it is final or unknown."""


class Renewal(Enum):
    """What a renewal tells the attempt that has the lease."""

    RENEWED = auto()
    CANCEL_REQUESTED = auto()
    """The lease is renewed as well: for the time that it takes to stop."""


class AttemptRepoPort(Protocol):
    """Working: a claim hands out an attempt number. Every later write carries it, and changes
    nothing unless that attempt is the current one (fencing).

    Each transition is atomic with its credit. Leases are measured on the database's clock.
    Raises ``DatabaseUnavailable``.
    """

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        """``queued -> processing`` with the next attempt number and a lease.

        None if the session does not exist or is not ``queued``.
        """

    async def renew(self, session_id: UUID, *, attempt: int, lease: timedelta) -> Renewal | None:
        """Extend the lease of this attempt, and tell whether its session is to be cancelled. None
        if the attempt is no longer the current one."""

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        """``processing -> completed`` if this attempt is the current one, else False. The session
        keeps the picture and its usage."""

    async def fail(
        self, session_id: UUID, failure: Failure, *, attempt: int, fault: Fault | None = None
    ) -> str | None:
        """``processing -> failed`` if this attempt is the current one, with the refund and the
        record of the ``fault`` in the same transaction. Returns the session's ``error_code``, which
        is CANCELLED if its cancellation was requested. Else None."""

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        """Record the provider's ``job``, of 1 to 200 characters, in place of an earlier one, if
        this attempt is the current one; else False. The session keeps it through every later
        transition, so that the next attempt can resume the job."""

    async def release(
        self, session_id: UUID, *, attempt: int, delay: timedelta, fault: Fault | None = None
    ) -> SessionStatus | None:
        """``processing -> queued`` if this attempt is the current one, or ``processing -> failed``
        with the refund if its cancellation was requested. Returns the new status; None if the
        attempt is not the current one. Recovery pushes a ``queued`` session again once ``delay``
        has passed; a claim may come earlier.

        A ``fault`` is recorded in the same transaction. The attempt is excused unless the session
        is to blame. If the provider is, ``failing_since`` keeps the time of the first such fault
        in a row; any other fault clears it; without a fault, it stays.
        """

    async def postpone(self, session_id: UUID, *, delay: timedelta) -> bool:
        """A ``queued`` session whose task was popped stays ``queued`` and uses no attempt; else
        False. Recovery pushes it again once ``delay`` has passed; a claim may come earlier."""


class RecoveryRepoPort(Protocol):
    """Recovery: bringing abandoned sessions to a final status. Works in batches of at most
    ``limit``, and in many processes at once. Raises ``DatabaseUnavailable``.

    A session whose change the database rejects costs the others of its batch nothing: it is added
    to ``blocked``, and the call leaves out those that are in there already. Without ``blocked``
    the whole batch fails with the database's error.
    """

    async def claim_overdue(
        self,
        *,
        created_before: datetime | None,
        again_after: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        """Claim ``queued`` sessions that are due to be pushed again, newest first.

        A session is due ``again_after`` its creation or its last claim here, or after the delay
        with which it was released. ``created_before`` leaves out younger sessions; None leaves out
        none. Each session goes to one caller only, until ``again_after`` has passed again.
        """

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        """``processing -> queued``, due at once, if the lease has expired, attempts are left and no
        cancellation was requested. The attempt counts, because the task may have killed its worker,
        and its fault is recorded. Returns the number of sessions.

        A session set to ``processing`` by an external consumer has no lease. It counts as expired
        ``external_timeout`` after that change, and the attempt counts.
        """

    async def fail_dead_leases(
        self,
        failure: Failure,
        *,
        max_attempts: int,
        external_timeout: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        """``processing -> failed`` with the refund, if the lease has expired and ``max_attempts``
        are spent, or the cancellation was requested; the last attempt's fault is recorded. Returns
        the failed sessions.
        """

    async def fail_expired(
        self, failure: Failure, *, older_than: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        """``queued -> failed`` with the refund, for sessions created more than ``older_than`` ago.
        Returns the number of sessions."""

    async def refund_missing(self, *, limit: int, blocked: Blocked = None) -> int:
        """Refund ``failed`` sessions that have no refund because an external consumer failed them.
        Returns the number of sessions."""

    async def claim_expired_images(
        self, *, older_than: timedelta, again_after: timedelta, limit: int, blocked: Blocked = None
    ) -> list[GenerationSession]:
        """Claim final sessions whose pictures are to be deleted. The oldest go first; the order
        within the result is not defined.

        These ended more than ``older_than`` ago and may have something in the picture storage:
        all but ``failed`` sessions without an attempt. An attempt may have saved a picture before
        an external consumer completed the session, or that one may share our storage.
        Each session goes to one caller only, until ``again_after`` has passed, and to none after
        ``mark_images_deleted``.
        """

    async def mark_images_deleted(
        self, session_ids: Sequence[UUID], *, blocked: Blocked = None
    ) -> int:
        """Record that the picture storage holds nothing of these final sessions any more, and
        forget their attempts' faults. Returns how many sessions changed."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """An owner's number of sessions by status."""

    queued: int = 0
    processing: int = 0
    completed: int = 0
    failed: int = 0

    @property
    def total(self) -> int:
        return self.queued + self.processing + self.completed + self.failed

    @property
    def active(self) -> int:
        return self.queued + self.processing


@dataclass(frozen=True, slots=True, kw_only=True)
class Position:
    """A position in a list, newest first: the last item of the previous page."""

    created_at: datetime
    id: UUID


MAX_COUNTED = 10_000
"""How many of one shopper's sessions are counted."""


class SessionReadPort(Protocol):
    """Reading sessions. An ``owner`` of None means the operator, who sees every session. With a
    ``shopper_id``, the owner is a store, and its other sessions are like another owner's.
    Raises ``DatabaseUnavailable``."""

    async def get(
        self, session_id: UUID, owner: Owner | None, *, shopper_id: str | None = None
    ) -> GenerationSession:
        """Raises ``NotFound`` for an unknown id, and the same for another owner's session."""

    async def is_known(self, session_id: UUID) -> bool:
        """Whether there is such a session, of whichever owner."""

    async def history(
        self,
        owner: Owner | None,
        *,
        status: SessionStatus | None,
        limit: int,
        after: Position | None,
        shopper_id: str | None = None,
    ) -> list[GenerationSession]:
        """Newest first, starting after the position ``after``."""

    async def stats(self, owner: Owner, *, shopper_id: str | None = None) -> SessionStats:
        """The owner's counts by status. Of a shopper, only the newest MAX_COUNTED sessions are
        counted."""

    async def queued_before(self, session: GenerationSession, *, limit: int) -> int:
        """The number of older ``queued`` sessions of all owners, counted up to ``limit``."""

    async def attempt_faults(self, session_id: UUID) -> list[AttemptFault]:
        """The session's failed attempts, oldest first, for operators."""


class CreditRepoPort(Protocol):
    """Accounts and their ledger. An owner without an account has a balance of 0.
    Raises ``DatabaseUnavailable``."""

    async def account(self, owner: Owner) -> CreditAccount:
        """Balance and totals."""

    async def ledger(self, owner: Owner, *, limit: int, before_id: int | None) -> list[LedgerEntry]:
        """Newest first, only entries older than ``before_id``."""

    async def grant(
        self,
        owner: Owner,
        amount: int,
        *,
        note: str,
        reference: str | None = None,
        by: Operator | None = None,
    ) -> Booked:
        """Add credits with their ledger entry. Creates the account if there is none.

        A ``reference`` is used once: if an earlier grant to the same owner over the same amount has
        it, nothing changes, and the result is that grant's, ``replayed``. Of many concurrent calls
        with one reference, exactly one adds credits. Raises ``IdempotencyKeyReused`` if any other
        entry has it.

        What an operator grants is in the audit log with the same commit; None is no operator."""

    async def adjust(
        self, owner: Owner, amount: int, *, note: str, reference: str | None, by: Operator
    ) -> Booked:
        """Take ``amount`` credits back, all or nothing, with their ledger entry and the entry of
        the audit log. Raises ``Conflict`` if the balance is smaller. A ``reference`` works as for
        ``grant``."""

    async def signups_today(self) -> int:
        """How many users were granted sign-up credits since midnight (UTC)."""

    async def audit(self, *, limit: int) -> list[Discrepancy]:
        """Check every balance against the ledger, every session's debit and refund, that every
        completed session has a picture, that every session in the ledger exists, and that every
        client token counts its sessions.

        Returns at most ``limit`` discrepancies; none means that the books balance.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A store's API key. Only its SHA-256 (hex) is kept, and its first characters, never the key
    itself."""

    id: UUID
    owner: Owner
    key_sha256: str
    label: str
    created_at: datetime
    prefix: str | None = None
    revoked_at: datetime | None = None


class ApiKeyRepoPort(Protocol):
    """API keys. A change by an operator is in the audit log with the same commit. Raises
    ``DatabaseUnavailable``."""

    async def caller_of(self, key_sha256: str) -> Caller | None:
        """Whom the key acts for, with the origins of its store; None if the key is unknown or
        revoked."""

    async def add(
        self, key: ApiKey, *, idempotency_key: str | None = None, by: Operator | None = None
    ) -> ApiKey:
        """Add a new key, and return it.

        If an earlier call with the same ``idempotency_key`` added a key of the same owner and
        label, that one is returned, and nothing changes. Of many concurrent calls, exactly one adds
        its key. Raises ``IdempotencyKeyReused`` if it added another one."""

    async def get(self, key_id: UUID) -> ApiKey | None:
        """The key; None if there is no such key."""

    async def all(self, owner: Owner | None, *, limit: int = MAX_KEYS) -> list[ApiKey]:
        """The keys of ``owner``, or of all owners, newest first, including revoked keys."""

    async def revoke(self, key_id: UUID, *, by: Operator | None = None) -> bool:
        """False if the key is unknown or already revoked."""
