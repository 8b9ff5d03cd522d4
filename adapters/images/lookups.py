"""Name look-ups for untrusted links.

Not the system's ``getaddrinfo``: each call of it takes a thread of the pool that also decodes the
provider's answers, for up to half a minute if the name's server is silent, and it cannot be
cancelled. Here all look-ups share one thread of the library, and none waits for another.
"""

import asyncio
import socket
from collections.abc import Awaitable, Callable, Sequence

from aiodns import DNSResolver
from aiodns.error import DNSError

LOOKUP_SECONDS = 5.0
_TRIES = 2
_FIRST_TRY_SECONDS = 1.5  # The library doubles it for the second try.

Lookup = Callable[[str], Awaitable[Sequence[str]]]
"""Returns all IP addresses of a host name. Raises ``OSError`` if there are none."""


class DnsLookup:
    """All IPv4 and IPv6 addresses of a name, from the hosts file or else the name servers: those of
    the system, or ``servers`` (``address:port``)."""

    def __init__(self, servers: Sequence[str] = ()) -> None:
        self._servers = servers
        self._resolver: DNSResolver | None = None

    async def __call__(self, host: str) -> list[str]:
        try:
            async with asyncio.timeout(LOOKUP_SECONDS):
                found = await self._opened().getaddrinfo(
                    host, family=socket.AF_UNSPEC, type=socket.SOCK_STREAM
                )
        except DNSError as error:
            raise OSError(f"The name was not found: {error.args[-1]}") from error
        return [str(node.addr[0], "ascii") for node in found.nodes]

    async def close(self) -> None:
        """End all look-ups."""
        if self._resolver is not None:
            await self._resolver.close()

    def _opened(self) -> DNSResolver:
        """Opened at the first look-up, because it belongs to the running event loop."""
        if self._resolver is None:
            self._resolver = DNSResolver(
                nameservers=self._servers, timeout=_FIRST_TRY_SECONDS, tries=_TRIES
            )
        return self._resolver
