"""An owner's endpoints, which are told of its events, and the deliveries to them.

The payloads follow Standard Webhooks (https://www.standardwebhooks.com). A delivery holds ids only:
its payload is built, and the links in it are signed, at each attempt. An endpoint's secret is
stored as it is, because each message is signed with it: who reads the database can sign.

``webhooks`` is the use case that manages them, ``dispatch`` the one that sends.
"""

from collections.abc import Collection
from dataclasses import dataclass, field
from datetime import datetime
from enum import StrEnum
from uuid import UUID

from domain.credits import Owner
from domain.errors import InvalidInput

MAX_RESPONSE_LENGTH = 1_024
"""Characters of an endpoint's response that are kept."""
MAX_ATTEMPTS_SHOWN = 20


class WebhookEvent(StrEnum):
    """What an endpoint is told of. ``TEST`` goes to every endpoint that asks for it once."""

    COMPLETED = "generation.completed"
    FAILED = "generation.failed"
    CREDITS_LOW = "credits.low"
    TEST = "webhook.test"


ALL_EVENTS = frozenset(WebhookEvent) - {WebhookEvent.TEST}
"""The events that an endpoint can ask for."""


class DisabledReason(StrEnum):
    """Why an endpoint is disabled. Only a ``FAILING`` endpoint is probed, and enabled again by its
    first success; the others wait for their owner."""

    OWNER = "owner"
    GONE = "gone"
    FAILING = "failing"


@dataclass(frozen=True, slots=True, kw_only=True)
class Secrets:
    """The secrets that sign an endpoint's messages: ``whsec_`` and 24 to 64 random bytes in base64.
    ``previous``, if there is one, signs as well until ``previous_until``."""

    current: str = field(repr=False)
    previous: str | None = field(default=None, repr=False)
    previous_until: datetime | None = None

    def at(self, now: datetime) -> tuple[str, ...]:
        """The secrets that are valid, the current one first."""
        if self.previous is None or self.previous_until is None or now >= self.previous_until:
            return (self.current,)
        return (self.current, self.previous)


@dataclass(frozen=True, slots=True, kw_only=True)
class Endpoint:
    """Where an owner's events are sent.

    ``failures`` counts failed deliveries since the last success; ``paused_until`` is when the next
    delivery may be sent to an endpoint whose circuit is open. A disabled endpoint's deliveries are
    kept, and sent once it is enabled.
    """

    id: UUID
    owner: Owner
    url: str
    events: frozenset[WebhookEvent] = ALL_EVENTS
    description: str = ""
    secrets: Secrets = field(repr=False)
    created_at: datetime
    disabled_at: datetime | None = None
    disabled_reason: DisabledReason | None = None
    failures: int = 0
    failing_since: datetime | None = None
    paused_until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class EndpointChange:
    """What to change of an endpoint; None leaves a field as it is. ``enabled`` True also ends a
    pause, so that what waits is sent at once."""

    url: str | None = None
    events: frozenset[WebhookEvent] | None = None
    description: str | None = None
    enabled: bool | None = None


class DeliveryStatus(StrEnum):
    """``pending -> delivered | failed | expired``, and back to ``pending`` by a retry.

    ``failed``: its attempts are spent. ``expired``: it waited until the end of its retention, as at
    a disabled endpoint.
    """

    PENDING = "pending"
    DELIVERED = "delivered"
    FAILED = "failed"
    EXPIRED = "expired"


@dataclass(frozen=True, slots=True, kw_only=True)
class DeliveryAttempt:
    """One attempt. ``status`` is the response's, None without one: then ``error`` says why, in a
    word or two. ``response`` is the beginning of the response's body, as text."""

    at: datetime
    status: int | None
    error: str | None
    duration_ms: int
    response: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Delivery:
    """An event for one endpoint. ``id`` is its ``webhook-id``, the same at each attempt.

    ``session_id`` is that of a generation's event. ``attempt_count`` counts all attempts,
    ``attempts`` are the latest MAX_ATTEMPTS_SHOWN, newest first. ``next_attempt_at`` is None unless
    it is ``pending``.
    """

    id: UUID
    endpoint_id: UUID
    event: WebhookEvent
    session_id: UUID | None = None
    status: DeliveryStatus = DeliveryStatus.PENDING
    created_at: datetime
    next_attempt_at: datetime | None = None
    attempt_count: int = 0
    attempts: tuple[DeliveryAttempt, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedSecret:
    """An endpoint with its new secret, which is shown this once."""

    endpoint: Endpoint
    secret: str = field(repr=False)


def checked_events(events: Collection[str]) -> frozenset[WebhookEvent]:
    """Raises ``InvalidInput`` unless these are one or more events that an endpoint can ask for."""
    if not events or not set(events) <= ALL_EVENTS:
        raise InvalidInput("events", f"must be one or more of {', '.join(sorted(ALL_EVENTS))}")
    return frozenset(map(WebhookEvent, events))
