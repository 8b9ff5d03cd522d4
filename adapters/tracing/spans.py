"""Starts spans, says whose child each one is, and exports them.

No span has an exception's message or traceback: they may quote what a caller or a provider sent.
Its ``error.type`` names the class, the database's SQLSTATE or the HTTP status.
"""

import asyncio
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from contextvars import ContextVar
from functools import cached_property
from threading import Thread

from opentelemetry.context import Context, attach, detach
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import (
    INVALID_SPAN,
    Link,
    NonRecordingSpan,
    Span,
    SpanContext,
    SpanKind,
    StatusCode,
    TraceFlags,
    Tracer,
    get_current_span,
    set_span_in_context,
)

from adapters.tracing import names
from domain.errors import Unavailable

MAX_LINKS = 32
"""Of one span: a batch may serve more calls."""

FLUSH_SECONDS = 3.0
"""How long a process may take at its end to export its last spans. Less than an API process may
take to close its connections, so that a collector that hangs does not get the process killed."""

Attributes = Mapping[str, str | int]

BATCH: ContextVar[Sequence[SpanContext] | None] = ContextVar("batch", default=None)
"""The callers that the batch being run serves."""


def context_of(traceparent: str) -> SpanContext:
    """The span that a valid ``traceparent`` of version 00 names."""
    _, trace_id, span_id, flags = traceparent.split("-")
    return SpanContext(
        int(trace_id, 16), int(span_id, 16), is_remote=True, trace_flags=TraceFlags(int(flags, 16))
    )


def traceparent_of(span: Span) -> str:
    found = span.get_span_context()
    return f"00-{found.trace_id:032x}-{found.span_id:016x}-{found.trace_flags:02x}"


def child_of(traceparent: str | None) -> Context:
    """A context for a child of that span; without one, for a new trace."""
    if traceparent is None:
        return Context()
    return set_span_in_context(NonRecordingSpan(context_of(traceparent)), Context())


def error_type(error: BaseException) -> str:
    """What names an error without telling its message. Below an ``Unavailable`` is what it
    translates."""
    below = error.__cause__ if isinstance(error, Unavailable) and error.__cause__ else error
    sqlstate = getattr(below, "sqlstate", None)
    if isinstance(sqlstate, str):
        return sqlstate
    kind = type(below)
    prefix = "" if kind.__module__ == "builtins" else f"{kind.__module__}."
    return f"{prefix}{kind.__qualname__}"


def fail(span: Span, kind: str) -> None:
    span.set_attribute(names.ERROR_TYPE, kind)
    span.set_status(StatusCode.ERROR)


def current_callers() -> Sequence[SpanContext]:
    """The spans that a statement is run for: those of its batch, or the current one. None outside
    of a request or a task, or once its span has ended: a task that a request started and that
    outlives the request does not add to its trace."""
    batch = BATCH.get()
    if batch is not None:
        return batch
    span = get_current_span()
    return (span.get_span_context(),) if span.is_recording() else ()


class Spans:
    """``build_provider`` is called for the first span, so that a process that only checks its
    settings starts no thread."""

    def __init__(
        self,
        build_provider: Callable[[], TracerProvider],
        *,
        version: str,
        flush_seconds: float = FLUSH_SECONDS,
    ) -> None:
        self._build_provider = build_provider
        self._version = version
        self._flush_seconds = flush_seconds
        self._provider: TracerProvider | None = None

    @cached_property
    def tracer(self) -> Tracer:
        self._provider = self._build_provider()
        return self._provider.get_tracer("wearon", self._version, schema_url=names.SCHEMA_URL)

    @contextmanager
    def span(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        parent: Context,
        links: Sequence[Link] = (),
    ) -> Iterator[Span]:
        """A span that is the current one during the block. Whether it is recorded is up to the
        sampler: by default to the parent, and a new trace is."""
        span = self.tracer.start_span(
            name, context=parent, kind=kind, attributes=attributes, links=links
        )
        token = attach(set_span_in_context(span, parent))
        try:
            yield span
        except Exception as error:
            fail(span, error_type(error))
            raise
        finally:
            detach(token)
            span.end()

    @contextmanager
    def shared(
        self,
        name: str,
        kind: SpanKind,
        attributes: Attributes,
        *,
        callers: Sequence[SpanContext],
    ) -> Iterator[Span]:
        """One span for all ``callers``: a child of the first one, with links to each if there are
        several. None is recorded if no caller is."""
        sampled = list({one.span_id: one for one in callers if one.trace_flags.sampled}.values())
        if not sampled:
            yield INVALID_SPAN
            return
        parent = set_span_in_context(NonRecordingSpan(sampled[0]), Context())
        links = [Link(one) for one in sampled[:MAX_LINKS]] if len(sampled) > 1 else []
        with self.span(name, kind, attributes, parent=parent, links=links) as span:
            yield span

    async def close(self) -> None:
        """Export the last spans, within the bound: a collector that does not answer is no error."""
        if self._provider is None:
            return
        loop, done = asyncio.get_running_loop(), asyncio.Event()
        shut_down = self._provider.shutdown

        def flush() -> None:
            shut_down()
            with suppress(RuntimeError):  # The loop may have ended meanwhile.
                loop.call_soon_threadsafe(done.set)

        # A thread of its own: the interpreter would wait for one of the loop's executor.
        Thread(target=flush, name="last-spans", daemon=True).start()
        with suppress(TimeoutError):
            async with asyncio.timeout(self._flush_seconds):
                await done.wait()
