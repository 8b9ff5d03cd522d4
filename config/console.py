"""Builds who may use the console."""

import time
from typing import TYPE_CHECKING

from config.options import Environment
from domain.console_access import ConsoleAccess, Operators

if TYPE_CHECKING:
    from config.container import Container


def access(container: "Container") -> ConsoleAccess:
    """Raises ``SettingsError`` without the console's secret."""
    settings = container.settings()
    return ConsoleAccess(
        repo=container.repositories().operators,
        secret=settings.require("console_secret"),
        clock=container.clock(),
        ticks=time.monotonic,
        allow_developer=settings.environment is Environment.DEVELOPMENT,
    )


def operators(container: "Container") -> Operators:
    return Operators(container.repositories().operators)
