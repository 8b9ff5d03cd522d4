"""What operators' ports need beyond their own methods, for each adapter."""

from abc import ABC, abstractmethod
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

from adapters.book_checks.memory import InMemoryBookCheckRepo
from adapters.book_checks.postgres import PostgresBookCheckRepo
from adapters.postgres.database import Database
from adapters.workers.memory import InMemoryWorkerRepo
from adapters.workers.postgres import PostgresWorkerRepo
from domain.operator_ports import (
    BookCheck,
    BookCheckRepoPort,
    Pause,
    Switch,
    WorkerRepoPort,
    WorkerState,
)
from tests.contracts.backends import Backend, MemoryBackend, PostgresBackend

SETTLE_BOUND = timedelta(hours=2)


class Operating(ABC):
    """A database with the operators' tables empty."""

    backend: Backend
    workers: WorkerRepoPort
    book_checks: BookCheckRepoPort

    @abstractmethod
    async def pause(self, switch: Switch, *, actor: str, reason: str) -> Pause:
        """Pause something, without the audit log."""

    @abstractmethod
    async def states(self) -> list[WorkerState]:
        """What is kept of the workers, ordered by their ids."""

    @abstractmethod
    async def latest_check(self) -> BookCheck | None:
        """What is kept of the latest check of the books."""

    @abstractmethod
    async def completed_at(self, session_id: UUID, at: datetime) -> None:
        """Move the end of a completed session."""

    @abstractmethod
    async def advance(self, by: timedelta) -> None:
        """Let time pass."""


class MemoryOperating(Operating):
    def __init__(self, backend: MemoryBackend) -> None:
        self.backend = backend
        self._repo = backend._repo
        self._pauses: dict[Switch, Pause] = {}
        self._workers = InMemoryWorkerRepo(
            clock=backend.now, pauses=self._pauses, spent_since=self._repo.spent_since
        )
        self.workers = self._workers
        self._checks = InMemoryBookCheckRepo(clock=backend.now)
        self.book_checks = self._checks

    async def pause(self, switch: Switch, *, actor: str, reason: str) -> Pause:
        pause = Pause(switch=switch, since=self.backend.now(), actor=actor, reason=reason)
        self._pauses[switch] = pause
        return pause

    async def states(self) -> list[WorkerState]:
        return sorted(self._workers.states.values(), key=lambda state: state.id)

    async def latest_check(self) -> BookCheck | None:
        return self._checks.latest

    async def completed_at(self, session_id: UUID, at: datetime) -> None:
        row = self._repo._rows[session_id]
        row.session = replace(row.session, completed_at=at)

    async def advance(self, by: timedelta) -> None:
        await self.backend.advance(by)


_EMPTY = "TRUNCATE workers, pauses"
_FORGET_CHECK = """
    UPDATE book_checks SET due_at = now(), claimed_until = NULL, checked_at = NULL, took_ms = NULL,
        discrepancies = NULL, first = NULL"""
_LATEST = """
    SELECT checked_at, took_ms, discrepancies, first FROM book_checks
    WHERE checked_at IS NOT NULL"""
_ADVANCE_CHECK = """
    UPDATE book_checks SET due_at = due_at - $1::interval,
        claimed_until = claimed_until - $1::interval, checked_at = checked_at - $1::interval"""
_PAUSE = """
    INSERT INTO pauses (switch, actor, reason) VALUES ($1, $2, $3)
    RETURNING switch, since, actor, reason"""
_STATES = """
    SELECT id, host, pid, version, started_at, seen_at, slots, busy, draining, throttled_until,
        limit_is_local, circuit_until, circuit_cause, done, failed
    FROM workers ORDER BY id"""
_COMPLETED_AT = "UPDATE generation_sessions SET completed_at = $2 WHERE id = $1"
_ADVANCE = "UPDATE workers SET seen_at = seen_at - $1::interval"


class PostgresOperating(Operating):
    def __init__(self, backend: PostgresBackend) -> None:
        self.backend = backend
        self._postgres = backend
        self._owner: Database = backend._database
        used = backend._used
        self.workers = PostgresWorkerRepo(
            used, clock=lambda: datetime.now(UTC), settled_within=SETTLE_BOUND
        )

        self.book_checks = PostgresBookCheckRepo(used)

    async def empty(self) -> None:
        await self._owner.fetch(_EMPTY)
        await self._owner.fetch(_FORGET_CHECK)

    async def pause(self, switch: Switch, *, actor: str, reason: str) -> Pause:
        row = await self._owner.fetch_row(_PAUSE, switch, actor, reason)
        assert row is not None
        return Pause(**{**row, "switch": Switch(row["switch"])})

    async def states(self) -> list[WorkerState]:
        return [WorkerState(**row) for row in await self._owner.fetch(_STATES)]

    async def latest_check(self) -> BookCheck | None:
        row = await self._owner.fetch_row(_LATEST)
        if row is None:
            return None
        return BookCheck(
            at=row["checked_at"],
            took=timedelta(milliseconds=row["took_ms"]),
            discrepancies=row["discrepancies"],
            first=row["first"],
        )

    async def completed_at(self, session_id: UUID, at: datetime) -> None:
        await self._postgres._rewrite(_COMPLETED_AT, session_id, at)

    async def advance(self, by: timedelta) -> None:
        await self.backend.advance(by)
        await self._owner.fetch(_ADVANCE, by)
        await self._owner.fetch(_ADVANCE_CHECK, by)


async def operating_on(backend: Backend) -> Operating:
    """The operators' side of an empty backend."""
    if isinstance(backend, MemoryBackend):
        return MemoryOperating(backend)
    assert isinstance(backend, PostgresBackend)
    operating = PostgresOperating(backend)
    await operating.empty()
    return operating


def a_worker_state(worker_id: UUID, **changes: object) -> WorkerState:
    """The report of an idle worker."""
    state = WorkerState(
        id=worker_id,
        host="host-a",
        pid=2267,
        version="1.2.3",
        started_at=datetime(2026, 1, 1, 12, tzinfo=UTC),
        slots=4,
    )
    return replace(state, **changes)  # type: ignore[arg-type]
