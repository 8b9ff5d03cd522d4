"""Request and response bodies of webhooks, with their documentation."""

from datetime import datetime
from typing import Annotated, Literal, Self, get_args
from uuid import UUID

from msgspec import Meta, Struct, field

from domain.credits import MAX_GRANT
from domain.endpoints import (
    MAX_ATTEMPTS_SHOWN,
    MAX_RESPONSE_LENGTH,
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    IssuedSecret,
    WebhookEvent,
)
from domain.links import MAX_URL_LENGTH
from domain.webhooks import MAX_DESCRIPTION_LENGTH
from entrypoints.http.patterns import LINE, URL
from entrypoints.http.schemas import NextCursor

_ID = "018f6b9e-7c3a-7d21-9a40-3f0c5f6d2b11"

EndpointUrl = Annotated[
    str,
    Meta(
        min_length=1,
        max_length=MAX_URL_LENGTH,
        description="Where events are sent: public, https.",
        examples=["https://shop.example/hooks/wearon"],
        extra_json_schema=URL,
    ),
]
EventName = Literal["generation.completed", "generation.failed", "credits.low"]
_EVENT_NAMES: tuple[EventName, ...] = get_args(EventName)
Events = Annotated[
    list[EventName],
    Meta(
        min_length=1,
        max_length=20,
        description="What the endpoint is told of; by default, everything.",
    ),
]
Description = Annotated[
    str,
    Meta(
        max_length=MAX_DESCRIPTION_LENGTH,
        description="Your own words, for lists.",
        extra_json_schema=LINE,
    ),
]
EndpointId = Annotated[UUID, Meta(description="The endpoint's id.", examples=[_ID])]
DeliveryId = Annotated[
    UUID,
    Meta(
        description="The delivery's id, which its messages carry as `webhook-id`.", examples=[_ID]
    ),
]
LowCredits = Annotated[
    int | None,
    Meta(
        description="When the balance falls below it, `credits.low` is sent. Null: never.",
        examples=[100],
    ),
]


