"""Request and response bodies, with their documentation."""

from datetime import datetime
from decimal import Decimal
from typing import Annotated, Literal, Self
from uuid import UUID

from msgspec import Meta, Struct
from msgspec.structs import replace

from domain.callers import Caller
from domain.credits import Channel
from domain.links import MAX_URL_LENGTH
from domain.ports import Receipt, SessionStats
from domain.sessions import (
    DEFAULT_PROMPT,
    MAX_ACCESSORIES,
    MAX_PROMPT_LENGTH,
    Accessory,
    GenerationInput,
    SessionStatus,
)
from domain.uploads import UploadOffer
from domain.views import MAX_QUEUE_POSITION, SessionView
from entrypoints.http.patterns import PRINTABLE_LINE, PRINTABLE_TEXT, URL

GENERATIONS_PATH = "/api/v1/generations"

Url = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_URL_LENGTH,
        description="The picture's URL: public, http or https.",
        examples=["https://images.example.com/person.jpg"],
        extra_json_schema=URL,
    ),
]
SessionId = Annotated[
    UUID,
    Meta(description="The session's id.", examples=["018f6b9e-7c3a-7d21-9a40-3f0c5f6d2b11"]),
]
StatusUrl = Annotated[
    str,
    Meta(
        description="The path to poll for the session's status.",
        examples=[f"{GENERATIONS_PATH}/018f6b9e-7c3a-7d21-9a40-3f0c5f6d2b11"],
    ),
]
CreatedAt = Annotated[datetime, Meta(description="When it was created, UTC.")]


class AccessoryItem(Struct, frozen=True, forbid_unknown_fields=True):
    """One accessory."""

    type: Annotated[
        str,
        Meta(
            min_length=1,
            max_length=64,
            pattern=PRINTABLE_LINE,
            description="The kind of accessory.",
            examples=["hat"],
        ),
    ]
    url: Url


class NewGeneration(
    Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, omit_defaults=True
):
    """A try-on request: a person and the items to wear."""

    model_image_url: Url
    outfit_image_url: Url | None = None
    accessories: (
        Annotated[
            list[AccessoryItem],
            Meta(max_length=MAX_ACCESSORIES, description="Further items to wear."),
        ]
        | None
    ) = None
    prompt: (
        Annotated[
            str,
            Meta(
                min_length=1,
                max_length=MAX_PROMPT_LENGTH,
                pattern=PRINTABLE_TEXT,
                description="Your own prompt, replacing the default one. Stores only.",
                examples=["Show the person in the outfit, outdoors, in soft evening light."],
            ),
        ]
        | None
    ) = None
    age_verified: (
        Annotated[
            bool,
            Meta(
                description="Whether you verified that the person is old enough. You may have to:"
                " else 403 `AGE_VERIFICATION_REQUIRED`. Never send a birth date."
            ),
        ]
        | None
    ) = None

    def asked(self) -> GenerationInput:
        """The input as the domain has it."""
        return GenerationInput(
            model_image_url=self.model_image_url,
            outfit_image_url=self.outfit_image_url,
            accessories=tuple(
                [Accessory(type=item.type, url=item.url) for item in self.accessories or ()]
            ),
            prompt=DEFAULT_PROMPT if self.prompt is None else self.prompt,
            age_verified=self.age_verified,
        )


PictureType = Annotated[
    Literal["image/jpeg", "image/png", "image/webp"],
    Meta(description="The picture's format."),
]


