"""Ties the life of a process to that of its parent."""

import ctypes
import os
import signal
import sys

PR_SET_PDEATHSIG = 1

if sys.platform == "linux":
    # Looked up here, because little is safe between fork and exec.
    _prctl = ctypes.CDLL(None).prctl
    _prctl.argtypes = (ctypes.c_int, ctypes.c_ulong)


def die_with_parent(signum: signal.Signals, parent_pid: int) -> None:
    """Have the kernel send ``signum`` to this process when its parent ends, even by SIGKILL.

    For a child: ``Popen(..., preexec_fn=partial(die_with_parent, SIGTERM, os.getpid()))``. For the
    running process: ``die_with_parent(SIGTERM, os.getppid())``, as early as possible. Exits if the
    parent is gone already. The kernel watches the parent's *thread*: the thread that starts a child
    must live as long as the child. Linux only; elsewhere a child outlives a killed parent, so
    parents have to stop their children when they exit.
    """
    if sys.platform == "linux":
        _prctl(PR_SET_PDEATHSIG, signum)
    if os.getppid() != parent_pid:
        sys.exit("the parent process is gone")
