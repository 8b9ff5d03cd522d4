"""A generation session: one paid request, from ``queued`` to its picture or its refund."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Self, TypeAlias, assert_never
from urllib.parse import unquote
from uuid import UUID

from domain.callers import Shopper
from domain.causes import Cause, CauseKind
from domain.credits import Channel, Owner
from domain.errors import IdempotencyKeyReused, IllegalTransition
from domain.traces import traceparent_of

DEFAULT_PROMPT = (
    "Virtual try-on. The first image is the person. The second image is the outfit, if one is "
    "given; every further image is an accessory. Make one photorealistic portrait (3:4) of that "
    "same person wearing all of these items. Keep the person's face, hair, body shape, skin tone "
    "and pose exactly as they are. Let the garments fit and drape naturally, and match the light, "
    "shadows and perspective of the person's photo."
)

MAX_ACCESSORIES = 8
FINAL_REVISION = 2**31 - 1
MAX_PROMPT_LENGTH = 4_000


class SessionStatus(StrEnum):
    """``queued -> processing -> completed | failed``, ``queued -> failed``, and
    ``processing -> queued`` for another attempt. ``completed`` and ``failed`` are final."""

    QUEUED = "queued"
    PROCESSING = "processing"
    COMPLETED = "completed"
    FAILED = "failed"

    @property
    def is_final(self) -> bool:
        return self in {SessionStatus.COMPLETED, SessionStatus.FAILED}


class ErrorCode(StrEnum):
    """Why a session failed, as a stable code for programs."""

    CANCELLED = "CANCELLED"
    EXPIRED = "EXPIRED"
    GENERATION_FAILED = "GENERATION_FAILED"
    IMAGE_UNREACHABLE = "IMAGE_UNREACHABLE"
    INVALID_IMAGE = "INVALID_IMAGE"
    INVALID_TASK = "INVALID_TASK"
    MODERATION_BLOCKED = "MODERATION_BLOCKED"
    QUEUE_UNAVAILABLE = "QUEUE_UNAVAILABLE"


@dataclass(frozen=True, slots=True, kw_only=True)
class Failure:
    """Why a session failed: a code for programs and a message that an end user may read."""

    code: str
    message: str


CANCELLED = Failure(code=ErrorCode.CANCELLED, message="Cancelled at the caller's request")

CALLERS_FAULTS = frozenset(
    {
        ErrorCode.CANCELLED,
        ErrorCode.IMAGE_UNREACHABLE,
        ErrorCode.INVALID_IMAGE,
        ErrorCode.MODERATION_BLOCKED,
    }
)
"""The failures that the caller can cause at will. They are refunded, but their number is limited.
"""


class Blame(StrEnum):
    """Whose fault it is that an attempt failed, and so what that costs its session."""

    SESSION = "session"
    """Its own, its caller's, or perhaps its own: one of its attempts is spent."""
    PROVIDER = "provider"
    """No attempt is spent. The session fails if the provider's trouble lasts too long."""
    OURS = "ours"
    """No attempt is spent, and the worker takes no task until it can work."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """Why an attempt failed. ``code`` is the ``error_code`` that it stands for, ``worker`` the name
    of the worker, of at most 100 characters; empty if it is not known."""

    blame: Blame
    cause: Cause
    code: str
    worker: str


LOST_LEASE = Fault(
    blame=Blame.SESSION,
    cause=Cause(CauseKind.LOST_LEASE, "the worker died, hung or lost the database"),
    code=ErrorCode.GENERATION_FAILED,
    worker="",
)
"""The fault of an attempt that ended without a sign of life: the task may have killed the worker.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class AttemptFault:
    """A failed attempt, as operators see it. ``worker`` is None if it died: then its name is not
    known."""

    attempt: int
    at: datetime
    worker: str | None
    code: str
    cause: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accessory:
    """One accessory to wear: its type (``"hat"``) and the link to its picture."""

    type: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """A finished picture: its key in the picture storage and its actual media type."""

    object_key: str
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What one picture took at the provider, as far as it is known: at least one value. The cost is
    an estimate at the prices configured at the time, in whole millionths of a dollar. ``provider``
    is the generator's name, for operators only."""

    provider: str | None = None
    input_tokens: int | None = None
    output_tokens: int | None = None
    estimated_cost_usd: Decimal | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationInput:
    """What the caller asks and pays for, as one value: the request has it, the session keeps it,
    a replay under the same idempotency key must equal it, and the database protects it.

    A new field also needs its column (``adapters/sessions/columns.py``), a migration, and its place
    in the HTTP schema. The contract tests discover it here and fail until it has all three.
    """

    model_image_url: str
    outfit_image_url: str | None = None
    accessories: tuple[Accessory, ...] = ()
    prompt: str = DEFAULT_PROMPT
    age_verified: bool | None = None

    @property
    def image_urls(self) -> tuple[str, ...]:
        """The input pictures in the order of the contract: model, outfit if given, accessories."""
        outfit = () if self.outfit_image_url is None else (self.outfit_image_url,)
        return (self.model_image_url, *outfit, *[item.url for item in self.accessories])


