"""Delivering webhooks: what is sent, when it is sent again, and that endpoints do not disturb each
other."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import datetime, timedelta
from itertools import pairwise
from typing import Any
from uuid import UUID

import pytest
from standardwebhooks.webhooks import Webhook, WebhookVerificationError
from uuid_utils.compat import uuid7

from adapters.webhooks.inbox import InMemoryWebhookSender, Message
from adapters.webhooks.secrets import new_webhook_secret
from domain.credits import Owner
from domain.dispatch import MAX_WINDOW, Dispatcher, DispatchPolicy, Payloads
from domain.endpoints import (
    Delivery,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    WebhookEvent,
)
from domain.errors import DatabaseUnavailable, NotDelivered
from domain.views import SessionView, SessionViews
from domain.webhook_ports import Response, TurnResult
from tests.support.clock import VirtualTimeLoop
from tests.support.examples import FAILURE, STORE, USER, picture_of
from tests.support.service import Service, seeded_random
from tests.support.webhooks import URL, added, deliveries_of

pytestmark = pytest.mark.anyio

SECOND, MINUTE, HOUR, DAY = (
    timedelta(**{unit: 1}) for unit in ("seconds", "minutes", "hours", "days")
)
OTHER_URL = "https://other.example/hooks"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Events:
    """What would be logged."""

    def __init__(self) -> None:
        self.lines: list[tuple[object, ...]] = []
        self.statuses: list[DeliveryStatus] = []

    def endpoint_disabled(self, endpoint: Endpoint, reason: DisabledReason) -> None:
        self.lines.append(("disabled", endpoint.id, reason))

    def endpoint_enabled(self, endpoint: Endpoint) -> None:
        self.lines.append(("enabled", endpoint.id))

    def turn_failed(self, endpoint: Endpoint, error: Exception) -> None:
        self.lines.append(("failed", endpoint.id, type(error)))

    def attempt_recorded(self, status: DeliveryStatus) -> None:
        self.statuses.append(status)


def data_of(view: SessionView) -> bytes:
    return json.dumps({"id": str(view.session.id), "url": view.picture_url}).encode()


class Rig:
    """A service in memory with a dispatcher, on the event loop's virtual time."""

    def __init__(self) -> None:
        self.service = Service()
        self.clock = self.service.clock
        self.repo = self.service.webhooks
        self.sender = InMemoryWebhookSender()
        self.events = Events()
        self.dispatcher = self.new_dispatcher()

    def new_dispatcher(self, **policy: Any) -> Dispatcher:
        views = SessionViews(reads=self.service.repo, storage=self.service.storage)
        return Dispatcher(
            outbox=self.repo,
            sender=self.sender,
            payloads=Payloads(
                session_data=data_of,
                view_of=views.view_of,
                accounts=self.service.accounts,
                alerts=self.repo,
            ),
            events=self.events,
            policy=DispatchPolicy(**policy),
            random=seeded_random(),
            clock=self.clock.now,
        )

    async def run(self, by: timedelta, dispatcher: Dispatcher | None = None) -> None:
        """Dispatch while virtual time passes, looking once a second, or less often for long."""
        dispatcher = dispatcher or self.dispatcher
        until, pause = self.clock.now() + by, max(1.0, by.total_seconds() / 360)
        while self.clock.now() < until:
            if not await dispatcher.begin():
                await dispatcher.pause(pause)
        await dispatcher.finish()

    async def completed(self, owner: Owner = USER) -> UUID:
        session_id = (await self.service.submitted(owner)).session.id
        await self.service.claimed(session_id)
        picture = picture_of(session_id, owner)
        assert await self.service.repo.complete(session_id, attempt=1, picture=picture)
        return session_id

    async def tested(self, endpoint: Endpoint, count: int = 1) -> list[UUID]:
        ids = [uuid7() for _ in range(count)]
        for id_ in ids:
            await self.repo.add_test(id_, endpoint.id, endpoint.owner)
        return ids

    async def delivery(self, endpoint: Endpoint) -> Delivery:
        (delivery,) = await deliveries_of(self.repo, endpoint)
        return delivery

    async def endpoint(self, endpoint: Endpoint) -> Endpoint:
        return await self.repo.get(endpoint.id, endpoint.owner)


