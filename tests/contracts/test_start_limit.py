"""StartLimitPort. Redis' time is real, so what is asserted holds however slow the machine is: an
interval is so long that none passes, or the time that passed is measured."""

import asyncio
from itertools import cycle, islice

import pytest

from adapters.limits.memory import Pace
from domain.ports import StartLimitPort
from tests.contracts.backends import LimitBackend

pytestmark = pytest.mark.anyio

FOUR_AND_NO_MORE = Pace(burst=4, interval_us=600_000_000)


async def taken(limit: StartLimitPort, times: int) -> int:
    """How many permits were taken of so many that were asked for."""
    return [await limit.take() for _ in range(times)].count(0.0)


async def test_a_permit_is_taken_or_there_is_a_wait(limit_backend: LimitBackend) -> None:
    """As many as may start at once, and then the time until the next one."""
    limit = limit_backend.sharer(FOUR_AND_NO_MORE)

    answers = [await limit.take() for _ in range(6)]

    assert answers[:4] == [0.0] * 4
    assert 500 < answers[5] <= answers[4] <= 600


async def test_after_the_wait_there_is_a_permit(limit_backend: LimitBackend) -> None:
    """For one start, and the next has its own wait, time after time."""
    limit = limit_backend.sharer(Pace(burst=2, interval_us=30_000))
    await taken(limit, 2)
    for _ in range(5):
        while (wait := await limit.take()) == 0:
            continue  # This machine is so busy that an interval has passed.
        await limit_backend.wait(wait)

        assert await limit.take() == 0


async def test_time_shortens_the_wait(limit_backend: LimitBackend) -> None:
    """What has passed already need not be waited for again."""
    limit = limit_backend.sharer(Pace(burst=1, interval_us=500_000))
    await limit.take()
    await limit_backend.wait(0.2)

    assert await limit.take() <= 0.3


async def test_what_is_given_back_may_be_taken_again(limit_backend: LimitBackend) -> None:
    """At once, by another, as often as it was given back."""
    one, other = limit_backend.sharer(FOUR_AND_NO_MORE), limit_backend.sharer(FOUR_AND_NO_MORE)
    await taken(one, 4)

    await one.give_back()
    await one.give_back()

    assert await taken(other, 4) == 2


async def test_giving_back_adds_nothing_to_what_may_start_at_once(
    limit_backend: LimitBackend,
) -> None:
    """Also not where it is done more often than taking."""
    limit = limit_backend.sharer(FOUR_AND_NO_MORE)
    await taken(limit, 1)
    for _ in range(3):
        await limit.give_back()

    assert await taken(limit, 8) == 4


async def test_idle_time_adds_nothing_to_what_may_start_at_once(
    limit_backend: LimitBackend,
) -> None:
    """A limit that nobody used for many intervals is as full as a new one."""
    limit = limit_backend.sharer(Pace(burst=4, interval_us=20_000))
    await taken(limit, 4)
    await limit_backend.wait(0.5)

    began = limit_backend.now()
    permitted = await taken(limit, 50)

    assert 4 <= permitted <= 4 + (limit_backend.now() - began) / 0.02


async def test_all_who_share_a_limit_have_it_together(limit_backend: LimitBackend) -> None:
    """However many ask at the same instant, as many permits are taken as there are."""
    sharers = [limit_backend.sharer(FOUR_AND_NO_MORE) for _ in range(5)]

    answers = await asyncio.gather(*(sharer.take() for sharer in sharers * 4))

    assert answers.count(0.0) == 4


async def test_starts_keep_to_the_pace(limit_backend: LimitBackend) -> None:
    """Whoever of those who share it takes them: within any time, the burst and one for each
    interval. And no fewer, for those who wait as long as they are told."""
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
