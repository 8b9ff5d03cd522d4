"""Origins of web pages (RFC 6454), in the form in which browsers send them."""

import re
import unicodedata
from ipaddress import AddressValueError, IPv4Address, IPv6Address

from domain.errors import InvalidInput

MAX_ORIGIN_LENGTH = 300

_ORIGIN = re.compile(
    r"(?P<scheme>https?)://(?P<host>\[[0-9A-Fa-f:.]+\]|[^\s/?#@:\\%\[\]]+)(?::(?P<port>[0-9]{1,5}))?",
    re.IGNORECASE,
)
_LABEL = re.compile(r"[a-z0-9](?:[a-z0-9-]{0,61}[a-z0-9])?")
_DOTS = str.maketrans("\u3002\uff0e\uff61", "...")
"""Full stops of other scripts, which browsers take for dots."""

_DEFAULT_PORTS = {"http": 80, "https": 443}
_PROBLEM = "must be scheme://host or scheme://host:port, without a path"


def normalised_origin(text: str) -> str:
    """``text`` as a browser sends it: lower case, the host in ASCII, without a default port.

    Raises ``InvalidInput`` for ``origins`` unless it is exactly one origin with https, or with http
    on this machine.
    """
    match = _ORIGIN.fullmatch(text) if len(text) <= MAX_ORIGIN_LENGTH else None
    if match is None:
        raise _invalid(text, _PROBLEM)
    scheme = match["scheme"].lower()
    host = _host(text, match["host"])
    if scheme == "http" and not _is_loopback(host):
        raise _invalid(text, "must begin with https:// (http:// is for localhost only)")
    return f"{scheme}://{host}{_port(text, match['port'], scheme)}"


def _port(text: str, port: str | None, scheme: str) -> str:
    """With its colon; empty if it is the scheme's own."""
    if port is None or int(port) == _DEFAULT_PORTS[scheme]:
        return ""
    if not 1 <= int(port) <= 65_535:
        raise _invalid(text, "has a port that does not exist")
    return f":{int(port)}"


def _host(text: str, host: str) -> str:
    if host.startswith("["):
        return _ipv6(text, host[1:-1])
    labels = [_ascii_label(text, label) for label in _folded(host).split(".")]
    name = ".".join(labels)
    if labels[-1].isdigit() or labels[-1].startswith("0x"):
        return _ipv4(text, name)
    if len(name) > 253:
        raise _invalid(text, "has a host name that is too long")
    return name


def _folded(host: str) -> str:
    """Letters in one form: lower case, full-width ones as usual ones."""
    return unicodedata.normalize("NFKC", host.translate(_DOTS)).lower()


def _ascii_label(text: str, label: str) -> str:
    """One label of a host name in ASCII: Punycode (RFC 3492), without the older IDNA's habit of
    replacing letters such as the German sharp s, which browsers have given up."""
    label = unicodedata.normalize("NFC", label)
    if not label.isascii() and all(_is_letter(character) for character in label):
        label = "xn--" + label.encode("punycode").decode("ascii")
    if not _LABEL.fullmatch(label):
        raise _invalid(text, "has a host name that does not exist")
    return label


def _is_letter(character: str) -> bool:
    """Letters, digits, hyphens, and the marks that belong to letters."""
    return character == "-" or unicodedata.category(character)[0] in "LMN"


def _ipv4(text: str, host: str) -> str:
    try:
        return str(IPv4Address(host))
    except AddressValueError as error:
        raise _invalid(text, "has an address that does not exist") from error


def _ipv6(text: str, host: str) -> str:
    """In brackets. Browsers write an IPv4 address inside it in hexadecimal."""
    try:
        address = IPv6Address(host)
    except AddressValueError as error:
        raise _invalid(text, "has an address that does not exist") from error
    mapped = address.ipv4_mapped
    if mapped is None:
        return f"[{address}]"
    return f"[::ffff:{int(mapped) >> 16:x}:{int(mapped) & 0xFFFF:x}]"


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost") or host == "[::1]":
        return True
    try:
        return IPv4Address(host).is_loopback
    except AddressValueError:
        return False


def _invalid(text: str, problem: str) -> InvalidInput:
    return InvalidInput("origins", f"{text[:100]!r} {problem}")
