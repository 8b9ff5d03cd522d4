"""Spans from the API over the queue and the worker to the provider and the webhook: one trace."""

import asyncio
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Mapping
from datetime import UTC, datetime, timedelta
from typing import Any

import pytest
from fakeredis import FakeServer
from fakeredis.aioredis import FakeRedis
from opentelemetry.trace import SpanKind, StatusCode

from adapters.tracing.names import SCHEMA_URL
from adapters.tracing.tasks import traced_queue
from domain.generation import Outcome
from domain.tasks import GenerationTask
from entrypoints.worker.process import build_dispatcher
from tests.support.examples import MODEL_URL, TRACEPARENT, USER
from tests.support.provider import KEY, SECRET, error, says
from tests.support.tracing import TracedService, context, parent_id, traced_service, traceparent
from tests.support.webhooks import added

pytestmark = pytest.mark.anyio

GENERATIONS = "/api/v1/generations"
SUBMIT = f"POST {GENERATIONS}"
SEND = "send wearon:tasks:generation"
PROCESS = "process wearon:tasks:generation"
BODY = {"model_image_url": f"{MODEL_URL}"}
OURS = {"wearon.request_id", "wearon.session_id", "wearon.outcome"}


@pytest.fixture
async def traced() -> AsyncIterator[TracedService]:
    async with traced_service() as service:
        yield service


async def taken(traced: TracedService) -> GenerationTask:
    task = await traced.container.queue().pop(timeout_seconds=0)
    assert isinstance(task, GenerationTask)
    return task


async def work(traced: TracedService, task: GenerationTask) -> Outcome:
    """What a worker's slot does with a task, in a task of its own."""
    outcome: Outcome = await asyncio.create_task(traced.container.generation().run(task))
    return outcome


async def test_one_trace_leads_from_the_caller_to_the_webhook(traced: TracedService) -> None:
    """The server span is the caller's child; the queue's spans and the webhook's are the server
    span's; the provider's is the consumer's."""
    url = f"{traced.receiver.url}/hooks?token=in-the-query"
    await added(traced.container.webhook_repo(), USER, url=url)

    status, _ = await traced.call("POST", GENERATIONS, BODY, traceparent=TRACEPARENT)
    outcome = await work(traced, await taken(traced))
    await build_dispatcher(traced.container).run_once()

    assert (status, outcome) == (202, Outcome.COMPLETED)
    server, send, process = (traced.spans.one(name) for name in (SUBMIT, SEND, PROCESS))
    calls = [span for span in traced.spans.ended if span.name == "POST"]
    provider, webhook = calls
    assert [span.kind for span in (server, send, process, provider, webhook)] == [
        SpanKind.SERVER,
        SpanKind.PRODUCER,
        SpanKind.CONSUMER,
        SpanKind.CLIENT,
        SpanKind.CLIENT,
    ]
    assert {context(span).trace_id for span in traced.spans.ended} == {
        int(TRACEPARENT.split("-")[1], 16)
    }
    server_id = context(server).span_id
    assert parent_id(server) == int(TRACEPARENT.split("-")[2], 16)
    assert [parent_id(span) for span in (send, process, webhook)] == [server_id] * 3
    assert parent_id(provider) == context(process).span_id
    assert traced.provider.calls[0].headers["traceparent"] == traceparent(provider)
    assert traced.receiver.headers[0]["traceparent"] == traceparent(webhook)
    assert len(traced.spans.ended) == 5


async def test_the_session_and_its_task_carry_the_server_span(traced: TracedService) -> None:
    """A caller without a trace starts one, which is stored with the session."""
    _, answer = await traced.call("POST", GENERATIONS, BODY)
    task = await taken(traced)

    server = traced.spans.one(SUBMIT)
    session = await traced.container.sessions().get(task.session_id, USER)
    assert server.parent is None
    assert task.traceparent == session.traceparent == traceparent(server)
    assert str(task.session_id) == answer["data"]["session_id"]


