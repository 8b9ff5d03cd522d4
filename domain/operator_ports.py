"""What operators are shown, and the interfaces that it comes through.

``OperatorReadPort`` answers what the CLI, the console and ``/metrics`` ask, so they never disagree.
The other ports keep what processes report of themselves, and what operators switched off.
"""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from enum import StrEnum
from typing import Protocol
from uuid import UUID

from domain.credits import CreditAccount, LedgerEntry, Owner
from domain.operators import Operator
from domain.sessions import AttemptFault, GenerationSession, SessionStatus

MAX_DISCREPANCIES = 100
"""The errors in the books that a check counts; there may be more."""

WORKER_GONE = timedelta(seconds=30)
"""A worker that has not reported for this long counts as gone."""


class Switch(StrEnum):
    """What an operator can pause."""

    INTAKE = "intake"
    """New submissions: they get a 503."""
    WORKERS = "workers"
    """Taking tasks. What is being worked on is finished."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pause:
    """Something that an operator has paused."""

    switch: Switch
    since: datetime
    actor: str
    reason: str


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerState:
    """What a worker reports of itself. ``seen_at`` is on the database's clock, other times are on
    the worker's.

    ``busy`` slots have a task. ``circuit_until`` is when the worker will try again: its circuit was
    opened by ``circuit_cause`` (``str`` of a ``Cause``), None if it takes tasks. The same for
    ``throttled_until``, while the provider's limit has no permit. ``limit_is_local`` means that the
    provider's limit is not shared, because Redis does not answer. ``done`` and ``failed`` count the
    sessions that this process ended.
    """

    id: UUID
    host: str
    pid: int
    version: str
    started_at: datetime
    slots: int
    busy: int = 0
    draining: bool = False
    throttled_until: datetime | None = None
    limit_is_local: bool = False
    circuit_until: datetime | None = None
    circuit_cause: str | None = None
    done: int = 0
    failed: int = 0
    seen_at: datetime | None = None
    """When it reported last; None in its own report."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Controls:
    """What a worker is told in answer to its report. ``spent_today_usd`` is None if it was not
    asked for."""

    paused: Pause | None = None
    spent_today_usd: Decimal | None = None


class WorkerRepoPort(Protocol):
    """Workers' reports. Raises ``DatabaseUnavailable``."""

    async def report(self, state: WorkerState, *, with_spending: bool = False) -> Controls:
        """Keep the worker's latest state, seen now, in place of its earlier one; and read what it
        has to know, in one statement. ``with_spending`` sums what pictures of this day (UTC) have
        cost."""

    async def leave(self, worker_id: UUID) -> bool:
        """The worker has stopped: forget it. False if it is not known."""

    async def forget(self, *, older_than: timedelta, limit: int) -> int:
        """Forget workers that have not reported for ``older_than``. Returns how many."""


