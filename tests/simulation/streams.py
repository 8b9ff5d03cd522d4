"""Clients that follow sessions, over hints that get lost, are late or come twice."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import suppress
from random import Random
from typing import TYPE_CHECKING
from uuid import UUID

from domain.callers import Caller
from domain.changes import NEVER_READ, Change, ChangeFeedPort, ChangePublisherPort
from domain.credits import Channel, Owner
from domain.errors import QueueUnavailable, Unavailable, WearonError
from domain.sessions import FINAL_REVISION, GenerationSession
from domain.watches import Watch
from domain.watching import Watching
from tests.simulation.fates import Fate
from tests.support.clock import loop_time

if TYPE_CHECKING:
    from tests.simulation.actors import Api
    from tests.simulation.world import World

RESUME_SECONDS = 1.0
LATE_SECONDS = 5.0
LAST_STATE_SECONDS = 30.0
"""How long after everything is settled each client must have the last state: a process may be
frozen when the faults end."""


class LossyChanges(ChangePublisherPort, ChangeFeedPort):
    """What workers publish and API processes hear. A listener may also break off."""

    def __init__(self, world: "World") -> None:
        self._world = world
        # In the order in which they began, so that a seed replays exactly.
        self._listeners: dict[asyncio.Queue[Change | None], None] = {}

    def publish(self, session: GenerationSession) -> None:
        if not self._listeners:
            return
        self._world.calls += 1
        change = Change(session_id=session.id, owner=session.owner)
        fate = self._world.fates.next("publish")
        times = {Fate.DONE: (0.0,), Fate.TWICE: (0.0, 0.0), Fate.LATE: (LATE_SECONDS,)}
        loop = asyncio.get_running_loop()
        for heard in tuple(self._listeners):
            for delay in times.get(fate, ()):
                loop.call_later(delay + self._world.fates.pause(), heard.put_nowait, change)
            if fate is Fate.REFUSED:
                heard.put_nowait(None)

    def break_off(self) -> None:
        """Break every connection: what is published until they are back is lost."""
        for heard in self._listeners:
            heard.put_nowait(None)

    async def listen(self) -> AsyncGenerator[Sequence[Change], None]:
        heard: asyncio.Queue[Change | None] = asyncio.Queue()
        self._listeners[heard] = None
        try:
            yield ()
            while (change := await heard.get()) is not None:
                yield [change]
            raise QueueUnavailable("The connection broke")
        finally:
            self._listeners.pop(heard)


class Follower:
    """A client that follows some sessions of its owner to their end, at any API process. It
    resumes at another one when its stream ends, as a client of ours does."""

    def __init__(self, world: "World", caller: Caller, ids: Sequence[UUID], random: Random) -> None:
        self._world = world
        self._caller = caller
        self._random = random
        self._revisions = dict.fromkeys(ids, NEVER_READ)

    @property
    def unfinished(self) -> list[UUID]:
        return [each for each, revision in self._revisions.items() if revision != FINAL_REVISION]

    async def run(self, apis: Sequence["Api"]) -> None:
        while self.unfinished:
            await self._random.choice(apis).follow(self)
            await asyncio.sleep(RESUME_SECONDS * self._random.random())

    async def stream(self, watching: Watching) -> None:
        """One stream, until it ends or the client leaves it."""
        if self._random.random() < 0.1:
            await self._stream_all(watching)
        ids = self.unfinished
        after = self._revisions[ids[0]] if len(ids) == 1 else NEVER_READ
        patience = self._random.choice((2.0, 20.0, 100.0))
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(patience):
                if len(ids) == 1 and self._random.random() < 0.3:
                    await self._wait(watching, ids[0])
                    return
                async with watching.watch(self._caller, ids, after=after) as watch:
                    await self._read(watch, dict.fromkeys(ids, after))

    async def _wait(self, watching: Watching, session_id: UUID) -> None:
        """A request that reads the session and waits for its end. It arrives a moment later."""
        session = await self._world.repo.get(session_id, self._caller.owner)
        await asyncio.sleep(self._random.choice((0.0, 0.05, 3.0)))
        with watching.watch_on(self._caller, session) as watch:
            if session.revision == FINAL_REVISION:
                self._revisions[session_id] = FINAL_REVISION
                self._world.require(await watch.next() is None, f"{session_id}: waits for nothing")
                return
            await self._read(watch, {session_id: session.revision})

    async def _stream_all(self, watching: Watching) -> None:
        """A stream of all sessions of the owner, which tells no state of before."""
        states: dict[UUID, int] = {}
        with suppress(Unavailable, TimeoutError):
            async with asyncio.timeout(2.0), watching.watch(self._caller, None) as watch:
                while (news := await watch.next()) is not None:
                    for session in news:
                        self._check_state(session, states.get(session.id, NEVER_READ))
                        states[session.id] = session.revision

    async def _read(self, watch: Watch, in_stream: dict[UUID, int]) -> None:
        while (news := await watch.next()) is not None:
            for session in news:
                self._check(session, in_stream)
            if self._random.random() < 0.2:
                await asyncio.sleep(self._random.random() * 5)  # A slow reader.
            if watch.ids and set(in_stream.values()) == {FINAL_REVISION}:
                told_at = loop_time()
                is_over = await watch.next() is None and loop_time() == told_at
                self._world.require(is_over, f"{watch.ids}: the stream goes on after their end")
                return

    def _check(self, session: GenerationSession, in_stream: dict[UUID, int]) -> None:
        revision = session.revision
        self._world.require(session.id in in_stream, f"{session.id}: not asked for")
        self._check_state(session, in_stream.get(session.id, NEVER_READ))
        in_stream[session.id] = revision
        # A process may have read this just before another one had told a newer state.
        self._revisions[session.id] = max(revision, self._revisions[session.id])

    def _check_state(self, session: GenerationSession, before: int) -> None:
        """A stream tells its owner's sessions only, and never goes backwards."""
        require = self._world.require
        require(session.owner == self._caller.owner, f"{session.id}: of {session.owner}")
        require(session.revision > before, f"{session.id}: {session.revision} after {before}")


async def follow_things(random: Random, world: "World", apis: Sequence["Api"]) -> None:
    """Clients follow sessions soon after their submission, alone or together. Others ask for
    another owner's, and must not get them. Ends once all of them have the last states."""
    followed: set[UUID] = set()
    followers: list[asyncio.Task[None]] = []
    try:
        while not getattr(world.fates, "calm", True):
            await asyncio.sleep(random.random() * 2)
            new = [a for a in world.answers if a.session_id and a.session_id not in followed]
            if not new:
                continue
            owner = random.choice(new).owner
            ids = list({a.session_id: None for a in new if a.owner == owner and a.session_id})
            ids = ids[: random.choice((1, 1, 3, 10))]
            followed.update(ids)
            follower = Follower(world, Caller(owner=owner), ids, random)
            followers.append(asyncio.create_task(follower.run(apis)))
            if random.random() < 0.3:
                await _intrude(random, world, apis, ids)
        await asyncio.gather(*followers)
    finally:
        for task in followers:
            task.cancel()


async def _intrude(
    random: Random, world: "World", apis: Sequence["Api"], ids: Sequence[UUID]
) -> None:
    """Another owner names these sessions."""
    stranger = Follower(world, Caller(owner=Owner(channel=Channel.B2B, id="stranger")), ids, random)
    with suppress(WearonError):
        await random.choice(apis).follow(stranger)
