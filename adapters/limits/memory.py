"""The start limit in this process's memory, and the arithmetic that every adapter of it does.

It is a token bucket, kept as GCRA keeps it: as the one time at which the bucket will be full
again. Every start moves that time on by ``interval_us``; who would move it further ahead than a
whole bucket has to wait. A permit that is given back moves it back, and never into the past, so
what is permitted then is never more than if it had not been taken.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from domain.ports import StartLimitPort

_SECOND_US = 1_000_000
_MINUTE_US = 60 * _SECOND_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """``burst`` starts at once, and then one every ``interval_us`` microseconds: within any time
    ``t`` there are at most ``burst + t / interval_us`` of them."""

    burst: int
    interval_us: int

    @classmethod
    def of(cls, per_minute: int) -> Self:
        """A thirtieth may start at once. Twice that is kept back: what the provider counts is
        calls, and they come later than starts, by a pop and by downloads that take unequal time."""
        burst = max(1, per_minute // 30)
        refilled = max(1, per_minute + 1 - 3 * burst)
        return cls(burst=burst, interval_us=-(-_MINUTE_US // refilled))


class InMemoryStartLimit(StartLimitPort):
    """Holds for whoever shares this object. ``clock`` is in seconds and never goes back."""

    def __init__(self, pace: Pace, *, clock: Callable[[], float]) -> None:
        self._pace = pace
        self._clock = clock
        self._full_at_us = 0

    async def take(self) -> float:
        now = self._now_us()
        full_at = max(now, self._full_at_us) + self._pace.interval_us
        wait = full_at - now - self._pace.burst * self._pace.interval_us
        if wait > 0:
            return wait / _SECOND_US
        self._full_at_us = full_at
        return 0.0

    async def give_back(self) -> None:
        self._full_at_us -= self._pace.interval_us

    def _now_us(self) -> int:
        return int(self._clock() * _SECOND_US)
