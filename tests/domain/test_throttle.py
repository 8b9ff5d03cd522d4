"""Throttle: rates of one process, by a key."""

import pytest

from domain import throttle
from domain.errors import RateLimited
from domain.throttle import Throttle


class Clock:
    def __init__(self) -> None:
        self.now = 1_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


def taken(limit: Throttle, key: str, calls: int) -> int:
    """How many of the calls are allowed."""
    allowed = 0
    for _ in range(calls):
        try:
            limit.take(key)
        except RateLimited:
            continue
        allowed += 1
    return allowed


def test_calls_of_a_minute_are_limited(clock: Clock) -> None:
    """A burst of a minute's calls, then one per interval, for each key by itself."""
    limit = Throttle(6, name="reads", clock=clock)

    first = [taken(limit, key, 10) for key in ("a", "b")]
    clock.now += 10.2
    second = taken(limit, "a", 10)
    clock.now += 60
    third = taken(limit, "a", 10)

    assert (first, second, third) == ([6, 6], 1, 6)


def test_error_says_when_to_come_back(clock: Clock) -> None:
    """With the limit in words, and as numbers."""
    limit = Throttle(2, name="reads", clock=clock)
    rates = [limit.take("a")[0] for _ in range(2)]

    with pytest.raises(RateLimited, match="At most 2 reads per minute") as refused:
        limit.take("a")

    assert [(rate.remaining, rate.reset_seconds) for rate in rates] == [(1, 30), (0, 60)]
    assert refused.value.retry_after_seconds == 30
    assert refused.value.rates[0].limit == 2


def test_refused_calls_are_not_counted(clock: Clock) -> None:
    """A flood is forgiven a minute after its end, and one call is allowed after each interval."""
    limit = Throttle(2, name="requests", clock=clock)

    assert taken(limit, "a", 1_000) == 2
    clock.now += 60
    assert taken(limit, "a", 1_000) == 2


def test_call_is_given_back(clock: Clock) -> None:
    """As if it had not been made."""
    limit = Throttle(2, name="requests", clock=clock)
    for _ in range(9):
        limit.take("a")
        limit.give_back("a")
    limit.give_back("unknown")

    assert taken(limit, "a", 9) == 2


def test_no_limit(clock: Clock) -> None:
    """Nothing is counted or remembered."""
    limit = Throttle(None, name="reads", clock=clock)

    assert [limit.take("a") for _ in range(9)] == [()] * 9
    limit.give_back("a")
    assert limit._unused_at == {}


def test_memory_is_bounded(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    """The keys that were added last are remembered."""
    monkeypatch.setattr(throttle, "MAX_KEYS", 3)
    limit = Throttle(1, name="reads", clock=clock)
    for key in "abcd":
        limit.take(key)

    assert [taken(limit, key, 1) for key in "dcb"] == [0, 0, 0]
    assert taken(limit, "a", 1) == 1
