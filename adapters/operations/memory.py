"""What operators are shown, from this process's memory, for tests and development."""

from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Sequence
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from typing import assert_never
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.memory_rows import Row
from domain.credits import CreditAccount, Owner
from domain.errors import NotFound
from domain.ids import FIRST_ID, LAST_ID, created_by, uuid7_floor
from domain.operator_ports import (
    MAX_STEPS,
    BookCheck,
    CostKey,
    CostRow,
    OperatorReadPort,
    Pause,
    SessionFile,
    SessionFilter,
    Snapshot,
    Step,
    Window,
    WorkerState,
    whole_days,
)
from domain.sessions import GenerationSession, SessionStatus, Usage

_DAY = timedelta(days=1)
_MAX_CAUSES = 20


class InMemoryOperatorReads(OperatorReadPort):
    """``workers``, ``pauses`` and ``books`` return what their repositories keep."""

    def __init__(
        self,
        *,
        sessions: InMemorySessionRepo,
        accounts: InMemoryCreditRepo,
        clock: Callable[[], datetime],
        workers: Callable[[], Iterable[WorkerState]] = tuple,
        pauses: Callable[[], Iterable[Pause]] = tuple,
        books: Callable[[], BookCheck | None] = lambda: None,
    ) -> None:
        self._sessions = sessions
        self._accounts = accounts
        self._clock = clock
        self._workers = workers
        self._pauses = pauses
        self._books = books

    async def snapshot(self) -> Snapshot:
        now = self._clock()
        rows = self._sessions.rows()
        queued = [row.session for row in rows if row.session.status is SessionStatus.QUEUED]
        processing = [row for row in rows if row.session.status is SessionStatus.PROCESSING]
        failed = [row for row in rows if row.session.status is SessionStatus.FAILED]
        owed = [row.session.completed_at or now for row in failed if not row.refunded]
        completed = _ended(rows, SessionStatus.COMPLETED, now - timedelta(hours=1))
        begun = [(one, one.started_at) for one in completed if one.started_at is not None]
        return Snapshot(
            at=now,
            queued=len(queued),
            oldest_queued_at=min((one.created_at for one in queued), default=None),
            processing=len(processing),
            unconfirmed=sum(
                not one.confirmed and one.created_at < now - timedelta(seconds=5) for one in queued
            ),
            dead_leases=sum((row.session.lease_expires_at or now) < now for row in processing),
            owed_refunds=len(owed),
            oldest_owed_at=min(owed, default=None),
            last_minute=_window(rows, now - timedelta(minutes=1)),
            last_quarter=_window(rows, now - timedelta(minutes=15)),
            last_day=_window(rows, now - _DAY),
            causes=_causes(rows, now - _DAY),
            recent_causes=_causes(rows, now - timedelta(minutes=15)),
            waits=_percentiles([at - one.created_at for one, at in begun]),
            works=_percentiles([(one.completed_at or at) - at for one, at in begun]),
            spent_today_usd=sum(
                (
                    one.usage.estimated_cost_usd or Decimal(0)
                    for one in _ended(rows, SessionStatus.COMPLETED, now - _DAY)
                    if one.usage and one.completed_at and one.completed_at.date() == now.date()
                ),
                start=Decimal(0),
            ),
            workers=self._latest_workers(now),
            pauses=sorted(self._pauses(), key=lambda pause: (pause.since, pause.switch)),
            books=self._books(),
            completed_total=sum(row.session.status is SessionStatus.COMPLETED for row in rows),
            failed_total=len(failed),
        )

    def _latest_workers(self, now: datetime) -> list[WorkerState]:
        seen = [
            (each.seen_at, each)
            for each in self._workers()
            if each.seen_at is not None and each.seen_at > now - _DAY
        ]
        by_id = sorted(seen, key=lambda pair: pair[1].id)
        return [each for _, each in sorted(by_id, key=lambda pair: pair[0], reverse=True)]

    async def sessions(
        self, which: SessionFilter, *, limit: int, before: UUID | None = None
    ) -> list[GenerationSession]:
        since = uuid7_floor(which.since) if which.since else FIRST_ID
        if which.request_id is not None and which.since is None:
            is_ours = created_by(which.request_id) is not None
            since = FIRST_ID if is_ours else uuid7_floor(self._clock() - _DAY)
        until = uuid7_floor(which.until) if which.until else LAST_ID
        found = [
            row.session
            for row in self._sessions.rows()
            if since <= row.session.id < min(until, before or LAST_ID)
            and _matches(row.session, which)
        ]
        return sorted(found, key=lambda session: session.id, reverse=True)[:limit]

    async def session_file(self, session_id: UUID) -> SessionFile:
        row = next((r for r in self._sessions.rows() if r.session.id == session_id), None)
        if row is None:
            raise NotFound("No such generation")
        entries = [one for one in self._accounts.entries if one.session_id == session_id]
        return SessionFile(session=row.session, entries=entries, faults=list(row.faults))

    async def costs(
        self,
        by: CostKey,
        *,
        since: datetime,
        until: datetime,
        owner: Owner | None = None,
        limit: int,
    ) -> list[CostRow]:
        if by is CostKey.DAY:
            since, until = whole_days(since, until)
        groups: defaultdict[str, list[Usage]] = defaultdict(list)
        for row in self._sessions.rows():
            session = row.session
            at = session.completed_at
            if session.status is not SessionStatus.COMPLETED or at is None:
                continue
            if since <= at < until and owner in {None, session.owner}:
                groups[_cost_key(by, session, at)].append(session.usage or Usage())
        rows = sorted((_cost_row(key, group) for key, group in groups.items()), key=_cost_order)
        if by is CostKey.DAY:
            rows.sort(key=lambda row: row.key, reverse=True)
        return rows[:limit]

    async def pace(self, *, since: datetime, step: timedelta, steps: int) -> list[Step]:
        ended = [
            (row.session.status, row.session.completed_at - since)
            for row in self._sessions.rows()
            if row.session.completed_at is not None and row.session.completed_at >= since
        ]
        counts = Counter((status, after // step) for status, after in ended)
        return [
            Step(
                at=since + index * step,
                completed=counts[SessionStatus.COMPLETED, index],
                failed=counts[SessionStatus.FAILED, index],
            )
            for index in range(min(steps, MAX_STEPS))
        ]

    async def lowest_balances(self, *, limit: int) -> list[CreditAccount]:
        used = [
            account
            for account in self._accounts.all_accounts()
            if account.total_debited > 0 and not account.suspended
        ]
        return sorted(used, key=_order)[:limit]


def _order(account: CreditAccount) -> tuple[int, str, str]:
    return account.balance, account.owner.channel, account.owner.id


def _ended(rows: Iterable[Row], status: SessionStatus, since: datetime) -> list[GenerationSession]:
    """The sessions that reached this final status after ``since``."""
    return [
        row.session
        for row in rows
        if row.session.status is status
        and row.session.completed_at is not None
        and row.session.completed_at > since
    ]


def _window(rows: Sequence[Row], since: datetime) -> Window:
    failures = [one.failure for one in _ended(rows, SessionStatus.FAILED, since)]
    by_code = Counter(failure.code for failure in failures if failure is not None)
    return Window(
        completed=len(_ended(rows, SessionStatus.COMPLETED, since)),
        failed=by_code.total(),
        by_code=dict(by_code),
    )


def _causes(rows: Iterable[Row], since: datetime) -> dict[str, int]:
    causes = Counter(fault.cause for row in rows for fault in row.faults if fault.at > since)
    by_name = sorted(causes.items())
    return dict(sorted(by_name, key=lambda item: item[1], reverse=True)[:_MAX_CAUSES])


def _percentiles(times: Iterable[timedelta]) -> tuple[float, float] | None:
    """The 50th and the 95th, between two values where no value is that, as in SQL."""
    seconds = sorted(time.total_seconds() for time in times)
    return (_percentile(seconds, 0.5), _percentile(seconds, 0.95)) if seconds else None


def _percentile(ordered: Sequence[float], share: float) -> float:
    place = share * (len(ordered) - 1)
    below = int(place)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (place - below)


def _cost_key(by: CostKey, session: GenerationSession, at: datetime) -> str:
    match by:
        case CostKey.DAY:
            return at.astimezone(UTC).date().isoformat()
        case CostKey.OWNER:
            return str(session.owner)
        case CostKey.PROVIDER:
            return (session.usage and session.usage.provider) or "unknown"
        case _:
            assert_never(by)


def _cost_row(key: str, group: Sequence[Usage]) -> CostRow:
    costs = [usage.estimated_cost_usd for usage in group if usage.estimated_cost_usd is not None]
    return CostRow(
        key=key,
        pictures=len(group),
        unpriced=len(group) - len(costs),
        input_tokens=sum(usage.input_tokens or 0 for usage in group),
        output_tokens=sum(usage.output_tokens or 0 for usage in group),
        estimated_cost_usd=sum(costs, start=Decimal(0)),
    )


def _cost_order(row: CostRow) -> tuple[Decimal, int, str]:
    return -row.estimated_cost_usd, -row.pictures, row.key


def _matches(session: GenerationSession, which: SessionFilter) -> bool:
    has_failed = session.status is SessionStatus.FAILED
    code = session.failure.code if has_failed and session.failure else None
    return (
        (not which.statuses or session.status in which.statuses)
        and which.owner in {None, session.owner}
        and (which.error_code is None or which.error_code == code)
        and which.request_id in {None, session.request_id}
    )
