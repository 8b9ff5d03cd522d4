"""The numbers that a process counts, in memory that another process can read.

A cell is a 64-bit float in a mapped file, so counting costs a tenth of a microsecond, and what a
killed process has counted is not lost. Only one thread of a process counts; any thread reads.
"""

import fcntl
import mmap
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from shutil import rmtree
from tempfile import TemporaryDirectory, gettempdir
from threading import Lock
from typing import TypeAlias

import msgspec
import structlog

Key: TypeAlias = tuple[str, tuple[str, ...]]
"""The name of a metric, and the values of its labels."""
Totals: TypeAlias = dict[Key, list[float]]

CELLS = 16_384
_SPARE = 128
"""The first cells: the length of the names, and what has no place of its own any more."""
_NAMES_AT = CELLS * 8
SIZE = _NAMES_AT + 524_288
_SUFFIX = ".cells"
_FOLDER_PREFIX, _LOCK = "wearon-metrics-", "lock"


class _Series(msgspec.Struct, array_like=True):
    """Where the cells of a series are, as a line of the names."""

    name: str
    labels: tuple[str, ...]
    at: int
    width: int


log = structlog.get_logger(__name__)
_encode = msgspec.json.Encoder().encode
_decoder = msgspec.json.Decoder(_Series)


class Cells:
    """The cells of this process. The space is bounded: series that find none are counted together,
    in cells that no reader sees."""

    def __init__(self) -> None:
        self._memory = mmap.mmap(-1, SIZE)
        self._used = _SPARE
        self._file: int | None = None
        self.values = memoryview(self._memory).cast("d")

    def add(self, name: str, labels: tuple[str, ...], *, width: int = 1) -> int:
        """A series of ``width`` cells, all 0. Returns its first cell."""
        at = self._used
        line = _encode(_Series(name, labels, at, width)) + b"\n"
        begin = _NAMES_AT + int(self.values[0])
        if at + width > CELLS or begin + len(line) > SIZE:
            log.error("metrics_full", metric=name)
            return 1
        self._memory[begin : begin + len(line)] = line
        self._used += width
        self.values[0] += len(line)  # Last: a reader sees whole lines.
        return at

    def totals(self) -> Totals:
        """All series of this process."""
        return totals_of(self._memory)

    def share(self, folder: Path) -> None:
        """Go on counting in a file in ``folder``, which ``SharedCells`` reads. The file is locked
        for as long as the process lives. Raises ``OSError``."""
        path = folder / f"{os.getpid()}-{time.time_ns()}.new"
        file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        # Without the space, a full disk would kill the process when it counts.
        os.posix_fallocate(file, 0, SIZE)
        fcntl.flock(file, fcntl.LOCK_EX)
        memory = mmap.mmap(file, SIZE)
        memory[:] = self._memory[:]
        path.rename(path.with_suffix(_SUFFIX))
        self._memory, self._file = memory, file
        self.values = memoryview(memory).cast("d")


class SharedCells:
    """What the processes that share ``folder`` have counted, also those that have ended."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ended: Totals = {}
        self._lock = Lock()

    def totals(self) -> Totals:
        """The sum. It never goes down: what an ended process counted stays."""
        with self._lock:
            sums = {key: list(values) for key, values in self._ended.items()}
            for path in self._files():
                with suppress(FileNotFoundError):
                    _add(sums, self._take(path))
            return sums

    def process_ids(self) -> list[int]:
        """The processes that have a file, in order. They run, or have ended just now."""
        return sorted(int(path.name.partition("-")[0]) for path in self._files())

    def _files(self) -> Iterator[Path]:
        return self._folder.glob(f"*{_SUFFIX}")

    def _take(self, path: Path) -> Totals:
        """The totals of a process. Those of an ended one are kept, and its file is deleted."""
        with path.open("r+b") as file:
            has_ended = _is_unlocked(file.fileno())
            with mmap.mmap(file.fileno(), SIZE, access=mmap.ACCESS_READ) as memory:
                totals = totals_of(memory)
        if has_ended:
            _add(self._ended, totals)
            path.unlink()
        return totals


@contextmanager
def shared_folder() -> Iterator[Path]:
    """A folder for ``SharedCells``, which is deleted at the end; if this process is killed, by the
    next one that makes such a folder."""
    for left in Path(gettempdir()).glob(f"{_FOLDER_PREFIX}*"):
        _delete_if_left(left)
    with TemporaryDirectory(prefix=_FOLDER_PREFIX, ignore_cleanup_errors=True) as name:
        new, lock = Path(name, "new"), Path(name, _LOCK)
        with new.open("w") as file:
            fcntl.flock(file, fcntl.LOCK_EX)
            new.rename(lock)  # No other process ever sees it unlocked.
            yield Path(name)


def _delete_if_left(folder: Path) -> None:
    """A folder that cannot be looked at is another user's, or is being made or deleted."""
    with suppress(OSError), Path(folder, _LOCK).open("r+") as file:
        if _is_unlocked(file.fileno()):
            rmtree(folder)


def _is_unlocked(file: int) -> bool:
    """Whether the process that locked the file has ended."""
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def totals_of(memory: mmap.mmap) -> Totals:
    """All series in a process's memory."""
    copy = memory[:]
    values = memoryview(copy)[:_NAMES_AT].cast("d")
    names = copy[_NAMES_AT : _NAMES_AT + int(values[0])]
    lines = map(_decoder.decode, names.splitlines())
    return {
        (line.name, line.labels): [*map(float, values[line.at : line.at + line.width])]
        for line in lines
    }


def _add(sums: Totals, more: Totals) -> None:
    for key, values in more.items():
        before = sums.get(key)
        sums[key] = (
            list(values)
            if before is None
            else [one + other for one, other in zip(before, values, strict=True)]
        )


OWN_CELLS = Cells()
"""Those of this process."""
