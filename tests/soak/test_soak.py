"""A short soak test finds nothing. A long one: ``make soak``."""

import asyncio

from tests.soak.run import run


def test_few_tasks() -> None:
    """All sessions end as expected, none is lost, the books are correct, and memory is measured."""
    report = asyncio.run(run(tasks=40))

    assert not report.violations, str(report)
    assert (report.submitted, report.sessions.total(), report.lost) == (40, 40, 0)
    assert report.sessions["completed"] > report.sessions["failed"] > 0
    assert report.warm()[-1].worker_kb > 0
