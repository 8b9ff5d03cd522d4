"""Spans one by one: whose child each is, what names an error, and how they are exported."""

import asyncio
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import asyncpg
import pytest
from opentelemetry.context import Context
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest
from opentelemetry.semconv.attributes import (
    db_attributes,
    error_attributes,
    http_attributes,
    network_attributes,
    server_attributes,
    url_attributes,
)
from opentelemetry.semconv.schemas import Schemas
from opentelemetry.trace import SpanContext, SpanKind, StatusCode, TraceFlags, get_current_span

from adapters.coalescing import BLOCKED, BatchLimits, Blocked, Coalescer
from adapters.postgres.roles import TABLES, VIEWS
from adapters.tracing import names
from adapters.tracing.batches import TracedBatches
from adapters.tracing.otlp import otlp_provider
from adapters.tracing.spans import (
    MAX_LINKS,
    Spans,
    child_of,
    context_of,
    current_callers,
    error_type,
    traceparent_of,
)
from adapters.tracing.statements import MAX_LENGTH, operation_of, summary_of
from domain.errors import DatabaseUnavailable
from tests.adapters.test_plans import STATEMENTS
from tests.support.examples import TRACEPARENT
from tests.support.tracing import RecordedSpans, context, parent_id

pytestmark = pytest.mark.anyio

LONG_NAMES = [f"{'t' * 50}{number}" for number in range(9)]
CLIENT = SpanKind.CLIENT


def a_caller(number: int, *, sampled: bool = True) -> SpanContext:
    return SpanContext(7, number, is_remote=True, trace_flags=TraceFlags(int(sampled)))


def test_a_traceparent_is_read_and_written_alike() -> None:
    spans = RecordedSpans()

    with spans.span("one", CLIENT, {}, parent=child_of(TRACEPARENT)) as span:
        written = traceparent_of(span)

    assert written[:36] == TRACEPARENT[:36]
    assert context_of(written).span_id == context(spans.one("one")).span_id
    assert context_of(TRACEPARENT).trace_flags.sampled


def test_a_shared_span_has_a_bounded_number_of_links() -> None:
    """However many calls a batch serves. A caller that is there twice is linked once."""
    spans = RecordedSpans()
    callers = [a_caller(number) for number in range(1, 2 * MAX_LINKS)]

    with spans.shared("many", CLIENT, {}, callers=[*callers, callers[0]]):
        pass
    with spans.shared("two", CLIENT, {}, callers=[callers[0], callers[1], callers[0]]):
        pass
    with spans.shared("lone", CLIENT, {}, callers=[callers[0], callers[0]]):
        pass

    assert len(spans.one("many").links) == MAX_LINKS
    assert [link.context for link in spans.one("two").links] == callers[:2]
    assert (parent_id(spans.one("lone")), spans.one("lone").links) == (1, ())


def test_a_shared_span_serves_only_recorded_callers() -> None:
    """It is recorded if one of them is, as that one's child."""
    spans = RecordedSpans()
    unrecorded, recorded = a_caller(1, sampled=False), a_caller(2)

    with spans.shared("none", CLIENT, {}, callers=[unrecorded]) as span:
        assert not span.is_recording()
    with spans.shared("housekeeping", CLIENT, {}, callers=[]):
        pass
    with spans.shared("one", CLIENT, {}, callers=[unrecorded, recorded]):
        pass

    assert [span.name for span in spans.ended] == ["one"]
    assert parent_id(spans.one("one")) == 2


async def test_what_outlives_a_request_is_not_in_its_trace() -> None:
    """A task that a request started inherits its span, which ends before the task does."""
    spans = RecordedSpans()
    ended = asyncio.Event()

    async def outlive() -> tuple[int, int]:
        during = len(current_callers())
        await ended.wait()
        return during, len(current_callers())

    with spans.span("request", SpanKind.SERVER, {}, parent=Context()):
        task = asyncio.create_task(outlive())
        await asyncio.sleep(0)
    ended.set()

    assert await task == (1, 0)


