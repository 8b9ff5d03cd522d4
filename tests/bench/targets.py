"""APIs to compare with, run by the same HTTP server as the real one:
``python -m tests.bench.targets no_op``."""

import json
import os
import sys
from collections.abc import Callable, Collection, Sequence
from typing import Any
from uuid import UUID

from dependency_injector import providers
from litestar import Litestar
from litestar.enums import ScopeType
from litestar.types import ASGIApp, Receive, Scope, Send

from adapters.queue.memory import InMemoryTaskQueue
from config.container import Container
from config.loading import load_settings
from config.logging import configure_logging
from domain.ports import Receipt, SessionRepoPort
from domain.sessions import Failure, GenerationSession
from domain.tasks import GenerationTask
from entrypoints.http.server import application, serve_http
from tests.support.clock import utc_now

ANSWER_VARIABLE = "BENCH_ANSWER"
"""The response of ``bare`` as JSON: status, headers and body."""


class _NoSessions(SessionRepoPort):
    """Stores nothing, and reports success."""

    async def create(
        self,
        session: GenerationSession,
        *,
        max_active: int,  # noqa: ARG002
        signup_credits: int = 0,  # noqa: ARG002
    ) -> Receipt:
        return Receipt(session=session, credits_remaining=999_999_999)

    async def create_many(
        self,
        sessions: Sequence[GenerationSession],
        *,
        max_active: int,
        signup_credits: int = 0,  # noqa: ARG002
    ) -> Sequence[Receipt]:
        return [await self.create(session, max_active=max_active) for session in sessions]

    async def find_replay(self, session: GenerationSession) -> Receipt | None:  # noqa: ARG002
        return None

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        return len(session_ids)

    async def fail_queued(self, session_id: UUID, failure: Failure, *, undo: bool = False) -> bool:
        raise NotImplementedError(session_id)  # No push fails.

    async def undo_many(self, session_ids: Sequence[UUID], failure: Failure) -> Collection[UUID]:
        raise NotImplementedError(session_ids)

    async def cancel(self, session_id: UUID) -> GenerationSession | None:
        raise NotImplementedError(session_id)


class _NoQueue(InMemoryTaskQueue):
    """Drops every task."""

    async def push(self, task: GenerationTask) -> None: ...

    async def push_many(self, tasks: Sequence[GenerationTask]) -> None: ...


def no_op() -> Litestar:
    """The whole API, but a submission reaches neither store nor queue. Who is asking is found out
    as ever."""
    settings = load_settings(os.environ)
    configure_logging(settings)
    container = Container(settings=settings)
    container.sessions.override(providers.Object(_NoSessions()))
    container.queue.override(providers.Object(_NoQueue(clock=utc_now)))
    return application(container)


def bare() -> ASGIApp:
    """Reads a body and answers; the least that this server can do."""
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
    targets: dict[str, Callable[[], ASGIApp]] = {"no_op": no_op, "bare": bare}
    serve_http(load_settings(os.environ), targets[sys.argv[1]])
