"""Stopped processes."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

from tests.support.processes import children


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """SIGSTOP a process and its descendants: connections stay open, and nothing answers."""
    stopped: list[int] = []
    try:
        _stop(pid, stopped)
        yield
    finally:
        for member in reversed(stopped):  # Children first, before their parents can reap them.
            os.kill(member, signal.SIGCONT)


def _stop(pid: int, stopped: list[int]) -> None:
    """The parent first, so that it starts no more children."""
    os.kill(pid, signal.SIGSTOP)
    stopped.append(pid)
    for child in children(pid):
        _stop(child, stopped)
