"""What counting costs a submission: ``python -m tests.bench.counting``. CPU time of one thread."""

import sys
import time
from collections.abc import Callable
from timeit import repeat

from config.metrics import HTTP_REQUESTS, HTTP_SECONDS, SUBMISSIONS

ROUNDS, TIMES = 9, 100_000
BUDGET_US = 3.0
"""For all telemetry of a submission."""


def count_submission() -> None:
    """All that one submission counts."""
    HTTP_REQUESTS.inc("POST", "/api/v1/generations", 202)
    HTTP_SECONDS.observe(0.0007, "POST", "/api/v1/generations")
    SUBMISSIONS.inc("accepted")


def cost_us(work: Callable[[], object]) -> float:
    """The least CPU time of one call, in microseconds."""
    return min(repeat(work, number=TIMES, repeat=ROUNDS, timer=time.thread_time)) / TIMES * 1e6


def main() -> int:
    """Exit code 1 beyond the budget."""
    rows = {
        "a counter": lambda: SUBMISSIONS.inc("accepted"),
        "a histogram": lambda: HTTP_SECONDS.observe(0.0007, "POST", "/api/v1/generations"),
        "a submission": count_submission,
    }
    costs = {name: cost_us(work) for name, work in rows.items()}
    for name, cost in costs.items():
        sys.stdout.write(f"{name:14} {cost:.2f} us\n")
    return int(costs["a submission"] > BUDGET_US)


if __name__ == "__main__":
    sys.exit(main())
