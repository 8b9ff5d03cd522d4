"""APIs to compare with, run by the very server that runs the real one:
``python -m tests.bench.targets no_op``."""

import json
import os
import signal
import sys
from collections.abc import Sequence
from typing import Any
from uuid import UUID

from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from adapters.queue.memory import InMemoryTaskQueue
from config.container import Container, utc_now
from config.logging import configure_logging
from config.servers import die_with_parent
from config.settings import load_settings
from domain.ports import Receipt
from domain.sessions import GenerationSession
from domain.tasks import GenerationTask
from entrypoints.http.server import application, serve_http

ANSWER_VARIABLE = "BENCH_ANSWER"
"""Status, headers and body that ``bare`` answers, as JSON."""


class _NoSessions:
    """Says that all was done."""

    async def create(self, session: GenerationSession, *, max_active: int) -> Receipt:  # noqa: ARG002
        return Receipt(session=session, credits_remaining=999_999_999)

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        return len(session_ids)


class _NoQueue(InMemoryTaskQueue):
    """Keeps nothing."""

    async def push(self, task: GenerationTask) -> None:
        """Nothing to do."""


def no_op() -> Litestar:
    """The whole API, but a submission reaches neither store nor queue. Who is asking is found out
    as ever."""
    die_with_parent(signal.SIGTERM, os.getppid())
    settings = load_settings(os.environ)
    configure_logging(settings)
    container = Container(settings=settings)
    submission: Any = container.submission()
    submission._sessions, submission._queue = _NoSessions(), _NoQueue(clock=utc_now)
    return application(container)


def bare() -> ASGIApp:
    """Reads a body and answers; the least that this server can do."""
    die_with_parent(signal.SIGTERM, os.getppid())
    answer = json.loads(os.environ[ANSWER_VARIABLE])
    headers = [(name.encode(), value.encode()) for name, value in answer["headers"]]
    body = answer["body"].encode()

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            return
        more = True
        while more:
            message: Any = await receive()
            more = message.get("more_body", False)
        await send({"type": "http.response.start", "status": answer["status"], "headers": headers})
        await send({"type": "http.response.body", "body": body, "more_body": False})

    return app


if __name__ == "__main__":
    serve_http(load_settings(os.environ), target=f"tests.bench.targets:{sys.argv[1]}")
