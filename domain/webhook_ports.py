"""The interfaces for webhooks: what owners manage, the outbox that is delivered from, and what
sends.

``tests/contracts`` checks every sentence here against every adapter. An ``owner`` never sees or
changes another one's endpoints: they are answered like unknown ones.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Protocol
from uuid import UUID

from domain.credits import Owner
from domain.endpoints import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    WebhookEvent,
)
from domain.ports import Position
from domain.sessions import GenerationSession


class EndpointRepoPort(Protocol):
    """Owners' endpoints. Raises ``DatabaseUnavailable``; and ``NotFound``, where an endpoint is
    returned, if the owner has no endpoint with the id."""

    async def add(self, endpoint: Endpoint, *, max_endpoints: int) -> None:
        """Add a new endpoint. From its commit on, it is told of the owner's events. Creates the
        account if there is none. Raises ``Conflict``, and changes nothing, if the owner has
        ``max_endpoints``; concurrent calls count each other."""

    async def get(self, endpoint_id: UUID, owner: Owner) -> Endpoint:
        """The endpoint."""

    async def all(self, owner: Owner) -> list[Endpoint]:
        """The owner's endpoints, newest first."""

    async def change(self, endpoint_id: UUID, owner: Owner, change: EndpointChange) -> Endpoint:
        """The endpoint after ``change``. Concurrent changes of other fields are kept. Disabling one
        that is disabled makes its owner the reason, so that it is probed no more. Enabling one ends
        its pause and forgets its failures."""

    async def rotate(
        self, endpoint_id: UUID, owner: Owner, *, secret: str, previous_for: timedelta
    ) -> Endpoint:
        """The endpoint with ``secret`` as its current one. The one before signs as well for
        ``previous_for``; an older one no more."""

    async def delete(self, endpoint_id: UUID, owner: Owner) -> bool:
        """Delete the endpoint with its deliveries. False if the owner has no such endpoint."""

    async def delete_all(self, owner: Owner, *, limit: int) -> int:
        """Delete up to ``limit`` of the owner's deliveries, then, once none is left, its endpoints
        and its threshold of low credits. Returns how many deliveries and endpoints it deleted."""


class DeliveryRepoPort(Protocol):
    """What was, or will be, sent to owners' endpoints. Raises ``DatabaseUnavailable``; and
    ``NotFound``, where a delivery is returned, if the owner has none with the id."""

    async def deliveries(
        self,
        endpoint_id: UUID,
        owner: Owner,
        *,
        status: DeliveryStatus | None,
        limit: int,
        after: Position | None,
    ) -> list[Delivery]:
        """Newest first, starting after the position ``after``, with their attempts. Raises
        ``NotFound`` for an unknown endpoint."""

    async def delivery(self, delivery_id: UUID, owner: Owner) -> Delivery:
        """The delivery, with its attempts."""

    async def add_test(self, delivery_id: UUID, endpoint_id: UUID, owner: Owner) -> Delivery:
        """A new ``pending`` delivery of the event ``TEST``, due at once. It waits while the
        endpoint is disabled or paused, like any other."""

    async def retry(self, delivery_id: UUID, owner: Owner) -> Delivery:
        """Any status -> ``pending``, due at once, with all its tries again. A disabled or paused
        endpoint stays so."""

    async def retry_failed(
        self, endpoint_id: UUID, owner: Owner, *, since: datetime, limit: int
    ) -> int:
        """``failed`` or ``expired`` -> ``pending``, for the endpoint's deliveries created at or
        after ``since``, oldest first. Returns how many: less than ``limit`` means that none is
        left. Raises ``NotFound`` for an unknown endpoint."""

    async def purge(
        self, *, finished_for: timedelta, pending_for: timedelta, limit: int
    ) -> tuple[int, int]:
        """``pending`` -> ``expired`` for deliveries created, or retried, at least ``pending_for``
        ago; delete those that left ``pending`` at least ``finished_for`` ago. At most ``limit`` of
        each, oldest first. Returns how many expired, and how many were deleted."""


class CreditAlertPort(Protocol):
    """The threshold below which an owner is told of low credits. Raises
    ``DatabaseUnavailable``."""

    async def threshold(self, owner: Owner) -> int | None:
        """None is off."""

    async def set_threshold(self, owner: Owner, threshold: int | None) -> None:
        """Each time the balance falls from ``threshold`` or more to less, each endpoint of the
        owner that asks for ``CREDITS_LOW`` gets one delivery, in the same transaction. Creates the
        account if there is none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Due:
    """A delivery to send. ``failed_attempts`` are those since it was created or last retried,
    ``age`` the time since then."""

    id: UUID
    event: WebhookEvent
    session_id: UUID | None
    created_at: datetime
    failed_attempts: int
    age: timedelta


@dataclass(frozen=True, slots=True, kw_only=True)
class Turn:
    """The exclusive right to send to an endpoint, until its lease ends, with the deliveries to
    send. ``number`` fences what the turn writes about the endpoint.

    ``waiting`` says that more deliveries are due than these.
    """

    endpoint: Endpoint
    number: int
    window: int
    due: Sequence[Due]
    waiting: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """How an attempt ended. The delivery is ``delivered`` or ``failed``, or stays ``pending`` until
    ``again_after``."""

    delivery_id: UUID
    attempt: DeliveryAttempt
    status: DeliveryStatus
    again_after: timedelta = timedelta(0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TurnResult:
    """What a turn came to, and the endpoint's state after it. ``paused_for`` None is no pause.
    ``disable`` disables the endpoint; ``enable`` enables a ``FAILING`` one."""

    endpoint_id: UUID
    number: int
    outcomes: Sequence[Outcome]
    window: int
    failures: int
    paused_for: timedelta | None = None
    disable: DisabledReason | None = None
    enable: bool = False


class OutboxPort(Protocol):
    """Delivering, in any number of processes. A delivery is written with what it tells of: by the
    database itself, for every writer that ends a session or debits an account. Raises
    ``DatabaseUnavailable``."""

    async def claim(self, *, limit: int, window: int, lease: timedelta) -> list[Turn]:
        """Turns at up to ``limit`` endpoints that have a due delivery, are neither paused nor
        disabled (a ``FAILING`` one is due when its pause ends), and have no turn whose lease holds.
        No two callers get the same endpoint. A turn has up to ``window``, and up to the endpoint's
        window, of its due deliveries, those due first; and one if the endpoint was paused: a probe.
        """

    async def settle(self, result: TurnResult) -> bool:
        """Record the attempts, and end the turn. A ``delivered`` delivery stays so. If another turn
        has begun meanwhile, or the owner enabled or disabled the endpoint, only the attempts and
        what was delivered are recorded: False."""

    async def sessions(self, session_ids: Sequence[UUID]) -> list[GenerationSession]:
        """The sessions with these ids as they are now, in any order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Response:
    """An endpoint's response: the beginning of its body as text."""

    status: int
    body: str
    retry_after_seconds: float = 0.0


class WebhookSenderPort(Protocol):
    """Sends to addresses on the public internet, and to no other."""

    async def check(self, url: str) -> None:
        """Raises ``InvalidInput`` for ``url`` unless all addresses of its host are public now."""

    async def send(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Response:
        """POST the ``body``. No redirect is followed, and a connection is made only to an address
        that was checked for it. Raises ``NotDelivered`` if there is no response in time."""

    async def close(self) -> None:
        """Close all connections."""
