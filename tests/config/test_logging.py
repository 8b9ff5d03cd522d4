"""Logs: one JSON object a line, with what is needed to follow a request and without its secrets."""

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
from config.settings import LogFormat, LogLevel, Settings
from entrypoints.http.request_info import REQUEST_INFO, RequestInfo, merge_request_info
from tests.support.examples import MODEL_URL, STORE
from tests.support.http import GENERATIONS, Api

SECRET = "correct-horse-battery-staple-0123456789"

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging belongs to the whole process, so it is given back."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    REQUEST_INFO.set(None)
    structlog.reset_defaults()


@pytest.fixture
def events(capsys: pytest.CaptureFixture[str]) -> Events:
    """What was logged since the last look, decoded; nothing may be on standard output."""

    def look() -> list[dict[str, Any]]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return [json.loads(line) for line in captured.err.splitlines()]

    return look


def configure(**changes: Any) -> Settings:
    """For the test itself to call: standard error is another one in every phase of a test."""
    settings = Settings(**changes)
    configure_logging(settings, merge_request_info)
    # Loggers of our modules would keep this configuration beyond the test.
    structlog.configure(cache_logger_on_first_use=False)
    return settings


def test_an_event_is_a_line_of_json(events: Events) -> None:
    """Event, level, time in UTC and all fields; what would break the line is escaped."""
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


def test_the_standard_library_s_records_look_the_same(events: Events) -> None:
    """Libraries that know nothing of structlog log through the same renderer."""
    configure()
    logging.getLogger("_granian").warning("Starting %s", "granian")

    (event,) = events()
    assert event["timestamp"].endswith("Z")
    assert (event["event"], event["level"]) == ("Starting granian", "warning")


def test_the_context_is_in_every_event(events: Events) -> None:
    """Request and session are bound once, and then in every line until they are not."""
    configure()
    with bound_contextvars(request_id="req_1", session_id="s1"):
        structlog.get_logger().info("ours")
        logging.getLogger("library").warning("theirs")
    structlog.get_logger().info("after")

    ours, theirs, after = events()
    assert (ours["request_id"], ours["session_id"]) == ("req_1", "s1")
    assert (theirs["request_id"], theirs["session_id"]) == ("req_1", "s1")
    assert "request_id" not in after


def test_a_traceback_is_in_the_line(events: Events) -> None:
    """An exception does not break the stream of lines: its traceback is data, from structlog as
    from the standard library, with its causes."""
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
def test_a_traceback_shows_no_local_variables(
    log_format: LogFormat, capsys: pytest.CaptureFixture[str]
) -> None:
    """Among the variables of the frames are tokens, keys and signed links."""
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


def test_the_level_is_a_threshold(capsys: pytest.CaptureFixture[str]) -> None:
    """What is less important than the setting is not logged, whoever logs it."""
    configure(log_level=LogLevel.WARNING)

    structlog.get_logger().info("ours")
    logging.getLogger("library").info("theirs")
    structlog.get_logger().warning("kept")

    (line,) = capsys.readouterr().err.splitlines()
    assert json.loads(line)["event"] == "kept"


def test_configuring_twice_logs_once(events: Events) -> None:
    """Another configuration takes the place of the one before."""
    configure()
    configure()

    logging.getLogger("library").warning("once")

    assert len(events()) == 1


def test_the_console_format_is_for_people(capsys: pytest.CaptureFixture[str]) -> None:
    """Readable lines, and no colour codes where standard error is no terminal."""
    assert not sys.stderr.isatty()
    configure(log_format=LogFormat.CONSOLE)

    structlog.get_logger().info("task_done", outcome="completed")

    (line,) = capsys.readouterr().err.splitlines()
    assert "task_done" in line
    assert "outcome=completed" in line
    assert "\x1b" not in line


@pytest.mark.anyio
async def test_a_request_s_line_has_neither_query_nor_token(events: Events) -> None:
    """The log says what was asked for, but not the signature that a picture's link carries in its
    query, nor the key that the caller showed."""
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


def test_a_request_s_line_is_as_any_other(capsys: pytest.CaptureFixture[str]) -> None:
    """Whichever way it is written: the quick one tells the same."""
    settings = configure()
    info: RequestInfo = {"request_id": "req_1", "owner": str(STORE), "session_id": UUID(int=1)}
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
def test_the_settings_hold_for_a_request_s_line(
    capsys: pytest.CaptureFixture[str], changes: dict[str, Any], lines: int
) -> None:
    """Where only warnings are wanted there is none, and where people read it is for people."""
    settings = configure(**changes)

    access_line(settings)({"request_id": "req_1"}, "GET", "/a", 200, 0.3)

    logged = capsys.readouterr().err.splitlines()
    assert len(logged) == lines
    assert all("path=/a" in line for line in logged)


@pytest.mark.anyio
@pytest.mark.parametrize("path", [GENERATIONS, GENERATIONS + "/"], ids=["fast path", "Litestar"])
async def test_all_of_a_request_is_in_its_line(events: Events, path: str) -> None:
    """Who asked for what, what it was called, what came of it and how long that took."""
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
    """What terminals obey, and what cannot be encoded, is escaped, whoever chose the text."""
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
    """Standard error as it is where that is a file: what reaches it is in ``written``."""

    def __init__(self, *, buffered: bool = False) -> None:
        self.raw = Raw()
        # As PYTHONUNBUFFERED has it, which many images set; and as it is without.
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
    """For the test itself to call, as ``configure``."""
    stream = Stream()
    monkeypatch.setattr(sys, "stderr", stream)
    return stream


@pytest.mark.parametrize("name", [ACCESS_LOG, TASK_LOG])
def test_lines_wait_for_others(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Only where that was asked for, and until others are written, or it is time; the order is
    that in which things happened."""
    stream = standard_error(monkeypatch)
    configure()
    access, other = structlog.get_logger(name), structlog.get_logger("other")

    access.info("1")
    at_once = stream.events()
    buffer_access_logs()
    access.info("2")
    access.info("3")
    gathered = stream.events()
    other.warning("4")
    with_another = stream.events()
    access.info("5")
    logging.getLogger("library").warning("6")
    with_a_library_s = stream.events()
    access.info("7")
    flush_logs()

    assert at_once == gathered == ["1"]
    assert with_another == ["1", "2", "3", "4"]
    assert with_a_library_s == ["1", "2", "3", "4", "5", "6"]
    assert stream.events() == ["1", "2", "3", "4", "5", "6", "7"]


@pytest.mark.parametrize("buffered", [True, False])
def test_whole_lines_are_written(monkeypatch: pytest.MonkeyPatch, *, buffered: bool) -> None:
    """However many wait, and no more at once than a pipe takes in one piece: other processes write
    to it as well."""
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


def test_no_request_fails_for_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where standard error takes no more, lines are lost, and later ones are not."""
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


def test_gathering_in_the_console_s_format(monkeypatch: pytest.MonkeyPatch) -> None:
    """As for machines."""
    stream = standard_error(monkeypatch)
    configure(log_format=LogFormat.CONSOLE)
    buffer_access_logs()

    structlog.get_logger("access").info("request", path="/a")
    before = list(stream.raw.written)
    flush_logs()

    assert before == []
    assert b"path=/a" in stream.raw.written[0]


def test_gathering_where_standard_error_is_no_stream_of_bytes(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """As under another program's capture: then lines are written as that one likes."""
    configure()
    buffer_access_logs()
    structlog.get_logger("access").info("request")
    flush_logs()

    assert json.loads(capsys.readouterr().err)["event"] == "request"
