"""Clients that wait for new states: what they get, when, and what is read for them."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import AsyncExitStack, aclosing
from datetime import timedelta
from random import Random
from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.changes.memory import InMemoryChanges
from adapters.sessions.watched_memory import InMemoryWatchReads
from domain import watches
from domain.callers import Caller, Shopper
from domain.changes import Change
from domain.credits import Owner
from domain.errors import (
    DatabaseUnavailable,
    NotFound,
    Overloaded,
    QueueUnavailable,
    TooManyStreams,
)
from domain.sessions import FINAL_REVISION, GenerationSession
from domain.watches import Watch
from domain.watching import ROUND_SECONDS, StreamLimits, Watching, final_state
from tests.support.examples import FAILURE, LEASE, OTHER, STORE, STORED_PICTURE, USER
from tests.support.service import Service

pytestmark = pytest.mark.anyio

CALLER = Caller(owner=USER)
AWAY = DatabaseUnavailable("The database is away")
QUEUED, CLAIMED, RELEASED = 1, 2, 3
"""Revisions of a new session, its first attempt, and after its release."""
PATIENCE_SECONDS = 60


class Reads(InMemoryWatchReads):
    """Records the calls. Each takes ``seconds``, and raises the ``error``. The replies to the next
    calls come late: each at its event of ``late``."""

    def __init__(self, service: Service) -> None:
        super().__init__(service.repo)
        self.batches: list[Sequence[tuple[UUID, int]]] = []
        self.seconds = 0.0
        self.error: Exception | None = None
        self.late: list[asyncio.Event] = []

    async def newer(self, known: Sequence[tuple[UUID, int]]) -> list[GenerationSession]:
        self.batches.append(known)
        await asyncio.sleep(self.seconds)
        if self.error is not None:
            raise self.error
        found = await super().newer(known)
        if self.late:
            await self.late.pop(0).wait()
        return found


class Feed(InMemoryChanges):
    """Loses what is published while it is ``deaf``, and breaks on demand."""

    def __init__(self) -> None:
        super().__init__()
        self.is_deaf = False
        self.breaks = asyncio.Event()
        self.listens = 0

    def publish(self, session: GenerationSession) -> None:
        if not self.is_deaf:
            super().publish(session)

    async def listen(self) -> AsyncGenerator[Sequence[Change], None]:
        self.listens += 1
        async with aclosing(super().listen()) as heard:
            async for changes in heard:
                if self.breaks.is_set():
                    self.breaks.clear()
                    raise QueueUnavailable("Redis is away")
                yield changes


class Scene:
    """Sessions that change, and clients that wait for that."""

    def __init__(self, service: Service, **limits: Any) -> None:
        self.service = service
        self.reads = Reads(service)
        self.feed = Feed()
        self.watching = Watching(
            reads=self.reads,
            feed=self.feed,
            limits=StreamLimits(**limits),
            random=Random(1),
            clock=service.clock.now,
        )

    async def submit(self, owner: Owner = USER) -> UUID:
        return (await self.service.submitted(owner)).session.id

    async def claim(self, session_id: UUID) -> None:
        session = await self.service.repo.claim(session_id, lease=LEASE)
        assert session is not None
        self.feed.publish(session)

    async def release(self, session_id: UUID, *, attempt: int = 1) -> None:
        released = await self.service.repo.release(
            session_id, attempt=attempt, delay=timedelta(0), fault=None
        )
        assert released
        self.feed.publish(await self.service.session(session_id))

    async def fail(self, session_id: UUID, *, attempt: int = 1) -> None:
        assert await self.service.repo.fail(session_id, FAILURE, attempt=attempt)
        self.feed.publish(await self.service.session(session_id))

    async def finish(self, session_id: UUID) -> None:
        await self.claim(session_id)
        await self.fail(session_id)


@pytest.fixture
def scene(service: Service) -> Scene:
    return Scene(service)


async def news(watch: Watch) -> list[tuple[UUID, int]]:
    """The next states of the stream, with their revisions; empty at its end."""
    async with asyncio.timeout(PATIENCE_SECONDS):
        while (sessions := await watch.next()) == ():
            pass
    return [(session.id, session.revision) for session in sessions or ()]


async def settle() -> None:
    """Until a change that was published has reached the clients."""
    await asyncio.sleep(0.001)


def now() -> float:
    return asyncio.get_running_loop().time()


async def test_current_state_then_newer_ones_then_the_end(scene: Scene) -> None:
    """As soon as they are published."""
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        first = await news(watch)
        await settle()
        began = now()
        await scene.claim(session_id)
        second = await news(watch)
        await scene.fail(session_id)
        third = await news(watch)

        assert (first, second, third) == (
            [(session_id, QUEUED)],
            [(session_id, CLAIMED)],
            [(session_id, FINAL_REVISION)],
        )
        assert now() == began
        assert await watch.next() is None


async def test_slow_client_skips_states_but_not_the_last(scene: Scene) -> None:
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await scene.claim(session_id)
        await settle()
        await scene.fail(session_id)
        await settle()

        assert await news(watch) == [(session_id, FINAL_REVISION)]
        assert await watch.next() is None


async def test_resumed_stream_begins_above_the_given_revision(scene: Scene) -> None:
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id], after=QUEUED) as watch:
        await scene.claim(session_id)

        assert await news(watch) == [(session_id, CLAIMED)]


async def test_stream_of_a_session_that_the_client_has_is_over(scene: Scene) -> None:
    session_id = await scene.submit()
    await scene.finish(session_id)
    async with scene.watching.watch(CALLER, [session_id], after=FINAL_REVISION) as watch:
        assert watch.is_over
        assert await watch.next() is None


async def test_reply_to_an_earlier_read_is_no_clients_first_state(scene: Scene) -> None:
    """A read that began before the session ended is answered after a client came that knows the
    end: the client waits for the read of its own, and is not told to wait for the end."""
    session_id = await scene.submit()
    earlier, own = asyncio.Event(), asyncio.Event()
    async with scene.watching.watch(CALLER, [session_id]), AsyncExitStack() as stack:
        scene.reads.late = [earlier]
        await scene.claim(session_id)
        await settle()
        assert await scene.service.repo.fail(session_id, FAILURE, attempt=1)
        scene.reads.late = [own]
        coming = asyncio.create_task(
            stack.enter_async_context(
                scene.watching.watch(CALLER, [session_id], after=FINAL_REVISION)
            )
        )
        await settle()
        earlier.set()
        await settle()
        has_begun = coming.done()
        own.set()
        watch = await coming

        assert not has_begun
        assert watch.is_over


async def test_late_and_repeated_changes_show_nothing_twice(scene: Scene) -> None:
    session_id = await scene.submit()
    queued = await scene.service.session(session_id)
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
        await scene.claim(session_id)
        await news(watch)
        for _ in range(3):
            scene.feed.publish(queued)
            await settle()
        watch.offer(queued)  # As if it had been read before the claim, and had arrived after it.
        watch.wake()

        assert await watch.next() == ()


async def test_unpublished_change_is_found_within_a_round(scene: Scene) -> None:
    """An external consumer publishes nothing, and a change may be lost."""
    session_id = await scene.submit()
    scene.feed.is_deaf = True
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
        await settle()
        began = now()
        await scene.finish(session_id)

        assert await news(watch) == [(session_id, FINAL_REVISION)]
        assert now() - began <= ROUND_SECONDS


async def test_changes_during_a_break_of_the_feed_are_read_once_it_listens_again(
    scene: Scene,
) -> None:
    """Before the next round would find them."""
    session_id, other = await scene.submit(), await scene.submit()
    async with scene.watching.watch(CALLER, [session_id, other]) as watch:
        await news(watch)
        await settle()
        began = now()
        scene.feed.breaks.set()
        await scene.claim(other)
        await scene.finish(session_id)
        seen: dict[UUID, int] = {}
        while session_id not in seen:
            seen |= await news(watch)

    assert seen[session_id] == FINAL_REVISION
    assert scene.feed.listens == 2
    assert now() - began < ROUND_SECONDS / 2


@pytest.mark.parametrize("shopper_id", [None, "anna"])
async def test_what_the_caller_may_not_see_does_not_exist(
    scene: Scene, shopper_id: str | None
) -> None:
    """Another owner's session, one of the store itself for its shopper, and an unknown id."""
    shopper = None if shopper_id is None else Shopper(id=shopper_id, token_id=uuid4())
    owner = USER if shopper_id is None else STORE
    foreign = await scene.submit(OTHER if shopper_id is None else STORE)
    own = await scene.submit(USER) if shopper_id is None else None

    for session_id in (foreign, uuid4()):
        named = [session_id] if own is None else [own, session_id]
        with pytest.raises(NotFound) as refused:
            async with scene.watching.watch(Caller(owner=owner, shopper=shopper), named):
                raise AssertionError("It was let in")
        assert str(refused.value) == "No such generation"
    assert len(scene.watching) == 0


