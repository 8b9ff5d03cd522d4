"""While PostgreSQL or Redis does not answer, every request ends by its deadline with a truthful
response. Afterwards the same processes go on."""

import json
import signal
import socket
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, closing, contextmanager, suppress
from dataclasses import dataclass
from http.client import HTTPConnection
from typing import NamedTuple

import pytest
from anyio.from_thread import BlockingPortal, start_blocking_portal

from adapters.embedded.postgres import PORT
from adapters.embedded.processes import EmbeddedServer
from adapters.embedded.valkey import SOCKET_NAME
from entrypoints.http.middleware import BODY_SECONDS
from tests.support.pause import paused
from tests.support.proxy import HOST, Proxy
from tests.system.deployment import DEADLINE_SECONDS, Deployment, eventually, free_port

SUBMIT_SECONDS = 3.0
DATABASE_SECONDS = 3.0
CHECK_SECONDS = 2.0
AT_ONCE_SECONDS = 0.0
MARGIN_SECONDS = 2.0
"""Added to a bound on a busy machine."""
BACK_SECONDS = 5.0
"""The time in which the service has recovered from a fault."""


class Call(NamedTuple):
    """A request, the deadline of its response, and its status without Redis."""

    target: str
    seconds: float
    without_redis: int


LIST = Call("GET /api/v1/generations", DATABASE_SECONDS, 200)
SUBMIT = Call("POST /api/v1/generations", SUBMIT_SECONDS, 503)
CREDITS = Call("GET /api/v1/credits", DATABASE_SECONDS, 200)
LIVE = Call("GET /health/live", AT_ONCE_SECONDS, 200)
READY = Call("GET /health/ready", CHECK_SECONDS, 503)


def calls(session_id: str) -> list[Call]:
    """One of each, and twenty more concurrent ones than there are connections."""
    return [
        SUBMIT,
        Call(f"GET /api/v1/generations/{session_id}", DATABASE_SECONDS, 200),
        Call("GET /api/v1/generations/stats", DATABASE_SECONDS, 200),
        CREDITS,
        Call("GET /api/v1/credits/ledger", DATABASE_SECONDS, 200),
        Call(f"POST /api/v1/generations/{session_id}/cancel", DATABASE_SECONDS, 200),
        LIVE,
        *[LIST] * 20,
    ]


@dataclass(frozen=True, slots=True)
class Answer:
    status: int
    headers: dict[str, str]
    body: bytes
    took_seconds: float


def ask(
    deployment: Deployment, call: Call, *, channel: str = "b2c", port: int | None = None
) -> Answer:
    """To the deployment's own API, unless ``port`` is another one's."""
    method, path = call.target.split()
    body = json.dumps({"model_image_url": f"{deployment.url}/samples/model.png"})
    headers = {
        "Authorization": f"Bearer {deployment.tokens[channel]}",
        "Content-Type": "application/json",
    }
    began = time.monotonic()
    with closing(
        HTTPConnection(HOST, port or deployment.port, timeout=DEADLINE_SECONDS)
    ) as connection:
        connection.request(method, path, body if call is SUBMIT else None, headers)
        response = connection.getresponse()
        return Answer(
            response.status, dict(response.headers), response.read(), time.monotonic() - began
        )


def refused(deployment: Deployment, call: Call) -> Answer | None:
    """The answer, if it is a 503."""
    answer = ask(deployment, call)
    return answer if answer.status == 503 else None


def ask_all(deployment: Deployment, asked: Sequence[Call]) -> list[Answer]:
    """All of them concurrently."""
    with ThreadPoolExecutor(len(asked)) as threads:
        return list(threads.map(lambda call: ask(deployment, call), asked))


@dataclass(frozen=True, slots=True)
class Wires:
    """The proxies between API, worker and their servers."""

    portal: BlockingPortal
    postgres: Proxy
    redis: Proxy

    @contextmanager
    def cut(self, name: str) -> Iterator[None]:
        """Nothing that is sent to the server arrives before this ends."""
        requests = getattr(self, name).requests
        self.portal.call(requests.clear)
        try:
            yield
        finally:
            self.portal.call(requests.set)


@pytest.fixture(scope="module")
def wires(deployed: Deployment) -> Iterator[Wires]:
    """In place while the tests of this file run."""
    postgres = Proxy(deployed.postgres.sockets / f".s.PGSQL.{PORT}")
    redis = Proxy(deployed.valkey.sockets / SOCKET_NAME)
    with (
        start_blocking_portal() as portal,
        portal.wrap_async_context_manager(postgres.running()),
        portal.wrap_async_context_manager(redis.running()),
    ):
        urls = {
            "DATABASE_URL": f"postgresql://wearon@{HOST}:{postgres.port}/wearon",
            "REDIS_URL": f"redis://{HOST}:{redis.port}",
        }
        with deployed.configured(**urls):
            yield Wires(portal, postgres, redis)


@pytest.fixture(scope="module")
def told_unavailable() -> list[str]:
    """The ids of all submissions answered 503 so far."""
    return []


@contextmanager
def stopped(server: EmbeddedServer) -> Iterator[None]:
    server.stop()
    try:
        yield
    finally:
        server.start()


def log_of_workers(deployment: Deployment) -> bytes:
    log = deployment.folder / "worker.log"
    return log.read_bytes() if log.exists() else b""


