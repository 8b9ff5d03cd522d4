"""What the composition root replaces for tracing, and that a process without it pays nothing."""

import sys
from pathlib import Path
from typing import Any

import pytest
from litestar.types import ASGIApp, Receive, Scope, Send

from adapters.coalescing import BatchLimits
from adapters.postgres.database import Database
from adapters.queue.redis import RedisTaskQueue
from adapters.sessions.postgres import PostgresSessionRepo
from config.container import Container
from config.options import Environment, Generator, Traces
from config.settings import Settings, SettingsError
from config.tracing import untraced
from domain.generation import Generation

SECRET = "signs the tokens of the users: 0123456789"


def a_container(**changes: Any) -> Container:
    values: dict[str, Any] = {
        "environment": Environment.DEVELOPMENT,
        "database_url": "postgresql://nobody@127.0.0.1:1/nothing",
        "redis_url": "redis://127.0.0.1:1/0",
        "signing_secret": SECRET,
        "data_dir": Path("/nonexistent/wearon"),
        "generator": Generator.OPENAI,
        "openai_api_key": SECRET,
    }
    return Container(settings=Settings(**values | changes))


def kinds(container: Container) -> list[type]:
    """The classes on the path of a request and of a task."""
    sessions = container.sessions()
    assert isinstance(sessions, PostgresSessionRepo)
    return [
        type(container.database()),
        type(container.reserve()),
        type(container.queue()),
        type(container.generation()),
        type(sessions._claim._limits),
    ]


async def answer(scope: Scope, receive: Receive, send: Send) -> None:
    """An application."""


def test_without_tracing_the_parts_are_the_plain_ones() -> None:
    """Not a subclass, not a wrapper, not an observer: so tracing that is off costs nothing."""
    container = a_container()
    app: ASGIApp = answer

    parts = container.parts()

    assert kinds(container) == [Database, Database, RedisTaskQueue, Generation, BatchLimits]
    assert parts.app is untraced
    assert untraced(app, ()) is app
    assert (parts.provider_calls(), parts.webhook_calls()) == ([], [])


def test_with_tracing_each_part_tells() -> None:
    container = a_container(traces=Traces.OTLP)

    found = kinds(container)
    parts = container.parts()

    assert [kind.__name__ for kind in found] == [
        "TracedDatabase",
        "TracedDatabase",
        "TracedTaskQueue",
        "TracedGeneration",
        "TracedBatches",
    ]
    assert parts.app(answer, ()) is not answer
    assert [len(parts.provider_calls()), len(parts.webhook_calls())] == [1, 1]


def test_traces_without_the_extra_name_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delitem(sys.modules, "adapters.tracing.otlp", raising=False)
    monkeypatch.setitem(sys.modules, "opentelemetry.sdk.resources", None)

    with pytest.raises(SettingsError, match=r"WEARON_TRACES: .* pip install 'wearon\[otel\]'"):
        a_container(traces=Traces.OTLP).database()