async def test_attributes_have_the_names_of_the_conventions(traced: TracedService) -> None:
    """All of them, and no others but our own ids and the outcome."""
    await added(traced.container.webhook_repo(), USER, url=f"{traced.receiver.url}/a?b=c")

    await traced.call("POST", GENERATIONS, BODY, **{"x-request-id": "r-1"})
    task = await taken(traced)
    await work(traced, task)
    await build_dispatcher(traced.container).run_once()

    ids = {"wearon.request_id": "r-1", "wearon.session_id": str(task.session_id)}
    queue = {
        "messaging.system": "redis",
        "messaging.destination.name": "wearon:tasks:generation",
        "messaging.message.id": str(task.task_id),
    }
    sending = {"messaging.operation.name": "send", "messaging.operation.type": "send"}
    processing = {"messaging.operation.name": "process", "messaging.operation.type": "process"}
    provider, receiver = traced.provider.url, traced.receiver.url
    assert {span.name: dict(span.attributes or {}) for span in traced.spans.ended[:-2]} == {
        SUBMIT: {
            "http.request.method": "POST",
            "url.scheme": "http",
            "url.path": GENERATIONS,
            "http.route": GENERATIONS,
            "http.response.status_code": 202,
            "network.protocol.version": "1.1",
        }
        | ids,
        SEND: queue | sending | ids,
        "POST": client("POST", provider, f"{provider}/v1/images/edits"),
    }
    assert dict(traced.spans.ended[-2].attributes or {}) == queue | processing | ids | {
        "wearon.outcome": "completed"
    }
    assert dict(traced.spans.ended[-1].attributes or {}) == client(
        "POST", receiver, f"{receiver}/REDACTED"
    )


def client(method: str, server: str, url: str) -> dict[str, Any]:
    return {
        "http.request.method": method,
        "server.address": "127.0.0.1",
        "server.port": int(server.rpartition(":")[2]),
        "url.full": url,
        "http.response.status_code": 200,
    }


async def test_spans_are_of_the_pinned_schema(traced: TracedService) -> None:
    await traced.call("GET", "/health/live")

    (span,) = traced.spans.ended
    assert span.instrumentation_scope is not None
    assert span.instrumentation_scope.name == "wearon"
    assert span.instrumentation_scope.schema_url == SCHEMA_URL
    assert SCHEMA_URL == "https://opentelemetry.io/schemas/1.44.0"


@pytest.mark.parametrize(
    ("method", "target", "name", "path"),
    [
        ("GET", f"{GENERATIONS}?limit=1", f"GET {GENERATIONS}", GENERATIONS),
        ("HEAD", "/health/live", "HEAD /health/live", "/health/live"),
        (
            "GET",
            f"{GENERATIONS}/01a20f3b-3840-7271-a2fe-45ac0488c9c1",
            "GET /api/v1/generations/{session_id}",
            "/api/v1/generations/{session_id}",
        ),
        ("GET", "/wk_pasted-key", "GET", "REDACTED"),
        ("BREW", "/health/live", "HTTP", "REDACTED"),
        ("POST", f"{GENERATIONS}/batch", f"POST {GENERATIONS}/batch", f"{GENERATIONS}/batch"),
    ],
)
async def test_server_spans_are_named_by_method_and_route(
    traced: TracedService, method: str, target: str, name: str, path: str
) -> None:
    """Names and paths are few, whatever callers send."""
    await traced.call(method, target)

    (span,) = traced.spans.ended
    attributes: Mapping[str, Any] = span.attributes or {}
    assert span.name == name
    assert attributes["url.path"] == path
    assert attributes.get("http.route") == (None if path == "REDACTED" else path)
    assert attributes["http.request.method"] == ("_OTHER" if method == "BREW" else method)


async def test_a_trace_that_its_caller_does_not_record_is_not_recorded(
    traced: TracedService,
) -> None:
    """It is passed on all the same, with the flag that says so."""
    unrecorded = f"{TRACEPARENT[:-2]}00"

    await traced.call("POST", GENERATIONS, BODY, traceparent=unrecorded)
    task = await taken(traced)
    await work(traced, task)

    assert traced.spans.ended == ()
    assert task.traceparent is not None
    assert task.traceparent[:36] == unrecorded[:36]
    assert task.traceparent.endswith("-00")
    assert traced.provider.calls[0].headers["traceparent"] == task.traceparent


