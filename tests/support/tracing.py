"""Spans that are kept in this process, and a service whose parts tell them."""

import asyncio
import json
import time
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

from aiohttp import web
from fakeredis import FakeServer as FakeRedisServer
from fakeredis.aioredis import FakeRedis
from litestar import Litestar
from opentelemetry.sdk.trace import ReadableSpan, TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from opentelemetry.trace import SpanContext

from adapters.tracing.spans import Spans
from adapters.tracing.tasks import traced_queue
from config.container import Container, replace
from config.options import Database, Environment, Generator, Queue, Storage
from config.settings import Settings
from config.tracing import traced_parts
from domain.picture_ports import Picture
from entrypoints.http.server import application
from tests.support.clock import START, FakeClock
from tests.support.examples import MODEL_URL, USER
from tests.support.images import FakePictureFetcher, encoded
from tests.support.provider import KEY, FakeProvider, FakeServer, running

SECRET = "signs the tokens of the users: 0123456789"


class RecordedSpans(Spans):
    """Spans that a test can look at as soon as they have ended."""

    def __init__(self) -> None:
        self._exporter = InMemorySpanExporter()
        super().__init__(self._provider_here, version="1")

    def _provider_here(self) -> TracerProvider:
        provider = TracerProvider(shutdown_on_exit=False)
        provider.add_span_processor(SimpleSpanProcessor(self._exporter))
        return provider

    @property
    def ended(self) -> Sequence[ReadableSpan]:
        """In the order of their ends."""
        return self._exporter.get_finished_spans()

    def one(self, name: str) -> ReadableSpan:
        (found,) = [span for span in self.ended if span.name == name]
        return found

    @property
    def text(self) -> str:
        """All that would be exported."""
        return "\n".join(span.to_json() for span in self.ended)


def context(span: ReadableSpan) -> SpanContext:
    found = span.get_span_context()
    assert found is not None
    return found


def traceparent(span: ReadableSpan) -> str:
    found = context(span)
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def parent_id(span: ReadableSpan) -> int | None:
    return None if span.parent is None else span.parent.span_id


class Receiver(FakeServer):
    """A webhook's endpoint, which keeps the headers."""

    def __init__(self) -> None:
        super().__init__()
        self.headers: list[dict[str, str]] = []

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.headers.append(dict(request.headers))
        return web.Response(text="thanks")


@dataclass(frozen=True, slots=True, kw_only=True)
class TracedService:
    """API and worker in memory, with a queue that speaks Redis' protocol and a fake provider."""

    container: Container
    spans: RecordedSpans
    app: Litestar
    provider: FakeProvider
    receiver: Receiver
    clock: FakeClock
    token: str

    async def call(
        self, method: str, target: str, body: object = None, **headers: str
    ) -> tuple[int, Any]:
        """Status and JSON of an answer to the user."""
        path, _, query = target.partition("?")
        content = b"" if body is None else json.dumps(body).encode()
        sent: list[Any] = []
        given = {"authorization": f"Bearer {self.token}", "host": "127.0.0.1:8000"} | headers
        if content:
            given |= {"content-type": "application/json", "content-length": str(len(content))}
        scope: Any = {
            "type": "http",
            "asgi": {"version": "3.0"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": path,
            "raw_path": path.encode(),
            "query_string": query.encode(),
            "root_path": "",
            "headers": [(name.encode(), value.encode()) for name, value in given.items()],
            "client": ("127.0.0.1", 50_000),
            "server": ("127.0.0.1", 8_000),
        }

        async def receive() -> Any:
            return {"type": "http.request", "body": content, "more_body": False}

        async def send(message: Any) -> None:
            sent.append(message)

        # A request has a task, and so a context, of its own.
        await asyncio.create_task(self.app(scope, receive, send))
        text = b"".join(message["body"] for message in sent[1:])
        return sent[0]["status"], json.loads(text) if text else None


@asynccontextmanager
async def traced_service(**changes: Any) -> AsyncIterator[TracedService]:
    async with running(FakeProvider()) as provider, running(Receiver()) as receiver:
        settings: dict[str, Any] = {
            "environment": Environment.DEVELOPMENT,
            "database": Database.MEMORY,
            "queue": Queue.MEMORY,
            "storage": Storage.MEMORY,
            "jwt_secret": SECRET,
            "signing_secret": SECRET,
            "fetch_allow_loopback": True,
            "generator": Generator.OPENAI,
            "openai_api_key": KEY,
            "openai_model": "gpt-image-1.5",
            "openai_base_url": provider.url,
        }
        container = Container(settings=Settings(**settings | changes))
        clock = FakeClock(lambda: time.time() - START.timestamp())
        replace(container.clock, clock.now)
        spans = RecordedSpans()
        redis = FakeRedis(server=FakeRedisServer())
        replace(container.parts, traced_parts(spans))
        picture = Picture(data=encoded(), media_type="image/png")
        replace(container.fetcher, FakePictureFetcher({MODEL_URL: picture}))
        queue = traced_queue(spans)(client=redis, timeout_seconds=5, clock=clock.now)
        replace(container.queue, queue)
        token = container.user_token()(
            UUID(USER.id), now=datetime.now(UTC), lifetime=timedelta(hours=1)
        )
        await container.accounts().grant(USER, 10, note="test")
        yield TracedService(
            container=container,
            spans=spans,
            app=application(container),
            provider=provider,
            receiver=receiver,
            clock=clock,
            token=token,
        )
        await container.opened().aclose()
        await queue.close()
