"""Processes that stand still."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def paused(pid: int) -> Iterator[None]:
    """Stop a process and all that it started: what is connected stays so, and nothing answers."""
    family: list[int] = []
    try:
        _stop(pid, family)
        yield
    finally:
        for member in reversed(family):  # so that each is still known to its parent
            os.kill(member, signal.SIGCONT)


def _stop(pid: int, family: list[int]) -> None:
    """The parent first, for then it has no further children."""
    os.kill(pid, signal.SIGSTOP)
    family.append(pid)
    for child in Path(f"/proc/{pid}/task/{pid}/children").read_text().split():
        _stop(int(child), family)
