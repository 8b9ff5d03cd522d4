"""Overview: one snapshot of the service for all who ask."""

import asyncio
from datetime import timedelta

import pytest

from adapters.credits.memory import InMemoryCreditRepo
from adapters.operations.memory import InMemoryOperatorReads
from adapters.sessions.memory import InMemorySessionRepo
from domain.errors import DatabaseUnavailable
from domain.operations import FRESH, FRESH_AT_MOST, Overview
from domain.operator_ports import Snapshot
from tests.support.clock import FakeClock

pytestmark = pytest.mark.anyio

MOMENT = timedelta(milliseconds=1)


class Reads(InMemoryOperatorReads):
    """Counts the snapshots that are read. A read lasts until ``open`` is set, takes ``took`` on the
    clock and raises ``error`` if that is set."""

    def __init__(self, clock: FakeClock) -> None:
        accounts = InMemoryCreditRepo(clock=clock.now)
        sessions = InMemorySessionRepo(accounts=accounts, clock=clock.now)
        super().__init__(sessions=sessions, accounts=accounts, clock=clock.now)
        self.began = 0
        self.has_begun = asyncio.Event()
        self.open = asyncio.Event()
        self.open.set()
        self.took = timedelta(0)
        self.error: Exception | None = None
        self._now = clock

    async def snapshot(self) -> Snapshot:
        self.began += 1
        self.has_begun.set()
        await self.open.wait()
        self._now.advance(self.took)
        if self.error is not None:
            raise self.error
        return await super().snapshot()


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
async def reads(clock: FakeClock) -> Reads:
    return Reads(clock)


@pytest.fixture
def overview(reads: Reads, clock: FakeClock) -> Overview:
    return Overview(reads=reads, clock=clock.now)


async def test_snapshot_serves_all_for_two_seconds(
    overview: Overview, reads: Reads, clock: FakeClock
) -> None:
    """Then the next caller gets a new one."""
    first = await overview.snapshot()
    clock.advance(FRESH - MOMENT)
    second = await overview.snapshot()
    clock.advance(MOMENT)
    third = await overview.snapshot()

    assert second is first
    assert third.at == first.at + FRESH
    assert reads.began == 2


async def test_callers_share_a_read(overview: Overview, reads: Reads) -> None:
    """However many come while it is in flight."""
    reads.open.clear()
    callers = [asyncio.create_task(overview.snapshot()) for _ in range(5)]
    await asyncio.wait_for(reads.has_begun.wait(), 10)
    late = asyncio.create_task(overview.snapshot())

    reads.open.set()
    snapshots = await asyncio.gather(*callers, late)

    assert reads.began == 1
    assert len({id(snapshot) for snapshot in snapshots}) == 1


async def test_caller_that_gives_up_ends_no_read(overview: Overview, reads: Reads) -> None:
    """The others get their snapshot."""
    reads.open.clear()
    first, second = [asyncio.create_task(overview.snapshot()) for _ in range(2)]
    await asyncio.wait_for(reads.has_begun.wait(), 10)

    first.cancel()
    await asyncio.wait([first])
    reads.open.set()

    assert await second is await overview.snapshot()
    assert reads.began == 1


async def test_failed_read_is_told_to_its_callers_only(overview: Overview, reads: Reads) -> None:
    """The next caller tries again."""
    reads.error = DatabaseUnavailable("no")
    for _ in range(2):
        with pytest.raises(DatabaseUnavailable):
            await overview.snapshot()
    reads.error = None

    assert isinstance(await overview.snapshot(), Snapshot)
    assert reads.began == 3


@pytest.mark.parametrize(
    ("took", "fresh"),
    [(0.1, FRESH), (0.5, timedelta(seconds=5)), (3, FRESH_AT_MOST)],
)
async def test_slow_snapshot_serves_for_longer(
    overview: Overview, reads: Reads, clock: FakeClock, took: float, fresh: timedelta
) -> None:
    """Ten times as long as it took, with a limit."""
    reads.took = timedelta(seconds=took)
    await overview.snapshot()
    clock.advance(fresh - MOMENT)
    await overview.snapshot()
    before = reads.began
    clock.advance(MOMENT)
    await overview.snapshot()

    assert (before, reads.began) == (1, 2)


async def test_clock_that_is_set_back_makes_no_old_snapshot_fresh(
    overview: Overview, reads: Reads, clock: FakeClock
) -> None:
    """Otherwise it would be shown until the clock is there again."""
    await overview.snapshot()
    clock.advance(-timedelta(hours=1))

    await overview.snapshot()

    assert reads.began == 2
