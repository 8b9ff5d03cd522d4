"""Builds who may use the console, and what they can do there."""

import time
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING

from adapters.images.inputs import upload_key
from config.options import Environment
from domain.console_access import ConsoleAccess, Operators
from domain.console_actions import ConsoleActions

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


def actions(container: "Container", *, new_request_id: Callable[[], str]) -> ConsoleActions:
    return ConsoleActions(
        sessions=container.sessions(),
        submission=container.submission(),
        grants=container.grants(),
        letters=container.dead_letters(),
        keys=container.key_issuer(),
        pauses=container.pauses(),
        books=container.books(),
        audit_log=container.audit_log(),
        new_request_id=new_request_id,
    )


def key_of_upload(container: "Container") -> Callable[[str], str | None]:
    """The key of an upload in our storage, by its link."""
    return partial(upload_key, pictures=container.storage())
