"""Logs: one JSON object per line, with enough to follow a request and without its secrets."""

import errno
import io
import json
import logging
import sys
from collections.abc import Callable, Iterator
from datetime import datetime, timedelta
from select import PIPE_BUF
from typing import Any, cast
from uuid import UUID

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from config.logging import (
    ACCESS_LOG,
    TASK_LOG,
    access_line,
    buffer_access_logs,
    configure_logging,
    flush_logs,
    logged_access_line,
)
from config.options import LogFormat, LogLevel
from config.settings import Settings
from domain.traces import trace_id_of
from entrypoints.http.request_info import REQUEST_INFO, RequestInfo, merge_request_info
from tests.support.examples import MODEL_URL, STORE
from tests.support.http import GENERATIONS, Api

SECRET = "correct-horse-battery-staple-0123456789"

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def restored_logging() -> Iterator[None]:
    """Logging belongs to the whole process, so each test restores it."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    REQUEST_INFO.set(None)
    structlog.reset_defaults()


@pytest.fixture
def events(capsys: pytest.CaptureFixture[str]) -> Events:
    """Returns the events logged since the last call. Nothing may be on standard output."""

    def read() -> list[dict[str, Any]]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return [json.loads(line) for line in captured.err.splitlines()]

    return read


def configure(**changes: Any) -> Settings:
    """Called by the test itself, because pytest replaces standard error in every test phase."""
    settings = Settings(**changes)
    configure_logging(settings, merge_request_info)
    # Loggers of our modules would keep this configuration beyond the test.
    structlog.configure(cache_logger_on_first_use=False)
    return settings


def test_event_is_a_line_of_json(events: Events) -> None:
    """Event, level, time in UTC and all fields; line breaks are escaped."""
    configure()
    structlog.get_logger().info("task_done", outcome="completed", text="two\nlines")

    (event,) = events()
    assert event.pop("timestamp").endswith("Z")
    assert event == {
        "event": "task_done",
        "level": "info",
        "outcome": "completed",
        "text": "two\nlines",
    }


def test_records_of_the_standard_library_look_the_same(events: Events) -> None:
    """Libraries that use ``logging`` log through the same renderer."""
    configure()
    logging.getLogger("uvicorn.error").warning("Starting %s", "uvicorn")

    (event,) = events()
    assert event["timestamp"].endswith("Z")
    assert (event["event"], event["level"]) == ("Starting uvicorn", "warning")


def test_bound_context_is_in_every_event(events: Events) -> None:
    """Bound variables are in every line until they are unbound."""
    configure()
    with bound_contextvars(request_id="req_1", session_id="s1"):
        structlog.get_logger().info("ours")
        logging.getLogger("library").warning("theirs")
    structlog.get_logger().info("after")

    ours, theirs, after = events()
    assert (ours["request_id"], ours["session_id"]) == ("req_1", "s1")
    assert (theirs["request_id"], theirs["session_id"]) == ("req_1", "s1")
    assert "request_id" not in after


def test_traceback_is_part_of_the_line(events: Events) -> None:
    """An exception adds no lines: its traceback and its causes are fields of the event, from
    structlog and from the standard library."""
    configure()
    try:
        _fail_with(SECRET)
    except RuntimeError:
        structlog.get_logger().exception("ours")
        logging.getLogger("library").exception("theirs")

    for event in events():
        outer, inner = event["exception"]
        assert (outer["exc_type"], outer["exc_value"]) == ("RuntimeError", "it broke")
        assert inner["exc_type"] == "KeyError"
        assert inner["frames"][-1]["name"] == "_fail_with"


@pytest.mark.parametrize("log_format", LogFormat)
def test_traceback_omits_local_variables(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    """The variables of the frames contain tokens, keys and signed links."""
    configure(log_format=log_format)

    try:
        _fail_with(SECRET)
    except RuntimeError:
        structlog.get_logger().exception("ours")
        logging.getLogger("library").exception("theirs")

    logged = capsys.readouterr().err
    assert logged.count("it broke") >= 2
    assert SECRET not in logged


def _fail_with(token: str) -> None:
    try:
        {"another": "one"}[token[:1]]
    except KeyError as error:
        raise RuntimeError("it broke") from error


def test_level_is_a_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    """Events below the level are not logged, from structlog or from the standard library."""
    configure(log_level=LogLevel.WARNING)

    structlog.get_logger().info("ours")
    logging.getLogger("library").info("theirs")
    structlog.get_logger().warning("kept")

    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "kept"


def test_configuring_twice_logs_once(events: Events) -> None:
    """A second configuration replaces the first."""
    configure()
    configure()

    logging.getLogger("library").warning("once")

    assert len(events()) == 1


def test_console_escapes_control_characters(capsys: pytest.CaptureFixture[str]) -> None:
    """Those of callers, such as a path, and those in an error's message: a terminal would execute
    them, and a line end would begin a forged line."""
    configure(log_format=LogFormat.CONSOLE)
    try:
        raise ValueError("\x1b]0;title\x07")
    except ValueError:
        structlog.get_logger().exception("failed\nforged", path="/\x1b[2J\r")
    logging.getLogger("other").warning("\x1b[31mred")

    shown = capsys.readouterr().err
    assert "\\x1b]0;title\\x07" in shown
    assert "failed\\nforged" in shown
    assert not set(shown) & {"\x1b", "\x07", "\r"}


def test_console_format_is_readable(capsys: pytest.CaptureFixture[str]) -> None:
    """Its lines have no colour codes unless standard error is a terminal."""
    assert not sys.stderr.isatty()
    configure(log_format=LogFormat.CONSOLE)

    structlog.get_logger().info("task_done", outcome="completed")

    (line,) = capsys.readouterr().err.splitlines()
    assert "task_done" in line
    assert "outcome=completed" in line
    assert "\x1b" not in line


@pytest.mark.anyio
async def test_access_line_has_neither_query_nor_token(events: Events) -> None:
    """The log contains the path, but not the signature in a picture link's query or the caller's
    key."""
    configure()
    api = Api()
    key = await api.new_key(STORE)

    await api.get("/files/generated/u/s.jpg?expires=1&signature=5ec4e7", owner=None)
    await api.get("/api/v1/credits", owner=None, headers=[("authorization", f"Bearer {key}")])

    picture, balance = events()
    assert (picture["event"], picture["path"]) == ("request", "/files/generated/u/s.jpg")
    assert (balance["status"], balance["owner"]) == (200, str(STORE))
    assert picture["request_id"] != balance["request_id"]
    assert "5ec4e7" not in json.dumps(picture)
    assert key not in json.dumps(balance)


def test_fast_access_line_equals_that_of_structlog(capsys: pytest.CaptureFixture[str]) -> None:
    """Both ways of writing an access line give the same event."""
    settings = configure()
    info: RequestInfo = {
        "request_id": "req_1",
        "trace_id": "0" * 31 + "1",
        "owner": str(STORE),
        "session_id": UUID(int=1),
    }
    REQUEST_INFO.set(info)

    for write in (access_line(settings), logged_access_line):
        write(info, "POST", "/a/b\u00fc\udc80", None, 0.3)

    lines = capsys.readouterr().err
    quick, usual = map(json.loads, lines.splitlines())
    assert lines.isascii()
    assert quick["session_id"] == str(UUID(int=1))
    assert quick["timestamp"][-1] == usual["timestamp"][-1] == "Z"
    times = [datetime.fromisoformat(line.pop("timestamp")) for line in (quick, usual)]
    assert timedelta(0) <= times[1] - times[0] < timedelta(minutes=1)
    assert quick == usual


@pytest.mark.parametrize(
    ("changes", "lines"),
    [({"log_level": LogLevel.WARNING}, 0), ({"log_format": LogFormat.CONSOLE}, 1)],
)
def test_access_line_follows_the_settings(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], lines: int
) -> None:
    """It is not written at level ``warning``, and is readable in the console format."""
    settings = configure(**changes)

    access_line(settings)({"request_id": "req_1"}, "GET", "/a", 200, 0.3)

    logged = capsys.readouterr().err.splitlines()
    assert len(logged) == lines
    assert all("path=/a" in line for line in logged)


@pytest.mark.anyio
@pytest.mark.parametrize("path", [GENERATIONS, GENERATIONS + "/"], ids=["fast path", "Litestar"])
async def test_access_line_describes_the_request(events: Events, path: str) -> None:
    """Its id, owner, session, method, path, status and duration."""
    configure()
    api = Api()
    await api.service.accounts.grant(STORE, 1, note="test")

    answer = await api.call(
        "POST",
        path,
        owner=STORE,
        body={"model_image_url": MODEL_URL},
        headers=[("x-request-id", "mine-1")],
    )

    (line,) = events()
    assert line.pop("timestamp").endswith("Z")
    assert 0 <= line.pop("duration_ms") < 60_000
    assert line == {
        "event": "request",
        "level": "info",
        "request_id": "mine-1",
        "trace_id": trace_id_of("mine-1"),
        "owner": str(STORE),
        "session_id": answer.data["session_id"],
        "method": "POST",
        "path": path,
        "status": 202,
    }


@pytest.mark.parametrize(
    "text", ["b\u00fc", "\x9b2J\u2028\u202e", "\udc80", "\U0001f600", "\x1b[2J"]
)
def test_lines_are_ascii(capsys: pytest.CaptureFixture[str], text: str) -> None:
    """Control characters and characters that cannot be encoded are escaped."""
    configure()
    structlog.get_logger("access").info("request", path=text)
    structlog.get_logger().warning(text, error=ValueError(text), key={"a": [text]})

    err = capsys.readouterr().err
    first, second = [json.loads(line) for line in err.splitlines()]
    assert err.isascii()
    assert "\x1b" not in err
    assert (first["path"], second["event"], second["key"]) == (text, text, {"a": [text]})
    assert second["error"] == repr(ValueError(text))


class Stream(io.TextIOWrapper):
    """Standard error as a file that records its writes in ``raw.written``."""

    def __init__(self, *, buffered: bool = False) -> None:
        self.raw = Raw()
        # Unbuffered as with PYTHONUNBUFFERED, which many container images set.
        buffer = io.BufferedWriter(self.raw) if buffered else cast("Any", self.raw)
        super().__init__(buffer, encoding="utf-8", write_through=not buffered)

    def events(self) -> list[str]:
        return [json.loads(line)["event"] for line in b"".join(self.raw.written).splitlines()]


class Raw(io.RawIOBase):
    def __init__(self) -> None:
        self.written: list[bytes] = []
        self.is_full = False

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        if self.is_full:
            raise OSError(errno.ENOSPC, "No space left on device")
        self.written.append(bytes(data))
        return len(data)


def standard_error(monkeypatch: pytest.MonkeyPatch) -> Stream:
    """Called by the test itself, like ``configure``."""
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.mark.parametrize("name", [ACCESS_LOG, TASK_LOG])
def test_access_and_task_lines_are_buffered(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Once buffering is on, they are written with the next other line or by a flush, in the order
    of the events."""
    stream = standard_error(monkeypatch)
    configure()
    access, other = structlog.get_logger(name), structlog.get_logger("other")

    access.info("1")
    unbuffered = stream.events()
    buffer_access_logs()
    access.info("2")
    access.info("3")
    buffered = stream.events()
    other.warning("4")
    after_other_line = stream.events()
    access.info("5")
    logging.getLogger("library").warning("6")
    after_library_line = stream.events()
    access.info("7")
    flush_logs()

    assert unbuffered == buffered == ["1"]
    assert after_other_line == ["1", "2", "3", "4"]
    assert after_library_line == ["1", "2", "3", "4", "5", "6"]
    assert stream.events() == ["1", "2", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize("buffered", [True, False])
def test_buffered_lines_are_written_whole(
    monkeypatch: pytest.MonkeyPatch, *, buffered: bool
) -> None:
    """A write has whole lines, and at most the bytes that a pipe keeps in one piece, because other
    processes write to it as well."""
    stream = Stream(buffered=buffered)
    monkeypatch.setattr(sys, "stderr", stream)
    configure()
    buffer_access_logs()
    access = structlog.get_logger("access")
    for number in range(2_000):
        access.info("request", path="/" + "x" * (number * 7 % 900))
    flush_logs()

    assert sum(piece.count(b"\n") for piece in stream.raw.written) == 2_000
    assert len(stream.raw.written) < 500
    assert all(piece.endswith(b"\n") for piece in stream.raw.written)
    assert max(len(piece) for piece in stream.raw.written) <= PIPE_BUF


def test_failed_write_loses_only_its_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """A full disk fails no request; lines are written again once there is room."""
    stream = standard_error(monkeypatch)
    configure()
    buffer_access_logs()
    stream.raw.is_full = True

    for _ in range(1_000):
        structlog.get_logger("access").info("lost")
    structlog.get_logger().warning("lost")
    flush_logs()
    stream.raw.is_full = False
    structlog.get_logger().warning("kept")

    assert stream.events()[-1] == "kept"


def test_console_lines_are_buffered_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """Buffering does not depend on the format."""
    stream = standard_error(monkeypatch)
    configure(log_format=LogFormat.CONSOLE)
    buffer_access_logs()

    structlog.get_logger("access").info("request", path="/a")
    before = list(stream.raw.written)
    flush_logs()

    assert before == []
    assert b"path=/a" in stream.raw.written[0]


def test_buffering_without_a_byte_stream(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """If another program captures standard error in a text stream, buffering changes nothing."""
    configure()
    buffer_access_logs()
    structlog.get_logger("access").info("request")
    flush_logs()

    assert json.loads(capsys.readouterr().err)["event"] == "request"
