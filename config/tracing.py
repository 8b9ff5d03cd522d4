"""What tracing replaces. OpenTelemetry, an optional dependency, is loaded only if the settings ask
for traces: a process without them runs none of its code."""

from collections.abc import Callable, Collection
from dataclasses import dataclass
from functools import partial
from importlib.metadata import version
from typing import TYPE_CHECKING, TypeAlias, assert_never

from adapters.coalescing import BatchLimits
from adapters.postgres.database import Database
from adapters.queue.redis import RedisTaskQueue
from config.closing import Opened, closing
from config.options import Traces
from config.settings import Settings, SettingsError
from domain.generation import Generation

if TYPE_CHECKING:
    from aiohttp import TraceConfig
    from litestar.types import ASGIApp

    from adapters.tracing.spans import Spans

HttpCalls: TypeAlias = "Callable[[], list[TraceConfig]]"
"""What watches an HTTP client's calls, built with the client."""

WrapApp: TypeAlias = "Callable[[ASGIApp, Collection[str]], ASGIApp]"
"""Wraps the application, of which the paths are answered off the framework's router."""


def untraced(app: "ASGIApp", literal_paths: Collection[str]) -> "ASGIApp":  # noqa: ARG001
    return app


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """The parts of which tracing has kinds of its own. Those of a process without it are the plain
    ones, so it pays nothing for the choice."""

    database: type[Database] = Database
    queue: type[RedisTaskQueue] = RedisTaskQueue
    generation: type[Generation] = Generation
    batches: type[BatchLimits] = BatchLimits
    app: WrapApp = untraced
    provider_calls: HttpCalls = list
    webhook_calls: HttpCalls = list


def parts(settings: Settings, *, opened: Opened, service_name: str) -> Parts:
    """Raises ``SettingsError`` if the settings ask for traces and the packages for it are not
    installed."""
    match settings.traces:
        case Traces.NONE:
            return Parts()
        case Traces.OTLP:
            return traced_parts(closing(opened, _otlp_spans(service_name)))
        case unknown:
            assert_never(unknown)


def _otlp_spans(service_name: str) -> "Spans":
    try:
        from adapters.tracing.otlp import otlp_provider
        from adapters.tracing.spans import Spans
    except ModuleNotFoundError as error:
        if not (error.name or "").startswith("opentelemetry"):
            raise
        message = "WEARON_TRACES: `otlp` requires the extra `otel`: pip install 'wearon[otel]'"
        raise SettingsError(message) from error
    release = version("wearon")
    return Spans(partial(otlp_provider, service_name, version=release), version=release)


def traced_parts(spans: "Spans") -> Parts:
    """The parts that tell ``spans``."""
    from adapters.tracing.batches import TracedBatches
    from adapters.tracing.database import traced_database
    from adapters.tracing.server import TracedApp
    from adapters.tracing.tasks import traced_generation, traced_queue

    return Parts(
        database=traced_database(spans),
        queue=traced_queue(spans),
        generation=traced_generation(spans),
        batches=TracedBatches,
        app=lambda app, literal_paths: TracedApp(app, spans, literal_paths),
        provider_calls=partial(_http_calls, spans, shows_path=True),
        webhook_calls=partial(_http_calls, spans, shows_path=False),
    )


def _http_calls(spans: "Spans", *, shows_path: bool) -> "list[TraceConfig]":
    from adapters.tracing.client import client_traces

    return [client_traces(spans, shows_path=shows_path)]
