"""What operators are shown, from PostgreSQL."""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import assert_never
from uuid import UUID

import asyncpg

from adapters.credits.postgres import account_of, entry_of
from adapters.operations import statements as sql
from adapters.postgres.database import READS_ALL, Connection, Database
from adapters.sessions import lists
from adapters.sessions import statements as sessions
from adapters.sessions.rows import session_of
from domain.credits import Channel, CreditAccount, Owner
from domain.errors import NotFound
from domain.ids import (
    CLOCK_SKEW,
    END_OF_TIME,
    FIRST_ID,
    LAST_ID,
    created_by,
    uuid7_floor,
    uuid7_time,
)
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
    Switch,
    Window,
    WorkerState,
    whole_days,
)
from domain.sessions import AttemptFault, GenerationSession, SessionStatus

TOTALS_KEPT = timedelta(seconds=60)
_DAY = timedelta(days=1)
_QUARTER = timedelta(minutes=15)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Totals:
    """Final sessions of all time, as they were ``at``."""

    at: datetime
    completed: int
    failed: int


class PostgresOperatorReads(OperatorReadPort):
    """Each call is one transaction. ``settled_within`` is the longest that a session takes from its
    creation to its end: one that was kept longer is missing from the windows of a snapshot."""

    def __init__(self, database: Database, *, settled_within: timedelta) -> None:
        self._database = database
        self._settled_within = settled_within
        self._totals: _Totals | None = None

    async def snapshot(self) -> Snapshot:
        async with self._database.snapshot() as connection:
            (now,) = await connection.fetch(sql.NOW, sql.MAX_OWED)
            since = uuid7_floor(now["at"] - _DAY - self._settled_within - CLOCK_SKEW)
            (completed,) = await connection.fetch(sql.COMPLETED, since)
            failed = await connection.fetch(sql.FAILED, since)
            causes = await connection.fetch(sql.CAUSES, _DAY)
            recent_causes = await connection.fetch(sql.CAUSES, _QUARTER)
            workers = await connection.fetch(sql.WORKERS)
            pauses = await connection.fetch(sql.PAUSES)
            books = await connection.fetchrow(sql.BOOKS)
            totals = await self._current_totals(connection, now)
        return Snapshot(
            **now,
            last_minute=_window("minute", completed, failed),
            last_quarter=_window("quarter", completed, failed),
            last_day=_window("day", completed, failed),
            causes={row["cause"]: row["count"] for row in causes},
            recent_causes={row["cause"]: row["count"] for row in recent_causes},
            waits=_pair(completed["waits"]),
            works=_pair(completed["works"]),
            spent_today_usd=completed["spent_today_usd"],
            workers=[WorkerState(**row) for row in workers],
            pauses=[Pause(**{**row, "switch": Switch(row["switch"])}) for row in pauses],
            books=None if books is None else _book_check(books),
            completed_total=totals.completed,
            failed_total=totals.failed,
        )

    async def _current_totals(self, connection: Connection, now: asyncpg.Record) -> _Totals:
        """By the accounts' counters. ``now`` counts the sessions that are in neither of them."""
        at: datetime = now["at"]
        kept = self._totals
        if kept is None or not timedelta(0) <= at - kept.at < TOTALS_KEPT:
            await connection.execute(READS_ALL)
            (row,) = await connection.fetch(sql.ALL_TOTALS)
            failed = row["refunded"] + now["owed_refunds"]
            unfinished = now["queued"] + now["processing"]
            # An account may have been imported without its counters: the audit names it.
            completed = max(0, row["created"] - failed - unfinished)
            kept = self._totals = _Totals(at=at, completed=completed, failed=failed)
        return kept

    async def sessions(
        self, which: SessionFilter, *, limit: int, before: UUID | None = None
    ) -> list[GenerationSession]:
        statuses = _statuses(which)
        if not statuses:
            return []
        async with self._database.snapshot() as connection:
            if which.request_id is not None:
                rows = await _of_request(connection, which, statuses, limit, before)
            else:
                statement, arguments = _listed(which, statuses, limit, before)
                rows = await connection.fetch(statement, *arguments)
        return [session_of(row) for row in rows]

    async def session_file(self, session_id: UUID) -> SessionFile:
        async with self._database.snapshot() as connection:
            row = await connection.fetchrow(sessions.GET, session_id)
            if row is None:
                raise NotFound("No such generation")
            entries = await connection.fetch(sql.ENTRIES, session_id)
            faults = await connection.fetch(sessions.FAULTS, session_id)
        return SessionFile(
            session=session_of(row),
            entries=[entry_of(entry) for entry in entries],
            faults=[AttemptFault(**fault) for fault in faults],
        )

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
        earliest = since - self._settled_within
        if owner is None:
            ids = (uuid7_floor(earliest - CLOCK_SKEW), uuid7_floor(until + CLOCK_SKEW))
            arguments: tuple[object, ...] = (*ids, since, until, limit)
        else:
            arguments = (earliest, until, since, until, limit, owner.channel, owner.id)
        async with self._database.snapshot() as connection:
            rows = await connection.fetch(_costs_by(by, of_owner=owner is not None), *arguments)
        return [CostRow(**{**row, "key": str(row["key"])}) for row in rows]

    async def pace(self, *, since: datetime, step: timedelta, steps: int) -> list[Step]:
        count, seconds = min(steps, MAX_STEPS), step.total_seconds()
        earliest = uuid7_floor(since - self._settled_within - CLOCK_SKEW)
        async with self._database.snapshot() as connection:
            rows = await connection.fetch(sql.PACE, earliest, since, since + count * step, seconds)
        ended = {row["step"]: (row["completed"], row["failed"]) for row in rows}
        return [
            Step(at=since + index * step, completed=completed, failed=failed)
            for index in range(count)
            for completed, failed in [ended.get(index, (0, 0))]
        ]

    async def lowest_balances(self, *, limit: int) -> list[CreditAccount]:
        async with self._database.snapshot() as connection:
            await connection.execute(READS_ALL)
            rows = await connection.fetch(sql.ALL_LOWEST, limit)
        return [
            account_of(Owner(channel=Channel(row["channel"]), id=row["owner_id"]), row)
            for row in rows
        ]


