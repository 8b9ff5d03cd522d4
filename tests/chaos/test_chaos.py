"""Money and work survive on real processes. More: ``make chaos SECONDS=... SEED=...``."""

import asyncio

from tests.chaos.run import run

SECONDS = 60.0
SEED = 1


def test_random_faults() -> None:
    """Whatever is killed, frozen, lost or locked: the books are correct at every look, every answer
    is true, and everything settles within the bound after the last fault."""
    report = asyncio.run(run(seconds=SECONDS, seed=SEED))

    assert not report.violations, str(report)
    assert report.sessions["completed"]
    assert report.answers["503"]
    assert report.faults
