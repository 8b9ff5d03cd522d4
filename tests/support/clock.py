"""Time that tests control."""

import asyncio
import selectors
from collections.abc import Callable
from contextvars import Context
from datetime import UTC, datetime, timedelta
from typing import TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")

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


class _JumpingSelector(selectors.DefaultSelector):
    """Advances its time where another selector would wait for a timer."""

    def __init__(self) -> None:
        super().__init__()
        self.time = 0.0

    def select(self, timeout: float | None = None) -> list[tuple[selectors.SelectorKey, int]]:
        ready = super().select(0)
        if not ready:
            if timeout is None:
                raise RuntimeError("every task waits, and no timer will wake one")
            self.time += max(timeout, 0)
        return ready


class VirtualTimeLoop(asyncio.SelectorEventLoop):
    """An event loop on which waiting takes no time, and waiting without a timer is an error.

    For code without sockets or threads: ``("asyncio", {"loop_factory": VirtualTimeLoop})``.
    """

    def __init__(self) -> None:
        self._jumping = _JumpingSelector()
        super().__init__(self._jumping)
        self.timers_set = 0
        """How many timers were set since the beginning."""

    def time(self) -> float:
        return self._jumping.time

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> asyncio.TimerHandle:
        self.timers_set += 1
        return super().call_at(when, callback, *args, context=context)
