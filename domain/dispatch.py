"""Sends deliveries to endpoints: in turns, each the exclusive right to one endpoint for a while.

Endpoints do not disturb each other. Each has its own backoff, its own window of deliveries in
flight, and its own circuit: while that is open, its deliveries wait untouched, and one of them is
sent as a probe each time the pause ends, whatever the backlog. All state is in the database, so any
number of processes may dispatch.

A process that dies between sending and recording leaves its turn to the end of the lease. Then the
delivery is sent again, under the same ``webhook-id``: at least once.
"""

import asyncio
import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from random import Random
from typing import Protocol
from uuid import UUID

from domain.credits import Owner
from domain.endpoints import (
    DeliveryAttempt,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    WebhookEvent,
)
from domain.errors import DatabaseUnavailable, NotDelivered
from domain.hints import Hints
from domain.ports import CreditRepoPort
from domain.sessions import GenerationSession
from domain.signatures import message, signed_headers
from domain.views import SessionView
from domain.webhook_ports import (
    CreditAlertPort,
    Due,
    OutboxPort,
    Outcome,
    Response,
    Turn,
    TurnResult,
    WebhookSenderPort,
)

MAX_WINDOW = 8
_MAX_TURNS = 32
"""Of one delivery each, in one claim: what becomes due meanwhile waits for it."""
_TURNS_IN_A_ROW = 8
"""A new connection takes 0.3 ms of CPU. Many in a row would hold up what is in flight; and a pause
after each turn would split what is recorded in one statement, at a fifth more CPU for a delivery.
"""
_RECORD_AGAIN_SECONDS = 1.0
_GONE = 410
_MISSING = "the session no longer exists"


@dataclass(frozen=True, slots=True, kw_only=True)
class DispatchPolicy:
    """``lease`` must be longer than a delivery may take, with its recording.

    A failed delivery is sent again after ``first_retry``, then after four times as long each time,
    up to ``longest_retry``, until ``give_up_after`` has passed; each wait is a random part of its
    length, between half of it and all of it. A longer ``Retry-After`` is respected, up to
    ``longest_retry_after``.

    After ``open_after`` turns without a success, the endpoint's circuit opens for ``first_pause``,
    then for twice as long each time, up to ``longest_pause``. An endpoint that fails for
    ``disable_after`` is disabled, and probed every ``probe_every``.
    """

    max_in_flight: int = 512
    lease: timedelta = timedelta(seconds=60)
    first_retry: timedelta = timedelta(seconds=5)
    longest_retry: timedelta = timedelta(hours=1)
    give_up_after: timedelta = timedelta(days=3)
    longest_retry_after: timedelta = timedelta(hours=1)
    open_after: int = 3
    first_pause: timedelta = timedelta(seconds=5)
    longest_pause: timedelta = timedelta(minutes=10)
    disable_after: timedelta = timedelta(days=1)
    probe_every: timedelta = timedelta(hours=1)

    @property
    def record_seconds(self) -> float:
        """How long after the start of a turn its recording is tried. The rest of the lease is for
        the claim, which came before it, and for a last try."""
        return self.lease.total_seconds() * 2 / 3


class DispatchEvents(Protocol):
    """What is worth a line in the log."""

    def endpoint_disabled(self, endpoint: Endpoint, reason: DisabledReason) -> None: ...

    def endpoint_enabled(self, endpoint: Endpoint) -> None: ...

    def turn_failed(self, endpoint: Endpoint, error: Exception) -> None:
        """The turn was not recorded: its lease ends it, and its deliveries are sent again."""

    def attempt_recorded(self, status: DeliveryStatus) -> None:
        """An attempt to send a delivery made it ``status``."""


@dataclass(frozen=True, slots=True)
class _Sent:
    """An attempt to send a delivery. No ``response``: ``error`` says why."""

    due: Due
    attempt: DeliveryAttempt
    retry_after: timedelta

    @property
    def succeeded(self) -> bool:
        return self.attempt.status is not None and 200 <= self.attempt.status < 300


class Payloads:
    """Builds the bodies of messages. ``session_data`` returns the JSON that the API shows for a
    session, with its links signed now."""

    def __init__(
        self,
        *,
        session_data: Callable[[SessionView], bytes],
        view_of: Callable[[GenerationSession], SessionView],
        accounts: CreditRepoPort,
        alerts: CreditAlertPort,
    ) -> None:
        self._session_data = session_data
        self._view_of = view_of
        self._accounts = accounts
        self._alerts = alerts

    async def body(
        self, due: Due, endpoint: Endpoint, sessions: Mapping[UUID, GenerationSession]
    ) -> bytes | None:
        """None if the delivery's session no longer exists."""
        if due.session_id is not None:
            session = sessions.get(due.session_id)
            if session is None or session.owner != endpoint.owner:
                return None
            return message(due.event, due.created_at, self._session_data(self._view_of(session)))
        if due.event is WebhookEvent.CREDITS_LOW:
            return message(due.event, due.created_at, _json(await self._credits(endpoint.owner)))
        return message(due.event, due.created_at, _json({"endpoint_id": str(endpoint.id)}))

    async def _credits(self, owner: Owner) -> dict[str, object]:
        """As they are now."""
        account = await self._accounts.account(owner)
        return {"balance": account.balance, "threshold": await self._alerts.threshold(owner)}


