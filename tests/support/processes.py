"""What Linux says about processes, any of which may end while it is looked at."""

from pathlib import Path


def children(pid: int) -> list[int]:
    """The processes that a process started; none once it has ended."""
    return [
        int(child)
        for task in Path(f"/proc/{pid}/task").glob("*")
        for child in _read(task / "children").split()
    ]


def family(pid: int) -> list[int]:
    """A process and those that it started, directly or indirectly."""
    return [pid, *(member for child in children(pid) for member in family(child))]


def command_line(pid: int) -> str:
    """The arguments of a process, separated by NUL; nothing once it has ended."""
    return _read(Path(f"/proc/{pid}/cmdline"))


def is_alive(pid: int) -> bool:
    """Whether the process runs; one that ended and waits for its parent does not."""
    fields = _read(Path(f"/proc/{pid}/stat")).rpartition(")")[2].split()
    return bool(fields) and fields[0] != "Z"


def resident_kb(pid: int) -> int:
    """Resident memory of a process; 0 once it has ended."""
    lines = _read(Path(f"/proc/{pid}/status")).splitlines()
    sizes = [line.split()[1] for line in lines if line.startswith("VmRSS:")]
    return int(sizes[0]) if sizes else 0


def _read(path: Path) -> str:
    """A file of a process. Nothing once it has ended (ENOENT) or while it ends (ESRCH)."""
    try:
        return path.read_text()
    except (FileNotFoundError, ProcessLookupError):
        return ""
