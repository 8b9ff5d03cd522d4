"""Money, work and what owners are told survive on real processes.

More: ``make chaos SECONDS=... SEED=...``.
"""

import asyncio

from tests.chaos.run import run

SECONDS = 60.0
SEED = 1
CHECKED_STREAMS = (
    "streams opened",
    "streams resumed",
    "ends seen in streams",
    "streams closed after the end",
    "streams complete",
    "intruders refused",
    "ends due in open streams of all",
    "waits ended",
)
CHECKED_WEBHOOKS = ("accepted", "verified", "verified by old and new secret")


def test_random_faults() -> None:
    """Whatever is killed, frozen, lost or locked: the books are correct at every look, every answer
    is true, everything settles within the bound after the last fault, and every owner is told of
    every end, by streams, waits and webhooks. Each kind of check has had something to check."""
    report = asyncio.run(run(seconds=SECONDS, seed=SEED))

    assert not report.violations, str(report)
    assert report.sessions["completed"]
    assert report.answers["503"]
    assert report.answers["200"]
    assert report.answers["202"]
    assert report.kills
    assert [name for name in CHECKED_STREAMS if not report.streams[name]] == []
    assert [name for name in CHECKED_WEBHOOKS if not report.webhooks[name]] == []
