"""A shell that runs a page's commands one after the other, and what their output has to look like.

Its PATH holds a few programs and ``wearon``, so a command that a reader may not have, or that the
test must not run, is not found and fails.
"""

import os
import re
import shutil
import signal
import subprocess
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from queue import Empty, SimpleQueue
from typing import Self

import pytest

PROGRAMS = ("cat", "curl", "cut", "grep", "head", "sleep", "tee")
"""What the pages' commands may use, besides bash and ``wearon``."""

_MISSING = [name for name in ("bash", *PROGRAMS) if shutil.which(name) is None]
needs_programs = pytest.mark.skipif(
    bool(_MISSING) and "CI" not in os.environ, reason=f"not installed: {', '.join(_MISSING)}"
)
"""CI installs what is missing, so there a test without its programs is red."""

STEP_SECONDS = 60.0
STOP_SECONDS = 30.0
_DONE = "-- step done --"

_VARIABLE = {
    r"signature=[0-9a-f]+\.\.\.": r"signature=[0-9a-f]{64}",
    r"\.\.\.": r"[\s\S]*?",
    r"[0-9a-f]{8}(?:-[0-9a-f]{4}){3}-[0-9a-f]{12}": r"[0-9a-f-]{36}",
    r"\d{4}-\d\d-\d\dT[\d:.]+Z": r"[0-9-]{10}T[0-9:.]+Z",
    r"\d{4}-\d\d-\d\d": r"[0-9-]{10}",
    r"wk_[0-9a-f]{32}": r"wk_[0-9a-f]{32}",
    r"127\.0\.0\.1:\d+": r"127\.0\.0\.1:\d+",
    r"expires=\d+": r"expires=\d+",
    r'(?<=":)-?\d+(?=[,}])': r"-?\d+",
}
"""What differs from run to run, as a page has it: ids, times, keys, ports, numbers in JSON. Three
dots stand for any text."""

_ANY_VARIABLE = re.compile("|".join(f"({pattern})" for pattern in _VARIABLE))


def looks_like(shown: str, output: str) -> bool:
    """Whether ``output`` has the shape of what a page shows."""
    actual = list(_VARIABLE.values())
    pattern, end = "", 0
    for found in _ANY_VARIABLE.finditer(shown):
        assert found.lastindex is not None
        pattern += re.escape(shown[end : found.start()]) + actual[found.lastindex - 1]
        end = found.end()
    pattern += re.escape(shown[end:])
    return re.fullmatch(pattern, output.strip()) is not None


@dataclass(frozen=True, slots=True)
class Ran:
    """How a command ended, and what it wrote to standard output."""

    exit_code: int
    output: str


class Terminal:
    """One bash for all commands, so that variables and background jobs live on. Ends with all that
    was started in it."""

    def __init__(self, folder: Path) -> None:
        self._log = folder / "terminal.log"
        with self._log.open("ab") as log:
            self._bash = subprocess.Popen(
                [_path_of("bash"), "--noprofile", "--norc"],
                cwd=folder,
                env={"PATH": str(_programs(folder)), "HOME": str(folder)},
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,
            )
        self._lines: SimpleQueue[str | None] = SimpleQueue()
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def run(self, command: str) -> Ran:
        """Run the command to its end; raises ``TimeoutError`` if that does not come."""
        assert self._bash.stdin is not None
        self._bash.stdin.write(f"{command}\nprintf '\\n%s %s\\n' '{_DONE}' $?\n")
        self._bash.stdin.flush()
        output = ""
        while True:
            try:
                line = self._lines.get(timeout=STEP_SECONDS)
            except Empty:
                raise TimeoutError(f"no end of {command!r}; so far {output!r}") from None
            if line is None:
                raise TimeoutError(f"the shell ended in {command!r}; {output!r}")
            if line.startswith(_DONE):
                return Ran(int(line.split()[-1]), output)
            output += line

    def errors(self) -> str:
        """The end of what was written to standard error."""
        return self._log.read_text(errors="replace")[-2_000:]

    def close(self) -> None:
        for signum in (signal.SIGTERM, signal.SIGKILL):
            if self._reader.is_alive():
                os.killpg(self._bash.pid, signum)
                self._reader.join(STOP_SECONDS)
        self._bash.wait()
        for pipe in (self._bash.stdin, self._bash.stdout):
            if pipe is not None:
                pipe.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self) -> None:
        """Until the last process that has the pipe is gone."""
        assert self._bash.stdout is not None
        for line in self._bash.stdout:
            self._lines.put(line)
        self._lines.put(None)


def _programs(folder: Path) -> Path:
    """A folder with links to what may be run."""
    programs = folder / "programs"
    programs.mkdir(exist_ok=True)
    found = {name: _path_of(name) for name in PROGRAMS}
    found["wearon"] = str(Path(sys.prefix) / "bin" / "wearon")
    for name, program in found.items():
        link = programs / name
        if not link.exists():
            link.symlink_to(program)
    return programs


def _path_of(program: str) -> str:
    path = shutil.which(program)
    assert path is not None, f"{program} is needed to run the commands of the documents"
    return path
