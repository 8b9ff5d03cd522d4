"""Rates of this process alone: of reads, and of requests without a valid credential."""

import math
from collections.abc import Callable, Hashable
from datetime import timedelta

from domain.errors import RateLimited
from domain.plans import MINUTE, Rate, RateUse

MAX_KEYS = 100_000
"""The callers or addresses that are remembered; beyond it, those that were added first are
forgotten."""


class Throttle:
    """Limits the calls per minute of each key; None for no limit. ``clock`` is monotonic, in
    seconds."""

    def __init__(self, per_minute: int | None, *, name: str, clock: Callable[[], float]) -> None:
        self._rate = per_minute and Rate(name=name, limit=per_minute, period=MINUTE)
        self._interval = self._rate.interval.total_seconds() if self._rate else 0.0
        self._name = name
        self._clock = clock
        self._unused_at: dict[Hashable, float] = {}
        """When the rate of each key is unused again, as ``Rate`` has it."""

    def check(self, key: Hashable) -> None:
        """Raises ``RateLimited`` if the rate of ``key`` is used up. Counts nothing."""
        if self._rate and (use := self._use(key, self._rate)).remaining == 0:
            raise RateLimited(
                f"At most {self._rate.limit} {self._name} per minute",
                retry_after_seconds=max(1, use.retry_seconds),
                rates=(use,),
            )

    def take(self, key: Hashable) -> tuple[RateUse, ...]:
        """Count a call. Returns the rate after it; nothing without a limit. Raises
        ``RateLimited``."""
        if not self._rate:
            return ()
        self.check(key)
        self.count(key)
        return (self._use(key, self._rate),)

    def count(self, key: Hashable) -> None:
        """Count a call that was not checked."""
        if not self._rate:
            return
        now = self._clock()
        unused_at = max(self._unused_at.pop(key, now), now) + self._interval
        if len(self._unused_at) >= MAX_KEYS:
            del self._unused_at[next(iter(self._unused_at))]
        # Not more than a period ahead, so that a flood is forgiven a minute after its end.
        self._unused_at[key] = min(unused_at, now + MINUTE / timedelta(seconds=1))

    def _use(self, key: Hashable, rate: Rate) -> RateUse:
        return rate.use(max(0.0, self._unused_at.get(key, -math.inf) - self._clock()))
