"""Webhooks in PostgreSQL."""

from collections.abc import Iterable, Sequence
from datetime import datetime, timedelta
from itertools import groupby
from uuid import UUID

import asyncpg

from adapters.coalescing import DEFAULT_LIMITS, BatchLimits, Coalescer
from adapters.postgres.database import Database, too_many_calls
from adapters.sessions.rows import session_of
from adapters.webhooks import statements as sql
from domain.credits import Channel, Owner
from domain.endpoints import (
    Delivery,
    DeliveryAttempt,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    Secrets,
    WebhookEvent,
)
from domain.errors import Conflict, NotFound
from domain.ids import END_OF_TIME, LAST_ID
from domain.ports import Position
from domain.sessions import GenerationSession
from domain.webhook_ports import (
    CreditAlertPort,
    DeliveryRepoPort,
    Due,
    EndpointRepoPort,
    OutboxPort,
    Turn,
    TurnResult,
)

MARKED_AT_ONCE = 500
_DELETED_AT_ONCE = 1_000
_NO_ID = UUID(int=0)


class PostgresWebhookRepo(EndpointRepoPort, DeliveryRepoPort, CreditAlertPort, OutboxPort):
    """Turns that end together are settled in one statement. ``background`` has the connection of
    recovery."""

    def __init__(
        self,
        database: Database,
        *,
        background: Database | None = None,
        batches: BatchLimits = DEFAULT_LIMITS,
    ) -> None:
        self._database = database
        self._background = background or database
        self._after = _NO_ID
        self._marked_at_once = MARKED_AT_ONCE
        self._settle: Coalescer[TurnResult, bool] = batches.coalescer(
            self._settle_all,
            too_many=too_many_calls,
            key=lambda result: result.endpoint_id,
        )

    async def add(self, endpoint: Endpoint, *, max_endpoints: int) -> None:
        owner = (endpoint.owner.channel, endpoint.owner.id)
        await self._database.fetch(sql.MARK_OWNER, *owner)
        while await self._database.fetch_value(sql.MARK_SESSIONS, *owner, self._marked_at_once):
            pass
        values = (endpoint.url, sorted(endpoint.events), endpoint.description)
        async with self._database.transaction() as connection:
            await connection.execute(sql.LOCK_OWNER, *owner)
            added = await connection.fetchval(
                sql.ADD, max_endpoints, endpoint.id, *owner, *values, endpoint.secrets.current
            )
        if not added:
            raise Conflict(f"There are {max_endpoints} webhook endpoints already")

    async def get(self, endpoint_id: UUID, owner: Owner) -> Endpoint:
        return _found(await self._database.fetch_row(sql.GET, *_key(endpoint_id, owner)))

    async def all(self, owner: Owner) -> list[Endpoint]:
        rows = await self._database.fetch(sql.ALL, owner.channel, owner.id)
        return [_endpoint(row) for row in rows]

    async def change(self, endpoint_id: UUID, owner: Owner, change: EndpointChange) -> Endpoint:
        events = None if change.events is None else sorted(change.events)
        values = (change.url, events, change.description, change.enabled)
        key = _key(endpoint_id, owner)
        return _found(await self._database.fetch_row(sql.CHANGE, *key, *values))

    async def rotate(
        self, endpoint_id: UUID, owner: Owner, *, secret: str, previous_for: timedelta
    ) -> Endpoint:
        key = _key(endpoint_id, owner)
        return _found(await self._database.fetch_row(sql.ROTATE, *key, secret, previous_for))

    async def delete(self, endpoint_id: UUID, owner: Owner) -> bool:
        key = _key(endpoint_id, owner)
        deleted: int = await self._database.fetch_value(sql.DELETE, *key, _DELETED_AT_ONCE)
        return deleted > 0

    async def delete_all(self, owner: Owner, *, limit: int) -> int:
        of = (owner.channel, owner.id)
        deleted: int = await self._database.fetch_value(sql.DELETE_DELIVERIES_OF_OWNER, *of, limit)
        if deleted < limit:
            deleted += await self._database.fetch_value(sql.DELETE_ENDPOINTS_OF_OWNER, *of)
        return deleted

    async def deliveries(
        self,
        endpoint_id: UUID,
        owner: Owner,
        *,
        status: DeliveryStatus | None,
        limit: int,
        after: Position | None,
    ) -> list[Delivery]:
        await self.get(endpoint_id, owner)
        place = (END_OF_TIME, LAST_ID) if after is None else (after.created_at, after.id)
        failed = status in {DeliveryStatus.FAILED, DeliveryStatus.EXPIRED}
        statement = sql.DELIVERIES_FAILED if failed else sql.DELIVERIES
        rows = await self._database.fetch(statement, endpoint_id, status, *place, limit)
        return await self._with_attempts(rows)

    async def delivery(self, delivery_id: UUID, owner: Owner) -> Delivery:
        key = _key(delivery_id, owner)
        return await self._one(await self._database.fetch_row(sql.DELIVERY_OF_OWNER, *key))

    async def add_test(self, delivery_id: UUID, endpoint_id: UUID, owner: Owner) -> Delivery:
        key = _key(endpoint_id, owner)
        row = await self._database.fetch_row(sql.ADD_TEST, delivery_id, *key)
        if row is None:
            raise NotFound(_NO_ENDPOINT)
        return _delivery(row, ())

    async def retry(self, delivery_id: UUID, owner: Owner) -> Delivery:
        key = _key(delivery_id, owner)
        return await self._one(await self._database.fetch_row(sql.RETRY, *key))

    async def retry_failed(
        self, endpoint_id: UUID, owner: Owner, *, since: datetime, limit: int
    ) -> int:
        await self.get(endpoint_id, owner)
        retried: int = await self._database.fetch_value(sql.RETRY_FAILED, endpoint_id, since, limit)
        return retried

    async def purge(
        self, *, finished_for: timedelta, pending_for: timedelta, limit: int
    ) -> tuple[int, int]:
        gone: int = await self._background.fetch_value(sql.PURGE, finished_for, limit)
        expired: int = await self._background.fetch_value(sql.EXPIRE, pending_for, limit)
        await self._background.fetch_value(sql.PURGE_ORPHANS, limit)
        return expired, gone

    async def threshold(self, owner: Owner) -> int | None:
        threshold: int | None = await self._database.fetch_value(
            sql.THRESHOLD, owner.channel, owner.id
        )
        return threshold

    async def set_threshold(self, owner: Owner, threshold: int | None) -> None:
        await self._database.fetch(sql.SET_THRESHOLD, owner.channel, owner.id, threshold)

    async def claim(self, *, limit: int, window: int, lease: timedelta) -> list[Turn]:
        """Endpoints take turns in the order of their ids, from where the last call ended."""
        rows = await self._database.fetch(sql.CLAIM, limit, lease, self._after, window)
        turns = [_turn(list(of), window) for _, of in groupby(rows, key=lambda row: row["id"])]
        started, self._after = self._after, turns[-1].endpoint.id if turns else _NO_ID
        if len(turns) < limit:
            self._after = _NO_ID
        if turns or started == _NO_ID:
            return turns
        return await self.claim(limit=limit, window=window, lease=lease)

    async def settle(self, result: TurnResult) -> bool:
        return await self._settle(result)

    async def _settle_all(self, results: Sequence[TurnResult]) -> Sequence[bool]:
        ended = await self._database.fetch(sql.SETTLE, *_arrays(results))
        endpoints = {row["id"] for row in ended}
        return [result.endpoint_id in endpoints for result in results]

    async def sessions(self, session_ids: Sequence[UUID]) -> list[GenerationSession]:
        rows = await self._database.fetch(sql.SESSIONS, session_ids)
        return [session_of(row) for row in rows]

    async def _one(self, row: asyncpg.Record | None) -> Delivery:
        if row is None:
            raise NotFound("No such delivery")
        (delivery,) = await self._with_attempts([row])
        return delivery

    async def _with_attempts(self, rows: Sequence[asyncpg.Record]) -> list[Delivery]:
        if not rows:
            return []
        found = await self._database.fetch(sql.ATTEMPTS, [row["id"] for row in rows])
        attempts: dict[UUID, list[DeliveryAttempt]] = {}
        for attempt in found:
            attempts.setdefault(attempt["delivery_id"], []).append(_attempt(attempt))
        return [_delivery(row, attempts.get(row["id"], ())) for row in rows]


