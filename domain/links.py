"""Which links can lead to a picture: the part that shows in the link itself, before any look-up.

The fetcher checks much more. What is refused here could never be fetched, so it costs no credit.
"""

import re
import unicodedata
from collections.abc import Callable
from dataclasses import dataclass
from ipaddress import IPv4Address, IPv6Address
from urllib.parse import SplitResult, unquote, urlsplit

from domain.errors import InvalidInput

WEB_PORTS = frozenset({80, 443})
"""The ports that are connected to."""

MAX_URL_LENGTH = 2_048

# Fast path: nearly all URLs match, and what matches is valid without being parsed. The last label
# of the host begins with a letter, so it is no address.
_USUAL_URL = re.compile(
    r"https?://[A-Za-z0-9.-]*\.[A-Za-z][A-Za-z0-9-]*(?::80|:443)?/[A-Za-z0-9._~/?&=%+,:-]*"
)
_NO_NAME = "must name a host on the public internet"

Address = IPv4Address | IPv6Address


def _no_link(_: str) -> bool:
    return False


@dataclass(frozen=True, slots=True, kw_only=True)
class LinkRules:
    """``allow_loopback`` is for development: this machine's addresses, and then any port.
    ``is_own`` recognises links to uploads in our own storage: they are read, not fetched, so they
    may lead anywhere."""

    allow_loopback: bool = False
    is_own: Callable[[str], bool] = _no_link

    def problem_of(self, url: str, parts: SplitResult) -> str | None:
        """Why a valid http or https URL can never be fetched; None if it may."""
        problem = self._problem_of(parts)
        return None if problem is None or self.is_own(url) else problem

    def _problem_of(self, parts: SplitResult) -> str | None:
        host = parts.hostname or ""
        if parts.port not in {None, *WEB_PORTS} and not self.allow_loopback:
            return "must use port 80 or 443"
        try:
            address = address_in(host)
        except ValueError:
            return _NO_NAME
        if address is None:
            return None
        if self.allow_loopback and address.is_loopback and host == str(address):
            return None
        return _NO_NAME


PUBLIC_LINKS = LinkRules()


def check_link(field: str, url: str, links: LinkRules = PUBLIC_LINKS) -> None:
    """Raises ``InvalidInput`` for ``field`` if ``url`` can never be fetched. The address behind it
    is checked when it is connected to."""
    if len(url) > MAX_URL_LENGTH:
        raise InvalidInput(field, f"is longer than {MAX_URL_LENGTH} characters")
    if _USUAL_URL.fullmatch(url):
        return
    if not url.isprintable() or any(character in url for character in ' \\"<>'):
        raise InvalidInput(field, "has a character that a URL cannot have")
    try:
        parts = urlsplit(url)
        host, port, user = parts.hostname, parts.port, parts.username
    except ValueError as error:
        raise InvalidInput(field, "is not a valid URL") from error
    if parts.scheme not in {"http", "https"} or not host or port == 0:
        raise InvalidInput(field, "must be an http or https URL")
    if user is not None:
        raise InvalidInput(field, "must not carry a user name or password")
    problem = links.problem_of(url, parts)
    if problem is not None:
        raise InvalidInput(field, problem)


def address_in(host: str) -> Address | None:
    """The IP address that ``host`` spells in any of the ways that browsers and resolvers read
    (https://url.spec.whatwg.org/#host-parsing): ``127.1``, ``0x7f000001``, ``0177.0.0.1``,
    full-width digits, escapes. None for a name, whose last label begins with no digit. Raises
    ``ValueError`` if it is neither."""
    if ":" in host:
        return IPv6Address(host)
    host = unicodedata.normalize("NFKC", unquote(host)).replace("\u3002", ".").removesuffix(".")
    labels = ["".join(map(_ascii_digit, label)) for label in host.split(".")]
    if not labels[-1][:1].isdigit():
        return None
    return _ipv4([_number(label) for label in labels])


def _ascii_digit(character: str) -> str:
    return str(unicodedata.decimal(character)) if character.isdecimal() else character


def _number(label: str) -> int:
    """Decimal, octal after ``0``, hexadecimal after ``0x``, as in C."""
    if not label.isascii() or not label.isalnum():
        raise ValueError("not a number")
    if label[:2] in {"0x", "0X"}:
        return int(label[2:] or "0", 16)
    return int(label, 8 if label.startswith("0") else 10)


def _ipv4(numbers: list[int]) -> IPv4Address:
    """The last number fills the bytes that the others leave."""
    *first, last = numbers
    if len(first) > 3 or any(number > 255 for number in first) or last >= 256 ** (4 - len(first)):
        raise ValueError("not an address")
    for place, number in enumerate(first):
        last += number << 8 * (3 - place)
    return IPv4Address(last)
