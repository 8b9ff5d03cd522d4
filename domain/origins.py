"""Origins of web pages (RFC 6454), as browsers send them: scheme, host and, unless it is the
scheme's default, port."""

import re
from ipaddress import IPv6Address
from typing import Final
from urllib.parse import SplitResult, urlsplit

from domain.errors import InvalidInput

ORIGIN: Final = re.compile(
    r"[a-z][a-z0-9+.-]{0,30}://(?:[a-z0-9_-][a-z0-9._-]{0,252}|\[[0-9a-f:.]{2,45}\])(?::[0-9]{1,5})?"
)
"""An origin as a browser sends it. A page without an origin of its own sends ``null``."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_NOT_AN_ORIGIN = "must be like `https://shop.example`"


def normalized_origin(text: str, *, field: str = "origin") -> str:
    """``text`` in the form in which browsers send it. Raises ``InvalidInput`` for ``field`` if it
    is not exactly one origin: it has a path, for example, or a wildcard."""
    try:
        parts = urlsplit(text)
        if parts.path not in {"", "/"} or parts.query or parts.fragment or "@" in parts.netloc:
            raise ValueError(text)
        if " " in text or not text.isprintable():
            raise ValueError(text)
        return _serialized(parts)
    except ValueError as error:
        raise InvalidInput(field, _NOT_AN_ORIGIN) from error


def origin_of_url(url: str, *, field: str = "url") -> str:
    """The origin of the page at ``url``. Raises ``InvalidInput`` for ``field``."""
    try:
        return _serialized(urlsplit(url))
    except ValueError as error:
        raise InvalidInput(field, _NOT_AN_ORIGIN) from error


def _serialized(parts: SplitResult) -> str:
    """Raises ``ValueError`` for an invalid host or port."""
    default = _DEFAULT_PORTS.get(parts.scheme)
    port = "" if parts.port in {None, default} else f":{parts.port}"
    origin = f"{parts.scheme}://{_host(parts.hostname or '')}{port}"
    if parts.port == 0 or not ORIGIN.fullmatch(origin):
        raise ValueError(origin)
    return origin


def _host(host: str) -> str:
    """An IPv6 address in its shortest form, and an internationalised name in ASCII (RFC 3490).
    Raises ``ValueError`` for names that browsers encode differently: they must be in ASCII."""
    if ":" in host:
        return f"[{IPv6Address(host).compressed}]"
    if host.isascii():
        return host
    encoded = host.encode("idna")
    if encoded.decode("idna") != host:
        raise ValueError(host)
    return encoded.decode()
