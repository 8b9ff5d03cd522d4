"""Sessions in PostgreSQL: the database is the source of truth."""

from collections import Counter
from collections.abc import Awaitable, Callable, Collection, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from typing import TypeAlias
from uuid import UUID

import asyncpg

from adapters.coalescing import (
    DEFAULT_LIMITS,
    BatchLimits,
    Call,
    Coalescer,
    Result,
)
from adapters.coalescing import Blocked as BlockedCall
from adapters.postgres.arrays import array_of_ids
from adapters.postgres.database import Database, too_many_calls
from adapters.sessions import lists
from adapters.sessions import statements as sql
from adapters.sessions.batches import Rows, in_batch, readable
from adapters.sessions.creating import MAX_LOCK_WAITERS, CreationRepo, arrays_of
from adapters.sessions.rows import result_values, session_of
from domain.credits import Owner
from domain.errors import DatabaseUnavailable, NotFound, WearonError
from domain.ids import END_OF_TIME, FIRST_ID, LAST_ID
from domain.plans import NO_LIMITS, AccountLimits
from domain.ports import (
    MAX_COUNTED,
    AttemptRepoPort,
    CountEnded,
    Position,
    Receipt,
    RecoveryRepoPort,
    Renewal,
    SessionReadPort,
    SessionRepoPort,
    SessionStats,
    count_nothing,
)
from domain.sessions import (
    CANCELLED,
    AttemptFault,
    Blocked,
    Failure,
    Fault,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)

CREATE_TRIES = 5

MAX_CLAIM_BATCH = 16
"""The upper bound on sessions claimed or completed per statement. Unbounded, a busy worker's slots
run in lockstep: the worker and the database take turns idling."""

_Claim: TypeAlias = tuple[UUID, timedelta]
_AttemptWrite: TypeAlias = tuple[object, ...]
"""The id of a session, the number of its attempt, and the values to write."""


