"""Runs that each bring about one situation which chance seldom does."""

import asyncio
from collections.abc import AsyncIterator, Callable, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from datetime import datetime, timedelta
from itertools import product
from random import Random
from uuid import UUID

from adapters.queue.payload import decode
from domain.callers import Caller
from domain.errors import IllegalTransition
from domain.recovery import Recovery
from domain.sessions import CANCELLED, GenerationSession, SessionStatus
from domain.watching import ROUND_SECONDS
from tests.simulation.actors import (
    INTERVAL_SECONDS,
    RECOVERY,
    WORK,
    Api,
    Mood,
    WorkerProcess,
    keep_alive,
)
from tests.simulation.fates import (
    Fate,
    FixedFates,
    NamedFates,
    PlannedFates,
)
from tests.simulation.outbox import DISPATCH
from tests.simulation.running import HOT, all_refunded, run, settle
from tests.simulation.webhooks import Temper, Webhooks
from tests.simulation.world import Violation, World
from tests.support.clock import loop_time
from tests.support.examples import NO_TOKENS, NO_WEBHOOKS, NO_WORKERS, STORE, USER


def run_repetitions() -> None:
    """A request with a key, repeated in two processes at once and after the end, with every pair of
    faults of its push and of its undo; and with a provider that is busy, so that its session is
    claimed and queued again before an undo. Raises Violation, which names the pair."""
    _run_pairs(_submit_one, "push", "fail_queued")


def run_repeated_batches() -> None:
    """The same for a batch of two items."""
    _run_pairs(_submit_two, "push_many", "undo_many")


async def _submit_one(api: Api, request_id: str) -> None:
    await api.submit(request_id, HOT, "key")


async def _submit_two(api: Api, request_id: str) -> None:
    await api.submit_batch(request_id, HOT, [None, None], "key")


def _run_pairs(
    submit: Callable[[Api, str], Coroutine[None, None, None]], push: str, undo: str
) -> None:
    pairs = [*product(Fate, Fate, (False,)), *((fate, Fate.DONE, True) for fate in Fate)]
    for of_push, of_undo, is_busy in pairs:
        plan = {f"api-1 {push}": of_push, f"api-1 {undo}": of_undo}
        try:
            run(_repetitions(submit, dict(plan), busy_seconds=3.0 if is_busy else 0.0))
        except Violation as violation:
            raise Violation(f"{plan}, {is_busy}: {violation}") from violation


async def _repetitions(
    submit: Callable[[Api, str], Coroutine[None, None, None]],
    plan: dict[str, Fate],
    *,
    busy_seconds: float,
) -> None:
    random = Random(0)
    world = World(NamedFates(plan))
    await world.accounts.grant(HOT, 3, note="simulated")
    mood = Mood(random=random, steady_seconds=0.5)
    mood.busy_until = loop_time() + busy_seconds
    apis = [Api(world, f"api-{number}", random) for number in (1, 2)]
    actors = [*apis, WorkerProcess(world, "worker", random, mood, slots=1)]
    for actor in actors:
        actor.start()
    living = asyncio.create_task(keep_alive(actors))
    for number in range(2):
        await asyncio.gather(*(submit(api, f"{api.name}-{number}") for api in apis))
        await asyncio.sleep(2)  # A late undo may still have its effect.
        await settle(world)
    living.cancel()
    for actor in actors:
        actor.process.kill()
    await world.check_settled()


def run_long_work() -> None:
    """Work of three leases, without any fault. Raises Violation unless one attempt completes it."""
    run(_long_work())


async def _long_work() -> None:
    random = Random(0)
    world = World(PlannedFates({}))
    await world.accounts.grant(HOT, 1, note="simulated")
    api = Api(world, "api", random)
    patient = Mood(random=random, steady_seconds=3 * WORK.lease.total_seconds())
    actors = [api, *(WorkerProcess(world, f"worker-{n}", random, patient) for n in (1, 2))]
    for actor in actors:
        actor.start()
    await api.submit("request", HOT, None)
    await settle(world)
    for actor in actors:
        actor.process.kill()
    (session,) = await world.sessions()
    if (session.status, session.attempt) != (SessionStatus.COMPLETED, 1):
        raise Violation(f"{session.status} after {session.attempt} attempts")