_NO_ENDPOINT = "No such webhook endpoint"


def _key(id_: UUID, owner: Owner) -> tuple[UUID, str, str]:
    return id_, owner.channel, owner.id


def _found(row: asyncpg.Record | None) -> Endpoint:
    if row is None:
        raise NotFound(_NO_ENDPOINT)
    return _endpoint(row)


def _endpoint(row: asyncpg.Record) -> Endpoint:
    reason = row["disabled_reason"]
    return Endpoint(
        id=row["id"],
        owner=Owner(channel=Channel(row["channel"]), id=row["owner_id"]),
        url=row["url"],
        events=frozenset(map(WebhookEvent, row["events"])),
        description=row["description"],
        secrets=Secrets(
            current=row["secret"],
            previous=row["previous_secret"],
            previous_until=row["previous_secret_until"],
        ),
        created_at=row["created_at"],
        disabled_at=row["disabled_at"],
        disabled_reason=None if reason is None else DisabledReason(reason),
        failures=row["failures"],
        failing_since=row["failing_since"],
        paused_until=row["paused_until"],
    )


def _delivery(row: asyncpg.Record, attempts: Iterable[DeliveryAttempt]) -> Delivery:
    return Delivery(
        id=row["id"],
        endpoint_id=row["endpoint_id"],
        event=WebhookEvent(row["event"]),
        session_id=row["session_id"],
        status=DeliveryStatus(row["status"]),
        created_at=row["created_at"],
        next_attempt_at=row["next_attempt_at"],
        attempt_count=row["attempts"],
        attempts=tuple(attempts),
    )


