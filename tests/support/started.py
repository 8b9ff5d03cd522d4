"""A command of ours, run as an operator runs it."""

import os
import re
import signal
import subprocess
import sys
import threading
from queue import Empty, SimpleQueue

import pytest

from tests.system.deployment import DEADLINE_SECONDS

STOP_SECONDS = 60.0
"""More than all processes of a stack may take to stop, one after the other."""


class Started:
    """A running command and its output."""

    def __init__(self, *arguments: str, **settings: str) -> None:
        bare = {name: value for name, value in os.environ.items() if not _is_ours(name)}
        self.process = subprocess.Popen(
            [sys.executable, "-P", "-m", "entrypoints.cli", *arguments],
            env=bare | settings,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        self._lines: SimpleQueue[str] = SimpleQueue()
        self._seen = ""
        self._reader = threading.Thread(target=self._read)
        self._reader.start()

    def output_until(self, pattern: str) -> str:
        """The output up to the first line that matches."""
        while not re.search(pattern, self._seen):
            try:
                self._seen += self._lines.get(timeout=DEADLINE_SECONDS)
            except Empty:
                pytest.fail(f"no {pattern!r} in:\n{self._seen}")
        return self._seen

    def end(self, signum: signal.Signals = signal.SIGTERM) -> int:
        if self.process.poll() is None:
            os.killpg(self.process.pid, signum)
        code = self.process.wait(STOP_SECONDS)
        self._reader.join(DEADLINE_SECONDS)
        if self.process.stdout:
            self.process.stdout.close()
        return code

    def _read(self) -> None:
        for line in self.process.stdout or ():
            self._lines.put(line.decode())


def _is_ours(variable: str) -> bool:
    named = {"DATABASE_URL", "REDIS_URL", "OPENAI_API_KEY", "REPLICATE_API_TOKEN"}
    return variable.startswith("WEARON_") or variable in named
