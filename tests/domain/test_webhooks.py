"""Managing webhooks: what owners may register, and what they see."""

from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from functools import partial
from typing import Any

import pytest
from uuid_utils.compat import uuid7

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.webhooks.memory import InMemoryWebhookRepo
from adapters.webhooks.secrets import new_webhook_secret
from domain.credits import Channel, Owner
from domain.endpoints import ALL_EVENTS, DeliveryStatus, EndpointChange, WebhookEvent
from domain.errors import Conflict, InvalidInput, NotFound
from domain.webhooks import WebhookPolicy, Webhooks
from tests.support.clock import FakeClock
from tests.support.examples import OPERATOR, STORE, USER
from tests.support.service import Service
from tests.support.webhooks import added, deliveries_of

pytestmark = pytest.mark.anyio

URL = "https://shop.example/hooks"
HOUR = timedelta(hours=1)


class AsOperator:
    """Makes each change for an operator."""

    def __init__(self, webhooks: Webhooks) -> None:
        self._webhooks = webhooks

    def __getattr__(self, name: str) -> Any:
        return partial(getattr(self._webhooks, name), by=OPERATOR)


async def is_public(url: str) -> None:
    if "private" in url:
        raise InvalidInput("url", "does not lead to a public web address")


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def repo(clock: FakeClock) -> InMemoryWebhookRepo:
    return InMemoryWebhookRepo(clock=clock.now)


@pytest.fixture
def log(clock: FakeClock) -> InMemoryAuditLog:
    return InMemoryAuditLog(clock=clock.now)


@pytest.fixture
def webhooks(repo: InMemoryWebhookRepo, log: InMemoryAuditLog, clock: FakeClock) -> Webhooks:
    return Webhooks(
        endpoints=repo,
        deliveries=repo,
        alerts=repo,
        audit_log=log,
        check_address=is_public,
        new_secret=new_webhook_secret,
        new_id=uuid7,
        clock=clock.now,
        policy=WebhookPolicy(max_endpoints=2, max_retried=5, retry_batch=2),
    )


async def test_new_endpoint_shows_its_secret_once(webhooks: Webhooks) -> None:
    """The secret is in the answer to its creation, and in no text of the endpoint."""
    issued = await webhooks.create(STORE, url=URL)

    (endpoint,) = await webhooks.all(STORE)
    assert issued.secret == endpoint.secrets.current
    assert issued.secret.startswith("whsec_")
    assert endpoint.events == ALL_EVENTS
    assert issued.secret not in f"{issued!r} {endpoint!r} {endpoint.secrets!r}"


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"url": "ftp://shop.example/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "http://shop.example/hooks"}, "url"),
        ({"url": "https://private.example/"}, "url"),
        ({"events": []}, "events"),
        ({"events": ["webhook.test"]}, "events"),
        ({"events": ["generation.completed", "none"]}, "events"),
        ({"description": "x" * 201}, "description"),
    ],
)
async def test_unusable_endpoint_is_refused(
    webhooks: Webhooks, changes: dict[str, Any], field: str
) -> None:
    """The error names the field, when an endpoint is created and when it is changed."""
    issued = await webhooks.create(STORE, url=URL)

    with pytest.raises(InvalidInput) as created:
        await webhooks.create(STORE, **{"url": URL, **changes})
    with pytest.raises(InvalidInput) as updated:
        await webhooks.update(issued.endpoint.id, STORE, EndpointChange(**changes))

    assert created.value.field == updated.value.field == field
    assert await webhooks.all(STORE) == [issued.endpoint]


async def test_endpoints_of_an_owner_are_bounded(webhooks: Webhooks) -> None:
    for _ in range(2):
        await webhooks.create(STORE, url=URL)

    with pytest.raises(Conflict):
        await webhooks.create(STORE, url=URL)
    await webhooks.create(USER, url=URL)

    assert len(await webhooks.all(STORE)) == 2


