"""Owners manage their webhooks: endpoints, secrets, and what was delivered to them."""

from collections.abc import Awaitable, Callable, Collection
from dataclasses import dataclass, fields, replace
from datetime import datetime, timedelta
from uuid import UUID

from domain.account_ports import AuditLogPort
from domain.credits import MAX_GRANT, Owner
from domain.endpoints import (
    ALL_EVENTS,
    Delivery,
    DeliveryStatus,
    Endpoint,
    EndpointChange,
    IssuedSecret,
    Secrets,
    checked_events,
)
from domain.errors import InvalidInput, NotFound
from domain.labels import checked_label
from domain.links import PUBLIC_LINKS, LinkRules, check_link
from domain.operators import Operator
from domain.ports import Position
from domain.webhook_ports import CreditAlertPort, DeliveryRepoPort, EndpointRepoPort

MAX_DESCRIPTION_LENGTH = 200
MAX_PAGE = 50

CheckAddress = Callable[[str], Awaitable[None]]
"""``WebhookSenderPort.check``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebhookPolicy:
    """``rotation`` is how long the secret before still signs, beside the new one. One call retries
    up to ``max_retried`` deliveries."""

    max_endpoints: int = 10
    rotation: timedelta = timedelta(hours=24)
    max_retried: int = 10_000
    retry_batch: int = 1_000


class Webhooks:
    """Manages an owner's webhooks. Every method raises ``NotFound`` for an endpoint or a delivery
    that the owner does not have, and ``DatabaseUnavailable``.

    ``by`` is the operator who makes a change for the owner. Such a change is in the audit log
    before it is made, without the URL, which may carry a credential, and without the secret.

    ``check_address`` looks the host of a URL up. ``new_secret`` returns a secret as Standard
    Webhooks writes it.
    """

    def __init__(
        self,
        *,
        endpoints: EndpointRepoPort,
        deliveries: DeliveryRepoPort,
        alerts: CreditAlertPort,
        audit_log: AuditLogPort,
        check_address: CheckAddress,
        new_secret: Callable[[], str],
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
        policy: WebhookPolicy,
        links: LinkRules = PUBLIC_LINKS,
    ) -> None:
        self._endpoints = endpoints
        self._deliveries = deliveries
        self._alerts = alerts
        self._audit_log = audit_log
        self._check_address = check_address
        self._new_secret = new_secret
        self._new_id = new_id
        self._clock = clock
        self._policy = policy
        self._links = links

    async def create(
        self,
        owner: Owner,
        *,
        url: str,
        events: Collection[str] = ALL_EVENTS,
        description: str = "",
        by: Operator | None = None,
    ) -> IssuedSecret:
        """A new endpoint, with its secret. Raises ``InvalidInput`` for ``url``, ``events`` or
        ``description``, and ``Conflict`` if the owner has too many endpoints."""
        endpoint = Endpoint(
            id=self._new_id(),
            owner=owner,
            url=await self._checked_url(url),
            events=checked_events(events),
            description=_checked_description(description),
            secrets=Secrets(current=self._new_secret()),
            created_at=self._clock(),
        )
        if by is not None:
            events = sorted(endpoint.events)
            await self._record(by, "create", owner, endpoint_id=endpoint.id, events=events)
        await self._endpoints.add(endpoint, max_endpoints=self._policy.max_endpoints)
        stored = await self._endpoints.get(endpoint.id, owner)  # With the database's time.
        return IssuedSecret(endpoint=stored, secret=endpoint.secrets.current)

    async def all(self, owner: Owner) -> list[Endpoint]:
        """The owner's endpoints, newest first: at most ``WebhookPolicy.max_endpoints``."""
        return await self._endpoints.all(owner)

    async def get(self, endpoint_id: UUID, owner: Owner) -> Endpoint:
        """The endpoint. Show no secret of it."""
        return await self._endpoints.get(endpoint_id, owner)

    async def update(
        self, endpoint_id: UUID, owner: Owner, change: EndpointChange, *, by: Operator | None = None
    ) -> Endpoint:
        """The endpoint after ``change``. Raises ``InvalidInput`` like ``create``."""
        await self._endpoints.get(endpoint_id, owner)
        if change.url is not None:
            change = replace(change, url=await self._checked_url(change.url))
        if change.events is not None:
            change = replace(change, events=checked_events(change.events))
        if change.description is not None:
            change = replace(change, description=_checked_description(change.description))
        if by is not None:
            changed = [name for name in _CHANGEABLE if getattr(change, name) is not None]
            await self._record(by, "change", owner, endpoint_id=endpoint_id, fields=changed)
        return await self._endpoints.change(endpoint_id, owner, change)

    async def delete(self, endpoint_id: UUID, owner: Owner, *, by: Operator | None = None) -> None:
        """Delete the endpoint with its deliveries, whatever their status."""
        await self._record_known(by, "delete", endpoint_id, owner)
        if not await self._endpoints.delete(endpoint_id, owner):
            raise NotFound("No such webhook endpoint")

    async def rotate(
        self, endpoint_id: UUID, owner: Owner, *, by: Operator | None = None
    ) -> IssuedSecret:
        """The endpoint with a new secret. The one before signs as well for
        ``WebhookPolicy.rotation``; an older one no more."""
        secret = self._new_secret()
        await self._record_known(by, "rotate", endpoint_id, owner)
        endpoint = await self._endpoints.rotate(
            endpoint_id, owner, secret=secret, previous_for=self._policy.rotation
        )
        return IssuedSecret(endpoint=endpoint, secret=secret)

    async def send_test(
        self, endpoint_id: UUID, owner: Owner, *, by: Operator | None = None
    ) -> Delivery:
        """A pending delivery of the event ``webhook.test``, due at once. ``deliveries`` shows what
        came of it."""
        await self._record_known(by, "test", endpoint_id, owner)
        return await self._deliveries.add_test(self._new_id(), endpoint_id, owner)

    async def deliveries(
        self,
        endpoint_id: UUID,
        owner: Owner,
        *,
        status: DeliveryStatus | None = None,
        limit: int = 20,
        after: Position | None = None,
    ) -> list[Delivery]:
        """The endpoint's deliveries with their attempts, newest first, starting after the position
        ``after``. Raises ``InvalidInput`` unless ``limit`` is 1 to MAX_PAGE and one more, for a
        caller that looks whether there is a next page."""
        if not 1 <= limit <= MAX_PAGE + 1:
            raise InvalidInput("limit", f"must be 1 to {MAX_PAGE}")
        return await self._deliveries.deliveries(
            endpoint_id, owner, status=status, limit=limit, after=after
        )

    async def retry(
        self, delivery_id: UUID, owner: Owner, *, by: Operator | None = None
    ) -> Delivery:
        """Send a delivery once more, whatever its status, under the same ``webhook-id``."""
        if by is not None:
            found = await self._deliveries.delivery(delivery_id, owner)
            await self._record(
                by, "retry", owner, endpoint_id=found.endpoint_id, delivery_id=delivery_id
            )
        return await self._deliveries.retry(delivery_id, owner)

    async def retry_failed(
        self, endpoint_id: UUID, owner: Owner, *, since: datetime, by: Operator | None = None
    ) -> int:
        """Retry the endpoint's failed and expired deliveries created at or after ``since``, up to
        ``WebhookPolicy.max_retried``. Returns how many."""
        await self._record_known(by, "retry", endpoint_id, owner, since=since.isoformat())
        total = 0
        while total < self._policy.max_retried:
            limit = min(self._policy.retry_batch, self._policy.max_retried - total)
            retried = await self._deliveries.retry_failed(
                endpoint_id, owner, since=since, limit=limit
            )
            total += retried
            if retried < limit:
                break
        return total

    async def low_credits(self, owner: Owner) -> int | None:
        """The balance below which the owner is told of low credits; None is off."""
        return await self._alerts.threshold(owner)

    async def set_low_credits(
        self, owner: Owner, threshold: int | None, *, by: Operator | None = None
    ) -> None:
        """Raises ``InvalidInput`` for ``low_credits``."""
        if threshold is not None and not 1 <= threshold <= MAX_GRANT:
            raise InvalidInput("low_credits", f"must be 1 to {MAX_GRANT}")
        if by is not None:
            await self._record(by, "low_credits", owner, threshold=threshold)
        await self._alerts.set_threshold(owner, threshold)

    async def _checked_url(self, url: str) -> str:
        check_link("url", url, self._links)
        if not (url.lower().startswith("https:") or self._links.allow_loopback):
            raise InvalidInput("url", "must begin with https://")
        await self._check_address(url)
        return url

    async def _record_known(
        self,
        by: Operator | None,
        action: str,
        endpoint_id: UUID,
        owner: Owner,
        **details: object,
    ) -> None:
        """Record what an operator does to an endpoint, if the owner has it."""
        if by is not None:
            await self._endpoints.get(endpoint_id, owner)
            await self._record(by, action, owner, endpoint_id=endpoint_id, **details)

    async def _record(self, by: Operator, action: str, owner: Owner, **details: object) -> None:
        written = {
            name: str(value) if isinstance(value, UUID) else value
            for name, value in details.items()
        }
        await self._audit_log.add(by, f"webhooks.{action}", str(owner), **written)


_CHANGEABLE = [field.name for field in fields(EndpointChange)]


def _checked_description(text: str) -> str:
    return checked_label("description", text, max_length=MAX_DESCRIPTION_LENGTH, may_be_empty=True)