def run_cancellation() -> None:
    """A cancellation while the picture is made, with a hint and without one. Raises Violation
    unless the worker stops in time, the provider's job is cancelled, and no other one begins."""
    for fate, at_most in ((Fate.DONE, 0.5), (Fate.REFUSED, WORK.lease.total_seconds() / 3 + 0.5)):
        for after in (0.5, WORK.lease.total_seconds()):
            run(_cancellation(NamedFates({"announce": fate}), after, at_most))


async def _cancellation(fates: NamedFates, after: float, at_most: float) -> None:
    world, mood = World(fates), Mood(random=Random(0), steady_seconds=8.0)
    async with _sessions_in(world, mood, count=1):
        await asyncio.sleep(after)
        (session,) = await world.sessions()
        api = Api(world, "another api", Random(0))
        api.start()
        await api.cancel(session)
        await asyncio.sleep(at_most)
        (ended,) = await world.sessions()
        await asyncio.sleep(RECOVERY.external_timeout.total_seconds())
        api.process.kill()
    if session.status is not SessionStatus.PROCESSING or ended.failure != CANCELLED:
        raise Violation(f"{session.status}, cancelled, and {at_most} s later {ended}")
    if [job.cancelled for job in world.repo.jobs.values()] != [True]:
        raise Violation(f"the jobs of the provider: {world.repo.jobs}")
    await world.check_settled()


def run_shortage() -> None:
    """A storage that is full from the start, and again once pictures were begun. Raises Violation
    unless every session is completed, nothing was paid for in vain, and each picture once."""
    run(_shortage())


async def _shortage() -> None:
    world, mood = World(PlannedFates({})), Mood(random=Random(0), steady_seconds=2.0)
    paid = world.repo.jobs
    world.storage.full = True
    async with _sessions_in(world, mood, count=6):
        await asyncio.sleep(8)
        if paid:
            raise Violation(f"{len(paid)} pictures were paid for while the storage was full")
        world.storage.full = False
        while not paid:  # noqa: ASYNC110 - costs no time on a virtual loop
            await asyncio.sleep(0.1)
        world.storage.full = True
        await asyncio.sleep(WORK.storage_patience.total_seconds() - 5)
        world.storage.full = False
        await settle(world)
    if not await _all_completed(world) or len(paid) != len(await world.sessions()):
        raise Violation(f"{len(paid)} pictures were paid for: {await world.sessions()}")


def run_blip() -> None:
    """A provider that rejects all calls for longer than the attempts' backoffs together. Raises
    Violation unless every session is completed, after a bounded number of calls."""
    run(_blip())


async def _blip() -> None:
    world, mood = World(PlannedFates({})), Mood(random=Random(0), steady_seconds=1.0)
    mood.busy_until = loop_time() + WORK.provider_patience.total_seconds() / 2
    async with _sessions_in(world, mood, count=8):
        await settle(world)
    if not await _all_completed(world) or mood.turned_away > 3 * len(await world.sessions()):
        raise Violation(f"{mood.turned_away} calls were rejected: {await world.sessions()}")


@asynccontextmanager
async def _sessions_in(world: World, mood: Mood, *, count: int) -> AsyncIterator[Api]:
    """Two workers, and this many requests. Yields the API process."""
    await world.accounts.grant(HOT, count, note="simulated")
    api = Api(world, "api", Random(0))
    actors = [api, *(WorkerProcess(world, f"worker-{n}", Random(n), mood) for n in (1, 2))]
    for actor in actors:
        actor.start()
    for number in range(count):
        await api.submit(f"request-{number}", HOT, None)
    yield api
    for actor in actors:
        actor.process.kill()


async def _all_completed(world: World) -> bool:
    return all(session.status is SessionStatus.COMPLETED for session in await world.sessions())


def run_backlog() -> None:
    """A queue that loses the older half of a backlog while no worker runs. Raises Violation unless
    recovery restores it, each task once and the oldest next."""
    run(_backlog())


