"""``POST /api/v1/generations`` on the wire: a plain ASGI application, however a request reaches it.

What bodies, keys and failing dependencies are answered is tested beside it, through the same route.
"""

import asyncio
import json
import traceback
from dataclasses import dataclass
from typing import Any, cast

import pytest
from litestar.types import Scope
from structlog.testing import capture_logs

from domain.credits import Owner
from domain.tasks import GenerationTask
from entrypoints.http.middleware import BODY_SECONDS
from entrypoints.http.request_info import merge_request_info
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import HAT, MODEL_URL, OUTFIT_URL, STORE, TRACEPARENT, USER
from tests.support.http import GENERATIONS, Api

pytestmark = pytest.mark.anyio

TRY_ON: dict[str, Any] = {
    "model_image_url": MODEL_URL,
    "outfit_image_url": OUTFIT_URL,
    "accessories": [
        {"type": "hüt", "url": HAT.url},
        {"type": "bag", "url": "HTTP://bücher.example/%20"},
    ],
}
BODY = json.dumps(TRY_ON, ensure_ascii=False).encode()
MAX_BODY_BYTES = 2_000
HOST = (b"host", b"127.0.0.1:8000")
JSON = (b"content-type", b"application/json")
KEY = (b"idempotency-key", b"k-1")
END: dict[str, Any] = {"type": "http.request", "body": b"", "more_body": False}
DISCONNECT: dict[str, Any] = {"type": "http.disconnect"}


def piece(body: bytes, *, more: bool = True) -> dict[str, Any]:
    return {"type": "http.request", "body": body, "more_body": more}


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """A request. ``lengths`` are the Content-Length headers (None: a true one), ``pieces`` the ASGI
    messages (None: the body in one), among which a number is a pause in seconds."""

    method: str = "POST"
    path: str = GENERATIONS
    query: bytes = b""
    owner: Owner | None = USER
    headers: tuple[tuple[bytes, bytes], ...] = (HOST, JSON)
    lengths: tuple[bytes, ...] | None = None
    body: bytes = BODY
    pieces: tuple[dict[str, Any] | float, ...] | None = None

    async def made(self, api: Api) -> "Reply":
        headers = list(self.headers)
        if self.owner is not None:
            headers.append((b"authorization", f"Bearer {await api.token(self.owner)}".encode()))
        lengths = (b"%d" % len(self.body),) if self.lengths is None else self.lengths
        headers += [(b"content-length", length) for length in lengths]
        messages = [piece(self.body, more=False)] if self.pieces is None else list(self.pieces)
        sent: list[dict[str, Any]] = []

        async def receive() -> Any:
            message = messages.pop(0) if messages else float("inf")
            if isinstance(message, float):
                await asyncio.sleep(message)
                return await receive()
            return message

        async def send(message: Any) -> None:
            sent.append(message)

        started = loop_time()
        await api.app(self._scope(headers), receive, send)
        start, end = sent
        assert end["more_body"] is False
        return Reply(start["status"], dict(start["headers"]), end["body"], loop_time() - started)

    def _scope(self, headers: list[tuple[bytes, bytes]]) -> Scope:
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


@dataclass(frozen=True, slots=True)
class Reply:
    status: int
    headers: dict[bytes, bytes]
    body: bytes
    seconds: float

    @property
    def error(self) -> tuple[int, str]:
        """Status and message."""
        return self.status, json.loads(self.body)["error"]["message"]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
async def api() -> Api:
    """With ten credits for a user and a store."""
    api = Api(max_body_bytes=MAX_BODY_BYTES)
    for owner in (USER, STORE):
        await api.service.accounts.grant(owner, 10, note="test")
    return api