class PostgresSessionRepo(SessionRepoPort, AttemptRepoPort, RecoveryRepoPort, SessionReadPort):
    """Concurrent calls of one kind share a statement, except for calls whose row is locked.

    ``background`` has the connection of recovery and of ``confirm``, which a pool that is busy must
    not stop.
    """

    def __init__(
        self,
        database: Database,
        *,
        batches: BatchLimits = DEFAULT_LIMITS,
        background: Database | None = None,
        limits: AccountLimits = NO_LIMITS,
        count_ended: CountEnded = count_nothing,
    ) -> None:
        self._database = database
        self._count_ended = count_ended
        self._background = background or database
        self._creation = CreationRepo(database, batches=batches, limits=limits)
        waiting = replace(batches, in_flight=MAX_LOCK_WAITERS, patience_seconds=0)
        claims = replace(batches, calls=min(batches.calls, MAX_CLAIM_BATCH))
        single = replace(waiting, calls=1)
        self._claim = _coalescer(self._run_claim, sql.CLAIM_SKIP_LOCKED, claims)
        self._claim_wait = _coalescer(self._run_claim, sql.CLAIM_WAIT, single)
        self._renew = _coalescer(self._run_renew, sql.RENEW_SKIP_LOCKED, batches)
        self._renew_wait = _coalescer(self._run_renew, sql.RENEW_WAIT, single)
        self._complete = _coalescer(self._run_complete, sql.COMPLETE_SKIP_LOCKED, claims)
        self._complete_wait = _coalescer(self._run_complete, sql.COMPLETE_WAIT, single)

    async def create(
        self, session: GenerationSession, *, max_active: int, signup_credits: int = 0
    ) -> Receipt:
        for _ in range(CREATE_TRIES):
            receipt = await self._creation.create(session, max_active, signup_credits)
            if receipt is None:
                receipt = await self.find_replay(session)
            if receipt is not None:
                if receipt.replayed:
                    receipt.session.check_replay(session)
                return receipt
        raise DatabaseUnavailable("The idempotency key changed its session too often")

    async def create_many(
        self, sessions: Sequence[GenerationSession], *, max_active: int, signup_credits: int = 0
    ) -> Sequence[Receipt | WearonError | None]:
        return await self._creation.create_many(sessions, max_active, signup_credits)

    async def find_replay(self, session: GenerationSession) -> Receipt | None:
        if session.idempotency_key is None:
            return None
        owner = session.owner
        row = await self._database.fetch_row(
            sql.FIND_BY_KEY, owner.channel, owner.id, session.idempotency_key
        )
        if row is None:
            return None
        earlier = session_of(row)
        earlier.check_replay(session)
        return Receipt(session=earlier, credits_remaining=row["balance"], replayed=True)

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        confirmed: int = await self._background.fetch_value(sql.CONFIRM, array_of_ids(session_ids))
        return confirmed

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        claim = (session_id, lease)
        return await self._claim(claim) or await self._claim_wait(claim)

    async def _run_claim(
        self, statement: str, claims: Sequence[_Claim]
    ) -> Sequence[GenerationSession | None]:
        rows = await self._database.fetch(statement, *arrays_of(claims))
        claimed = {row["id"]: session_of(row) for row in rows}
        # Of two claims for one session in a batch, the first one gets it.
        return [claimed.pop(session_id, None) for session_id, _ in claims]

    async def renew(self, session_id: UUID, *, attempt: int, lease: timedelta) -> Renewal | None:
        renewal = (session_id, attempt, lease)
        return await self._renew(renewal) or await self._renew_wait(renewal)

    async def _run_renew(
        self, statement: str, attempts: Sequence[_AttemptWrite]
    ) -> Sequence[Renewal | None]:
        rows = await self._database.fetch(statement, *arrays_of(attempts))
        told = {
            (row["id"], row["attempt"]): Renewal.CANCEL_REQUESTED
            if row["is_to_be_cancelled"]
            else Renewal.RENEWED
            for row in rows
        }
        return [told.get((session_id, attempt)) for session_id, attempt, *_ in attempts]

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        completion = (session_id, attempt, *result_values(picture, usage))
        return await self._complete(completion) or await self._complete_wait(completion)

    async def _run_complete(
        self, statement: str, attempts: Sequence[_AttemptWrite]
    ) -> Sequence[bool]:
        """For each attempt, whether it was the current one."""
        rows = await self._database.fetch(statement, *arrays_of(attempts))
        self._count_ended(SessionStatus.COMPLETED, "", len(rows))
        written = {(row["id"], row["attempt"]) for row in rows}
        return [(session_id, attempt) in written for session_id, attempt, *_ in attempts]

    async def fail_queued(self, session_id: UUID, failure: Failure, *, undo: bool = False) -> bool:
        arguments = (failure.code, failure.message, session_id, undo)
        failed = await self._count(sql.FAIL_QUEUED, *arguments)
        self._count_failed(failure.code, failed)
        return failed == 1

    async def undo_many(self, session_ids: Sequence[UUID], failure: Failure) -> Collection[UUID]:
        arguments = (failure.code, failure.message, session_ids)
        undone = {row[0] for row in await self._database.fetch(sql.UNDO_SKIP_LOCKED, *arguments)}
        self._count_failed(failure.code, len(undone))
        for session_id in session_ids:  # The others are locked, or not to be undone.
            if session_id not in undone and await self.fail_queued(session_id, failure, undo=True):
                undone.add(session_id)
        return undone

    async def cancel(self, session_id: UUID) -> GenerationSession | None:
        why = (CANCELLED.code, CANCELLED.message)
        row = await self._database.fetch_row(sql.CANCEL, *why, session_id)
        if row is None:
            return None
        self._count_rows([row])
        return session_of(row)

    async def is_known(self, session_id: UUID) -> bool:
        known: bool = await self._database.fetch_value(sql.IS_KNOWN, session_id)
        return known

    async def fail(
        self, session_id: UUID, failure: Failure, *, attempt: int, fault: Fault | None = None
    ) -> str | None:
        arguments = (failure.code, failure.message, session_id, attempt, *_recorded(fault))
        code: str | None = await self._database.fetch_value(sql.FAIL_ATTEMPT, *arguments)
        if code is not None:
            self._count_failed(code, 1)
        return code

    async def release(
        self, session_id: UUID, *, attempt: int, delay: timedelta, fault: Fault | None = None
    ) -> SessionStatus | None:
        blame = None if fault is None else fault.blame
        row = await self._database.fetch_row(
            sql.RELEASE, session_id, attempt, delay, blame, *_recorded(fault)
        )
        if row is None:
            return None
        self._count_rows([row])
        return SessionStatus(row["status"])

    async def postpone(self, session_id: UUID, *, delay: timedelta) -> bool:
        return await self._write(sql.POSTPONE, session_id, delay)

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        return await self._write(sql.RECORD_JOB, session_id, attempt, job)

    async def claim_overdue(
        self,
        *,
        created_before: datetime | None,
        again_after: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        overdue = (created_before, again_after)
        rows = await in_batch(
            lambda *among: self._background.fetch(sql.CLAIM_OVERDUE, *overdue, limit, *among),
            lambda skip: self._background.fetch(sql.CLAIM_OVERDUE_DUE, *overdue, skip, limit),
            blocked,
        )
        sessions = readable(rows, blocked)
        return sorted(sessions, key=lambda session: (session.created_at, session.id), reverse=True)

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        dead = (external_timeout, max_attempts)
        rows = await in_batch(
            lambda *among: self._background.fetch(sql.RELEASE_DEAD_LEASES, *dead, limit, *among),
            lambda skip: self._background.fetch(sql.RELEASE_DEAD_LEASES_DUE, *dead, skip, limit),
            blocked,
        )
        return _total(rows)

    async def fail_dead_leases(
        self,
        failure: Failure,
        *,
        max_attempts: int,
        external_timeout: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        dead, why = (external_timeout, max_attempts), (failure.code, failure.message)

        async def fail(*among: object) -> Rows:
            rows = await self._background.fetch(sql.FAIL_DEAD_LEASES, *why, *dead, limit, *among)
            self._count_rows(rows)
            return rows

        rows = await in_batch(
            fail,
            lambda skip: self._background.fetch(sql.FAIL_DEAD_LEASES_DUE, *dead, skip, limit),
            blocked,
        )
        return list(readable(rows, blocked))

    async def fail_expired(
        self, failure: Failure, *, older_than: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        why = (failure.code, failure.message)

        async def fail(*among: object) -> Rows:
            rows = await self._background.fetch(sql.FAIL_EXPIRED, *why, older_than, limit, *among)
            self._count_failed(failure.code, _total(rows))
            return rows

        rows = await in_batch(
            fail,
            lambda skip: self._background.fetch(sql.FAIL_EXPIRED_DUE, older_than, skip, limit),
            blocked,
        )
        return _total(rows)

    async def refund_missing(self, *, limit: int, blocked: Blocked = None) -> int:
        rows = await in_batch(
            lambda *among: self._background.fetch(sql.REFUND_MISSING, limit, *among),
            lambda skip: self._background.fetch(sql.REFUND_MISSING_DUE, skip, limit),
            blocked,
        )
        return _total(rows)

    async def claim_expired_images(
        self, *, older_than: timedelta, again_after: timedelta, limit: int, blocked: Blocked = None
    ) -> list[GenerationSession]:
        rows = await in_batch(
            lambda *among: self._background.fetch(
                sql.CLAIM_EXPIRED_IMAGES, older_than, again_after, limit, *among
            ),
            lambda skip: self._background.fetch(
                sql.CLAIM_EXPIRED_IMAGES_DUE, older_than, skip, limit
            ),
            blocked,
        )
        return list(readable(rows, blocked))

    async def mark_images_deleted(
        self, session_ids: Sequence[UUID], *, blocked: Blocked = None
    ) -> int:
        rows = await in_batch(
            lambda _, only: self._background.fetch(sql.MARK_IMAGES_DELETED, only or session_ids),
            lambda _: self._background.fetch(sql.MARK_IMAGES_DELETED_DUE, session_ids),
            blocked,
        )
        return _total(rows)

    async def get(
        self, session_id: UUID, owner: Owner | None, *, shopper_id: str | None = None
    ) -> GenerationSession:
        if owner is None:
            row = await self._database.fetch_row(sql.GET, session_id)
        elif shopper_id is None:
            row = await self._database.fetch_row(sql.GET_OWNED, session_id, owner.channel, owner.id)
        else:
            row = await self._database.fetch_row(
                sql.GET_OF_SHOPPER, session_id, owner.channel, owner.id, shopper_id
            )
        if row is None:
            raise NotFound("No such generation")
        return session_of(row)

    async def history(
        self,
        owner: Owner | None,
        *,
        status: SessionStatus | None,
        limit: int,
        after: Position | None,
        shopper_id: str | None = None,
    ) -> list[GenerationSession]:
        statuses = list(SessionStatus) if status is None else [status]
        if owner is None:
            ids = (FIRST_ID, LAST_ID if after is None else after.id)
            if status is None:
                rows = await self._database.fetch(lists.OF_ALL, *ids, limit)
            else:
                rows = await self._database.fetch(lists.OF_STATUSES, *ids, limit, statuses)
        else:
            place = (END_OF_TIME, LAST_ID) if after is None else (after.created_at, after.id)
            whose = (owner.channel, owner.id)
            if shopper_id is None:
                rows = await self._database.fetch(sql.HISTORY, *whose, statuses, *place, limit)
            else:
                rows = await self._database.fetch(
                    sql.HISTORY_OF_SHOPPER, *whose, shopper_id, statuses, *place, limit
                )
        return [session_of(row) for row in rows]

    async def stats(self, owner: Owner, *, shopper_id: str | None = None) -> SessionStats:
        if shopper_id is not None:
            whose = (owner.channel, owner.id, shopper_id)
            rows = await self._database.fetch(sql.STATS_OF_SHOPPER, *whose, MAX_COUNTED)
            return SessionStats(**{row["status"]: row["count"] for row in rows})
        rows = await self._database.fetch(sql.STATS, owner.channel, owner.id)
        counts = Counter({row["status"]: row["count"] for row in rows})
        active = counts["queued"] + counts["processing"]
        failed = counts["refunded"] + counts["owed"]
        return SessionStats(
            queued=counts["queued"],
            processing=counts["processing"],
            # An account may have been imported without its counters: the audit names it.
            completed=max(0, counts["created"] - active - failed),
            failed=failed,
        )

    async def queued_before(self, session: GenerationSession, *, limit: int) -> int:
        return await self._count(sql.QUEUED_BEFORE, session.created_at, session.id, limit)

    async def attempt_faults(self, session_id: UUID) -> list[AttemptFault]:
        rows = await self._database.fetch(sql.FAULTS, session_id)
        return [AttemptFault(**row) for row in rows]

    def _count_failed(self, code: str, number: int) -> None:
        if number:
            self._count_ended(SessionStatus.FAILED, code, number)

    def _count_rows(self, rows: Rows) -> None:
        """Count those that failed."""
        for row in rows:
            if row["status"] == SessionStatus.FAILED:
                self._count_failed(row["error_code"], 1)

    async def _count(self, statement: str, *arguments: object) -> int:
        count: int = await self._database.fetch_value(statement, *arguments)
        return count

    async def _write(self, statement: str, *arguments: object) -> bool:
        """Write one row. False if its guard did not match."""
        return await self._database.fetch_row(statement, *arguments) is not None


def _coalescer(
    run: Callable[[str, Sequence[Call]], Awaitable[Sequence[Result | BlockedCall]]],
    statement: str,
    limits: BatchLimits,
) -> Coalescer[Call, Result]:
    return limits.coalescer(partial(run, statement), too_many=too_many_calls)


def _recorded(fault: Fault | None) -> tuple[str | None, ...]:
    """Worker, code and cause, as ``attempt_faults`` has them."""
    if fault is None:
        return None, None, None
    return fault.worker or None, fault.code, str(fault.cause)


def _total(counts: Sequence[asyncpg.Record]) -> int:
    return sum(row[0] for row in counts)
