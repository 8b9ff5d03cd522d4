"""The check of the books: by one process at a time, at its pace, and without false alarms. On
virtual time."""

import asyncio
from collections.abc import Iterator, MutableMapping
from datetime import timedelta
from random import Random
from typing import Any

import pytest
from structlog.testing import capture_logs

from adapters.book_checks.memory import InMemoryBookCheckRepo
from domain.books import BookChecks, BookPolicy
from domain.credits import Discrepancy
from domain.errors import DatabaseUnavailable
from domain.operator_ports import MAX_DISCREPANCIES
from entrypoints.worker.checking import LOOK_SECONDS, CheckLoop
from entrypoints.worker.stop import Stop
from tests.support.clock import FakeClock, VirtualTimeLoop, loop_time

pytestmark = pytest.mark.anyio

SECOND = timedelta(seconds=1)
POLICY = BookPolicy()
WRONG = Discrepancy(subject="b2b:shop", problem="balance 9, but its ledger adds up to 3")
OTHER = Discrepancy(subject="session 1", problem="is failed with 1 debit(s) and 0 refund(s)")

Logs = list[MutableMapping[str, Any]]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs() as captured:
        yield captured


class Rig:
    """``found`` is what one audit after the other finds, and then nothing; each takes
    ``seconds``."""

    def __init__(self) -> None:
        self.found: list[list[Discrepancy] | Exception] = []
        self.seconds = 0.0
        self.audits: list[float] = []
        self.clock = FakeClock(ticks=loop_time)
        self.repo = InMemoryBookCheckRepo(clock=self.clock.now)
        self.books = BookChecks(audit=self._audit, checks=self.repo)

    async def _audit(self, limit: int) -> list[Discrepancy]:
        assert limit == MAX_DISCREPANCIES
        self.audits.append(loop_time())
        await asyncio.sleep(self.seconds)
        found = self.found.pop(0) if self.found else []
        if isinstance(found, Exception):
            raise found
        return found

    async def again_after(self) -> timedelta:
        """How long it takes until the next check is due."""
        began = loop_time()
        while not await self.repo.claim(lease=SECOND):  # noqa: ASYNC110 - costs no time on a virtual loop
            await asyncio.sleep(0.5)
        return timedelta(seconds=loop_time() - began)


@pytest.fixture
def rig() -> Rig:
    return Rig()


async def test_sound_books_are_recorded(rig: Rig) -> None:
    rig.seconds = 0.1
    check = await rig.books.run_once()

    assert check is not None
    assert (check.discrepancies, check.first) == (0, None)
    assert abs(check.took - SECOND / 10) < SECOND / 100
    assert rig.repo.latest is not None


async def test_wrong_books_are_recorded(rig: Rig) -> None:
    """With the first of them, in words."""
    rig.found = [[WRONG, OTHER], [WRONG, OTHER]]
    await rig.books.run_once()

    latest = rig.repo.latest
    assert latest is not None
    assert (latest.discrepancies, latest.first) == (2, f"{WRONG.subject}: {WRONG.problem}")


async def test_what_recovery_puts_right_is_no_discrepancy(rig: Rig) -> None:
    """An external consumer failed a session, which is refunded a moment later; meanwhile it fails
    another one."""
    rig.found = [[OTHER], [Discrepancy(subject="session 2", problem=OTHER.problem)]]
    check = await rig.books.run_once()

    assert check is not None
    assert check.discrepancies == 0
    assert rig.audits[1] - rig.audits[0] == POLICY.confirm_after.total_seconds()


async def test_more_discrepancies_than_are_counted(rig: Rig) -> None:
    """Two audits may then show different ones."""
    many = [Discrepancy(subject=str(n), problem="") for n in range(2 * MAX_DISCREPANCIES)]
    rig.found = [many[:MAX_DISCREPANCIES], many[MAX_DISCREPANCIES:]]
    check = await rig.books.run_once()

    assert check is not None
    assert check.discrepancies == MAX_DISCREPANCIES


async def test_long_description_is_cut(rig: Rig) -> None:
    """The database keeps 500 characters."""
    long = Discrepancy(subject="s" * 300, problem="p" * 300)
    rig.found = [[long], [long]]
    check = await rig.books.run_once()

    assert check is not None
    assert check.first is not None
    assert len(check.first) == 500


