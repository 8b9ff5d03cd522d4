"""What the domain needs from the outside, one protocol per consumer's need.

A method may raise the ``Unavailable`` error that its port names, and then its outcome is unknown:
it may have taken effect. ``tests/contracts`` holds each sentence here against every adapter, except
for fetchers and generators: what can go wrong there differs with whom they ask, so each has tests
of its own in ``tests/adapters``.
"""

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from domain.credits import CreditAccount, Discrepancy, LedgerEntry, Owner
from domain.sessions import Failure, GenerationSession, SessionStatus, StoredPicture, Usage
from domain.tasks import DeadLetter, GenerationTask, UnreadableTask


class TaskQueuePort(Protocol):
    """A first-in, first-out list of tasks that may lose anything at any time.

    Every method raises ``QueueUnavailable`` when the queue does not answer, whatever the cause.
    """

    async def push(self, task: GenerationTask) -> None:
        """Add a task behind all others."""

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        """Add tasks before all others. The last one of ``tasks`` is popped first."""

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        """Take the next message, waiting for one up to ``timeout_seconds``; None if none came.

        Must be left to time out, never cancelled: a cancelled pop can swallow a task.
        """

    async def oldest(self) -> GenerationTask | UnreadableTask | None:
        """The message that the next pop would take, left in place; None if there is none."""

    async def depth(self) -> int:
        """How many messages wait."""

    async def bury(self, message: GenerationTask | UnreadableTask, *, reason: str) -> None:
        """Keep a message that nobody can read, or a task that killed its workers, in the dead
        list. It keeps a bounded number, the newest."""


class DeadLetterPort(Protocol):
    """The dead-letter list, for operators. Raises ``QueueUnavailable``."""

    async def dead(self, *, limit: int) -> list[DeadLetter]:
        """Dead letters, newest first."""

    async def get(self, letter_id: UUID) -> DeadLetter | None:
        """The letter; None if there is no such letter."""

    async def count(self) -> int:
        """How many dead letters there are."""

    async def requeue(self, letter_id: UUID) -> bool:
        """Move the raw text of a letter behind all tasks. False if there is no such letter."""

    async def discard(self, letter_id: UUID) -> bool:
        """Delete a letter. False if there is no such letter."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Receipt:
    """What ``create`` did: the session as stored, and the credits that the owner has left.

    ``replayed`` says that the session is an earlier one, as it is now: its owner sent the same
    request with the same idempotency key before.
    """

    session: GenerationSession
    credits_remaining: int
    replayed: bool = False


class SessionRepoPort(Protocol):
    """Creating sessions, and ending those that still wait: each transition is atomic with its
    credit and guarded in its write. Raises ``DatabaseUnavailable``."""

    async def create(self, session: GenerationSession, *, max_active: int) -> Receipt:
        """Nothing -> ``queued``: debit the owner, add the ledger entry and the session, or none.

        The store sets ``created_at``. Where the owner has a session with the same idempotency key
        already, nothing changes and the receipt is that session's, ``replayed``; however many
        arrive at once, one of them creates it. Raises, and changes nothing:
        ``IdempotencyKeyReused`` if that session was asked for something else, ``TooManyActive``
        if the owner has ``max_active`` sessions that are not final, those that arrive at once
        among them, ``InsufficientCredits``.
        """

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        """Note that the tasks of these sessions reached the queue. Returns how many were noted;
        sessions that are no longer ``queued`` do not need it."""

    async def fail_queued(self, session_id: UUID, failure: Failure) -> bool:
        """``queued -> failed``, with the refund in the same transaction. False if the session is
        not ``queued``."""


class AttemptRepoPort(Protocol):
    """Working on sessions: a claim hands out an attempt number, and every later write carries it
    and changes nothing unless that attempt is the current one (fencing).

    Each transition is atomic with its credit. Leases are measured on the database's clock.
    Raises ``DatabaseUnavailable``.
    """

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        """``queued -> processing`` with the next attempt number and a lease.

        None if the session does not exist or is not ``queued``: then there is nothing to do.
        """

    async def renew(self, session_id: UUID, *, attempt: int, lease: timedelta) -> bool:
        """Extend the lease of this attempt. False if the attempt is no longer the current one."""

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        """``processing -> completed`` if this attempt is the current one, else False. The session
        keeps what the picture took."""

    async def fail(self, session_id: UUID, failure: Failure, *, attempt: int) -> bool:
        """``processing -> failed`` if this attempt is the current one, with the refund in the same
        transaction. Else False."""

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        """Record the provider's ``job``, of 1 to 200 characters, in place of an earlier one, if
        this attempt is the current one; else False. The session keeps it through every later
        transition, so that the next attempt can resume the job."""

    async def release(self, session_id: UUID, *, attempt: int, delay: timedelta) -> bool:
        """``processing -> queued`` if this attempt is the current one, else False. Recovery
        pushes the session again once ``delay`` has passed, unless somebody did before."""


class RecoveryRepoPort(Protocol):
    """What brings sessions that nobody works on to their end. Batches of at most ``limit``,
    safe to run in many processes at once. Raises ``DatabaseUnavailable``."""

    async def claim_overdue(
        self, *, created_before: datetime | None, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        """Sessions ``queued`` that are due to be pushed again, newest first.

        Due is what was created (or returned here) at least ``again_after`` ago, or released with
        a delay that has passed; and, unless None, created before ``created_before``. Each one is
        returned to one caller only, until ``again_after`` has passed once more.
        """

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> int:
        """``processing -> queued``, due at once, where the lease is over and attempts are left.

        A session set to ``processing`` by a consumer that is not ours has no lease: its lease
        counts as over once ``external_timeout`` has passed since, and that spends an attempt.
        """

    async def fail_dead_leases(
        self, failure: Failure, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> list[GenerationSession]:
        """``processing -> failed`` with refund, where the lease is over and attempts are spent.
        Returns the sessions that it failed."""

    async def fail_expired(self, failure: Failure, *, older_than: timedelta, limit: int) -> int:
        """``queued -> failed`` with refund, for sessions created more than ``older_than`` ago."""

    async def refund_missing(self, *, limit: int) -> int:
        """Refund ``failed`` sessions without a refund: a consumer that is not ours wrote them."""

    async def claim_expired_images(
        self, *, older_than: timedelta, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        """Final sessions whose pictures are to be deleted, in any order, the oldest taken first.

        Those that ended more than ``older_than`` ago and may have something in the image storage:
        ``completed`` ones with an picture, and ``failed`` ones that were ever attempted. Each one
        is returned to one caller only, until ``again_after`` has passed, and never after
        ``mark_images_deleted``.
        """

    async def mark_images_deleted(self, session_ids: Sequence[UUID]) -> int:
        """Note on final sessions that the image storage holds nothing of them any more. Returns
        how many were noted now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionStats:
    """How many sessions an owner has, by status."""

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
    """A place in a listing, newest first: the last item that was seen."""

    created_at: datetime
    id: UUID


