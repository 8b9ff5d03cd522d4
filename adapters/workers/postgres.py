"""Workers' reports in PostgreSQL."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from adapters.postgres.database import Database
from adapters.workers.memory import midnight
from domain.ids import CLOCK_SKEW, uuid7_floor
from domain.operator_ports import Controls, Pause, Switch, WorkerRepoPort, WorkerState

# The sum reads the sessions of the day by their ids ($16), and only if it is asked for ($17).
_REPORT = """
    WITH report AS (
        INSERT INTO workers (id, host, pid, version, started_at, seen_at, slots, busy, draining,
            throttled_until, limit_is_local, circuit_until, circuit_cause, done, failed)
        VALUES ($1, $2, $3, $4, $5, now(), $6, $7, $8, $9, $10, $11, $12, $13, $14)
        ON CONFLICT (id) DO UPDATE SET seen_at = excluded.seen_at, slots = excluded.slots,
            busy = excluded.busy, draining = excluded.draining,
            throttled_until = excluded.throttled_until, limit_is_local = excluded.limit_is_local,
            circuit_until = excluded.circuit_until, circuit_cause = excluded.circuit_cause,
            done = excluded.done, failed = excluded.failed
    )
    SELECT since, actor, reason, CASE WHEN $17::boolean THEN (
        SELECT coalesce(sum(estimated_cost_usd), 0) FROM generation_sessions
        WHERE id >= $16 AND completed_at >= $15
    ) END AS spent_today_usd
    FROM (VALUES ('workers')) AS asked (switch) LEFT JOIN pauses USING (switch)"""

_LEAVE = "DELETE FROM workers WHERE id = $1 RETURNING id"

_FORGET = """
    DELETE FROM workers WHERE id IN (
        SELECT id FROM workers WHERE seen_at < now() - $1::interval
        ORDER BY seen_at LIMIT $2 FOR UPDATE SKIP LOCKED
    ) RETURNING id"""


class PostgresWorkerRepo(WorkerRepoPort):
    """``clock`` tells which day it is. ``settled_within`` is how long after its creation a session
    may be completed."""

    def __init__(
        self, database: Database, *, clock: Callable[[], datetime], settled_within: timedelta
    ) -> None:
        self._database = database
        self._clock = clock
        self._settled_within = settled_within

    async def report(self, state: WorkerState, *, with_spending: bool = False) -> Controls:
        day = midnight(self._clock())
        row = await self._database.fetch_row(
            _REPORT,
            state.id,
            state.host,
            state.pid,
            state.version,
            state.started_at,
            state.slots,
            state.busy,
            state.draining,
            state.throttled_until,
            state.limit_is_local,
            state.circuit_until,
            state.circuit_cause,
            state.done,
            state.failed,
            day,
            uuid7_floor(day - self._settled_within - CLOCK_SKEW),
            with_spending,
        )
        if row is None:
            return Controls()
        paused = None
        if row["since"] is not None:
            paused = Pause(
                switch=Switch.WORKERS,
                since=row["since"],
                actor=row["actor"],
                reason=row["reason"],
            )
        return Controls(paused=paused, spent_today_usd=row["spent_today_usd"])

    async def leave(self, worker_id: UUID) -> bool:
        return bool(await self._database.fetch(_LEAVE, worker_id))

    async def forget(self, *, older_than: timedelta, limit: int) -> int:
        return len(await self._database.fetch(_FORGET, older_than, limit))
