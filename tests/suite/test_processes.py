"""``tests.support.processes``: what tests ask about processes that may end at any moment."""

import os
import subprocess
import sys

from tests.support.processes import children, command_line, family, is_alive, resident_kb


def test_process_that_ended_has_nothing() -> None:
    """A process that ends between two looks is seen as ended, and is no error of the test."""
    ended = subprocess.Popen((sys.executable, "-c", ""))
    ended.wait(timeout=30)

    assert family(ended.pid) == [ended.pid]
    assert children(ended.pid) == []
    assert command_line(ended.pid) == ""
    assert resident_kb(ended.pid) == 0
    assert not is_alive(ended.pid)


def test_process_that_was_not_reaped_is_not_alive() -> None:
    """A process is alive until it ends, though its parent has not asked for its exit code."""
    with subprocess.Popen((sys.executable, "-c", "input()"), stdin=subprocess.PIPE) as process:
        before = is_alive(process.pid)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)

        after = is_alive(process.pid)

    assert (before, after) == (True, False)
