"""A database, a queue and processes in one event loop on virtual time, and the rules that always
hold."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Coroutine, Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, TypeVar
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.memory_rows import Row
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.causes import Cause, CauseKind
from domain.credits import LedgerKind, Owner
from domain.errors import (
    DatabaseUnavailable,
    IllegalTransition,
    QueueUnavailable,
    StorageUnavailable,
    WearonError,
)
from domain.picture_ports import Picture
from domain.sessions import (
    Blocked,
    ErrorCode,
    Failure,
    Fault,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)
from domain.submission import NOT_PUSHED
from tests.simulation.cancelling import broken_cancellation
from tests.simulation.fates import Fate, Fates
from tests.simulation.limits import LIMITS, broken_at_once, broken_when_settled
from tests.simulation.state import state_of
from tests.simulation.streams import LossyChanges
from tests.support.clock import FakeClock, loop_time
from tests.support.faults import over_network

TIMEOUT_SECONDS = 1.0
PICTURE_LIFETIME = timedelta(seconds=8)
FREEZE_SECONDS = 20.0
NEVER_REPEATED = {"create", "create_many", "fail_queued", "undo_many"}
"""No client repeats these by itself, and their replies decide what a caller is answered."""
NO_SPACE = Cause(CauseKind.STORAGE, "no space left on device")
BUSY = Cause(CauseKind.PROVIDER, "503 busy")
T = TypeVar("T")


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


@dataclass(slots=True)
class ProviderJob:
    """A job that runs at the provider, whether or not a worker waits for it."""

    ends_at: float
    has_picture: bool
    cancelled: bool = False

    @property
    def has_ended(self) -> bool:
        return self.cancelled or loop_time() >= self.ends_at

    @property
    def produced_nothing(self) -> bool:
        return self.cancelled or (self.has_ended and not self.has_picture)


class WatchedSessionRepo(InMemorySessionRepo):
    """Records each write that a guard should have prevented."""

    def __init__(self, *, accounts: InMemoryCreditRepo, clock: Callable[[], datetime]) -> None:
        super().__init__(accounts=accounts, clock=clock, limits=LIMITS)
        self.breaches: list[str] = []
        self.jobs: dict[str, ProviderJob] = {}
        """The provider's jobs, by the name that sessions record."""
        self.unsound: set[UUID] = set()
        """Sessions whose refund the database rejects, until an operator has repaired it."""
        self.repaired = False
        self._recorded: dict[UUID, str] = {}
        self._attempts: dict[UUID, int] = {}
        """The attempt of the worker that claimed a session, unless an external consumer took it."""

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        claimed = await super().claim(session_id, lease=lease)
        if claimed is not None:
            self._attempts[session_id] = claimed.attempt
        return claimed

    def overwrite(self, session_id: UUID, **changes: Any) -> None:
        if session_id not in self._rows:
            return  # An UPDATE of no row.
        before = self._rows[session_id].session.status
        super().overwrite(session_id, **changes)
        if before is SessionStatus.QUEUED:
            self._attempts.pop(session_id, None)

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        done = await super().complete(session_id, attempt=attempt, picture=picture, usage=usage)
        return self._checked(done, "completed", session_id, attempt)

    async def fail(
        self, session_id: UUID, failure: Failure, *, attempt: int, fault: Fault | None = None
    ) -> bool:
        done = await super().fail(session_id, failure, attempt=attempt, fault=fault)
        return self._checked(done, "failed", session_id, attempt)

    async def release(
        self, session_id: UUID, *, attempt: int, delay: timedelta, fault: Fault | None = None
    ) -> SessionStatus | None:
        status = await super().release(session_id, attempt=attempt, delay=delay, fault=fault)
        self._checked(status is not None, "released", session_id, attempt)
        return status

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        done = await super().record_job(session_id, attempt=attempt, job=job)
        if done:
            before = self._recorded.get(session_id, job)
            if before != job and not self.jobs[before].produced_nothing:
                self.breaches.append(f"{session_id} has {job}, and {before} is paid for as well")
            self._recorded[session_id] = job
        return self._checked(done, "recorded a job of", session_id, attempt)

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int, blocked: Blocked = None
    ) -> int:
        alive = self._alive()
        done = await super().release_dead_leases(
            max_attempts=max_attempts,
            external_timeout=external_timeout,
            limit=limit,
            blocked=blocked,
        )
        self._check_taken(alive)
        return done

    async def fail_dead_leases(
        self,
        failure: Failure,
        *,
        max_attempts: int,
        external_timeout: timedelta,
        limit: int,
        blocked: Blocked = None,
    ) -> list[GenerationSession]:
        alive = self._alive()
        failed = await super().fail_dead_leases(
            failure,
            max_attempts=max_attempts,
            external_timeout=external_timeout,
            limit=limit,
            blocked=blocked,
        )
        self._check_taken(alive)
        return failed

    def _refund(self, row: Row) -> None:
        if row.session.id in self.unsound and not self.repaired:
            raise IllegalTransition(f"{row.session.id} cannot be refunded")
        super()._refund(row)

    def has_failed(self, session_id: UUID) -> bool:
        row = self._rows.get(session_id)
        return row is not None and row.session.status is SessionStatus.FAILED

    def check_deletion(self, session_id: UUID) -> None:
        """Call this when the picture of a session was deleted."""
        row = self._rows[session_id]
        ended = row.session.status.is_final
        if not ended or self._clock() < row.status_changed_at + PICTURE_LIFETIME:
            self.breaches.append(f"the picture of {session_id} was deleted too early")

    def stored(self) -> Iterator[GenerationSession]:
        """All sessions, the oldest first; none is ever removed."""
        return (row.session for row in self._rows.values())

    def _checked(self, done: bool, what: str, session_id: UUID, attempt: int) -> bool:
        if done and self._attempts.get(session_id) != attempt:
            self.breaches.append(
                f"attempt {attempt} {what} {session_id}, which another attempt has"
            )
        return done

    def _alive(self) -> set[UUID]:
        """The sessions with a lease that has not expired."""
        now = self._clock()
        return {
            session_id
            for session_id in self._attempts
            if (session := self._rows[session_id].session).status is SessionStatus.PROCESSING
            and (session.lease_expires_at or now) > now
        }

    def _check_taken(self, alive: set[UUID]) -> None:
        for session_id in alive - self._alive():
            self.breaches.append(f"{session_id} was taken from a live worker")