async def _backlog() -> None:
    random = Random(0)
    world = World(PlannedFates({}))
    await world.accounts.grant(HOT, 8, note="simulated")
    api = Api(world, "api", random)
    api.start()
    for number in range(7):
        if number == 1:  # Of the same time: the oldest task does not tell these apart.
            await api.submit_batch("batch", HOT, [None, None])
        else:
            await api.submit(f"request-{number}", HOT, None)
        await asyncio.sleep(INTERVAL_SECONDS)
    for _ in range(4):
        world.queue.messages.pop()
    recovery = _recovery(world, api)
    for _ in range(60):
        await recovery.run_once()
        await asyncio.sleep(INTERVAL_SECONDS)
    api.process.kill()
    waiting = [decode(raw).session_id for raw in reversed(world.queue.messages)]
    oldest_first = [session.id for session in reversed(await world.sessions())]
    if waiting != oldest_first:
        raise Violation(
            f"{len(waiting)} tasks for {len(oldest_first)} sessions, or in the wrong order"
        )


def run_unsound() -> None:
    """More sessions than a batch that cannot be refunded, before one that can, and a lost task.
    Raises Violation unless the first run of recovery does what the others need, and the sessions
    are refunded once they are repaired."""
    run(_unsound())


async def _unsound() -> None:
    random = Random(0)
    world = World(PlannedFates({}))
    count = 2 * RECOVERY.batch
    await world.accounts.grant(HOT, count, note="simulated")
    api = Api(world, "api", random)
    api.start()
    for number in range(count):
        await api.submit(f"request-{number}", HOT, None)
    await asyncio.sleep(RECOVERY.requeue_after.total_seconds())
    *unsound, sound, lost = [session.id for session in reversed(await world.sessions())]
    for session_id in (*unsound, sound):
        world.repo.overwrite(session_id, status=SessionStatus.FAILED)
    world.repo.unsound.update(unsound)
    world.external_failures.update(unsound, [sound])
    world.queue.messages.clear()
    recovery = _recovery(world, api)
    with suppress(IllegalTransition):
        await recovery.run_once()
    refunded = {entry.session_id for entry in world.accounts.entries if entry.kind == "refund"}
    pushed = [decode(raw).session_id for raw in world.queue.messages]
    named = {session.id for session in recovery.take_blocked()}
    if (refunded, pushed, named) != ({sound}, [lost], set(unsound)):
        raise Violation(f"{refunded} were refunded, {pushed} pushed and {named} named")
    world.repo.repaired = True
    await asyncio.sleep(RECOVERY.blocked_again_after.total_seconds())
    await recovery.run_once()
    api.process.kill()
    if not await all_refunded(world):
        raise Violation("a session that was repaired has no refund")


def _recovery(world: World, api: Api) -> Recovery:
    return Recovery(
        sessions=world.repo,
        recovery_repo=world.repo,
        queue=world.queue,
        storage=world.storage,
        uploads=world.storage,
        tokens=NO_TOKENS,
        webhooks=NO_WEBHOOKS,
        workers=NO_WORKERS,
        policy=RECOVERY,
        new_id=api.new_id,
        clock=world.clock.now,
    )


def run_unpublished() -> None:
    """No change is published. Raises Violation unless streams tell of each change within a round,
    also of a session that was created after a stream of all its owner's sessions began."""
    run(_unpublished())


async def _unpublished() -> None:
    world = World(FixedFates("publish", Fate.UNREACHED))
    mood = Mood(random=Random(0), steady_seconds=2.0)
    told: list[dict[UUID, datetime]] = [{}, {}]
    async with _sessions_in(world, mood, count=2) as api:
        ids = [session.id for session in await world.sessions()]
        reading = [
            asyncio.create_task(_watch(world, api, which, told[number]))
            for number, which in enumerate((ids, None))
        ]
        await asyncio.sleep(0.5)
        await world.accounts.grant(HOT, 1, note="simulated")
        await api.submit("late", HOT, None)
        await settle(world)
        await asyncio.sleep(2 * ROUND_SECONDS)
        for task in reading:
            task.cancel()
    sessions = await world.sessions()
    for known, seen in zip((ids, [one.id for one in sessions]), told, strict=True):
        _require_told([one for one in sessions if one.id in known], seen, ROUND_SECONDS + 0.2)
    await world.check_settled()


def run_broken_feed() -> None:
    """Sessions that end while the feed is broken. Raises Violation unless a stream tells of them as
    soon as the feed is back, and not with the rounds."""
    run(_broken_feed())


