"""Download the pictures that strangers link to, without being led into our own network.

Three gates: the URL before any look-up, every address that its host resolves to before any
connection, and the bytes before anybody uses them (``pool.py``). Each redirect passes the first
two again.
"""

import asyncio
import re
import socket
from collections.abc import Awaitable, Callable, Sequence
from ipaddress import IPv4Address, IPv6Address, ip_address

from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from adapters.images.addresses import is_public
from adapters.images.inspection import too_large
from adapters.images.limits import FetchLimits
from domain.errors import Refused, TryAgain
from domain.ports import Picture
from domain.sessions import ErrorCode

MAX_RETRY_AFTER_SECONDS = 60

_REDIRECTS = frozenset({301, 302, 303, 307, 308})
_PASSING = frozenset({408, 425, 429})
_HEADERS = {
    "User-Agent": "wearon",
    "Accept": "image/jpeg, image/png, image/webp",
    "Accept-Encoding": "identity",
}

# A name's last label begins with a letter. So IP addresses in all their spellings (127.1,
# 0x7f000001, 2130706433, [::1]) are no names.
_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z][a-z0-9_-]{0,62}\.?")
_SECONDS = re.compile(r"[0-9]{1,9}")

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""Gives all IP addresses of a host name. Raises ``OSError`` when the name has none."""

Prepare = Callable[[bytes], Awaitable[Picture]]
"""Makes of a download what is given out. Raises ``Refused`` or ``TryAgain``."""


async def system_lookup(host: str) -> list[str]:
    """Ask the system, in a thread."""
    found = await asyncio.get_running_loop().getaddrinfo(host, None, type=socket.SOCK_STREAM)
    return [str(sockaddr[0]) for *_, sockaddr in found]


class HttpPictureFetcher:
    """Over HTTP and HTTPS. ``allow_loopback`` is for development: it admits pictures that this
    machine serves, on any port, and nothing else that is not public."""

    def __init__(
        self,
        limits: FetchLimits,
        *,
        prepare: Prepare,
        allow_loopback: bool = False,
        lookup: Lookup = system_lookup,
    ) -> None:
        self._limits = limits
        self._prepare = prepare
        self._allow_loopback = allow_loopback
        self._lookup = lookup
        self._session: ClientSession | None = None

    async def fetch(self, url: str) -> Picture:
        """What is behind the link, prepared. Raises ``Refused`` or ``TryAgain``, as
        ``PictureFetcherPort`` does."""
        try:
            async with asyncio.timeout(self._limits.total_timeout_seconds):
                data = await self._download(self._admitted(url))
        except (ClientError, OSError) as error:
            raise _try_again() from error
        return await self._prepare(data)

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _download(self, url: URL) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            begin_seconds = self._limits.connect_timeout_seconds + self._limits.grace_seconds
            async with (
                asyncio.timeout(begin_seconds) as pace,
                self._opened().get(url, allow_redirects=False) as response,
            ):
                if response.status not in _REDIRECTS:
                    _check_status(response)
                    return await self._read(response, pace)
                url = self._next_hop(response)
        raise _unreachable("A picture's link is redirected too often")

    def _opened(self) -> ClientSession:
        if self._session is None:
            # Nothing of the environment (proxies, .netrc) and no state between requests.
            self._session = ClientSession(
                connector=TCPConnector(
                    resolver=_CheckingResolver(self._lookup, self._is_allowed),
                    use_dns_cache=False,
                    limit=self._limits.max_connections,
                ),
                timeout=ClientTimeout(
                    total=None, sock_connect=self._limits.connect_timeout_seconds
                ),
                cookie_jar=DummyCookieJar(),
                headers=_HEADERS,
                trust_env=False,
            )
        return self._session

    def _next_hop(self, response: ClientResponse) -> URL:
        following = self._admitted(response.headers.get("Location", ""), base=response.url)
        if response.url.scheme == "https" and following.scheme != "https":
            raise _forbidden()
        return following

    def _admitted(self, text: str, *, base: URL | None = None) -> URL:
        """``text`` as the client will understand it, so that the check and the request agree."""
        try:
            url = URL(text) if base is None else base.join(URL(text))
        except ValueError as error:
            raise _forbidden() from error
        if not text.isprintable() or url.user is not None or url.password is not None:
            raise _forbidden()
        if url.scheme not in {"http", "https"} or not self._may_ask(url):
            raise _forbidden()
        return url

    def _may_ask(self, url: URL) -> bool:
        host = url.raw_host or ""
        if self._allow_loopback:
            return _NAME.fullmatch(host) is not None or _is_loopback(host)
        return _NAME.fullmatch(host) is not None and url.port in {80, 443}

    def _is_allowed(self, address: IPv4Address | IPv6Address) -> bool:
        return is_public(address) or (self._allow_loopback and address.is_loopback)

    async def _read(self, response: ClientResponse, pace: asyncio.Timeout) -> bytes:
        """The body. Each byte that arrives puts ``pace`` off a little."""
        if (response.content_length or 0) > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes)
        patience = asyncio.get_running_loop().time() + self._limits.grace_seconds
        pace.reschedule(patience)
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            pace.reschedule(patience + len(data) / self._limits.min_bytes_per_second)
            if len(data) > self._limits.max_bytes:
                raise too_large(self._limits.max_bytes)
        return bytes(data)


class _CheckingResolver(AbstractResolver):
    """The only look-up of a connection: it goes to an address that was checked here, so a name
    cannot mean one thing when it is checked and another when it is used."""

    def __init__(
        self, lookup: Lookup, is_allowed: Callable[[IPv4Address | IPv6Address], bool]
    ) -> None:
        self._lookup = lookup
        self._is_allowed = is_allowed

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - all are checked
    ) -> list[ResolveResult]:
        addresses = [ip_address(address) for address in await self._lookup(host)]
        if not all(self._is_allowed(address) for address in addresses):
            raise _forbidden()
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in addresses
        ]

    async def close(self) -> None:
        """Nothing is open."""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False


def _check_status(response: ClientResponse) -> None:
    if response.status in _PASSING or response.status >= 500:
        raise _try_again(_retry_after_seconds(response))
    if response.status != 200:
        raise _unreachable("A picture could not be downloaded from its link")


def _retry_after_seconds(response: ClientResponse) -> float:
    asked = response.headers.get("Retry-After", "")
    return min(float(asked), MAX_RETRY_AFTER_SECONDS) if _SECONDS.fullmatch(asked) else 0.0


def _try_again(retry_after_seconds: float = 0.0) -> TryAgain:
    return TryAgain(
        "A picture's server did not deliver it",
        code=ErrorCode.IMAGE_UNREACHABLE,
        retry_after_seconds=retry_after_seconds,
    )


def _forbidden() -> Refused:
    return _unreachable("A picture's link does not lead to a public web address")


def _unreachable(message: str) -> Refused:
    return Refused(message, code=ErrorCode.IMAGE_UNREACHABLE)
