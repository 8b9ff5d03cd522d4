"""A worker takes no task once the provider's budget of the day is spent. On virtual time, which
begins at noon (UTC)."""

import asyncio
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from structlog.testing import capture_logs

from adapters.workers.memory import InMemoryWorkerRepo
from domain.budget import Budget
from domain.operator_ports import Controls, WorkerState
from domain.sessions import SessionStatus, Usage
from entrypoints.worker import OneShotWorker, Worker, WorkerLimits
from entrypoints.worker.reporting import REPORT_SECONDS, Reporting
from tests.support.clock import START, VirtualTimeLoop
from tests.support.service import Service, seeded_random

pytestmark = pytest.mark.anyio

ME = uuid4()
UNTIL_MIDNIGHT = timedelta(hours=12)
PRICE = Decimal("0.10")


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def logs() -> Iterator[list[MutableMapping[str, Any]]]:
    with capture_logs() as captured:
        yield captured


class Reports(InMemoryWorkerRepo):
    """``others`` is what other workers' pictures of the day have cost. ``asked`` counts the reports
    that ask for the sum."""

    def __init__(self, service: Service) -> None:
        super().__init__(
            clock=service.clock.now,
            pauses={},
            spent_since=lambda since: service.repo.spent_since(since) + self.others,
        )
        self.others = Decimal(0)
        self.asked = 0

    async def report(self, state: WorkerState, *, with_spending: bool = False) -> Controls:
        self.asked += with_spending
        return await super().report(state, with_spending=with_spending)


class Rig:
    def __init__(self, *, budget: str | None) -> None:
        self.service = Service()
        self.service.generator.usage = Usage(provider="openai", estimated_cost_usd=PRICE)
        self.reports = Reports(self.service)
        clock = self.service.clock.now
        self.budget = None if budget is None else Budget(Decimal(budget), clock=clock)

    def worker(self, kind: type[Worker] = Worker, *, slots: int = 1) -> Worker:
        return kind(
            queue=self.service.queue,
            generation=self.service.generation(),
            recovery=None,
            limits=WorkerLimits(
                concurrency=slots, pop_seconds=1, drain_seconds=25, recovery_seconds=2
            ),
            random=seeded_random(),
            reporting=Reporting(
                workers=self.reports,
                worker_id=ME,
                host="host-a",
                pid=7,
                version="1.2.3",
                started_at=START,
                clock=self.service.clock.now,
            ),
            budget=self.budget,
        )

    @asynccontextmanager
    async def running(self, *, slots: int = 1) -> AsyncIterator[None]:
        worker = self.worker(slots=slots)
        run = asyncio.create_task(worker.run())
        try:
            yield
        finally:
            worker.stop()
            await run

    async def statuses(self) -> list[SessionStatus]:
        """Oldest first."""
        return [session.status for session in reversed(await self.service.sessions())]

    def state(self) -> WorkerState:
        """The worker's latest report."""
        return self.reports.states[ME]


DONE, WAITS = SessionStatus.COMPLETED, SessionStatus.QUEUED


async def test_own_pictures_spend_the_budget_at_once() -> None:
    """Of five, two are made before any report could tell what they cost; the others wait."""
    rig = Rig(budget="0.20")
    await rig.service.backlog(5)

    async with rig.running():
        await asyncio.sleep(REPORT_SECONDS / 2)
        early = await rig.statuses()
        await asyncio.sleep(600)

    assert early == [DONE, DONE, WAITS, WAITS, WAITS]
    assert await rig.statuses() == early


async def test_own_picture_counts_once() -> None:
    """By the sum, once that has it."""
    rig = Rig(budget="0.30")
    await rig.service.backlog(2)
    async with rig.running():
        await asyncio.sleep(2 * REPORT_SECONDS)
        await rig.service.backlog(2)
        await asyncio.sleep(600)

    assert await rig.statuses() == [DONE, DONE, DONE, WAITS]


async def test_slot_that_waits_for_a_task_gives_it_back() -> None:
    """The budget was left when the slot began to wait, and another slot has spent it since."""
    rig = Rig(budget="0.10")
    async with rig.running(slots=2):
        await asyncio.sleep(0.1)
        await rig.service.submitted()
        await asyncio.sleep(0.01)
        await rig.service.submitted()
        await asyncio.sleep(600)

    assert await rig.statuses() == [DONE, WAITS]
    assert len(rig.service.waiting()) == 1


async def test_pictures_of_other_workers_spend_it_too() -> None:
    """With the next report."""
    rig = Rig(budget="50")
    async with rig.running():
        await asyncio.sleep(1)
        rig.reports.others = Decimal(50)
        await asyncio.sleep(REPORT_SECONDS)
        await rig.service.submitted()
        await asyncio.sleep(600)

    assert await rig.statuses() == [WAITS]


async def test_budget_that_was_spent_before_the_start() -> None:
    """The first report comes before the first task."""
    rig = Rig(budget="50")
    rig.reports.others = Decimal(50)
    await rig.service.submitted()

    async with rig.running():
        await asyncio.sleep(60)

    assert await rig.statuses() == [WAITS]


async def test_report_and_log_say_why(logs: list[MutableMapping[str, Any]]) -> None:
    """As an open circuit until midnight; the log has one line a day."""
    rig = Rig(budget="50")
    rig.reports.others = Decimal(60)
    async with rig.running():
        await asyncio.sleep(3 * REPORT_SECONDS)
        state = rig.state()

    (line,) = [each for each in logs if each["event"] == "budget_spent"]
    cause = f"provider budget of $50.00 for {START.date()} is spent"
    assert state.circuit_cause == line["cause"] == cause
    assert state.circuit_until is not None
    off = abs(state.circuit_until - (START + UNTIL_MIDNIGHT))
    assert off < timedelta(seconds=1)
    assert line["log_level"] == "error"


async def test_next_day_begins_with_the_whole_budget() -> None:
    """What waited is worked on soon after midnight, and no circuit is reported."""
    rig = Rig(budget="0.10")
    await rig.service.backlog(2)
    async with rig.running():
        await asyncio.sleep(UNTIL_MIDNIGHT.total_seconds() - 60)
        before = await rig.statuses()
        await asyncio.sleep(120)

    assert before == [DONE, WAITS]
    assert await rig.statuses() == [DONE, DONE]


async def test_without_a_budget_nothing_is_summed() -> None:
    """The sum would read the day's sessions every few seconds."""
    rig = Rig(budget=None)
    rig.reports.others = Decimal(1_000_000)
    await rig.service.backlog(3)

    async with rig.running():
        await asyncio.sleep(60)

    assert await rig.statuses() == [DONE] * 3
    assert rig.reports.asked == 0


async def test_one_shot_worker_respects_the_budget() -> None:
    """It leaves the tasks in the queue, and says that something is left."""
    rig = Rig(budget="50")
    rig.reports.others = Decimal(50)
    await rig.service.submitted()

    did_all = await rig.worker(OneShotWorker).run()

    assert not did_all
    assert await rig.statuses() == [WAITS]
    assert len(rig.service.waiting()) == 1
