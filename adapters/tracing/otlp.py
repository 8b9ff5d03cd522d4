"""Exports spans by OTLP over HTTP, as the standard variables say: ``OTEL_EXPORTER_OTLP_*`` (where
to), ``OTEL_BSP_*`` (batches), ``OTEL_TRACES_SAMPLER``, ``OTEL_RESOURCE_ATTRIBUTES`` and
``OTEL_SERVICE_NAME``."""

from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter
from opentelemetry.sdk.resources import OTELResourceDetector, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor

from adapters.tracing.names import SCHEMA_URL


def otlp_provider(service_name: str, *, version: str) -> TracerProvider:
    """Spans wait in a bounded queue for a thread of their own, and are dropped while it is full. By
    default a trace is recorded if its caller's is, and if it begins here."""
    ours = Resource.create(
        {"service.name": service_name, "service.version": version}, schema_url=SCHEMA_URL
    )
    resource = ours.merge(OTELResourceDetector().detect())
    provider = TracerProvider(resource=resource, shutdown_on_exit=False)
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return provider
