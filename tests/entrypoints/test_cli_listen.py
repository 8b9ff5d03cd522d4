"""``wearon webhooks listen``, against an API that is played by a server on loopback."""

import json
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit
from uuid import uuid4

import pytest
from click.testing import Result
from standardwebhooks.webhooks import Webhook

from entrypoints.cli import listen
from tests.support.cli import wearon

KEY = "wk_hidden"
DEADLINE_SECONDS = 20.0


def a_state(status: str = "completed", **fields: Any) -> dict[str, Any]:
    at = None if status in {"queued", "processing"} else "2026-01-01T12:00:00.5Z"
    return {"session_id": str(uuid4()), "status": status, "completed_at": at} | fields


class World:
    """The API: ``streams`` are what one stream after the other sends, before it ends; ``listed``
    are its sessions, newest first. And the receiver, which answers with ``status``."""

    def __init__(self) -> None:
        self.listed: list[dict[str, Any]] = []
        self.streams: list[list[dict[str, Any]]] = []
        self.on_open: list[dict[str, Any]] = []
        self.refusals: list[int] = []
        self.status = 204
        self.received: list[tuple[dict[str, str], bytes]] = []
        self.keys: set[str | None] = set()
        self.url = ""

    def page(self, query: str) -> dict[str, Any]:
        start = int(parse_qs(query).get("cursor", ["0"])[0])
        size = int(parse_qs(query)["limit"][0])
        more = len(self.listed) > start + size
        items = self.listed[start : start + size]
        return {"items": items, "next_cursor": str(start + size) if more else None}


def handler_of(world: World) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            world.keys.add(self.headers["Authorization"])
            target = urlsplit(self.path)
            if target.path == "/api/v1/generations":
                self._answer(200, {"data": world.page(target.query), "error": None})
            elif world.refusals:
                error = {"code": "X", "message": "Not \x1b[31mthis"}
                self._answer(world.refusals.pop(0), {"data": None, "error": error})
            else:
                self._stream()

        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["Content-Length"]))
            world.received.append((dict(self.headers), body))
            self.send_response(world.status)
            self.send_header("Location", "/elsewhere")
            self.send_header("Content-Length", "0")
            self.end_headers()

        def _answer(self, status: int, value: object) -> None:
            body = json.dumps(value).encode()
            self.send_response(status)
            self.send_header("Retry-After", "0")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def _stream(self) -> None:
            states = world.streams.pop(0)
            world.listed[:0], world.on_open = world.on_open, []
            self.send_response(200)
            self.send_header("Content-Type", "text/event-stream")
            self.end_headers()
            self.wfile.write(b"retry: 1000\n\n: ping\n\nevent: other\ndata: {}\n\n")
            for state in states:
                data = json.dumps(state).encode()
                self.wfile.write(b"id: 3\nevent: generation\ndata: %s\n\n: ping\n\n" % data)

        def log_message(self, *_: object) -> None:
            """Nothing on standard error."""

    return Handler


@contextmanager
def serving(world: World) -> Iterator[World]:
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler_of(world))
    world.url = f"http://127.0.0.1:{server.server_address[1]}"
    thread = threading.Thread(target=server.serve_forever, args=(0.01,))
    thread.start()
    try:
        yield world
    finally:
        server.shutdown()
        thread.join(DEADLINE_SECONDS)
        server.server_close()


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> Iterator[World]:
    monkeypatch.setattr(listen, "FIRST_PAUSE_SECONDS", 0.01)
    with serving(World()) as world:
        yield world


def listened(world: World, count: int = 1, forward_to: str = "") -> Result:
    return wearon(
        *("webhooks", "listen", "--api", world.url, "--count", count),
        *("--forward-to", forward_to or f"{world.url}/hook"),
        env={"API_KEY": KEY},
    )


def forwarded(world: World) -> list[str]:
    return [json.loads(body)["data"]["session_id"] for _, body in world.received]


