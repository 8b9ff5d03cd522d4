"""Logs: events with fields, one a line on standard error."""

import io
import json
import logging
import sys
from collections.abc import Callable
from contextlib import suppress
from typing import Any

import msgspec
import structlog

from config.settings import LogFormat, Settings

ACCESS_LOG = "access"
"""The name of the logger of one line for each request."""

GRANIAN_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"propagate": True}},
}
"""Lets granian's messages reach our root logger."""


def configure_logging(settings: Settings) -> None:
    """Send structlog's events and the standard library's records through one renderer."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    structlog.configure(
        processors=[*shared, *_renderers(settings.log_format)],
        wrapper_class=structlog.make_filtering_bound_logger(settings.log_level),
        logger_factory=_logger,
        cache_logger_on_first_use=True,
    )
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                *_renderers(settings.log_format),
            ],
        )
    )
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(settings.log_level.upper())


def gather_access_lines() -> None:
    """From now on lines of the access log wait for others, and for ``write_gathered_lines``: to
    write each one by itself costs a request as much as half of all else. Any other line is written
    at once, and those before it."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=False, write_through=False)


def write_gathered_lines() -> None:
    """Call this about once a second, and at the end."""
    with suppress(OSError):
        sys.stderr.flush()


def _logger(name: str | None = None) -> object:
    return _StandardError(at_once=name != ACCESS_LOG)


class _StandardError:
    """Writes lines ``at_once``, or leaves it to the stream when. A line that cannot be written,
    because the disk is full or the reader gone, is lost: nothing else may fail for it."""

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once

    def msg(self, line: str) -> None:
        with suppress(OSError):
            sys.stderr.write(line + "\n")
            if self._at_once:
                sys.stderr.flush()

    debug = info = warning = error = critical = exception = msg


def _renderers(log_format: LogFormat) -> list[structlog.typing.Processor]:
    """Tracebacks come without local variables, among which are tokens, keys and signed links."""
    if log_format is LogFormat.CONSOLE:
        return [
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=structlog.dev.plain_traceback
            )
        ]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(_json),
    ]


def _json(event: object, default: Callable[[Any], Any]) -> str:
    """In ASCII: among other characters are some that terminals obey."""
    try:
        line = msgspec.json.encode(event, enc_hook=default)
    except UnicodeEncodeError:  # of half a surrogate pair, as names of files may have
        line = b"\xff"
    return line.decode() if line.isascii() else json.dumps(event, default=default)
