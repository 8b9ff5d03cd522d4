"""``python -m tests.simulation.mutants``: can the simulation fail?

Each mutant removes one guard, and the simulation must find a violation. Exits 1 if one survives.
"""

import sys
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from itertools import combinations

import structlog

from tests.simulation.batch_mutants import BATCH_MUTANTS
from tests.simulation.cancel_mutants import CANCEL_MUTANTS
from tests.simulation.fates import FAULTS
from tests.simulation.replacing import Mutant
from tests.simulation.scenarios import run_plan, run_seed
from tests.simulation.situations import SITUATIONS
from tests.simulation.submit_mutants import SUBMIT_MUTANTS
from tests.simulation.watch_mutants import WATCH_MUTANTS
from tests.simulation.webhook_mutants import WEBHOOK_MUTANTS
from tests.simulation.work_mutants import WORK_MUTANTS
from tests.simulation.world import Violation

SEEDS = 1_000
CPU_SECONDS = 90.0

MUTANTS: Sequence[Mutant] = (
    *WORK_MUTANTS,
    *SUBMIT_MUTANTS,
    *CANCEL_MUTANTS,
    *WATCH_MUTANTS,
    *BATCH_MUTANTS,
    *WEBHOOK_MUTANTS,
)


def caught(mutant: Mutant) -> str | None:
    """Which run found a violation; None if the mutant survives."""
    with mutant():
        for name, runs in (("scenario", _scenarios()), ("seed", _seeds()), ("plan", _plans())):
            deadline = time.process_time() + CPU_SECONDS
            for number, run in enumerate(runs, 1):
                try:
                    run()
                except Violation:
                    return f"{name} {number}"
                if time.process_time() > deadline:
                    break
    return None


def _scenarios() -> Iterator[Callable[[], object]]:
    yield from SITUATIONS


def _seeds() -> Iterator[Callable[[], object]]:
    for seed in range(SEEDS):
        yield partial(run_seed, seed)


def _plans() -> Iterator[Callable[[], object]]:
    """One fault at every call, then two."""
    calls = range(len(run_plan({})))
    for fault in FAULTS:
        for first in calls:
            yield partial(run_plan, {first: fault})
    for first, second in combinations(calls, 2):
        for one in FAULTS:
            for other in FAULTS:
                yield partial(run_plan, {first: one, second: other})


def main() -> None:
    """Print which run caught each mutant. Exits 1 if one survives."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    survivors = 0
    for mutant in MUTANTS:
        by = caught(mutant)
        survivors += by is None
        print(f"{mutant.__name__:36} {by or 'SURVIVED'}", flush=True)  # noqa: T201
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