CALLS: dict[str, Callable[[Any, Any, Owner], Any]] = {
    "get": lambda webhooks, id_, owner: webhooks.get(id_, owner),
    "update": lambda webhooks, id_, owner: webhooks.update(id_, owner, EndpointChange(url=URL)),
    "delete": lambda webhooks, id_, owner: webhooks.delete(id_, owner),
    "rotate": lambda webhooks, id_, owner: webhooks.rotate(id_, owner),
    "send_test": lambda webhooks, id_, owner: webhooks.send_test(id_, owner),
    "deliveries": lambda webhooks, id_, owner: webhooks.deliveries(id_, owner),
    "retry": lambda webhooks, _, owner: webhooks.retry(uuid7(), owner),
    "retry_failed": lambda webhooks, id_, owner: webhooks.retry_failed(
        id_, owner, since=datetime(2020, 1, 1, tzinfo=UTC)
    ),
}


@pytest.mark.parametrize("call", CALLS)
async def test_another_owners_endpoint_looks_unknown(webhooks: Webhooks, call: str) -> None:
    issued = await webhooks.create(STORE, url=URL)
    other = Owner(channel=Channel.B2B, id="another")

    with pytest.raises(NotFound) as another:
        await CALLS[call](webhooks, issued.endpoint.id, other)
    with pytest.raises(NotFound) as unknown:
        await CALLS[call](webhooks, uuid7(), other)

    assert str(another.value) == str(unknown.value)
    assert await webhooks.all(STORE) == [issued.endpoint]


async def test_rotation_keeps_the_secret_before_for_a_day(
    webhooks: Webhooks, clock: FakeClock
) -> None:
    """Messages are signed with both until then, the new one first. A second rotation drops the
    first secret."""
    first = await webhooks.create(STORE, url=URL)
    second = await webhooks.rotate(first.endpoint.id, STORE)
    secrets = second.endpoint.secrets

    assert secrets.at(clock.now() + 23 * HOUR) == (second.secret, first.secret)
    assert secrets.at(clock.now() + 24 * HOUR) == (second.secret,)
    third = await webhooks.rotate(first.endpoint.id, STORE)
    assert third.endpoint.secrets.at(clock.now()) == (third.secret, second.secret)


async def test_test_event_is_a_delivery(webhooks: Webhooks) -> None:
    issued = await webhooks.create(STORE, url=URL, events=["generation.failed"])

    sent = await webhooks.send_test(issued.endpoint.id, STORE)

    (delivery,) = await webhooks.deliveries(issued.endpoint.id, STORE)
    assert delivery == sent
    assert (delivery.event, delivery.status) == (WebhookEvent.TEST, DeliveryStatus.PENDING)


async def test_failed_deliveries_are_retried_up_to_a_bound(
    webhooks: Webhooks, repo: InMemoryWebhookRepo, clock: FakeClock
) -> None:
    """In batches, until none is left or the bound is reached."""
    endpoint_id = (await webhooks.create(STORE, url=URL)).endpoint.id
    since = clock.now()
    for _ in range(8):
        await webhooks.send_test(endpoint_id, STORE)
        clock.advance(HOUR)
    await repo.purge(finished_for=100 * HOUR, pending_for=HOUR, limit=100)

    retried = [await webhooks.retry_failed(endpoint_id, STORE, since=since) for _ in range(3)]

    assert retried == [5, 3, 0]


