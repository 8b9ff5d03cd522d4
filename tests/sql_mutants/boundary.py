"""Where SQL leaves the process: each text on its way to asyncpg is heard, and may be changed."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

import asyncpg

from adapters.postgres.database import Database

Hear: TypeAlias = Callable[[str, tuple[Any, ...]], tuple[str, tuple[Any, ...]]]
"""Given a text and its arguments, what to send."""

_METHODS = (
    "execute",
    "executemany",
    "fetch",
    "fetchrow",
    "fetchval",
    "fetchmany",
    "prepare",
    "cursor",
)
_PRODUCT = ("adapters", "config", "domain", "entrypoints")
_BETWEEN = ("asyncpg", "contextlib")


@contextmanager
def hearing(hear: Hear) -> Iterator[None]:
    """Every statement of this process goes through ``hear``."""
    originals = {name: getattr(asyncpg.Connection, name) for name in _METHODS}
    try:
        for name, original in originals.items():
            setattr(asyncpg.Connection, name, _through(hear, original))
        yield
    finally:
        for name, original in originals.items():
            setattr(asyncpg.Connection, name, original)


def _through(hear: Hear, original: Callable[..., Any]) -> Callable[..., Any]:
    def send(connection: object, sql: str, *arguments: Any, **options: Any) -> Any:
        sql, arguments = hear(sql, arguments)
        return original(connection, sql, *arguments, **options)

    return send


def sent_by_product() -> bool:
    """Whether the statement that is being heard was written by the product, not by a test."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _passes_on(frame):
        frame = frame.f_back
    return frame is not None and _package(frame) in _PRODUCT


def _passes_on(frame: FrameType) -> bool:
    """Whether this is on the way of a statement from its author to the server."""
    if frame.f_globals.get("__package__") == __package__ or _package(frame) in _BETWEEN:
        return True
    return isinstance(frame.f_locals.get("self"), Database)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