async def test_a_second_push_by_recovery_stays_in_the_trace(traced: TracedService) -> None:
    """The queue lost the task: recovery's carries the same parent, and its span is in the trace."""
    await traced.call("POST", GENERATIONS, BODY, traceparent=TRACEPARENT)
    first = await taken(traced)
    await traced.container.submission().confirm_pushed()
    traced.clock.advance(timedelta(minutes=1))

    await traced.container.recovery().run_once()

    second = await taken(traced)
    assert (second.session_id, second.traceparent) == (first.session_id, first.traceparent)
    sends = [span for span in traced.spans.ended if span.name == SEND]
    server_id = context(traced.spans.one(SUBMIT)).span_id
    assert [parent_id(span) for span in sends] == [server_id] * 2


async def test_a_shared_push_has_links_to_its_callers(traced: TracedService) -> None:
    """Requests that are pushed together share a span: a child of the first, linked to each."""
    await asyncio.gather(*(traced.call("POST", GENERATIONS, BODY) for _ in range(3)))

    servers = [context(span) for span in traced.spans.ended if span.name == SUBMIT]
    shared = traced.spans.one(SEND)
    assert [link.context.span_id for link in shared.links] == [one.span_id for one in servers]
    assert parent_id(shared) == servers[0].span_id
    assert (shared.attributes or {})["messaging.batch.message_count"] == 3


async def test_errors_are_named_by_type_and_tell_nothing_more(traced: TracedService) -> None:
    """A provider's 500 is its call's error. What the provider said is nowhere."""
    traced.provider.replies.append(says(500, error(type_="server_error")))

    await traced.call("POST", GENERATIONS, BODY)
    outcome = await work(traced, await taken(traced))

    assert outcome is Outcome.RELEASED
    call = traced.spans.one("POST")
    assert (call.attributes or {})["error.type"] == "500"
    assert (call.status.status_code, call.status.description) == (StatusCode.ERROR, None)
    assert traced.spans.one(PROCESS).status.status_code is StatusCode.UNSET
    assert not any(span.events for span in traced.spans.ended)
    assert SECRET not in traced.spans.text


async def test_a_refused_connection_is_named_by_its_class() -> None:
    async with traced_service(openai_base_url="http://127.0.0.1:1") as traced:
        await traced.call("POST", GENERATIONS, BODY)
        await work(traced, await taken(traced))

        call = traced.spans.one("POST")
        assert (call.attributes or {})["error.type"] == (
            "aiohttp.client_exceptions.ClientConnectorError"
        )
        assert "http.response.status_code" not in (call.attributes or {})


async def test_a_queue_that_is_down_is_an_error_of_both_spans() -> None:
    async with traced_service() as traced:
        gone = FakeRedis(server=FakeServer(), connected=False)
        gone.connection_pool.connection_kwargs["server"].connected = False
        queue = traced_queue(traced.spans)(
            client=gone, timeout_seconds=1, clock=lambda: datetime.now(UTC)
        )
        traced.container.submission()._queue = queue

        status, _ = await traced.call("POST", GENERATIONS, BODY)

        assert status == 503
        assert (traced.spans.one(SEND).attributes or {})["error.type"] == (
            "redis.exceptions.ConnectionError"
        )
        server = traced.spans.one(SUBMIT)
        assert (server.attributes or {})["error.type"] == "503"
        assert server.status.status_code is StatusCode.ERROR


