"""The submission that goes without the framework: whoever calls cannot tell the difference."""

import asyncio
import json
import random
import traceback
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from itertools import count
from typing import Any, cast
from uuid import UUID

import pytest
from litestar.types import Receive, Scope, Send
from structlog.testing import capture_logs

from config.logging import merge_request_info
from domain.credits import Owner
from domain.submission import SubmissionPolicy
from entrypoints.http.hot import HotSubmission
from entrypoints.http.middleware import BODY_SECONDS, RequestContext
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import HAT, MANY, MODEL_URL, OUTFIT_URL, STORE, USER
from tests.support.http import GENERATIONS, Api

Headers = list[tuple[bytes, bytes]]
Prepare = Callable[[Api], Awaitable[object]]

TRY_ON = {
    "model_image_url": MODEL_URL,
    "outfit_image_url": OUTFIT_URL,
    "accessories": [
        {"type": "h\u00fct", "url": HAT.url},
        {"type": "bag", "url": "HTTP://b\u00fccher.example/%20"},
    ],
}
BODY = json.dumps(TRY_ON, ensure_ascii=False).encode()
MAX_BODY_BYTES = 2_000
HOST = (b"host", b"127.0.0.1:8000")
JSON = (b"content-type", b"application/json")
KEY = (b"idempotency-key", b"k-1")
END: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}
GONE: dict[str, Any] = {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """What is sent. ``lengths`` are the Content-Length headers (None: a true one), ``pieces`` the
    messages (None: the body in one), among which a number is a pause of so many seconds."""

    method: str = "POST"
    path: str = GENERATIONS
    query: bytes = b""
    owner: Owner | None = USER
    headers: tuple[tuple[bytes, bytes], ...] = (HOST, JSON)
    lengths: tuple[bytes, ...] | None = None
    body: bytes = BODY
    pieces: tuple[dict[str, Any] | float, ...] | None = None
    prepare: Prepare | None = None

    async def made(self, api: Api) -> tuple[list[dict[str, Any]], float]:
        """What is answered, and after how many seconds."""
        headers = list(self.headers)
        if self.owner is not None:
            headers.append((b"authorization", f"Bearer {await api.token(self.owner)}".encode()))
        lengths = (b"%d" % len(self.body),) if self.lengths is None else self.lengths
        headers += [(b"content-length", length) for length in lengths]
        messages = [piece(self.body, more=False)] if self.pieces is None else list(self.pieces)
        sent: list[dict[str, Any]] = []
        answered = asyncio.Event()

        async def receive() -> Any:
            if not messages:
                await answered.wait()
                return GONE
            message = messages.pop(0)
            if isinstance(message, float):
                await asyncio.sleep(message)
                return await receive()
            return message

        async def send(message: Any) -> None:
            sent.append(message)
            if message["type"] == "http.response.body" and not message["more_body"]:
                answered.set()

        started = loop_time()
        await api.app(self._scope(headers), receive, send)
        return sent, loop_time() - started

    def _scope(self, headers: Headers) -> Scope:
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.3"},
            "http_version": "1.1",
            "method": self.method,
            "scheme": "http",
            "path": self.path,
            "raw_path": self.path.encode(),
            "query_string": self.query,
            "root_path": "",
            "headers": headers,
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8_000),
        }
        return cast("Scope", scope)


async def empty_purse(api: Api) -> None:
    await api.service.accounts.grant(USER, -10, note="all of it")


def limits(*, max_active: int = MANY, max_waiting: int = MANY) -> Prepare:
    async def limit(api: Api) -> None:
        policy = SubmissionPolicy(max_active=max_active, max_waiting=max_waiting)
        api.service.limit(policy)

    return limit


def fault(name: str, method: str, where: str = "away") -> Prepare:
    async def break_it(api: Api) -> None:
        faults = api.service.queue.faults if name == "queue" else api.service.repo.faults
        getattr(faults, where).add(method)

    return break_it


def slow(name: str, method: str) -> Prepare:
    async def slow_down(api: Api) -> None:
        faults = api.service.queue.faults if name == "queue" else api.service.repo.faults
        faults.slow[method] = 100

    return slow_down


def before(**changes: Any) -> Prepare:
    """A call that was made already."""

    async def call(api: Api) -> None:
        sent, _ = await Call(**changes).made(api)
        assert sent[0]["status"] == 202

    return call


async def keys_away(api: Api) -> None:
    api.keys.faults.away.add("owner_of")


def body(**changes: Any) -> bytes:
    return json.dumps(TRY_ON | changes).encode()