@dataclass(frozen=True, kw_only=True)
class GenerationSession:
    """One paid request for a picture.

    - ``shopper`` is set if a store's shopper requested it with a client token, which it counts
      against.
    - ``idempotency_key`` is the caller's. At most one session of an owner has it.
    - ``traceparent`` is that of the creating request, if its caller gave one; ``trace`` is what
      the session carries in any case.
    - ``confirmed``: the task is known to have reached the queue. Only then may recovery push it
      again if the queue loses it.
    - ``attempt`` counts the claims, including those by external consumers. It fences writes: a
      worker writes only with the number that its claim returned.
    - ``attempts_excused`` counts the attempts that were released through no fault of the session.
      The others are spent, and only these are bounded.
    - ``failing_since``, on the database's clock: the provider has failed every attempt since. None
      if the last attempt did not fail through the provider's fault.
    - ``lease_expires_at``, on the database's clock: the worker counts as alive until then. None
      unless ``processing``; always None for an external consumer.
    - ``cancel_requested_at``, on the database's clock: the caller asked first to cancel it. Such a
      session is never ``queued`` again: it completes, or fails as CANCELLED.
    - ``picture`` is written by our workers, ``generated_image_url`` only by external consumers.
    - ``usage`` belongs to the attempt that completed the session. None if that attempt found a
      picture which an earlier attempt had saved, and if an external consumer completed it.
    - ``provider_job`` is the latest job started at a provider for this session, as its generator
      names it. The job may have failed.
    - ``image_deleted_at``: from then on the picture storage holds nothing of this session;
      ``picture`` and ``generated_image_url`` still say what there was.
    - ``erased_at``: the owner or the operator erased the session. Links, prompt and provider job
      are empty, and the picture is deleted; ``picture`` still says that there was one.
    """

    id: UUID
    owner: Owner
    request_id: str
    input: GenerationInput
    created_at: datetime
    shopper: Shopper | None = None
    idempotency_key: str | None = None
    traceparent: str | None = None
    status: SessionStatus = SessionStatus.QUEUED
    confirmed: bool = False
    attempt: int = 0
    attempts_excused: int = 0
    failing_since: datetime | None = None
    lease_expires_at: datetime | None = None
    cancel_requested_at: datetime | None = None
    picture: StoredPicture | None = None
    usage: Usage | None = None
    provider_job: str | None = None
    generated_image_url: str | None = None
    failure: Failure | None = None
    started_at: datetime | None = None
    """The start of the latest attempt, an external consumer's too."""
    completed_at: datetime | None = None
    processing_time_ms: int | None = None
    image_deleted_at: datetime | None = None
    erased_at: datetime | None = None

    @property
    def revision(self) -> int:
        """The number of this state. It only increases, and is FINAL_REVISION once the session is
        final. Changes that leave the status and the attempt as they are have none of their own."""
        if self.status.is_final:
            return FINAL_REVISION
        return 2 * self.attempt + (self.status is SessionStatus.QUEUED)

    def begun_after(self, moment: datetime | None) -> timedelta:
        """The time from ``moment`` to the begin of the attempt, both on the database's clock."""
        if moment is None or self.started_at is None:
            return timedelta(0)
        return self.started_at - moment

    @property
    def trace(self) -> str:
        """The ``traceparent`` of its task, of its provider's calls and of its webhooks."""
        return traceparent_of(self.id, self.request_id, self.traceparent)

    @property
    def shopper_id(self) -> str | None:
        """The shopper who requested it, if one did."""
        return None if self.shopper is None else self.shopper.id

    @property
    def attempts_spent(self) -> int:
        """The attempts that count, including the current one: it may be killing its worker."""
        return self.attempt - self.attempts_excused

    @property
    def image_expired(self) -> bool:
        """Whether a picture existed in our storage and has been deleted since: our workers', or an
        external consumer's whose link has the key of our storage."""
        if self.erased_at is not None:
            return self.status is SessionStatus.COMPLETED
        link = unquote(self.generated_image_url or "")
        had_picture = self.picture is not None or f"/{self.object_prefix}" in link
        return had_picture and self.image_deleted_at is not None

    @property
    def object_prefix(self) -> str:
        """The key of this session's picture in the picture storage, without its extension."""
        match self.owner.channel:
            case Channel.B2B:
                return f"stores/{self.owner.id}/generated/{self.id}"
            case Channel.B2C:
                return f"generated/{self.owner.id}/{self.id}"
            case _:
                assert_never(self.owner.channel)

    def stored(self, *, created_at: datetime) -> Self:
        """This new session as the database created it: with the database's ``created_at``.

        All fields are copied at once, because ``replace``, which sets them one by one, costs more
        than validating the request.
        """
        stored = object.__new__(type(self))
        vars(stored).update(vars(self), created_at=created_at)
        return stored

    def sibling(
        self,
        *,
        id: UUID,  # noqa: A002 - the name of the field
        request_id: str,
        input: GenerationInput,  # noqa: A002
        idempotency_key: str | None,
        traceparent: str | None,
    ) -> Self:
        """Another new session of this one's caller. Copied like ``stored``, for the same reason."""
        sibling = object.__new__(type(self))
        vars(sibling).update(
            vars(self),
            id=id,
            request_id=request_id,
            input=input,
            idempotency_key=idempotency_key,
            traceparent=traceparent,
        )
        return sibling

    def check_replay(self, replay: Self) -> None:
        """Raise IdempotencyKeyReused unless ``replay`` asks for exactly the same. What an erased
        session asked for is unknown: its key is enough."""
        if self.erased_at is None and self.input != replay.input:
            raise IdempotencyKeyReused("This Idempotency-Key belongs to another request")

    def claimed(self, *, now: datetime, lease: timedelta) -> Self:
        """``queued -> processing``, with the next attempt number and a lease."""
        self._require(SessionStatus.QUEUED)
        return replace(
            self,
            status=SessionStatus.PROCESSING,
            confirmed=True,
            attempt=self.attempt + 1,
            lease_expires_at=now + lease,
            started_at=now,
        )

    def cancelled(self, *, now: datetime) -> Self:
        """``queued -> failed``; a ``processing`` session only records the first request."""
        requested = replace(self, cancel_requested_at=self.cancel_requested_at or now)
        if self.status is SessionStatus.QUEUED:
            return requested.failed(CANCELLED, now=now)
        self._require(SessionStatus.PROCESSING)
        return requested

    def released(self, blame: Blame | None = None, *, now: datetime) -> Self:
        """``processing -> queued``, for another attempt; ``failed`` if its cancellation was
        requested. Without ``blame``, nothing failed."""
        self._require(SessionStatus.PROCESSING)
        if self.cancel_requested_at is not None:
            return self.failed(CANCELLED, now=now)
        failing_since = self.failing_since if blame is None else None
        if blame is Blame.PROVIDER:
            failing_since = self.failing_since or now
        return replace(
            self,
            status=SessionStatus.QUEUED,
            lease_expires_at=None,
            attempts_excused=self.attempts_excused + (blame is not Blame.SESSION),
            failing_since=failing_since,
        )

    def completed(
        self, picture: StoredPicture, usage: Usage | None = None, *, now: datetime
    ) -> Self:
        """``processing -> completed``."""
        self._require(SessionStatus.PROCESSING)
        started_at = self.started_at or now
        return replace(
            self,
            status=SessionStatus.COMPLETED,
            picture=picture,
            usage=usage,
            lease_expires_at=None,
            completed_at=now,
            processing_time_ms=round((now - started_at).total_seconds() * 1000),
        )

    def failed(self, failure: Failure, *, now: datetime, frees_key: bool = False) -> Self:
        """``queued | processing -> failed``. The caller refunds in the same transaction.

        Only the undo of a submission, which no caller was told of, frees its idempotency key. After
        a request to cancel, the failure is CANCELLED, whatever else went wrong.
        """
        self._require(SessionStatus.QUEUED, SessionStatus.PROCESSING)
        return replace(
            self,
            status=SessionStatus.FAILED,
            failure=failure if self.cancel_requested_at is None else CANCELLED,
            idempotency_key=None if frees_key else self.idempotency_key,
            lease_expires_at=None,
            completed_at=now,
        )

    def erased(self, *, now: datetime, with_shopper: bool = False) -> Self:
        """This final session without its personal data. Payer, times, status and the verified age
        stay, and so does the shopper unless ``with_shopper``."""
        self._require(SessionStatus.COMPLETED, SessionStatus.FAILED)
        asked = GenerationInput(model_image_url="", prompt="", age_verified=self.input.age_verified)
        return replace(
            self,
            input=asked,
            provider_job=None,
            generated_image_url=None,
            shopper=None if with_shopper else self.shopper,
            erased_at=self.erased_at or now,
        )

    def _require(self, *statuses: SessionStatus) -> None:
        if self.status not in statuses:
            raise IllegalTransition(f"Session {self.id} is {self.status}")


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockedSession:
    """A session that is due for recovery, but whose change the database rejects, or whose row
    cannot be read. ``owner`` is the text of its owner's columns: it may be what is wrong."""

    id: UUID
    owner: str
    problem: str


Blocked: TypeAlias = dict[UUID, BlockedSession] | None