async def _broken_feed() -> None:
    world = World(PlannedFates({}))
    await world.accounts.grant(HOT, 8, note="simulated")
    api = Api(world, "api", Random(0))
    api.start()
    for number in range(8):
        await api.submit(f"request-{number}", HOT, None)
    told: dict[UUID, datetime] = {}
    ids = [session.id for session in await world.sessions()]
    reading = asyncio.create_task(_watch(world, api, ids, told))
    await asyncio.sleep(2.5 * ROUND_SECONDS)
    world.changes.break_off()
    for session_id in ids:
        world.repo.overwrite(session_id, status=SessionStatus.FAILED)
    world.external_failures.update(ids)
    await asyncio.sleep(2 * ROUND_SECONDS)
    reading.cancel()
    api.process.kill()
    _require_told(await world.sessions(), told, ROUND_SECONDS / 2)


def run_failed_reads() -> None:
    """Every read fails for a while, and sessions end meanwhile. Raises Violation unless a stream
    tells of them with the first round after that."""
    run(_failed_reads())


async def _failed_reads() -> None:
    fates = FixedFates("api newer", Fate.DONE)
    world, mood = World(fates), Mood(random=Random(0), steady_seconds=2.0)
    told: dict[UUID, datetime] = {}
    async with _sessions_in(world, mood, count=4) as api:
        ids = [session.id for session in await world.sessions()]
        reading = asyncio.create_task(_watch(world, api, ids, told))
        await asyncio.sleep(1)
        fates.fate = Fate.REFUSED
        await settle(world)
        fates.fate = Fate.DONE
        await asyncio.sleep(ROUND_SECONDS + 0.2)
        reading.cancel()
    if told.keys() != set(ids):
        raise Violation(f"{told} were told of {ids}")


async def _watch(
    world: World, api: Api, ids: Sequence[UUID] | None, told: dict[UUID, datetime]
) -> None:
    """Record when a stream tells that a session is final."""
    async with api.watching.watch(Caller(owner=HOT), ids) as watch:
        while (news := await watch.next()) is not None:
            for session in news:
                if session.status.is_final:
                    told[session.id] = world.clock.now()


def _require_told(
    sessions: Sequence[GenerationSession], told: Mapping[UUID, datetime], seconds: float
) -> None:
    for session in sessions:
        at, ended_at = told.get(session.id), session.completed_at
        if at is None or ended_at is None or at > ended_at + timedelta(seconds=seconds):
            raise Violation(f"{session.id} ended at {ended_at}, and was told at {at}")


def run_dead_endpoint() -> None:
    """An endpoint that is dead, with a backlog. Raises Violation unless each of its pauses costs
    one message at most, another endpoint is served at once, and nothing is dropped."""
    run(_dead_endpoint())


async def _dead_endpoint() -> None:
    world = World(PlannedFates({}))
    world.webhooks = webhooks = Webhooks(world, Random(0))
    await webhooks.add(USER, Temper.DEAD, tests=100)
    await webhooks.add(STORE)
    dead, healthy = webhooks.outbox.endpoints()
    worker = WorkerProcess(world, "worker", Random(0), Mood(random=Random(0)))
    worker.start()
    for number in range(60):
        await webhooks.outbox.add_test(UUID(int=number), healthy.id, STORE)
        await asyncio.sleep(1)
        if world.violations:
            raise world.violations[0]
    sent = sum(one.attempt_count for one in webhooks.outbox.written() if one.endpoint_id == dead.id)
    waits = [
        one.attempts[0].at - one.created_at
        for one in webhooks.outbox.written()
        if one.endpoint_id == healthy.id and one.attempts
    ]
    at_most = DISPATCH.open_after + 60 / (DISPATCH.probe_every.total_seconds() / 2)
    if not DISPATCH.open_after < sent <= at_most or max(waits) > timedelta(seconds=1.5):
        raise Violation(f"{sent} messages to a dead endpoint; another one waited {max(waits)}")
    await webhooks.recover()
    if not await webhooks.delivered():
        raise Violation("webhooks are not delivered")
    worker.process.kill()
    await world.check_settled()


SITUATIONS: Sequence[Callable[[], None]] = (
    run_backlog,
    run_long_work,
    run_shortage,
    run_blip,
    run_repetitions,
    run_repeated_batches,
    run_unsound,
    run_cancellation,
    run_unpublished,
    run_broken_feed,
    run_failed_reads,
    run_dead_endpoint,
)
