"""Owners with webhook endpoints, which fail in every way that there is, and what they must be told.

The worker processes of a world that has webhooks dispatch them, as in production.
"""

import asyncio
import base64
import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from enum import StrEnum
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

from standardwebhooks.webhooks import Webhook

from adapters.webhooks.inbox import Message
from domain.credits import Owner
from domain.dispatch import Dispatcher, DispatchEvents, DispatchPolicy, Payloads
from domain.endpoints import (
    Delivery,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
    Secrets,
    WebhookEvent,
)
from domain.errors import NotDelivered, Unavailable
from domain.sessions import GenerationSession
from domain.views import SessionView
from domain.webhook_ports import Response, WebhookSenderPort
from tests.simulation.outbox import DISPATCH, RETRY_AFTER, WatchedOutbox
from tests.simulation.processes import Process, database_error

if TYPE_CHECKING:
    from tests.simulation.world import World

MAX_ENDPOINTS = 10
ROTATION = timedelta(seconds=8)
SILENT_SECONDS = 2.0
"""How long a sender waits for a response."""
DELIVERED_SECONDS = 60.0
"""How long after everything is settled each message is delivered: a process may be frozen when the
faults end, and a pause, a lease and some tries come on top."""
TESTS = 40
"""More than a window that is not bounded."""
THRESHOLD = 6
SECOND = timedelta(seconds=1)


class Temper(StrEnum):
    """How an endpoint behaves."""

    HEALTHY = "healthy"
    FLAKY = "flaky"
    DEAD = "dead"
    SILENT = "silent"
    BUSY = "busy"
    GONE = "gone"


@dataclass(slots=True, kw_only=True)
class Receiver:
    """The program behind an endpoint. It verifies messages with one secret at a time."""

    endpoint: Endpoint
    secret: str
    temper: Temper = Temper.HEALTHY
    rotated_at: datetime | None = None
    old_secret: str | None = None