def _costs_by(by: CostKey, *, of_owner: bool) -> str:
    match by:
        case CostKey.DAY:
            return sql.COSTS_BY_DAY_OF_OWNER if of_owner else sql.COSTS_BY_DAY
        case CostKey.OWNER:
            return sql.COSTS_BY_OWNER_OF_OWNER if of_owner else sql.COSTS_BY_OWNER
        case CostKey.PROVIDER:
            return sql.COSTS_BY_PROVIDER_OF_OWNER if of_owner else sql.COSTS_BY_PROVIDER
        case _:
            assert_never(by)


def _window(length: str, completed: asyncpg.Record, failed: Sequence[asyncpg.Record]) -> Window:
    by_code = {row["code"]: row[length] for row in failed if row[length]}
    return Window(completed=completed[length], failed=sum(by_code.values()), by_code=by_code)


def _pair(values: Sequence[float] | None) -> tuple[float, float] | None:
    return None if values is None else (values[0], values[1])


def _book_check(row: asyncpg.Record) -> BookCheck:
    return BookCheck(
        at=row["checked_at"],
        took=timedelta(milliseconds=row["took_ms"]),
        discrepancies=row["discrepancies"],
        first=row["first"],
    )


def _statuses(which: SessionFilter) -> list[SessionStatus]:
    """The statuses that match. Only a failed session has a code."""
    wanted = set(which.statuses) or set(SessionStatus)
    return sorted(wanted if which.error_code is None else wanted & {SessionStatus.FAILED})


def _ids(which: SessionFilter, before: UUID | None) -> tuple[UUID, UUID]:
    """The smallest id that matches, and the first one that is too large."""
    since = uuid7_floor(which.since) if which.since else FIRST_ID
    until = uuid7_floor(which.until) if which.until else LAST_ID
    return since, min(until, before or LAST_ID)


def _listed(
    which: SessionFilter, statuses: list[SessionStatus], limit: int, before: UUID | None
) -> tuple[str, tuple[object, ...]]:
    """The statement for a filter without a request id, and its arguments."""
    first, end = _ids(which, before)
    place = (first, end, limit)
    if which.owner is not None:
        created = (uuid7_time(first) - CLOCK_SKEW, _after(uuid7_time(end)))
        owner = (which.owner.channel, which.owner.id)
        return lists.OF_OWNER, (*place, *owner, statuses, *created, which.error_code, CLOCK_SKEW)
    if which.error_code is not None:
        return lists.OF_CODE, (*place, which.error_code)
    if len(statuses) == len(SessionStatus):
        return lists.OF_ALL, place
    return lists.OF_STATUSES, (*place, statuses)


def _after(at: datetime) -> datetime:
    return END_OF_TIME if at > END_OF_TIME - CLOCK_SKEW else at + CLOCK_SKEW


async def _of_request(
    connection: Connection,
    which: SessionFilter,
    statuses: list[SessionStatus],
    limit: int,
    before: UUID | None,
) -> list[asyncpg.Record]:
    """An id of ours is looked for near its time, and like any other: a caller may have sent it
    again later."""
    assert which.request_id is not None  # noqa: S101 - for the type checker
    first, end = _ids(which, before)
    recent = first
    if which.since is None:
        now: datetime = await connection.fetchval("SELECT now()")
        recent = uuid7_floor(now - _DAY)
    ranges = [(recent, end)]
    if (at := created_by(which.request_id)) is not None:
        near = (uuid7_floor(at - CLOCK_SKEW), uuid7_floor(at + CLOCK_SKEW))
        ranges.append((max(first, near[0]), min(end, near[1])))
    owner = (None, None) if which.owner is None else (which.owner.channel, which.owner.id)
    rest = (limit, which.request_id, statuses, *owner, which.error_code)
    found = {
        row["id"]: row
        for ids in ranges
        for row in await connection.fetch(lists.OF_REQUEST, *ids, *rest)
    }
    return [found[session_id] for session_id in sorted(found, reverse=True)[:limit]]
