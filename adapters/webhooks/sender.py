"""Sends webhooks over HTTP, to addresses on the public internet only."""

import asyncio
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime

from aiohttp import (
    ClientConnectorDNSError,
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
    TraceConfig,
)

from adapters.images.http import network_detail, retry_after_seconds, shortage
from adapters.images.lookups import Lookup
from adapters.images.public_web import NotPublic, PublicWeb
from domain.endpoints import MAX_RESPONSE_LENGTH
from domain.errors import InvalidInput, NotDelivered
from domain.webhook_ports import Response, WebhookSenderPort

_NOT_PUBLIC = "does not lead to a public web address"
_HEADERS = {
    "User-Agent": "wearon",
    "Content-Type": "application/json",
    "Accept": "*/*",
    "Accept-Encoding": "identity",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class SendLimits:
    """Bounds of one delivery. ``seconds`` is for all of it: look-up, connection, response. Of the
    response's body, ``max_bytes`` are read."""

    seconds: float = 10.0
    connect_seconds: float = 5.0
    max_bytes: int = 65_536


class HttpWebhookSender(WebhookSenderPort):
    """``allow_loopback`` is for development: it also allows this machine's loopback addresses, and
    then any port. ``watched_by`` hears of the calls."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        limits: SendLimits | None = None,
        allow_loopback: bool = False,
        lookup: Lookup | None = None,
        watched_by: Sequence[TraceConfig] = (),
    ) -> None:
        self._watched_by = list(watched_by)
        self._clock = clock
        self._limits = limits or SendLimits()
        self._web = PublicWeb(allow_loopback=allow_loopback, lookup=lookup)
        self._session: ClientSession | None = None

    async def check(self, url: str) -> None:
        try:
            host = self._web.checked_url(url).raw_host
            await self._web.addresses(host or "")
        except NotPublic as error:
            raise InvalidInput("url", _NOT_PUBLIC) from error
        except OSError as error:
            raise InvalidInput("url", "names a host that was not found") from error

    async def send(self, url: str, *, headers: Mapping[str, str], body: bytes) -> Response:
        try:
            async with asyncio.timeout(self._limits.seconds):
                return await self._send(url, headers, body)
        except NotPublic as error:
            raise NotDelivered(f"the URL {_NOT_PUBLIC}") from error
        except ClientConnectorDNSError as error:
            raise NotDelivered("host name not found") from error
        except (ClientError, OSError) as error:
            raise shortage(error) or NotDelivered(network_detail(error)) from error

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()
        await self._web.close()

    async def _send(self, url: str, headers: Mapping[str, str], body: bytes) -> Response:
        checked = self._web.checked_url(url)
        async with self._client().post(
            checked, data=body, headers=headers, allow_redirects=False
        ) as response:
            return Response(
                status=response.status,
                body=await self._beginning(response),
                retry_after_seconds=retry_after_seconds(response.headers, self._clock()),
            )

    async def _beginning(self, response: ClientResponse) -> str:
        """The status counts even if the body breaks off, or never ends."""
        data = bytearray()
        with suppress(ClientError):
            async for chunk in response.content.iter_any():
                data += chunk
                if len(data) > self._limits.max_bytes:
                    response.close()
                    break
        text = bytes(data[: 4 * MAX_RESPONSE_LENGTH]).decode(errors="replace")
        return text.replace("\0", "\ufffd")[:MAX_RESPONSE_LENGTH]

    def _client(self) -> ClientSession:
        if self._session is None:
            # It takes no proxy or password from the environment, and keeps no cookies.
            self._session = ClientSession(
                connector=TCPConnector(
                    resolver=self._web.resolver(),
                    use_dns_cache=False,
                    limit=0,  # The dispatcher bounds what is in flight.
                ),
                timeout=ClientTimeout(total=None, sock_connect=self._limits.connect_seconds),
                cookie_jar=DummyCookieJar(),
                headers=_HEADERS,
                auto_decompress=False,
                trust_env=False,
                trace_configs=self._watched_by,
            )
        return self._session
