"""Streams through real processes: stops, faults, and room for other requests."""

import json
import re
import signal
import socket
import time
from collections.abc import Sequence
from contextlib import ExitStack, closing
from http.client import HTTPConnection, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any

import pytest

from adapters.changes.redis import CHANGED
from domain.links import MAX_URL_LENGTH
from domain.sessions import FINAL_REVISION, MAX_ACCESSORIES
from tests.system.deployment import DEADLINE_SECONDS, USER_ID, Deployment, eventually, free_port

GENERATIONS = "/api/v1/generations"
CONNECTIONS = 64
STREAMS = CONNECTIONS * 4 // 5
WRITE_SECONDS = 4
SLACK_SECONDS = 5
SLOW_CLIENTS = 4
SLOW_SESSIONS = 20
CHANGES = 80
MAX_GROWTH_KIB = 12 * 1024
"""All that the slow clients do not take is more than 100 MB, and 20 MB if they shared it."""


class Stream:
    """An open stream of one session, or of several ones."""

    def __init__(
        self,
        deployment: Deployment,
        port: int,
        *ids: str,
        after: int | None = None,
        takes_little: bool = False,
    ) -> None:
        self._http = HTTPConnection("127.0.0.1", port, timeout=DEADLINE_SECONDS)
        if takes_little:
            self._http.sock = _narrow_socket(port)
        path = f"/api/v1/events?ids={','.join(ids)}"
        if len(ids) == 1:
            path = f"{GENERATIONS}/{ids[0]}/events"
        headers = deployment.headers("b2c")
        if after is not None:
            headers["Last-Event-ID"] = str(after)
        self._http.request("GET", path, headers=headers)
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


def _narrow_socket(port: int) -> socket.socket:
    """A connection that holds some kilobytes on their way, as over a slow network: the loopback
    interface holds megabytes."""
    narrow = socket.socket()
    narrow.settimeout(DEADLINE_SECONDS)
    narrow.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4_096)
    narrow.setsockopt(socket.IPPROTO_TCP, socket.TCP_MAXSEG, 536)
    narrow.connect(("127.0.0.1", port))
    return narrow


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

    eventually(lambda: _stream_opens(deployment, port, session_id))


def _submit_large(deployment: Deployment) -> str:
    """A session of which each event has some 20 kB."""
    link = "https://images.example/".ljust(MAX_URL_LENGTH, "x")
    accessories = [{"type": "hat", "url": link}] * MAX_ACCESSORIES
    answer = deployment.submit(outfit_image_url=link, accessories=accessories)
    session_id: str = answer.data["session_id"]
    return session_id


def _change(deployment: Deployment, ids: Sequence[str], status: str | None = None) -> None:
    """Give all these sessions a new status, as an external consumer does, and publish it."""
    deployment.sql(
        "UPDATE generation_sessions SET generated_image_url = CASE WHEN $2 = 'completed'"
        " THEN 'https://elsewhere.example/p.png' END, status = coalesce($2,"
        " CASE status WHEN 'queued' THEN 'processing' ELSE 'queued' END) WHERE id = ANY($1)",
        ids,
        status,
    )
    owner = {"channel": "b2c", "user_id": str(USER_ID)}
    with closing(deployment.redis()) as redis:
        redis.publish(CHANGED, json.dumps([{"session_id": each, **owner} for each in ids]))


def _forget_peak(process_id: int) -> None:
    """From now on, ``_peak_kib`` is the peak of the time after this call."""
    Path(f"/proc/{process_id}/clear_refs").write_text("5")


def _peak_kib(process_id: int) -> int:
    """The most memory that the process had."""
    found = re.search(r"VmHWM:\s+(\d+) kB", Path(f"/proc/{process_id}/status").read_text())
    assert found
    return int(found[1])


def _stream_opens(deployment: Deployment, port: int, session_id: str) -> bool:
    with closing(Stream(deployment, port, session_id)) as stream:
        return stream.response.status == 200


def _seconds_of_a_change(deployment: Deployment, ids: Sequence[str], stream: Stream) -> float:
    began = time.monotonic()
    _change(deployment, ids)
    assert stream.event()
    return time.monotonic() - began


def test_clients_that_read_nothing_cost_little_and_are_cut_off(deployment: Deployment) -> None:
    """While the states of their sessions change, the process holds none of them but the newest, and
    sends another client its states without delay. After the bound they are disconnected, and
    resume with the newest states."""
    number = free_port()
    api = deployment.start(
        "serve",
        WEARON_PORT=str(number),
        WEARON_HTTP_WRITE_SECONDS=str(WRITE_SECONDS),
        WEARON_STREAMS_PER_OWNER=str(SLOW_CLIENTS + 1),
    )
    eventually(lambda: _status(number) == 200)
    ids = [_submit_large(deployment) for _ in range(SLOW_SESSIONS)]
    with ExitStack() as stack:

        def opened(*ids: str, **more: Any) -> Stream:
            return stack.enter_context(closing(Stream(deployment, number, *ids, **more)))

        def admitted(*ids: str, **more: Any) -> Stream | None:
            """None if there are too many streams."""
            stream = opened(*ids, **more)
            if stream.response.status == 200:
                return stream
            stream.close()
            return None

        def resume(*ids: str, **more: Any) -> Stream:
            bound = WRITE_SECONDS + SLACK_SECONDS
            stream = eventually(lambda: admitted(*ids, **more), seconds=bound)
            assert stream
            return stream

        quick = opened(ids[0])
        quick.event()
        slow = [opened(*ids, takes_little=True) for _ in range(SLOW_CLIENTS - 1)]
        single = opened(ids[0], takes_little=True)
        seen = single.event()
        assert seen
        _forget_peak(api.pid)
        before = _peak_kib(api.pid)
        delays = [_seconds_of_a_change(deployment, ids, quick) for _ in range(CHANGES)]
        growth = _peak_kib(api.pid) - before
        # Each needs the place of a slow client, whose rest is read only once all were cut off:
        # a client that reads again is not cut off.
        resumed = [resume(*ids) for _ in slow]
        again = resume(ids[0], after=seen[0])
        for stream in (*slow, single):
            with pytest.raises(IncompleteRead):
                stream.response.read()
        newest = [*[[stream.event() for _ in ids] for stream in resumed], [again.event()]]
        _change(deployment, ids, "completed")
        ends = [[*iter(stream.event, None)] for stream in (quick, *resumed, again)]

    assert max(delays) < WRITE_SECONDS / 2
    assert growth < MAX_GROWTH_KIB
    revisions = {event[0] for events in newest for event in events if event}
    assert revisions == {2 * (CHANGES // 2) + 1}
    assert {len(events) for events in newest} == {SLOW_SESSIONS, 1}
    assert [len(events) for events in ends] == [1, *[SLOW_SESSIONS] * len(slow), 1]
    assert {event[0] for events in ends for event in events} == {FINAL_REVISION}
