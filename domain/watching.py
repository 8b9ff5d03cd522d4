"""Clients that wait for new states of their sessions: streams, and requests that wait for the end.

A stream of states, not a log: a client gets the current state of each session, and then newer ones.
States in between may be skipped; the last one never is.

No client has a timer or a query of its own. One task reads all sessions of which a change was
published, many in one statement. Another goes around all watched sessions once a second, which
finds the changes that were not published or lost. Without clients, neither runs.
"""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Callable, Coroutine, Iterable, Iterator, Sequence
from contextlib import aclosing, asynccontextmanager, contextmanager, suppress
from contextvars import Context
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from itertools import islice
from math import ceil
from random import Random
from typing import Any, TypeVar
from uuid import UUID

from domain.callers import Caller
from domain.changes import NEVER_READ, Change, ChangeFeedPort, WatchReadPort
from domain.credits import Owner
from domain.deadlines import SharedTimeout
from domain.errors import DatabaseUnavailable, Overloaded, QueueUnavailable, TooManyStreams
from domain.sessions import FINAL_REVISION, GenerationSession
from domain.watches import Watch, Whose

T = TypeVar("T")

MAX_IDS = 100
"""The sessions that one stream may name."""

READ_BATCH = 1_000
"""The sessions that one statement reads."""

ROUND_SECONDS = 1.0
"""How often each watched session is read without a published change."""

_TURNS = 10
"""The parts of a round. They spread its reads."""
_TURN_SECONDS = ROUND_SECONDS / _TURNS
_LINGER_ROUNDS = 5
"""How long to go on without a client: the next one may come soon."""
_PAUSE_SECONDS = 0.2
_LONGEST_PAUSE_SECONDS = 5.0
_MAX_RECENT = 1_000
_OWNERS_BATCH = 100
_OVERLAP = timedelta(seconds=30)
"""A session is visible at most this much later than its ``created_at``, on our clock."""


@dataclass(frozen=True, slots=True, kw_only=True)
class StreamLimits:
    """``per_process`` bounds the waiting clients of a process, ``per_owner`` those of one owner in
    it, and ``per_shopper`` those of one shopper.

    A stream ends after ``lifetime``, or up to a tenth earlier, so that clients do not all resume at
    once. It is woken after each ``ping``, also without a new state. The first states are read
    within ``deadline``.
    """

    per_process: int = 8_000
    per_owner: int = 1_000
    per_shopper: int = 20
    lifetime: timedelta = timedelta(minutes=30)
    ping: timedelta = timedelta(seconds=45)
    deadline: timedelta = timedelta(seconds=2)


@dataclass(slots=True)
class _Watched:
    """A session that clients wait for. All of them know its ``revision``."""

    id: UUID
    revision: int = NEVER_READ
    watches: dict[Watch, None] = field(default_factory=dict)


