"""Downloads pictures from untrusted links, without reaching our own network (SSRF).

Three checks: the URL before any name lookup, every address of its host before any connection (both
in ``public_web.py``), and the bytes before any use (``pool.py``). Each redirect goes through the
first two again.
"""

import asyncio
import re

from aiohttp import (
    ClientError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
)
from yarl import URL

from adapters.images.http import network_detail, shortage
from adapters.images.inputs import Prepare
from adapters.images.inspection import too_large
from adapters.images.limits import FetchLimits
from adapters.images.lookups import Lookup
from adapters.images.public_web import NotPublic, PublicWeb
from domain.causes import Cause, CauseKind
from domain.errors import InputUnavailable, Refused
from domain.picture_ports import Picture
from domain.sessions import ErrorCode

MAX_RETRY_AFTER_SECONDS = 60

_REDIRECT_STATUSES = frozenset({301, 302, 303, 307, 308})
_TRANSIENT_STATUSES = frozenset({408, 425, 429})
_HEADERS = {
    "User-Agent": "wearon",
    "Accept": "image/jpeg, image/png, image/webp",
    "Accept-Encoding": "identity",
}

_SECONDS = re.compile(r"[0-9]{1,9}")


class HttpPictureFetcher:
    """Downloads over HTTP and HTTPS from public addresses. ``allow_loopback`` is for development:
    it also allows this machine's loopback addresses, and then any port."""

    def __init__(
        self,
        limits: FetchLimits,
        *,
        prepare: Prepare,
        allow_loopback: bool = False,
        lookup: Lookup | None = None,
    ) -> None:
        self._limits = limits
        self._prepare = prepare
        self._web = PublicWeb(allow_loopback=allow_loopback, lookup=lookup)
        self._session: ClientSession | None = None

    async def fetch(self, url: str) -> Picture:
        """The picture at ``url``, prepared. Raises ``Refused`` or ``TryAgain``."""
        return await self._prepare(await self.download(url))

    async def download(self, url: str) -> bytes:
        """The bytes at ``url``. Raises ``Refused``, and ``TryAgain`` if the host failed."""
        try:
            async with asyncio.timeout(self._limits.total_timeout_seconds):
                return await self._download(self._web.checked_url(url))
        except NotPublic as error:
            raise _not_public() from error
        except (ClientError, OSError) as error:
            detail = f"{network_detail(error)} host={URL(url).host}"
            raise shortage(error) or _transient_failure(detail) from error

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()
        await self._web.close()

    async def _download(self, url: URL) -> bytes:
        for _ in range(self._limits.max_redirects + 1):
            begin_seconds = self._limits.connect_timeout_seconds + self._limits.grace_seconds
            async with (
                asyncio.timeout(begin_seconds) as deadline,
                self._client().get(url, allow_redirects=False) as response,
            ):
                if response.status not in _REDIRECT_STATUSES:
                    _check_status(response)
                    return await self._read_body(response, deadline)
                url = self._redirect_target(response)
        raise _unreachable("A picture's link redirects too often")

    def _client(self) -> ClientSession:
        if self._session is None:
            # It takes no proxy or password from the environment, and keeps no cookies.
            self._session = ClientSession(
                connector=TCPConnector(
                    resolver=self._web.resolver(),
                    use_dns_cache=False,
                    # Bounded by the attempts and their parallel downloads. A wait for a connection
                    # of others would count as the host's.
                    limit=0,
                ),
                timeout=ClientTimeout(
                    total=None, sock_connect=self._limits.connect_timeout_seconds
                ),
                cookie_jar=DummyCookieJar(),
                headers=_HEADERS,
                trust_env=False,
            )
        return self._session

    def _redirect_target(self, response: ClientResponse) -> URL:
        target = self._web.checked_url(response.headers.get("Location", ""), base=response.url)
        if response.url.scheme == "https" and target.scheme != "https":
            raise NotPublic
        return target

    async def _read_body(self, response: ClientResponse, deadline: asyncio.Timeout) -> bytes:
        """Each received byte extends the ``deadline`` a little."""
        if (response.content_length or 0) > self._limits.max_bytes:
            raise too_large(self._limits.max_bytes)
        grace_ends_at = asyncio.get_running_loop().time() + self._limits.grace_seconds
        deadline.reschedule(grace_ends_at)
        data = bytearray()
        async for chunk in response.content.iter_any():
            data += chunk
            deadline.reschedule(grace_ends_at + len(data) / self._limits.min_bytes_per_second)
            if len(data) > self._limits.max_bytes:
                raise too_large(self._limits.max_bytes)
        return bytes(data)


def _check_status(response: ClientResponse) -> None:
    detail = f"{response.status} host={response.url.host}"
    if response.status in _TRANSIENT_STATUSES or response.status >= 500:
        raise _transient_failure(detail, _retry_after_seconds(response))
    if response.status != 200:
        raise _unreachable("A picture could not be downloaded from its link", detail)


def _retry_after_seconds(response: ClientResponse) -> float:
    value = response.headers.get("Retry-After", "")
    return min(float(value), MAX_RETRY_AFTER_SECONDS) if _SECONDS.fullmatch(value) else 0.0


def _transient_failure(detail: str, retry_after_seconds: float = 0.0) -> InputUnavailable:
    return InputUnavailable(
        "A picture's server did not deliver it",
        retry_after_seconds=retry_after_seconds,
        cause=Cause(CauseKind.INPUT, detail),
    )


def _not_public() -> Refused:
    return _unreachable("A picture's link does not lead to a public web address")


def _unreachable(message: str, detail: str | None = None) -> Refused:
    cause = Cause(CauseKind.INPUT, detail or message)
    return Refused(message, code=ErrorCode.IMAGE_UNREACHABLE, cause=cause)
