"""A generation session: one paid request, from ``queued`` to its picture or its refund."""

from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Self, assert_never
from uuid import UUID

from domain.credits import Channel, Owner
from domain.errors import IdempotencyKeyReused, IllegalTransition

DEFAULT_PROMPT = (
    "Virtual try-on. The first image is the person. The second image is the outfit, if one is "
    "given; every further image is an accessory. Make one photorealistic portrait (3:4) of that "
    "same person wearing all of these items. Keep the person's face, hair, body shape, skin tone "
    "and pose exactly as they are. Let the garments fit and drape naturally, and match the light, "
    "shadows and perspective of the person's photo."
)

MAX_ACCESSORIES = 8
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
    """Why a session failed, in words that a program can act on."""

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
    """Why a session failed: a code for programs and a message fit for an end user."""

    code: str
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Accessory:
    """One accessory of a request: what it is (``"hat"``) and where its picture is."""

    type: str
    url: str


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredPicture:
    """A finished picture: its key in the image storage and the media type that it really has."""

    object_key: str
    media_type: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Usage:
    """What making a picture took of its provider. The cost is an estimate by the prices that were
    set at the time, in whole millionths of a dollar."""

    input_tokens: int
    output_tokens: int
    estimated_cost_usd: Decimal


@dataclass(frozen=True, slots=True, kw_only=True)
class GenerationSession:
    """One paid request for a picture.

    ``attempt`` counts claims, and takes by consumers that are not ours, and fences writes: a
    worker may only write with the number that its claim returned. ``lease_expires_at`` is the
    store's time until which that worker is taken to be alive; it is None unless ``processing``,
    and also then for a consumer that is not ours. ``confirmed`` says that the task is known to
    have reached the queue, so that the session may be pushed again if the queue loses it.
    ``generated_image_url`` is only ever written by a consumer that is not ours; ours set
    ``picture``. ``idempotency_key`` is the caller's; one session of an owner has it. ``usage`` is
    that of the attempt that completed the session; None where the provider tells none, and where
    that attempt found a picture that an earlier one had kept. ``provider_job`` is the latest job
    that was begun at a provider for this session, by this or an earlier attempt, as its generator
    names it; it may have come to nothing. ``image_deleted_at`` is when all that the image storage
    may have held of the session was deleted; ``picture`` still says what it was.
    """

    id: UUID
    owner: Owner
    request_id: str
    prompt: str
    model_image_url: str
    outfit_image_url: str | None
    accessories: tuple[Accessory, ...]
    created_at: datetime
    idempotency_key: str | None = None
    status: SessionStatus = SessionStatus.QUEUED
    confirmed: bool = False
    attempt: int = 0
    lease_expires_at: datetime | None = None
    picture: StoredPicture | None = None
    usage: Usage | None = None
    provider_job: str | None = None
    generated_image_url: str | None = None
    failure: Failure | None = None
    started_at: datetime | None = None
    """When the latest attempt began."""
    completed_at: datetime | None = None
    processing_time_ms: int | None = None
    image_deleted_at: datetime | None = None

    @property
    def image_expired(self) -> bool:
        """Whether there was a picture of ours that was deleted since."""
        return self.picture is not None and self.image_deleted_at is not None

    @property
    def image_urls(self) -> tuple[str, ...]:
        """The pictures in the order of the contract: model, outfit if given, accessories."""
        outfit = () if self.outfit_image_url is None else (self.outfit_image_url,)
        return (self.model_image_url, *outfit, *(item.url for item in self.accessories))

    @property
    def object_prefix(self) -> str:
        """Where in the image storage this session's picture belongs, without its extension."""
        match self.owner.channel:
            case Channel.B2B:
                return f"stores/{self.owner.id}/generated/{self.id}"
            case Channel.B2C:
                return f"generated/{self.owner.id}/{self.id}"
            case _:
                assert_never(self.owner.channel)

    def stored(self, *, created_at: datetime) -> Self:
        """This new session as the store has it, which says when it was created. (``replace`` would
        take longer than all that is checked of a request.)"""
        return type(self)(
            id=self.id,
            owner=self.owner,
            request_id=self.request_id,
            prompt=self.prompt,
            model_image_url=self.model_image_url,
            outfit_image_url=self.outfit_image_url,
            accessories=self.accessories,
            created_at=created_at,
            idempotency_key=self.idempotency_key,
        )

    def check_repeated_by(self, other: Self) -> None:
        """Raise IdempotencyKeyReused unless ``other`` asks for the same as this session."""
        if self._asked_for != other._asked_for:
            raise IdempotencyKeyReused("This Idempotency-Key belongs to another request")

    @property
    def _asked_for(self) -> tuple[object, ...]:
        return self.model_image_url, self.outfit_image_url, self.accessories, self.prompt

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

    def released(self) -> Self:
        """``processing -> queued``, for another attempt."""
        self._require(SessionStatus.PROCESSING)
        return replace(self, status=SessionStatus.QUEUED, lease_expires_at=None)

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

    def failed(self, failure: Failure, *, now: datetime) -> Self:
        """``queued | processing -> failed``. The caller refunds in the same transaction.

        A session that never got into the queue was answered 503: its key may be used again.
        """
        self._require(SessionStatus.QUEUED, SessionStatus.PROCESSING)
        never_queued = failure.code == ErrorCode.QUEUE_UNAVAILABLE
        return replace(
            self,
            status=SessionStatus.FAILED,
            failure=failure,
            idempotency_key=None if never_queued else self.idempotency_key,
            lease_expires_at=None,
            completed_at=now,
        )

    def _require(self, *statuses: SessionStatus) -> None:
        if self.status not in statuses:
            raise IllegalTransition(f"Session {self.id} is {self.status}")
