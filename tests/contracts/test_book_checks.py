"""The contract of ``BookCheckRepoPort``."""

import asyncio
from datetime import timedelta

import pytest

from domain.operator_ports import BookCheck
from tests.contracts.backends import Backend
from tests.contracts.operating import Operating, operating_on
from tests.support.clock import START

pytestmark = pytest.mark.anyio

MINUTE = timedelta(minutes=1)
LEASE = 10 * MINUTE
WRONG = BookCheck(
    at=START, took=timedelta(milliseconds=1_234), discrepancies=2, first="b2b:shop: balance 3"
)
RIGHT = BookCheck(at=START, took=timedelta(0), discrepancies=0)


@pytest.fixture
async def operating(backend: Backend) -> Operating:
    return await operating_on(backend)


async def test_first_check_is_due_at_once(operating: Operating) -> None:
    """Nothing is known before it."""
    assert await operating.latest_check() is None
    assert await operating.book_checks.claim(lease=LEASE)


async def test_one_of_many_claims_the_check(operating: Operating) -> None:
    claims = await asyncio.gather(*(operating.book_checks.claim(lease=LEASE) for _ in range(8)))

    assert sorted(claims) == [False] * 7 + [True]


async def test_claim_of_a_dead_process_ends(operating: Operating) -> None:
    await operating.book_checks.claim(lease=LEASE)
    await operating.advance(LEASE - MINUTE)
    early = await operating.book_checks.claim(lease=LEASE)
    await operating.advance(2 * MINUTE)

    assert not early
    assert await operating.book_checks.claim(lease=LEASE)


async def test_result_is_kept_with_the_databases_time(operating: Operating) -> None:
    await operating.book_checks.record(WRONG, again_after=MINUTE)

    kept = await operating.latest_check()
    assert kept is not None
    assert (kept.took, kept.discrepancies, kept.first) == (WRONG.took, 2, WRONG.first)
    assert abs(kept.at - operating.backend.now()) < MINUTE


async def test_result_replaces_the_earlier_one(operating: Operating) -> None:
    await operating.book_checks.record(WRONG, again_after=MINUTE)
    await operating.book_checks.record(RIGHT, again_after=MINUTE)

    kept = await operating.latest_check()
    assert kept is not None
    assert (kept.took, kept.discrepancies, kept.first) == (timedelta(0), 0, None)


@pytest.mark.parametrize("ended", ["record", "postpone"])
async def test_next_check_is_due_later(operating: Operating, ended: str) -> None:
    """The claim that ended holds up no later one."""
    checks = operating.book_checks
    await checks.claim(lease=LEASE)
    if ended == "record":
        await checks.record(RIGHT, again_after=5 * MINUTE)
    else:
        await checks.postpone(again_after=5 * MINUTE)
    await operating.advance(4 * MINUTE)
    early = await checks.claim(lease=LEASE)
    await operating.advance(2 * MINUTE)

    assert not early
    assert await checks.claim(lease=LEASE)


async def test_check_that_did_not_end_leaves_the_earlier_result(operating: Operating) -> None:
    await operating.book_checks.record(WRONG, again_after=timedelta(0))
    before = await operating.latest_check()

    await operating.book_checks.postpone(again_after=MINUTE)

    assert await operating.latest_check() == before