class PauseRepoPort(Protocol):
    """What operators have paused. Every change is in the audit log with the same commit. Raises
    ``DatabaseUnavailable``."""

    async def pause(self, switch: Switch, *, by: Operator) -> bool:
        """False, and nothing changes, if it is paused already."""

    async def resume(self, switch: Switch, *, by: Operator) -> bool:
        """False, and nothing changes, if it is not paused."""

    async def paused(self) -> Sequence[Pause]:
        """All that is paused."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BookCheck:
    """The latest complete check of the books (``CreditRepoPort.audit``), how long its reading took,
    and how many ``discrepancies`` it found, up to ``MAX_DISCREPANCIES``."""

    at: datetime
    took: timedelta
    discrepancies: int
    first: str | None = None
    """The subject and problem of the first one."""


class BookCheckRepoPort(Protocol):
    """When the books were checked. Raises ``DatabaseUnavailable``."""

    async def claim(self, *, lease: timedelta) -> bool:
        """Whether the caller is to check the books now: they are due, and no other process has
        claimed that for ``lease``."""

    async def record(self, check: BookCheck, *, again_after: timedelta) -> None:
        """Keep the result in place of the earlier one; the next check is due ``again_after`` now.
        ``at`` is set by the database."""

    async def postpone(self, *, again_after: timedelta) -> None:
        """The claimed check did not end: keep the earlier result; the next check is due
        ``again_after`` now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Window:
    """What ended within a time: completed and failed sessions, and the failed by ``error_code``."""

    completed: int = 0
    failed: int = 0
    by_code: Mapping[str, int] = field(default_factory=dict)

    @property
    def failed_share(self) -> float:
        """The failed sessions' share of all, 0 to 1; 0 if none ended."""
        return self.failed / total if (total := self.completed + self.failed) else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Snapshot:
    """The service at one moment of the database's clock, read in one transaction.

    ``oldest_queued_at`` is when the oldest ``queued`` session was created. ``unconfirmed`` sessions
    are queued for more than 5 s, and their push is not known to have worked. ``dead_leases`` are
    ``processing`` with an expired lease. ``owed_refunds`` are ``failed`` and not refunded, counted
    up to 1,000; ``oldest_owed_at`` is since when. ``causes`` counts the failed attempts of 24 h by
    cause, most frequent first, at most 20, and ``recent_causes`` those of 15 minutes. ``waits`` and
    ``works`` are the 50th and 95th percentile, in seconds, of how long sessions completed in the
    last hour waited for their last attempt and how long that took; None if there are none.
    """

    at: datetime
    queued: int = 0
    oldest_queued_at: datetime | None = None
    processing: int = 0
    unconfirmed: int = 0
    dead_leases: int = 0
    owed_refunds: int = 0
    oldest_owed_at: datetime | None = None
    last_minute: Window = field(default_factory=Window)
    last_quarter: Window = field(default_factory=Window)
    """Of 15 minutes."""
    last_day: Window = field(default_factory=Window)
    causes: Mapping[str, int] = field(default_factory=dict)
    recent_causes: Mapping[str, int] = field(default_factory=dict)
    waits: tuple[float, float] | None = None
    works: tuple[float, float] | None = None
    spent_today_usd: Decimal = Decimal(0)
    workers: Sequence[WorkerState] = ()
    """Those that have reported within a day, the latest first."""
    pauses: Sequence[Pause] = ()
    books: BookCheck | None = None
    completed_total: int = 0
    """Of all time, as ``failed_total``; both may be 60 s old."""
    failed_total: int = 0

    def live_workers(self) -> list[WorkerState]:
        """Those that have reported within ``WORKER_GONE``."""
        return [
            each for each in self.workers if each.seen_at and self.at - each.seen_at < WORKER_GONE
        ]


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFilter:
    """Which sessions a list shows: those that match all that is set. ``request_id`` is exact; an
    id of ours (``req_...``) tells its time, so it is found at any age, others if they are not older
    than ``since`` or else a day."""

    statuses: Collection[SessionStatus] = ()
    owner: Owner | None = None
    error_code: str | None = None
    request_id: str | None = None
    since: datetime | None = None
    until: datetime | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionFile:
    """Everything about one session, read in one transaction: the session, its ledger entries in
    their order, and its failed attempts."""

    session: GenerationSession
    entries: Sequence[LedgerEntry]
    faults: Sequence[AttemptFault]


@dataclass(frozen=True, slots=True, kw_only=True)
class CostRow:
    """What the completed pictures of one day (UTC), owner or provider took. ``key`` is the day
    (``2026-11-28``), the owner (``b2b:shop``) or the provider's name, ``unknown`` if none is
    recorded. ``unpriced`` pictures have no estimated cost."""

    key: str
    pictures: int
    unpriced: int
    input_tokens: int
    output_tokens: int
    estimated_cost_usd: Decimal


class CostKey(StrEnum):
    """What costs are summed by."""

    DAY = "day"
    OWNER = "owner"
    PROVIDER = "provider"


def whole_days(since: datetime, until: datetime) -> tuple[datetime, datetime]:
    """The days (UTC) that have any time from ``since`` until before ``until``, from their first
    midnight to their last."""
    end = _midnight(until)
    return _midnight(since), end if end == until else end + timedelta(days=1)


def _midnight(at: datetime) -> datetime:
    return at.astimezone(UTC).replace(hour=0, minute=0, second=0, microsecond=0)


MAX_STEPS = 200


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How many sessions ended within a step of time that began ``at``."""

    at: datetime
    completed: int = 0
    failed: int = 0


class OperatorReadPort(Protocol):
    """Reading for operators, who see every owner's. Each call is one read-only snapshot of the
    database. Raises ``DatabaseUnavailable``."""

    async def snapshot(self) -> Snapshot:
        """The service now."""

    async def sessions(
        self, which: SessionFilter, *, limit: int, before: UUID | None = None
    ) -> list[GenerationSession]:
        """Newest first by id, only those with an id smaller than ``before``. ``since`` and
        ``until`` bound when the id was made: from ``since`` until before ``until``."""

    async def session_file(self, session_id: UUID) -> SessionFile:
        """Raises ``NotFound``."""

    async def costs(
        self,
        by: CostKey,
        *,
        since: datetime,
        until: datetime,
        owner: Owner | None = None,
        limit: int,
    ) -> list[CostRow]:
        """Of pictures completed from ``since`` until before ``until``: days newest first, owners
        and providers with the largest cost first. A day is summed as a whole if the times have any
        of it."""

    async def pace(self, *, since: datetime, step: timedelta, steps: int) -> list[Step]:
        """How many sessions ended in each of ``steps`` from ``since`` on, oldest first: up to
        MAX_STEPS, also those in which none ended."""

    async def lowest_balances(self, *, limit: int) -> list[CreditAccount]:
        """Accounts in use with the smallest balances, smallest first: those that ever paid for a
        session and are not suspended. Reads every account, so a caller keeps the answer."""
