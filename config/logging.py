"""Logs: one event with fields per line, on standard error."""

import io
import json
import logging
import sys
from collections.abc import Callable, Mapping
from contextlib import suppress
from datetime import UTC, datetime
from select import PIPE_BUF
from typing import Any, ClassVar, TextIO, TypeAlias

import msgspec
import structlog

from config.options import LogFormat
from config.printable import printable
from config.settings import Settings

ACCESS_LOG = "access"
"""The logger that writes one line per request."""


AccessLine: TypeAlias = Callable[[Mapping[str, object], str, str, int | None, float], None]
"""Logs a request: its request info, method, path, response status (None if there was no response)
and duration in milliseconds."""

TASK_LOG = "tasks"
"""The logger that writes one line per finished task."""


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
    """Same output as structlog's JSON logger at less than half the cost; access logging is a large
    part of a request's cost."""
    level = logging.getLevelNamesMapping()[settings.log_level.upper()]
    if settings.log_format is LogFormat.CONSOLE or level > logging.INFO:
        return logged_access_line
    write = _StandardError(buffered=True).msg

    def write_line(
        info: Mapping[str, object], method: str, path: str, status: int | None, duration_ms: float
    ) -> None:
        line = {
            "event": "request",
            "level": "info",
            "timestamp": datetime.now(UTC),
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
    """Logs through structlog, as configured when the line is written."""
    _access_log.info("request", method=method, path=path, status=status, duration_ms=duration_ms)


_access_log = structlog.get_logger(ACCESS_LOG)


def buffer_access_logs() -> None:
    """Buffer access and task lines until ``flush_logs``, because writing each line alone adds half
    to the cost of a request. Other lines are written immediately, flushing any buffered before
    them."""
    if isinstance(sys.stderr, io.TextIOWrapper):
        sys.stderr.reconfigure(line_buffering=False, write_through=False)


def flush_logs() -> None:
    """Write the buffered lines. Call this about once a second, and at the end."""
    with suppress(OSError):
        sys.stderr.flush()


def _logger(name: str | None = None) -> object:
    return _StandardError(buffered=name in {ACCESS_LOG, TASK_LOG})


class _StandardError:
    """Writes lines immediately or, if ``buffered``, in batches of up to PIPE_BUF bytes: a pipe
    keeps this much in one piece, while a longer write may be interleaved with lines of other
    processes. A line that cannot be written is lost, because a full disk or a closed pipe must not
    fail a request."""

    _buffered_bytes: ClassVar[int] = 0
    """An upper bound, because other code may flush the stream. JSON lines are ASCII, so their
    characters are bytes."""

    def __init__(self, *, buffered: bool) -> None:
        self._buffered = buffered

    def msg(self, line: str) -> None:
        try:
            if _StandardError._buffered_bytes + len(line) >= PIPE_BUF:
                _StandardError._buffered_bytes = 0
                sys.stderr.flush()
            _StandardError._buffered_bytes += len(line) + 1
            sys.stderr.write(line + "\n")
            if not self._buffered:
                _StandardError._buffered_bytes = 0
                sys.stderr.flush()
        except OSError:
            pass

    debug = info = warning = error = critical = exception = msg


def _renderers(log_format: LogFormat) -> list[structlog.typing.Processor]:
    """Tracebacks omit local variables, because they contain tokens, keys and signed links."""
    if log_format is LogFormat.CONSOLE:
        return [
            _escape,
            structlog.dev.ConsoleRenderer(
                colors=sys.stderr.isatty(), exception_formatter=_plain_traceback
            ),
        ]
    tracebacks = structlog.tracebacks.ExceptionDictTransformer(show_locals=False)
    return [
        structlog.processors.ExceptionRenderer(tracebacks),
        structlog.processors.JSONRenderer(_json),
    ]


def _escape(_: object, __: str, event: structlog.typing.EventDict) -> structlog.typing.EventDict:
    return {
        name: printable(value) if isinstance(value, str) else value for name, value in event.items()
    }


def _plain_traceback(output: TextIO, exc_info: structlog.typing.ExcInfo) -> None:
    """The message of an error may come from a caller too."""
    buffer = io.StringIO()
    structlog.dev.plain_traceback(buffer, exc_info)
    output.write(printable(buffer.getvalue(), keep="\n"))


def _json(event: object, default: Callable[[Any], Any]) -> str:
    """ASCII only, because terminals interpret some of the other characters."""
    try:
        line = msgspec.json.encode(event, enc_hook=default)
    except UnicodeEncodeError:  # a lone surrogate, which file names may contain
        line = b"\xff"
    if line.isascii():
        return line.decode()
    return json.dumps(msgspec.to_builtins(event, enc_hook=default))