WELL_FORMED = {
    "user's": Call(),
    "store's": Call(owner=STORE),
    "store's, with a prompt": Call(owner=STORE, body=body(prompt="In the rain")),
    "shortest": Call(body=b'{"model_image_url":"https://a.example/"}'),
    "defaults, spelt out": Call(
        body=body(outfit_image_url=None, accessories=[], prompt=None),
    ),
    "with escapes": Call(body=BODY.replace(b'"type"', b'"\\u0074ype"')),
    "type with parameters": Call(
        headers=(HOST, (b"content-type", b'Application/JSON ;charset="\xff", text/html'))
    ),
    "with a key": Call(headers=(HOST, JSON, KEY)),
    "repeated": Call(headers=(HOST, JSON, KEY), prepare=before(headers=(HOST, JSON, KEY))),
    "key of another request": Call(
        headers=(HOST, JSON, KEY),
        body=body(outfit_image_url=None),
        prepare=before(headers=(HOST, JSON, KEY)),
    ),
    "X-Request-Id": Call(headers=(HOST, JSON, (b"x-request-id", b"mine-1"))),
    "X-Request-Id that is none": Call(headers=(HOST, JSON, (b"x-request-id", b"a b"))),
    "other headers": Call(
        headers=(HOST, JSON, (b"accept", b"text/html"), (b"cookie", b"a=b"), (b"origin", b"null"))
    ),
    "end in a message of its own": Call(pieces=(piece(BODY), END)),
    "body after a while": Call(pieces=(BODY_SECONDS - 1, piece(BODY, more=False))),
    "body too late": Call(pieces=(BODY_SECONDS + 1, piece(BODY, more=False))),
    "no credits": Call(prepare=empty_purse),
    "too many active": Call(prepare=limits(max_active=0)),
    "overloaded": Call(prepare=limits(max_waiting=0)),
    "overloaded, with a key": Call(headers=(HOST, JSON, KEY), prepare=limits(max_waiting=0)),
    "queue away": Call(prepare=fault("queue", "push")),
    "queue deaf": Call(prepare=fault("queue", "push", "deaf")),
    "queue slow": Call(prepare=slow("queue", "push")),
    "store away": Call(prepare=fault("store", "create")),
    "store slow": Call(prepare=slow("store", "create")),
    "store with a bug": Call(prepare=fault("store", "create", "broken")),
    "queue with a bug": Call(prepare=fault("queue", "push", "broken")),
    "no token": Call(owner=None),
    "no token, and no body": Call(owner=None, pieces=(100.0,)),
    "no bearer": Call(owner=None, headers=(HOST, JSON, (b"authorization", b"Basic YTpi"))),
    "bad token": Call(owner=None, headers=(HOST, JSON, (b"authorization", b"Bearer abc"))),
    "bad key": Call(owner=None, headers=(HOST, JSON, (b"authorization", b"Bearer wk_abc"))),
    "keys away": Call(owner=STORE, prepare=keys_away),
}
"""Asked for as it should be, whatever becomes of it."""

