"""The sender of webhooks: it reaches public addresses only, follows nothing, and reads little."""

import asyncio
import json
import socket
from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from pathlib import Path
from typing import Any

import aiohttp.connector
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer
from standardwebhooks.webhooks import Webhook
from uuid_utils.compat import uuid7

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.images.lookups import Lookup
from adapters.webhooks.memory import InMemoryWebhookRepo
from adapters.webhooks.secrets import new_webhook_secret
from adapters.webhooks.sender import HttpWebhookSender, SendLimits
from domain.endpoints import MAX_RESPONSE_LENGTH
from domain.errors import InvalidInput, NotDelivered, WorkerExhausted
from domain.signatures import signed_headers
from domain.webhook_ports import Response
from domain.webhooks import WebhookPolicy, Webhooks
from tests.adapters.fetching import HOSTILE_LINKS, PRIVATE_ANSWERS, Names
from tests.support.clock import utc_now
from tests.support.examples import STORE
from tests.support.tls import self_signed

pytestmark = pytest.mark.anyio

Respond = Callable[[web.Request], Awaitable[web.StreamResponse]]
NewSender = Callable[..., HttpWebhookSender]
BODY = b'{"type":"webhook.test"}'


async def accept(_: web.Request) -> web.StreamResponse:
    return web.Response(text="thanks")


class Receiver:
    """A web server on this machine. Keeps all requests with their bodies."""

    def __init__(self) -> None:
        self.respond: Respond = accept
        self.requests: list[tuple[web.Request, bytes]] = []
        app = web.Application()
        app.router.add_route("*", "/{path:.*}", self._respond)
        self.server = TestServer(app, host="127.0.0.1")

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        self.requests.append((request, await request.read()))
        return await self.respond(request)

    def url(self, path: str = "/hooks", *, host: str = "127.0.0.1") -> str:
        return f"{self.server.scheme}://{host}:{self.server.port}{path}"


@pytest.fixture
async def receiver() -> AsyncIterator[Receiver]:
    receiver = Receiver()
    await receiver.server.start_server()
    yield receiver
    await receiver.server.close()


@pytest.fixture
async def new_sender() -> AsyncIterator[NewSender]:
    made: list[HttpWebhookSender] = []

    def make(
        lookup: Lookup | None = None,
        *,
        limits: SendLimits | None = None,
        allow_loopback: bool = True,
    ) -> HttpWebhookSender:
        made.append(
            HttpWebhookSender(
                clock=utc_now,
                limits=limits,
                allow_loopback=allow_loopback,
                lookup=lookup or Names({}),
            )
        )
        return made[-1]

    yield make
    for sender in made:
        await sender.close()