def test_an_error_is_named_by_what_it_translates() -> None:
    """The SQLSTATE, else the class; never the message, which may quote a row."""
    refused = DatabaseUnavailable("no")
    refused.__cause__ = ConnectionRefusedError("secret")
    violated = DatabaseUnavailable("no")
    violated.__cause__ = asyncpg.exceptions.DeadlockDetectedError("secret")

    found = [error_type(each) for each in (refused, violated, DatabaseUnavailable("x"), KeyError())]

    unavailable = "domain.errors.DatabaseUnavailable"
    assert found == ["ConnectionRefusedError", "40P01", unavailable, "KeyError"]


def test_a_failed_span_has_the_type_and_no_event() -> None:
    spans = RecordedSpans()

    with (
        pytest.raises(ValueError, match="secret"),
        spans.span("fails", CLIENT, {}, parent=Context()),
    ):
        raise ValueError("secret")

    failed = spans.one("fails")
    assert (failed.status.status_code, failed.status.description) == (StatusCode.ERROR, None)
    assert dict(failed.attributes or {}) == {"error.type": "ValueError"}
    assert failed.events == ()
    assert not get_current_span().is_recording()


def test_names_are_those_of_the_conventions() -> None:
    """The stable ones, as the package of the conventions has them."""
    modules = (
        db_attributes,
        error_attributes,
        http_attributes,
        network_attributes,
        server_attributes,
        url_attributes,
    )
    ours = {
        name: value
        for name, value in vars(names).items()
        if name.startswith(("DB_", "HTTP_", "NETWORK_", "SERVER_", "URL_", "ERROR_"))
    }

    assert {
        name: getattr(module, name) for name in ours for module in modules if hasattr(module, name)
    } == ours
    assert Schemas.V1_44_0.value == names.SCHEMA_URL


@pytest.mark.parametrize("name", STATEMENTS)
def test_a_summary_has_operations_and_tables_and_nothing_else(name: str) -> None:
    """Of every statement: no literal, no argument, no function, no name of a subquery."""
    summary = summary_of(STATEMENTS[name])

    words = summary.split()
    assert set(words[0::2]) <= {"SELECT", "INSERT", "UPDATE", "DELETE"}
    assert set(words[1::2]) <= {*TABLES, *VIEWS}
    assert len(words) >= 2
    assert len(words) % 2 == 0
    assert len(summary) <= MAX_LENGTH
    assert operation_of(summary) == words[0]


@pytest.mark.parametrize(
    ("sql", "summary"),
    [
        ("SELECT 1", "SELECT"),
        ("SELECT extract(epoch FROM begun - made) FROM stores", "SELECT stores"),
        ("select * from ONLY stores WHERE id = 'FROM secrets' -- FROM notes", "SELECT stores"),
        (
            "WITH new AS (INSERT INTO stores (id) SELECT u FROM unnest($1) AS u RETURNING id)"
            " UPDATE api_keys SET x = 1 FROM new WHERE a IS DISTINCT FROM b",
            "INSERT stores UPDATE api_keys",
        ),
        (
            "INSERT INTO stores VALUES ($1) ON CONFLICT (id) DO UPDATE SET a = 1",
            "INSERT stores",
        ),
        ("SELECT a FROM stores s JOIN plans USING (a) FOR UPDATE SKIP LOCKED",
         "SELECT stores SELECT plans"),
        (f"TABLE a {' '.join(f'JOIN {name} ON true' for name in LONG_NAMES)}", None),
    ],
)  # fmt: skip
def test_statements_are_summarised(sql: str, summary: str | None) -> None:
    """In the order of the text. A long one is cut between tables."""
    found = summary_of(sql)

    if summary is None:
        assert found == " ".join(f"SELECT {name}" for name in LONG_NAMES[:4])
        assert len(found) <= MAX_LENGTH
    else:
        assert found == summary


def too_many() -> DatabaseUnavailable:
    return DatabaseUnavailable("many")


class Seen:
    """A run that notes for whom each of its batches runs."""

    def __init__(self) -> None:
        self.callers: list[list[int]] = []

    async def run(self, calls: Sequence[int]) -> Sequence[int]:
        self.callers.append([caller.span_id for caller in current_callers()])
        return calls