class SessionReadPort(Protocol):
    """Sessions as their owner sees them; an ``owner`` of None is the operator, who sees all.
    Raises ``DatabaseUnavailable``."""

    async def get(self, session_id: UUID, owner: Owner | None) -> GenerationSession:
        """Raises ``NotFound`` for an unknown id and for another owner's, without distinction."""

    async def history(
        self,
        owner: Owner | None,
        *,
        status: SessionStatus | None,
        limit: int,
        after: Position | None,
    ) -> list[GenerationSession]:
        """Newest first, beginning behind ``after``."""

    async def stats(self, owner: Owner) -> SessionStats:
        """Counts by status."""

    async def queued_before(self, session: GenerationSession, *, limit: int) -> int:
        """How many ``queued`` sessions of anybody are older than this one, counted to ``limit``."""


class CreditRepoPort(Protocol):
    """Accounts and their ledger. An owner without an account has a balance of 0.
    Raises ``DatabaseUnavailable``."""

    async def account(self, owner: Owner) -> CreditAccount:
        """Balance and totals."""

    async def ledger(self, owner: Owner, *, limit: int, before_id: int | None) -> list[LedgerEntry]:
        """Newest first, beginning behind ``before_id``."""

    async def grant(self, owner: Owner, amount: int, *, note: str) -> CreditAccount:
        """Add credits and their ledger entry; makes the account if there is none."""

    async def audit(self, *, limit: int) -> list[Discrepancy]:
        """Recompute every balance from the ledger, and every session's debit and refund, and look
        for what was paid for and completed without a picture.

        Returns what is off, at most ``limit``; an empty list means that the books are right.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class ApiKey:
    """A store's key, as we keep it: the SHA-256 of the key (hex), never the key."""

    id: UUID
    owner: Owner
    key_sha256: str
    label: str
    created_at: datetime
    revoked_at: datetime | None = None


class ApiKeyRepoPort(Protocol):
    """API keys. Raises ``DatabaseUnavailable``."""

    async def owner_of(self, key_sha256: str) -> Owner | None:
        """The owner of a key that is not revoked; None if there is no such key."""

    async def add(self, key: ApiKey) -> None:
        """Keep a new key."""

    async def all(self, owner: Owner | None) -> list[ApiKey]:
        """The keys of ``owner`` or of everybody, newest first, revoked ones too."""

    async def revoke(self, key_id: UUID) -> bool:
        """False if there is no such key or it was revoked before."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """An image's bytes in the format that ``media_type`` names, as found by looking at them."""

    data: bytes
    media_type: str


