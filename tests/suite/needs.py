"""What each test needs besides Python: marked by its folder, fixtures and parameters, and enforced.

A test without a marker must run on a machine without servers. While it runs, the start of a server,
a connection to a server's socket and the start of our programs are refused, and the test is red.
"""

import os
import socket
import subprocess
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path, PurePath
from typing import Any

import pytest

from adapters.embedded.postgres import PORT
from adapters.embedded.valkey import SOCKET_NAME

POSTGRES, REDIS, S3, PROCESSES = "postgres", "redis", "s3", "processes"
MARKERS = (POSTGRES, REDIS, S3, PROCESSES)

DEPLOYED = (POSTGRES, REDIS, PROCESSES)
OF_PATH = {
    "browser": (PROCESSES,),
    "chaos": DEPLOYED,
    "soak": DEPLOYED,
    "system": DEPLOYED,
    "test_console.py": DEPLOYED,
    "test_embedded.py": (POSTGRES, REDIS),
    "test_pool.py": (PROCESSES,),
    "test_real_service.py": (PROCESSES,),
    "test_sql_mutants.py": (POSTGRES, PROCESSES),
}
"""By a folder or a file in the path."""
OF_FIXTURE = {
    "own_postgres": POSTGRES,
    "pg": POSTGRES,
    "postgres": POSTGRES,
    "started_valkey": REDIS,
    "valkey": REDIS,
    "s3_url": S3,
}
OF_PARAMETER = {"postgres": POSTGRES, "valkey": REDIS, "s3": S3}
"""By the first word of a parameter: the backends of the contracts."""
OF_PROGRAM = {
    "initdb": POSTGRES,
    "postgres": POSTGRES,
    "redis-server": REDIS,
    "valkey-server": REDIS,
}
OUR_PROGRAMS = ("adapters.", "entrypoints.", "tests.")
"""Modules that are run as ``python -m``."""
OF_SOCKET = {f".s.PGSQL.{PORT}": POSTGRES, SOCKET_NAME: REDIS}


class NotMarked(OSError):
    """A test uses what it is not marked with. To the code under test, a server does not answer."""


def markers_of(
    path: Iterable[str], fixtures: Iterable[str], parameters: Iterable[object]
) -> set[str]:
    """What a test needs, as far as its declaration tells."""
    words = [value.partition(" ")[0] for value in parameters if isinstance(value, str)]
    return {
        *(marker for part in path for marker in OF_PATH.get(part, ())),
        *(OF_FIXTURE[name] for name in fixtures if name in OF_FIXTURE),
        *(OF_PARAMETER[word] for word in words if word in OF_PARAMETER),
    }


def mark(item: pytest.Item) -> None:
    """Add the markers that follow from the declaration of a test."""
    if not isinstance(item, pytest.Function):
        return
    parameters = item.callspec.params.values() if hasattr(item, "callspec") else ()
    for marker in sorted(markers_of(item.path.parts, item.fixturenames, parameters)):
        item.add_marker(marker)


def marked(item: pytest.Item) -> set[str]:
    """The markers of a test that say what it needs."""
    return {mark.name for mark in item.iter_markers()} & set(MARKERS)


def need_of_command(command: Sequence[str]) -> str | None:
    """The marker that it takes to start a process."""
    module = command[command.index("-m") + 1] if "-m" in command else ""
    if module.startswith(OUR_PROGRAMS):
        return PROCESSES
    return None if "--version" in command else OF_PROGRAM.get(PurePath(command[0]).name)


def need_of_address(address: object) -> str | None:
    """The marker that it takes to connect to an address; none where nothing listens."""
    path = Path(os.fsdecode(address) if isinstance(address, str | bytes) else "")
    return OF_SOCKET.get(path.name) if path.exists() else None


class Guard:
    """Refuses what a test is not marked with, in all threads of this process."""

    def __init__(self) -> None:
        self._allowed: set[str] | None = None
        self._refused: list[str] = []

    @contextmanager
    def only(self, allowed: set[str]) -> Iterator[None]:
        """Allow no other needs. Fails the test at the end, because code that finds a server away
        goes on."""
        self._allowed, self._refused = allowed, []
        try:
            yield
        finally:
            self._allowed = None
        if self._refused:
            pytest.fail(self._refused[0])

    def check(self, need: str | None, what: str) -> None:
        """Raises NotMarked if there is a need that the test has no marker for."""
        if need is not None and self._allowed is not None and need not in self._allowed:
            self._refused.append(f"{what} takes the marker {need!r}, which this test does not have")
            raise NotMarked(self._refused[-1])

    def watch(self, patch: pytest.MonkeyPatch) -> None:
        """Look at every process and every connection of this process. (An audit hook would as
        well, but it is told of each ``id`` too, which costs a twentieth of the suite's time.)"""
        start, connect = subprocess.Popen.__init__, socket.socket.connect

        def guarded_start(process: Any, command: Any, *more: Any, **options: Any) -> None:
            is_one = isinstance(command, str | bytes | os.PathLike)
            words = [os.fsdecode(word) for word in ([command] if is_one else command)]
            self.check(need_of_command(words), " ".join(words))
            start(process, command, *more, **options)

        def guarded_connect(client: socket.socket, address: Any) -> None:
            self.check(need_of_address(address), f"a connection to {address}")
            connect(client, address)

        patch.setattr(subprocess.Popen, "__init__", guarded_start)
        patch.setattr(socket.socket, "connect", guarded_connect)


GUARD = Guard()
