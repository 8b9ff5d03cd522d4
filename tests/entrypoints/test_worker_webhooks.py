"""A worker delivers what its own sessions cause, without waiting for its next poll."""

import asyncio
from typing import Any
from uuid import UUID

import pytest

from adapters.webhooks.inbox import InMemoryWebhookSender, Message
from domain.dispatch import Dispatcher, DispatchPolicy, Payloads
from domain.views import SessionViews
from domain.webhook_ports import Response
from entrypoints.worker.dispatching import DispatchLog, session_data
from tests.entrypoints.test_worker import a_worker, running
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import USER
from tests.support.service import Service, seeded_random
from tests.support.webhooks import URL, added

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Endpoint:
    """When each session's message arrived."""

    def __init__(self) -> None:
        self.arrived_at: dict[UUID, float] = {}

    async def respond(self, message: Message) -> Response:
        session_id = UUID(message.body.partition(b'"session_id":"')[2][:36].decode())
        self.arrived_at[session_id] = loop_time()
        return Response(status=200, body="")


def a_dispatcher(service: Service, sender: InMemoryWebhookSender) -> Dispatcher:
    views = SessionViews(reads=service.repo, storage=service.storage)
    return Dispatcher(
        outbox=service.webhooks,
        sender=sender,
        payloads=Payloads(
            session_data=session_data,
            view_of=views.view_of,
            accounts=service.accounts,
            alerts=service.webhooks,
        ),
        events=DispatchLog(),
        policy=DispatchPolicy(),
        random=seeded_random(),
        clock=service.clock.now,
    )


async def test_end_at_this_worker_is_delivered_at_once() -> None:
    """Each of several, at any time of the idle poll, and although nothing was due before."""
    service, sender, endpoint = Service(), InMemoryWebhookSender(), Endpoint()
    sender.responds[URL] = endpoint.respond
    await added(service.webhooks, USER)
    delays = []

    async with running(a_worker(service, dispatcher=a_dispatcher(service, sender))):
        for idle_seconds in (10.0, 2.3, 1.1):
            await asyncio.sleep(idle_seconds)
            (session_id,) = await service.backlog(1)
            began = loop_time()
            async with asyncio.timeout(10):
                while session_id not in endpoint.arrived_at:  # noqa: ASYNC110 - virtual time
                    await asyncio.sleep(0.001)
            delays.append(endpoint.arrived_at[session_id] - began)

    assert delays == pytest.approx([0, 0, 0], abs=0.06)