@pytest.fixture
def rig() -> Rig:
    return Rig()


def answer(status: int, **changes: Any) -> Callable[[Message], Awaitable[Response]]:
    async def respond(_: Message) -> Response:
        return Response(status=status, body="", **changes)

    return respond


async def no_response(_: Message) -> Response:
    await asyncio.sleep(10)
    raise NotDelivered("timeout")


def verified(message: Message, secret: str, monkeypatch: pytest.MonkeyPatch, at: datetime) -> Any:
    """The message as a receiver reads it at a time, by the library of the standard."""

    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> "Clock":
            return cls.fromtimestamp(at.timestamp(), tz)

    monkeypatch.setattr("standardwebhooks.webhooks.datetime", Clock)
    return Webhook(secret).verify(message.body, dict(message.headers))


async def test_each_recorded_attempt_is_told_with_its_status(rig: Rig) -> None:
    """One that is tried again, and the one that delivers."""
    await added(rig.repo)
    await rig.completed()
    rig.sender.responds[URL] = answer(503)
    await rig.dispatcher.run_once()
    rig.sender.responds[URL] = answer(200)
    rig.clock.advance(HOUR)

    await rig.dispatcher.run_once()

    assert rig.events.statuses == [DeliveryStatus.PENDING, DeliveryStatus.DELIVERED]