async def test_session_that_was_just_read_is_not_read_for_its_client(scene: Scene) -> None:
    """Until a change of it is published, or the next turn of the round."""
    async with scene.watching.watch(CALLER, [await scene.submit()]):  # The rounds run.
        session = await scene.service.session(await scene.submit())
        await settle()
        before = len(scene.reads.batches)
        with scene.watching.watch_on(CALLER, session) as watch:
            await settle()
            reads = len(scene.reads.batches) - before
            await scene.finish(session.id)
            seen = await news(watch)

    assert reads == 0
    assert seen == [(session.id, FINAL_REVISION)]


async def test_change_that_was_published_before_its_client_came_is_found_a_turn_later(
    scene: Scene,
) -> None:
    """Between the read of the session and the client's arrival."""
    async with scene.watching.watch(CALLER, [await scene.submit()]):  # The rounds run.
        await settle()
        session = await scene.service.session(await scene.submit())
        await scene.finish(session.id)
        await settle()
        began = now()
        with scene.watching.watch_on(CALLER, session) as watch:
            seen = await news(watch)

    assert seen == [(session.id, FINAL_REVISION)]
    assert now() - began <= ROUND_SECONDS / 10


async def test_client_that_knows_the_end_waits_for_nothing(scene: Scene) -> None:
    session_id = await scene.submit()
    await scene.finish(session_id)
    with scene.watching.watch_on(CALLER, await scene.service.session(session_id)) as watch:
        assert watch.is_over
        assert await watch.next() is None


