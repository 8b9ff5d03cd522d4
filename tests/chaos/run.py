"""A run: load and faults for a while, then time to settle, then the checks."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from datetime import UTC, datetime
from random import Random

from tests.chaos import told
from tests.chaos.checks import LOOK_SECONDS, Books, Watch, at_the_end, describe
from tests.chaos.deployment import Stage, deployed
from tests.chaos.faults import Faults
from tests.chaos.followers import Followers
from tests.chaos.load import Journal, put_load_on, request_for_each
from tests.chaos.receiver import DELIVERY_SECONDS, Receiver
from tests.chaos.telemetry import CellFiles, Compared, compare, of_page

REST_SECONDS = 6.0
"""By then the last late effects have happened, such as statements that waited for a lock."""
CRASHES = ("_crashed", "unexpected_error", "Traceback")
"""Signs of an unexpected error in a program's log."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What happened."""

    sessions: Counter[str]
    answers: Counter[str]
    sightings: Counter[str]
    faults: Counter[str]
    kills: int
    streams: Counter[str]
    webhooks: Counter[str]
    looks: int
    written_externally: int
    settled_after_seconds: float
    told_after_seconds: float
    slowest_session_seconds: float
    telemetry: Compared
    violations: list[str]

    def __str__(self) -> str:
        lines = [
            f"sessions: {_listed(self.sessions)}",
            f"answers: {_listed(self.answers)}",
            f"status requests and cancels: {_listed(self.sightings)}",
            f"faults: {_listed(self.faults)}",
            f"kills: {self.kills}",
            f"streams and waits: {_named(self.streams)}",
            f"webhooks: {_named(self.webhooks)}",
            f"books checked {self.looks} times;"
            f" {self.written_externally} rows written by the external consumer",
            f"settled {self.settled_after_seconds:.1f} s after the last fault;"
            f" the slowest session took {self.slowest_session_seconds:.1f} s,"
            f" the last message was delivered {self.told_after_seconds:.1f} s after that",
            str(self.telemetry),
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*lines, *self.violations])


def _listed(counts: Counter[str]) -> str:
    return f"{counts.total()}: {_named(counts)}"


def _named(counts: Counter[str]) -> str:
    return ", ".join(f"{name} {counts[name]}" for name in sorted(counts))


async def run(*, seconds: float, seed: int, only_kills: bool = False) -> Report:
    """Faults for ``seconds``, chosen by ``seed``. Their timing depends on the machine."""
    async with deployed() as stage:
        receiver = Receiver(stage, seed=seed)
        async with receiver.running():
            return await _run(stage, receiver, seconds, seed, only_kills=only_kills)


async def _run(
    stage: Stage, receiver: Receiver, seconds: float, seed: int, *, only_kills: bool
) -> Report:
    loop = asyncio.get_running_loop()
    began = loop.time()

    def say(what: str) -> None:
        print(f"{loop.time() - began:7.2f} {what}", flush=True)  # noqa: T201

    journal, watch = Journal(), Watch(stage, say)
    faults = Faults(stage, Random(seed), say, only_kills=only_kills)
    followers = Followers(stage, seed=seed)
    await followers.open()
    files = CellFiles(stage.deployment.folder)
    watching = asyncio.gather(watch.run(), files.run())
    over = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            load = put_load_on(stage, journal, over, seed=seed, accepted=followers.accepted)
            written = group.create_task(load)
            group.create_task(_rotate(receiver, faults, began + seconds / 3))
            await faults.run(began + seconds)
            say("no more faults")
            calm = loop.time()
            receiver.recover()
            over.set()
        ended = await stage.revive()
        await stage.is_ready()
        calm_since = datetime.now(UTC)
        await followers.all_listen(told.END_SECONDS)
        await request_for_each(stage, journal, accepted=followers.accepted)
        books = await _settle(watch, calm + stage.settle_bound_seconds)
        settled_after = loop.time() - calm
        say("all settled" if books.is_settled() else "not settled")
        resting = asyncio.create_task(asyncio.sleep(REST_SECONDS))
        told_after = await _deliver(stage, loop.time() + DELIVERY_SECONDS)
        say(f"waited {told_after:.1f} s for the last message")
        await resting
    finally:
        await followers.finish(told.END_SECONDS)
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    books = await watch.look()
    files.look()
    compared = compare(books, stage.starts, faults.hits, files)
    compared.problems += await _wrong_page(stage, files)
    found = [
        *watch.violations,
        *at_the_end(books, journal, only_kills=only_kills),
        *told.of_streams(books, followers.told, calm_since=calm_since),
        *told.of_webhooks(books, receiver, journal),
        *await told.shown_otherwise(stage, receiver),
    ]
    violations = [describe(violation, books, journal, stage) for violation in found]
    violations += [f"{name} ended by itself" for name in ended]
    violations += [
        *compared.problems,
        *faults.problems,
        *await _verify(stage),
        *stage.log_of(*CRASHES),
    ]
    return Report(
        sessions=Counter(
            f"{row['status']} {row['error_code'] or ''}".strip() for row in books.sessions.values()
        ),
        answers=Counter(
            f"{answer.status or 'none'}{' replayed' if answer.replayed else ''}"
            for answer in journal.answers
        ),
        sightings=Counter(
            f"{'cancel' if sighting.cancel else 'status'} {sighting.status or 'none'}"
            for sighting in journal.sightings
        ),
        faults=faults.counts,
        kills=faults.kills,
        streams=followers.told.counts,
        webhooks=told.counts_of_webhooks(receiver),
        looks=watch.looks,
        written_externally=written.result(),
        settled_after_seconds=settled_after,
        told_after_seconds=told_after,
        slowest_session_seconds=max(
            (
                (row["completed_at"] - row["created_at"]).total_seconds()
                for row in books.sessions.values()
                if row["completed_at"]
            ),
            default=0.0,
        ),
        telemetry=compared,
        violations=violations,
    )


async def _settle(watch: Watch, deadline: float) -> Books:
    """The books once everything is settled, or at the deadline."""
    loop = asyncio.get_running_loop()
    while True:
        books = await watch.look()
        if books.is_settled() or loop.time() > deadline:
            return books
        await asyncio.sleep(LOOK_SECONDS)


async def _rotate(receiver: Receiver, faults: Faults, at: float) -> None:
    """At that time of the event loop, or as soon as the database has no fault."""
    loop = asyncio.get_running_loop()
    await asyncio.sleep(at - loop.time())
    async with faults.sparing("postgres"):
        await receiver.rotate()


async def _deliver(stage: Stage, deadline: float) -> float:
    """The seconds until no message was pending, or until the deadline."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while True:
        if await told.pending_messages(stage) == 0 or loop.time() > deadline:
            return loop.time() - began
        await asyncio.sleep(LOOK_SECONDS)


async def _verify(stage: Stage) -> list[str]:
    verified = await stage.blocking(stage.deployment.wearon, "credits", "verify", check=False)
    return [] if verified.returncode == 0 else [verified.stdout + verified.stderr]


async def _wrong_page(stage: Stage, files: CellFiles) -> list[str]:
    """The page of the API has what its processes counted, those that were killed included."""
    api = stage.latest("api")
    shown = await of_page(f"http://127.0.0.1:{api.metrics_port}/metrics")
    counted = files.counted(api)
    return [] if shown == counted else [f"/metrics shows {shown}; counted were {counted}"]
