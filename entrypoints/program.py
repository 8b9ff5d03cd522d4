"""The program ``wearon``: the command line, which Ctrl-C ends at any moment without a traceback."""

import os
import signal
import sys

INTERRUPTED = 130
"""What shells report for a program that SIGINT ended: 128 and the signal's number."""


def wearon() -> None:
    """Run the command line and exit. Commands that run until Ctrl-C handle the signal themselves.

    The imports are most of a short command's time, and the end of the interpreter may wait for
    threads. Neither leaves anything that has to be tidied up.
    """
    is_ignored = signal.getsignal(signal.SIGINT) is signal.SIG_IGN  # in a shell's background
    during = signal.SIG_IGN if is_ignored else signal.default_int_handler
    around = signal.SIG_IGN if is_ignored else _end_now
    signal.signal(signal.SIGINT, around)
    try:
        from entrypoints.cli import main  # noqa: PLC0415 - see above

        signal.signal(signal.SIGINT, during)
        main()
    except KeyboardInterrupt:
        _end_now()
    finally:
        signal.signal(signal.SIGINT, around)


def say_interrupted() -> None:
    """One line, below the ``^C`` that a terminal shows."""
    sys.stderr.write(f"{os.linesep if sys.stderr.isatty() else ''}Interrupted.\n")
    sys.stderr.flush()


def _end_now(*_: object) -> None:
    say_interrupted()
    os._exit(INTERRUPTED)
