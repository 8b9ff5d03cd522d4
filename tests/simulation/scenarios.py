"""Whole runs: random ones by seed, and short ones with planned faults."""

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from domain.callers import Caller
from domain.credits import Owner
from domain.endpoints import Delivery
from domain.sessions import SessionStatus
from tests.simulation.actors import (
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
    PlannedFates,
    RandomFates,
)
from tests.simulation.limits import NEWCOMERS, SHOPPER, TOKEN_ID, a_budget
from tests.simulation.running import HOT, run, settle
from tests.simulation.streams import LAST_STATE_SECONDS, follow_things
from tests.simulation.webhooks import TESTS, Temper, Webhooks
from tests.simulation.world import Violation, World
from tests.support.clock import loop_time
from tests.support.examples import EXTREMES, STORE, USER, with_created_at

FAULTY_SECONDS = 30.0
WEBHOOKS_EVERY = 5
"""One seed in so many has webhooks, which cost two fifths of a run."""
STRANGE = (b"{", b"[]", b'{"version": 9}', *map(with_created_at, EXTREMES))
CALLERS: Sequence[Caller | Owner] = (*[HOT] * 4, USER, STORE, SHOPPER, SHOPPER, *NEWCOMERS)
"""Whom a random run's requests come from; the hot store is in it more often."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Summary:
    """What happened in a run."""

    sessions: int
    statuses: Counter[str]
    answers: Counter[int]
    faults: Counter[Fate]
    messages: Sequence[Delivery]
    """The webhooks of the run, if it has any."""
    settled_after_seconds: float


def run_seed(seed: int) -> Summary:
    """A random run. Raises Violation, which names the seed; the same seed gives the same run."""
    try:
        return run(_random_run(Random(seed), has_webhooks=seed % WEBHOOKS_EVERY == 0))
    except Violation as violation:
        raise Violation(f"seed {seed}: {violation}") from violation


def run_plan(
    plan: Mapping[int, Fate], *, cancel_after: float | None = None, has_webhook: bool = False
) -> list[str]:
    """One request, which may be cancelled after some seconds, and of whose end an endpoint may be
    told, with faults at the calls with these numbers. Returns the calls that were made until it was
    settled. Raises Violation, which names the plan."""
    return _run_plan(PlannedFates(plan), None, cancel_after, has_webhook=has_webhook)


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
    fates: PlannedFates,
    effects: set[int] | None,
    cancel_after: float | None,
    *,
    has_webhook: bool = False,
) -> list[str]:
    try:
        return run(_planned_run(fates, effects, cancel_after, has_webhook=has_webhook))
    except Violation as violation:
        raise Violation(f"{fates.plan}: {violation}") from violation


async def _random_run(random: Random, *, has_webhooks: bool) -> Summary:
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
    if has_webhooks:
        world.webhooks = await _webhooks(random, world)
    for actor in actors:
        actor.start()
    living = asyncio.create_task(keep_alive(actors))
    breaking = asyncio.create_task(_break_things(random, world, actors, mood))
    cancelling = asyncio.create_task(_cancel_things(random, world, apis))
    following = asyncio.create_task(follow_things(random, world, apis))
    clients = [asyncio.create_task(_client(random, apis, f"client{number}")) for number in range(6)]
    if world.webhooks is not None:
        await world.webhooks.live(STORE, seconds=FAULTY_SECONDS)
    else:
        await asyncio.sleep(FAULTY_SECONDS)
    breaking.cancel()
    cancelling.cancel()
    fates.calm = True
    world.storage.full = False
    world.repo.repaired = True
    if world.webhooks is not None:
        await world.webhooks.recover()
    await asyncio.gather(*clients)
    settled_after = await settle(world)
    await _told_the_last_state(following)
    await _check_delivered(world)
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
        messages=[] if world.webhooks is None else list(world.webhooks.outbox.written()),
        settled_after_seconds=settled_after,
    )


async def _webhooks(random: Random, world: World) -> Webhooks:
    """Endpoints of two owners, of which one may have a backlog."""
    webhooks = Webhooks(world, random)
    tempers = list(Temper)
    await webhooks.add(HOT, random.choice(tempers), tests=random.choice((0, 0, TESTS)))
    await webhooks.add(HOT, random.choice(tempers))
    await webhooks.add(USER, random.choice(tempers))
    return webhooks


async def _check_delivered(world: World) -> None:
    """Wait until every message is delivered, except those to disabled endpoints."""
    if world.webhooks is not None and not await world.webhooks.delivered():
        raise Violation("webhooks are not delivered")


async def _told_the_last_state(following: asyncio.Task[None]) -> None:
    """Wait until each client that follows sessions has their last states."""
    try:
        async with asyncio.timeout(LAST_STATE_SECONDS):
            await following
    except TimeoutError as error:
        raise Violation("a stream missed its end") from error


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
    or one that another item has, also by the key of the batch."""
    known = (None, key, f"{name}/0", f"{name}/1")
    keys = [random.choice(known) for _ in range(random.randrange(1, 5))]
    batch_key = random.choice((None, name))
    copies = random.choice((1, 1, 2)) if batch_key or any(keys) else 1
    await asyncio.gather(
        *(
            random.choice(apis).submit_batch(f"{name}-batch-{copy}", caller, keys, batch_key)
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
    fates: PlannedFates, effects: set[int] | None, cancel_after: float | None, *, has_webhook: bool
) -> list[str]:
    random = Random(0)
    world = World(fates)
    world.effects = effects
    if has_webhook:
        world.webhooks = Webhooks(world, random)
        await world.webhooks.add(HOT)
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
    await settle(world)
    await _check_delivered(world)
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