async def sent(sender: HttpWebhookSender, url: str, **headers: str) -> Response:
    return await sender.send(url, headers=headers, body=BODY)


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses of all attempted connections, which are all refused."""
    addresses: list[Any] = []

    async def refuse(_: object, __: socket.socket, address: object) -> None:
        addresses.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", refuse)
    return addresses


def managed(sender: HttpWebhookSender) -> Webhooks:
    repo = InMemoryWebhookRepo(clock=utc_now)
    return Webhooks(
        endpoints=repo,
        deliveries=repo,
        alerts=repo,
        audit_log=InMemoryAuditLog(clock=utc_now),
        check_address=sender.check,
        new_secret=new_webhook_secret,
        new_id=uuid7,
        clock=utc_now,
        policy=WebhookPolicy(),
    )


@pytest.mark.parametrize("url", HOSTILE_LINKS, ids=ascii)
async def test_hostile_address_is_no_endpoint(
    new_sender: NewSender, connections: list[Any], url: str
) -> None:
    """It can neither be registered nor, if it came into the database otherwise, be sent to."""
    names = Names({"good.example": ["8.8.8.8"]})
    sender = new_sender(names, allow_loopback=False)

    with pytest.raises(InvalidInput, match=r"^url: "):
        await managed(sender).create(STORE, url=url)
    with pytest.raises(NotDelivered, match="public web address"):
        await sent(sender, url)

    assert names.lookups == []
    assert connections == []


@pytest.mark.parametrize("addresses", PRIVATE_ANSWERS, ids=str)
async def test_name_with_a_private_address_is_no_endpoint(
    new_sender: NewSender, connections: list[Any], addresses: list[str]
) -> None:
    """One address that is not public is enough. The answer names none."""
    sender = new_sender(Names({"good.example": addresses}), allow_loopback=False)

    with pytest.raises(InvalidInput) as refused:
        await managed(sender).create(STORE, url="https://good.example/hooks")
    with pytest.raises(NotDelivered) as unsent:
        await sent(sender, "https://good.example/hooks")

    assert connections == []
    shown = f"{refused.value} {unsent.value}"
    assert not any(address in shown for address in addresses)


async def test_unknown_name_is_no_endpoint(new_sender: NewSender) -> None:
    sender = new_sender(allow_loopback=False)

    with pytest.raises(InvalidInput, match="url: names a host that was not found"):
        await managed(sender).create(STORE, url="https://unknown.example/hooks")
    with pytest.raises(NotDelivered, match="host name not found"):
        await sent(sender, "https://unknown.example/hooks")


async def test_each_connection_goes_to_an_address_that_was_checked_for_it(
    new_sender: NewSender, connections: list[Any]
) -> None:
    """A name that changes its address after it was registered (DNS rebinding) leads nowhere."""
    answers = [["8.8.8.8"], ["8.8.4.4"], ["127.0.0.1"]]

    async def rebinding(_: str) -> list[str]:
        return answers.pop(0)

    sender = new_sender(rebinding, allow_loopback=False)
    await managed(sender).create(STORE, url="https://rebinding.example/")

    for _ in range(2):
        with pytest.raises(NotDelivered):
            await sent(sender, "https://rebinding.example/")

    assert connections == [("8.8.4.4", 443)]


async def test_message_arrives_as_it_was_signed(receiver: Receiver, new_sender: NewSender) -> None:
    """A POST with our headers; the receiver's library accepts it."""
    secret, delivery_id = new_webhook_secret(), uuid7()
    headers = signed_headers(BODY, delivery_id=delivery_id, at=utc_now(), secrets=[secret])

    response = await sent(new_sender(), receiver.url("/a?b=c"), **headers)

    ((request, body),) = receiver.requests
    assert response == Response(status=200, body="thanks")
    assert (request.method, request.path_qs) == ("POST", "/a?b=c")
    assert request.headers["Content-Type"] == "application/json"
    assert Webhook(secret).verify(body, dict(request.headers)) == json.loads(BODY)


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_redirect_is_not_followed(
    receiver: Receiver, new_sender: NewSender, status: int
) -> None:
    async def redirect(_: web.Request) -> web.StreamResponse:
        return web.Response(status=status, headers={"Location": receiver.url("/elsewhere")})

    receiver.respond = redirect

    response = await sent(new_sender(), receiver.url())

    assert response.status == status
    assert [request.path for request, _ in receiver.requests] == ["/hooks"]


@pytest.mark.parametrize(
    ("value", "seconds"), [("120", 120.0), ("soon", 0.0), ("-5", 0.0), (None, 0.0)]
)
async def test_retry_after_is_read(
    receiver: Receiver, new_sender: NewSender, value: str | None, seconds: float
) -> None:
    async def busy(_: web.Request) -> web.StreamResponse:
        return web.Response(status=503, headers={"Retry-After": value} if value else None)

    receiver.respond = busy

    response = await sent(new_sender(), receiver.url())

    assert (response.status, response.retry_after_seconds) == (503, seconds)


async def test_retry_after_may_be_a_date(receiver: Receiver, new_sender: NewSender) -> None:
    at = utc_now() + timedelta(hours=1)

    async def busy(_: web.Request) -> web.StreamResponse:
        date = at.strftime("%a, %d %b %Y %H:%M:%S GMT")
        return web.Response(status=429, headers={"Retry-After": date})

    receiver.respond = busy

    response = await sent(new_sender(), receiver.url())

    assert 3_590 < response.retry_after_seconds <= 3_600


@pytest.mark.parametrize(
    ("body", "kept"),
    [
        (b"x" * 5_000, "x" * MAX_RESPONSE_LENGTH),
        ("\u20ac".encode() * 2_000, "\u20ac" * MAX_RESPONSE_LENGTH),
        (b"\xff\0ok", "\ufffd\ufffdok"),
        (b"", ""),
    ],
    ids=["long", "euros", "bytes", "none"],
)
async def test_beginning_of_the_response_is_kept_as_text(
    receiver: Receiver, new_sender: NewSender, body: bytes, kept: str
) -> None:
    """Whatever its bytes are: without what the database cannot store."""

    async def respond(_: web.Request) -> web.StreamResponse:
        return web.Response(body=body)

    receiver.respond = respond

    assert (await sent(new_sender(), receiver.url())).body == kept


