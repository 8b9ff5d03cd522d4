"""Servers as child processes that die with their parent, run without root privileges and stop
within a bound.

A server's folder contains its log, a lock and two folders that only the server's user may enter:

    <data_dir>/                 for root: /var/lib/wearon/<name>-<hash> if the server's user cannot
                                reach <data_dir> or root does not own it
        lock                    the pids of the parent and the server, locked while a server runs
        postgres.log            of the current run; of the previous run: postgres.log.1
        pgdata/ or aof/         the data
        run/                    the socket, unless its path would be too long
"""

import fcntl
import hashlib
import importlib.metadata
import importlib.util
import os
import pwd
import shutil
import signal
import stat
import subprocess
import tempfile
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import IO, Self, TypedDict

from adapters.parent import die_with_parent

STATE = Path("/var/lib/wearon")
# TMPDIR may be a long path, and may differ at the next start.
SHORT = Path("/tmp")  # noqa: S108 - private_folder() checks what is there
SOCKET_PATH_BYTES = 103  # macOS; Linux takes four more
COMMAND_SECONDS = 20.0
START_SECONDS = 60.0  # after a crash, a server replays its log before it responds
STOP_SECONDS = 15.0
REFUSE_SECONDS = 0.1  # a server that was just killed counts as alive for a moment
RELEASE_SECONDS = 15.0
POLL_SECONDS = 0.005

# Servers get neither the secrets in our environment nor its PG* variables.
ENVIRONMENT = {"PATH": os.defpath, "HOME": "/", "LC_ALL": "C", "TZ": "UTC"}


class EmbeddedUnavailable(Exception):
    """An embedded server is not installed, does not start, or its folder is in use."""


Account = pwd.struct_passwd | None
"""The user that a server runs as; None for our own user."""


def unprivileged_account() -> Account:
    """PostgreSQL refuses to run as root, and Valkey does not need it."""
    if os.geteuid() != 0:
        return None
    for name in ("postgres", "nobody"):
        with suppress(KeyError):
            return pwd.getpwnam(name)
    raise EmbeddedUnavailable("root needs a user `postgres` or `nobody` to run the servers")


class _Identity(TypedDict):
    user: int | None
    group: int | None
    extra_groups: list[int] | None


def _identity(account: Account) -> _Identity:
    if account is None:
        return _Identity(user=None, group=None, extra_groups=None)
    return _Identity(user=account.pw_uid, group=account.pw_gid, extra_groups=[])


def run(argv: Sequence[str | Path], account: Account = None) -> subprocess.CompletedProcess[str]:
    """Run one short command. Raises OSError if `account` may not execute it."""
    try:
        return subprocess.run(  # noqa: S603 - no shell, and our own choice of programs
            argv,
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            check=False,
            timeout=COMMAND_SECONDS,
            **_identity(account),
        )
    except subprocess.TimeoutExpired as exc:
        raise EmbeddedUnavailable(f"{argv[0]} took more than {COMMAND_SECONDS:.0f} s") from exc


@dataclass(frozen=True, slots=True, kw_only=True)
class Installation:
    """A server's program, and the folders under `root` that it needs.

    Without `parts`, the program belongs to the machine and is never copied.
    """

    root: Path
    program: Path
    label: str = ""
    parts: tuple[Path, ...] = ()


def wheel(package: str, distribution: str) -> tuple[Path, str] | None:
    """The folder of an installed package and a label with its version. Nothing is imported."""
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        return None
    return Path(spec.origin).parent, f"{distribution}-{importlib.metadata.version(distribution)}"


def first_found(
    finders: Sequence[Callable[[], Installation | None]], otherwise: str
) -> Installation:
    """The first installation that a finder returns. If there is none, raises
    ``EmbeddedUnavailable`` with the message `otherwise`."""
    for find in finders:
        installation = find()
        if installation is not None:
            return installation
    raise EmbeddedUnavailable(otherwise)


def usable_program(
    installation: Installation, account: Account, copies: Path = STATE / "bin"
) -> Path:
    """The path at which `account` may execute the program.

    Other users cannot enter an environment under /root, so the program is copied out of it, once
    per version.
    """
    program = installation.root / installation.program
    if account is None or _executes(account, program):
        return program
    if not installation.parts:
        raise EmbeddedUnavailable(f"{program} does not run as user {account.pw_name}")
    home = copies / installation.label
    if not home.exists():
        _copy(installation, home)
    return home / installation.program


