"""Logs: events with fields, one a line on standard error."""

import io
import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Any, ClassVar, TypeAlias

import msgspec
import structlog

from config.settings import LogFormat, Settings

ACCESS_LOG = "access"
"""The name of the logger of one line for each request."""


AccessLine: TypeAlias = Callable[[Mapping[str, object], str, str, int | None, float], None]
"""Logs an answered request: what is known of it, its method and path, the answer's status (None if
there was none), and how many milliseconds it took."""

TASK_LOG = "tasks"
"""The name of the logger of one line for each task that was done."""

GRANIAN_LOGGING: dict[str, Any] = {
    "version": 1,
    "disable_existing_loggers": False,
    "formatters": {},
    "handlers": {},
    "loggers": {"_granian": {"propagate": True}},
}
"""Lets granian's messages reach our root logger."""


def configure_logging(settings: Settings, *processors: structlog.typing.Processor) -> None:
    """Send structlog's events and the standard library's records through one renderer, after
    ``processors`` have added to them."""
    shared: list[structlog.typing.Processor] = [
        structlog.contextvars.merge_contextvars,
        *processors,
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


def access_line(settings: Settings) -> AccessLine:
    """Lines as a logger of structlog's would write them, for less than half its cost where they are
    JSON: it is a large part of what an answer costs."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    if settings.log_format is LogFormat.CONSOLE or level > logging.INFO:
        return logged_access_line
    write = _StandardError(at_once=False).msg

    def write_line(
        info: Mapping[str, object], method: str, path: str, status: int | None, duration_ms: float
    ) -> None:
        line = {
            "event": "request",
            "level": "info",
            "timestamp": datetime.now(UTC).isoformat().replace("+00:00", "Z"),
            **info,
            "method": method,
            "path": path,
            "status": status,
            "duration_ms": duration_ms,
        }
        write(_json(line, str))

    return write_line


def logged_access_line(
    info: Mapping[str, object],  # noqa: ARG001 - added by a processor of ``configure_logging``
    method: str,
    path: str,
    status: int | None,
    duration_ms: float,
) -> None:
    """By structlog, as it is configured when the line is written."""
    _access_log.info("request", method=method, path=path, status=status, duration_ms=duration_ms)


_access_log = structlog.get_logger(ACCESS_LOG)


def buffer_access_logs() -> None:
    """From now on lines of requests and of tasks that were done wait for others, and for
    ``flush_logs``: to write each one by itself costs a request as much as half of all
    else. Any other line is written at once, and those before it."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=False, write_through=False)


def flush_logs() -> None:
    """Call this about once a second, and at the end."""
    with suppress(OSError):
        sys.stderr.flush()


def _logger(name: str | None = None) -> object:
    return _StandardError(at_once=name not in {ACCESS_LOG, TASK_LOG})


class _StandardError:
    """Writes lines ``at_once``, or leaves them to wait for others, as far as these may be written
    together: a pipe takes so much in one piece, and more may have lines of other processes in its
    middle. A line that cannot be written, because the disk is full or the reader gone, is lost:
    nothing else may fail for it."""

    _waiting: ClassVar[int] = 0
    """Characters, which are bytes of a line in JSON; too many if somebody else wrote meanwhile."""

    def __init__(self, *, at_once: bool) -> None:
        self._at_once = at_once

    def msg(self, line: str) -> None:
        try:
            if _StandardError._waiting + len(line) >= PIPE_BUF:
                _StandardError._waiting = 0
                sys.stderr.flush()
            _StandardError._waiting += len(line) + 1
            sys.stderr.write(line + "\n")
            if self._at_once:
                _StandardError._waiting = 0
                sys.stderr.flush()
        except OSError:
            pass

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