NESTED = b"[" * 200_000
UNUSUAL = {
    "user's prompt": Call(body=body(prompt="In the rain")),
    "empty prompt": Call(owner=STORE, body=body(prompt="")),
    "blank prompt": Call(owner=STORE, body=body(prompt=" ")),
    "no model": Call(body=b"{}"),
    "no URL": Call(body=body(model_image_url="x")),
    "URL with a user": Call(body=body(outfit_image_url="https://a:b@c.example/")),
    "wrong type": Call(body=body(outfit_image_url=1)),
    "unknown field": Call(body=body(user_id=1)),
    "accessory without a URL": Call(body=body(accessories=[{"type": "hat"}])),
    "too many accessories": Call(body=body(accessories=[{"type": "a", "url": HAT.url}] * 9)),
    "empty body": Call(body=b""),
    "broken JSON": Call(body=BODY[:-1]),
    "two values": Call(body=BODY + b"{}"),
    "not UTF-8": Call(body=body(prompt="?").replace(b"?", b"\xff")),
    "nested": Call(body=NESTED),
    "nested and true": Call(body=NESTED[:MAX_BODY_BYTES]),
    "name twice": Call(body=BODY[:-1] + b',"model_image_url":"https://b.example/"}'),
    "name twice, with the same value": Call(body=b"{" + BODY[1:-1] + b"," + BODY[1:]),
    "name twice, once null": Call(body=BODY[:-1] + b',"outfit_image_url":null}'),
    "accessories twice": Call(body=BODY[:-1] + b',"accessories":[]}'),
    "name twice in an accessory": Call(body=BODY.replace(b'{"type"', b'{"type": "a", "type"', 1)),
    "name twice, by an escape": Call(
        body=BODY.replace(b'{"type": ', b'{"\\u0074ype": "a", "type": ', 1)
    ),
    "wrong media type": Call(headers=(HOST, (b"content-type", b"text/plain"))),
    "media type that begins alike": Call(headers=(HOST, (b"content-type", b"application/jsonp"))),
    "no media type": Call(headers=(HOST,)),
    "two media types": Call(headers=(HOST, JSON, (b"content-type", b"text/plain"))),
    "two tokens": Call(headers=(HOST, JSON, (b"authorization", b"Bearer abc"))),
    "two of any header": Call(headers=(HOST, JSON, (b"cookie", b"a=b"), (b"cookie", b"c=d"))),
    "two keys": Call(headers=(HOST, JSON, KEY, (b"idempotency-key", b"k-2"))),
    "the same key twice": Call(headers=(HOST, JSON, KEY, KEY)),
    "empty key": Call(headers=(HOST, JSON, (b"idempotency-key", b""))),
    "key with a space": Call(headers=(HOST, JSON, (b"idempotency-key", b"a b"))),
    "key that is not ASCII": Call(headers=(HOST, JSON, (b"idempotency-key", b"\xff"))),
    "too long a key": Call(headers=(HOST, JSON, (b"idempotency-key", b"k" * 256))),
    "too large": Call(body=BODY + b" " * MAX_BODY_BYTES),
    "too large, and late": Call(body=b" " * (MAX_BODY_BYTES + 1), pieces=(100.0,)),
    "too large, it says": Call(lengths=(b"9999999999",)),
    "too large, in secret": Call(lengths=(b"10",), body=BODY + b" " * MAX_BODY_BYTES),
    "too large, in pieces": Call(lengths=(), pieces=(*[piece(b" " * 1_000)] * 3, END)),
    "longer than it says": Call(lengths=(b"10",)),
    "shorter than it says": Call(lengths=(b"1000",)),
    "no length": Call(lengths=()),
    "two lengths": Call(lengths=(b"%d" % len(BODY), b"1")),
    "length that is none": Call(lengths=(b"x",)),
    "length with a sign": Call(lengths=(b"+%d" % len(BODY),)),
    "length with a zero": Call(lengths=(b"0%d" % len(BODY),)),
    "negative length": Call(lengths=(b"-1",)),
    "chunked": Call(
        lengths=(),
        headers=(HOST, JSON, (b"transfer-encoding", b"chunked")),
        pieces=(piece(BODY), END),
    ),
    "chunked, with the length of the first chunk": Call(
        headers=(HOST, JSON, (b"transfer-encoding", b"chunked")),
        pieces=(piece(BODY), piece(b"{}"), END),
    ),
    "in two pieces": Call(pieces=(piece(BODY[:9]), 1.0, piece(BODY[9:], more=False))),
    "in pieces that take too long": Call(
        pieces=(piece(BODY[:9]), BODY_SECONDS, piece(BODY[9:], more=False))
    ),
    "empty piece first": Call(pieces=(piece(b""), piece(BODY, more=False))),
    "gone before the body": Call(pieces=(GONE,)),
    "gone in mid-body": Call(pieces=(piece(BODY[:9]), GONE)),
    "query": Call(query=b"a=b"),
    "query that is not UTF-8": Call(query=b"a=\xff"),
    "no host": Call(headers=(JSON,)),
    "host that is none": Call(headers=((b"host", b"a b/\xff"), JSON)),
    "host with a port that is none": Call(headers=((b"host", b"a:b"), JSON)),
    "host by IPv6": Call(headers=((b"host", b"[::1]:8000"), JSON)),
    "two hosts": Call(headers=(HOST, HOST, JSON)),
    "slash at the end": Call(path=GENERATIONS + "/"),
    "two slashes": Call(path="/" + GENERATIONS),
    "other case": Call(path=GENERATIONS.upper()),
    "GET": Call(method="GET"),
    "HEAD": Call(method="HEAD"),
    "PUT": Call(method="PUT"),
    "DELETE": Call(method="DELETE"),
    "OPTIONS": Call(method="OPTIONS"),
    "post": Call(method="post"),
}


def apart(app: Any) -> tuple[RequestContext, HotSubmission]:
    context = app.asgi_handler
    assert isinstance(context, RequestContext)
    assert isinstance(context._app, HotSubmission)
    return context, context._app


def without_hot_path(api: Api) -> None:
    context, hot = apart(api.app)
    context._app = hot._app


def without_framework(api: Api) -> None:
    async def never(_: Scope, __: Receive, ___: Send) -> None:
        raise AssertionError("the framework was asked")

    apart(api.app)[1]._app = never


