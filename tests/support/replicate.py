"""A fake of Replicate: speaks the documented wire format, and fails on demand.

It knows one token and one model, rejects invalid requests, and keeps every call and every job. It
also serves the finished pictures, whose downloads must not carry the token.
"""

import base64
import re
import time
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from aiohttp import web

from tests.support.images import encoded
from tests.support.provider import FakeServer, Reply

TOKEN = "r8_test0123456789abcdef"
MODEL = "google/nano-banana"
VERSION = "f0a9d34b12ad1c1cd76269a844b218ff4e64e128ddaba93e15891f47368958a0"
SECRET = "only-the-provider-says-this"
"""Part of every error; must not appear anywhere else."""

_DATA_URI = re.compile(r"data:(image/(?:jpeg|png|webp));base64,(.+)")
_DEADLINE = re.compile(r"([0-9]+)s")


@dataclass(slots=True)
class Call:
    """``kind`` is begin, poll, cancel or file."""

    kind: str
    path: str
    headers: dict[str, str]


@dataclass(slots=True)
class Job:
    """One prediction. ``end`` holds the fields of its body that change once it has ended."""

    id: str
    request: dict[str, Any]
    key: str | None
    ends_at: float
    end: dict[str, Any]

    @property
    def pictures(self) -> list[tuple[str, bytes]]:
        """Media type and bytes of the input pictures, in order."""
        found = [_DATA_URI.fullmatch(text) for text in self.request["input"]["image_input"]]
        return [(one[1], base64.b64decode(one[2])) for one in found if one]

    def body(self) -> dict[str, Any]:
        ended = time.monotonic() >= self.ends_at
        return {
            "id": self.id,
            "model": MODEL,
            "version": VERSION,
            "input": self.request["input"],
            "logs": "",
            "output": None,
            "error": None,
            "status": "processing",
            "created_at": "2026-01-01T12:00:00.000Z",
            "data_removed": False,
            "urls": {"get": "https://elsewhere.example/", "cancel": "https://elsewhere.example/"},
        } | (self.end if ended else {})


@dataclass(slots=True)
class Script:
    """Replies to the next calls of each kind, instead of the correct ones."""

    begin: list[Reply] = field(default_factory=list)
    poll: list[Reply] = field(default_factory=list)
    cancel: list[Reply] = field(default_factory=list)
    file: list[Reply] = field(default_factory=list)


class FakeReplicate(FakeServer):
    """Each job takes ``seconds`` and then ends as the next of ``ends`` says, or with a picture.
    With ``is_idempotent`` it begins one job per idempotency key."""

    def __init__(self) -> None:
        super().__init__()
        self.seconds = 0.0
        self.ends: list[dict[str, Any]] = []
        self.is_idempotent = False
        self.script = Script()
        self.calls: list[Call] = []
        self.jobs: dict[str, Job] = {}
        self.cancelled: list[str] = []

    def count(self, kind: str) -> int:
        return sum(call.kind == kind for call in self.calls)

    def picture_url(self, name: str = "1.png") -> str:
        return f"{self.url}/files/{name}"

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        kind = _kind_of(request)
        self.calls.append(Call(kind, request.path, dict(request.headers)))
        body = await request.json() if kind == "begin" else {}
        job = self.jobs.get(request.path.removesuffix("/cancel").rpartition("/")[2])
        scripted: list[Reply] = getattr(self.script, kind, [])
        if kind == "file":
            return await scripted.pop(0)(request) if scripted else _picture()
        if request.headers.get("Authorization") != f"Bearer {TOKEN}":
            return problem(401, "Unauthenticated")
        if scripted:
            return await scripted.pop(0)(request)
        if kind == "begin":
            return self._begin(request, body)
        if job is None:
            return problem(404, "Not found")
        return self._cancel(job) if kind == "cancel" else web.json_response(job.body())

    def accept(self, body: dict[str, Any], key: str | None = None) -> Job:
        """A new job, or the job with this key if idempotent."""
        if self.is_idempotent:
            for job in self.jobs.values():
                if job.key == key:
                    return job
        end = self.ends.pop(0) if self.ends else {"output": self.picture_url()}
        job = Job(
            id=f"job{len(self.jobs) + 1}",
            request=body,
            key=key,
            ends_at=time.monotonic() + self.seconds,
            end={"status": "succeeded"} | end,
        )
        self.jobs[job.id] = job
        return job

    def _begin(self, request: web.Request, body: dict[str, Any]) -> web.Response:
        rejection = _rejection(request, body)
        if rejection is not None:
            return rejection
        job = self.accept(body, request.headers.get("Idempotency-Key"))
        answer = job.body() | {"status": "starting", "output": None, "error": None}
        return web.json_response(answer, status=201)

    def _cancel(self, job: Job) -> web.Response:
        self.cancelled.append(job.id)
        if time.monotonic() < job.ends_at:
            job.ends_at, job.end = 0.0, {"status": "canceled"}
        return web.json_response(job.body())


def problem(status: int, title: str, **more: Any) -> web.Response:
    """An error in the API's format."""
    body = {"title": title, "detail": SECRET, "status": status} | more
    return web.json_response(body, status=status, content_type="application/problem+json")


def tells(status: int, title: str = "An error", **headers: str) -> Reply:
    """A complete error response; headers are written with ``_`` for ``-``."""

    async def reply(_: web.Request) -> web.StreamResponse:
        response = problem(status, title)
        response.headers.update({name.replace("_", "-"): text for name, text in headers.items()})
        return response

    return reply


def serves(data: bytes, media_type: str = "image/png", status: int = 200) -> Reply:
    """A file as the response."""

    async def reply(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, body=data, content_type=media_type)

    return reply


@cache
def _picture_data() -> bytes:
    return encoded("PNG", size=(768, 1024))


def _picture() -> web.Response:
    return web.Response(body=_picture_data(), content_type="image/png")


def _kind_of(request: web.Request) -> str:
    if request.path.startswith("/files/"):
        return "file"
    if request.path.endswith("/cancel"):
        return "cancel"
    return "begin" if request.method == "POST" else "poll"


def _rejection(request: web.Request, body: dict[str, Any]) -> web.Response | None:
    expected = {"input"}
    if request.path == "/v1/predictions":
        expected = {"input", "version"}
        if body.get("version") != VERSION:
            return problem(422, "Invalid version or not permitted")
    elif request.path != f"/v1/models/{MODEL}/predictions":
        return problem(404, "Not found")
    deadline = _DEADLINE.fullmatch(request.headers.get("Cancel-After", ""))
    if body.keys() != expected or deadline is None or int(deadline[1]) < 5:
        return problem(400, "Bad request")
    inputs = body["input"]
    pictures = inputs.get("image_input")
    if inputs.keys() != {"prompt", "image_input"} or not inputs["prompt"] or not pictures:
        return problem(422, "Input validation failed", invalid_fields=[{"field": "input"}])
    if not all(_DATA_URI.fullmatch(picture) for picture in pictures):
        return problem(422, "Input validation failed", invalid_fields=[{"field": "image_input"}])
    return None