class NewUpload(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A request for an upload link."""

    content_type: Annotated[
        str,
        Meta(
            description="The picture's format; `image/jpg` is taken for `image/jpeg`.",
            extra_json_schema={"enum": ["image/jpeg", "image/png", "image/webp"]},
        ),
    ]


class ErrorBody(Struct, frozen=True):
    """An error: a code for programs, a message for people."""

    code: Annotated[
        str, Meta(description="Stable: programs act on it.", examples=["VALIDATION_ERROR"])
    ]
    message: Annotated[str, Meta(description="For developers; its wording may change.")]


class ErrorEnvelope(Struct, frozen=True, kw_only=True):
    """Every error response."""

    data: None
    error: ErrorBody


NextCursor = Annotated[
    str | None,
    Meta(description="Send it as `cursor` to get the next page; null on the last page."),
]


class Submitted(Struct, frozen=True, kw_only=True):
    """An accepted and charged request: its session will reach a final status."""

    session_id: SessionId
    status: SessionStatus
    status_url: StatusUrl
    credits_remaining: Annotated[
        int | None,
        Meta(description="The balance after this request. Null for shoppers.", examples=[41]),
    ]
    pictures_remaining: Annotated[
        int | None,
        Meta(
            description="How many more pictures the client token allows. Null unless one was used,"
            " and for a repetition."
        ),
    ]
    created_at: CreatedAt

    @classmethod
    def of(cls, receipt: Receipt) -> Self:
        session = receipt.session
        return cls(
            session_id=session.id,
            status=session.status,
            status_url=f"{GENERATIONS_PATH}/{session.id}",
            credits_remaining=None if session.shopper else receipt.credits_remaining,
            pictures_remaining=receipt.pictures_remaining,
            created_at=session.created_at,
        )


class SubmittedEnvelope(Struct, frozen=True, kw_only=True):
    """Response to an accepted generation request."""

    data: Submitted
    error: None


class Upload(Struct, frozen=True, kw_only=True):
    """Where to send your picture, and its link for requests."""

    upload_url: Annotated[str, Meta(description="Send the picture's bytes to this URL, once.")]
    method: Annotated[Literal["PUT"], Meta(description="The HTTP method for `upload_url`.")]
    headers: Annotated[
        dict[str, str],
        Meta(
            description="The headers to send, unchanged; send no token.",
            examples=[{"Content-Type": "image/jpeg"}],
        ),
    ]
    image_url: Annotated[
        str, Meta(description="The picture's link for requests, valid once the picture is sent.")
    ]
    expires_at: Annotated[datetime, Meta(description="When `upload_url` expires, UTC.")]
    max_bytes: Annotated[int, Meta(description="The picture's maximum size.")]

    @classmethod
    def of(cls, offer: UploadOffer, content_type: str) -> Self:
        return cls(
            upload_url=offer.links.upload_url,
            method="PUT",
            headers={"Content-Type": content_type},
            image_url=offer.links.image_url,
            expires_at=offer.expires_at,
            max_bytes=offer.max_bytes,
        )


class UploadEnvelope(Struct, frozen=True, kw_only=True):
    """Response to an upload request."""

    data: Upload
    error: None


class Uploaded(Struct, frozen=True, kw_only=True):
    """The picture that was received."""

    content_type: Annotated[str, Meta(description="The picture's format, detected from its bytes.")]
    bytes: int


class UploadedEnvelope(Struct, frozen=True, kw_only=True):
    """Response to a picture's upload."""

    data: Uploaded
    error: None


class SessionAccessory(Struct, frozen=True):
    """An accessory of a session."""

    type: str
    url: str


class Session(Struct, frozen=True, kw_only=True):
    """A generation session. A field without a value is null, never missing."""

    session_id: SessionId
    status: SessionStatus
    channel: Annotated[Channel, Meta(description="`b2b` for stores, `b2c` for users.")]
    model_image_url: Annotated[str | None, Meta(description="Null once erased.")]
    outfit_image_url: str | None
    accessories: Annotated[list[SessionAccessory], Meta(description="Empty once erased.")]
    shopper_id: Annotated[
        str | None,
        Meta(description="The shopper who requested it with a client token. For stores only."),
    ]
    prompt: Annotated[
        str | None,
        Meta(description="The prompt that was used. Null except for stores, and once erased."),
    ]
    age_verified: Annotated[
        bool | None, Meta(description="True if the request said so; null otherwise.")
    ]
    generated_image_url: Annotated[
        str | None,
        Meta(description="The picture's link, once completed. It expires: get the session again."),
    ]
    image_expired: Annotated[
        bool,
        Meta(
            description="Pictures are deleted after some time: true once this one was deleted;"
            " `generated_image_url` is then null."
        ),
    ]
    media_type: Annotated[str | None, Meta(description="The picture's format.")]
    error_code: Annotated[
        str | None, Meta(description="The reason of a failure, for programs.", examples=["EXPIRED"])
    ]
    error_message: Annotated[str | None, Meta(description="The reason of a failure, for people.")]
    attempt: Annotated[int, Meta(description="The number of attempts started so far.")]
    queue_position: Annotated[
        int | None,
        Meta(
            description="Position in the queue (1 = next). Null unless `status` is `queued`, in"
            f" list responses, and past position {MAX_QUEUE_POSITION}."
        ),
    ]
    request_id: Annotated[str, Meta(description="The X-Request-Id of the request that created it.")]
    created_at: CreatedAt
    started_at: Annotated[datetime | None, Meta(description="When the latest attempt started.")]
    cancel_requested_at: Annotated[
        datetime | None,
        Meta(
            description="When you first asked to cancel it. It then ends as `failed` with"
            " `CANCELLED`, or as `completed` if its picture was there already."
        ),
    ]
    completed_at: Annotated[datetime | None, Meta(description="When it reached a final status.")]
    processing_time_ms: int | None
    erased_at: Annotated[
        datetime | None,
        Meta(description="When picture, links and prompt were erased at your request, UTC."),
    ]
    input_tokens: Annotated[
        int | None, Meta(description="Input tokens that the provider reported; null if unknown.")
    ]
    output_tokens: Annotated[
        int | None, Meta(description="Output tokens that the provider reported; null if unknown.")
    ]
    estimated_cost_usd: Annotated[
        Decimal | None,
        Meta(
            description="Estimated cost of these tokens in US dollars: a decimal, as text.",
            examples=["0.052180"],
        ),
    ]
    status_url: StatusUrl

    @classmethod
    def of(cls, view: SessionView) -> Self:
        session, asked = view.session, view.session.input
        picture, failure, usage = session.picture, session.failure, session.usage
        return cls(
            session_id=session.id,
            status=session.status,
            channel=session.owner.channel,
            model_image_url=asked.model_image_url or None,
            outfit_image_url=asked.outfit_image_url,
            accessories=[_accessory_of(accessory) for accessory in asked.accessories],
            shopper_id=session.shopper_id,
            prompt=(asked.prompt or None) if session.owner.channel is Channel.B2B else None,
            age_verified=asked.age_verified,
            generated_image_url=view.picture_url,
            image_expired=session.image_expired,
            media_type=None if picture is None else picture.media_type,
            error_code=None if failure is None else failure.code,
            error_message=None if failure is None else failure.message,
            attempt=session.attempt,
            queue_position=view.queue_position,
            request_id=session.request_id,
            created_at=session.created_at,
            started_at=session.started_at,
            cancel_requested_at=session.cancel_requested_at,
            completed_at=session.completed_at,
            processing_time_ms=session.processing_time_ms,
            erased_at=session.erased_at,
            input_tokens=None if usage is None else usage.input_tokens,
            output_tokens=None if usage is None else usage.output_tokens,
            estimated_cost_usd=None if usage is None else usage.estimated_cost_usd,
            status_url=f"{GENERATIONS_PATH}/{session.id}",
        )

    @classmethod
    def seen_by(cls, caller: Caller, view: SessionView) -> Self:
        """The session as ``caller`` may see it: a shopper sees nothing that concerns the store."""
        session = cls.of(view)
        if caller.shopper is None:
            return session
        return replace(
            session,
            shopper_id=None,
            prompt=None,
            input_tokens=None,
            output_tokens=None,
            estimated_cost_usd=None,
        )


class SessionEnvelope(Struct, frozen=True, kw_only=True):
    """Response with one session."""

    data: Session
    error: None


class SessionPage(Struct, frozen=True, kw_only=True):
    """One page of your sessions, newest first."""

    items: list[Session]
    next_cursor: NextCursor


class SessionPageEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a page of sessions."""

    data: SessionPage
    error: None


def _accessory_of(accessory: Accessory) -> SessionAccessory:
    return SessionAccessory(type=accessory.type, url=accessory.url)


class Stats(Struct, frozen=True, kw_only=True):
    """The number of your sessions. `active` is queued plus processing."""

    total: int
    queued: int
    processing: int
    completed: int
    failed: int
    active: int

    @classmethod
    def of(cls, stats: SessionStats) -> Self:
        return cls(
            total=stats.total,
            queued=stats.queued,
            processing=stats.processing,
            completed=stats.completed,
            failed=stats.failed,
            active=stats.active,
        )


class StatsEnvelope(Struct, frozen=True, kw_only=True):
    """Response with the number of sessions."""

    data: Stats
    error: None