async def test_session_is_delivered_as_the_api_shows_it(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """With its links signed when it is sent, and a signature that receivers accept."""
    endpoint = await added(rig.repo)
    session_id = await rig.completed()
    ended_at = rig.clock.now()
    rig.clock.advance(HOUR)

    await rig.dispatcher.run_once()

    (message,) = rig.sender.received
    delivery = await rig.delivery(endpoint)
    session = await rig.service.session(session_id)
    assert session.picture is not None
    assert verified(message, endpoint.secrets.current, monkeypatch, rig.clock.now()) == {
        "type": "generation.completed",
        "timestamp": ended_at.isoformat().replace("+00:00", "Z"),
        "data": {
            "id": str(session_id),
            "url": rig.service.storage.url(session.picture.object_key),
        },
    }
    assert message.headers["webhook-id"] == str(delivery.id)
    assert message.headers["traceparent"] == session.trace
    assert message.headers["webhook-timestamp"] == str(int(rig.clock.now().timestamp()))
    assert delivery.status is DeliveryStatus.DELIVERED
    assert [(one.status, one.response) for one in delivery.attempts] == [(200, "ok")]


async def test_links_are_signed_at_each_attempt(rig: Rig) -> None:
    """A message that is sent late has links that are not too old."""
    await added(rig.repo)
    await rig.completed()
    rig.sender.responds[URL] = answer(500)

    await rig.run(MINUTE)

    first, second, *_ = [json.loads(message.body) for message in rig.sender.received]
    assert first["timestamp"] == second["timestamp"]
    assert first["data"]["url"] != second["data"]["url"]


async def test_failed_session_is_delivered(rig: Rig) -> None:
    await added(rig.repo)
    receipt = await rig.service.submitted()
    await rig.service.repo.fail_queued(receipt.session.id, FAILURE)

    await rig.dispatcher.run_once()

    (message,) = rig.sender.received
    assert json.loads(message.body)["type"] == "generation.failed"


async def test_low_credits_are_delivered_with_the_balance(rig: Rig) -> None:
    await added(rig.repo, events=frozenset({WebhookEvent.CREDITS_LOW}))
    await rig.repo.set_threshold(USER, 1)
    await rig.service.submitted()

    await rig.dispatcher.run_once()

    (message,) = rig.sender.received
    assert json.loads(message.body)["data"] == {"balance": 0, "threshold": 1}


async def test_both_secrets_sign_during_a_rotation(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For a day, receivers may have either secret; then only the new one."""
    old = await added(rig.repo)
    new = new_webhook_secret()
    await rig.repo.rotate(old.id, USER, secret=new, previous_for=DAY)

    for _ in range(2):
        await rig.tested(old)
        await rig.dispatcher.run_once()
        rig.clock.advance(DAY)

    during, after = rig.sender.received
    sent_at = rig.clock.now() - 2 * DAY
    for secret in (old.secrets.current, new):
        verified(during, secret, monkeypatch, sent_at)
    verified(after, new, monkeypatch, sent_at + DAY)
    with pytest.raises(WebhookVerificationError, match="No matching signature"):
        verified(after, old.secrets.current, monkeypatch, sent_at + DAY)
    assert [len(m.headers["webhook-signature"].split(" ")) for m in (during, after)] == [2, 1]


@pytest.mark.parametrize("status", [100, 199, 301, 302, 307, 400, 404, 429, 500, 503])
async def test_anything_but_success_is_sent_again(rig: Rig, status: int) -> None:
    """A redirect is none: the address behind it is not checked."""
    endpoint = await added(rig.repo)
    await rig.tested(endpoint)
    rig.sender.responds[URL] = answer(status)

    await rig.dispatcher.run_once()

    delivery = await rig.delivery(endpoint)
    assert delivery.status is DeliveryStatus.PENDING
    assert [one.status for one in delivery.attempts] == [status]
    rig.sender.responds[URL] = answer(299)
    await rig.run(MINUTE)
    assert (await rig.delivery(endpoint)).status is DeliveryStatus.DELIVERED
    assert {message.headers["webhook-id"] for message in rig.sender.received} == {str(delivery.id)}


async def test_missing_response_is_recorded_with_its_reason(rig: Rig) -> None:
    endpoint = await added(rig.repo)
    await rig.tested(endpoint)
    rig.sender.responds[URL] = no_response

    await rig.dispatcher.run_once()

    (attempt,) = (await rig.delivery(endpoint)).attempts
    assert (attempt.status, attempt.error, attempt.duration_ms) == (None, "timeout", 10_000)


async def poisoned(rig: Rig) -> Endpoint:
    """An endpoint that rejects its first message and accepts all others."""
    endpoint = await added(rig.repo)
    (poison,) = await rig.tested(endpoint)

    async def respond(message: Message) -> Response:
        return Response(
            status=500 if message.headers["webhook-id"] == str(poison) else 200, body=""
        )

    rig.sender.responds[URL] = respond
    return endpoint


async def test_delivery_is_given_up_after_three_days(rig: Rig) -> None:
    """With growing pauses. A retry begins anew."""
    endpoint = await poisoned(rig)
    for _ in range(24 * 4):
        await rig.tested(endpoint)
        await rig.run(HOUR)

    (failed,) = await deliveries_of(rig.repo, endpoint, DeliveryStatus.FAILED)
    times = [attempt.at for attempt in failed.attempts][::-1]
    pauses = [after - before for before, after in pairwise(times)]
    assert 75 <= failed.attempt_count <= 150
    assert 3 * DAY - HOUR <= times[-1] - failed.created_at <= 3 * DAY
    assert 30 * MINUTE <= min(pauses) <= max(pauses) <= HOUR + MINUTE
    delivered = await deliveries_of(rig.repo, endpoint, DeliveryStatus.DELIVERED)
    assert len(delivered) == 24 * 4
    await rig.repo.retry(failed.id, USER)
    await rig.run(MINUTE)
    again = await rig.repo.delivery(failed.id, USER)
    assert again.status is DeliveryStatus.PENDING
    assert again.attempt_count >= failed.attempt_count + 2


@pytest.mark.parametrize(("seconds", "until"), [(300, 300), (100_000, 3_600)])
async def test_retry_after_is_respected_up_to_an_hour(rig: Rig, seconds: int, until: int) -> None:
    """By all deliveries of the endpoint."""
    endpoint = await added(rig.repo)
    await rig.tested(endpoint, 3)
    rig.sender.responds[URL] = answer(429, retry_after_seconds=float(seconds))
    await rig.dispatcher.run_once()
    rig.sender.responds[URL] = answer(200)

    await rig.run(timedelta(seconds=until - 2))
    before = len(rig.sender.received)
    await rig.run(timedelta(seconds=10))

    assert (before, len(rig.sender.received)) == (1, 4)


async def test_gone_endpoint_is_disabled_and_keeps_its_deliveries(rig: Rig) -> None:
    """Until its owner enables it: then they are sent, and nothing was dropped."""
    endpoint = await added(rig.repo)
    rig.sender.responds[URL] = answer(410)
    await rig.tested(endpoint)
    await rig.run(SECOND)
    await rig.completed()
    await rig.run(7 * DAY)

    gone = await rig.endpoint(endpoint)
    assert (gone.disabled_reason, len(rig.sender.received)) == (DisabledReason.GONE, 1)
    assert rig.events.lines == [("disabled", endpoint.id, DisabledReason.GONE)]
    rig.sender.responds[URL] = answer(200)
    await rig.repo.change(endpoint.id, USER, EndpointChange(enabled=True))
    await rig.run(MINUTE)
    statuses = [one.status for one in await deliveries_of(rig.repo, endpoint)]
    assert statuses == [DeliveryStatus.DELIVERED] * 2


async def test_dead_endpoint_costs_a_probe_whatever_its_backlog(rig: Rig) -> None:
    """Its circuit opens after three turns; then one delivery is sent when a pause ends. Once it
    answers again, everything is delivered."""
    endpoint = await added(rig.repo)
    await rig.tested(endpoint, 300)
    rig.sender.responds[URL] = no_response

    await rig.run(HOUR)
    sent = len(rig.sender.received)
    rig.sender.responds[URL] = answer(200)
    await rig.run(15 * MINUTE)

    assert 5 <= sent <= 20
    delivered = await deliveries_of(rig.repo, endpoint, DeliveryStatus.DELIVERED)
    assert len(delivered) == 300
    assert rig.events.lines == []


async def test_failing_endpoint_is_disabled_then_probed_and_enabled(rig: Rig) -> None:
    """After a day of failures. Its deliveries are kept, and no attempt is their last. A probe an
    hour finds that it answers again."""
    endpoint = await added(rig.repo)
    await rig.tested(endpoint, 5)
    rig.sender.responds[URL] = answer(500)

    await rig.run(23 * HOUR)
    before = await rig.endpoint(endpoint)
    await rig.run(3 * HOUR)
    disabled = await rig.endpoint(endpoint)
    sent = len(rig.sender.received)
    await rig.run(4 * DAY)

    assert (before.disabled_at, disabled.disabled_reason) == (None, DisabledReason.FAILING)
    assert 4 * 24 <= len(rig.sender.received) - sent <= 8 * 24
    assert {d.status for d in await deliveries_of(rig.repo, endpoint)} == {DeliveryStatus.PENDING}
    rig.sender.responds[URL] = answer(200)
    await rig.run(2 * HOUR)
    enabled = await rig.endpoint(endpoint)
    assert (enabled.disabled_at, enabled.disabled_reason, enabled.failures) == (None, None, 0)
    assert [line[0] for line in rig.events.lines] == ["disabled", "enabled"]
    await rig.run(2 * HOUR)
    assert {d.status for d in await deliveries_of(rig.repo, endpoint)} == {DeliveryStatus.DELIVERED}


async def test_turns_that_begin_together_leave_room_for_others(rig: Rig) -> None:
    """Eight are begun in a row, then what arrived meanwhile is handled."""
    for number in range(24):
        endpoint = await added(rig.repo, url=f"{URL}/{number}")
        await rig.tested(endpoint, 1)
    begun = [0]

    async def watch() -> None:
        while begun[-1] < 24:
            await asyncio.sleep(0)
            begun.append(len(rig.sender.received))

    await asyncio.gather(rig.dispatcher.begin(), watch())
    await rig.dispatcher.finish()

    assert max(after - before for before, after in pairwise(begun)) == 8


@pytest.mark.parametrize(
    ("failing", "expected"), [(range(23, 24), [4, 8, 8, 8, 8]), (range(16, 24), [1, 2, 4, 8, 8])]
)
async def test_window_grows_on_success_and_shrinks_on_failure(
    rig: Rig, failing: range, expected: list[int]
) -> None:
    """Doubled up to a bound, halved by a failure, and one delivery after a turn that had nothing
    but failures."""
    endpoint = await added(rig.repo)
    sizes: list[int] = []
    at: float | None = None

    async def slow(_: Message) -> Response:
        nonlocal at
        if at != (at := asyncio.get_running_loop().time()):
            sizes.append(0)
        sizes[-1] += 1
        status = 500 if sum(sizes) in failing else 200
        await asyncio.sleep(1)
        return Response(status=status, body="")

    rig.sender.responds[URL] = slow
    await rig.tested(endpoint, 60)
    await rig.dispatcher.run_once()

    assert sizes[:10] == [1, 2, 4, MAX_WINDOW, MAX_WINDOW, *expected]


async def test_silent_endpoints_do_not_delay_others(rig: Rig) -> None:
    """They take until the timeout; an endpoint that answers is served at once."""
    for _ in range(20):
        silent = await added(rig.repo, url=f"https://silent.example/{uuid7()}")
        rig.sender.responds[silent.url] = no_response
        await rig.tested(silent, 50)
    healthy = await added(rig.repo, STORE, url=OTHER_URL)

    waits = []
    for _ in range(30):
        await rig.tested(healthy)
        rig.dispatcher.wake()
        await rig.run(5 * SECOND)
        (delivery,) = (await deliveries_of(rig.repo, healthy))[:1]
        assert delivery.status is DeliveryStatus.DELIVERED
        waits.append(delivery.attempts[0].at - delivery.created_at)

    assert max(waits) <= SECOND


async def test_turns_in_flight_are_bounded(rig: Rig) -> None:
    """What there is no room for is begun when another turn ends."""
    dispatcher = rig.new_dispatcher(max_in_flight=2 * MAX_WINDOW)
    sender, most = rig.sender, 0
    for _ in range(30):
        endpoint = await added(rig.repo, url=f"https://slow.example/{uuid7()}")

        async def respond(_: Message) -> Response:
            nonlocal most
            most = max(most, dispatcher._in_flight)
            await asyncio.sleep(1)
            return Response(status=200, body="")

        sender.responds[endpoint.url] = respond
        await rig.tested(endpoint)

    await rig.run(timedelta(seconds=30), dispatcher)

    assert len(sender.received) == 30
    assert most <= 2 * MAX_WINDOW


async def test_wake_ends_the_pause(rig: Rig) -> None:
    loop = asyncio.get_running_loop()
    began = loop.time()
    loop.call_later(0.25, rig.dispatcher.wake)

    await rig.dispatcher.pause(1.0)
    woken = loop.time() - began
    await rig.dispatcher.pause(1.0)

    assert woken == pytest.approx(0.25)
    assert loop.time() - began == pytest.approx(1.25)


class Dead(Exception):
    """The process that dispatches was killed."""


@pytest.mark.parametrize("how", [Dead, DatabaseUnavailable])
async def test_killed_between_sending_and_recording_is_sent_again(
    rig: Rig, monkeypatch: pytest.MonkeyPatch, how: type[Exception]
) -> None:
    """When the lease ends, by another process, under the same id: at least once."""
    endpoint = await added(rig.repo)
    (delivery_id,) = await rig.tested(endpoint)

    async def die(_: TurnResult) -> bool:
        raise how("killed")

    with monkeypatch.context() as patch:
        patch.setattr(rig.repo, "settle", die)
        await rig.dispatcher.run_once()
    await rig.new_dispatcher().run_once()
    at_once = len(rig.sender.received)
    await rig.run(DispatchPolicy().lease + SECOND, rig.new_dispatcher())

    assert (at_once, len(rig.sender.received)) == (1, 2)
    assert {m.headers["webhook-id"] for m in rig.sender.received} == {str(delivery_id)}
    assert (await rig.delivery(endpoint)).status is DeliveryStatus.DELIVERED
    assert rig.events.lines == [("failed", endpoint.id, how)]


async def test_cut_off_delivery_is_sent_again(rig: Rig) -> None:
    """A process that is told to stop at once cancels what is in flight."""
    endpoint = await added(rig.repo)
    await rig.tested(endpoint)
    rig.sender.responds[URL] = no_response
    await rig.dispatcher.begin()
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(1):
            await rig.dispatcher.finish()
    rig.sender.responds[URL] = answer(200)

    await rig.run(DispatchPolicy().lease + SECOND, rig.new_dispatcher())

    assert (await rig.delivery(endpoint)).status is DeliveryStatus.DELIVERED


async def test_outage_that_ends_before_the_lease_causes_no_repetition(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was sent is recorded once the database answers again."""
    endpoint = await added(rig.repo)
    await rig.tested(endpoint)
    over_at, settle = rig.clock.now() + DispatchPolicy().lease / 2, rig.repo.settle

    async def flaky(result: TurnResult) -> bool:
        if rig.clock.now() < over_at:
            raise DatabaseUnavailable("down")
        return await settle(result)

    monkeypatch.setattr(rig.repo, "settle", flaky)
    await rig.dispatcher.run_once()
    await rig.run(DispatchPolicy().lease + SECOND, rig.new_dispatcher())

    assert len(rig.sender.received) == 1
    assert (await rig.delivery(endpoint)).status is DeliveryStatus.DELIVERED
    assert rig.events.lines == []


async def test_database_that_does_not_answer_is_reported(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def unavailable(**_: Any) -> Any:
        raise DatabaseUnavailable("down")

    monkeypatch.setattr(rig.repo, "claim", unavailable)

    with pytest.raises(DatabaseUnavailable):
        await rig.dispatcher.begin()


async def test_body_that_cannot_be_built_fails_the_turn_before_anything_is_sent(
    rig: Rig, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Otherwise the messages beside it would be sent, and sent again."""
    endpoint = await added(rig.repo, events=frozenset(WebhookEvent))
    await rig.tested(endpoint, 2 * MAX_WINDOW)  # They open the window.
    await rig.dispatcher.run_once()
    rig.sender.received.clear()
    await rig.repo.set_threshold(USER, 1)
    await rig.completed()

    async def unavailable(_: Owner) -> Any:
        raise DatabaseUnavailable("down")

    monkeypatch.setattr(rig.service.accounts, "account", unavailable)
    await rig.dispatcher.run_once()

    waiting = await deliveries_of(rig.repo, endpoint, DeliveryStatus.PENDING)
    events = {delivery.event for delivery in waiting}
    assert events == {WebhookEvent.CREDITS_LOW, WebhookEvent.COMPLETED}
    assert rig.sender.received == []
    assert rig.events.lines == [("failed", endpoint.id, DatabaseUnavailable)]


async def test_missing_session_ends_its_delivery_only(rig: Rig) -> None:
    """Sessions are kept, but nothing is sent for one that is not, or that is another owner's."""
    endpoint, other = await added(rig.repo), await added(rig.repo, STORE, url=OTHER_URL)
    lost = await rig.completed()
    foreign = await rig.completed()
    await rig.completed(STORE)
    session = rig.service.repo._rows[foreign].session
    rig.service.repo._rows[foreign].session = replace(session, owner=STORE)
    del rig.service.repo._rows[lost]

    await rig.dispatcher.run_once()

    assert [message.url for message in rig.sender.received] == [OTHER_URL]
    ended = await deliveries_of(rig.repo, endpoint, DeliveryStatus.FAILED)
    assert [one.attempts[0].error for one in ended] == ["the session no longer exists"] * 2
    assert (await rig.endpoint(endpoint)).failures == 0
    assert (await rig.delivery(other)).status is DeliveryStatus.DELIVERED