def away(name: str, how: str, deployment: Deployment, wires: Wires) -> AbstractContextManager[None]:
    server = deployment.postgres if name == "postgres" else deployment.valkey
    if how == "paused":
        return paused(server.pid)
    return stopped(server) if how == "stopped" else wires.cut(name)


@pytest.mark.parametrize("how", ["paused", "stopped", "black-holed"])
@pytest.mark.parametrize("name", ["postgres", "redis"])
def test_every_request_ends_in_time(
    deployment: Deployment, wires: Wires, told_unavailable: list[str], name: str, how: str
) -> None:
    """Without the database only the liveness probe works; without the queue, everything that does
    not need it. A 503 carries Retry-After. Afterwards the same API works again, and so does a
    worker that was started meanwhile."""
    asked = calls(deployment.submit().data["session_id"])
    logged = log_of_workers(deployment)

    with away(name, how, deployment, wires):
        worker = deployment.start("worker")
        answers = ask_all(deployment, asked)
        # The readiness of a moment before stands for a second.
        unready = eventually(lambda: refused(deployment, READY))
        eventually(lambda: b"worker_waiting" in log_of_workers(deployment).removeprefix(logged))
    told_unavailable.append(answers[0].headers["x-request-id"])
    eventually(lambda: ask(deployment, READY).status == 200, seconds=BACK_SECONDS)
    afterwards = ask_all(deployment, [SUBMIT, LIST])
    session_id = json.loads(afterwards[0].body)["data"]["session_id"]

    for call, answer in zip([*asked, READY], [*answers, unready], strict=True):
        assert answer is not None
        expected = call.without_redis if name == "redis" or call is LIVE else 503
        assert answer.status == expected, call
        assert answer.took_seconds < call.seconds + MARGIN_SECONDS, call
        assert ("retry-after" in answer.headers) is (expected == 503), call
    assert [answer.status for answer in afterwards] == [202, 200]
    deployment.wait_for(session_id, "completed")
    assert worker.poll() is None


def test_api_key_is_looked_up_in_time(deployment: Deployment, wires: Wires) -> None:
    """The deadline also covers authentication."""
    with wires.cut("postgres"):
        answer = ask(deployment, SUBMIT, channel="b2b")

    assert answer.status == 503
    assert answer.took_seconds < DATABASE_SECONDS + MARGIN_SECONDS


@pytest.mark.usefixtures("wires")
def test_every_session_is_settled_in_the_end(
    deployment: Deployment, told_unavailable: list[str]
) -> None:
    """Every 503 is refunded, although some statements took effect after they were cut off. Only
    completed sessions stay charged."""
    deployment.start("worker")
    eventually(lambda: deployment.get("/api/v1/generations/stats").data["active"] == 0)
    kept = deployment.sql(
        "SELECT id FROM generation_sessions"
        " WHERE request_id = ANY ($1) AND NOT (status = 'failed' AND refunded)",
        told_unavailable,
    )
    completed = deployment.get("/api/v1/generations/stats").data["completed"]

    assert kept == []
    assert deployment.balance() == 100 - completed
    deployment.assert_books_are_right()


def test_api_stops_in_time_without_its_database(deployment: Deployment) -> None:
    """SIGTERM while the database is silent: the request in flight is answered by its deadline,
    closing the pool waits for nothing, and the exit code is 0."""
    port = free_port()
    api = deployment.start("serve", WEARON_PORT=str(port))
    lock = "DO $$ BEGIN LOCK TABLE generation_sessions; PERFORM pg_sleep(2); END $$"
    locked = "SELECT pid FROM pg_locks WHERE mode = 'AccessExclusiveLock' AND granted"
    waiting = "SELECT pid FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    with ThreadPoolExecutor(2) as threads:
        eventually(lambda: listens(port))
        threads.submit(deployment.sql, lock)
        eventually(lambda: deployment.sql(locked))
        in_flight = threads.submit(ask, deployment, LIST, port=port)
        eventually(lambda: deployment.sql(waiting))
        ask(deployment, CREDITS, port=port)  # leaves an idle connection
        with paused(deployment.postgres.pid):
            began = time.monotonic()
            api.send_signal(signal.SIGTERM)
            exit_code = api.wait(DEADLINE_SECONDS)
            took_seconds = time.monotonic() - began

    assert exit_code == 0
    assert in_flight.result().status == 503
    assert took_seconds < DATABASE_SECONDS + MARGIN_SECONDS


def listens(port: int) -> bool:
    with socket.socket() as probe:
        return probe.connect_ex((HOST, port)) == 0


def test_slow_drip_body_is_cut_off(deployment: Deployment) -> None:
    """A request that never ends is answered after ten seconds, and its connection is closed."""
    head = (
        "POST /api/v1/generations HTTP/1.1\r\nHost: wearon\r\nContent-Type: application/json\r\n"
        f"Authorization: Bearer {deployment.tokens['b2c']}\r\nContent-Length: 1000\r\n\r\n"
    )
    answer = b""
    began = time.monotonic()
    with socket.create_connection((HOST, deployment.port), timeout=0.5) as caller:
        caller.sendall(head.encode())
        while not answer and time.monotonic() < began + BODY_SECONDS + MARGIN_SECONDS:
            caller.sendall(b" ")
            with suppress(TimeoutError):
                answer = caller.recv(65_536)
    took_seconds = time.monotonic() - began

    assert answer.startswith(b"HTTP/1.1 400 ")
    assert b"body: did not arrive in time" in answer
    assert BODY_SECONDS <= took_seconds < BODY_SECONDS + MARGIN_SECONDS
