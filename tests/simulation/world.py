"""A store, a queue and processes in one event loop on virtual time, and what must always hold."""

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
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.credits import LedgerKind, Owner
from domain.errors import DatabaseUnavailable, QueueUnavailable, TryAgain
from domain.sessions import (
    ErrorCode,
    Failure,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)
from tests.simulation.fates import Fate, Fates
from tests.support.clock import FakeClock, loop_time
from tests.support.faults import over_network

TIMEOUT_SECONDS = 1.0
PICTURE_LIFETIME = timedelta(seconds=8)
FREEZE_SECONDS = 20.0
T = TypeVar("T")


class Violation(AssertionError):
    """A rule of the contract does not hold."""


class Killed(BaseException):
    """The process of this task is dead: nothing that it still does may have an effect."""


@dataclass(frozen=True, slots=True)
class Told:
    """What a client was answered, 0 for nothing. ``session_id`` is None unless it was a 202."""

    request_id: str
    owner: Owner
    key: str | None
    answer: int
    session_id: UUID | None = None


@dataclass(slots=True)
class ProviderJob:
    """What a provider makes, whoever still waits for it."""

    ends_at: float
    has_picture: bool
    cancelled: bool = False

    @property
    def has_ended(self) -> bool:
        return self.cancelled or loop_time() >= self.ends_at

    @property
    def came_to_nothing(self) -> bool:
        return self.cancelled or (self.has_ended and not self.has_picture)


