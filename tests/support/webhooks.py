"""Webhook endpoints for tests to vary."""

from datetime import timedelta
from typing import Any
from uuid import UUID

from uuid_utils.compat import uuid7

from adapters.webhooks.secrets import new_webhook_secret
from domain.credits import Owner
from domain.endpoints import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    Endpoint,
    Secrets,
)
from domain.webhook_ports import DeliveryRepoPort, EndpointRepoPort, Outcome, Turn, TurnResult
from tests.support.clock import START
from tests.support.examples import MANY, USER

URL = "https://shop.example/hooks"
TURN = timedelta(seconds=60)


def an_endpoint(owner: Owner = USER, **changes: Any) -> Endpoint:
    fields: dict[str, Any] = {
        "id": uuid7(),
        "owner": owner,
        "url": URL,
        "secrets": Secrets(current=new_webhook_secret()),
        "created_at": START,
    }
    return Endpoint(**fields | changes)


async def added(repo: EndpointRepoPort, owner: Owner = USER, **changes: Any) -> Endpoint:
    """An endpoint as the database has it."""
    endpoint = an_endpoint(owner, **changes)
    await repo.add(endpoint, max_endpoints=MANY)
    return await repo.get(endpoint.id, owner)


async def deliveries_of(
    repo: DeliveryRepoPort, endpoint: Endpoint, status: DeliveryStatus | None = None
) -> list[Delivery]:
    """The newest deliveries, newest first."""
    return await repo.deliveries(
        endpoint.id, endpoint.owner, status=status, limit=1_000, after=None
    )


def an_attempt(status: int | None = 200, **changes: Any) -> DeliveryAttempt:
    fields: dict[str, Any] = {
        "at": START,
        "status": status,
        "error": None if status else "timeout",
        "duration_ms": 12,
        "response": "ok",
    }
    return DeliveryAttempt(**fields | changes)


def an_outcome(delivery_id: UUID, **changes: Any) -> Outcome:
    """Delivered, unless ``changes`` say otherwise."""
    fields: dict[str, Any] = {
        "delivery_id": delivery_id,
        "attempt": an_attempt(),
        "status": DeliveryStatus.DELIVERED,
    }
    return Outcome(**fields | changes)


def a_result(turn: Turn, *outcomes: Outcome, **changes: Any) -> TurnResult:
    """All is delivered, unless there are ``outcomes``."""
    fields: dict[str, Any] = {
        "endpoint_id": turn.endpoint.id,
        "number": turn.number,
        "outcomes": outcomes or [an_outcome(due.id) for due in turn.due],
        "window": turn.window,
        "failures": 0,
    }
    return TurnResult(**fields | changes)
