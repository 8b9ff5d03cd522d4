"""Owners' webhook endpoints and thresholds: every adapter keeps the same promises."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from uuid_utils.compat import uuid7

from adapters.webhooks.secrets import new_webhook_secret
from domain.credits import Owner
from domain.endpoints import (
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    WebhookEvent,
)
from domain.errors import Conflict, NotFound
from tests.contracts.backends import Backend
from tests.support.examples import STORE, USER
from tests.support.webhooks import TURN, a_result, added, an_endpoint, deliveries_of

pytestmark = pytest.mark.anyio

DAY = timedelta(days=1)


async def test_added_endpoint_is_kept_as_given(backend: Backend) -> None:
    asked = an_endpoint(
        STORE, events=frozenset({WebhookEvent.FAILED}), description="for the warehouse"
    )
    await backend.webhooks.add(asked, max_endpoints=1)

    found = await backend.webhooks.get(asked.id, STORE)

    assert replace(found, created_at=asked.created_at) == asked
    assert await backend.webhooks.all(STORE) == [found]
    assert await backend.webhooks.all(USER) == []


async def test_endpoints_are_listed_newest_first(backend: Backend) -> None:
    ids = []
    for _ in range(3):
        ids.append((await added(backend.webhooks)).id)
        await backend.advance(timedelta(seconds=1))

    assert [one.id for one in await backend.webhooks.all(USER)] == ids[::-1]


async def test_concurrent_endpoints_count_each_other(backend: Backend) -> None:
    calls = [backend.webhooks.add(an_endpoint(), max_endpoints=3) for _ in range(10)]
    ended = await asyncio.gather(*calls, return_exceptions=True)

    assert sum(isinstance(one, Conflict) for one in ended) == 7
    assert len(await backend.webhooks.all(USER)) == 3


async def unknown(backend: Backend, endpoint_id: UUID, owner: Owner, call: str) -> None:
    """Each call that names an endpoint."""
    hooks, other = backend.webhooks, uuid7()
    now = backend.now()
    calls: dict[str, Any] = {
        "get": lambda: hooks.get(endpoint_id, owner),
        "change": lambda: hooks.change(endpoint_id, owner, EndpointChange(enabled=False)),
        "rotate": lambda: hooks.rotate(
            endpoint_id, owner, secret=new_webhook_secret(), previous_for=DAY
        ),
        "deliveries": lambda: hooks.deliveries(
            endpoint_id, owner, status=None, limit=1, after=None
        ),
        "delivery": lambda: hooks.delivery(other, owner),
        "add_test": lambda: hooks.add_test(other, endpoint_id, owner),
        "retry": lambda: hooks.retry(other, owner),
        "retry_failed": lambda: hooks.retry_failed(endpoint_id, owner, since=now, limit=1),
    }
    with pytest.raises(NotFound):
        await calls[call]()


@pytest.mark.parametrize(
    "call",
    ["get", "change", "rotate", "deliveries", "delivery", "add_test", "retry", "retry_failed"],
)
async def test_other_owners_endpoints_are_unknown(backend: Backend, call: str) -> None:
    endpoint = await added(backend.webhooks, STORE)

    await unknown(backend, endpoint.id, USER, call)
    await unknown(backend, uuid7(), STORE, call)

    assert not await backend.webhooks.delete(endpoint.id, USER)
    assert await backend.webhooks.all(STORE) == [endpoint]
    assert await deliveries_of(backend.webhooks, endpoint) == []


async def test_delivery_belongs_to_its_owner(backend: Backend) -> None:
    """Another owner with an endpoint does not have it, and cannot send it again."""
    one, _ = await added(backend.webhooks), await added(backend.webhooks, STORE)
    delivery = await backend.webhooks.add_test(uuid7(), one.id, USER)

    for read in (backend.webhooks.delivery, backend.webhooks.retry):
        with pytest.raises(NotFound):
            await read(delivery.id, STORE)

    assert await backend.webhooks.delivery(delivery.id, USER) == delivery


@pytest.mark.parametrize(
    ("change", "after"),
    [
        (EndpointChange(url="https://b.example/"), {"url": "https://b.example/"}),
        (
            EndpointChange(events=frozenset({WebhookEvent.CREDITS_LOW})),
            {"events": frozenset({WebhookEvent.CREDITS_LOW})},
        ),
        (EndpointChange(description="other"), {"description": "other"}),
        (EndpointChange(description=""), {"description": ""}),
        (EndpointChange(), {}),
    ],
    ids=str,
)
async def test_change_leaves_other_fields(
    backend: Backend, change: EndpointChange, after: dict[str, Any]
) -> None:
    before = await added(backend.webhooks, description="mine")

    changed = await backend.webhooks.change(before.id, USER, change)

    assert changed == replace(before, **after) == await backend.webhooks.get(before.id, USER)


async def test_concurrent_changes_of_different_fields_are_kept(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)

    await asyncio.gather(
        backend.webhooks.change(endpoint.id, USER, EndpointChange(url="https://b.example/")),
        backend.webhooks.change(endpoint.id, USER, EndpointChange(description="other")),
    )

    changed = await backend.webhooks.get(endpoint.id, USER)
    assert (changed.url, changed.description) == ("https://b.example/", "other")


async def disabled(backend: Backend, reason: DisabledReason) -> Endpoint:
    """An endpoint that failed twice and was disabled."""
    endpoint = await added(backend.webhooks)
    if reason is DisabledReason.OWNER:
        return await backend.webhooks.change(endpoint.id, USER, EndpointChange(enabled=False))
    await backend.webhooks.add_test(uuid7(), endpoint.id, USER)
    (turn,) = await backend.webhooks.claim(limit=1, window=8, lease=TURN)
    result = a_result(turn, failures=2, disable=reason, paused_for=DAY)
    assert await backend.webhooks.settle(result)
    return await backend.webhooks.get(endpoint.id, USER)


@pytest.mark.parametrize("reason", DisabledReason)
async def test_enabling_forgets_failures_and_pause(
    backend: Backend, reason: DisabledReason
) -> None:
    before = await disabled(backend, reason)
    assert (before.disabled_at is not None, before.disabled_reason) == (True, reason)

    enabled = await backend.webhooks.change(before.id, USER, EndpointChange(enabled=True))

    assert (enabled.disabled_at, enabled.disabled_reason) == (None, None)
    assert (enabled.failures, enabled.failing_since, enabled.paused_until) == (0, None, None)


@pytest.mark.parametrize("reason", DisabledReason)
async def test_disabling_a_disabled_endpoint_makes_it_the_owners(
    backend: Backend, reason: DisabledReason
) -> None:
    """It is probed no more. The time at which it was disabled stays."""
    before = await disabled(backend, reason)

    after = await backend.webhooks.change(before.id, USER, EndpointChange(enabled=False))

    assert after == replace(before, disabled_reason=DisabledReason.OWNER)


async def test_rotation_keeps_one_secret_before(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    second, third = new_webhook_secret(), new_webhook_secret()

    one = await backend.webhooks.rotate(endpoint.id, USER, secret=second, previous_for=DAY)
    two = await backend.webhooks.rotate(endpoint.id, USER, secret=third, previous_for=DAY)

    now = backend.now()
    assert one.secrets.at(now) == (second, endpoint.secrets.current)
    assert two.secrets.at(now) == (third, second)
    await backend.advance(DAY)
    later = await backend.webhooks.get(endpoint.id, USER)
    assert later.secrets.at(backend.now()) == (third,)


async def test_deleted_endpoint_takes_its_deliveries(backend: Backend) -> None:
    endpoint, kept = await added(backend.webhooks), await added(backend.webhooks)
    await backend.finished_of(USER)

    assert await backend.webhooks.delete(endpoint.id, USER)

    assert not await backend.webhooks.delete(endpoint.id, USER)
    assert await backend.webhooks.all(USER) == [kept]
    assert len(await deliveries_of(backend.webhooks, kept)) == 1
    assert [
        turn.endpoint.id for turn in await backend.webhooks.claim(limit=9, window=8, lease=TURN)
    ] == [kept.id]


async def test_all_of_an_owner_is_deleted_in_bounded_batches(backend: Backend) -> None:
    """Deliveries first, then endpoints and the threshold. Other owners keep theirs."""
    endpoint, other = await added(backend.webhooks), await added(backend.webhooks, STORE)
    await backend.webhooks.set_threshold(USER, 5)
    await backend.webhooks.set_threshold(STORE, 5)
    for _ in range(5):
        await backend.webhooks.add_test(uuid7(), endpoint.id, USER)
    await backend.webhooks.add_test(uuid7(), other.id, STORE)

    deleted = [await backend.webhooks.delete_all(USER, limit=2) for _ in range(4)]

    assert deleted == [2, 2, 2, 0]
    assert await backend.webhooks.all(USER) == []
    assert await backend.webhooks.threshold(USER) is None
    assert len(await deliveries_of(backend.webhooks, other)) == 1
    assert await backend.webhooks.threshold(STORE) == 5


async def test_threshold_is_off_until_it_is_set(backend: Backend) -> None:
    before = await backend.webhooks.threshold(USER)
    await backend.webhooks.set_threshold(USER, 3)

    assert (before, await backend.webhooks.threshold(USER)) == (None, 3)
    assert await backend.webhooks.threshold(STORE) is None


async def test_low_credits_are_told_once_per_crossing(backend: Backend) -> None:
    """When the balance falls from the threshold or more to less, and again after it rose."""
    endpoint = await added(backend.webhooks, events=frozenset({WebhookEvent.CREDITS_LOW}))
    await added(backend.webhooks, events=frozenset({WebhookEvent.FAILED}))
    await added(backend.webhooks, STORE)
    await backend.credits.grant(USER, 4, note="test")
    await backend.webhooks.set_threshold(USER, 3)

    told = []
    for _ in range(3):
        await backend.debited(USER)
        told.append(len(await deliveries_of(backend.webhooks, endpoint)))
    await backend.credits.grant(USER, 2, note="test")
    await backend.debited(USER)
    told.append(len(await deliveries_of(backend.webhooks, endpoint)))

    assert told == [0, 1, 1, 2]
    delivery = (await deliveries_of(backend.webhooks, endpoint))[0]
    assert (delivery.event, delivery.session_id) == (WebhookEvent.CREDITS_LOW, None)
    assert delivery.status is DeliveryStatus.PENDING


async def test_without_a_threshold_no_one_is_told(backend: Backend) -> None:
    endpoint = await added(backend.webhooks)
    await backend.credits.grant(USER, 1, note="test")
    await backend.webhooks.set_threshold(USER, 1)
    await backend.webhooks.set_threshold(USER, None)

    await backend.debited(USER)

    assert await backend.balance() == 0
    assert await deliveries_of(backend.webhooks, endpoint) == []