ACCEPTED = {
    "as usual": Call(),
    "with parameters of the media type": Call(
        headers=(HOST, (b"content-type", b'Application/JSON ;charset="\xff", text/html'))
    ),
    "with escapes": Call(body=BODY.replace(b'"type"', b'"\\u0074ype"')),
    "two media types": Call(headers=(HOST, JSON, (b"content-type", b"text/plain"))),
    "a repeated header": Call(headers=(HOST, JSON, (b"cookie", b"a=b"), (b"cookie", b"c=d"))),
    "other headers": Call(headers=(HOST, JSON, (b"accept", b"text/html"), (b"dnt", b"1"))),
    "at the size limit": Call(body=BODY.ljust(MAX_BODY_BYTES)),
    "end in a message of its own": Call(pieces=(piece(BODY), END)),
    "end that never arrives": Call(pieces=(piece(BODY),)),
    "chunked": Call(
        lengths=(),
        headers=(HOST, JSON, (b"transfer-encoding", b"chunked")),
        pieces=(piece(BODY), END),
    ),
    "in two pieces": Call(pieces=(piece(BODY[:9]), 1.0, piece(BODY[9:], more=False))),
    "empty piece first": Call(pieces=(piece(b""), piece(BODY, more=False))),
    "just in time": Call(pieces=(BODY_SECONDS - 1, piece(BODY, more=False))),
    "longer than announced": Call(lengths=(b"10",)),
    "shorter than announced": Call(lengths=(b"1000",)),
    "no length": Call(lengths=()),
    "two lengths": Call(lengths=(b"%d" % len(BODY), b"1")),
    "length with a sign": Call(lengths=(b"+%d" % len(BODY),)),
    "negative length": Call(lengths=(b"-1",)),
    "no host": Call(headers=(JSON,)),
    "port that is no number": Call(headers=((b"host", b"a:b"), JSON)),
    "host by IPv6": Call(headers=((b"host", b"[::1]:8000"), JSON)),
    "two hosts": Call(headers=(HOST, HOST, JSON)),
    "trailing slash": Call(path=GENERATIONS + "/"),
    "two slashes": Call(path="/" + GENERATIONS),
    "two slashes in the middle": Call(path=GENERATIONS.replace("/v1", "//v1")),
}


@pytest.mark.parametrize("call", ACCEPTED.values(), ids=ACCEPTED)
async def test_accepted_requests(api: Api, call: Call) -> None:
    """202, one debit and one task for the whole request."""
    reply = await call.made(api)

    (task,) = api.service.waiting()
    assert reply.status == 202
    assert reply.headers.keys() == {
        b"content-type", b"content-length", b"location", b"cache-control", b"x-request-id",
        b"vary", b"x-content-type-options", b"content-security-policy"
    }  # fmt: skip
    assert int(reply.headers[b"content-length"]) == len(reply.body)
    assert json.loads(reply.body)["data"]["session_id"] == str(task.session_id)
    assert task.image_urls == (
        MODEL_URL,
        OUTFIT_URL,
        *(item["url"] for item in TRY_ON["accessories"]),
    )
    assert api.service.balance() == 9


