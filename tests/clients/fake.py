"""A server that answers as it is told, faults included."""

import json
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from email.message import Message
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Lock, Thread
from typing import Any

GENERATIONS = "/api/v1/generations"
FINAL_REVISION = 2**31 - 1


@dataclass(frozen=True, slots=True)
class Seen:
    """A request that arrived, and when (``time.monotonic``)."""

    method: str
    path: str
    headers: Message
    body: bytes
    at: float

    @property
    def json(self) -> Any:
        return json.loads(self.body)


@dataclass(frozen=True, slots=True, kw_only=True)
class Answer:
    """One answer: its pieces go out one by one, and then the body ends, is cut off before its
    end, or hangs. A number among the pieces is a pause, in seconds."""

    status: int = 200
    headers: dict[str, str] = field(default_factory=dict)
    pieces: Sequence[bytes | float] = ()
    end: str = "whole"


CUT = Answer(status=0)
"""The connection is closed without an answer."""


def data(value: object, status: int = 200, **headers: str) -> Answer:
    """A success. Underscores in names of headers are hyphens."""
    return _enveloped({"data": value, "error": None}, status, headers)


def error(status: int, code: str, **headers: str) -> Answer:
    """A refusal."""
    body = {"data": None, "error": {"code": code, "message": f"{code} it is"}}
    return _enveloped(body, status, {"X_Request_Id": "req_1", **headers})


def _enveloped(body: object, status: int, headers: dict[str, str]) -> Answer:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return Answer(
        status=status,
        headers={"Content-Type": "application/json", **named},
        pieces=[json.dumps(body).encode()],
    )


def stream(*pieces: bytes | float, end: str = "whole") -> Answer:
    """A stream of events."""
    return Answer(headers={"Content-Type": "text/event-stream"}, pieces=pieces, end=end)


def session(session_id: str = "s1", status: str = "queued", **more: object) -> dict[str, Any]:
    return {"session_id": session_id, "status": status, "error_code": None, **more}


def event(revision: int, state: dict[str, Any]) -> bytes:
    return f"event: generation\nid: {revision}\ndata: {json.dumps(state)}\n\n".encode()


def final(session_id: str = "s1") -> bytes:
    return event(FINAL_REVISION, session(session_id, "completed"))


class FakeApi:
    """Answers requests in the order of the script; one beyond it is answered with 500."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.seen: list[Seen] = []
        self.released = Event()
        self._script: list[Answer] = []
        self._lock = Lock()

    def script(self, *answers: Answer) -> None:
        self._script += answers

    def replace_last(self, answer: Answer) -> None:
        self._script[-1] = answer

    def take(self, request: Seen) -> Answer:
        with self._lock:
            self.seen.append(request)
            return self._script.pop(0) if self._script else error(500, "BEYOND_THE_SCRIPT")


@contextmanager
def fake_api() -> Iterator[FakeApi]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), _Handler)
    api = FakeApi(f"http://127.0.0.1:{server.server_address[1]}")
    _Handler.apis[server] = api
    thread = Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield api
    finally:
        api.released.set()
        server.shutdown()
        thread.join()
        server.server_close()
        del _Handler.apis[server]


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    apis: dict[object, FakeApi] = {}  # noqa: RUF012 - one for each server

    def _answer(self) -> None:
        api = self.apis[self.server]
        body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
        answer = api.take(Seen(self.command, self.path, self.headers, body, time.monotonic()))
        self.close_connection = True
        if answer.status == 0:
            return
        self.send_response(answer.status)
        for name, value in answer.headers.items():
            self.send_header(name, value)
        self.send_header("Connection", "close")
        if answer.status == 204:
            self.end_headers()
            return
        self.send_header("Transfer-Encoding", "chunked")
        self.end_headers()
        with suppress(ConnectionError):  # the client has seen enough
            self._send(answer, api.released)

    def _send(self, answer: Answer, released: Event) -> None:
        for piece in answer.pieces:
            if isinstance(piece, bytes):
                self.wfile.write(b"%x\r\n%b\r\n" % (len(piece), piece))
                self.wfile.flush()
            else:
                released.wait(piece)
        if answer.end == "hang":
            released.wait(20)
        elif answer.end == "whole":
            self.wfile.write(b"0\r\n\r\n")

    do_GET = do_POST = do_PUT = do_DELETE = _answer  # noqa: N815 - the base class's names

    def log_message(self, format: str, *args: object) -> None:  # noqa: A002 - the base class's name
        pass