def test_final_sessions_are_forwarded_signed(world: World) -> None:
    """As the API shows them, with the secret that was printed. Other states are not."""
    completed, failed = a_state(prompt="a hat"), a_state("failed")
    world.streams = [[a_state("queued"), a_state("processing"), completed, failed]]
    result = listened(world, 2)

    assert result.exit_code == 0, result.output
    first, listening, *lines = result.stdout.splitlines()
    secret = first.removeprefix("Secret of this run: ")
    assert listening == "Listening."
    messages = [Webhook(secret).verify(body, headers) for headers, body in world.received]
    assert messages == [
        {"type": "generation.completed", "timestamp": "2026-01-01T12:00:00.500000Z",
         "data": completed},
        {"type": "generation.failed", "timestamp": "2026-01-01T12:00:00.500000Z", "data": failed},
    ]  # fmt: skip
    shown = [line.split("  ")[1:4] for line in lines]
    assert shown == [
        ["generation.completed", completed["session_id"], "204"],
        ["generation.failed", failed["session_id"], "204"],
    ]
    assert world.keys == {f"Bearer {KEY}"}
    assert KEY not in result.output


def test_history_is_not_forwarded(world: World) -> None:
    """What ended before the run, even if a stream shows it again."""
    old = [a_state() for _ in range(120)]
    new = a_state()
    world.listed, world.streams = [*old], [[old[0], old[119], new]]
    listened(world)

    assert forwarded(world) == [new["session_id"]]


def test_session_that_ends_between_two_streams_is_forwarded_once(world: World) -> None:
    """A stream does not resume: after a break the list is read."""
    first, missed, last = a_state(), a_state(), a_state()
    world.streams = [[first], [first, missed, last]]
    world.refusals = [503]
    world.on_open = [missed]
    listened(world, 3)

    assert sorted(forwarded(world)) == sorted(
        state["session_id"] for state in (first, missed, last)
    )
    assert forwarded(world)[0] == missed["session_id"]


@pytest.mark.parametrize(
    ("status", "shown"),
    [
        (500, "500 (a webhook would be sent again)"),
        (302, "302 (a webhook would be sent again)"),
        (410, "410 (a webhook would be sent again)"),
    ],
)
def test_refusal_of_the_receiver_is_shown(world: World, status: int, shown: str) -> None:
    """A redirect is one, and is not followed. Then the next session is forwarded."""
    world.status = status
    world.streams = [[a_state(), a_state()]]
    result = listened(world, 2)

    assert result.exit_code == 0
    assert result.stdout.count(shown) == 2
    assert len(world.received) == 2


def test_receiver_that_does_not_listen_is_shown(world: World) -> None:
    world.streams = [[a_state()]]
    result = listened(world, forward_to="http://127.0.0.1:1/hook")

    assert result.exit_code == 0
    assert "no answer: Connection refused" in result.stdout


def test_refusal_of_the_api_ends_the_run(world: World) -> None:
    """With its message, without what a terminal would execute."""
    world.refusals = [403]
    result = listened(world)

    assert result.exit_code == 1
    assert result.stderr == "Error: The API answered 403: Not \\x1b[31mthis\n"


def test_api_that_does_not_answer_ends_the_run(world: World) -> None:
    hook = world.url
    world.url = "http://127.0.0.1:1"
    result = listened(world, forward_to=hook)

    assert (result.exit_code, result.stderr) == (
        1, "Error: The API does not answer: Connection refused\n"
    )  # fmt: skip


@pytest.mark.parametrize("option", ["--forward-to", "--api"])
@pytest.mark.parametrize("url", ["file:///etc/passwd", "127.0.0.1:9", "http://"])
def test_url_is_checked(option: str, url: str) -> None:
    given = {"--forward-to": "http://127.0.0.1:9", "--api": "http://127.0.0.1:9"} | {option: url}
    arguments = [part for pair in given.items() for part in pair]
    result = wearon("webhooks", "listen", *arguments, env={"API_KEY": KEY})

    assert result.exit_code == 2
    assert f"{option} must be an http or https URL." in result.stderr


def test_key_is_asked_for(world: World) -> None:
    """It is not shown. An argument would be visible to all users of the machine."""
    result = wearon(
        "webhooks", "listen", "--api", "http://127.0.0.1:1", "--forward-to", world.url,
        env={"API_KEY": ""},
    )  # fmt: skip

    assert "API key or token" in result.stderr