async def test_check_that_is_not_due_reads_nothing(rig: Rig) -> None:
    await rig.books.run_once()

    assert await rig.books.run_once() is None
    assert len(rig.audits) == 1


@pytest.mark.parametrize(("seconds", "pause"), [(0.0, 20), (0.2, 20), (3.0, 300)])
async def test_next_check_is_a_hundred_times_as_far_away(
    rig: Rig, seconds: float, pause: int
) -> None:
    """So that audits take at most one percent of one connection."""
    rig.seconds = seconds
    await rig.books.run_once()

    assert abs(await rig.again_after() - pause * SECOND) <= SECOND


async def test_failed_audit_is_repeated_later(rig: Rig) -> None:
    """It took its time too. The earlier result stays."""
    await rig.books.run_once()
    await rig.again_after()
    earlier = rig.repo.latest
    await asyncio.sleep(1)
    rig.seconds, rig.found = 3.0, [DatabaseUnavailable("too slow")]
    with pytest.raises(DatabaseUnavailable):
        await rig.books.run_once()

    assert rig.repo.latest == earlier
    assert abs(await rig.again_after() - 300 * SECOND) <= SECOND


async def test_cancelled_check_is_given_back(rig: Rig) -> None:
    rig.seconds = 100
    check = asyncio.create_task(rig.books.run_once())
    await asyncio.sleep(1)
    check.cancel()
    await asyncio.wait((check,))

    assert check.cancelled()
    assert await rig.repo.claim(lease=SECOND)


async def test_operators_check_is_recorded(rig: Rig) -> None:
    """As it is, at once."""
    rig.found = [[WRONG, OTHER]]
    found = await rig.books.verify(limit=1)

    assert found == [WRONG]
    assert rig.repo.latest is not None
    assert rig.repo.latest.discrepancies == 2


async def test_operator_who_may_only_read_gets_the_result(rig: Rig) -> None:
    class ReadOnly(InMemoryBookCheckRepo):
        async def record(self, *_: object, **__: object) -> None:
            raise DatabaseUnavailable("The database role lacks a privilege")

    books = BookChecks(audit=rig._audit, checks=ReadOnly(clock=rig.clock.now))
    rig.found = [[WRONG]]

    assert await books.verify(limit=MAX_DISCREPANCIES) == [WRONG]


async def test_books_edited_by_hand_are_named_within_half_a_minute(rig: Rig, logs: Logs) -> None:
    """By any of several workers."""
    stop = Stop(drain_seconds=25)
    loops = [
        asyncio.create_task(CheckLoop(rig.books, random=Random(n), stop=stop).run())
        for n in range(3)
    ]
    await asyncio.sleep(60)
    edited_at = loop_time()
    rig.found = [[WRONG]] * 100
    async with asyncio.timeout(100):
        while not (rig.repo.latest and rig.repo.latest.discrepancies):  # noqa: ASYNC110 - costs no time on a virtual loop
            await asyncio.sleep(0.1)
    named_after = loop_time() - edited_at
    stop.request()
    await asyncio.gather(*loops)

    assert named_after <= 20 + 1.2 * LOOK_SECONDS + 5.2
    assert [log["event"] for log in logs][-1] == "books_wrong"
    assert {log["event"] for log in logs} == {"books_checked", "books_wrong"}
    assert rig.audits[-1] > edited_at


async def test_stop_ends_a_long_check(rig: Rig) -> None:
    """A worker does not drain for as long as an audit may take."""
    rig.seconds = 200
    stop = Stop(drain_seconds=25)
    loop = asyncio.create_task(CheckLoop(rig.books, random=Random(1), stop=stop).run())
    await asyncio.sleep(2 * LOOK_SECONDS)
    asked = loop_time()
    stop.request()

    assert await loop
    assert loop_time() - asked < 1
    assert rig.audits


async def test_unavailable_database_ends_no_loop(rig: Rig, logs: Logs) -> None:
    rig.found = [DatabaseUnavailable("no"), RuntimeError("bug")]
    stop = Stop(drain_seconds=25)
    loop = asyncio.create_task(CheckLoop(rig.books, random=Random(1), stop=stop).run())
    await asyncio.sleep(80)
    stop.request()
    await loop

    assert [log["event"] for log in logs][:3] == [
        "books_unchecked",
        "books_check_crashed",
        "books_checked",
    ]
