"""Whose request it is, where no credential says so: the client's network address."""

import re
from ipaddress import IPv6Address, ip_address

from litestar.types import HTTPScope

_NETWORK_BITS = 64
"""One customer's IPv6 network: its addresses count as one."""


def client_address(scope: HTTPScope, *, trusted_proxies: int) -> str:
    """The address of the client, as the outermost of ``trusted_proxies`` saw it.

    Each proxy appends the address of its own client to ``X-Forwarded-For``, so the last entries
    are the proxies', and what a client wrote there itself is further left. Without proxies, and
    if the header has too few entries, it is the address of the connection.
    """
    client = scope.get("client")
    connected = "" if client is None else client[0]
    if trusted_proxies == 0:
        return _network_of(connected)
    hops = [
        hop.strip()
        for name, value in scope["headers"]
        if name == b"x-forwarded-for"
        for hop in value.decode("latin-1").split(",")
    ]
    return _network_of(hops[-trusted_proxies] if len(hops) >= trusted_proxies else connected)


_WITH_PORT = re.compile(r"(?:([0-9.]+)|\[([0-9A-Fa-f:.]+)\])(?::[0-9]+)?")
"""An address as some proxies write it: with the client's port, IPv6 in brackets."""


def _network_of(text: str) -> str:
    match = _WITH_PORT.fullmatch(text)
    try:
        address = ip_address(text if match is None else match[1] or match[2])
    except ValueError:
        return ""
    if not isinstance(address, IPv6Address):
        return str(address)
    if address.ipv4_mapped is not None:
        return str(address.ipv4_mapped)
    return str(IPv6Address(int(address) >> _NETWORK_BITS << _NETWORK_BITS))