def outcome(call: Call, arrange: Callable[[Api], None]) -> Any:
    """All that is answered, when, and what is different then, on a service of its own."""

    async def run() -> Any:
        api = await an_api(arrange)
        numbers = count(1)
        api.service.submission._new_id = lambda: UUID(int=next(numbers))
        random.seed(1)  # so that both give their requests the same ids
        if call.prepare is not None:
            await call.prepare(api)
        with capture_logs() as logged:
            (start, *bodies), seconds = await call.made(api)
        service = api.service
        return {
            "status": start["status"],
            "headers": sorted(in_one_order(name, value) for name, value in start["headers"]),
            "bodies": bodies,
            "seconds": seconds,
            "sessions": await service.sessions() if not service.repo.faults.away else None,
            "waiting": service.waiting(),
            "balances": [service.balance(owner) for owner in (USER, STORE)],
            "events": [(line["event"], line["log_level"], line.get("status")) for line in logged],
        }

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(run())


def in_one_order(name: bytes, value: bytes) -> tuple[bytes, bytes]:
    """The framework names the allowed methods in any order."""
    return name, b", ".join(sorted(value.split(b", "))) if name == b"allow" else value


@pytest.mark.parametrize("call", (WELL_FORMED | UNUSUAL).values(), ids=WELL_FORMED | UNUSUAL)
def test_the_answer_is_the_framework_s(call: Call) -> None:
    """To the byte, at the same time, with the same consequences and the same events in the log."""
    framework = outcome(call, without_hot_path)
    with_hot_path = outcome(call, lambda _: None)

    assert with_hot_path == framework


@pytest.mark.parametrize("call", WELL_FORMED.values(), ids=WELL_FORMED)
def test_the_framework_is_not_asked(call: Call) -> None:
    """A request that is well formed is answered without it, whatever the answer."""
    without = outcome(call, without_framework)

    assert without == outcome(call, lambda _: None)
    assert "the framework was asked" not in str(without)


@pytest.mark.parametrize("arrange", [without_framework, without_hot_path])
@pytest.mark.parametrize(("name", "method"), [("store", "create"), ("queue", "push")])
def test_a_bug_is_logged_with_its_trace(
    arrange: Callable[[Api], None], name: str, method: str
) -> None:
    """What nobody expected is 500 without detail, and logged once with all of it."""

    async def run() -> None:
        api = await an_api(arrange)
        await fault(name, method, "broken")(api)

        with capture_logs([merge_request_info]) as logged:
            (start, body), _ = await Call(owner=STORE).made(api)

        assert start["status"] == 500
        assert json.loads(body["body"])["error"]["code"] == "INTERNAL_ERROR"
        assert b"bug" not in body["body"]
        (bug,) = [line for line in logged if line["log_level"] == "error"]
        assert (bug["event"], bug["owner"]) == ("unexpected_error", str(STORE))
        assert str(bug["exc_info"]) == f"{method}: a bug"
        frames = traceback.extract_tb(bug["exc_info"].__traceback__)
        assert "submit" in [frame.name for frame in frames]

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())


@pytest.mark.parametrize("arrange", [without_framework, without_hot_path])
@pytest.mark.parametrize(("name", "method"), [("store", "create"), ("queue", "push")])
def test_a_call_that_is_broken_off_breaks_nothing(
    arrange: Callable[[Api], None], name: str, method: str
) -> None:
    """Whoever gives up in the middle of it has a line in the log and nothing of the next one's;
    what was paid for and not pushed is settled by recovery, and the next call is as any other."""

    async def run() -> None:
        api = await an_api(arrange)
        await slow(name, method)(api)

        with capture_logs([merge_request_info]) as logged:
            call = asyncio.create_task(Call(owner=STORE).made(api))
            await asyncio.sleep(1)
            call.cancel()
            await asyncio.wait([call])
            api.service.repo.faults.slow.clear()
            api.service.queue.faults.slow.clear()
            (start, _), _ = await Call(owner=USER).made(api)
            await Call(owner=None).made(api)

        assert call.cancelled()
        assert start["status"] == 202
        broken_off, answered, strangers = logged
        assert (broken_off["status"], broken_off["owner"]) == (None, str(STORE))
        assert (answered["status"], answered["owner"]) == (202, str(USER))
        assert (strangers["status"], strangers.keys() & {"owner", "session_id"}) == (401, set())
        # Nobody is late: the deadline of the one that is gone ends no other.
        await asyncio.sleep(10)
        assert len(await api.service.sessions()) == 2

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.run(run())


async def an_api(arrange: Callable[[Api], None]) -> Api:
    """With ten credits for a user and a store."""
    api = Api(max_body_bytes=MAX_BODY_BYTES)
    arrange(api)
    for owner in (USER, STORE):
        await api.service.accounts.grant(owner, 10, note="test")
    return api
