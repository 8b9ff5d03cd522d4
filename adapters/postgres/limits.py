"""Bounds of the connection pool. They import no driver, so that the settings can take their
defaults from here."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class DatabaseLimits:
    """``command_seconds`` covers all steps of a statement: waiting for a free connection,
    connecting, the statement itself and returning the connection to the pool."""

    connections: int = 10
    command_seconds: float = 3.0
