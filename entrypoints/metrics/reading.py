"""Reads the state of the service for the page, in a thread with an event loop and connections of
its own: a slow database delays no request, and a scrape waits for a bounded time."""

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError
from typing import TypeAlias

import structlog

from domain.status import Report

FRESH_SECONDS = 2.0
"""How long a report serves all scrapes."""
READ_SECONDS = 5.0
"""How long a scrape waits for a report. The parts of a report have shorter bounds."""
CLOSE_SECONDS = 5.0

Read: TypeAlias = Callable[[], Awaitable[Report]]
Open: TypeAlias = Callable[[], tuple[Read, Callable[[], Awaitable[None]]]]
"""Builds what reads, and what closes its connections: called in the thread that uses them."""

log = structlog.get_logger(__name__)


class ServiceReader:
    """Reads one report at a time. ``start`` before the first ``read``, ``close`` at the end."""

    def __init__(self, open_connections: Open) -> None:
        self._open = open_connections
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._run, name="metrics-reader", daemon=True)
        self._stopped = asyncio.Event()
        self._is_ready = threading.Event()
        self._read: Read | None = None
        self._latest: Report | None = None
        self._fresh_until = 0.0
        self._lock = asyncio.Lock()

    def start(self) -> None:
        self._thread.start()

    def read(self) -> Report | None:
        """The state, at most ``FRESH_SECONDS`` old; None if it could not be read in time."""
        if not self._is_ready.wait(READ_SECONDS):
            return None
        reading = asyncio.run_coroutine_threadsafe(self._fresh(), self._loop)
        try:
            return reading.result(READ_SECONDS)
        except (TimeoutError, CancelledError):
            reading.cancel()
            log.warning("metrics_incomplete", cause="timeout", seconds=READ_SECONDS)
        except Exception:
            log.exception("metrics_incomplete")
        return None

    def close(self) -> None:
        """Close the connections, and wait for that a bounded time."""
        if self._thread.is_alive() and self._is_ready.wait(CLOSE_SECONDS):
            self._loop.call_soon_threadsafe(self._stopped.set)
        self._thread.join(CLOSE_SECONDS)

    async def _fresh(self) -> Report | None:
        async with self._lock:
            if self._latest is None or self._loop.time() >= self._fresh_until:
                assert self._read is not None  # noqa: S101 - set before the thread is ready
                self._latest = await self._read()
                self._fresh_until = self._loop.time() + FRESH_SECONDS
            return self._latest

    def _run(self) -> None:
        with asyncio.Runner(loop_factory=lambda: self._loop) as runner:
            runner.run(self._serve())

    async def _serve(self) -> None:
        self._read, close = self._open()
        self._is_ready.set()
        try:
            await self._stopped.wait()
        finally:
            await close()