class PictureFetcherPort(Protocol):
    """Gets the pictures that callers link to, and trusts neither the link nor the bytes."""

    async def fetch(self, url: str, owner: Owner) -> Picture:
        """The picture that ``owner`` links to. Raises ``Refused`` (a forbidden address, not an
        image, too large, gone) or ``TryAgain`` (the other side is slow, broken or busy)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class PictureRequest:
    """What to draw: the input pictures in the contract's order, and the prompt.

    ``instead_of`` is the job that was noted before and came to nothing, if there was one: with the
    session it names this request for a picture, so that a provider can tell a repetition of it.
    """

    session_id: UUID
    prompt: str
    images: tuple[Picture, ...]
    instead_of: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Generated:
    """The picture that was made and what that took, where the generator knows."""

    picture: Picture
    usage: Usage | None = None


RecordJob = Callable[[str], Awaitable[None]]
"""Keeps the name of a job with the session that it is for. May be called again with the same name,
which shows that the attempt is still the current one. Raises ``Superseded`` if it is not, and
``DatabaseUnavailable``: then the name may have been kept, and the job may go on."""


class PictureGeneratorPort(Protocol):
    """Makes the picture, in one call or as a job that the provider goes on with by itself.

    A generator of jobs calls ``record`` with the name of each job, at most 200 characters that
    begin with the generator's own name, as soon as the provider has named the job. When cancelled,
    it cancels the job, unless ``record`` says that a newer attempt may be waiting for it; it has a
    few seconds for both.
    """

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:
        """Raises ``Refused`` (moderation, unusable input), ``TryAgain`` (busy, broken) or
        ``ProviderMisconfigured`` (a wrong key, no quota: no request can succeed). After the last
        the session goes back unharmed, and the worker's circuit opens: until it lets a probe
        through, the worker takes no task off the queue. Lets through what ``record`` raises."""

    async def resume(self, job: str, record: RecordJob) -> Generated | None:  # noqa: ARG002
        """The picture of a job that was noted before, once it is made. None if it came to nothing
        or is not this generator's. Begins no job; raises what ``generate`` raises.

        By default None: the generator's work does not outlive a call.
        """
        return None


class StartLimitPort(Protocol):
    """How many pieces of work may be started, over all who share the limit, as its provider asks.

    A permit is taken, and then used or given back. In any 60 seconds no more permits are used
    than the limit says. One that is neither (its holder died) counts as used.

    Raises nothing where the others cannot be reached: it then permits a share of its own.
    """

    async def take(self) -> float:
        """0.0: a permit was taken, for one start. Otherwise none was, and asking again makes
        sense after so many seconds."""

    async def give_back(self) -> None:
        """A permit that was taken will not be used: another start may have it, now."""


class PictureStoragePort(Protocol):
    """Keeps finished pictures. The first picture saved for a session stays its picture.

    Raises ``TryAgain`` when the storage does not answer.
    """

    async def find(self, prefix: str) -> StoredPicture | None:
        """The picture whose key is ``prefix`` plus an extension; None if there is none."""

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        """Keep ``picture`` under ``prefix`` plus the extension of its type. If ``prefix`` has a
        picture already, that one stays and is returned."""

    async def delete(self, prefix: str) -> None:
        """Delete the pictures under ``prefix`` plus any extension. Deleting nothing succeeds."""

    def url(self, object_key: str) -> str:
        """A signed URL that serves the picture to anyone until it expires or the picture is
        deleted."""


class SignedReadPort(Protocol):
    """Picture storage that serves its own signed URLs. Cloud storage does not need this port: its
    provider serves them."""

    async def read_signed(self, object_key: str, *, expires: int, signature: str) -> Picture:
        """The picture behind a signed URL, given that URL's parts.

        Raises ``NotFound``, without distinction, for a wrong signature, an expired URL and a
        missing picture; ``TryAgain`` when the storage does not answer.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class UploadLinks:
    """Two signed URLs of one object: a PUT to the first stores a picture, a GET of the second
    returns it."""

    upload_url: str
    image_url: str


class UploadStoragePort(Protocol):
    """Keeps callers' own pictures in one folder per day and owner: the key is
    ``uploads/{yyyy-mm-dd}/{channel}/{owner id}/{name}`` plus the extension of its type.

    Raises ``TryAgain`` when the storage does not answer.
    """

    def upload_links(self, prefix: str, media_type: str, *, lifetime: timedelta) -> UploadLinks:
        """The links of the object whose key is ``prefix`` plus the extension of the type; the
        ``upload_url`` is valid for ``lifetime``. The ``image_url`` is that of
        ``PictureStoragePort.url``."""

    async def count_uploads(self, folder: str, *, limit: int) -> int:
        """The number of uploads in ``folder``, counted up to ``limit``."""

    async def read_upload(self, object_key: str, *, max_bytes: int) -> bytes:
        """The uploaded bytes. Raises ``Refused`` for a missing object and, without loading it, for
        one larger than ``max_bytes``."""

    async def delete_uploads_before(self, moment: datetime, *, limit: int) -> int:
        """Delete uploads that were stored before ``moment``, oldest day first, at most ``limit``.

        Returns the number found: less than ``limit`` means that none is left. Lists no folder of a
        day after ``moment``. Safe to run in many processes at once.
        """


class UploadSinkPort(Protocol):
    """Picture storage whose uploads pass through our API. Cloud storage does not need this port:
    its provider receives them."""

    def check_upload_link(self, object_key: str, *, expires: int, signature: str) -> None:
        """Raises ``NotFound`` unless ``upload_links`` issued this link and it has not expired."""

    async def keep_upload(self, object_key: str, data: bytes) -> bool:
        """Keep ``data``, whole or not at all. False, and nothing changes, if the key is taken.
        Raises ``TryAgain`` when the storage does not answer."""
