"""Whole runs: random ones by seed, and short ones with planned faults."""

import asyncio
from collections import Counter
from collections.abc import AsyncIterator, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from itertools import product
from random import Random
from typing import Any, TypeVar

from adapters.queue.payload import decode
from domain.callers import Caller
from domain.credits import Channel, Owner
from domain.errors import IllegalTransition
from domain.recovery import Recovery
from domain.sessions import CANCELLED, SessionStatus
from tests.simulation.actors import (
    INTERVAL_SECONDS,
    RECOVERY,
    WORK,
    Actor,
    Api,
    ExternalConsumer,
    Mood,
    WorkerProcess,
    keep_alive,
)
from tests.simulation.fates import (
    FAULTS,
    SAME_WITHOUT_EFFECT,
    Fate,
    NamedFates,
    PlannedFates,
    RandomFates,
)
from tests.simulation.limits import NEWCOMERS, SHOPPER, TOKEN_ID, a_budget
from tests.simulation.streams import LAST_STATE_SECONDS, follow_things
from tests.simulation.world import Killed, Violation, World
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import EXTREMES, NO_TOKENS, NO_WEBHOOKS, STORE, USER, with_created_at

FAULTY_SECONDS = 30.0
STRANGE = (b"{", b"[]", b'{"version": 9}', *map(with_created_at, EXTREMES))
T = TypeVar("T")
HOT = Owner(channel=Channel.B2B, id="hot")
CALLERS: Sequence[Caller | Owner] = (*[HOT] * 4, USER, STORE, SHOPPER, SHOPPER, *NEWCOMERS)
"""Whom a random run's requests come from; the hot store is in it more often."""
BOUND_SECONDS = RECOVERY.settle_bound(
    WORK, interval=timedelta(seconds=INTERVAL_SECONDS)
).total_seconds()


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What happened in a run."""

    sessions: int
    statuses: Counter[str]
    answers: Counter[int]
    faults: Counter[Fate]
    settled_after_seconds: float


def run_seed(seed: int) -> Summary:
    """A random run. Raises Violation, which names the seed; the same seed gives the same run."""
    try:
        return _run(_random_run(Random(seed)))
    except Violation as violation:
        raise Violation(f"seed {seed}: {violation}") from violation


def run_plan(plan: Mapping[int, Fate], *, cancel_after: float | None = None) -> list[str]:
    """One request, which may be cancelled after some seconds, with faults at the calls with these
    numbers. Returns the calls that were made until it was settled. Raises Violation, which names
    the plan."""
    return _run_plan(PlannedFates(plan), effects=None, cancel_after=cancel_after)


def distinct_faults(
    plan: Mapping[int, Fate], *, cancel_after: float | None = None
) -> list[list[Fate]]:
    """Run the plan. Returns for each of its calls the faults that a longer plan may have there:
    of the faults that make the same run, only one."""
    effects: set[int] = set()
    calls = _run_plan(PlannedFates(plan), effects, cancel_after)
    distinct = [fault for fault in FAULTS if fault not in SAME_WITHOUT_EFFECT]
    return [FAULTS if number in effects else distinct for number in range(len(calls))]


def _run_plan(
    fates: PlannedFates, effects: set[int] | None, cancel_after: float | None
) -> list[str]:
    try:
        return _run(_planned_run(fates, effects, cancel_after))
    except Violation as violation:
        raise Violation(f"{fates.plan}: {violation}") from violation


def _run(scenario: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.get_loop().set_exception_handler(_unexpected)
        return runner.run(scenario)


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report unhandled errors, except in the tasks of killed processes."""
    if not isinstance(context.get("exception"), Killed):
        loop.default_exception_handler(context)


async def _random_run(random: Random) -> Summary:
    fates = RandomFates(random, probability=random.choice((0.0, 0.02, 0.1, 0.3)))
    world = World(fates)
    mood = Mood(random=random)
    apis = [Api(world, f"api-{number}", random) for number in (1, 2)]
    workers = [WorkerProcess(world, f"worker-{n}", random, mood) for n in (1, 2)]
    external = [ExternalConsumer(world, "external", random)] if random.random() < 0.5 else []
    actors: list[Actor] = [*apis, *workers, *external]
    for owner, amount in ((HOT, 12), (USER, 3), (STORE, 3)):
        await world.accounts.grant(owner, amount, note="simulated")
    world.repo.budgets[TOKEN_ID] = a_budget(world.clock.now())
    for actor in actors:
        actor.start()
    living = asyncio.create_task(keep_alive(actors))
    breaking = asyncio.create_task(_break_things(random, world, actors, mood))
    cancelling = asyncio.create_task(_cancel_things(random, world, apis))
    following = asyncio.create_task(follow_things(random, world, apis))
    clients = [asyncio.create_task(_client(random, apis, f"client{number}")) for number in range(6)]
    await asyncio.sleep(FAULTY_SECONDS)
    breaking.cancel()
    cancelling.cancel()
    fates.calm = True
    world.storage.full = False
    world.repo.repaired = True
    await asyncio.gather(*clients)
    settled_after = await _settle(world)
    await _told_the_last_state(following)
    if world.violations:
        raise world.violations[0]
    living.cancel()
    for actor in actors:
        actor.process.kill()
    await world.check_settled()
    sessions = await world.sessions()
    return Summary(
        sessions=len(sessions),
        statuses=Counter(session.status for session in sessions),
        answers=Counter(answer.status for answer in world.answers),
        faults=world.faults,
        settled_after_seconds=settled_after,
    )


