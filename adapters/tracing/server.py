"""A span for each HTTP request to the API."""

from collections.abc import Collection

from litestar.enums import ScopeType
from litestar.types import ASGIApp, HTTPScope, Message, Receive, Scope, Send
from opentelemetry.trace import Span, SpanKind

from adapters.tracing import names
from adapters.tracing.spans import Spans, child_of, fail, traceparent_of

METHODS = frozenset(
    {"CONNECT", "DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT", "TRACE"}
)


class TracedApp:
    """``app`` with a server span around each request, a child of the caller's span.

    The request info has an id and, if the caller gave one, a ``traceparent``; from here on it has
    the span's, and so have the session, its task, the provider's call and webhooks.

    ``literal_paths`` are answered off the framework's router, so their routes are the paths
    themselves. A path is shown as its route's template, because it may name anything.
    """

    def __init__(self, app: ASGIApp, spans: Spans, literal_paths: Collection[str]) -> None:
        self._app = app
        self._spans = spans
        self._literal_paths = frozenset(literal_paths)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        info = scope["state"]["request_info"]
        method = "HEAD" if scope["state"].get("is_head") else str(scope["method"])
        if method not in METHODS:
            method = names.OTHER_METHOD
        attributes = {
            names.HTTP_REQUEST_METHOD: method,
            names.URL_SCHEME: scope["scheme"],
            names.NETWORK_PROTOCOL_VERSION: scope["http_version"],
            names.REQUEST_ID: info["request_id"],
        }
        parent = child_of(info.get("traceparent"))
        name = "HTTP" if method == names.OTHER_METHOD else method
        with self._spans.span(name, SpanKind.SERVER, attributes, parent=parent) as span:
            info["traceparent"] = traceparent_of(span)
            info["trace_id"] = info["traceparent"][3:35]
            try:
                await self._app(scope, receive, _watched(send, span))
            finally:
                self._describe(span, scope, name)

    def _describe(self, span: Span, scope: HTTPScope, name: str) -> None:
        route = scope.get("path_template")
        if not route and scope["path"] in self._literal_paths:
            route = scope["path"]
        span.set_attribute(names.URL_PATH, route or names.REDACTED)
        if route:
            span.update_name(f"{name} {route}")
            span.set_attribute(names.HTTP_ROUTE, route)
        if (session_id := scope["state"]["request_info"].get("session_id")) is not None:
            span.set_attribute(names.SESSION_ID, str(session_id))


def _watched(send: Send, span: Span) -> Send:
    async def send_on(message: Message) -> None:
        if message["type"] == "http.response.start":
            status = message["status"]
            span.set_attribute(names.HTTP_RESPONSE_STATUS_CODE, status)
            if status >= 500:
                fail(span, str(status))
        await send(message)

    return send_on
