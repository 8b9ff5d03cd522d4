"""A run: load and faults for a while, then time to settle, then the checks."""

import asyncio
from collections import Counter
from dataclasses import dataclass
from random import Random

from tests.chaos.checks import LOOK_SECONDS, Books, Watch, at_the_end, describe
from tests.chaos.deployment import Stage, deployed
from tests.chaos.faults import Faults
from tests.chaos.load import Journal, put_load_on

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
    looks: int
    written_externally: int
    settled_after_seconds: float
    slowest_session_seconds: float
    violations: list[str]

    def __str__(self) -> str:
        lines = [
            f"sessions: {_listed(self.sessions)}",
            f"answers: {_listed(self.answers)}",
            f"status requests and cancels: {_listed(self.sightings)}",
            f"faults: {_listed(self.faults)}",
            f"books checked {self.looks} times;"
            f" {self.written_externally} rows written by the external consumer",
            f"settled {self.settled_after_seconds:.1f} s after the last fault;"
            f" the slowest session took {self.slowest_session_seconds:.1f} s",
            f"violations: {len(self.violations)}",
        ]
        return "\n".join([*lines, *self.violations])


def _listed(counts: Counter[str]) -> str:
    return f"{counts.total()}: " + ", ".join(f"{name} {counts[name]}" for name in sorted(counts))


async def run(*, seconds: float, seed: int) -> Report:
    """Faults for ``seconds``, chosen by ``seed``. Their timing depends on the machine."""
    async with deployed() as stage:
        return await _run(stage, seconds, seed)


async def _run(stage: Stage, seconds: float, seed: int) -> Report:
    loop = asyncio.get_running_loop()
    began = loop.time()

    def say(what: str) -> None:
        print(f"{loop.time() - began:7.2f} {what}", flush=True)  # noqa: T201

    journal, watch = Journal(), Watch(stage, say)
    faults = Faults(stage, Random(seed), say)
    watching = asyncio.create_task(watch.run())
    over = asyncio.Event()
    try:
        async with asyncio.TaskGroup() as group:
            written = group.create_task(put_load_on(stage, journal, over, seed=seed))
            await faults.run(began + seconds)
            say("no more faults")
            calm = loop.time()
            over.set()
        ended = await stage.revive()
        await stage.is_ready()
        books = await _settle(watch, calm + stage.settle_bound_seconds)
        settled_after = loop.time() - calm
        say("all settled" if books.is_settled() else "not settled")
        await asyncio.sleep(REST_SECONDS)
    finally:
        watching.cancel()
        await asyncio.gather(watching, return_exceptions=True)
    books = await watch.look()
    found = [*watch.violations, *at_the_end(books, journal)]
    violations = [describe(violation, books, journal, stage) for violation in found]
    violations += [f"{name} ended by itself" for name in ended]
    violations += [*faults.problems, *await _verify(stage), *stage.log_of(*CRASHES)]
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
        looks=watch.looks,
        written_externally=written.result(),
        settled_after_seconds=settled_after,
        slowest_session_seconds=max(
            (
                (row["completed_at"] - row["created_at"]).total_seconds()
                for row in books.sessions.values()
                if row["completed_at"]
            ),
            default=0.0,
        ),
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


async def _verify(stage: Stage) -> list[str]:
    verified = await stage.blocking(stage.deployment.wearon, "credits", "verify", check=False)
    return [] if verified.returncode == 0 else [verified.stdout + verified.stderr]
