"""What Linux says about our processes. One that has ended is no longer shown."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path

from config.counted import Kind, Metric

_PAGE_BYTES = os.sysconf("SC_PAGE_SIZE")
_TICKS = os.sysconf("SC_CLK_TCK")

CPU = Metric(
    name="wearon_process_cpu_seconds_total",
    kind=Kind.COUNTER,
    help="CPU time of a process",
    labels=("pid",),
)
MEMORY = Metric(
    name="wearon_process_resident_memory_bytes",
    kind=Kind.GAUGE,
    help="Resident memory of a process",
    labels=("pid",),
)
FILES = Metric(
    name="wearon_process_open_fds",
    kind=Kind.GAUGE,
    help="Open file descriptors of a process",
    labels=("pid",),
)
UPTIME = Metric(
    name="wearon_process_uptime_seconds",
    kind=Kind.GAUGE,
    help="How long ago a process was started",
    labels=("pid",),
)
OF_PROCESSES = (CPU, MEMORY, FILES, UPTIME)

_FIRST_FIELD = 3
"""The number, in proc(5), of the first field after the name of the program."""
_UTIME, _STIME, _STARTTIME, _RSS = 14, 15, 22, 24


def process_values(
    process_ids: Sequence[int],
) -> Iterator[tuple[Metric, dict[tuple[str, ...], float]]]:
    """Each metric with its values by process id."""
    found = {pid: fields for pid in process_ids if (fields := _fields(pid))}

    def of_each(read: Callable[[list[str]], float]) -> dict[tuple[str, ...], float]:
        return {(str(pid),): read(fields) for pid, fields in found.items()}

    yield CPU, of_each(lambda fields: (_at(fields, _UTIME) + _at(fields, _STIME)) / _TICKS)
    yield MEMORY, of_each(lambda fields: _at(fields, _RSS) * _PAGE_BYTES)
    yield FILES, {(str(pid),): number for pid in found if (number := _open_files(pid))}
    uptime = time.clock_gettime(time.CLOCK_BOOTTIME)
    yield UPTIME, of_each(lambda fields: max(0.0, uptime - _at(fields, _STARTTIME) / _TICKS))


def _at(fields: list[str], number: int) -> float:
    return float(fields[number - _FIRST_FIELD])


def _fields(pid: int) -> list[str]:
    """The fields of ``stat`` after the program's name; none if there is no such process."""
    with suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return []


def _open_files(pid: int) -> float:
    with suppress(OSError):
        return float(len(os.listdir(f"/proc/{pid}/fd")))  # noqa: PTH208 - a path per file costs more
    return 0.0
