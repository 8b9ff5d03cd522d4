"""Webhooks in this process's memory, for tests and development.

No method awaits anything, so each is as atomic as a transaction.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from uuid import UUID, uuid4

from domain.credits import Owner
from domain.endpoints import (
    MAX_ATTEMPTS_SHOWN,
    Delivery,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    Secrets,
    WebhookEvent,
)
from domain.errors import Conflict, NotFound
from domain.ports import Position
from domain.sessions import GenerationSession, SessionStatus
from domain.webhook_ports import (
    CreditAlertPort,
    DeliveryRepoPort,
    Due,
    EndpointRepoPort,
    OutboxPort,
    Outcome,
    Turn,
    TurnResult,
)


@dataclass(slots=True)
class _Endpoint:
    """An endpoint, and the turns at it."""

    endpoint: Endpoint
    number: int = 0
    window: int = 1
    leased_until: datetime | None = None


@dataclass(slots=True)
class _Delivery:
    """A delivery, and what only sending needs. ``since`` is when it was created or retried."""

    delivery: Delivery
    since: datetime
    failed_attempts: int = 0
    finished_at: datetime | None = None


class InMemoryWebhookRepo(EndpointRepoPort, DeliveryRepoPort, CreditAlertPort, OutboxPort):
    """``clock`` stands for the database's clock. ``session_ended`` and ``balance_changed`` are what
    the database's triggers do. ``find_session`` returns the session with an id, ``new_id`` one of a
    delivery that a trigger writes."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        find_session: Callable[[UUID], GenerationSession | None] = lambda _: None,
        new_id: Callable[[], UUID] = uuid4,
    ) -> None:
        self._clock = clock
        self._find_session = find_session
        self._new_id = new_id
        self._endpoints: dict[UUID, _Endpoint] = {}
        self._deliveries: dict[UUID, _Delivery] = {}
        self._thresholds: dict[Owner, int] = {}

    def session_ended(self, session: GenerationSession) -> None:
        completed = session.status is SessionStatus.COMPLETED
        event = WebhookEvent.COMPLETED if completed else WebhookEvent.FAILED
        self._tell(session.owner, event, session.id)

    def balance_changed(self, owner: Owner, *, before: int, after: int) -> None:
        threshold = self._thresholds.get(owner)
        if threshold is not None and before >= threshold > after:
            self._tell(owner, WebhookEvent.CREDITS_LOW, None)

    def _tell(self, owner: Owner, event: WebhookEvent, session_id: UUID | None) -> None:
        for row in self._endpoints.values():
            if row.endpoint.owner == owner and event in row.endpoint.events:
                self._add(self._new_id(), row.endpoint.id, event, session_id)

    def _add(
        self, id_: UUID, endpoint_id: UUID, event: WebhookEvent, session_id: UUID | None
    ) -> Delivery:
        now = self._clock()
        delivery = Delivery(
            id=id_,
            endpoint_id=endpoint_id,
            event=event,
            session_id=session_id,
            created_at=now,
            next_attempt_at=now,
        )
        self._deliveries[id_] = _Delivery(delivery=delivery, since=now)
        return delivery

    async def add(self, endpoint: Endpoint, *, max_endpoints: int) -> None:
        if len(await self.all(endpoint.owner)) >= max_endpoints:
            raise Conflict(f"There are {max_endpoints} webhook endpoints already")
        self._endpoints[endpoint.id] = _Endpoint(endpoint)

    async def get(self, endpoint_id: UUID, owner: Owner) -> Endpoint:
        return self._row(endpoint_id, owner).endpoint

    async def all(self, owner: Owner) -> list[Endpoint]:
        found = [row.endpoint for row in self._endpoints.values() if row.endpoint.owner == owner]
        return sorted(found, key=lambda one: (one.created_at, one.id), reverse=True)

    async def change(self, endpoint_id: UUID, owner: Owner, change: EndpointChange) -> Endpoint:
        row = self._row(endpoint_id, owner)
        before = row.endpoint
        row.endpoint = replace(
            before,
            url=before.url if change.url is None else change.url,
            events=before.events if change.events is None else change.events,
            description=before.description if change.description is None else change.description,
        )
        if change.enabled is not None:
            row.number += 1
            row.leased_until = None
        if change.enabled is False:
            self._disable(row, DisabledReason.OWNER)
        elif change.enabled:
            row.endpoint = _healthy(row.endpoint)
        return row.endpoint

    def _disable(self, row: _Endpoint, reason: DisabledReason) -> None:
        """Whatever its owner disabled stays so; the time of the first reason stays."""
        is_owners = row.endpoint.disabled_reason is DisabledReason.OWNER
        row.endpoint = replace(
            row.endpoint,
            disabled_at=row.endpoint.disabled_at or self._clock(),
            disabled_reason=DisabledReason.OWNER if is_owners else reason,
        )

    async def rotate(
        self, endpoint_id: UUID, owner: Owner, *, secret: str, previous_for: timedelta
    ) -> Endpoint:
        row = self._row(endpoint_id, owner)
        secrets = Secrets(
            current=secret,
            previous=row.endpoint.secrets.current,
            previous_until=self._clock() + previous_for,
        )
        row.endpoint = replace(row.endpoint, secrets=secrets)
        return row.endpoint

    async def delete(self, endpoint_id: UUID, owner: Owner) -> bool:
        row = self._endpoints.get(endpoint_id)
        if row is None or row.endpoint.owner != owner:
            return False
        del self._endpoints[endpoint_id]
        for one in self._of(endpoint_id):
            del self._deliveries[one.delivery.id]
        return True

    async def delete_all(self, owner: Owner, *, limit: int) -> int:
        ids = [endpoint.id for endpoint in await self.all(owner)]
        deliveries = [one for id_ in ids for one in self._of(id_)][:limit]
        for one in deliveries:
            del self._deliveries[one.delivery.id]
        if len(deliveries) == limit:
            return limit
        for id_ in ids:
            del self._endpoints[id_]
        self._thresholds.pop(owner, None)
        return len(deliveries) + len(ids)

    async def deliveries(
        self,
        endpoint_id: UUID,
        owner: Owner,
        *,
        status: DeliveryStatus | None,
        limit: int,
        after: Position | None,
    ) -> list[Delivery]:
        self._row(endpoint_id, owner)
        found = [
            one.delivery
            for one in self._of(endpoint_id)
            if status in {None, one.delivery.status}
            and (after is None or _position(one.delivery) < (after.created_at, after.id))
        ]
        return sorted(found, key=_position, reverse=True)[:limit]

    async def delivery(self, delivery_id: UUID, owner: Owner) -> Delivery:
        return self._delivery(delivery_id, owner).delivery

    async def add_test(self, delivery_id: UUID, endpoint_id: UUID, owner: Owner) -> Delivery:
        self._row(endpoint_id, owner)
        return self._add(delivery_id, endpoint_id, WebhookEvent.TEST, None)

    async def retry(self, delivery_id: UUID, owner: Owner) -> Delivery:
        row = self._delivery(delivery_id, owner)
        self._retry(row)
        return row.delivery

    async def retry_failed(
        self, endpoint_id: UUID, owner: Owner, *, since: datetime, limit: int
    ) -> int:
        self._row(endpoint_id, owner)
        failed = [
            one
            for one in self._of(endpoint_id)
            if one.delivery.status in {DeliveryStatus.FAILED, DeliveryStatus.EXPIRED}
            and one.delivery.created_at >= since
        ]
        failed.sort(key=lambda one: _position(one.delivery))
        for one in failed[:limit]:
            self._retry(one)
        return len(failed[:limit])

    def _retry(self, row: _Delivery) -> None:
        now = self._clock()
        row.since, row.failed_attempts, row.finished_at = now, 0, None
        row.delivery = replace(row.delivery, status=DeliveryStatus.PENDING, next_attempt_at=now)

    async def purge(
        self, *, finished_for: timedelta, pending_for: timedelta, limit: int
    ) -> tuple[int, int]:
        now = self._clock()
        # The database has one time for both: since when the status is what it is.
        rows = sorted(self._deliveries.values(), key=lambda one: one.finished_at or one.since)
        old = [
            one
            for one in rows
            if one.finished_at is not None and one.finished_at <= now - finished_for
        ]
        stale = [one for one in rows if one.finished_at is None and one.since <= now - pending_for]
        for one in old[:limit]:
            del self._deliveries[one.delivery.id]
        for one in stale[:limit]:
            self._finish(one, DeliveryStatus.EXPIRED)
        return len(stale[:limit]), len(old[:limit])

    def _finish(self, row: _Delivery, status: DeliveryStatus) -> None:
        row.finished_at = self._clock()
        row.delivery = replace(row.delivery, status=status, next_attempt_at=None)

    async def threshold(self, owner: Owner) -> int | None:
        return self._thresholds.get(owner)

    async def set_threshold(self, owner: Owner, threshold: int | None) -> None:
        self._thresholds.pop(owner, None)
        if threshold is not None:
            self._thresholds[owner] = threshold

    async def claim(self, *, limit: int, window: int, lease: timedelta) -> list[Turn]:
        turns: list[Turn] = []
        for id_, row in list(self._endpoints.items()):
            if len(turns) < limit and self._is_free(row) and (due := self._due(id_)):
                turns.append(self._turn(row, due, window, lease))
                self._endpoints[id_] = self._endpoints.pop(id_)  # Now behind all others.
        return turns

    def _is_free(self, row: _Endpoint) -> bool:
        now, endpoint = self._clock(), row.endpoint
        return (
            endpoint.disabled_reason in {None, DisabledReason.FAILING}
            and (endpoint.paused_until or now) <= now
            and (row.leased_until or now) <= now
        )

    def _turn(
        self, row: _Endpoint, due: Sequence[_Delivery], window: int, lease: timedelta
    ) -> Turn:
        now = self._clock()
        row.number += 1
        row.leased_until = now + lease
        size = min(row.window, window) if row.endpoint.paused_until is None else 1
        return Turn(
            endpoint=row.endpoint,
            number=row.number,
            window=row.window,
            due=[_due(one, now) for one in due[:size]],
            waiting=len(due) > size,
        )

    def _due(self, endpoint_id: UUID) -> list[_Delivery]:
        now = self._clock()
        due = [
            (one.delivery.next_attempt_at, one.delivery.created_at, one)
            for one in self._of(endpoint_id)
            if one.delivery.next_attempt_at is not None and one.delivery.next_attempt_at <= now
        ]
        return [one for *_, one in sorted(due, key=lambda item: item[:2])]

    async def settle(self, result: TurnResult) -> bool:
        row = self._endpoints.get(result.endpoint_id)
        holds = row is not None and row.number == result.number
        for outcome in result.outcomes:
            self._record(outcome, holds=holds)
        if row is None or not holds:
            return False
        now = self._clock()
        row.leased_until, row.window = None, result.window
        row.endpoint = replace(
            row.endpoint,
            failures=result.failures,
            failing_since=(row.endpoint.failing_since or now) if result.failures else None,
            paused_until=None if result.paused_for is None else now + result.paused_for,
        )
        if result.disable is not None:
            self._disable(row, result.disable)
        elif result.enable and row.endpoint.disabled_reason is DisabledReason.FAILING:
            row.endpoint = replace(row.endpoint, disabled_at=None, disabled_reason=None)
        return True

    async def sessions(self, session_ids: Sequence[UUID]) -> list[GenerationSession]:
        return list(filter(None, map(self._find_session, session_ids)))

    def _record(self, outcome: Outcome, *, holds: bool) -> None:
        row = self._deliveries.get(outcome.delivery_id)
        if row is None:
            return
        before = row.delivery
        row.delivery = replace(
            before,
            attempt_count=before.attempt_count + 1,
            attempts=(outcome.attempt, *before.attempts)[:MAX_ATTEMPTS_SHOWN],
        )
        is_delivered = outcome.status is DeliveryStatus.DELIVERED
        if before.status is not DeliveryStatus.PENDING or not (holds or is_delivered):
            return
        if outcome.status is not DeliveryStatus.PENDING:
            self._finish(row, outcome.status)
        else:
            row.failed_attempts += 1
            again_at = self._clock() + outcome.again_after
            row.delivery = replace(row.delivery, next_attempt_at=again_at)

    def _row(self, endpoint_id: UUID, owner: Owner) -> _Endpoint:
        row = self._endpoints.get(endpoint_id)
        if row is None or row.endpoint.owner != owner:
            raise NotFound("No such webhook endpoint")
        return row

    def _of(self, endpoint_id: UUID) -> list[_Delivery]:
        return [one for one in self._deliveries.values() if one.delivery.endpoint_id == endpoint_id]

    def _delivery(self, delivery_id: UUID, owner: Owner) -> _Delivery:
        row = self._deliveries.get(delivery_id)
        endpoint = None if row is None else self._endpoints.get(row.delivery.endpoint_id)
        if row is None or endpoint is None or endpoint.endpoint.owner != owner:
            raise NotFound("No such delivery")
        return row


def _healthy(endpoint: Endpoint) -> Endpoint:
    return replace(
        endpoint,
        disabled_at=None,
        disabled_reason=None,
        failures=0,
        failing_since=None,
        paused_until=None,
    )


def _due(row: _Delivery, now: datetime) -> Due:
    delivery = row.delivery
    return Due(
        id=delivery.id,
        event=delivery.event,
        session_id=delivery.session_id,
        created_at=delivery.created_at,
        failed_attempts=row.failed_attempts,
        age=now - row.since,
    )


def _position(delivery: Delivery) -> tuple[datetime, UUID]:
    return delivery.created_at, delivery.id
