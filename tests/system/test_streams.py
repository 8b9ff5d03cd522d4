"""Streams through real processes: stops, faults, and room for other requests."""

import json
import signal
import time
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse
from typing import Any

import pytest

from domain.sessions import FINAL_REVISION
from tests.system.deployment import DEADLINE_SECONDS, Deployment, eventually, free_port

GENERATIONS = "/api/v1/generations"
CONNECTIONS = 64
STREAMS = CONNECTIONS * 4 // 5


class Stream:
    """An open stream of one session."""

    def __init__(self, deployment: Deployment, port: int, session_id: str) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
        path = f"{GENERATIONS}/{session_id}/events"
        self._http.request("GET", path, headers=deployment.headers("b2c"))
        self.response: HTTPResponse = self._http.getresponse()

    def event(self) -> tuple[int, dict[str, Any]] | None:
        """Revision and data of the next event; None at the end."""
        fields: dict[str, str] = {}
        for raw in self.response:
            line = raw.decode().rstrip("\n")
            if not line and "data" in fields:
                return int(fields["id"]), json.loads(fields["data"])
            name, _, value = line.partition(": ")
            fields[name] = value
        return None

    def close(self) -> None:
        self._http.close()


@pytest.fixture
def port(deployment: Deployment) -> int:
    """The port of another API, which has few connections."""
    number = free_port()
    settings = {"WEARON_PORT": str(number), "WEARON_HTTP_MAX_CONNECTIONS": str(CONNECTIONS)}
    deployment.start("serve", **settings)
    eventually(lambda: _status(number) == 200)
    return number


def _status(port: int, path: str = "/health/ready") -> int:
    try:
        with closing(HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)) as http:
            http.request("GET", path)
            return http.getresponse().status
    except OSError:
        return 0


def test_stream_follows_a_session_through_another_process(
    deployment: Deployment, port: int
) -> None:
    """Submitted to one API and followed at another; the worker publishes its states."""
    session_id = deployment.submit().data["session_id"]
    with closing(Stream(deployment, port, session_id)) as stream:
        first = stream.event()
        deployment.start("worker")
        seen = [first]
        while (event := stream.event()) is not None:
            seen.append(event)

    revisions = [revision for revision, _ in filter(None, seen)]
    assert revisions == sorted(set(revisions))
    assert (revisions[0], revisions[-1]) == (1, FINAL_REVISION)
    assert seen[-1] is not None
    assert seen[-1][1] == deployment.session(session_id)


def test_stream_ends_without_redis(deployment: Deployment, port: int) -> None:
    """Its last state is found by the database alone: here an external consumer writes it."""
    session_id = deployment.submit().data["session_id"]
    with closing(Stream(deployment, port, session_id)) as stream:
        stream.event()
        deployment.valkey.stop()
        try:
            deployment.sql(
                "UPDATE generation_sessions SET status = 'completed',"
                " generated_image_url = 'https://elsewhere.example/p.png' WHERE id = $1",
                session_id,
            )
            began = time.monotonic()
            event = stream.event()
            seconds = time.monotonic() - began
        finally:
            deployment.valkey.start()

    assert event is not None
    assert (event[0], event[1]["status"]) == (FINAL_REVISION, "completed")
    assert seconds < DEADLINE_SECONDS / 2


def test_streams_end_at_once_when_the_process_stops(deployment: Deployment, port: int) -> None:
    """And a submission that waits gets its 202: the process is gone long before its bound."""
    session_id = deployment.submit().data["session_id"]
    api = deployment.processes[-1]
    with ExitStack() as stack:
        streams = [
            stack.enter_context(closing(Stream(deployment, port, session_id))) for _ in range(5)
        ]
        for stream in streams:
            stream.event()
        http = stack.enter_context(
            closing(HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS))
        )
        body = json.dumps({"model_image_url": f"{deployment.url}/samples/model.png"})
        count = deployment.sql("SELECT count(*) FROM generation_sessions")[0][0]
        http.request("POST", GENERATIONS, body, deployment.headers("b2c") | {"Prefer": "wait=60"})
        waiting = "SELECT count(*) FROM generation_sessions"
        eventually(lambda: deployment.sql(waiting)[0][0] > count)

        api.send_signal(signal.SIGTERM)
        ends = [stream.event() for stream in streams]
        answer = http.getresponse()

    assert ends == [None] * 5
    assert answer.status == 202
    assert api.wait(DEADLINE_SECONDS) == 0


def test_streams_leave_connections_for_other_requests(deployment: Deployment, port: int) -> None:
    """Beyond four fifths of them a stream gets a 503, while health and submissions answer. A
    submission that would wait is answered at once."""
    session_id = deployment.submit().data["session_id"]
    with ExitStack() as stack:
        opened = [
            stack.enter_context(closing(Stream(deployment, port, session_id)))
            for _ in range(STREAMS)
        ]
        refused = stack.enter_context(closing(Stream(deployment, port, session_id))).response
        health = _status(port)
        body = json.dumps({"model_image_url": f"{deployment.url}/samples/model.png"})
        http = stack.enter_context(
            closing(HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS))
        )
        http.request("POST", GENERATIONS, body, deployment.headers("b2c") | {"Prefer": "wait=60"})
        submitted = http.getresponse()
        submitted.read()

    assert {stream.response.status for stream in opened} == {200}
    assert refused.status == 503
    assert refused.headers["Retry-After"]
    assert health == 200
    assert submitted.status == 202


def test_clients_that_leave_make_room(deployment: Deployment, port: int) -> None:
    """As soon as their connections are closed."""
    session_id = deployment.submit().data["session_id"]
    streams = [Stream(deployment, port, session_id) for _ in range(STREAMS)]
    for stream in streams:
        stream.event()
        stream.response.close()
        stream.close()

    def opens() -> bool:
        with closing(Stream(deployment, port, session_id)) as stream:
            return stream.response.status == 200

    eventually(opens)