async def test_no_span_tells_what_is_private(traced: TracedService) -> None:
    """Nothing of a body, a credential, a link, a query or an endpoint's path is exported."""
    url = f"{traced.receiver.url}/hooks/in-the-path?token=in-the-query"
    await added(traced.container.webhook_repo(), USER, url=url)
    body = {"model_image_url": MODEL_URL, "prompt": "a private prompt"}

    await traced.call("POST", f"{GENERATIONS}?key=in-our-query", BODY, cookie="in-a-cookie")
    await traced.call("POST", GENERATIONS, body)
    await traced.call("POST", GENERATIONS, BODY, **{"idempotency-key": "a-callers-key"})
    await traced.call("GET", "/files/users/someone/private.jpg?signature=signed")
    await work(traced, await taken(traced))
    await build_dispatcher(traced.container).run_once()

    assert len(traced.spans.ended) >= 8
    private = (
        "in-our-query", "in-a-cookie", "in-the-path", "in-the-query", "a private prompt",
        "a-callers-key", "pictures.example", "private.jpg", "signed", KEY, traced.token, USER.id,
    )  # fmt: skip
    assert [word for word in private if word in traced.spans.text] == []


HIDDEN = """
import importlib.abc, sys

class Hidden(importlib.abc.MetaPathFinder):
    asked_by = set()

    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] != "opentelemetry":
            return None
        frame = sys._getframe()
        while "importlib" in frame.f_code.co_filename or frame.f_globals["__name__"] == __name__:
            frame = frame.f_back
        self.asked_by.add(frame.f_globals["__name__"].partition(".")[0])
        raise ModuleNotFoundError(name, name=name)

sys.meta_path.insert(0, Hidden())
"""
"""A program begins with this as if the extra were not installed."""


def run_without_the_extra(code: str, **environ: str) -> "subprocess.CompletedProcess[str]":
    settings = {
        "DATABASE_URL": "postgresql://127.0.0.1/none",
        "REDIS_URL": "redis://127.0.0.1",
        "WEARON_JWT_SECRET": "signs the tokens of the users: 0123456789",
        "WEARON_SIGNING_SECRET": "signs the links to the pictures: 9876543210",
        "WEARON_GENERATOR": "local",
    }
    return subprocess.run(
        [sys.executable, "-c", HIDDEN + code],
        capture_output=True,
        text=True,
        check=False,
        env=os.environ | settings | environ,
        timeout=60,
    )


@pytest.mark.processes
def test_without_traces_nothing_of_opentelemetry_is_imported() -> None:
    """Neither an API process nor a worker nor a command asks for it, and each starts without it.
    Libraries may: redis-py has metrics of its own."""
    done = run_without_the_extra(
        "import os\n"
        "from config.container import Container\n"
        "from config.loading import load_settings\n"
        "from entrypoints.http.server import application\n"
        "from entrypoints.worker import build_worker\n"
        "from entrypoints.cli import main\n"
        "container = Container(settings=load_settings(os.environ))\n"
        "application(container)\n"
        "build_worker(container, concurrency=1, recovery=True)\n"
        "try: main(['settings', '--env'])\n"
        "except SystemExit: pass\n"
        "print('asked:', *Hidden.asked_by)\n"
        "print('imported:', *sys.modules)\n"
    )

    assert done.returncode == 0, done.stderr
    text, _, imported = done.stdout.rpartition("imported:")
    names = set(imported.split())
    assert {"entrypoints.http.app", "entrypoints.worker.loop", "config.tracing"} <= names
    assert not {"opentelemetry", "adapters.tracing"} & names
    asked = set(text.rpartition("asked:")[2].split())
    assert not {"domain", "adapters", "config", "entrypoints"} & asked


@pytest.mark.processes
@pytest.mark.parametrize("command", [["serve"], ["worker"]])
def test_traces_without_the_extra_are_refused(command: list[str]) -> None:
    """Before anything starts, with the name of what to install."""
    code = f"from entrypoints.cli import main\nmain({command!r})\n"

    done = run_without_the_extra(code, WEARON_TRACES="otlp")

    assert done.returncode == 1, done.stderr
    assert "WEARON_TRACES: `otlp` requires the extra `otel`" in done.stderr
    assert "pip install 'wearon[otel]'" in done.stderr
    assert "Traceback" not in done.stderr