def _executes(account: Account, program: Path) -> bool:
    try:
        return run([program, "--version"], account).returncode == 0
    except PermissionError:
        return False


def _copy(installation: Installation, home: Path) -> None:
    _make_folder(home.parent.parent, 0o755)
    _make_folder(home.parent, 0o755)
    unfinished = Path(tempfile.mkdtemp(dir=home.parent))
    try:
        for part in installation.parts:
            shutil.copytree(installation.root / part, unfinished / part)
        for path in (unfinished, *unfinished.rglob("*")):
            path.chmod(0o755 if path.stat().st_mode & stat.S_IXUSR else 0o644)
        unfinished.rename(home)
    except OSError:
        if not home.exists():  # otherwise, another process was faster
            raise
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _make_folder(path: Path, mode: int) -> Path:
    """An existing folder keeps its mode."""
    if not path.exists():
        path.mkdir(parents=True, exist_ok=True)
        path.chmod(mode)
    return path


def private_folder(path: Path, account: Account) -> Path:
    """A folder that only the server's user may enter."""
    with suppress(FileExistsError):
        path.mkdir(mode=0o700)
    if account is not None:
        os.chown(path, account.pw_uid, account.pw_gid, follow_symlinks=False)
    found = path.lstat()
    owner = os.geteuid() if account is None else account.pw_uid
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != owner or found.st_mode & 0o077:
        raise EmbeddedUnavailable(f"{path} is not a private folder of user id {owner}: remove it")
    return path


def _server_folder(data_dir: Path, name: str, account: Account) -> Path:
    """`data_dir`, or another folder if `account` cannot reach it.

    For root, the folder belongs to root, so that no other user can replace the files that root
    opens in it.
    """
    wanted = data_dir.resolve()
    if account is None:
        return _make_folder(wanted, 0o700)
    folder = _make_folder(wanted, 0o711)
    if folder.stat().st_uid == 0 and run(["test", "-x", folder], account).returncode == 0:
        return folder
    return _make_folder(_make_folder(STATE, 0o755) / f"{name}-{_digest(wanted)}", 0o711)


def _socket_folder(folder: Path, socket_name: str, account: Account) -> Path:
    """An empty private folder for a socket: beside the data, unless the path is too long."""
    path = folder / "run"
    too_long = len(os.fsencode(path / socket_name)) > SOCKET_PATH_BYTES
    if too_long or "," in str(path):  # clients split host lists at commas
        parent = SHORT if account is None else _make_folder(STATE, 0o755)
        path = parent / f"wearon-{_digest(folder)}"
    private_folder(path, account)
    for leftover in path.iterdir():
        leftover.unlink()
    return path


def _digest(path: Path) -> str:
    return hashlib.sha256(f"{os.geteuid()}:{path}".encode()).hexdigest()[:12]


def _locked(lock: int) -> bool:
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _is_alive(pid: str) -> bool:
    try:
        with suppress(PermissionError):
            os.kill(int(pid), 0)
    except ProcessLookupError:
        return False
    return True


@dataclass(frozen=True, slots=True, kw_only=True)
class Launch:
    """What a server's processes inherit: an account, the lock on the folder and the log."""

    account: Account
    lock: int
    log: IO[bytes]

    def spawn(
        self, argv: Sequence[str | Path], death_signal: signal.Signals
    ) -> subprocess.Popen[bytes]:
        """Start a process in its own session, so that Ctrl-C reaches only its parent."""
        return subprocess.Popen(  # noqa: S603 - no shell, and our own choice of programs
            argv,
            cwd="/",
            env=ENVIRONMENT,
            stdin=subprocess.DEVNULL,
            stdout=self.log,
            stderr=self.log,
            pass_fds=(self.lock,),
            start_new_session=True,
            # Runs after the change of user, which would clear the death signal, and takes no lock
            # that another thread might hold.
            preexec_fn=partial(die_with_parent, death_signal, os.getpid()),  # noqa: PLW1509
            **_identity(self.account),
        )

    def finish(self, argv: Sequence[str | Path], timeout_seconds: float) -> int:
        """Run a process to its end, and return its exit code."""
        process = self.spawn(argv, signal.SIGKILL)
        try:
            return process.wait(timeout_seconds)
        except subprocess.TimeoutExpired as exc:
            raise EmbeddedUnavailable(f"{argv[0]} took more than {timeout_seconds:.0f} s") from exc
        finally:
            process.kill()
            process.wait(STOP_SECONDS)


