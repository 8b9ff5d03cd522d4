"""Processes that end with the process that started them, even if that one is killed."""

import multiprocessing
import os
import signal
import socket
from collections.abc import Callable
from functools import partial

from adapters.parent import die_with_parent


def end_with_parent() -> None:
    """Terminate this process when the one that started it through ``multiprocessing`` ends, or has
    ended; a process of an API would go on serving otherwise. Does nothing in any other process."""
    parent = multiprocessing.parent_process()
    if parent is not None and parent.pid is not None:
        die_with_parent(signal.SIGTERM, parent.pid)


def ending_with_us() -> Callable[[], None]:
    """A ``preexec_fn`` that terminates the child when this process ends."""
    return partial(die_with_parent, signal.SIGTERM, os.getpid())


def worker_name() -> str:
    """The name of this process in the records of failed attempts: host and process id."""
    return f"{socket.gethostname()[:80]}:{os.getpid()}"
