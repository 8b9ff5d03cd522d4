"""Intercepts every statement on its way to asyncpg, to record or to replace it."""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any, TypeAlias

import asyncpg

from adapters.postgres.database import Database

Intercept: TypeAlias = Callable[[str, tuple[Any, ...]], tuple[str, tuple[Any, ...]]]
"""Takes a statement and its arguments, and returns those to send."""

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
def intercepted(intercept: Intercept) -> Iterator[None]:
    """Send every statement of this process through ``intercept``."""
    originals = {name: getattr(asyncpg.Connection, name) for name in _METHODS}
    try:
        for name, original in originals.items():
            setattr(asyncpg.Connection, name, _through(intercept, original))
        yield
    finally:
        for name, original in originals.items():
            setattr(asyncpg.Connection, name, original)


def _through(intercept: Intercept, original: Callable[..., Any]) -> Callable[..., Any]:
    def send(connection: object, sql: str, *arguments: Any, **options: Any) -> Any:
        sql, arguments = intercept(sql, arguments)
        return original(connection, sql, *arguments, **options)

    return send


def sent_by_product() -> bool:
    """Whether the intercepted statement is the product's rather than a test's, by its caller."""
    frame: FrameType | None = sys._getframe(1)
    while frame is not None and _passes_on(frame):
        frame = frame.f_back
    return frame is not None and _package(frame) in _PRODUCT


def _passes_on(frame: FrameType) -> bool:
    """Whether this frame only forwards statements: asyncpg, ``Database``, or this package."""
    if frame.f_globals.get("__package__") == __package__ or _package(frame) in _BETWEEN:
        return True
    return isinstance(frame.f_locals.get("self"), Database)


def _package(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", "")).partition(".")[0]
