"""A timeout for many concurrent waits. ``asyncio.timeout`` sets a timer for each of them, which is
expensive with thousands of short waits per second."""

import asyncio
from collections import deque
from types import TracebackType
from typing import Self


class SharedTimeout:
    """Each ``with timeout.running():`` raises ``TimeoutError`` if its block still waits after
    ``seconds``, as ``asyncio.timeout`` does.

    All waits have the same length, so they end in the order in which they began, and one timer is
    enough. One event loop at a time may use it.
    """

    def __init__(self, seconds: float) -> None:
        self._seconds = seconds
        self._running: deque[_Wait] = deque()
        self._timer: asyncio.TimerHandle | None = None
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def waits_held(self) -> int:
        """How many waits are held in memory: those that run, and those that began after the oldest
        of them and have ended."""
        return len(self._running)

    def running(self) -> "_Wait":
        """One wait, which begins with its ``with`` block."""
        return _Wait(self)

    def _begin(self, wait: "_Wait", loop: asyncio.AbstractEventLoop) -> None:
        running = self._running
        if loop is not self._loop:  # The timer of a closed loop never fires.
            self._loop, self._timer = loop, None
            running.clear()
        while running and running[0].task is None:
            running.popleft()
        wait.deadline = loop.time() + self._seconds
        running.append(wait)
        if self._timer is None:
            self._timer = loop.call_at(wait.deadline, self._expire_due, loop)

    def _expire_due(self, loop: asyncio.AbstractEventLoop) -> None:
        self._timer = None
        now = loop.time()
        while self._running:
            first = self._running[0]
            if first.task is not None:
                if first.deadline > now:
                    self._timer = loop.call_at(first.deadline, self._expire_due, loop)
                    return
                first.expire()
            self._running.popleft()


class _Wait:
    __slots__ = ("_cancelling", "_expired", "_owner", "deadline", "task")

    def __init__(self, owner: SharedTimeout) -> None:
        self._owner = owner
        self._expired = False
        self._cancelling = 0
        self.deadline = 0.0
        self.task: asyncio.Task[object] | None = None
        """The task that waits; None before and after that."""

    def expire(self) -> None:
        if self.task is not None:
            self._expired = True
            self.task.cancel()

    def __enter__(self) -> Self:
        loop = asyncio.get_running_loop()
        task = asyncio.current_task(loop)
        if task is None:
            raise RuntimeError("Only a task can wait")
        self.task = task
        self._cancelling = task.cancelling()
        self._owner._begin(self, loop)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        task, self.task = self.task, None
        if not self._expired or task is None:
            return
        # If another task cancelled this one as well, CancelledError goes on.
        if task.uncancel() <= self._cancelling and kind is asyncio.CancelledError:
            raise TimeoutError from error
