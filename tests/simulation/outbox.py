"""The outbox of a world, which records what a guard should have prevented."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from uuid import UUID

from adapters.webhooks.memory import InMemoryWebhookRepo
from domain.credits import Owner
from domain.dispatch import MAX_WINDOW, DispatchPolicy
from domain.endpoints import (
    Delivery,
    DeliveryStatus,
    DisabledReason,
    Endpoint,
    EndpointChange,
)
from domain.sessions import GenerationSession
from domain.webhook_ports import Turn, TurnResult

RETRY_AFTER = timedelta(seconds=2)
"""What a busy endpoint asks for."""
DISPATCH = DispatchPolicy(
    lease=timedelta(seconds=5),
    first_retry=timedelta(seconds=0.5),
    longest_retry=timedelta(seconds=3),
    give_up_after=timedelta(seconds=16),
    longest_retry_after=timedelta(seconds=3),
    open_after=3,
    first_pause=timedelta(seconds=1),
    longest_pause=timedelta(seconds=4),
    disable_after=timedelta(seconds=9),
    probe_every=timedelta(seconds=4),
)


@dataclass(slots=True)
class _History:
    """What became of an endpoint's turns, counted apart from the adapter."""

    number: int = 0
    """Of the turn that was begun last."""
    leased_until: datetime | None = None
    was_disabled: bool = False
    """When that turn was begun."""
    settled: int = 0
    """The number of the last turn that was recorded."""
    settled_at: datetime | None = None
    lost_turns: int = 0
    """Those recorded since the last success."""
    not_before: datetime | None = None
    """What it asked for with a Retry-After."""
    claimed: dict[UUID, datetime] = field(default_factory=dict)
    """When each delivery was claimed first."""

    def forget(self) -> None:
        """The owner has enabled the endpoint."""
        self.leased_until, self.lost_turns, self.not_before = None, 0, None


class WatchedOutbox(InMemoryWebhookRepo):
    """``accepted`` are the ids of messages that an endpoint took. ``require`` records a violation
    unless its first argument holds."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        find_session: Callable[[UUID], GenerationSession | None],
        new_id: Callable[[], UUID],
        require: Callable[[bool, str], None],
    ) -> None:
        super().__init__(clock=clock, find_session=find_session, new_id=new_id)
        self.accepted: set[str] = set()
        self._require = require
        self._histories: dict[UUID, _History] = {}

    def endpoints(self) -> list[Endpoint]:
        return [row.endpoint for row in self._endpoints.values()]

    def written(self) -> Iterator[Delivery]:
        """All deliveries, the oldest first; none is ever deleted."""
        return (row.delivery for row in self._deliveries.values())

    def find_delivery(self, delivery_id: str) -> Delivery | None:
        row = self._deliveries.get(UUID(delivery_id))
        return None if row is None else row.delivery

    def claimed_at(self, delivery: Delivery) -> datetime | None:
        """When a delivery was claimed first."""
        return self._history(delivery.endpoint_id).claimed.get(delivery.id)

    def _history(self, endpoint_id: UUID) -> _History:
        return self._histories.setdefault(endpoint_id, _History())

    async def change(self, endpoint_id: UUID, owner: Owner, change: EndpointChange) -> Endpoint:
        if change.enabled:
            self._history(endpoint_id).forget()
        return await super().change(endpoint_id, owner, change)

    async def claim(self, *, limit: int, window: int, lease: timedelta) -> list[Turn]:
        turns = await super().claim(limit=limit, window=window, lease=lease)
        for turn in turns:
            self._check_claim(turn, self._history(turn.endpoint.id))
        return turns

    def _check_claim(self, turn: Turn, history: _History) -> None:
        now, endpoint = self._clock(), turn.endpoint
        is_free = history.leased_until is None or history.leased_until <= now
        self._require(is_free, f"{endpoint.url} has two turns at once")
        is_enabled = endpoint.disabled_reason in {None, DisabledReason.FAILING}
        self._require(is_enabled, f"{endpoint.url} has a turn and is disabled: {endpoint}")
        is_asked = history.not_before is None or history.not_before <= now
        self._require(is_asked, f"{endpoint.url} has a turn before its Retry-After")
        self._require(len(turn.due) <= MAX_WINDOW, f"{endpoint.url} gets {len(turn.due)} at once")
        if history.lost_turns >= DISPATCH.open_after and history.settled_at is not None:
            paused = now - history.settled_at >= self._shortest_pause(endpoint, history)
            is_probe = paused and len(turn.due) == 1
            self._require(is_probe, f"{endpoint.url} is dead: {len(turn.due)} at {now}, {history}")
        history.number, history.leased_until = turn.number, now + DISPATCH.lease
        history.was_disabled = endpoint.disabled_reason is not None
        for due in turn.due:
            history.claimed.setdefault(due.id, now)

    @staticmethod
    def _shortest_pause(endpoint: Endpoint, history: _History) -> timedelta:
        doubled = DISPATCH.first_pause * 2 ** (history.lost_turns - DISPATCH.open_after)
        is_disabled = endpoint.disabled_reason is not None
        longest = DISPATCH.probe_every if is_disabled else min(doubled, DISPATCH.longest_pause)
        return longest / 2

    async def settle(self, result: TurnResult) -> bool:
        before = {one.delivery_id: self._deliveries[one.delivery_id] for one in result.outcomes}
        statuses = {id_: row.delivery.status for id_, row in before.items()}
        settled = await super().settle(result)
        history = self._history(result.endpoint_id)
        if settled:
            self._check_settled_turn(result, history)
        may_drop = settled and not history.was_disabled and result.disable is None
        for id_, row in before.items():
            if row.delivery.status is not statuses[id_]:
                self._check_end(row.delivery, self._clock() - row.since, may_drop=may_drop)
        return settled

    def _check_settled_turn(self, result: TurnResult, history: _History) -> None:
        now = self._clock()
        is_latest = result.number == history.number
        self._require(is_latest, f"turn {result.number} of {history} was recorded: {result}")
        statuses = [one.attempt.status or 0 for one in result.outcomes]
        if result.number != history.settled:  # Not once more.
            is_lost = not any(200 <= status < 300 for status in statuses)
            history.lost_turns = history.lost_turns + 1 if is_lost else 0
        history.settled, history.settled_at, history.leased_until = result.number, now, None
        history.not_before = now + RETRY_AFTER if 429 in statuses else None

    def _check_end(self, delivery: Delivery, age: timedelta, *, may_drop: bool) -> None:
        """``may_drop``: its turn was begun at an enabled endpoint, was not fenced meanwhile, and
        does not disable it."""
        if delivery.status is DeliveryStatus.DELIVERED:
            was_accepted = str(delivery.id) in self.accepted
            self._require(was_accepted, f"{delivery} was never accepted")
            return
        longest = max(DISPATCH.longest_retry, DISPATCH.longest_retry_after)
        is_spent = may_drop and age + longest > DISPATCH.give_up_after
        self._require(is_spent, f"{delivery} was dropped after {age}; {may_drop}")