class Watching:
    """The clients of one process that wait, and what is read for them."""

    def __init__(
        self,
        *,
        reads: WatchReadPort,
        feed: ChangeFeedPort,
        limits: StreamLimits,
        random: Random,
        clock: Callable[[], datetime],
    ) -> None:
        self._reads = reads
        self._feed = feed
        self._limits = limits
        self._random = random
        self._clock = clock
        self._opening = SharedTimeout(limits.deadline.total_seconds())
        self._watches: dict[Watch, None] = {}
        self._due: dict[int, dict[Watch, None]] = {}
        """The clients that are to be woken, by the turn that does so."""
        self._turn = 0
        """The next turn. Turns are counted in the time of the event loop."""
        self._counts: Counter[Owner | Whose] = Counter()
        self._sessions: dict[UUID, _Watched] = {}
        self._owners: dict[Owner, dict[Watch, None]] = {}
        """The streams of all sessions of an owner."""
        self._wanted: dict[UUID, None] = {}
        """The watched sessions that are to be read, in order."""
        self._unsure: dict[UUID, None] = {}
        """The sessions that the next turn is to read."""
        self._reads_begun = 0
        self._reader: asyncio.Task[None] | None = None
        self._rounds: asyncio.Task[None] | None = None
        self._is_draining = False

    def __len__(self) -> int:
        """How many clients wait."""
        return len(self._watches)

    @asynccontextmanager
    async def watch(
        self, caller: Caller, ids: Sequence[UUID] | None, *, after: int = NEVER_READ
    ) -> AsyncIterator[Watch]:
        """A client of ``caller`` that waits for states above the revision ``after`` of these
        sessions; with None for ``ids``, for all states of the caller's sessions from now on.

        Raises ``NotFound`` if the caller may not see one of them, ``TooManyStreams``,
        ``Overloaded`` if the process has too many clients or stops, ``DatabaseUnavailable``.
        """
        self._check_limits(caller)
        whose = (caller.owner, caller.shopper_id)
        watch = Watch(whose, ids, after=after, now=self._clock())
        self._add(watch)
        try:
            await self._open(watch)
            yield watch
        finally:
            self._remove(watch)

    @contextmanager
    def watch_on(self, caller: Caller, session: GenerationSession) -> Iterator[Watch]:
        """The same for states newer than ``session``, which the caller may see and was read a
        moment ago. A change since then that was published too early for this client is found a
        turn later; so the session is not read now."""
        self._check_limits(caller)
        whose = (caller.owner, caller.shopper_id)
        watch = Watch(whose, (session.id,), after=session.revision, now=self._clock())
        watch.offer(session)  # Which the client has, so that this only says that it was read.
        self._add(watch, revision=session.revision)
        self._unsure[session.id] = None
        try:
            yield watch
        finally:
            self._remove(watch)

    async def _open(self, watch: Watch) -> None:
        """Read the current states."""
        try:
            with self._opening.running():
                if watch.ids is None:
                    await self._skip_current(watch)
                else:
                    self._want(watch.ids)
                    await watch.opened()
        except TimeoutError as error:
            raise DatabaseUnavailable("The database took too long") from error

    async def _skip_current(self, watch: Watch) -> None:
        """Remember the sessions that may change, without telling the client of them."""
        since = {watch.whose: watch.since - _OVERLAP}
        found = await self._reads.recent(since, limit=_MAX_RECENT)
        ids = [session_id for session_id, _ in found]
        for batch in _batches(ids, READ_BATCH):
            for session in await self._reads.newer([(each, NEVER_READ) for each in batch]):
                watch.skip(session)
                if not session.status.is_final:
                    self._follow(watch, session.id)

    def drain(self) -> None:
        """End all streams now, and begin no other: the process stops."""
        self._is_draining = True
        for watch in self._watches:
            watch.end()

    async def close(self) -> None:
        """Stop reading and listening."""
        self.drain()
        tasks = [task for task in (self._reader, self._rounds) if task is not None]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _check_limits(self, caller: Caller) -> None:
        limits = self._limits
        if self._is_draining or len(self._watches) >= limits.per_process:
            raise Overloaded("Too many clients wait here already; try again later")
        if self._counts[caller.owner] >= limits.per_owner:
            raise TooManyStreams("Too many of your clients wait already")
        if caller.shopper and self._counts[caller.owner, caller.shopper_id] >= limits.per_shopper:
            raise TooManyStreams("Too many clients of this shopper wait already")

    def _add(self, watch: Watch, *, revision: int = NEVER_READ) -> None:
        now = asyncio.get_running_loop().time()
        shorter = 1 - self._random.random() / 10
        watch.ends_at = now + self._limits.lifetime.total_seconds() * shorter
        watch.reads_before = self._reads_begun
        self._schedule(watch, now)
        self._watches[watch] = None
        self._counts[watch.whose[0]] += 1
        self._counts[watch.whose] += 1
        if watch.ids is None:
            self._owners.setdefault(watch.whose[0], {})[watch] = None
        for session_id in watch.ids or ():
            self._follow(watch, session_id, revision=revision)
        if self._rounds is None:
            self._turn = int(now / _TURN_SECONDS)
            self._rounds = self._run(self._go_around())

    def _schedule(self, watch: Watch, now: float) -> None:
        """Wake the client for its next ping, or for its end."""
        due_at = min(now + self._limits.ping.total_seconds(), watch.ends_at)
        watch.due_turn = max(self._turn + 1, ceil(due_at / _TURN_SECONDS))
        self._due.setdefault(watch.due_turn, {})[watch] = None

    def _remove(self, watch: Watch) -> None:
        del self._watches[watch]
        due = self._due.get(watch.due_turn, {})
        due.pop(watch, None)
        if not due:
            self._due.pop(watch.due_turn, None)
        for whose in (watch.whose[0], watch.whose):
            self._counts[whose] -= 1
            if not self._counts[whose]:
                del self._counts[whose]
        streams = self._owners.get(watch.whose[0], {})
        streams.pop(watch, None)
        if not streams:
            self._owners.pop(watch.whose[0], None)
        for session_id in tuple(self._sessions) if watch.ids is None else watch.ids:
            self._unfollow(watch, session_id)

    def _follow(self, watch: Watch, session_id: UUID, *, revision: int = NEVER_READ) -> None:
        """``revision`` is the one that the client has for sure."""
        watched = self._sessions.setdefault(session_id, _Watched(session_id, revision))
        watched.watches[watch] = None
        watched.revision = min(watched.revision, revision)

    def _unfollow(self, watch: Watch, session_id: UUID) -> None:
        watched = self._sessions.get(session_id)
        if watched is not None:
            watched.watches.pop(watch, None)
            if not watched.watches:
                del self._sessions[session_id]

    def _run(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        """Run a task that serves all clients, outside the context of the one that began it."""
        task = asyncio.get_running_loop().create_task(work, context=Context())
        task.add_done_callback(self._after)
        return task

    def _after(self, task: asyncio.Task[None]) -> None:
        """After a bug in a task no client waits in vain: they all come again."""
        if task is self._reader:
            self._reader = None
        if task is self._rounds:
            self._rounds = None
        if not task.cancelled() and (error := task.exception()) is not None:
            about = {"message": "Reading for waiting clients failed", "exception": error}
            task.get_loop().call_exception_handler(about)
            for watch in self._watches:
                watch.end()

    # Reading the sessions of which a change is known.

    def _want(self, session_ids: Iterable[UUID]) -> None:
        self._wanted |= dict.fromkeys(session_ids)
        if self._wanted and self._reader is None:
            self._reader = self._run(self._read_wanted())

    async def _read_wanted(self) -> None:
        while self._wanted:
            batch = list(islice(self._wanted, READ_BATCH))
            for session_id in batch:
                del self._wanted[session_id]
            try:
                await self._read([self._sessions[i] for i in batch if i in self._sessions])
            except DatabaseUnavailable as error:  # The rounds try again.
                self._fail_unread(batch, error)
        self._reader = None

    async def _read(self, batch: Sequence[_Watched]) -> None:
        """Read these sessions, and tell the clients what is new."""
        if not batch:
            return
        self._reads_begun += 1
        number = self._reads_begun
        unread = {watched.id: None for watched in batch if watched.revision == NEVER_READ}
        known = [(watched.id, watched.revision) for watched in batch]
        for session in await self._reads.newer(known):
            self._deliver(session, number)
            unread.pop(session.id, None)
        for session_id in unread:
            if (watched := self._sessions.get(session_id)) is not None:
                for watch in watched.watches:
                    if watch.reads_before < number:
                        watch.refuse(session_id)

    def _deliver(self, session: GenerationSession, number: int) -> None:
        """Tell the clients of a state that was read by the read of this ``number``. A client that
        came when the read had begun may know a newer one: its first state is that of a read of its
        own, except for a final state, which is always the newest."""
        watched = self._sessions.get(session.id)
        if watched is None:
            return
        is_final = session.revision == FINAL_REVISION
        early = {
            watch
            for watch in watched.watches
            if watch.reads_before >= number and session.id in watch.unread and not is_final
        }
        if not early:
            watched.revision = max(watched.revision, session.revision)
        for watch in [watch for watch in watched.watches if watch not in early]:
            if watch.may_see(session):
                watch.offer(session)
            else:
                watch.refuse(session.id)
        if is_final:
            self._sessions.pop(session.id, None)

    def _fail_unread(self, session_ids: Iterable[UUID], error: Exception) -> None:
        for session_id in session_ids:
            if (watched := self._sessions.get(session_id)) is not None:
                for watch in watched.watches:
                    watch.fail(error)

    # What runs while there are clients.

    async def _go_around(self) -> None:
        listening = self._run(self._listen())
        idle_rounds = 0
        try:
            while idle_rounds < _LINGER_ROUNDS:
                await self._go_round()
                # After the round, because a client may have come during it.
                idle_rounds = 0 if self._watches else idle_rounds + 1
        finally:
            self._rounds = None  # Before any wait: the next client begins anew.
            listening.cancel()
            await asyncio.gather(listening, return_exceptions=True)

    async def _go_round(self) -> None:
        loop = asyncio.get_running_loop()
        began = loop.time()
        sessions = list(self._sessions.values())
        with suppress(DatabaseUnavailable):  # The next round tries again.
            await self._find_new()
        for turn in range(_TURNS):
            self._wake_due(loop.time())
            self._want(self._unsure)
            self._unsure.clear()
            for batch in _batches(sessions[turn::_TURNS], READ_BATCH):
                with suppress(DatabaseUnavailable):
                    await self._read(batch)
            next_turn_at = began + (turn + 1) * _TURN_SECONDS
            await asyncio.sleep(max(0.0, next_turn_at - loop.time()))

    def _wake_due(self, now: float) -> None:
        """End the streams that have lived long enough, and wake those that are due for a ping."""
        while self._turn <= now / _TURN_SECONDS:
            for watch in self._due.pop(self._turn, ()):
                if now >= watch.ends_at:
                    watch.end()
                else:
                    watch.wake()
                    self._schedule(watch, now)
            self._turn += 1

    async def _find_new(self) -> None:
        """Find the new sessions of the owners whose streams show all of them."""
        now = self._clock()
        streams = [watch for watches in self._owners.values() for watch in watches]
        for batch in _batches(streams, _OWNERS_BATCH):
            since: dict[Whose, datetime] = {}
            for watch in batch:
                since[watch.whose] = min(watch.since - _OVERLAP, since.get(watch.whose, now))
            self._follow_new(await self._reads.recent(since, limit=_MAX_RECENT))
            for watch in batch:
                watch.since = now

    def _follow_new(self, found: Iterable[tuple[UUID, Owner]]) -> None:
        for session_id, owner in found:
            strangers = [w for w in self._owners.get(owner, ()) if not w.knows(session_id)]
            for watch in strangers:
                self._follow(watch, session_id)
            if strangers:
                self._want((session_id,))

    async def _listen(self) -> None:
        pause = _PAUSE_SECONDS
        while True:
            with suppress(QueueUnavailable):
                async with aclosing(self._feed.listen()) as heard:
                    async for changes in heard:
                        pause = _PAUSE_SECONDS
                        self._hear(changes)
            await asyncio.sleep(self._random.uniform(pause / 2, pause))
            pause = min(2 * pause, _LONGEST_PAUSE_SECONDS)

    def _hear(self, changes: Sequence[Change]) -> None:
        if not changes:  # It begins to listen: what was published until now is lost.
            self._want(self._sessions)
        if self._owners:
            self._follow_new((change.session_id, change.owner) for change in changes)
        self._want(c.session_id for c in changes if c.session_id in self._sessions)


async def final_state(watch: Watch, *, seconds: float) -> GenerationSession | None:
    """The first final state that ``watch`` tells, within ``seconds``; None without one."""
    with suppress(TimeoutError):
        async with asyncio.timeout(seconds):
            while (news := await watch.next()) is not None:
                for session in news:
                    if session.status.is_final:
                        return session
    return None


def _batches(items: Sequence[T], size: int) -> Iterator[Sequence[T]]:
    for start in range(0, len(items), size):
        yield items[start : start + size]