class Inbox(WebhookSenderPort):
    """All receivers, by the URL. Checks each message."""

    def __init__(self, world: "World", outbox: WatchedOutbox, random: Random) -> None:
        self.receivers: dict[str, Receiver] = {}
        self._world = world
        self._outbox = outbox
        self._random = random

    async def check(self, url: str) -> None:
        """Every address is public."""

    async def close(self) -> None:
        """Nothing to close."""

    async def send(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Response:
        message, receiver = Message(url, headers, body), self.receivers[url]
        for problem in self._problems(message, receiver):
            self._world.require(False, f"{url}: {problem}")
        await asyncio.sleep(self._random.random() / 10)
        if not is_signed(message, receiver.secret):
            return Response(status=401, body="")
        status = await self._status(receiver.temper)
        if status == 200:
            self._outbox.accepted.add(headers["webhook-id"])
        asked = RETRY_AFTER.total_seconds() if status == 429 else 0.0
        return Response(status=status, body="", retry_after_seconds=asked)

    async def _status(self, temper: Temper) -> int:
        chance = self._random.random()
        match temper:
            case Temper.HEALTHY:
                return 200
            case Temper.DEAD:
                return 503
            case Temper.GONE:
                return 410 if chance < 0.5 else 200
            case Temper.BUSY:
                return 429 if chance < 0.7 else 200
            case Temper.FLAKY if chance < 0.5:
                return 200
            case Temper.FLAKY if chance < 0.8:
                return 500
        await asyncio.sleep(SILENT_SECONDS)
        raise NotDelivered("timeout")

    def _problems(self, message: Message, receiver: Receiver) -> Iterator[str]:
        """What is wrong with a message."""
        delivery = self._outbox.find_delivery(message.headers["webhook-id"])
        if delivery is None or delivery.endpoint_id != receiver.endpoint.id:
            yield f"{message} is no delivery of its own"
            return
        told = json.loads(message.body)
        if told["type"] != delivery.event:
            yield f"{told} for {delivery}"
        if delivery.session_id is not None:
            session = self._world.repo.find(UUID(told["data"]["session_id"]))
            yield from _problems_of(session, told, delivery, receiver.endpoint.owner)
        yield from self._forged(message, receiver, delivery)

    def _forged(self, message: Message, receiver: Receiver, delivery: Delivery) -> Iterator[str]:
        """What is wrong with a signature. A turn that was begun before a rotation signs with the
        secret of then."""
        rotated_at, sent_at = receiver.rotated_at, _sent_at(message)
        claimed_at = self._outbox.claimed_at(delivery)
        began_before = rotated_at is not None and (claimed_at is None or claimed_at <= rotated_at)
        if not is_signed(message, receiver.secret) and not began_before:
            yield f"{message} is not signed with the secret of {receiver}"
        if rotated_at is None or receiver.old_secret is None or began_before:
            return
        has_ended = sent_at > rotated_at + ROTATION + SECOND
        if has_ended and is_signed(message, receiver.old_secret):
            yield f"{message} is signed with the secret before, after {sent_at - rotated_at}"


def _problems_of(
    session: GenerationSession | None, told: dict[str, object], delivery: Delivery, owner: Owner
) -> Iterator[str]:
    if session is None or session.id != delivery.session_id:
        yield f"{told} for {delivery}"
    elif session.owner != owner:
        yield f"{told} is of {session.owner}"
    elif told["type"] != f"generation.{session.status}":
        yield f"{told}, and the session is {session.status}"


def _sent_at(message: Message) -> datetime:
    return datetime.fromtimestamp(int(message.headers["webhook-timestamp"]), UTC)


def is_signed(message: Message, secret: str) -> bool:
    """Whether one of the message's signatures is that of ``secret``, by the library of the
    standard. Its ``verify`` compares with the computer's clock."""
    id_, at = message.headers["webhook-id"], _sent_at(message)
    expected = Webhook(secret).sign(id_, at, message.body.decode())
    return expected in message.headers["webhook-signature"].split(" ")


class _Events(DispatchEvents):
    def __init__(self, world: "World") -> None:
        self._world = world

    def endpoint_disabled(self, endpoint: Endpoint, reason: DisabledReason) -> None:
        """It is in the outbox, too."""

    def endpoint_enabled(self, endpoint: Endpoint) -> None:
        """It is in the outbox, too."""

    def turn_failed(self, endpoint: Endpoint, error: Exception) -> None:
        is_known = isinstance(error, Unavailable | AssertionError)
        self._world.require(is_known, f"a turn at {endpoint.url} crashed: {error!r}")

    def attempt_recorded(self, status: DeliveryStatus) -> None:
        """It is in the outbox, too."""


class Webhooks:
    """The endpoints of a world, and those who own them."""

    def __init__(
        self, world: "World", random: Random, *, policy: DispatchPolicy = DISPATCH
    ) -> None:
        self.outbox = WatchedOutbox(
            clock=world.clock.now,
            find_session=world.repo.find,
            new_id=self._new_id,
            require=world.require,
        )
        self.inbox = Inbox(world, self.outbox, random)
        self._world = world
        self._random = random
        self._policy = policy
        world.repo.ended = self.outbox.session_ended
        world.accounts.changed = self.outbox.balance_changed

    def dispatcher(self, process: Process, random: Random) -> Dispatcher:
        """The dispatcher of a process."""
        outbox = process.connect(self.outbox, database_error)
        return Dispatcher(
            outbox=outbox,
            sender=process.connect(self.inbox, delivery_error),
            payloads=Payloads(
                session_data=_data_of,
                view_of=lambda session: SessionView(session=session, picture_url=None),
                accounts=process.connect(self._world.accounts, database_error),
                alerts=outbox,
            ),
            events=_Events(self._world),
            policy=self._policy,
            random=random,
            clock=self._world.clock.now,
        )

    async def add(self, owner: Owner, temper: Temper = Temper.HEALTHY, *, tests: int = 0) -> None:
        """A new endpoint of ``owner``, with test deliveries."""
        secret = self._new_secret()
        endpoint = Endpoint(
            id=self._new_id(),
            owner=owner,
            url=f"https://{len(self.inbox.receivers)}.example/",
            secrets=Secrets(current=secret),
            created_at=self._world.clock.now(),
        )
        receiver = Receiver(endpoint=endpoint, secret=secret, temper=temper)
        self.inbox.receivers[endpoint.url] = receiver
        await self.outbox.add(endpoint, max_endpoints=MAX_ENDPOINTS)
        await self.outbox.set_threshold(owner, THRESHOLD)
        for _ in range(tests):
            await self.outbox.add_test(self._new_id(), endpoint.id, owner)

    async def live(self, late: Owner, *, seconds: float) -> None:
        """What happens to the endpoints in this time: ``late`` gets one, tempers change, and owners
        rotate secrets, disable endpoints and enable them."""
        try:
            async with asyncio.timeout(seconds):
                await asyncio.sleep(self._random.random() * 10)
                await self.add(late, self._any_temper())
                while True:
                    await asyncio.sleep(self._random.random() * 4)
                    await self._change(self._random.choice(list(self.inbox.receivers.values())))
        except TimeoutError:
            return

    async def _change(self, receiver: Receiver) -> None:
        match self._random.randrange(6):
            case 0:
                await self._rotate(receiver)
            case 1:
                await self._enable(receiver, is_enabled=self._random.random() < 0.7)
            case _:
                receiver.temper = self._any_temper()

    async def _rotate(self, receiver: Receiver) -> None:
        """The receiver takes the new secret at once, or later, while the one before still signs.
        No secret is replaced twice, because only one before it would sign."""
        if receiver.rotated_at is not None:
            return
        secret = self._new_secret()
        receiver.rotated_at, receiver.old_secret = self._world.clock.now(), receiver.secret
        await self.outbox.rotate(
            receiver.endpoint.id, receiver.endpoint.owner, secret=secret, previous_for=ROTATION
        )
        loop, latest = asyncio.get_running_loop(), (ROTATION - SECOND).total_seconds()
        delay = self._random.choice((0.0, latest * self._random.random()))
        loop.call_later(delay, setattr, receiver, "secret", secret)

    async def _enable(self, receiver: Receiver, *, is_enabled: bool) -> None:
        change = EndpointChange(enabled=is_enabled)
        await self.outbox.change(receiver.endpoint.id, receiver.endpoint.owner, change)

    async def recover(self) -> None:
        """All endpoints answer from now on. Some that are disabled stay so."""
        for receiver in self.inbox.receivers.values():
            receiver.temper = Temper.HEALTHY
            if self._random.random() < 0.5:
                await self._enable(receiver, is_enabled=True)

    def _any_temper(self) -> Temper:
        return self._random.choice(list(Temper))

    def _new_id(self) -> UUID:
        return UUID(int=self._random.getrandbits(128), version=4)

    def _new_secret(self) -> str:
        return "whsec_" + base64.b64encode(self._random.randbytes(24)).decode()

    async def delivered(self) -> bool:
        """Wait until nothing is pending, except at endpoints that are disabled. False if it takes
        too long."""
        with suppress(TimeoutError):
            async with asyncio.timeout(DELIVERED_SECONDS):
                while self._pending():  # noqa: ASYNC110 - costs no time on a virtual loop
                    await asyncio.sleep(0.5)
        return not self._pending()

    def _pending(self) -> list[Delivery]:
        waits = {DisabledReason.OWNER, DisabledReason.GONE}
        live = {one.id for one in self.outbox.endpoints() if one.disabled_reason not in waits}
        return [
            one
            for one in self.outbox.written()
            if one.status is DeliveryStatus.PENDING and one.endpoint_id in live
        ]

    def broken_when_settled(self, sessions: Sequence[GenerationSession]) -> Iterator[str]:
        """What is wrong once everything is delivered: each endpoint was to be told once of each
        session of its owner that ended while it was there, unless its submission undid it."""
        told = Counter((one.endpoint_id, one.session_id) for one in self.outbox.written())
        for delivery in self.outbox.written():
            is_delivered = delivery.status is DeliveryStatus.DELIVERED
            if is_delivered and str(delivery.id) not in self.outbox.accepted:
                yield f"{delivery} was never accepted"
        undone = self._world.repo.undone()
        for endpoint in self.outbox.endpoints():
            for session in sessions:
                is_owed = session.owner == endpoint.owner and session.id not in undone
                is_owed &= (session.completed_at or endpoint.created_at) > endpoint.created_at
                count = told.pop((endpoint.id, session.id), 0)
                if count != is_owed:
                    yield f"{endpoint.url} is told {count} times of {session}"
            alerts = told.pop((endpoint.id, None), 0)
            if alerts != self._owed_without_session(endpoint):
                yield f"{endpoint.url} is told {alerts} times of low credits and in tests"
        if told:
            yield f"told of unknown sessions: {told}"

    def _owed_without_session(self, endpoint: Endpoint) -> int:
        """The tests, and how often the balance fell below the threshold."""
        tests = [
            one
            for one in self.outbox.written()
            if one.endpoint_id == endpoint.id and one.event is WebhookEvent.TEST
        ]
        balance, falls = 0, 0
        for entry in self._world.accounts.entries:
            if entry.owner == endpoint.owner:
                before, balance = balance, balance + entry.amount
                is_fall = before >= THRESHOLD > balance
                falls += is_fall and entry.created_at > endpoint.created_at
        return len(tests) + falls


def delivery_error(call: str, _: bool) -> Exception:
    return NotDelivered(call)


def _data_of(view: SessionView) -> bytes:
    """What the API shows of a session, as far as a receiver here reads it."""
    return b'{"session_id":"%s"}' % str(view.session.id).encode()