async def _settle(world: World) -> float:
    """Wait until every session is final, and refunded if it failed. Returns the seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while any(not session.status.is_final for session in await world.sessions()) or (
        world.external_failures and not await _all_refunded(world)
    ):
        if world.violations:
            raise world.violations[0]
        if loop.time() - began > BOUND_SECONDS:
            stuck = [item for item in await world.sessions() if not item.status.is_final]
            raise Violation(f"not settled after {BOUND_SECONDS} s: {stuck}")
        await asyncio.sleep(0.5)
    return loop.time() - began


async def _told_the_last_state(following: asyncio.Task[None]) -> None:
    """Wait until each client that follows sessions has their last states."""
    try:
        async with asyncio.timeout(LAST_STATE_SECONDS):
            await following
    except TimeoutError as error:
        raise Violation("a stream missed its end") from error


async def _all_refunded(world: World) -> bool:
    refunded = {entry.session_id for entry in world.accounts.entries if entry.kind == "refund"}
    failed = {item.id for item in await world.sessions() if item.status == "failed"}
    return failed <= refunded


async def _client(random: Random, apis: list[Api], name: str) -> None:
    """Sends requests now and then, and repeats some with their keys, also concurrently."""
    for number in range(5):
        await asyncio.sleep(random.random() * FAULTY_SECONDS / 5)
        caller = random.choice(CALLERS)
        key = f"{name}-{number}" if random.random() < 0.6 else None
        copies = random.choice((1, 1, 2, 3)) if key else 1
        await asyncio.gather(
            *(
                random.choice(apis).submit(f"{name}-{number}-{copy}", caller, key)
                for copy in range(copies)
            )
        )
        if key and random.random() < 0.5:
            await asyncio.sleep(random.random() * 8)
            await random.choice(apis).submit(f"{name}-{number}-again", caller, key)
        if random.random() < 0.4:
            await _batches(random, apis, f"{name}-{number}", caller, key)


async def _batches(
    random: Random, apis: list[Api], name: str, caller: Caller | Owner, key: str | None
) -> None:
    """Sends a batch, at times twice, also concurrently. Items may have the key of a single request,
    or one that another item has."""
    known = (None, key, f"{name}/0", f"{name}/1")
    keys = [random.choice(known) for _ in range(random.randrange(1, 5))]
    copies = random.choice((1, 1, 2)) if any(keys) else 1
    await asyncio.gather(
        *(
            random.choice(apis).submit_batch(f"{name}-batch-{copy}", caller, keys)
            for copy in range(copies)
        )
    )


async def _break_things(random: Random, world: World, actors: list[Actor], mood: Mood) -> None:
    """Faults that do not hit a single call: of whole processes, of the whole queue, of the storage
    and of the provider."""
    while True:
        await asyncio.sleep(random.random() * 8)
        actor = random.choice(actors)
        match random.randrange(6):
            case 5:
                world.storage.full = not world.storage.full
            case 4:
                mood.busy_until = loop_time() + random.random() * 15
            case 0:
                actor.process.kill()
            case 1:
                actor.process.freeze(random.random() * 20)
            case 2:
                world.queue.messages.clear()
            case 3 if isinstance(actor, WorkerProcess):
                actor.worker.stop()
            case _:
                world.queue.messages.appendleft(random.choice(STRANGE))


async def _cancel_things(random: Random, world: World, apis: list[Api]) -> None:
    """Cancels sessions in any state, most of them while they are processed, some repeatedly."""
    while True:
        await asyncio.sleep(random.random() * 6)
        sessions = list(world.repo.stored())
        if random.random() < 0.7:
            sessions = [one for one in sessions if one.status is SessionStatus.PROCESSING]
        if sessions:
            session = random.choice(sessions)
            for _ in range(random.choice((1, 1, 2))):
                await random.choice(apis).cancel(session)


async def _planned_run(
    fates: PlannedFates, effects: set[int] | None, cancel_after: float | None
) -> list[str]:
    random = Random(0)
    world = World(fates)
    world.effects = effects
    await world.accounts.grant(HOT, 1, note="simulated")
    api = Api(world, "api", random)
    mood = Mood(random=random, steady_seconds=0.5 if cancel_after is None else 3.0)
    worker = WorkerProcess(world, "worker", random, mood, slots=1)
    api.start()
    worker.start()
    living = asyncio.create_task(keep_alive([api, worker]))
    await api.submit("request", HOT, None)
    if cancel_after is not None:
        await asyncio.sleep(cancel_after)
        await _cancel(world, api)
    await asyncio.sleep(2)  # A late charge may still have its effect after its process has died.
    await _settle(world)
    calls = list(fates.calls)
    living.cancel()
    for actor in (api, worker):
        actor.process.kill()
    await world.check_settled()
    return calls


async def _cancel(world: World, api: Api) -> None:
    """Ask to cancel the session, if there is one, until there is an answer."""
    for session in await world.sessions():
        for _ in range(5):
            if await api.cancel(session):
                return
            await asyncio.sleep(1)


def run_repetitions() -> None:
    """A request with a key, repeated in two processes at once and after the end, with every pair of
    faults of its push and of its undo; and with a provider that is busy, so that its session is
    claimed and queued again before an undo. Raises Violation, which names the pair."""
    pairs = [*product(Fate, Fate, (False,)), *((push, Fate.DONE, True) for push in Fate)]
    for push, undo, is_busy in pairs:
        plan = {"api-1 push": push, "api-1 fail_queued": undo}
        try:
            _run(_repetitions(plan, busy_seconds=3.0 if is_busy else 0.0))
        except Violation as violation:
            raise Violation(f"push {push}, undo {undo}, {is_busy}: {violation}") from violation


async def _repetitions(plan: dict[str, Fate], *, busy_seconds: float) -> None:
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
        await asyncio.gather(*(api.submit(f"{api.name}-{number}", HOT, "key") for api in apis))
        await asyncio.sleep(2)  # A late undo may still have its effect.
        await _settle(world)
    living.cancel()
    for actor in actors:
        actor.process.kill()
    await world.check_settled()


def run_long_work() -> None:
    """Work of three leases, without any fault. Raises Violation unless one attempt completes it."""
    _run(_long_work())


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
    await _settle(world)
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
            _run(_cancellation(NamedFates({"announce": fate}), after, at_most))


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
    _run(_shortage())


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
        await _settle(world)
    if not await _all_completed(world) or len(paid) != len(await world.sessions()):
        raise Violation(f"{len(paid)} pictures were paid for: {await world.sessions()}")


def run_blip() -> None:
    """A provider that rejects all calls for longer than the attempts' backoffs together. Raises
    Violation unless every session is completed, after a bounded number of calls."""
    _run(_blip())


async def _blip() -> None:
    world, mood = World(PlannedFates({})), Mood(random=Random(0), steady_seconds=1.0)
    mood.busy_until = loop_time() + WORK.provider_patience.total_seconds() / 2
    async with _sessions_in(world, mood, count=8):
        await _settle(world)
    if not await _all_completed(world) or mood.turned_away > 3 * len(await world.sessions()):
        raise Violation(f"{mood.turned_away} calls were rejected: {await world.sessions()}")


@asynccontextmanager
async def _sessions_in(world: World, mood: Mood, *, count: int) -> AsyncIterator[None]:
    """Two workers, and this many requests."""
    await world.accounts.grant(HOT, count, note="simulated")
    api = Api(world, "api", Random(0))
    actors = [api, *(WorkerProcess(world, f"worker-{n}", Random(n), mood) for n in (1, 2))]
    for actor in actors:
        actor.start()
    for number in range(count):
        await api.submit(f"request-{number}", HOT, None)
    yield
    for actor in actors:
        actor.process.kill()


async def _all_completed(world: World) -> bool:
    return all(session.status is SessionStatus.COMPLETED for session in await world.sessions())


def run_backlog() -> None:
    """A queue that loses the older half of a backlog while no worker runs. Raises Violation unless
    recovery restores it, each task once and the oldest next."""
    _run(_backlog())


async def _backlog() -> None:
    random = Random(0)
    world = World(PlannedFates({}))
    await world.accounts.grant(HOT, 8, note="simulated")
    api = Api(world, "api", random)
    api.start()
    for number in range(8):
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
    _run(_unsound())


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
    if not await _all_refunded(world):
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
        policy=RECOVERY,
        new_id=api.new_id,
        clock=world.clock.now,
    )
