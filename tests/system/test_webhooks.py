"""Webhooks of real processes: the owner is told of each end, at any writer, and whatever is
killed."""

import asyncio
import json
import os
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime
from typing import Any, TypeVar
from urllib.request import urlopen

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks.webhooks import Webhook
from uuid_utils.compat import uuid7

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.webhooks.postgres import PostgresWebhookRepo
from domain.endpoints import Delivery, DeliveryStatus, Endpoint
from tests.support.provider import in_thread
from tests.support.webhooks import added, deliveries_of
from tests.system.deployment import DEADLINE_SECONDS, OWNERS, Deployment, eventually, kill

T = TypeVar("T")
USER, STORE = OWNERS


class Receiver:
    """An endpoint on this machine. While ``holds`` is set, it does not answer."""

    def __init__(self) -> None:
        self.messages: list[tuple[dict[str, str], bytes]] = []
        self.holds = threading.Event()
        app = web.Application()
        app.router.add_post("/hooks", self._receive)
        self.server = TestServer(app, host="127.0.0.1")

    async def start(self) -> None:
        await self.server.start_server()

    async def stop(self) -> None:
        await self.server.close()

    async def _receive(self, request: web.Request) -> web.Response:
        self.messages.append((dict(request.headers), await request.read()))
        while self.holds.is_set():  # noqa: ASYNC110 - set by another thread
            await asyncio.sleep(0.01)
        return web.Response(text="thanks")

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server.port}/hooks"

    @property
    def ids(self) -> set[str]:
        return {headers["webhook-id"] for headers, _ in self.messages}


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with in_thread(Receiver()) as receiver:
        yield receiver


def do(deployment: Deployment, work: Callable[[PostgresWebhookRepo], Awaitable[T]]) -> T:
    async def run() -> T:
        database = Database(deployment.postgres.url(), limits=DatabaseLimits())
        try:
            return await work(PostgresWebhookRepo(database))
        finally:
            await database.close()

    return asyncio.run(run())


@pytest.fixture
def endpoint(deployment: Deployment, receiver: Receiver) -> Iterator[Endpoint]:
    """The user's."""
    endpoint = do(deployment, lambda repo: added(repo, USER, url=receiver.url))
    yield endpoint
    do(deployment, lambda repo: repo.delete(endpoint.id, USER))


def delivered(deployment: Deployment, endpoint: Endpoint) -> list[Delivery]:
    return do(deployment, lambda repo: deliveries_of(repo, endpoint, DeliveryStatus.DELIVERED))


def without_link(session: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in session.items() if name != "generated_image_url"}


def test_owner_is_told_of_every_end(
    deployment: Deployment, receiver: Receiver, endpoint: Endpoint
) -> None:
    """By a worker, and by an external consumer: with the session as the API shows it, a link that
    works, and a signature that the receiver's library accepts. No secret is logged."""
    worker = deployment.start("worker")
    ours = deployment.submit().data["session_id"]
    deployment.wait_for(ours, "completed")
    # A worker that is killed before it has recorded the delivery keeps the endpoint for its lease.
    eventually(lambda: len(delivered(deployment, endpoint)) == 1)
    deployment.submit("b2b")
    kill(worker)
    theirs = deployment.submit().data["session_id"]
    deployment.sql("UPDATE generation_sessions SET status = 'failed' WHERE id = $1", theirs)

    deployment.start("worker", "--concurrency", "1")
    eventually(lambda: len(delivered(deployment, endpoint)) == 2)

    events = {}
    for headers, body in receiver.messages:
        message = Webhook(endpoint.secrets.current).verify(body, headers)
        events[message["data"]["session_id"]] = message
    assert {id_: event["type"] for id_, event in events.items()} == {
        ours: "generation.completed",
        theirs: "generation.failed",
    }
    for session_id, event in events.items():
        assert without_link(event["data"]) == without_link(deployment.session(session_id))
        assert datetime.fromisoformat(event["timestamp"]) <= datetime.now(UTC)
    with urlopen(events[ours]["data"]["generated_image_url"], timeout=10) as picture:
        assert picture.status == 200
    secret = endpoint.secrets.current.removeprefix("whsec_")
    assert all(secret not in log.read_text() for log in deployment.folder.glob("*.log"))


def test_worker_killed_between_sending_and_recording(
    deployment: Deployment, receiver: Receiver, endpoint: Endpoint
) -> None:
    """SIGKILL while the endpoint answers: another worker sends the message again when the lease has
    ended, under the same id."""
    receiver.holds.set()
    doomed = deployment.start("worker")
    do(deployment, lambda repo: repo.add_test(uuid7(), endpoint.id, USER))
    eventually(lambda: receiver.messages)

    kill(doomed)
    receiver.holds.clear()
    unrecorded = delivered(deployment, endpoint)
    deployment.sql("UPDATE webhook_endpoints SET leased_until = now()")
    deployment.start("worker")
    eventually(lambda: delivered(deployment, endpoint))

    (delivery,) = delivered(deployment, endpoint)
    assert unrecorded == []
    assert (len(receiver.messages), receiver.ids) == (2, {str(delivery.id)})
    assert (delivery.attempt_count, delivery.attempts[0].response) == (1, "thanks")


def test_worker_can_leave_webhooks_to_others(
    deployment: Deployment, receiver: Receiver, endpoint: Endpoint
) -> None:
    """With --no-webhooks. With --once, another one delivers what is due, and ends."""
    session_id = deployment.submit().data["session_id"]

    deployment.wearon("worker", "--once", "--no-webhooks")
    before = (deployment.session(session_id)["status"], list(receiver.messages))
    deployment.wearon("worker", "--once")

    assert before == ("completed", [])
    ((_, body),) = receiver.messages
    assert json.loads(body)["data"]["session_id"] == session_id
    assert len(delivered(deployment, endpoint)) == 1


def test_listener_forwards_what_ends(deployment: Deployment, receiver: Receiver) -> None:
    """``wearon webhooks listen`` on a real API, for a store: its sessions, not the user's, each
    signed with the secret that was printed. No proxy stands between."""
    # What a killed worker of another test had would end now.
    deployment.sql(
        "UPDATE generation_sessions SET status = 'failed' WHERE status IN ('queued', 'processing')"
    )
    command = ["webhooks", "listen", "--api", deployment.url, "--forward-to", receiver.url]
    listener = subprocess.Popen(
        [sys.executable, "-P", "-m", "entrypoints.cli", *command, "--count", "2"],
        env=os.environ | {"API_KEY": deployment.tokens["b2b"], "http_proxy": "http://127.0.0.1:1"},
        stdout=subprocess.PIPE,
        text=True,
    )
    with listener as running:
        lines = running.stdout or iter(())
        secret = next(iter(lines)).strip().removeprefix("Secret of this run: ")
        listening = next(iter(lines))
        deployment.start("worker")
        deployment.submit()
        ids = {deployment.submit("b2b").data["session_id"] for _ in range(2)}
        try:
            code = running.wait(DEADLINE_SECONDS)
        finally:
            running.kill()

    messages = [Webhook(secret).verify(body, headers) for headers, body in receiver.messages]
    assert (listening, code) == ("Listening.\n", 0)
    assert {message["data"]["session_id"] for message in messages} == ids
    assert {message["type"] for message in messages} == {"generation.completed"}
    shown = deployment.session(messages[0]["data"]["session_id"], "b2b")
    assert without_link(messages[0]["data"]) == without_link(shown)
