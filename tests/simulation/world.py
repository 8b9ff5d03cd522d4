"""A database, a queue and processes in one event loop on virtual time, and the rules that always
hold."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta
from typing import TYPE_CHECKING, Any, TypeVar
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.queue.memory import InMemoryTaskQueue
from adapters.storage.signing import UrlSigner
from domain.causes import Cause, CauseKind
from domain.credits import LedgerKind, Owner
from domain.sessions import (
    ErrorCode,
    GenerationSession,
    SessionStatus,
    StoredPicture,
)
from domain.submission import NOT_PUSHED
from tests.simulation.cancelling import broken_cancellation
from tests.simulation.fates import Fate, Fates
from tests.simulation.limits import broken_at_once, broken_when_settled
from tests.simulation.state import state_of
from tests.simulation.streams import LossyChanges
from tests.simulation.watched import WatchedImageStorage, WatchedSessionRepo
from tests.support.clock import FakeClock, loop_time

T = TypeVar("T")
if TYPE_CHECKING:
    from tests.simulation.webhooks import Webhooks

TIMEOUT_SECONDS = 1.0
BUSY = Cause(CauseKind.PROVIDER, "503 busy")


class Violation(AssertionError):
    """A rule of the contract is broken."""


class Killed(BaseException):
    """The process of this task is dead: nothing that it still does may have an effect."""


@dataclass(frozen=True, slots=True)
class Answer:
    """The answer to a client's request. ``status`` is 0 if none arrived; ``session_id`` is None
    unless it is 202."""

    request_id: str
    owner: Owner
    key: str | None
    status: int
    session_id: UUID | None = None


class World:
    """What all processes share. ``fates`` decides how each of their calls ends."""

    def __init__(self, fates: Fates) -> None:
        self.fates = fates
        self.clock = FakeClock(ticks=loop_time)
        self.accounts = InMemoryCreditRepo(clock=self.clock.now)
        self.repo = WatchedSessionRepo(accounts=self.accounts, clock=self.clock.now)
        self.queue = InMemoryTaskQueue(clock=self.clock.now)
        self.storage = WatchedImageStorage(
            repo=self.repo,
            signer=UrlSigner(
                base_url="", secret=b"", lifetime=timedelta(hours=1), clock=self.clock.now
            ),
        )
        self.answers: list[Answer] = []
        self.external_failures: set[UUID] = set()
        """Sessions failed by the external consumer, which leaves the refund to recovery."""
        self.faults: Counter[Fate] = Counter()
        self.violations: list[Violation] = []
        self.listeners: dict[str, Callable[[UUID], None]] = {}
        """What each worker does with a hint that a session may be cancelled, by its name."""
        self.changes = LossyChanges(self)
        self.webhooks: Webhooks | None = None
        """None if no owner has endpoints."""
        self.calls = 0
        self.effects: set[int] | None = None
        """The numbers of the calls that had an effect, if that is to be found out."""
        self._final: dict[UUID, tuple[SessionStatus, StoredPicture | None]] = {}
        self._seen: list[GenerationSession] = []
        self._entries_read = 0
        self._balances: Counter[Owner] = Counter()
        self._money: dict[UUID, Counter[LedgerKind]] = {}
        self._late: set[asyncio.Task[Any]] = set()

    async def sessions(self) -> list[GenerationSession]:
        return await self.repo.history(None, status=None, limit=100_000, after=None)

    def happen_later(self, effect: Callable[[], Awaitable[Any]]) -> None:
        """Let ``effect`` happen although its caller has given up."""

        async def late() -> None:
            await asyncio.sleep(self.fates.pause())
            with suppress(Exception):  # No caller waits for it any more.
                await effect()
            await self.check()

        task = asyncio.create_task(late())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def announce(self, session: GenerationSession) -> None:
        """Tell the workers that the session may be cancelled: fire and forget, so it may get lost,
        be late or come twice."""
        self.calls += 1
        times = {Fate.DONE: (0.0,), Fate.TWICE: (0.0, 0.0), Fate.LATE: (TIMEOUT_SECONDS,)}
        for delay in times.get(self.fates.next("announce"), ()):
            for listener in self.listeners.values():
                asyncio.get_running_loop().call_later(
                    delay + self.fates.pause(), listener, session.id
                )

    async def suffer(self, number: int, effect: Callable[[], Awaitable[T]]) -> T:
        """Let the call with that number have its effect."""
        if self.effects is None:
            return await effect()
        self.effects.add(number)
        turned: list[bool] = []
        asyncio.get_running_loop().call_soon(turned.append, True)
        before = self._state()
        result = await effect()
        if not turned and self._state() == before:
            self.effects.remove(number)
        return result

    def _state(self) -> object:
        return state_of([self.accounts, self.repo, self.queue, self.storage])

    def require(self, holds: bool, otherwise: str) -> None:
        """Record a Violation unless ``holds``, where raising it would not be noticed."""
        if not holds:
            self.violations.append(Violation(otherwise))

    async def check(self) -> None:
        """Raise and record a Violation if a rule that holds at every step is broken.

        Checks only what has changed since the last check: most calls change one session or none.
        """
        try:
            changed = self._read_ledger()
            for number, session in enumerate(self.repo.stored()):
                if number == len(self._seen):
                    self._seen.append(session)
                elif self._seen[number] is session and not (changed and session.id in changed):
                    continue
                for problem in broken_cancellation(self._seen[number], session):
                    raise Violation(problem)
                self._seen[number] = session
                self._check_session(session)
                changed.discard(session.id)
            if changed:
                raise Violation(f"{changed} have ledger entries and do not exist")
            for problem in broken_at_once(self.repo.budgets):
                raise Violation(problem)
            if self.repo.breaches:
                raise Violation(", ".join(self.repo.breaches))
        except Violation as violation:
            self.violations.append(violation)
            raise

    def _read_ledger(self) -> set[UUID]:
        """Read the new entries and check the balances. Returns the entries' sessions."""
        new = self.accounts.entries[self._entries_read :]
        self._entries_read += len(new)
        for entry in new:
            self._balances[entry.owner] += entry.amount
            if entry.session_id is not None:
                self._money.setdefault(entry.session_id, Counter())[entry.kind] += 1
        for owner, balance in self._balances.items():
            held = self.accounts.balance_of(owner).balance
            if held != balance or held < 0:
                raise Violation(f"{owner} has {held}, its ledger says {balance}")
        return {entry.session_id for entry in new if entry.session_id is not None}

    def _check_session(self, session: GenerationSession) -> None:
        if session.status.is_final:
            now = (session.status, session.picture)
            before = self._final.setdefault(session.id, now)
            if before != now:
                raise Violation(f"{session.id} was {before} and is {now}")
        elif session.id in self._final:
            raise Violation(f"{session.id} was {self._final[session.id]} and is {session.status}")
        if session.image_deleted_at and session.object_prefix not in self.storage.deleted:
            raise Violation(f"{session.id} has a picture that counts as deleted")
        money = self._money.get(session.id, Counter())
        debits, refunds = money[LedgerKind.DEBIT], money[LedgerKind.REFUND]
        due = session.status is SessionStatus.FAILED
        owed = due and session.id in self.external_failures
        if debits != 1 or not (refunds == due or (owed and refunds == 0)):
            raise Violation(
                f"{session.id} is {session.status} with {debits} debits and {refunds} refunds"
            )

    async def check_settled(self) -> None:
        """Raise a Violation if a rule that holds once everything is settled is broken."""
        if self.violations:
            raise self.violations[0]
        by_others = set(self.external_failures)
        self.external_failures.clear()
        self._seen.clear()
        await self.check()
        sessions = {session.id: session for session in await self.sessions()}
        for session in sessions.values():
            _require(session.status.is_final, f"{session.id} is stuck as {session.status}")
            expired = session.failure is not None and session.failure.code == ErrorCode.EXPIRED
            _require(not expired, f"{session.id} expired although there were workers")
            undone = session.failure is not None and session.failure.code == NOT_PUSHED.code
            cancelled = session.cancel_requested_at is not None
            blameless = undone or cancelled or session.id in by_others
            if session.failure is not None and not blameless:
                await self._check_blame(session)
        accepted = {answer.session_id for answer in self.answers if answer.status == 202}
        _require(accepted <= sessions.keys(), "a 202 has no session")
        for answer in self.answers:
            if answer.status not in {202, 0}:
                self._check_refusal(answer, sessions)
        self._check_keys(sessions)
        if self.webhooks is not None:
            for problem in self.webhooks.broken_when_settled(list(sessions.values())):
                raise Violation(problem)
        for problem in broken_when_settled(
            self.repo.budgets, sessions.values(), self.accounts.entries
        ):
            raise Violation(problem)

    def _check_refusal(self, refused: Answer, sessions: dict[UUID, GenerationSession]) -> None:
        """A refused request is not charged. A 409 has a key, and leaves it open: a repetition
        tells."""
        for session in sessions.values():
            if session.request_id == refused.request_id:
                is_true = refused.status == 503 and session.status is SessionStatus.FAILED
                _require(
                    is_true or (refused.status == 409 and refused.key is not None),
                    f"{refused.request_id} got {refused.status}; {session.id} is {session.status}",
                )

    async def _check_blame(self, session: GenerationSession) -> None:
        """No session fails because the storage or the provider had trouble for a while."""
        faults = await self.repo.attempt_faults(session.id)
        if faults and faults[-1].attempt == session.attempt:
            cause = faults[-1].cause
            blameless = cause.startswith(CauseKind.STORAGE) or cause == str(BUSY)
            _require(not blameless, f"{session.id} failed because of {cause}")

    def _check_keys(self, sessions: dict[UUID, GenerationSession]) -> None:
        """A key that was answered 202 is never freed: all its 202s name one session, which still
        has it. And it has bought one session at most: all others were undone."""
        requests: dict[str, tuple[Owner, str]] = {}
        accepted: dict[tuple[Owner, str], set[UUID]] = {}
        for answer in self.answers:
            if answer.key is not None:
                requests[answer.request_id] = answer.owner, answer.key
                if answer.session_id is not None:
                    accepted.setdefault((answer.owner, answer.key), set()).add(answer.session_id)
        for (owner, key), ids in accepted.items():
            kept = {id_ for id_ in ids if sessions[id_].idempotency_key == key}
            _require(len(ids) == 1 == len(kept), f"{key} of {owner}: 202 for {ids}, kept {kept}")
        bought = Counter(
            requests[session.request_id]
            for session in sessions.values()
            if session.request_id in requests and session.status is not SessionStatus.FAILED
        )
        for (owner, key), count in bought.items():
            _require(count == 1, f"{key} of {owner} bought {count} sessions")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)
