"""What owners see of their deliveries, retries and retention, on every adapter."""

from datetime import timedelta
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from domain.endpoints import DeliveryStatus, Endpoint, WebhookEvent
from domain.ports import Position
from tests.contracts.backends import Backend
from tests.support.examples import STORE, USER
from tests.support.webhooks import (
    TURN,
    a_result,
    added,
    an_attempt,
    an_outcome,
    deliveries_of,
)

pytestmark = pytest.mark.anyio

MINUTE, DAY = timedelta(minutes=1), timedelta(days=1)
AGES = {"finished_for": 7 * DAY, "pending_for": 14 * DAY}


async def due_tests(backend: Backend, endpoint: Endpoint, count: int) -> list[UUID]:
    """The ids of new deliveries, a minute apart, oldest first."""
    ids = []
    for _ in range(count):
        ids.append(uuid7())
        await backend.webhooks.add_test(ids[-1], endpoint.id, endpoint.owner)
        await backend.advance(MINUTE)
    return ids


async def ended(backend: Backend, status: DeliveryStatus) -> None:
    """End the delivery that is due first."""
    (turn,) = await backend.webhooks.claim(limit=1, window=8, lease=TURN)
    attempt = an_attempt(200 if status is DeliveryStatus.DELIVERED else 500)
    outcome = an_outcome(turn.due[0].id, attempt=attempt, status=status)
    assert await backend.webhooks.settle(a_result(turn, outcome))


async def test_deliveries_are_listed_newest_first_in_pages(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    ids = await due_tests(backend, endpoint, 5)
    after, seen = None, []
    while page := await backend.webhooks.deliveries(
        endpoint.id, USER, status=None, limit=2, after=after
    ):
        seen += [one.id for one in page]
        after = Position(created_at=page[-1].created_at, id=page[-1].id)

    assert seen == ids[::-1]


async def test_deliveries_are_listed_by_status(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    one, other, _ = await due_tests(backend, endpoint, 3)
    await ended(backend, DeliveryStatus.DELIVERED)
    await ended(backend, DeliveryStatus.FAILED)

    listed = {
        status: [d.id for d in await deliveries_of(backend.webhooks, endpoint, status)]
        for status in DeliveryStatus
    }

    assert listed[DeliveryStatus.DELIVERED] == [one]
    assert listed[DeliveryStatus.FAILED] == [other]
    assert len(listed[DeliveryStatus.PENDING]) == 1
    assert listed[DeliveryStatus.EXPIRED] == []


async def test_test_event_is_due_at_once(backend: Backend) -> None:
    """Whatever the endpoint asks for."""
    endpoint = await added(backend.webhooks, events=frozenset({WebhookEvent.FAILED}))

    delivery = await backend.webhooks.add_test(uuid7(), endpoint.id, USER)

    (turn,) = await backend.webhooks.claim(limit=1, window=8, lease=TURN)
    assert delivery.event is WebhookEvent.TEST
    assert [due.id for due in turn.due] == [delivery.id]


@pytest.mark.parametrize("status", [DeliveryStatus.DELIVERED, DeliveryStatus.FAILED])
async def test_retry_sends_the_same_delivery_again(
    backend: Backend, status: DeliveryStatus
) -> None:
    """With all its tries, and its age counted anew. Its attempts stay."""
    endpoint = await added(backend.webhooks)
    (delivery_id,) = await due_tests(backend, endpoint, 1)
    await ended(backend, DeliveryStatus.PENDING)
    await ended(backend, status)
    await backend.advance(DAY)

    retried = await backend.webhooks.retry(delivery_id, USER)

    (turn,) = await backend.webhooks.claim(limit=1, window=8, lease=TURN)
    assert (retried.status, retried.attempt_count) == (DeliveryStatus.PENDING, 2)
    assert len(retried.attempts) == 2
    assert [(due.id, due.failed_attempts) for due in turn.due] == [(delivery_id, 0)]
    assert turn.due[0].age < MINUTE


async def test_failed_deliveries_since_a_time_are_retried_oldest_first(backend: Backend) -> None:
    endpoint, other = await added(backend.webhooks), await added(backend.webhooks, STORE)
    await due_tests(backend, endpoint, 4)
    for status in (DeliveryStatus.FAILED,) * 3 + (DeliveryStatus.DELIVERED,):
        await ended(backend, status)
    await due_tests(backend, other, 1)
    await ended(backend, DeliveryStatus.FAILED)
    _, second, third, _ = (await deliveries_of(backend.webhooks, endpoint))[::-1]

    retried = [
        await backend.webhooks.retry_failed(endpoint.id, USER, since=since, limit=limit)
        for since, limit in ((second.created_at, 1), (second.created_at, 5))
    ]

    assert retried == [1, 1]
    pending = await deliveries_of(backend.webhooks, endpoint, DeliveryStatus.PENDING)
    assert [one.id for one in pending] == [third.id, second.id]


async def test_pending_deliveries_expire_at_the_end_of_their_retention(backend: Backend) -> None:
    """They are not sent, and can be retried until they are deleted."""
    endpoint = await added(backend.webhooks)
    old = await due_tests(backend, endpoint, 3)
    await backend.advance(13 * DAY)
    await backend.webhooks.retry(old[0], USER)
    await backend.advance(DAY)
    (new,) = await due_tests(backend, endpoint, 1)

    expired = [await backend.webhooks.purge(**AGES, limit=1) for _ in range(3)]

    assert expired == [(1, 0), (1, 0), (0, 0)]
    listed = await deliveries_of(backend.webhooks, endpoint, DeliveryStatus.EXPIRED)
    assert [one.id for one in listed] == [old[2], old[1]]
    assert all(one.next_attempt_at is None for one in listed)
    (turn,) = await backend.webhooks.claim(limit=1, window=8, lease=TURN)
    assert turn.due[0].id == old[0]
    since = listed[-1].created_at
    assert await backend.webhooks.retry_failed(endpoint.id, USER, since=since, limit=9) == 2
    assert new in {one.id for one in await deliveries_of(backend.webhooks, endpoint)}


async def test_ended_deliveries_are_deleted_after_a_while(backend: Backend) -> None:
    """In batches, oldest first; pending ones stay."""
    endpoint = await added(backend.webhooks)
    ids = await due_tests(backend, endpoint, 4)
    for status in (DeliveryStatus.DELIVERED, DeliveryStatus.FAILED, DeliveryStatus.DELIVERED):
        await ended(backend, status)
        await backend.advance(MINUTE)
    early = await backend.webhooks.purge(**AGES, limit=9)
    await backend.advance(7 * DAY)

    deleted = [await backend.webhooks.purge(**AGES, limit=2) for _ in range(3)]

    assert early == (0, 0)
    assert deleted == [(0, 2), (0, 1), (0, 0)]
    assert [one.id for one in await deliveries_of(backend.webhooks, endpoint)] == [ids[3]]


async def test_what_ended_first_is_deleted_first(backend: Backend) -> None:
    """And not what was created first."""
    endpoint = await added(backend.webhooks)
    first, _ = await due_tests(backend, endpoint, 2)
    (turn,) = await backend.webhooks.claim(limit=1, window=8, lease=TURN)
    again = an_outcome(first, status=DeliveryStatus.PENDING, again_after=MINUTE)
    assert await backend.webhooks.settle(a_result(turn, again))
    for _ in range(2):
        await ended(backend, DeliveryStatus.DELIVERED)
        await backend.advance(MINUTE)
    await backend.advance(7 * DAY)

    await backend.webhooks.purge(**AGES, limit=1)

    assert [one.id for one in await deliveries_of(backend.webhooks, endpoint)] == [first]
