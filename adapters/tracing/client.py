"""A span for each HTTP request to a provider or to a webhook's endpoint."""

from types import SimpleNamespace

from aiohttp import (
    ClientSession,
    TraceConfig,
    TraceRequestEndParams,
    TraceRequestExceptionParams,
    TraceRequestStartParams,
)
from opentelemetry.context import Context, get_current
from opentelemetry.trace import SpanKind, get_current_span
from yarl import URL

from adapters.tracing import names
from adapters.tracing.spans import Spans, child_of, error_type, fail, traceparent_of
from domain.traces import accepted

HEADER = "traceparent"


def client_traces(spans: Spans, *, shows_path: bool) -> TraceConfig:
    """Hooks for an HTTP client. The span is a child of the current one, else of the span that the
    request's ``traceparent`` names. If it is recorded, the request carries its own.

    ``shows_path`` is for our own paths: the one of a webhook may have a secret. A query is never
    shown."""

    async def start(
        _: ClientSession, call: SimpleNamespace, params: TraceRequestStartParams
    ) -> None:
        call.span = spans.tracer.start_span(
            params.method,
            context=_parent(params.headers.get(HEADER, "")),
            kind=SpanKind.CLIENT,
            attributes=_attributes(params.method, params.url, shows_path=shows_path),
        )
        if call.span.is_recording():
            params.headers[HEADER] = traceparent_of(call.span)

    async def end(_: ClientSession, call: SimpleNamespace, params: TraceRequestEndParams) -> None:
        status = params.response.status
        call.span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status)
        if status >= 400:
            fail(call.span, str(status))
        call.span.end()

    async def end_with_error(
        _: ClientSession, call: SimpleNamespace, params: TraceRequestExceptionParams
    ) -> None:
        fail(call.span, error_type(params.exception))
        call.span.end()

    config = TraceConfig()
    config.on_request_start.append(start)
    config.on_request_end.append(end)
    config.on_request_exception.append(end_with_error)
    return config


def _parent(header: str) -> Context:
    if get_current_span().get_span_context().is_valid:
        return get_current()
    return child_of(accepted(header))


def _attributes(method: str, url: URL, *, shows_path: bool) -> dict[str, str | int]:
    path = url.raw_path if shows_path else f"/{names.REDACTED}"
    attributes: dict[str, str | int] = {
        names.HTTP_REQUEST_METHOD: method,
        names.SERVER_ADDRESS: url.raw_host or "",
        names.URL_FULL: f"{url.origin()}{path}",
    }
    if url.port is not None:
        attributes[names.SERVER_PORT] = url.port
    return attributes
