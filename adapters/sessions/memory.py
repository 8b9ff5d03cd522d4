"""Sessions in this process's memory, for tests. No method awaits anything, so each is as atomic as
a transaction."""

from collections import Counter
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.sessions.memory_limits import Active, InMemoryLimits
from adapters.sessions.memory_rows import Row, is_of, may_retry, newest_first, position_of
from adapters.sessions.memory_rules import (
    after_trigger,
    cancelled_instead,
    code_of,
    is_http,
    keeps_result,
    may_have_image,
    paid_for,
    recorded,
    was_undone,
)
from domain.credits import GENERATION_COST, Owner
from domain.errors import IllegalTransition, NotFound, WearonError
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
from domain.refusals import Refusal, error_of
from domain.sessions import (
    LOST_LEASE,
    AttemptFault,
    Blame,
    Blocked,
    BlockedSession,
    Failure,
    Fault,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)


class InMemorySessionRepo(SessionRepoPort, AttemptRepoPort, RecoveryRepoPort, SessionReadPort):
    """``clock`` stands for the database's clock, on which leases are measured. ``ended`` is called
    with each session that reaches a final status, unless its submission undoes it."""

    def __init__(
        self,
        *,
        accounts: InMemoryCreditRepo,
        clock: Callable[[], datetime],
        limits: AccountLimits = NO_LIMITS,
        count_ended: CountEnded = count_nothing,
    ) -> None:
        self._count_ended = count_ended
        self._accounts = accounts
        self._clock = clock
        self._limits = InMemoryLimits(limits, clock=clock)
        self._rows: dict[UUID, Row] = {}
        self.budgets = self._limits.budgets
        self.ended: Callable[[GenerationSession], None] = lambda _: None
        accounts.sessions = lambda: [row.session for row in self._rows.values()]
        accounts.budgets = lambda: self.budgets

    async def create(
        self, session: GenerationSession, *, max_active: int, signup_credits: int = 0
    ) -> Receipt:
        replay = await self.find_replay(session)
        if replay is not None:
            return replay
        owner = session.owner
        account = self._accounts.balance_of(owner)
        self._limits.check(session, account, self._active(session), max_active)
        is_new = not (account.total_granted or account.total_debited)
        if is_new and signup_credits > 0:
            self._sign_up(owner, signup_credits)
        account = self._accounts.debit(owner, GENERATION_COST, session.id)
        pictures_remaining = self._limits.debited(session, account)
        now = self._clock()
        stored = session.stored(created_at=now)
        self._rows[session.id] = Row(session=stored, status_changed_at=now)
        return Receipt(
            session=stored,
            credits_remaining=account.balance,
            rates=self._limits.rates(account),
            pictures_remaining=pictures_remaining,
        )

    async def create_many(
        self, sessions: Sequence[GenerationSession], *, max_active: int, signup_credits: int = 0
    ) -> Sequence[Receipt | WearonError | None]:
        outcomes: list[Receipt | WearonError | None] = []
        for session in sessions:
            account = self._accounts.balance_of(session.owner)
            is_new = not (account.total_granted or account.total_debited)
            if self._with_key(session) is not None or (is_new and signup_credits > 0):
                outcomes.append(None)
                continue
            try:
                outcomes.append(await self.create(session, max_active=max_active))
            except WearonError as error:
                outcomes.append(error)
        return outcomes

    def _active(self, session: GenerationSession) -> Active:
        unfinished = [r.session for r in self._rows.values() if not r.session.status.is_final]
        of_token = sum(one.shopper == session.shopper for one in unfinished)
        return Active(of_owner=self._stats(session.owner).active, of_token=of_token)

    def _sign_up(self, owner: Owner, credits_: int) -> None:
        if not self._accounts.count_signup(per_day=self._limits.signups_per_day):
            raise error_of(Refusal.NO_ACCOUNT)
        self._accounts.grant_at_once(owner, credits_, note="sign-up credits")

    async def find_replay(self, session: GenerationSession) -> Receipt | None:
        earlier = self._with_key(session)
        if earlier is None:
            return None
        earlier.check_replay(session)
        balance = self._accounts.balance_of(session.owner).balance
        return Receipt(session=earlier, credits_remaining=balance, replayed=True)

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        confirmed = 0
        for row in filter(None, map(self._rows.get, session_ids)):
            if row.session.status is SessionStatus.QUEUED and not row.session.confirmed:
                row.session = replace(row.session, confirmed=True)
                confirmed += 1
        return confirmed

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        row = self._queued(session_id)
        if row is None:
            return None
        self._put(row, row.session.claimed(now=self._clock(), lease=lease))
        return row.session

    async def renew(self, session_id: UUID, *, attempt: int, lease: timedelta) -> Renewal | None:
        row = self._current(session_id, attempt)
        if row is None:
            return None
        row.session = replace(row.session, lease_expires_at=self._clock() + lease)
        is_asked = row.session.cancel_requested_at is not None
        return Renewal.CANCEL_REQUESTED if is_asked else Renewal.RENEWED

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        row = self._current(session_id, attempt)
        if row is not None:
            self._end(row, row.session.completed(picture, usage, now=self._clock()))
        return row is not None

    async def fail_queued(self, session_id: UUID, failure: Failure, *, undo: bool = False) -> bool:
        row = self._queued(session_id)
        if row is None or (undo and row.session.confirmed):
            return False
        self._fail(row, failure, frees_key=undo)
        return True

    async def undo_many(self, session_ids: Sequence[UUID], failure: Failure) -> Collection[UUID]:
        return {one for one in session_ids if await self.fail_queued(one, failure, undo=True)}

    async def cancel(self, session_id: UUID) -> GenerationSession | None:
        row = self._rows.get(session_id)
        if row is None or row.session.status.is_final:
            return None
        self._end(row, row.session.cancelled(now=self._clock()))
        return row.session

    async def is_known(self, session_id: UUID) -> bool:
        return session_id in self._rows

    async def fail(
        self, session_id: UUID, failure: Failure, *, attempt: int, fault: Fault | None = None
    ) -> str | None:
        row = self._current(session_id, attempt)
        if row is None:
            return None
        self._fail(row, failure)
        self._record(row, fault)
        return code_of(row.session)

    async def release(
        self, session_id: UUID, *, attempt: int, delay: timedelta, fault: Fault | None = None
    ) -> SessionStatus | None:
        row = self._current(session_id, attempt)
        if row is None:
            return None
        self._release(row, delay, None if fault is None else fault.blame)
        self._record(row, fault)
        return row.session.status

    async def postpone(self, session_id: UUID, *, delay: timedelta) -> bool:
        row = self._rows.get(session_id)
        if row is None or row.session.status is not SessionStatus.QUEUED:
            return False
        row.session = replace(row.session, confirmed=True)
        row.push_again_at = self._clock() + delay
        return True

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        row = self._current(session_id, attempt)
        if row is not None:
            row.session = replace(row.session, provider_job=job)
        return row is not None

    async def claim_overdue(
        self,
        *,
        created_before: datetime | None,
        again_after: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        now = self._clock()
        due = [
            row
            for row in self._in_status(SessionStatus.QUEUED)
            if (row.push_again_at or row.session.created_at + again_after) <= now
            and (created_before is None or row.session.created_at < created_before)
        ]

        def claim(row: Row) -> None:
            row.push_again_at = now + again_after

        return self._each(newest_first(due), claim, limit, blocked)

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        dead = [row for row in self._dead(external_timeout) if may_retry(row, max_attempts)]

        def release(row: Row) -> None:
            self._release(row, timedelta(0), Blame.SESSION)
            self._record(row, LOST_LEASE)

        return len(self._each(dead, release, limit, blocked))

    async def fail_dead_leases(
        self,
        failure: Failure,
        *,
        max_attempts: int,
        external_timeout: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        dead = [row for row in self._dead(external_timeout) if not may_retry(row, max_attempts)]

        def fail(row: Row) -> None:
            self._fail(row, failure)
            self._record(row, replace(LOST_LEASE, code=failure.code))

        return self._each(dead, fail, limit, blocked)

    async def fail_expired(
        self, failure: Failure, *, older_than: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        before = self._clock() - older_than
        expired = [
            row for row in self._in_status(SessionStatus.QUEUED) if row.session.created_at < before
        ]
        return len(self._each(expired, lambda row: self._fail(row, failure), limit, blocked))

    async def refund_missing(self, *, limit: int, blocked: Blocked = None) -> int:
        missing = [row for row in self._in_status(SessionStatus.FAILED) if not row.refunded]
        return len(self._each(missing, self._refund, limit, blocked))

    async def claim_expired_images(
        self, *, older_than: timedelta, again_after: timedelta, limit: int, blocked: Blocked = None
    ) -> list[GenerationSession]:
        now = self._clock()
        old = [
            row
            for row in self._rows.values()
            if may_have_image(row.session)
            and row.status_changed_at < now - older_than
            and (row.delete_again_at or now) <= now
        ]
        old.sort(key=lambda row: row.status_changed_at)

        def claim(row: Row) -> None:
            row.delete_again_at = now + again_after

        return self._each(old, claim, limit, blocked)

    async def mark_images_deleted(
        self, session_ids: Sequence[UUID], *, blocked: Blocked = None
    ) -> int:
        rows = [
            row
            for row in filter(None, map(self._rows.get, dict.fromkeys(session_ids)))
            if row.session.status.is_final and row.session.image_deleted_at is None
        ]

        def mark(row: Row) -> None:
            row.session = replace(row.session, image_deleted_at=self._clock())
            row.faults.clear()

        return len(self._each(rows, mark, len(rows), blocked))

    def _each(
        self, due: Iterable[Row], move: Callable[[Row], None], limit: int, blocked: Blocked
    ) -> list[GenerationSession]:
        """Move up to ``limit`` rows that are not blocked. Returns the moved sessions."""
        moved = []
        for row in [row for row in due if row.session.id not in (blocked or ())][:limit]:
            try:
                move(row)
            except IllegalTransition as error:
                if blocked is None:
                    raise
                blocked[row.session.id] = BlockedSession(
                    id=row.session.id, owner=str(row.session.owner), problem=str(error)
                )
            else:
                moved.append(row.session)
        return moved

    async def get(
        self, session_id: UUID, owner: Owner | None, *, shopper_id: str | None = None
    ) -> GenerationSession:
        row = self._rows.get(session_id)
        if row is None or not is_of(row.session, owner, shopper_id):
            raise NotFound("No such generation")
        return row.session

    async def history(
        self,
        owner: Owner | None,
        *,
        status: SessionStatus | None,
        limit: int,
        after: Position | None,
        shopper_id: str | None = None,
    ) -> list[GenerationSession]:
        rows = [
            row
            for row in self._rows.values()
            if is_of(row.session, owner, shopper_id)
            and status in {None, row.session.status}
            and (after is None or position_of(row) < (after.created_at, after.id))
        ]
        return [row.session for row in newest_first(rows)[:limit]]

    async def stats(self, owner: Owner, *, shopper_id: str | None = None) -> SessionStats:
        return self._stats(owner, shopper_id)

    def may_refund(self, token_id: UUID) -> bool:
        """Whether a session may still be refunded to a client token."""
        owing = [row.session for row in self._rows.values() if not row.refunded]
        shoppers = [one.shopper for one in owing if one.status is not SessionStatus.COMPLETED]
        return any(shopper and shopper.token_id == token_id for shopper in shoppers)

    async def queued_before(self, session: GenerationSession, *, limit: int) -> int:
        mine = (session.created_at, session.id)
        before = sum(position_of(row) < mine for row in self._in_status(SessionStatus.QUEUED))
        return min(before, limit)

    async def attempt_faults(self, session_id: UUID) -> list[AttemptFault]:
        row = self._rows.get(session_id)
        return [] if row is None else list(row.faults)

    def rows(self) -> list[Row]:
        """All of them, for operators."""
        return list(self._rows.values())

    def spent_since(self, since: datetime) -> Decimal:
        """What the pictures completed from then on have cost."""
        costs = (
            session.usage.estimated_cost_usd
            for session in (row.session for row in self._rows.values())
            if session.usage and session.completed_at and session.completed_at >= since
        )
        return sum((cost for cost in costs if cost is not None), Decimal(0))

    def find(self, session_id: UUID) -> GenerationSession | None:
        row = self._rows.get(session_id)
        return None if row is None else row.session

    def erase(self, session_id: UUID, *, with_shopper: bool) -> bool:
        """Erase a final session. False if there is nothing to erase."""
        row = self._rows.get(session_id)
        if row is None or not row.session.status.is_final:
            return False
        before = row.session
        row.session = before.erased(now=self._clock(), with_shopper=with_shopper)
        row.faults.clear()
        return row.session != before

    def overwrite(self, session_id: UUID, **changes: Any) -> None:  # noqa: ANN401 - as SQL would
        """Write a row as an external consumer does by SQL, without knowing any rule. Does what the
        database's triggers do: raises IllegalTransition if the session is final, or if a change
        concerns what was paid for."""
        row = self._rows[session_id]
        changed = replace(row.session, **changes)
        changed = replace(changed, generated_image_url=changed.generated_image_url or None)
        if paid_for(changed) != paid_for(row.session):
            raise IllegalTransition(f"Session {session_id}: what was paid for cannot be changed")
        link = changed.generated_image_url
        if link != row.session.generated_image_url and not is_http(link or "http://none"):
            raise IllegalTransition(f"Session {session_id}: its link is not http(s)")
        if row.session.status.is_final and not keeps_result(row.session, changed):
            raise IllegalTransition(f"Session {session_id}: its picture cannot be changed")
        if changed.status is not row.session.status:
            if row.session.status.is_final:
                raise IllegalTransition(f"Session {session_id} is {row.session.status}")
            changed = cancelled_instead(row.session, changed)
            changed = after_trigger(changed, now=self._clock())
        self._put(row, changed)

    def _with_key(self, session: GenerationSession) -> GenerationSession | None:
        """The session with the same owner and idempotency key."""
        if session.idempotency_key is None:
            return None
        wanted = (session.owner, session.idempotency_key)
        for row in self._rows.values():
            if (row.session.owner, row.session.idempotency_key) == wanted:
                return row.session
        return None

    def _stats(self, owner: Owner, shopper_id: str | None = None) -> SessionStats:
        rows = [row for row in self._rows.values() if is_of(row.session, owner, shopper_id)]
        if shopper_id is not None:
            rows = newest_first(rows)[:MAX_COUNTED]
        counts = Counter(row.session.status for row in rows)
        return SessionStats(**{status.value: counts[status] for status in SessionStatus})

    def _queued(self, session_id: UUID) -> Row | None:
        row = self._rows.get(session_id)
        return row if row is not None and row.session.status is SessionStatus.QUEUED else None

    def _current(self, session_id: UUID, attempt: int) -> Row | None:
        """The row, if ``attempt`` is its current attempt."""
        row = self._rows.get(session_id)
        if row is None or row.session.status is not SessionStatus.PROCESSING:
            return None
        return row if row.session.attempt == attempt else None

    def _in_status(self, status: SessionStatus) -> list[Row]:
        return [row for row in self._rows.values() if row.session.status is status]

    def _dead(self, external_timeout: timedelta) -> list[Row]:
        now = self._clock()
        return [
            row
            for row in self._in_status(SessionStatus.PROCESSING)
            if (row.session.lease_expires_at or row.status_changed_at + external_timeout) < now
        ]

    def _put(self, row: Row, session: GenerationSession) -> None:
        if session.status is not row.session.status:
            row.status_changed_at = self._clock()
            if session.status.is_final and not (was_undone(session) and not row.push_again_at):
                self.ended(session)
        row.session = session

    def _release(self, row: Row, delay: timedelta, blame: Blame | None) -> None:
        self._end(row, row.session.released(blame, now=self._clock()))
        row.push_again_at = self._clock() + delay

    def _record(self, row: Row, fault: Fault | None) -> None:
        if fault is not None:
            row.faults.append(recorded(fault, attempt=row.session.attempt, at=self._clock()))

    def _fail(self, row: Row, failure: Failure, *, frees_key: bool = False) -> None:
        self._end(row, row.session.failed(failure, now=self._clock(), frees_key=frees_key))

    def _end(self, row: Row, session: GenerationSession) -> None:
        """Write and count a session that may have ended, with its refund if it failed."""
        if session.status is SessionStatus.FAILED:
            row.failing = session.failure
            self._refund(row)
        self._put(row, session)
        if session.status.is_final:
            self._count_ended(session.status, code_of(session), 1)

    def _refund(self, row: Row) -> None:
        row.refunded = True
        session = row.session
        if self._accounts.refund(session.owner, GENERATION_COST, session.id):
            failure = row.failing or session.failure
            self._limits.refunded(session, "" if failure is None else failure.code)