async def test_operators_changes_are_in_the_audit_log(
    webhooks: Webhooks, log: InMemoryAuditLog
) -> None:
    """Each with its owner and its endpoint, and without URL and secret; the owner's own are not."""
    issued = await webhooks.create(STORE, url=f"{URL}?key=hidden", by=OPERATOR)
    endpoint_id = issued.endpoint.id
    change = EndpointChange(url=f"{URL}?key=hidden2", enabled=True)
    await webhooks.update(endpoint_id, STORE, change, by=OPERATOR)
    rotated = await webhooks.rotate(endpoint_id, STORE, by=OPERATOR)
    sent = await webhooks.send_test(endpoint_id, STORE, by=OPERATOR)
    await webhooks.retry(sent.id, STORE, by=OPERATOR)
    since = datetime(2026, 1, 1, tzinfo=UTC)
    await webhooks.retry_failed(endpoint_id, STORE, since=since, by=OPERATOR)
    await webhooks.set_low_credits(STORE, 5, by=OPERATOR)
    await webhooks.delete(endpoint_id, STORE, by=OPERATOR)
    await webhooks.set_low_credits(STORE, 6)

    of = {"endpoint_id": str(endpoint_id)}
    assert [(entry.action, entry.details) for entry in log.entries] == [
        ("webhooks.create", of | {"events": sorted(ALL_EVENTS)}),
        ("webhooks.change", of | {"fields": ["url", "enabled"]}),
        ("webhooks.rotate", of),
        ("webhooks.test", of),
        ("webhooks.retry", of | {"delivery_id": str(sent.id)}),
        ("webhooks.retry", of | {"since": "2026-01-01T00:00:00+00:00"}),
        ("webhooks.low_credits", {"threshold": 5}),
        ("webhooks.delete", of),
    ]
    assert {(entry.subject, entry.actor, entry.reason) for entry in log.entries} == {
        (str(STORE), OPERATOR.actor, OPERATOR.reason)
    }
    for secret in (issued.secret, rotated.secret, "hidden"):
        assert secret not in repr(log.entries)


@pytest.mark.parametrize("call", [call for call in CALLS if call not in {"get", "deliveries"}])
async def test_operators_change_of_an_unknown_endpoint_is_no_entry(
    webhooks: Webhooks, log: InMemoryAuditLog, call: str
) -> None:
    with pytest.raises(NotFound):
        await CALLS[call](AsOperator(webhooks), uuid7(), STORE)

    assert log.entries == []


async def test_operators_invalid_change_is_no_entry(
    webhooks: Webhooks, log: InMemoryAuditLog
) -> None:
    with pytest.raises(InvalidInput):
        await webhooks.create(STORE, url="https://private.example/", by=OPERATOR)
    with pytest.raises(InvalidInput):
        await webhooks.set_low_credits(STORE, 0, by=OPERATOR)

    assert log.entries == []


@pytest.mark.parametrize("threshold", [0, -1, 1_000_000_001])
async def test_threshold_of_low_credits_is_bounded(webhooks: Webhooks, threshold: int) -> None:
    await webhooks.set_low_credits(STORE, 10)

    with pytest.raises(InvalidInput, match="low_credits"):
        await webhooks.set_low_credits(STORE, threshold)

    assert await webhooks.low_credits(STORE) == 10
    await webhooks.set_low_credits(STORE, None)
    assert await webhooks.low_credits(STORE) is None


@pytest.mark.parametrize("limit", [0, 52])
async def test_page_of_deliveries_is_bounded(webhooks: Webhooks, limit: int) -> None:
    endpoint_id = (await webhooks.create(STORE, url=URL)).endpoint.id

    with pytest.raises(InvalidInput, match="limit"):
        await webhooks.deliveries(endpoint_id, STORE, limit=limit)


async def test_webhooks_expire_and_are_deleted_by_recovery(service: Service) -> None:
    """What was never delivered is counted, and deleted a week later. Most runs do not search."""
    endpoint = await added(service.webhooks)
    await service.webhooks.add_test(uuid7(), endpoint.id, USER)
    first = await service.recover()
    service.clock.advance(timedelta(days=14))
    recovery = service.recovery()
    second = await recovery.run_once()
    service.clock.advance(timedelta(days=7, minutes=-1))
    third = await recovery.run_once()
    service.clock.advance(timedelta(minutes=1))
    soon = await recovery.run_once()
    service.clock.advance(timedelta(minutes=5))
    last = await recovery.run_once()

    expired = [run.webhooks_expired for run in (first, second, third, soon, last)]
    deleted = [run.webhooks_deleted for run in (first, second, third, soon, last)]
    assert (expired, deleted) == ([0, 1, 0, 0, 0], [0, 0, 0, 0, 1])
    assert await deliveries_of(service.webhooks, endpoint) == []