NO_TOKEN = (401, "Send one header 'Authorization: Bearer <token>'")
TOO_LARGE = (413, "The request body is too large")
LATE = (400, "body: did not arrive in time")
GONE = (400, "body: the client disconnected")
KEYS = (400, "Idempotency-Key: is given more than once")
BAD_HOST = (400, "Invalid host header")
NOT_FOUND = (404, "Not found")
REJECTED: dict[str, tuple[Call, tuple[int, str]]] = {
    "query": (Call(query=b"a=b"), (400, "a: is not a parameter of this request")),
    "query that is not UTF-8": (
        Call(query=b"a\xff"),
        (400, "a\N{REPLACEMENT CHARACTER}: is not a parameter of this request"),
    ),
    "no token": (Call(owner=None), NO_TOKEN),
    "no token, before any body": (Call(owner=None, pieces=()), NO_TOKEN),
    "two tokens": (Call(headers=(HOST, JSON, (b"authorization", b"Bearer abc"))), NO_TOKEN),
    "empty body": (Call(body=b""), (400, "body: is required")),
    "too large": (Call(body=BODY.ljust(MAX_BODY_BYTES + 1)), TOO_LARGE),
    "too large, before any body": (Call(lengths=(b"2001",), pieces=()), TOO_LARGE),
    "far too large": (Call(lengths=(b"9" * 100,)), TOO_LARGE),
    "larger than announced": (Call(lengths=(b"10",), body=BODY.ljust(2_001)), TOO_LARGE),
    "too large in pieces": (Call(lengths=(), pieces=(*[piece(b" " * 1_000)] * 3,)), TOO_LARGE),
    "length that is no number": (Call(lengths=(b"x",)), (400, "Content-Length: is not a number")),
    "length of 5,000 digits": (
        Call(lengths=(b"9" * 5_000,)),
        (400, "Content-Length: is not a number"),
    ),
    "chunks after the announced length": (
        Call(
            headers=(HOST, JSON, (b"transfer-encoding", b"chunked")),
            pieces=(piece(BODY), piece(b"{}"), END),
        ),
        (400, f"body: is not valid JSON: trailing characters (byte {len(BODY) + 1})"),
    ),
    "too late": (Call(pieces=(BODY_SECONDS + 1, piece(BODY, more=False))), LATE),
    "too late in pieces": (
        Call(pieces=(piece(BODY[:9]), BODY_SECONDS, piece(BODY[9:], more=False))),
        LATE,
    ),
    "gone before the body": (Call(pieces=(DISCONNECT,)), GONE),
    "gone within the body": (Call(pieces=(piece(BODY[:9]), DISCONNECT)), GONE),
    "two keys": (Call(headers=(HOST, JSON, KEY, (b"idempotency-key", b"k-2"))), KEYS),
    "the same key twice": (Call(headers=(HOST, JSON, KEY, KEY)), KEYS),
    "invalid host": (Call(headers=((b"host", b"a b/\xff"), JSON)), BAD_HOST),
    "invalid host by another path": (
        Call(path=GENERATIONS + "/", headers=((b"host", b"a b/\xff"), JSON)),
        BAD_HOST,
    ),
    "other case": (Call(path=GENERATIONS.upper()), NOT_FOUND),
    "trailing slash without a token": (Call(path=GENERATIONS + "/", owner=None), NO_TOKEN),
    "trailing slash, too large": (
        Call(path=GENERATIONS + "/", lengths=(b"2001",), pieces=()),
        TOO_LARGE,
    ),
}


@pytest.mark.parametrize(("call", "error"), REJECTED.values(), ids=REJECTED)
async def test_rejected_requests(api: Api, call: Call, error: tuple[int, str]) -> None:
    """The envelope with status and message, nothing charged, and no wait for what is not needed."""
    reply = await call.made(api)

    assert reply.error == error
    assert reply.headers[b"content-type"] == b"application/json"
    assert reply.seconds == (BODY_SECONDS if error == LATE else 0)
    assert await api.service.sessions() == []
    assert api.service.balance() == 10


@pytest.mark.parametrize("method", ["PUT", "PATCH", "DELETE", "TRACE", "post"])
async def test_other_methods_are_not_this_route(api: Api, method: str) -> None:
    """405 with the path's methods, POST among them."""
    reply = await Call(method=method).made(api)

    assert reply.error == (405, "Method not allowed")
    assert reply.headers[b"allow"] == b"GET, HEAD, OPTIONS, POST"
    assert await api.service.sessions() == []


@pytest.mark.parametrize("path", [GENERATIONS, GENERATIONS + "/"])
async def test_rejected_and_unchecked_api_keys(api: Api, path: str) -> None:
    """401 names the kind of credential, and 503 says that it could not be checked."""
    bearer = (b"authorization", b"Bearer wk_" + b"0" * 32)
    unknown = await Call(path=path, owner=None, headers=(HOST, JSON, bearer)).made(api)
    api.keys.faults.away.add("caller_of")
    unchecked = await Call(path=path, owner=STORE).made(api)

    assert unknown.error == (401, "The API key is not valid")
    assert unknown.headers[b"www-authenticate"] == b"Bearer"
    assert unchecked.error == (503, "A dependency is temporarily unavailable; try again later")
    assert unchecked.headers[b"retry-after"] == b"5"


