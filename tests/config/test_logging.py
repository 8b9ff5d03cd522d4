"""Logs: one JSON object a line, with what is needed to follow a request and without its secrets."""

import json
import logging
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import structlog
from structlog.contextvars import bound_contextvars

from config.logging import configure_logging
from config.settings import LogFormat, LogLevel, Settings
from tests.support.examples import STORE
from tests.support.http import Api

SECRET = "correct-horse-battery-staple-0123456789"

Events = Callable[[], list[dict[str, Any]]]


@pytest.fixture(autouse=True)
def as_before() -> Iterator[None]:
    """Logging belongs to the whole process, so it is given back."""
    root = logging.getLogger()
    handlers, level = root.handlers, root.level
    yield
    root.handlers, root.level = handlers, level
    structlog.reset_defaults()


@pytest.fixture
def events(capsys: pytest.CaptureFixture[str]) -> Events:
    """What was logged since the last look, decoded; nothing may be on standard output."""

    def look() -> list[dict[str, Any]]:
        captured = capsys.readouterr()
        assert captured.out == ""
        return [json.loads(line) for line in captured.err.splitlines()]

    return look


def configure(**settings: Any) -> None:
    """For the test itself to call: standard error is another one in every phase of a test."""
    configure_logging(Settings(**settings))
    # Loggers of our modules would keep this configuration beyond the test.
    structlog.configure(cache_logger_on_first_use=False)


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
