"""``wearon status`` on real servers: exit codes, and what is named while a server is broken."""

import json
import os
import pty
import re
import select
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from redis import Redis

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.embedded.valkey import EmbeddedValkey
from tests.support.cli import new_shop, wearon

WEARON = Path(sys.executable).with_name("wearon")
SECONDS = 30.0


@pytest.fixture
def env(postgres: EmbeddedPostgres, valkey: EmbeddedValkey) -> dict[str, str]:
    """A service at rest."""
    with Redis.from_url(valkey.url) as client:
        client.flushall()
    return new_shop(postgres.url()).env | {"REDIS_URL": valkey.url}


def status(env: dict[str, str]) -> tuple[int, dict[str, Any]]:
    result = wearon("status", "--json", env=env)
    return result.exit_code, json.loads(result.stdout)


def test_service_at_rest(env: dict[str, str]) -> None:
    """No alarm, exit code 0, no colour for a program that reads."""
    result = wearon("status", env=env)

    assert result.exit_code == 0
    assert result.stdout.splitlines()[0].endswith("UTC  no alarm")
    assert "workers  0 report, none known" in result.stdout
    assert "\x1b" not in result.stdout


def test_missing_redis_is_named(env: dict[str, str]) -> None:
    """With its address and the error, without the password; the database's part is shown."""
    code, shown = status(env | {"REDIS_URL": "redis://:hunter2@127.0.0.1:1/0"})

    assert code == 1
    assert [(alarm["code"], alarm["sentence"]) for alarm in shown["alarms"]] == [
        ("REDIS_UNAVAILABLE", "No answer from Redis at 127.0.0.1:1: connection refused.")
    ]
    assert shown["snapshot"]["queued"] == 0
    assert shown["tasks_in_redis"] is None


def test_missing_database_is_named(env: dict[str, str]) -> None:
    """The same the other way round."""
    url = "postgresql://user:hunter2@127.0.0.1:1/x?password=hunter2"

    code, shown = status(env | {"DATABASE_URL": url})

    assert code == 1
    assert [(alarm["code"], alarm["sentence"]) for alarm in shown["alarms"]] == [
        ("DATABASE_UNAVAILABLE", "No answer from PostgreSQL at 127.0.0.1:1: connection refused.")
    ]
    assert (shown["snapshot"], shown["tasks_in_redis"]) == (None, 0)


def test_redis_that_rejects_writes_is_named(env: dict[str, str], valkey: EmbeddedValkey) -> None:
    """It answers every read, and the doctor says so too."""
    with Redis.from_url(valkey.url) as client:
        client.config_set("maxmemory", 1)
        try:
            code, shown = status(env)
            examined = wearon("doctor", env=env).stdout
        finally:
            client.config_set("maxmemory", 0)

    assert code == 1
    (alarm,) = shown["alarms"]
    assert alarm["code"] == "REDIS_REJECTS_WRITES"
    assert alarm["sentence"].startswith("Writes fail at Redis at ")
    assert alarm["sentence"].endswith(": OOM command not allowed when used memory > 'maxmemory'.")
    assert re.search(r"^FAILED +redis writes", examined, re.MULTILINE)


def test_dead_letter_is_a_warning(env: dict[str, str], valkey: EmbeddedValkey) -> None:
    """Shown, with exit code 0: it can wait for the morning."""
    with Redis.from_url(valkey.url) as client:
        client.lpush("wearon:tasks:dead", "poison")

    code, shown = status(env)

    assert code == 0
    assert [alarm["code"] for alarm in shown["alarms"]] == ["DEAD_LETTERS"]


@contextmanager
def watching(env: dict[str, str]) -> "Iterator[tuple[subprocess.Popen[bytes], int]]":
    """`wearon status --watch` on a terminal; the process, and the terminal's other end."""
    ours, theirs = pty.openpty()
    with subprocess.Popen(
        [str(WEARON), "status", "--watch"],
        env={k: v for k, v in os.environ.items() if k != "NO_COLOR"} | env,
        stdout=theirs,
        stderr=subprocess.PIPE,
    ) as process:
        os.close(theirs)
        try:
            yield process, ours
        finally:
            process.kill()
            os.close(ours)


def read_screens(terminal: int, number: int) -> str:
    """What was drawn, once the screen was erased for the ``number``-th time and drawn."""
    drawn, deadline = "", time.monotonic() + SECONDS
    while (
        drawn.count("\x1b[2J") < number or "workers  0 report" not in drawn.rpartition("\x1b[2J")[2]
    ):
        assert select.select([terminal], [], [], max(0, deadline - time.monotonic()))[0], drawn
        drawn += os.read(terminal, 65_536).decode()
    return drawn


@pytest.mark.processes
def test_watch_redraws_until_ctrl_c(env: dict[str, str]) -> None:
    """On a terminal, in colour."""
    with watching(env) as (process, terminal):
        drawn = read_screens(terminal, 2)
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=SECONDS)

    assert "\x1b[32m\x1b[1m" in drawn
    assert (process.returncode, errors) == (130, b"Interrupted.\n")


@pytest.mark.processes
def test_no_colour_is_respected(env: dict[str, str]) -> None:
    """https://no-color.org"""
    with watching(env | {"NO_COLOR": "1"}) as (_, terminal):
        drawn = read_screens(terminal, 1)

    assert "\x1b[" in drawn
    assert "\x1b[32m" not in drawn
