"""Logs: events with fields, one a line on standard error."""

import io
import logging
import sys
from collections.abc import Callable
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
        sys.stderr.reconfigure(line_buffering=False)


def write_gathered_lines() -> None:
    """Call this about once a second, and at the end."""
    sys.stderr.flush()


def _logger(name: str | None = None) -> object:
    return _AccessLogger() if name == ACCESS_LOG else structlog.WriteLogger(sys.stderr)


class _AccessLogger:
    """Leaves it to the stream when to write its lines."""

    def info(self, line: str) -> None:
        sys.stderr.write(line + "\n")


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
    return msgspec.json.encode(event, enc_hook=default).decode()
