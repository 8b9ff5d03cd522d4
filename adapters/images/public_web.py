"""Untrusted links, followed without reaching our own network (SSRF): the URL is checked before any
name lookup, and every address of its host before any connection."""

import re
import socket
from ipaddress import IPv4Address, IPv6Address, ip_address

from aiohttp.abc import AbstractResolver, ResolveResult
from yarl import URL

from adapters.images.addresses import is_public
from adapters.images.lookups import DnsLookup, Lookup
from domain.links import WEB_PORTS

# A host name's last label begins with a letter, so no spelling of an IP address (127.1,
# 0x7f000001, 2130706433, [::1]) matches.
_HOST_NAME = re.compile(r"(?:[a-z0-9_-]{1,63}\.)*[a-z][a-z0-9_-]{0,62}\.?")

Address = IPv4Address | IPv6Address


class NotPublic(Exception):
    """A link does not lead to a public web address."""


class PublicWeb:
    """``allow_loopback`` is for development: it also allows this machine's loopback addresses, and
    then any port."""

    def __init__(self, *, allow_loopback: bool = False, lookup: Lookup | None = None) -> None:
        self._allow_loopback = allow_loopback
        self._dns = DnsLookup()
        self._lookup: Lookup = lookup or self._dns

    def checked_url(self, text: str, *, base: URL | None = None) -> URL:
        """``text`` as parsed by the client, so that the check and the request cannot differ. Raises
        ``NotPublic``."""
        try:
            url = URL(text) if base is None else base.join(URL(text))
        except ValueError as error:
            raise NotPublic from error
        if not text.isprintable() or url.user is not None or url.password is not None:
            raise NotPublic
        if url.scheme not in {"http", "https"} or not self._is_allowed_host(url):
            raise NotPublic
        return url

    async def addresses(self, host: str) -> list[Address]:
        """All addresses of ``host``, at least one. Raises ``NotPublic`` unless all are public, and
        ``OSError`` if there are none."""
        addresses = [ip_address(address) for address in await self._lookup(host)]
        if not all(map(self._is_allowed_address, addresses)):
            raise NotPublic
        return addresses

    def resolver(self) -> AbstractResolver:
        """For a connector of aiohttp, which then connects to checked addresses only."""
        return _CheckingResolver(self)

    async def close(self) -> None:
        """End all look-ups."""
        await self._dns.close()

    def _is_allowed_host(self, url: URL) -> bool:
        host = url.raw_host or ""
        if self._allow_loopback:
            return _HOST_NAME.fullmatch(host) is not None or _is_loopback(host)
        return _HOST_NAME.fullmatch(host) is not None and url.port in WEB_PORTS

    def _is_allowed_address(self, address: Address) -> bool:
        return is_public(address) or (self._allow_loopback and address.is_loopback)


class _CheckingResolver(AbstractResolver):
    """The only lookup of a connection, which uses the addresses checked here: a name cannot resolve
    to one address for the check and to another for the connection (DNS rebinding)."""

    def __init__(self, web: PublicWeb) -> None:
        self._web = web

    async def resolve(
        self,
        host: str,
        port: int = 0,
        family: socket.AddressFamily = socket.AF_UNSPEC,  # noqa: ARG002 - all are checked
    ) -> list[ResolveResult]:
        return [
            ResolveResult(
                hostname=host,
                host=str(address),
                port=port,
                family=socket.AF_INET if address.version == 4 else socket.AF_INET6,
                proto=socket.IPPROTO_TCP,
                flags=socket.AI_NUMERICHOST,
            )
            for address in await self._web.addresses(host)
        ]

    async def close(self) -> None:
        """Nothing to close; aiohttp requires the method."""


def _is_loopback(host: str) -> bool:
    try:
        return ip_address(host).is_loopback
    except ValueError:
        return False
