"""Bounds of the connection pool. They import no driver, so that the settings can take their
defaults from here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseLimits:
    """``command_seconds`` covers all steps of a statement: waiting for a free connection,
    connecting, the statement itself and returning the connection to the pool.

    A connection that is idle for ``idle_seconds`` is closed, so that after a burst the server has
    room for other processes. Opening one again costs a call some milliseconds.

    A statement gives up a wait for a lock after ``lock_seconds``, and ends on the server after
    ``statement_seconds``; None leaves that to the server. The server refuses to write for a
    connection that is ``read_only``.
    """

    connections: int = 10
    command_seconds: float = 3.0
    idle_seconds: float = 10.0
    lock_seconds: float | None = None
    statement_seconds: float | None = None
    read_only: bool = False


BACKGROUND = DatabaseLimits(connections=1, idle_seconds=300.0, lock_seconds=0.5)
"""For recovery and the confirmation of pushes: a connection that no burst of requests takes, that
stays open when the server has no room for another one, and that no locked account takes for long.
"""

OPERATORS = DatabaseLimits(connections=3, statement_seconds=2.0, read_only=True)
"""For what operators are shown: a slow question takes no connection of the requests, and cannot
write."""