async def test_clients_that_know_different_states_get_what_they_lack(scene: Scene) -> None:
    """One knows the claimed session, the other one resumes from an earlier state."""
    session_id = await scene.submit()
    await scene.claim(session_id)
    claimed = await scene.service.session(session_id)
    with scene.watching.watch_on(CALLER, claimed) as informed:
        async with scene.watching.watch(CALLER, [session_id], after=QUEUED) as resumed:
            first = await news(resumed)
            await scene.fail(session_id)

            assert first == [(session_id, CLAIMED)]
            assert await news(resumed) == await news(informed) == [(session_id, FINAL_REVISION)]


async def test_stream_of_several_ends_once_all_are_final(scene: Scene) -> None:
    ids = [await scene.submit() for _ in range(3)]
    await scene.finish(ids[0])
    async with scene.watching.watch(CALLER, ids) as watch:
        assert sorted(await news(watch)) == sorted(
            [(ids[0], FINAL_REVISION), (ids[1], QUEUED), (ids[2], QUEUED)]
        )
        await scene.finish(ids[1])
        await settle()
        assert await news(watch) == [(ids[1], FINAL_REVISION)]
        await scene.finish(ids[2])
        await settle()
        assert await news(watch) == [(ids[2], FINAL_REVISION)]
        assert await watch.next() is None


async def test_streams_of_an_owner_show_what_changes_from_now_on(scene: Scene) -> None:
    """Old and new sessions of its own, each state once, and no session of another owner."""
    finished, waiting = await scene.submit(), await scene.submit()
    await scene.finish(finished)
    async with scene.watching.watch(CALLER, None) as watch:
        await settle()
        foreign = await scene.submit(OTHER)
        await scene.finish(foreign)
        new = await scene.submit()
        await scene.claim(waiting)
        first = await news(watch)
        await scene.finish(new)
        await settle()
        second = await news(watch)
        await asyncio.sleep(3 * ROUND_SECONDS)
        watch.wake()

        assert first == [(waiting, CLAIMED)]
        assert second == [(new, FINAL_REVISION)]
        assert await watch.next() == ()


async def test_streams_of_an_owner_find_unpublished_sessions(scene: Scene) -> None:
    """Also those that were created and have ended between two rounds."""
    waiting = await scene.submit()
    scene.feed.is_deaf = True
    async with scene.watching.watch(CALLER, None) as watch:
        await asyncio.sleep(ROUND_SECONDS / 2)
        new = await scene.submit()
        await scene.finish(new)
        await scene.claim(waiting)
        began = now()
        seen = dict(await news(watch))
        while len(seen) < 2:
            seen |= await news(watch)

        assert seen == {new: FINAL_REVISION, waiting: CLAIMED}
        assert now() - began <= 2 * ROUND_SECONDS


async def test_streams_of_an_owner_show_published_sessions_at_once(scene: Scene) -> None:
    """Before the next round would find them."""
    async with scene.watching.watch(CALLER, None) as watch:
        await settle()
        began = now()
        new = await scene.submit()
        await scene.claim(new)

        assert await news(watch) == [(new, CLAIMED)]
        assert now() == began


