"""The API's processes: many connections, stops, restarts, and their log."""

import json
import os
import resource
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from urllib.parse import urlsplit
from urllib.request import Request

import pytest

from tests.support.processes import command_line, family, is_alive
from tests.system.deployment import (
    DEADLINE_SECONDS,
    Answer,
    Deployment,
    eventually,
    free_port,
    kill,
)

CONNECTIONS = 2_000
ANSWER_SECONDS = 2.0
"""What an answer may take on a busy machine, while others hold their connections open."""

ASKED_SECONDS = 1.5
"""By then the parent has asked each process whether it lives."""
BUSY_SECONDS = 8.0
"""Longer than uvicorn waits by default for a process that does not answer."""

MODEL = "https://images.example.com/person.jpg"
LIMITED = ["/bin/sh", "-c"]
SERVE = f"{sys.executable} -P -m entrypoints.cli serve"
LIVE = b"GET /health/live HTTP/1.1\r\nHost: a\r\n\r\n"
HALF = b"GET /health/live HTTP/1.1\r\nHost: a\r\nX-A"


@contextmanager
def connected(port: int, sent: bytes = b"") -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", port), timeout=DEADLINE_SECONDS) as opened:
        opened.sendall(sent)
        yield opened


def answer_to(port: int, request: bytes = LIVE) -> bytes:
    """The beginning of the response; empty if the connection is closed or refused."""
    with suppress(OSError), connected(port, request) as connection:
        return connection.recv(65_536)
    return b""


def is_live(port: int) -> bool:
    return answer_to(port).startswith(b"HTTP/1.1 200")


def start(deployment: Deployment, **settings: str) -> tuple[subprocess.Popen[bytes], int]:
    """An API of its own, once it answers, and its port."""
    port = free_port()
    api = deployment.start("serve", WEARON_PORT=str(port), **settings)
    eventually(lambda: is_live(port))
    return api, port


def post(deployment: Deployment, port: int, path: str, **body: str) -> Answer:
    headers = deployment.headers("b2c")
    return deployment.call(
        Request(f"http://127.0.0.1:{port}{path}", json.dumps(body).encode(), headers)
    )


def workers(api: subprocess.Popen[bytes]) -> list[int]:
    """The API processes of this parent; multiprocessing's helper is none."""
    return [pid for pid in family(api.pid) if "spawn_main" in command_line(pid)]


