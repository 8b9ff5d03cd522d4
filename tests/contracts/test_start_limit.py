"""The contract of ``StartLimitPort``.

Redis' clock is real, so the assertions hold on a machine of any speed: an interval is too long to
pass during a test, or the elapsed time is measured.
"""

import asyncio
from itertools import cycle, islice

import pytest

from adapters.limits.memory import Pace
from domain.picture_ports import StartLimitPort
from tests.contracts.backends import LimitBackend

pytestmark = pytest.mark.anyio

FOUR_AND_NO_MORE = Pace(burst=4, interval_us=600_000_000)


async def taken(limit: StartLimitPort, times: int) -> int:
    """The number of permits taken in this many attempts."""
    return [await limit.take() for _ in range(times)].count(0.0)


async def test_take_returns_a_permit_or_a_wait(limit_backend: LimitBackend) -> None:
    """The burst is permitted at once; then ``take`` returns the time until the next permit."""
    limit = limit_backend.sharer(FOUR_AND_NO_MORE)

    answers = [await limit.take() for _ in range(6)]

    assert answers[:4] == [0.0] * 4
    assert 500 < answers[5] <= answers[4] <= 600


async def test_permit_is_available_after_the_wait(limit_backend: LimitBackend) -> None:
    """One permit per wait, time after time."""
    limit = limit_backend.sharer(Pace(burst=2, interval_us=30_000))
    await taken(limit, 2)
    for _ in range(5):
        while (wait := await limit.take()) == 0:
            continue  # The machine is so busy that an interval has passed.
        await limit_backend.wait(wait)

        assert await limit.take() == 0


async def test_elapsed_time_shortens_the_wait(limit_backend: LimitBackend) -> None:
    limit = limit_backend.sharer(Pace(burst=1, interval_us=500_000))
    await limit.take()
    await limit_backend.wait(0.2)

    assert await limit.take() <= 0.3


async def test_returned_permits_can_be_taken_again(limit_backend: LimitBackend) -> None:
    """At once, by another user of the limit, as many as were given back."""
    one, other = limit_backend.sharer(FOUR_AND_NO_MORE), limit_backend.sharer(FOUR_AND_NO_MORE)
    await taken(one, 4)

    await one.give_back()
    await one.give_back()

    assert await taken(other, 4) == 2


async def test_returned_permits_do_not_exceed_the_burst(limit_backend: LimitBackend) -> None:
    """Even if more permits are given back than were taken."""
    limit = limit_backend.sharer(FOUR_AND_NO_MORE)
    await taken(limit, 1)
    for _ in range(3):
        await limit.give_back()

    assert await taken(limit, 8) == 4


async def test_idle_time_does_not_exceed_the_burst(limit_backend: LimitBackend) -> None:
    """After many idle intervals a limit permits as many starts at once as a new one."""
    limit = limit_backend.sharer(Pace(burst=4, interval_us=20_000))
    await taken(limit, 4)
    await limit_backend.wait(0.5)

    began = limit_backend.now()
    permitted = await taken(limit, 50)

    assert 4 <= permitted <= 4 + (limit_backend.now() - began) / 0.02


async def test_wait_takes_nothing(limit_backend: LimitBackend) -> None:
    """0 for as many permits as are free; for more, the time until they will be."""
    limit = limit_backend.sharer(FOUR_AND_NO_MORE)

    free = [await limit.wait(permits) for permits in (1, 4, 4)]
    one_more, three_more = await limit.wait(5), await limit.wait(7)
    taken_then = await taken(limit, 3)
    left = [await limit.wait(permits) for permits in (1, 2)]

    assert (free, taken_then, left[0]) == ([0.0] * 3, 3, 0.0)
    assert 500 < left[1] <= one_more <= 600
    assert 1_700 < three_more <= 1_800
    assert await taken(limit, 5) == 1


async def test_limit_is_shared(limit_backend: LimitBackend) -> None:
    """Concurrent users of one limit take no more permits together than one alone."""
    sharers = [limit_backend.sharer(FOUR_AND_NO_MORE) for _ in range(5)]

    answers = await asyncio.gather(*(sharer.take() for sharer in sharers * 4))

    assert answers.count(0.0) == 4


async def test_starts_keep_the_pace(limit_backend: LimitBackend) -> None:
    """Over all users, any time has at most the burst and one start per interval. Users who wait as
    told get nearly as many."""
    pace = Pace(burst=5, interval_us=10_000)
    sharers = cycle([limit_backend.sharer(pace) for _ in range(3)])
    starts: list[tuple[float, float]] = []
    for sharer in islice(sharers, 80):
        before = limit_backend.now()
        if wait := await sharer.take():
            await limit_backend.wait(wait)
        else:
            starts.append((before, limit_backend.now()))

    assert len(starts) >= 40
    for first, (began, _) in enumerate(starts):
        for last, (_, ended) in enumerate(starts[first:], first):
            assert last - first + 1 <= pace.burst + (ended - began) / 0.01
