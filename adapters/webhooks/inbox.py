"""A stand-in for the endpoints of this world, for tests."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field

from domain.errors import InvalidInput
from domain.webhook_ports import Response, WebhookSenderPort


@dataclass(frozen=True, slots=True)
class Message:
    """What an endpoint received."""

    url: str
    headers: Mapping[str, str] = field(repr=False)
    body: bytes


Respond = Callable[[Message], Awaitable[Response]]


async def accept(_: Message) -> Response:
    return Response(status=200, body="ok")


class InMemoryWebhookSender(WebhookSenderPort):
    """``responds`` has the response of each URL, 200 by default. It may wait, or raise
    ``NotDelivered``. Hosts that end in ``.internal`` are not public."""

    def __init__(self) -> None:
        self.responds: dict[str, Respond] = {}
        self.received: list[Message] = []

    async def check(self, url: str) -> None:
        if ".internal" in url:
            raise InvalidInput("url", "does not lead to a public web address")

    async def send(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Response:
        message = Message(url, dict(headers), body)
        self.received.append(message)
        return await self.responds.get(url, accept)(message)

    async def close(self) -> None:
        """Nothing to close."""
