"""Workers' reports in this process's memory."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from datetime import UTC, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

from domain.operator_ports import Controls, Pause, Switch, WorkerRepoPort, WorkerState


def midnight(now: datetime) -> datetime:
    """The begin of the day (UTC)."""
    return datetime.combine(now.astimezone(UTC), time(), UTC)


class InMemoryWorkerRepo(WorkerRepoPort):
    """``clock`` stands for the database's clock. ``pauses`` is what is paused, and ``spent_since``
    sums what pictures completed since a time have cost."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        pauses: Mapping[Switch, Pause],
        spent_since: Callable[[datetime], Decimal],
    ) -> None:
        self.states: dict[UUID, WorkerState] = {}
        self._clock = clock
        self._pauses = pauses
        self._spent_since = spent_since

    async def report(self, state: WorkerState, *, with_spending: bool = False) -> Controls:
        now = self._clock()
        self.states[state.id] = replace(state, seen_at=now)
        return Controls(
            paused=self._pauses.get(Switch.WORKERS),
            spent_today_usd=self._spent_since(midnight(now)) if with_spending else None,
        )

    async def leave(self, worker_id: UUID) -> bool:
        return self.states.pop(worker_id, None) is not None

    async def forget(self, *, older_than: timedelta, limit: int) -> int:
        before = self._clock() - older_than
        gone = [each.id for each in self.states.values() if each.seen_at and each.seen_at < before]
        for worker_id in gone[:limit]:
            del self.states[worker_id]
        return len(gone[:limit])
