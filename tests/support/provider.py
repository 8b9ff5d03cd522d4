"""A fake of OpenAI's image edits: speaks the documented wire format, and fails on demand.

It accepts one key and one model, rejects unknown fields and values, and records every call.
"""

import asyncio
import base64
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import AbstractContextManager, asynccontextmanager, contextmanager
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol, TypeVar

from aiohttp import BodyPartReader, web
from aiohttp.test_utils import TestServer

from tests.support.images import encoded

KEY = "sk-test-0123456789abcdef"
MODEL = "gpt-image-1.5"
SECRET = "only-the-provider-says-this"
"""Part of every error message; must not appear anywhere else."""
TOKENS = {"input_tokens": 1_923, "output_tokens": 6_240}

_ALLOWED = {
    "size": {"1024x1024", "1024x1536", "1536x1024", "auto"},
    "quality": {"low", "medium", "high", "auto"},
    "output_format": {"png", "jpeg", "webp"},
}
_KNOWN = {"model", "prompt", *_ALLOWED}


class Server(Protocol):
    async def start(self) -> None: ...

    async def stop(self) -> None: ...


T = TypeVar("T", bound=Server)
Reply = Callable[[web.Request], Awaitable[web.StreamResponse]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Upload:
    """One file of a form."""

    field: str
    filename: str | None
    media_type: str
    data: bytes


@dataclass(slots=True)
class EditCall:
    """The contents of one call, and its time on the monotonic clock."""

    path: str
    headers: dict[str, str]
    at: float = field(default_factory=time.monotonic)
    fields: dict[str, str] = field(default_factory=dict)
    uploads: list[Upload] = field(default_factory=list)


class FakeServer:
    """Listens on this machine and answers with ``_answer``; on a free port unless one is given."""

    def __init__(self, *, port: int | None = None) -> None:
        app = web.Application(client_max_size=100_000_000)
        app.router.add_route("*", "/{path:.*}", self._answer)
        self._server = TestServer(app, host="127.0.0.1", port=port)

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self._server.port}"

    async def start(self) -> None:
        await self._server.start_server(shutdown_timeout=0.1)

    async def stop(self) -> None:
        await self._server.close()

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        raise NotImplementedError


class FakeProvider(FakeServer):
    """Sends ``replies`` one after the other, then a picture for every valid request."""

    def __init__(self, *, port: int | None = None) -> None:
        super().__init__(port=port)
        self.replies: list[Reply] = []
        self.calls: list[EditCall] = []

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        call = EditCall(request.path, dict(request.headers))
        self.calls.append(call)
        await _read_form(request, call)
        if self.replies:
            return await self.replies.pop(0)(request)
        return _problem_of(call) or web.json_response(edited(call.fields["output_format"]))


@asynccontextmanager
async def provider() -> AsyncIterator[FakeProvider]:
    """A provider in this event loop."""
    async with running(FakeProvider()) as fake:
        yield fake


@asynccontextmanager
async def running(fake: T) -> AsyncIterator[T]:
    """The server, in this event loop."""
    await fake.start()
    try:
        yield fake
    finally:
        await fake.stop()


def provider_in_thread(*, port: int | None = None) -> AbstractContextManager[FakeProvider]:
    """A provider that other processes can call while the test waits for them."""
    return in_thread(FakeProvider(port=port))


@contextmanager
def in_thread(fake: T) -> Iterator[T]:
    """The server in a thread, so that other processes can call it while the test waits for them."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()
    try:
        asyncio.run_coroutine_threadsafe(fake.start(), loop).result(10)
        yield fake
        asyncio.run_coroutine_threadsafe(fake.stop(), loop).result(10)
    finally:
        loop.call_soon_threadsafe(loop.stop)
        thread.join(10)
        loop.close()


@cache
def _picture(output_format: str) -> str:
    """As base64."""
    return base64.b64encode(encoded(output_format.upper(), size=(1024, 1536))).decode()


def edited(output_format: str = "png", **changes: Any) -> dict[str, Any]:
    """The body of a response with a picture."""
    return {
        "created": 1_764_000_000,
        "background": "opaque",
        "data": [{"b64_json": _picture(output_format)}],
        "output_format": output_format,
        "quality": "medium",
        "size": "1024x1536",
        "usage": {
            **TOKENS,
            "total_tokens": sum(TOKENS.values()),
            "input_tokens_details": {"text_tokens": 123, "image_tokens": 1_800},
        },
    } | changes


def error(code: str | None = None, *, type_: str = "invalid_request_error", **more: Any) -> Any:
    """The body of an error."""
    return {"error": {"message": SECRET, "type": type_, "param": None, "code": code} | more}


def says(status: int, body: object = None, **headers: str) -> Reply:
    """A complete response; header names have ``_`` for ``-``."""

    async def reply(_: web.Request) -> web.StreamResponse:
        text = body if isinstance(body, str) else json.dumps(error() if body is None else body)
        named = {name.replace("_", "-"): value for name, value in headers.items()}
        return web.Response(status=status, text=text, headers=named)

    return reply


def in_pieces(status: int, body: object) -> Reply:
    """A complete response, byte by byte."""

    async def reply(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse(status=status)
        await response.prepare(request)
        for byte in json.dumps(body).encode():
            await response.write(bytes([byte]))
            await asyncio.sleep(0)
        return response

    return reply


async def hangs(_: web.Request) -> web.StreamResponse:
    """Never answers."""
    await asyncio.Event().wait()
    raise AssertionError


async def resets(request: web.Request) -> web.StreamResponse:
    """Resets the connection before the response, as if the picture had been generated."""
    _connection(request).abort()
    return web.Response()


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Closes the connection after half of the response."""
    text = json.dumps(edited()).encode()
    response = web.StreamResponse(headers={"Content-Length": str(len(text))})
    await response.prepare(request)
    await response.write(text[: len(text) // 2])
    _connection(request).close()
    return response


async def drips(request: web.Request) -> web.StreamResponse:
    """Sends a byte now and then, endlessly."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" ")
        await asyncio.sleep(0.01)


async def floods(request: web.Request) -> web.StreamResponse:
    """Sends data endlessly, as fast as it is read."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b" " * 65_536)


def _connection(request: web.Request) -> asyncio.Transport:
    transport = request.transport
    assert isinstance(transport, asyncio.Transport)
    return transport


async def _read_form(request: web.Request, call: EditCall) -> None:
    async for part in await request.multipart():
        assert isinstance(part, BodyPartReader)
        name = part.name or ""
        if part.filename is None:
            call.fields[name] = await part.text()
        else:
            call.uploads.append(
                Upload(
                    field=name,
                    filename=part.filename,
                    media_type=part.headers["Content-Type"],
                    data=bytes(await part.read()),
                )
            )


def _problem_of(call: EditCall) -> web.Response | None:
    if not call.path.endswith("/v1/images/edits"):
        return web.json_response(error("unknown_url"), status=404)
    if call.headers.get("Authorization") != f"Bearer {KEY}":
        return web.json_response(error("invalid_api_key"), status=401)
    if call.fields.get("model") != MODEL:
        return web.json_response(error("model_not_found"), status=404)
    wrong = [name for name, allowed in _ALLOWED.items() if call.fields.get(name) not in allowed]
    wrong += call.fields.keys() - _KNOWN
    if wrong or not call.fields.get("prompt"):
        return web.json_response(error("invalid_value", param=(wrong or ["prompt"])[0]), status=400)
    if not call.uploads or {upload.field for upload in call.uploads} - {"image[]", "image"}:
        return web.json_response(error("missing_required_parameter", param="image"), status=400)
    return None