class WatchedSessionRepo(InMemorySessionRepo):
    """Notes what a guard let through that it should have stopped."""

    def __init__(self, *, accounts: InMemoryCreditRepo, clock: Callable[[], datetime]) -> None:
        super().__init__(accounts=accounts, clock=clock)
        self.wrongs: list[str] = []
        self.jobs: dict[str, ProviderJob] = {}
        """What the provider makes, by the name under which it is noted."""
        self._noted: dict[UUID, str] = {}
        self._worked_on: dict[UUID, int] = {}
        """The attempt of the worker of ours that has a session, unless another took it since."""

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        claimed = await super().claim(session_id, lease=lease)
        if claimed is not None:
            self._worked_on[session_id] = claimed.attempt
        return claimed

    def overwrite(self, session_id: UUID, **changes: Any) -> None:
        before = self._rows[session_id].session.status
        super().overwrite(session_id, **changes)
        if before is SessionStatus.QUEUED:
            self._worked_on.pop(session_id, None)

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        done = await super().complete(session_id, attempt=attempt, picture=picture, usage=usage)
        return self._watched(done, "completed", session_id, attempt)

    async def fail(self, session_id: UUID, failure: Failure, *, attempt: int) -> bool:
        done = await super().fail(session_id, failure, attempt=attempt)
        return self._watched(done, "failed", session_id, attempt)

    async def release(self, session_id: UUID, *, attempt: int, delay: timedelta) -> bool:
        done = await super().release(session_id, attempt=attempt, delay=delay)
        return self._watched(done, "released", session_id, attempt)

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        done = await super().record_job(session_id, attempt=attempt, job=job)
        if done:
            before = self._noted.get(session_id, job)
            if before != job and not self.jobs[before].came_to_nothing:
                self.wrongs.append(f"{session_id} has {job}, and {before} is paid for as well")
            self._noted[session_id] = job
        return self._watched(done, "noted a job of", session_id, attempt)

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> int:
        alive = self._alive()
        done = await super().release_dead_leases(
            max_attempts=max_attempts, external_timeout=external_timeout, limit=limit
        )
        self._note_taken(alive)
        return done

    async def fail_dead_leases(
        self, failure: Failure, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> list[GenerationSession]:
        alive = self._alive()
        failed = await super().fail_dead_leases(
            failure, max_attempts=max_attempts, external_timeout=external_timeout, limit=limit
        )
        self._note_taken(alive)
        return failed

    def note_deletion(self, session_id: UUID) -> None:
        """The picture of a session was deleted."""
        row = self._rows[session_id]
        ended = row.session.status.is_final
        if not ended or self._clock() < row.status_changed_at + PICTURE_LIFETIME:
            self.wrongs.append(f"the picture of {session_id} was deleted too early")

    def stored(self) -> Iterator[GenerationSession]:
        """All sessions, in any order."""
        return (row.session for row in self._rows.values())

    def _watched(self, done: bool, what: str, session_id: UUID, attempt: int) -> bool:
        if done and self._worked_on.get(session_id) != attempt:
            self.wrongs.append(f"attempt {attempt} {what} {session_id}, which another had")
        return done

    def _alive(self) -> set[UUID]:
        """The sessions whose worker lives, as far as the store knows: its lease is not over."""
        now = self._clock()
        return {
            session_id
            for session_id in self._worked_on
            if (session := self._rows[session_id].session).status is SessionStatus.PROCESSING
            and (session.lease_expires_at or now) > now
        }

    def _note_taken(self, alive: set[UUID]) -> None:
        for session_id in alive - self._alive():
            self.wrongs.append(f"{session_id} was taken from a live worker")


class WatchedImageStorage(InMemoryPictureStorage):
    """Tells what is deleted."""

    def __init__(self, *, repo: WatchedSessionRepo, signer: UrlSigner) -> None:
        super().__init__(signer=signer)
        self.deleted: set[str] = set()
        self._repo = repo

    async def delete(self, prefix: str) -> None:
        await super().delete(prefix)
        self.deleted.add(prefix)
        self._repo.note_deletion(UUID(prefix.rpartition("/")[2]))


class World:
    """What all processes share. ``fates`` decides what becomes of each of their calls."""

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
        self.told: list[Told] = []
        self.foreign_failures: set[UUID] = set()
        """Failed by a consumer that is not ours, which leaves the refund to recovery."""
        self.faults: Counter[Fate] = Counter()
        self.violations: list[Violation] = []
        self._final: dict[UUID, tuple[SessionStatus, StoredPicture | None]] = {}
        self._seen: dict[UUID, GenerationSession] = {}
        self._entries_read = 0
        self._balances: Counter[Owner] = Counter()
        self._money: dict[UUID, Counter[LedgerKind]] = {}
        self._late: set[asyncio.Task[Any]] = set()

    async def sessions(self) -> list[GenerationSession]:
        return await self.repo.history(None, status=None, limit=100_000, after=None)

    def happen_later(self, effect: Callable[[], Awaitable[Any]]) -> None:
        """Let ``effect`` happen although whoever asked for it has given up."""

        async def late() -> None:
            await asyncio.sleep(self.fates.pause())
            with suppress(Exception):  # nobody is there to be told
                await effect()
            await self.check()

        task = asyncio.create_task(late())
        self._late.add(task)
        task.add_done_callback(self._late.discard)

    def require(self, holds: bool, otherwise: str) -> None:
        """Remember a Violation if a rule does not hold for somebody who cannot raise it."""
        if not holds:
            self.violations.append(Violation(otherwise))

    async def check(self) -> None:
        """Raise Violation, and remember it, unless all holds that must hold at every step.

        Looks at what has changed since the last time: most calls change one session, or none.
        """
        try:
            changed = self._read_ledger()
            for session in self.repo.stored():
                if session.id in changed or self._seen.get(session.id) is not session:
                    self._seen[session.id] = session
                    self._check_session(session)
                    changed.discard(session.id)
            if changed:
                raise Violation(f"{changed} have money and no session")
            if self.repo.wrongs:
                raise Violation(", ".join(self.repo.wrongs))
        except Violation as violation:
            self.violations.append(violation)
            raise

    def _read_ledger(self) -> set[UUID]:
        """Read what is new in it, and check the accounts; the sessions that it is about."""
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
        owed = due and session.id in self.foreign_failures
        if debits != 1 or not (refunds == due or (owed and refunds == 0)):
            raise Violation(
                f"{session.id} is {session.status} with {debits} debits and {refunds} refunds"
            )

    async def check_settled(self) -> None:
        """Raise Violation unless everything holds that must hold once all is quiet."""
        if self.violations:
            raise self.violations[0]
        self.foreign_failures.clear()
        self._seen.clear()
        await self.check()
        sessions = {session.id: session for session in await self.sessions()}
        for session in sessions.values():
            _require(session.status.is_final, f"{session.id} is stuck as {session.status}")
            expired = session.failure is not None and session.failure.code == ErrorCode.EXPIRED
            _require(not expired, f"{session.id} waited although there were workers")
        accepted = {told.session_id for told in self.told if told.answer == 202}
        _require(accepted <= sessions.keys(), "a 202 has no session")
        for told in self.told:
            if told.answer not in {202, 0}:  # 0: the caller was told nothing
                self._check_refusal(told, sessions, accepted)
        self._check_keys(sessions)

    def _check_refusal(
        self, told: Told, sessions: dict[UUID, GenerationSession], accepted: set[UUID | None]
    ) -> None:
        """Who was refused was not charged, unless a repetition with its key was accepted, or may
        have been: its answer never arrived."""
        repetitions = [
            other
            for other in self.told
            if other.key is not None and (other.owner, other.key) == (told.owner, told.key)
        ]
        if any(other.answer == 0 for other in repetitions):
            return
        for session in sessions.values():
            if session.request_id == told.request_id and session.id not in accepted:
                _require(
                    told.answer == 503 and session.status is SessionStatus.FAILED,
                    f"{told.request_id} was told {told.answer}; {session.id} is {session.status}",
                )

    def _check_keys(self, sessions: dict[UUID, GenerationSession]) -> None:
        """All repetitions of a request that were accepted are one session, unless it was given
        back because it never got into the queue."""
        for key in {(told.owner, told.key) for told in self.told if told.key is not None}:
            ids = {
                told.session_id
                for told in self.told
                if (told.owner, told.key) == key and told.session_id is not None
            }
            kept = [id_ for id_ in ids if sessions[id_].idempotency_key is not None]
            _require(len(kept) <= 1, f"{key} made {kept}")


def _require(holds: bool, otherwise: str) -> None:
    if not holds:
        raise Violation(otherwise)


class Process:
    """Something that may die at any call that it makes."""

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
        task.add_done_callback(self._tasks.pop)
        return task

    def has_died(self) -> bool:
        return not self.alive

    def kill(self) -> None:
        """End at once. What its tasks do on their way out has no effect."""
        self.alive = False
        for task in self._tasks:
            task.cancel()

    def freeze(self, seconds: float = FREEZE_SECONDS) -> None:
        self._running.clear()
        asyncio.get_running_loop().call_later(seconds, self._running.set)

    def reaching(self, adapter: T, error: Callable[[str, bool], Exception]) -> T:
        """``adapter`` over a network that may fail with ``error(call, had no effect)``."""
        return over_network(adapter, lambda name, effect: self.call(name, effect, error))

    async def call(
        self, name: str, effect: Callable[[], Awaitable[T]], error: Callable[[str, bool], Exception]
    ) -> T:
        await self.proceed()
        fate = self.world.fates.next(f"{self.name} {name}")
        if fate is not Fate.DONE:
            self.world.faults[fate] += 1
        await asyncio.sleep(self.world.fates.pause())
        await self.proceed()
        await self._suffer(fate, name, effect, error)
        try:
            result = await effect()
        finally:
            await self.world.check()
        if fate is Fate.DIE_AFTER:
            self._die()
        if fate is Fate.NO_REPLY:
            await asyncio.sleep(TIMEOUT_SECONDS)
            raise error(name, False)
        await asyncio.sleep(self.world.fates.pause())
        await self.proceed()
        return result

    async def _suffer(
        self,
        fate: Fate,
        name: str,
        effect: Callable[[], Awaitable[T]],
        error: Callable[[str, bool], Exception],
    ) -> None:
        """What happens before a call has its effect, if that is something else."""
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
            case Fate.TWICE if name != "create":  # which no client repeats by itself
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


def store_error(call: str, _: bool) -> Exception:
    return DatabaseUnavailable(call)


def queue_error(call: str, refused: bool) -> Exception:
    return QueueUnavailable(call, refused=refused)


def storage_error(call: str, _: bool) -> Exception:
    return TryAgain(call)
