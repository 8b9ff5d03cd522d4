"""An event loop on which waiting takes no time."""

import asyncio
import heapq
import signal
from collections import deque
from collections.abc import Callable
from contextvars import Context, copy_context
from typing import Any, TypeVarTuple, Unpack

Ts = TypeVarTuple("Ts")


class _Call(asyncio.TimerHandle):
    """A callback and its time. A run needs thousands, and asyncio's own take twice the time."""

    __slots__ = ("args", "callback", "context", "is_cancelled", "time")

    def __init__(
        self, time: float, callback: Callable[..., object], args: Any, context: Context
    ) -> None:
        self.time = time
        self.callback = callback
        self.args = args
        self.context = context
        self.is_cancelled = False

    def cancel(self) -> None:
        self.is_cancelled = True

    def cancelled(self) -> bool:
        return self.is_cancelled

    def when(self) -> float:
        return self.time


class VirtualTimeLoop(asyncio.BaseEventLoop):
    """Advances its time to the next timer where another loop would wait for it. Waiting without a
    timer is an error. Timers of the same time are due in the order in which they were set.

    For code without sockets or threads: ``("asyncio", {"loop_factory": VirtualTimeLoop})``.
    """

    def __init__(self) -> None:
        super().__init__()
        self.timers_set = 0
        """How many timers were set since the beginning."""
        self._now = 0.0
        self._calls: deque[_Call] = deque()
        self._timers: list[tuple[float, int, _Call]] = []

    def time(self) -> float:
        return self._now

    def call_soon(
        self,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> _Call:
        call = _Call(self._now, callback, args, context or copy_context())
        self._calls.append(call)
        return call

    def call_later(
        self,
        delay: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> _Call:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self,
        when: float,
        callback: Callable[[Unpack[Ts]], object],
        *args: *Ts,
        context: Context | None = None,
    ) -> _Call:
        call = _Call(when, callback, args, context or copy_context())
        self.timers_set += 1
        heapq.heappush(self._timers, (when, self.timers_set, call))
        return call

    def add_signal_handler(
        self, sig: int, callback: Callable[[Unpack[Ts]], object], *args: *Ts
    ) -> None:
        signal.signal(sig, lambda *_: self.call_soon(callback, *args))

    def remove_signal_handler(self, sig: int) -> bool:
        signal.signal(sig, signal.default_int_handler if sig == signal.SIGINT else signal.SIG_DFL)
        return True

    def _run_once(self) -> None:
        """One turn. Callbacks that it adds run in the next turn."""
        calls, timers = self._calls, self._timers
        while timers and timers[0][2].is_cancelled:
            heapq.heappop(timers)
        if not calls:
            if not timers:
                raise RuntimeError("every task waits, and no timer will wake one")
            self._now = max(self._now, timers[0][0])
        while timers and timers[0][0] <= self._now:
            calls.append(heapq.heappop(timers)[2])
        for _ in range(len(calls)):
            call = calls.popleft()
            if call.is_cancelled:
                continue
            try:
                call.context.run(call.callback, *call.args)
            except (SystemExit, KeyboardInterrupt):
                raise
            except BaseException as error:  # noqa: BLE001 - as in every event loop
                message = f"exception in callback {call.callback}"
                self.call_exception_handler({"message": message, "exception": error})