class NewEndpoint(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An endpoint to create."""

    url: EndpointUrl
    events: Events = field(default_factory=lambda: [*_EVENT_NAMES])
    description: Description = ""


class EndpointChanges(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What to change; a field that is left out stays as it is."""

    url: EndpointUrl | None = None
    events: Events | None = None
    description: Description | None = None
    enabled: Annotated[
        bool | None, Meta(description="True also ends a pause: what waits is sent at once.")
    ] = None

    def change(self) -> EndpointChange:
        return EndpointChange(
            url=self.url,
            events=None if self.events is None else frozenset(map(WebhookEvent, self.events)),
            description=self.description,
            enabled=self.enabled,
        )


class FailedSince(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Which deliveries to send again."""

    since: Annotated[
        datetime,
        Meta(
            tz=True,
            description="Those that failed or expired and were created at this time or later.",
            examples=["2026-01-01T12:00:00Z"],
        ),
    ]


class NewAlert(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """When to tell of low credits."""

    low_credits: Annotated[
        Annotated[int, Meta(ge=1, le=MAX_GRANT)] | None,
        Meta(description="The balance below which `credits.low` is sent. Null: never."),
    ]


class EndpointItem(Struct, frozen=True, kw_only=True):
    """An endpoint, without its secret."""

    endpoint_id: EndpointId
    url: EndpointUrl
    events: list[WebhookEvent]
    description: Description
    enabled: Annotated[
        bool, Meta(description="What happens while it is disabled is kept, and sent afterwards.")
    ]
    disabled_at: datetime | None
    disabled_reason: Annotated[
        DisabledReason | None,
        Meta(
            description="`owner`: you disabled it. `gone`: it answered 410. `failing`: it failed"
            " for a day; it is probed, and enabled by its first success."
        ),
    ]
    failing_since: Annotated[
        datetime | None, Meta(description="The first failure since the last success.")
    ]
    paused_until: Annotated[
        datetime | None,
        Meta(description="Nothing is sent before, because the endpoint failed or asked to wait."),
    ]
    previous_secret_until: Annotated[
        datetime | None, Meta(description="Until then the secret before the last rotation signs.")
    ]
    created_at: datetime

    @classmethod
    def of(cls, endpoint: Endpoint) -> Self:
        return cls(
            endpoint_id=endpoint.id,
            url=endpoint.url,
            events=sorted(endpoint.events),
            description=endpoint.description,
            enabled=endpoint.disabled_at is None,
            disabled_at=endpoint.disabled_at,
            disabled_reason=endpoint.disabled_reason,
            failing_since=endpoint.failing_since,
            paused_until=endpoint.paused_until,
            previous_secret_until=endpoint.secrets.previous_until,
            created_at=endpoint.created_at,
        )


class EndpointEnvelope(Struct, frozen=True, kw_only=True):
    """Response with an endpoint."""

    data: EndpointItem
    error: None


class SecretItem(EndpointItem, frozen=True, kw_only=True):
    """An endpoint with its new secret."""

    secret: Annotated[
        str,
        Meta(
            description="Signs the endpoint's messages. It is not shown again.",
            examples=["whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSwMfKQ9r8GKYo="],
        ),
    ]

    @classmethod
    def issued(cls, issued: IssuedSecret) -> Self:
        item = EndpointItem.of(issued.endpoint)
        fields = {name: getattr(item, name) for name in item.__struct_fields__}
        return cls(secret=issued.secret, **fields)


class SecretEnvelope(Struct, frozen=True, kw_only=True):
    """Response with an endpoint's new secret."""

    data: SecretItem
    error: None


class Endpoints(Struct, frozen=True, kw_only=True):
    """Your endpoints, newest first."""

    items: list[EndpointItem]


class EndpointsEnvelope(Struct, frozen=True, kw_only=True):
    """Response with your endpoints."""

    data: Endpoints
    error: None


class DeletedEndpoint(Struct, frozen=True, kw_only=True):
    """An endpoint that was deleted."""

    endpoint_id: EndpointId
    deleted: bool = True


class DeletedEndpointEnvelope(Struct, frozen=True, kw_only=True):
    """Response to the deletion of an endpoint."""

    data: DeletedEndpoint
    error: None


class AttemptItem(Struct, frozen=True, kw_only=True):
    """One attempt to deliver."""

    at: datetime
    status: Annotated[int | None, Meta(description="The response's. Null without a response.")]
    error: Annotated[str | None, Meta(description="Why there was no response, for people.")]
    duration_ms: int
    response: Annotated[
        str,
        Meta(
            max_length=MAX_RESPONSE_LENGTH,
            description="The beginning of the response's body, as text.",
        ),
    ]

    @classmethod
    def of(cls, attempt: DeliveryAttempt) -> Self:
        return cls(
            at=attempt.at,
            status=attempt.status,
            error=attempt.error,
            duration_ms=attempt.duration_ms,
            response=attempt.response,
        )


class DeliveryItem(Struct, frozen=True, kw_only=True):
    """An event for an endpoint, with the attempts to deliver it."""

    delivery_id: DeliveryId
    endpoint_id: EndpointId
    event: WebhookEvent
    session_id: Annotated[UUID | None, Meta(description="Null unless a generation ended.")]
    status: DeliveryStatus
    created_at: datetime
    next_attempt_at: Annotated[
        datetime | None,
        Meta(description="At the earliest; later if the endpoint is paused. Null unless pending."),
    ]
    attempt_count: int
    attempts: Annotated[
        list[AttemptItem],
        Meta(description=f"The latest {MAX_ATTEMPTS_SHOWN} attempts, newest first."),
    ]

    @classmethod
    def of(cls, delivery: Delivery) -> Self:
        return cls(
            delivery_id=delivery.id,
            endpoint_id=delivery.endpoint_id,
            event=delivery.event,
            session_id=delivery.session_id,
            status=delivery.status,
            created_at=delivery.created_at,
            next_attempt_at=delivery.next_attempt_at,
            attempt_count=delivery.attempt_count,
            attempts=[AttemptItem.of(attempt) for attempt in delivery.attempts],
        )


class DeliveryEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a delivery."""

    data: DeliveryItem
    error: None


class DeliveryPage(Struct, frozen=True, kw_only=True):
    """One page of an endpoint's deliveries, newest first."""

    items: list[DeliveryItem]
    next_cursor: NextCursor


class DeliveryPageEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a page of deliveries."""

    data: DeliveryPage
    error: None


class Retried(Struct, frozen=True, kw_only=True):
    """How many deliveries are sent again."""

    retried: int


class RetriedEnvelope(Struct, frozen=True, kw_only=True):
    """Response to the retry of failed deliveries."""

    data: Retried
    error: None


class Alert(Struct, frozen=True, kw_only=True):
    """When you are told of low credits."""

    low_credits: LowCredits


class AlertEnvelope(Struct, frozen=True, kw_only=True):
    """Response with the threshold of low credits."""

    data: Alert
    error: None