class EmbeddedServer(ABC):
    """One server on one folder. The thread that starts it must live as long as the server."""

    def __init__(self, data_dir: Path, *, name: str, socket_name: str) -> None:
        self.data_dir = data_dir
        """The requested folder before the start, the actual folder after it."""
        self._name = name
        self._socket_name = socket_name
        self._sockets: Path | None = None
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def log_path(self) -> Path:
        return self.data_dir / f"{self._name}.log"

    @property
    def _lock_path(self) -> Path:
        return self.data_dir / "lock"

    @property
    def sockets(self) -> Path:
        """The folder of the socket, known after the first start."""
        if self._sockets is None:
            raise EmbeddedUnavailable(f"{self._name} has not been started")
        return self._sockets

    @property
    def pid(self) -> int:
        if self._process is None:
            raise EmbeddedUnavailable(f"{self._name} is not running")
        return self._process.pid

    @abstractmethod
    def start(self) -> None: ...

    @abstractmethod
    def stop(self) -> None:
        """Shut the server down, and kill it if that takes too long."""

    def kill(self) -> None:
        """Kill the server, like a crash. `start()` waits for its remaining processes."""
        self._end()

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @contextmanager
    def _starting(self) -> Iterator[Launch]:
        """Claim the folder during a start; a failed start leaves no process."""
        account = unprivileged_account()
        self.data_dir = _server_folder(self.data_dir, self._name, account)
        with self._claimed() as lock:
            self._sockets = _socket_folder(self.data_dir, self._socket_name, account)
            if self.log_path.exists():
                self.log_path.replace(self.log_path.with_suffix(".log.1"))
            self.log_path.touch(mode=0o600)  # because it contains statements
            with self.log_path.open("wb") as log:
                try:
                    yield Launch(account=account, lock=lock, log=log)
                except BaseException:
                    self.kill()
                    raise

    @contextmanager
    def _claimed(self) -> Iterator[int]:
        """A locked file that the server inherits; the kernel unlocks it after its last process.

        Raises ``EmbeddedUnavailable`` while a server and its parent are alive. Any other holder of
        the lock is about to exit, and gets more time.
        """
        lock = os.open(self._lock_path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            began = time.monotonic()
            while not _locked(lock):
                holders = self._lock_path.read_text().split()
                waited_seconds = time.monotonic() - began
                patience_seconds = REFUSE_SECONDS if self._all_live(holders) else RELEASE_SECONDS
                if waited_seconds > patience_seconds:
                    raise EmbeddedUnavailable(
                        f"{self.data_dir} is in use by a running server"
                        f" (pids of its parent and of itself: {', '.join(holders)})"
                    )
                time.sleep(POLL_SECONDS)
            self._end()  # reaps a server that was killed
            self._lock_path.write_text(f"{os.getpid()}")
            yield lock
        finally:
            os.close(lock)

    def _all_live(self, pids: list[str]) -> bool:
        if self._process is not None:
            self._process.poll()  # a process that was not waited for still counts as alive
        return bool(pids) and all(map(_is_alive, pids))

    def _serve(
        self,
        launch: Launch,
        argv: Sequence[str | Path],
        death_signal: signal.Signals,
        is_ready: Callable[[], bool],
    ) -> None:
        """Start the server and wait until it is ready."""
        self._process = launch.spawn(argv, death_signal)
        self._lock_path.write_text(f"{os.getpid()} {self._process.pid}")
        deadline = time.monotonic() + START_SECONDS
        while not is_ready():
            if self._process.poll() is not None:
                raise self._failure(f"exited with {self._process.returncode}")
            if time.monotonic() > deadline:
                raise self._failure(f"is not ready after {START_SECONDS:.0f} s")
            time.sleep(POLL_SECONDS)

    def _failure(self, what: str) -> EmbeddedUnavailable:
        last = self.log_path.read_text(errors="replace").splitlines()[-20:]
        return EmbeddedUnavailable("\n".join([f"{self._name} {what}; {self.log_path}:", *last]))

    def _end(self, *signals: signal.Signals) -> None:
        process = self._process
        if process is None:
            return
        for signum in (*signals, signal.SIGKILL):
            process.send_signal(signum)
            with suppress(subprocess.TimeoutExpired):
                process.wait(STOP_SECONDS)
                self._process = None
                return
        raise EmbeddedUnavailable(f"{self._name} (pid {process.pid}) does not stop")
