"""Rates of this process alone: of reads, and of requests without a valid credential."""

import math
from collections.abc import Callable, Hashable

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

    def take(self, key: Hashable) -> tuple[RateUse, ...]:
        """Count a call. Returns the rate after it; nothing without a limit. Raises
        ``RateLimited``."""
        if not self._rate:
            return ()
        self._check(key, self._rate)
        now = self._clock()
        unused_at = max(self._unused_at.pop(key, now), now) + self._interval
        if len(self._unused_at) >= MAX_KEYS:
            del self._unused_at[next(iter(self._unused_at))]
        self._unused_at[key] = unused_at
        return (self._use(key, self._rate),)

    def give_back(self, key: Hashable) -> None:
        """Undo one ``take``."""
        if key in self._unused_at:
            self._unused_at[key] -= self._interval

    def _check(self, key: Hashable, rate: Rate) -> None:
        use = self._use(key, rate)
        if use.remaining == 0:
            raise RateLimited(
                f"At most {rate.limit} {self._name} per minute",
                retry_after_seconds=max(1, use.retry_seconds),
                rates=(use,),
            )

    def _use(self, key: Hashable, rate: Rate) -> RateUse:
        return rate.use(max(0.0, self._unused_at.get(key, -math.inf) - self._clock()))
