"""The start limit in this process's memory, and the arithmetic shared by all adapters.

A token bucket, stored as in GCRA: as the time at which the bucket will be full again. Each permit
moves that time ``interval_us`` into the future; a permit that would move it further than a whole
bucket has to wait. A returned permit moves the time back, but the next permit never counts from
before now, so returning a permit allows no more starts than never taking it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Self

from domain.picture_ports import StartLimitPort

_SECOND_US = 1_000_000
_MINUTE_US = 60 * _SECOND_US


@dataclass(frozen=True, slots=True, kw_only=True)
class Pace:
    """``burst`` starts at once, then one every ``interval_us`` microseconds. So any time ``t`` has
    at most ``burst + t / interval_us`` starts."""

    burst: int
    interval_us: int

    @classmethod
    def of(cls, per_minute: int) -> Self:
        """The pace for a provider's limit. A thirtieth of it may start at once.

        Two thirtieths are kept in reserve, because the provider counts calls, which follow the
        starts after a pop and downloads of varying length.
        """
        burst = max(1, per_minute // 30)
        refilled = max(1, per_minute + 1 - 3 * burst)
        return cls(burst=burst, interval_us=-(-_MINUTE_US // refilled))


class InMemoryStartLimit(StartLimitPort):
    """Shared by the users of this object. ``clock`` is monotonic, in seconds."""

    def __init__(self, pace: Pace, *, clock: Callable[[], float]) -> None:
        self._pace = pace
        self._clock = clock
        self._full_at_us = 0

    @property
    def is_local(self) -> bool:
        return False

    async def take(self) -> float:
        wait_seconds = self._wait(1)
        if wait_seconds == 0:
            self._full_at_us = max(self._now_us(), self._full_at_us) + self._pace.interval_us
        return wait_seconds

    async def wait(self, permits: int) -> float:
        return self._wait(permits)

    async def give_back(self) -> None:
        self._full_at_us -= self._pace.interval_us

    def _wait(self, permits: int) -> float:
        ahead_us = max(0, self._full_at_us - self._now_us())
        wait_us = ahead_us + (permits - self._pace.burst) * self._pace.interval_us
        return max(0, wait_us) / _SECOND_US

    def _now_us(self) -> int:
        return int(self._clock() * _SECOND_US)
