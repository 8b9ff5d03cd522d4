"""Spans for OpenTelemetry. Only ``config/tracing.py`` loads this package, if the settings ask for
traces: it imports the packages of the extra ``otel``."""