def _attempt(row: asyncpg.Record) -> DeliveryAttempt:
    return DeliveryAttempt(
        at=row["at"],
        status=row["http_status"],
        error=row["error"],
        duration_ms=row["duration_ms"],
        response=row["response"],
    )


def _turn(rows: Sequence[asyncpg.Record], at_most: int) -> Turn:
    """``rows`` are the endpoint's due deliveries, and perhaps one more."""
    endpoint, window = _endpoint(rows[0]), rows[0]["window_size"]
    size = min(window, at_most) if endpoint.paused_until is None else 1
    return Turn(
        endpoint=endpoint,
        number=rows[0]["turn"],
        window=window,
        due=[_due(row) for row in rows[:size]],
        waiting=len(rows) > size,
    )


def _due(row: asyncpg.Record) -> Due:
    return Due(
        id=row["delivery_id"],
        event=WebhookEvent(row["event"]),
        session_id=row["session_id"],
        created_at=row["event_at"],
        failed_attempts=row["failed_attempts"],
        age=row["age"],
    )


def _arrays(results: Sequence[TurnResult]) -> list[list[object]]:
    """The arguments of SETTLE: the columns of the turns, and those of their outcomes."""
    turns = [
        (
            result.endpoint_id,
            result.number,
            result.window,
            result.failures,
            result.paused_for,
            result.disable,
            result.enable,
        )
        for result in results
    ]
    outcomes = [
        (
            result.endpoint_id,
            outcome.delivery_id,
            outcome.status,
            outcome.again_after,
            outcome.attempt.at,
            outcome.attempt.status,
            outcome.attempt.error,
            outcome.attempt.duration_ms,
            outcome.attempt.response,
        )
        for result in results
        for outcome in result.outcomes
    ]
    return [*_columns(turns, 7), *_columns(outcomes, 9)]


def _columns(rows: Sequence[tuple[object, ...]], width: int) -> list[list[object]]:
    return [[row[place] for row in rows] for place in range(width)]