@pytest.mark.parametrize("path", [GENERATIONS, GENERATIONS + "/"])
@pytest.mark.parametrize("method", ["create", "push"])
async def test_unexpected_error_is_logged_with_its_traceback(
    api: Api, path: str, method: str
) -> None:
    """500 without details for the caller; one log line with all of them."""
    faults = api.service.queue.faults if method == "push" else api.service.repo.faults
    faults.broken.add(method)

    with capture_logs([merge_request_info]) as logged:
        reply = await Call(path=path, owner=STORE).made(api)

    assert reply.error == (500, "Internal server error; it has been logged")
    (bug,) = [line for line in logged if line["log_level"] == "error"]
    assert (bug["event"], bug["owner"]) == ("unexpected_error", str(STORE))
    assert str(bug["exc_info"]) == f"{method}: a bug"
    frames = traceback.extract_tb(bug["exc_info"].__traceback__)
    assert "submit" in [frame.name for frame in frames]


@pytest.mark.parametrize("path", [GENERATIONS, GENERATIONS + "/"])
@pytest.mark.parametrize("method", ["create", "push"])
async def test_cancelled_call_leaves_no_trace_in_the_next(api: Api, path: str, method: str) -> None:
    """Its log line has no status; the next calls have their own owner, status and deadline."""
    faults = api.service.queue.faults if method == "push" else api.service.repo.faults
    faults.slow[method] = 100

    with capture_logs([merge_request_info]) as logged:
        call = asyncio.create_task(Call(path=path, owner=STORE).made(api))
        await asyncio.sleep(1)
        call.cancel()
        await asyncio.wait([call])
        faults.slow.clear()
        reply = await Call(owner=USER).made(api)
        await Call(owner=None).made(api)

    assert call.cancelled()
    assert reply.status == 202
    cancelled, accepted, unknown = logged
    assert (cancelled["status"], cancelled["owner"]) == (None, str(STORE))
    assert (accepted["status"], accepted["owner"]) == (202, str(USER))
    assert (unknown["status"], unknown.keys() & {"owner", "session_id"}) == (401, set())
    # The cancelled call's deadline, which is in this time, ends no other call.
    await asyncio.sleep(10)
    assert len(await api.service.sessions()) == 2


@pytest.mark.parametrize("path", [GENERATIONS, f"{GENERATIONS}/batch"])
async def test_trace_of_the_caller_goes_on_to_the_task(api: Api, path: str) -> None:
    """The session keeps the trace of its request, its task carries the trace, and all log lines of
    the request name it."""
    body = {"items": [TRY_ON]} if path.endswith("batch") else TRY_ON
    with capture_logs([merge_request_info]) as logs:
        await api.call("POST", path, body=body, owner=STORE, headers=[("traceparent", TRACEPARENT)])

    (session,) = await api.service.sessions()
    task = await api.service.queue.pop(timeout_seconds=0)
    assert isinstance(task, GenerationTask)
    assert (session.traceparent, task.traceparent) == (TRACEPARENT, TRACEPARENT)
    assert {line["trace_id"] for line in logs} == {TRACEPARENT[3:35]}


@pytest.mark.parametrize("given", [[], ["00-invalid"], [TRACEPARENT, TRACEPARENT]])
async def test_new_trace_begins_without_a_valid_one(api: Api, given: list[str]) -> None:
    """The session keeps none, since its trace follows from the id of the request."""
    headers = [("traceparent", value) for value in given]
    with capture_logs([merge_request_info]) as logs:
        await api.submit(body=TRY_ON, headers=[*headers, ("x-request-id", "order-1")])

    (session,) = await api.service.sessions()
    task = await api.service.queue.pop(timeout_seconds=0)
    assert isinstance(task, GenerationTask)
    assert (session.traceparent, task.traceparent) == (None, session.trace)
    assert {line["trace_id"] for line in logs} == {session.trace[3:35]}
