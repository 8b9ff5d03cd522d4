"""How a worker stops: begin nothing more, finish what is in flight, cancel what takes too long."""

import asyncio
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import structlog

log = structlog.get_logger(__name__)


class Stop:
    """``running -> draining -> grace over``: one for all loops of a worker.

    Draining begins with a request, when a loop fails, or when all loops have ended. The grace
    period ends after ``drain_seconds``, with a second request, or when all loops have ended.
    """

    def __init__(self, *, drain_seconds: float) -> None:
        self._drain_seconds = drain_seconds
        self._begun = asyncio.Event()
        self._grace_over = asyncio.Event()
        self._requested = False
        self._interruptible: set[asyncio.Task[Any] | None] = set()

    @property
    def has_begun(self) -> bool:
        """Whether nothing more may be taken."""
        return self._begun.is_set()

    @property
    def is_requested(self) -> bool:
        """Whether the stop was requested, rather than caused by the loops."""
        return self._requested

    @property
    def grace_is_over(self) -> bool:
        """Whether nothing more may be begun, not even what was taken before the stop."""
        return self._grace_over.is_set()

    def request(self) -> None:
        if self._requested:
            self._grace_over.set()
        self._requested = True
        self._begun.set()

    async def begun(self) -> None:
        """Wait for the beginning of the stop."""
        await self._begun.wait()

    async def pause(self, seconds: float) -> None:
        """Wait, but not beyond the beginning of the stop."""
        try:
            async with asyncio.timeout(seconds):
                await self._begun.wait()
        except TimeoutError:
            return

    @contextmanager
    def interruptible(self) -> Iterator[None]:
        """What runs in this block is cancelled at the end of the grace period. A pop never is: it
        times out by itself, and a task that it takes too late goes back."""
        task = asyncio.current_task()
        self._interruptible.add(task)
        try:
            yield
        finally:
            self._interruptible.discard(task)

    async def run(self, loops: Sequence[asyncio.Task[bool]]) -> bool:
        """Wait until all ``loops`` have ended. Returns whether all that ended by themselves
        returned True. Raises what made one of them fail."""
        for task in loops:
            task.add_done_callback(lambda task: self._ended(task, loops))
        await self._begun.wait()
        await self._drain()
        ended = [task for task in loops if task.done()]
        cut_off = [task for task in loops if task in self._interruptible]
        for task in cut_off:
            task.cancel()
        await asyncio.gather(*loops, return_exceptions=True)
        log.info("worker_stopped", cancelled=len(cut_off))
        did_all = True
        for task in ended:
            if task.cancelled():
                raise RuntimeError(f"{task.get_name()} cancelled itself")
            did_all &= task.result()
        return did_all

    def _ended(self, task: asyncio.Task[bool], loops: Sequence[asyncio.Task[bool]]) -> None:
        """A loop that ends without an error leaves the others running."""
        if all(loop.done() for loop in loops):
            self._grace_over.set()
            self._begun.set()
        elif task.cancelled() or task.exception() is not None:
            self._begun.set()

    async def _drain(self) -> None:
        if self.grace_is_over:
            return
        log.info("worker_draining", drain_seconds=self._drain_seconds)
        try:
            async with asyncio.timeout(self._drain_seconds):
                await self._grace_over.wait()
        except TimeoutError:
            self._grace_over.set()
