"""``python -m tests.simulation SEEDS [FIRST]``: that many seeds, beginning with FIRST."""

import sys
from collections import Counter

import structlog

from tests.simulation.fates import Fate
from tests.simulation.scenarios import run_seed


def main(seeds: int, first: int = 0) -> None:
    """Run the seeds and print a summary. The first violation ends the program with exit code 1."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    statuses: Counter[str] = Counter()
    faults: Counter[Fate] = Counter()
    messages: Counter[str] = Counter()
    slowest = 0.0
    for seed in range(first, first + seeds):
        summary = run_seed(seed)
        statuses += summary.statuses
        faults += summary.faults
        messages.update(one.status for one in summary.messages)
        slowest = max(slowest, summary.settled_after_seconds)
    print(f"{seeds} seeds, no violation; sessions: {dict(statuses)}")  # noqa: T201
    print(f"webhooks: {dict(messages)}")  # noqa: T201
    print(f"faults: {dict(faults)}")  # noqa: T201
    print(f"slowest to settle: {slowest} simulated seconds")  # noqa: T201


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