def test_thousands_of_idle_connections(deployment: Deployment) -> None:
    """2,000 connections that are idle, silent or in the middle of their headers: health and a
    submission are answered at once."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (min(hard, CONNECTIONS + 1_000), hard))
    _, port = start(deployment)
    with ExitStack() as stack:
        for number in range(CONNECTIONS):
            opened = stack.enter_context(connected(port, (LIVE, b"", HALF)[number % 3]))
            if number % 3 == 0:
                assert opened.recv(65_536).startswith(b"HTTP/1.1 200")

        asked_at = time.monotonic()
        live = is_live(port)
        submitted = post(deployment, port, "/api/v1/generations", model_image_url=MODEL)
        took = time.monotonic() - asked_at
    resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert live
    assert submitted.status == 202
    assert took < ANSWER_SECONDS


def test_connections_above_the_descriptors(deployment: Deployment) -> None:
    """With few descriptors, a surplus connection is answered 503, and the API goes on."""
    port = free_port()
    log = deployment.folder / "few.log"
    with log.open("wb") as output:
        api = subprocess.Popen(
            [*LIMITED, "ulimit -n 280; exec " + SERVE],
            env=deployment.environ | {"WEARON_PORT": str(port)},
            stderr=output,
            start_new_session=True,
        )
    try:
        eventually(lambda: is_live(port))
        with ExitStack() as stack:
            for _ in range(100):
                stack.enter_context(connected(port))
            surplus = answer_to(port)
        eventually(lambda: is_live(port))
    finally:
        kill(api)

    assert surplus.startswith(b"HTTP/1.1 503")
    assert b"\r\nretry-after: " in surplus
    assert '"few_descriptors"' in log.read_text()


def test_too_few_descriptors(deployment: Deployment) -> None:
    """Said at the start, in a sentence."""
    done = subprocess.run(
        [*LIMITED, "ulimit -n 100; exec " + SERVE],
        env=deployment.environ | {"WEARON_PORT": str(free_port())},
        capture_output=True,
        text=True,
        timeout=DEADLINE_SECONDS,
        check=False,
    )

    assert done.returncode == 1
    assert "may open only 100 files (ulimit -n)" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize("processes", ["1", "2"])
def test_stop_is_bounded(deployment: Deployment, processes: str) -> None:
    """Idle and half-sent requests do not delay a stop, and a dripping upload only for its bound.
    The exit status is 0, and every line of the log is one of ours."""
    api, port = start(deployment, WEARON_HTTP_STOP_SECONDS="1", WEARON_API_WORKERS=processes)
    offer = post(deployment, port, "/api/v1/uploads", content_type="image/png").data
    upload = urlsplit(offer["upload_url"])
    target = f"{upload.path}?{upload.query}".encode()
    put = b"PUT %s HTTP/1.1\r\nHost: a\r\nContent-Type: image/png\r\nContent-Length: 9\r\n\r\nabc"

    with (
        connected(port, LIVE),
        connected(port),
        connected(port, HALF),
        connected(port, put % target),
    ):
        asked_at = time.monotonic()
        api.send_signal(signal.SIGTERM)
        status = api.wait(DEADLINE_SECONDS)
        took = time.monotonic() - asked_at

    log = (deployment.folder / "serve.log").read_text()
    assert status == 0
    assert took < 1 + ANSWER_SECONDS + 1
    assert "request_cut_off" in [json.loads(line)["event"] for line in log.splitlines()]


def test_several_processes(deployment: Deployment) -> None:
    """A killed process is replaced, and the others answer meanwhile; when the parent is killed, all
    of them end."""
    api, port = start(deployment, WEARON_API_WORKERS="2")
    eventually(lambda: len(workers(api)) == 2)
    before = workers(api)

    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(set(workers(api)) - {before[0]}) == 2)
    now = workers(api)
    eventually(lambda: is_live(port))
    os.kill(api.pid, signal.SIGKILL)
    eventually(lambda: not any(is_alive(pid) for pid in now))

    assert before[1] in now
    assert not is_live(port)


def test_process_that_gets_no_time_is_not_replaced(deployment: Deployment) -> None:
    """As while it starts on a busy machine: its replacement would start as slowly, and be replaced
    again, so that the API never answered."""
    api, port = start(deployment, WEARON_API_WORKERS="2")
    eventually(lambda: len(workers(api)) == 2)
    before = workers(api)

    os.kill(before[0], signal.SIGSTOP)
    time.sleep(BUSY_SECONDS)
    os.kill(before[0], signal.SIGCONT)
    eventually(lambda: is_live(port))

    assert workers(api) == before


def test_process_that_dies_without_an_answer_is_replaced_soon(deployment: Deployment) -> None:
    """Though its parent had asked it before: the parent waits for no answer."""
    api, _ = start(deployment, WEARON_API_WORKERS="2")
    eventually(lambda: len(workers(api)) == 2)
    before = workers(api)

    os.kill(before[0], signal.SIGSTOP)
    time.sleep(ASKED_SECONDS)
    os.kill(before[0], signal.SIGKILL)
    eventually(lambda: len(set(workers(api)) - {before[0]}) == 2, seconds=10)


def test_processes_that_cannot_start(deployment: Deployment) -> None:
    """Another program takes the port while they start: the parent ends with an error."""
    port = free_port()
    with socket.create_server(("127.0.0.1", port)):
        done = deployment.wearon(
            "serve", check=False, WEARON_PORT=str(port), WEARON_API_WORKERS="2"
        )

    assert done.returncode == 1
    assert "cannot listen" in done.stderr


@pytest.fixture
def unmigrated(deployment: Deployment) -> str:
    """The URL of an empty database on the same server."""
    deployment.postgres.create_database(name := f"empty-{free_port()}")
    return deployment.postgres.url(name)


def test_database_that_is_not_migrated(deployment: Deployment, unmigrated: str) -> None:
    """The API is alive, not ready, and logs why; a worker says so in a sentence and exits."""
    _, port = start(deployment, DATABASE_URL=unmigrated)
    ready = answer_to(port, LIVE.replace(b"live", b"ready"))
    log = (deployment.folder / "serve.log").read_text()
    worker = deployment.wearon("worker", check=False, DATABASE_URL=unmigrated)

    assert ready.startswith(b"HTTP/1.1 503")
    assert "The database is empty: run `wearon migrate`" in log
    assert worker.returncode == 1
    assert "DATABASE_URL: The database is empty: run `wearon migrate`" in worker.stderr
    assert "Traceback" not in worker.stderr