def _json(data: object) -> bytes:
    return json.dumps(data, separators=(",", ":")).encode()


class Dispatcher:
    """``clock`` is also what signatures carry, so it must be about right."""

    def __init__(
        self,
        *,
        outbox: OutboxPort,
        sender: WebhookSenderPort,
        payloads: Payloads,
        events: DispatchEvents,
        policy: DispatchPolicy,
        random: Random,
        clock: Callable[[], datetime],
    ) -> None:
        self._outbox = outbox
        self._sender = sender
        self._payloads = payloads
        self._events = events
        self._policy = policy
        self._random = random
        self._clock = clock
        self._wake = asyncio.Event()
        self._hints = Hints(self.wake)
        self._turns: set[asyncio.Task[None]] = set()
        self._in_flight = 0
        self._is_full = False

    def wake(self) -> None:
        """Something may be due: end the ``pause``. May be called at any time, at no cost."""
        self._wake.set()

    def session_ended(self, owner: Owner) -> None:
        """A session of ``owner`` has ended in this process: end the ``pause`` soon, if something
        may be due to the owner. May be called for each session, at hardly any cost."""
        self._hints.ended(owner)

    async def pause(self, seconds: float) -> None:
        """Wait for ``seconds``, or until ``wake``, or until a turn has left more to do."""
        try:
            async with asyncio.timeout(seconds):
                await self._wake.wait()
        except TimeoutError:
            return
        finally:
            self._wake.clear()

    async def begin(self) -> int:
        """Begin the turns that are due, as far as there is room. Returns how many began; if more
        may be due, there is no ``pause`` after it. Raises ``DatabaseUnavailable``."""
        limit, window = self._room()
        self._is_full = limit < 1
        if self._is_full:
            return 0
        self._hints.looks()
        turns = await self._outbox.claim(limit=limit, window=window, lease=self._policy.lease)
        wanted = {due.session_id for turn in turns for due in turn.due if due.session_id}
        found = await self._outbox.sessions(list(wanted)) if wanted else []
        sessions = {session.id: session for session in found}
        for number, turn in enumerate(turns, 1):
            self._hints.served(turn.endpoint.owner)
            self._in_flight += len(turn.due)
            task = asyncio.create_task(self._run(turn, sessions))
            self._turns.add(task)
            task.add_done_callback(self._turns.discard)
            if number % _TURNS_IN_A_ROW == 0:
                await asyncio.sleep(0)
        if len(turns) == limit:
            self.wake()
        return len(turns)

    def _room(self) -> tuple[int, int]:
        """How many turns may begin, and how many deliveries each may have. The second half of all
        places is for turns of one delivery: endpoints that fell silent in the middle of many
        deliveries cannot take the places of all others."""
        policy = self._policy
        wide = policy.max_in_flight // 2 - self._in_flight
        if wide >= MAX_WINDOW:
            return wide // MAX_WINDOW, MAX_WINDOW
        return min(_MAX_TURNS, policy.max_in_flight - self._in_flight), 1

    async def finish(self) -> None:
        """Wait for the turns in flight, which takes as long as a delivery may take. If it is
        cancelled, they are cut off, and their leases end them."""
        turns = list(self._turns)
        try:
            await asyncio.gather(*turns)
        finally:
            for turn in turns:
                turn.cancel()

    async def run_once(self) -> None:
        """Send what is due, until nothing is. Raises ``DatabaseUnavailable``."""
        while await self.begin() or self._turns:
            await self.finish()

    async def _run(self, turn: Turn, sessions: Mapping[UUID, GenerationSession]) -> None:
        record_until = asyncio.get_running_loop().time() + self._policy.record_seconds
        try:
            bodies = [await self._payloads.body(due, turn.endpoint, sessions) for due in turn.due]
            sent = await asyncio.gather(
                *(
                    self._send(turn, due, body, sessions)
                    for due, body in zip(turn.due, bodies, strict=True)
                )
            )
            result = self._result(turn, sent)
            if await self._record(result, until=record_until):
                self._report(turn.endpoint, result)
                for outcome in result.outcomes:
                    self._events.attempt_recorded(outcome.status)
        except Exception as error:  # noqa: BLE001 - one endpoint must not stop the others
            self._events.turn_failed(turn.endpoint, error)
        finally:
            self._in_flight -= len(turn.due)
        if turn.waiting or self._is_full:
            self.wake()

    async def _record(self, result: TurnResult, *, until: float) -> bool:
        """Whether the turn still had its lease. Tries again, because what is not recorded is sent a
        second time. Raises ``DatabaseUnavailable``."""
        loop = asyncio.get_running_loop()
        while True:
            try:
                return await self._outbox.settle(result)
            except DatabaseUnavailable:
                pause = self._random.uniform(_RECORD_AGAIN_SECONDS / 2, _RECORD_AGAIN_SECONDS)
                if loop.time() + pause > until:
                    raise
            await asyncio.sleep(pause)

    async def _send(
        self,
        turn: Turn,
        due: Due,
        body: bytes | None,
        sessions: Mapping[UUID, GenerationSession],
    ) -> _Sent | Outcome:
        at = self._clock()
        if body is None:
            attempt = DeliveryAttempt(at=at, status=None, error=_MISSING, duration_ms=0)
            return Outcome(delivery_id=due.id, attempt=attempt, status=DeliveryStatus.FAILED)
        secrets = turn.endpoint.secrets.at(at)
        headers = signed_headers(body, delivery_id=due.id, at=at, secrets=secrets)
        if due.session_id is not None and (session := sessions.get(due.session_id)) is not None:
            headers["traceparent"] = session.trace
        began = asyncio.get_running_loop().time()
        response, error = Response(status=0, body=""), None
        try:
            response = await self._sender.send(turn.endpoint.url, headers=headers, body=body)
        except NotDelivered as failure:
            error = failure.detail
        attempt = DeliveryAttempt(
            at=at,
            status=response.status or None,
            error=error,
            duration_ms=round((asyncio.get_running_loop().time() - began) * 1000),
            response=response.body,
        )
        return _Sent(due, attempt, timedelta(seconds=response.retry_after_seconds))

    def _result(self, turn: Turn, attempts: Sequence[_Sent | Outcome]) -> TurnResult:
        """What the attempts say about the endpoint, and about each delivery."""
        sent = [one for one in attempts if isinstance(one, _Sent)]
        failed = [one for one in sent if not one.succeeded]
        is_alive = len(failed) < len(sent) or not sent
        failures = 0 if is_alive else turn.endpoint.failures + 1
        disable = self._reason_to_disable(turn.endpoint, failed, failures)
        is_disabled = turn.endpoint.disabled_at is not None and not is_alive
        keep = disable is not None or is_disabled
        return TurnResult(
            endpoint_id=turn.endpoint.id,
            number=turn.number,
            outcomes=[
                one if isinstance(one, Outcome) else self._outcome(one, keep=keep)
                for one in attempts
            ],
            window=self._window(turn, failed),
            failures=failures,
            paused_for=self._pause(failed, failures, is_disabled=keep),
            disable=disable,
            enable=is_alive and bool(sent),
        )

    def _reason_to_disable(
        self, endpoint: Endpoint, failed: Sequence[_Sent], failures: int
    ) -> DisabledReason | None:
        if any(one.attempt.status == _GONE for one in failed):
            return DisabledReason.GONE
        since = endpoint.failing_since
        if failures and since and self._clock() - since >= self._policy.disable_after:
            return DisabledReason.FAILING
        return None

    def _window(self, turn: Turn, failed: Sequence[_Sent]) -> int:
        """Doubled by a turn that filled it and had no failure, halved by a failure, and 1 after a
        turn without a success: an endpoint that fell silent takes few places and connections."""
        if failed:
            return max(1, turn.window // 2) if len(failed) < len(turn.due) else 1
        if len(turn.due) < turn.window and turn.endpoint.paused_until is None:
            return turn.window
        return min(MAX_WINDOW, turn.window * 2)

    def _pause(
        self, failed: Sequence[_Sent], failures: int, *, is_disabled: bool
    ) -> timedelta | None:
        policy, wanted = (
            self._policy,
            max((one.retry_after for one in failed), default=timedelta(0)),
        )
        pause = min(wanted, policy.longest_retry_after)
        if is_disabled:
            pause = max(pause, self._jittered(policy.probe_every))
        elif failures >= policy.open_after:
            doubled = policy.first_pause * 2.0 ** min(failures - policy.open_after, 16)
            pause = max(pause, self._jittered(min(doubled, policy.longest_pause)))
        return pause or None

    def _outcome(self, sent: _Sent, *, keep: bool) -> Outcome:
        """``keep``: the endpoint is disabled, so the delivery waits until it is enabled, or until
        its retention ends."""
        policy, again_after = self._policy, timedelta(0)
        status = DeliveryStatus.DELIVERED
        if not sent.succeeded:
            longest = policy.first_retry * 4.0 ** min(sent.due.failed_attempts, 16)
            again_after = self._jittered(min(longest, policy.longest_retry))
            again_after = max(again_after, min(sent.retry_after, policy.longest_retry_after))
            is_spent = sent.due.age + again_after > policy.give_up_after and not keep
            status = DeliveryStatus.FAILED if is_spent else DeliveryStatus.PENDING
        return Outcome(
            delivery_id=sent.due.id,
            attempt=sent.attempt,
            status=status,
            again_after=again_after,
        )

    def _jittered(self, longest: timedelta) -> timedelta:
        return longest * self._random.uniform(0.5, 1.0)

    def _report(self, endpoint: Endpoint, result: TurnResult) -> None:
        if result.disable is not None and endpoint.disabled_at is None:
            self._events.endpoint_disabled(endpoint, result.disable)
        elif result.enable and endpoint.disabled_reason is DisabledReason.FAILING:
            self._events.endpoint_enabled(endpoint)
