"""The soak test finds nothing on a small number of tasks. The real one: ``make soak``."""

import asyncio

import pytest

from tests.soak.run import run

pytestmark = pytest.mark.xdist_group("system")


def test_a_few_tasks() -> None:
    """All end as they should, nothing is lost, the books are right; and memory was looked at."""
    report = asyncio.run(run(tasks=40))

    assert not report.violations, str(report)
    assert (report.submitted, report.sessions.total(), report.lost) == (40, 40, 0)
    assert report.sessions["completed"] > report.sessions["failed"] > 0
    assert report.warm()[-1].worker_kb > 0
