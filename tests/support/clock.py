"""Time that tests control."""

import asyncio
from collections.abc import Callable
from datetime import UTC, datetime, timedelta

from tests.support.virtual_time import VirtualTimeLoop

__all__ = ["START", "FakeClock", "VirtualTimeLoop", "loop_time"]

START = datetime(2026, 1, 1, 12, tzinfo=UTC)


def utc_now() -> datetime:
    return datetime.now(UTC)


class FakeClock:
    """The database's clock: stands still at START until it is advanced, or follows ``ticks``."""

    def __init__(self, ticks: Callable[[], float] = lambda: 0.0) -> None:
        self._ticks = ticks
        self._advanced = timedelta(0)

    def now(self) -> datetime:
        return START + self._advanced + timedelta(seconds=self._ticks())

    def advance(self, by: timedelta) -> None:
        self._advanced += by


def loop_time() -> float:
    """Ticks for a FakeClock that moves with the running event loop."""
    return asyncio.get_running_loop().time()