async def test_streams_of_a_shopper_show_its_own_sessions_only(scene: Scene) -> None:
    shopper = Shopper(id="anna", token_id=uuid4())
    async with scene.watching.watch(Caller(owner=STORE, shopper=shopper), None) as watch:
        await settle()
        of_store = await scene.submit(STORE)
        await scene.finish(of_store)
        await asyncio.sleep(2 * ROUND_SECONDS)
        watch.wake()

        assert await watch.next() == ()


async def test_client_that_takes_nothing_holds_a_bounded_number_of_states(
    scene: Scene, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Then its stream ends after these, and the client comes again."""
    monkeypatch.setattr(watches, "MAX_FOLLOWED", 5)
    async with scene.watching.watch(CALLER, None) as watch:
        await settle()
        for _ in range(9):
            await scene.finish(await scene.submit())
            await settle()

        assert len(await news(watch)) == 6
        assert await watch.next() is None


async def test_clients_share_the_reads(scene: Scene) -> None:
    """A hundred clients of fifty sessions: their first states, and a change of each session, take
    fewer reads than there are sessions, and no client is told of another's."""
    ids = [await scene.submit() for _ in range(50)]
    scene.reads.seconds = 0.001
    async with AsyncExitStack() as stack:
        opening = [scene.watching.watch(CALLER, [ids[place % 50]]) for place in range(100)]
        watches = await asyncio.gather(*map(stack.enter_async_context, opening))
        firsts = [await news(watch) for watch in watches]
        await settle()
        before = len(scene.reads.batches)
        for session_id in ids:
            await scene.claim(session_id)
        seconds = [await news(watch) for watch in watches]

        assert firsts == [[(ids[place % 50], QUEUED)] for place in range(100)]
        assert seconds == [[(ids[place % 50], CLAIMED)] for place in range(100)]
        assert before < 10
        assert len(scene.reads.batches) - before < 10


async def test_nothing_is_read_without_clients(scene: Scene) -> None:
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
    await asyncio.sleep(10 * ROUND_SECONDS)
    reads, timers = len(scene.reads.batches), _timers()
    await asyncio.sleep(60)

    assert len(scene.reads.batches) == reads
    assert _timers() - timers <= 1  # The sleep's own.
    assert not scene.feed._listeners


@pytest.mark.parametrize("pause", [ROUND_SECONDS * tenths / 10 for tenths in range(1, 100)])
async def test_client_that_comes_when_the_last_rounds_end_is_served(
    scene: Scene, pause: float
) -> None:
    """Whenever after the last client it comes."""
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
    await asyncio.sleep(pause)
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
        scene.feed.is_deaf = True
        await asyncio.sleep(10 * ROUND_SECONDS)
        await scene.finish(session_id)

        async with asyncio.timeout(2 * ROUND_SECONDS):
            assert await news(watch) == [(session_id, FINAL_REVISION)]


def _timers() -> int:
    loop: Any = asyncio.get_running_loop()
    return int(loop.timers_set)


async def test_each_watched_session_is_read_once_a_round(scene: Scene) -> None:
    """With its revision, so that the database returns only what changed."""
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
        await asyncio.sleep(ROUND_SECONDS)
        before = len(scene.reads.batches)
        await asyncio.sleep(10 * ROUND_SECONDS)

        rounds = scene.reads.batches[before:]
        assert 9 <= len(rounds) <= 11
        assert all(known == [(session_id, QUEUED)] for known in rounds)


async def test_outage_of_the_database_delays_a_state(scene: Scene) -> None:
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
        scene.reads.error = AWAY
        await scene.finish(session_id)
        await asyncio.sleep(30)
        scene.reads.error = None

        assert await news(watch) == [(session_id, FINAL_REVISION)]


async def test_stream_does_not_begin_without_the_database(scene: Scene) -> None:
    """The client is told at once, not at the deadline."""
    session_id = await scene.submit()
    scene.reads.error = AWAY
    began = now()
    with pytest.raises(DatabaseUnavailable):
        async with scene.watching.watch(CALLER, [session_id]):
            raise AssertionError("It was let in")

    assert len(scene.watching) == 0
    assert now() == began


async def test_database_that_hangs_is_given_up_at_the_deadline(service: Service) -> None:
    scene = Scene(service, deadline=timedelta(seconds=2))
    session_id = await scene.submit()
    scene.reads.seconds = 60
    began = now()
    with pytest.raises(DatabaseUnavailable):
        async with scene.watching.watch(CALLER, [session_id]):
            raise AssertionError("It was let in")

    assert now() - began == 2


async def test_limits_of_clients(service: Service) -> None:
    """Of an owner, of a shopper, and of the process; those that leave make room."""
    scene = Scene(service, per_process=5, per_owner=3, per_shopper=1)
    shopper = Caller(owner=STORE, shopper=Shopper(id="anna", token_id=uuid4()))

    async with AsyncExitStack() as stack:

        async def enter(caller: Caller) -> None:
            await stack.enter_async_context(scene.watching.watch(caller, None))

        await enter(shopper)
        with pytest.raises(TooManyStreams, match="shopper"):
            await enter(shopper)
        for _ in range(3):
            await enter(CALLER)
        with pytest.raises(TooManyStreams):
            await enter(CALLER)
        await enter(Caller(owner=OTHER))
        with pytest.raises(Overloaded):
            await enter(Caller(owner=OTHER))
    async with scene.watching.watch(CALLER, None):
        assert len(scene.watching) == 1


async def test_stream_ends_after_its_lifetime(service: Service) -> None:
    """Not all at once; meanwhile they are woken for pings."""
    scene = Scene(service, lifetime=timedelta(minutes=30), ping=timedelta(seconds=45))
    session_id = await scene.submit()

    async def follow() -> tuple[float, int]:
        """When the stream ended, and its pings."""
        began, pings = now(), 0
        async with scene.watching.watch(CALLER, [session_id]) as watch:
            await news(watch)
            while await watch.next() is not None:
                pings += 1
        return now() - began, pings

    followed = await asyncio.gather(*(follow() for _ in range(5)))

    assert len({round(end) for end, _ in followed}) == 5
    for end, pings in followed:
        assert 27 * 60 <= end <= 30 * 60 + 1
        assert pings == int(end / 45)


async def test_nothing_is_kept_of_clients_that_left(scene: Scene) -> None:
    """Nor of one that came and left while no other was there, again and again."""

    def kept() -> int:
        return sum(map(len, [value for value in vars(scene.watching).values() if sized(value)]))

    for _ in range(3):
        session_id = await scene.submit()
        async with scene.watching.watch(CALLER, [session_id]) as watch:
            await news(watch)
        with scene.watching.watch_on(CALLER, await scene.service.session(session_id)):
            await asyncio.sleep(2 * ROUND_SECONDS)
        async with scene.watching.watch(CALLER, None):
            await settle()
        await asyncio.sleep(60)  # The rounds end.

    assert kept() == 0


def sized(value: object) -> bool:
    return isinstance(value, dict | set | list)


async def test_drain_ends_all_streams_now(scene: Scene) -> None:
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
        waiting = asyncio.create_task(watch.next())
        await settle()
        began = now()
        scene.watching.drain()

        assert await waiting is None
        assert now() == began
    with pytest.raises(Overloaded):
        async with scene.watching.watch(CALLER, [session_id]):
            raise AssertionError("It was let in")
    await scene.watching.close()


async def test_clients_of_a_crashed_reader_come_again(scene: Scene) -> None:
    """A bug there must not leave them waiting. It is reported to the event loop."""
    session_id = await scene.submit()
    reported: list[dict[str, Any]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, about: reported.append(about))
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await news(watch)
        scene.reads.error = ZeroDivisionError()
        await scene.finish(session_id)

        assert await watch.next() is None
    assert any(isinstance(about["exception"], ZeroDivisionError) for about in reported)


async def test_a_wait_ends_with_the_first_final_state(scene: Scene) -> None:
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        waiting = asyncio.create_task(final_state(watch, seconds=30))
        await settle()
        began = now()
        await scene.claim(session_id)
        await scene.service.repo.complete(session_id, attempt=1, picture=STORED_PICTURE)
        scene.feed.publish(await scene.service.session(session_id))
        session = await waiting

    assert session == await scene.service.session(session_id)
    assert session is not None
    assert session.status.is_final
    assert now() == began


async def test_a_wait_gives_up(scene: Scene) -> None:
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        began = now()
        assert await final_state(watch, seconds=7) is None
        assert now() - began == 7


async def test_a_released_session_goes_on(scene: Scene) -> None:
    """Each attempt has revisions of its own."""
    session_id = await scene.submit()
    async with scene.watching.watch(CALLER, [session_id]) as watch:
        await settle()
        seen = await news(watch)
        for change in (scene.claim, scene.release, scene.claim):
            await change(session_id)
            seen += await news(watch)

        assert [revision for _, revision in seen] == [QUEUED, CLAIMED, RELEASED, RELEASED + 1]