async def test_calls_of_a_batch_are_known_while_it_runs() -> None:
    """Those that were made within a span; others have nothing to link to."""
    spans, seen = RecordedSpans(), Seen()
    batch: Coalescer[int, int] = TracedBatches().coalescer(seen.run, too_many=too_many)

    async def call(number: int) -> int:
        with spans.span(f"call-{number}", SpanKind.SERVER, {}, parent=Context()):
            return await batch(number)

    await asyncio.gather(*(call(number) for number in range(3)))
    await batch(3)

    ids = {span.name: context(span).span_id for span in spans.ended}
    assert seen.callers == [[ids["call-0"], ids["call-1"], ids["call-2"]], []]


async def test_a_call_that_waits_for_a_lock_keeps_its_caller() -> None:
    """It moves to another coalescer, whose runner has no caller's context."""
    spans, seen = RecordedSpans(), Seen()

    async def skip(calls: Sequence[int]) -> Sequence[Blocked]:
        return [BLOCKED for _ in calls]

    limits = TracedBatches()
    blocked: Coalescer[int, int] = limits.coalescer(seen.run, too_many=too_many)
    first: Coalescer[int, int] = limits.coalescer(skip, too_many=too_many, blocked=blocked)

    with spans.span("call", SpanKind.SERVER, {}, parent=Context()):
        await first(1)

    assert seen.callers == [[context(spans.one("call")).span_id]]


def test_without_tracing_a_batch_is_the_plain_one() -> None:
    made: Coalescer[int, int] = BatchLimits().coalescer(Seen().run, too_many=too_many)

    assert type(made) is Coalescer


class _Collector(HTTPServer):
    """Takes what is exported. While ``holds`` is not set, it answers."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Take)
        self.bodies: list[tuple[str, bytes]] = []
        self.released = threading.Event()
        self.released.set()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Take(BaseHTTPRequestHandler):
    server: _Collector

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["content-length"]))
        self.server.bodies.append((self.path, body))
        self.server.released.wait(60)
        self.send_response(200)
        self.send_header("content-length", "0")
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Nothing is printed."""


@pytest.fixture
def collector() -> Iterator[_Collector]:
    with _Collector() as server, served(server):
        yield server


@contextmanager
def served(server: _Collector) -> Iterator[None]:
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield
    server.released.set()
    server.shutdown()
    thread.join()


def otlp_spans(flush_seconds: float = 30) -> Spans:
    return Spans(
        lambda: otlp_provider("wearon-api", version="1.2.3"),
        version="1.2.3",
        flush_seconds=flush_seconds,
    )


async def test_spans_are_exported_at_the_end(
    collector: _Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    """To where the standard variable says, with the names of service and schema."""
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_RESOURCE_ATTRIBUTES", "deployment.environment.name=test")
    spans = otlp_spans()
    with spans.span("one", CLIENT, {"a": 1}, parent=Context()):
        pass

    await spans.close()

    ((path, body),) = collector.bodies
    (sent,) = ExportTraceServiceRequest.FromString(body).resource_spans
    resource = {each.key: each.value.string_value for each in sent.resource.attributes}
    assert path == "/v1/traces"
    assert resource["service.name"] == "wearon-api"
    assert resource["service.version"] == "1.2.3"
    assert resource["deployment.environment.name"] == "test"
    assert [span.name for span in sent.scope_spans[0].spans] == ["one"]
    assert sent.scope_spans[0].schema_url == names.SCHEMA_URL


async def test_the_service_may_be_named_by_the_standard_variable(
    collector: _Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    monkeypatch.setenv("OTEL_SERVICE_NAME", "shop-api")

    provider = otlp_provider("wearon-api", version="1")

    assert provider.resource.attributes["service.name"] == "shop-api"
    provider.shutdown()


async def test_a_collector_that_hangs_does_not_delay_the_end(
    collector: _Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
    collector.released.clear()
    spans = otlp_spans(flush_seconds=0.1)
    with spans.span("one", CLIENT, {}, parent=Context()):
        pass
    started = time.monotonic()

    await spans.close()

    assert not collector.released.is_set()
    assert time.monotonic() - started < 9, "the exporter's own timeout is 10 s"


async def test_no_exporter_starts_before_the_first_span() -> None:
    """A process that only checks its settings has none, and nothing to close."""

    def build() -> None:
        raise AssertionError("built")

    spans = Spans(build, version="1")  # type: ignore[arg-type]

    await spans.close()

    with (
        pytest.raises(AssertionError, match="built"),
        spans.span("x", CLIENT, {}, parent=Context()),
    ):
        pass