async def test_compressed_response_is_not_expanded(
    receiver: Receiver, new_sender: NewSender
) -> None:
    async def bomb(_: web.Request) -> web.StreamResponse:
        return web.Response(body=b"\x1f\x8b small", headers={"Content-Encoding": "gzip"})

    receiver.respond = bomb

    assert (await sent(new_sender(), receiver.url())).body == "\x1f\ufffd small"


async def test_endless_response_is_cut_off(receiver: Receiver, new_sender: NewSender) -> None:
    """After a bounded number of bytes. Its status counts."""
    written = 0

    async def endless(request: web.Request) -> web.StreamResponse:
        nonlocal written
        response = web.StreamResponse()
        await response.prepare(request)
        while True:
            await response.write(b"y" * 1_000)
            written += 1_000

    receiver.respond = endless

    async with asyncio.timeout(20):
        response = await sent(new_sender(limits=SendLimits(max_bytes=10_000)), receiver.url())

    assert (response.status, response.body) == (200, "y" * MAX_RESPONSE_LENGTH)
    assert written < 20_000_000


async def never(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def drip(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"z")
        await asyncio.sleep(0.01)


@pytest.mark.parametrize("respond", [never, drip])
async def test_slow_endpoint_is_given_up(
    receiver: Receiver, new_sender: NewSender, respond: Respond
) -> None:
    """All of a delivery has one timeout, so a slow drip does not prolong it."""
    receiver.respond = respond

    async with asyncio.timeout(20):
        with pytest.raises(NotDelivered) as error:
            await sent(new_sender(limits=SendLimits(seconds=0.2)), receiver.url())

    assert error.value.detail == "timeout"


async def test_silent_name_server_is_given_up(new_sender: NewSender) -> None:
    async def silent(_: str) -> list[str]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(NotDelivered) as error:
        await sent(new_sender(silent, limits=SendLimits(seconds=0.1)), "https://a.example/")

    assert error.value.detail == "timeout"


async def test_refused_connection_is_told_in_words(
    receiver: Receiver, new_sender: NewSender
) -> None:
    """Without an address."""
    url = receiver.url()
    await receiver.server.close()

    with pytest.raises(NotDelivered) as error:
        await sent(new_sender(), url)

    assert error.value.detail == "connection refused"


async def test_broken_response_is_no_response(receiver: Receiver, new_sender: NewSender) -> None:
    async def hang_up(request: web.Request) -> web.StreamResponse:
        assert request.transport is not None
        request.transport.close()
        return web.Response()

    receiver.respond = hang_up

    with pytest.raises(NotDelivered):
        await sent(new_sender(), receiver.url())


async def test_shortage_of_descriptors_is_not_the_endpoints_fault(
    receiver: Receiver, new_sender: NewSender, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def exhausted(*_: object) -> None:
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", exhausted)

    with pytest.raises(WorkerExhausted):
        await sent(new_sender(), receiver.url())


async def test_certificate_is_verified(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, new_sender: NewSender
) -> None:
    """Against the URL's name, while the connection goes to the checked address."""
    server, client = self_signed("hooks.example", tmp_path)
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", client)
    receiver = Receiver()
    await receiver.server.start_server(ssl=server)
    names = Names({"hooks.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})

    accepted = await sent(new_sender(names), receiver.url(host="hooks.example"))
    with pytest.raises(NotDelivered, match="certificate verify failed"):
        await sent(new_sender(names), receiver.url(host="other.example"))
    await receiver.server.close()

    assert accepted.status == 200
    assert len(receiver.requests) == 1


async def test_nothing_is_kept_between_messages(receiver: Receiver, new_sender: NewSender) -> None:
    """No cookie of one endpoint reaches another."""

    async def with_cookie(_: web.Request) -> web.StreamResponse:
        response = web.Response()
        response.set_cookie("who", "me")
        return response

    receiver.respond = with_cookie
    sender = new_sender(Names({"hooks.example": ["127.0.0.1"]}))

    for _ in range(2):
        await sent(sender, receiver.url(host="hooks.example"))

    assert all("Cookie" not in request.headers for request, _ in receiver.requests)