class WatchedImageStorage(InMemoryPictureStorage):
    """Records the deleted pictures, and checks that each was old enough. May be ``full``."""

    def __init__(self, *, repo: WatchedSessionRepo, signer: UrlSigner) -> None:
        super().__init__(signer=signer)
        self.deleted: set[str] = set()
        self.full = False
        self._repo = repo

    async def check(self) -> None:
        if self.full:
            raise StorageUnavailable("full", cause=NO_SPACE)

    async def save(self, prefix: str, picture: Picture) -> StoredPicture:
        if self.full:
            raise StorageUnavailable("full", cause=NO_SPACE)
        return await super().save(prefix, picture)

    async def delete(self, prefix: str) -> None:
        await super().delete(prefix)
        self.deleted.add(prefix)
        self._repo.check_deletion(UUID(prefix.rpartition("/")[2]))


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


class Process:
    """A process, which may die at any of its calls."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self._running = asyncio.Event()
        self._running.set()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """In the order in which they began: a seed replays exactly on every machine."""

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Killed | Violation | WearonError):
            self.world.repo.breaches.append(f"{self.name} crashed: {error!r}")

    def has_died(self) -> bool:
        return not self.alive

    def kill(self) -> None:
        """End at once. What its tasks still do has no effect."""
        self.alive = False
        for task in self._tasks:
            task.cancel()

    def freeze(self, seconds: float = FREEZE_SECONDS) -> None:
        self._running.clear()
        asyncio.get_running_loop().call_later(seconds, self._running.set)

    def connect(self, adapter: T, error: Callable[[str, bool], Exception]) -> T:
        """``adapter`` over a network that fails with ``error(call, certainly without effect)``."""
        return over_network(adapter, lambda name, effect: self.call(name, effect, error))

    async def call(
        self, name: str, effect: Callable[[], Awaitable[T]], error: Callable[[str, bool], Exception]
    ) -> T:
        await self.proceed()
        if name == "check":  # The storage's answer is remembered, so nearly none needs the network.
            return await effect()
        number = self.world.calls
        self.world.calls += 1
        fate = self.world.fates.next(f"{self.name} {name}")
        if fate is not Fate.DONE:
            self.world.faults[fate] += 1
        await asyncio.sleep(self.world.fates.pause())
        await self.proceed()
        await self._meet(fate, name, effect, error)
        try:
            result = await self.world.suffer(number, effect)
        finally:
            await self.world.check()
        if fate is Fate.DIE_AFTER:
            self._die()
        if fate is Fate.NO_REPLY:
            await asyncio.sleep(TIMEOUT_SECONDS)
            raise error(name, False)
        if fate is Fate.FALSE_ERROR:
            raise error(name, False)
        await asyncio.sleep(self.world.fates.pause())
        await self.proceed()
        return result

    async def _meet(
        self,
        fate: Fate,
        name: str,
        effect: Callable[[], Awaitable[T]],
        error: Callable[[str, bool], Exception],
    ) -> None:
        """What a fate does before or instead of the call's effect."""
        match fate:
            case Fate.REFUSED:
                raise error(name, True)
            case Fate.UNREACHED:
                await asyncio.sleep(TIMEOUT_SECONDS)
                raise error(name, False)
            case Fate.LATE:
                await asyncio.sleep(TIMEOUT_SECONDS)
                self.world.happen_later(effect)
                raise error(name, False)
            case Fate.DIE_BEFORE:
                self._die()
            case Fate.TWICE if name not in NEVER_REPEATED:
                await effect()
            case Fate.FREEZE:
                self.freeze()
                await self.proceed()

    def _die(self) -> None:
        self.kill()
        raise Killed(self.name)

    async def proceed(self) -> None:
        """Wait while frozen. Raises Killed if dead."""
        await self._running.wait()
        if not self.alive:
            raise Killed(self.name)


def database_error(call: str, _: bool) -> Exception:
    return DatabaseUnavailable(call)


def queue_error(call: str, refused: bool) -> Exception:
    return QueueUnavailable(call, refused=refused)


def storage_error(call: str, _: bool) -> Exception:
    return StorageUnavailable(call)
