"""What browsers need to know about every response: which pages may read it (CORS, in the Fetch
standard), and what it may do where it is shown.

Any page may ask, and read why it was refused: the credential, not the browser, decides which pages
may use it. That is safe because nothing is sent along automatically: there are no cookies, and no
``Access-Control-Allow-Credentials``.
"""

import re
from collections.abc import Sequence
from typing import Final, TypeAlias

from litestar.types import HTTPScope, Receive, Scope, Send

from domain.errors import DomainMismatch
from domain.origins import ORIGIN
from entrypoints.http.request_info import RawHeaders

Header: TypeAlias = tuple[bytes, bytes]

OPAQUE: Final = b"null"
"""The origin of a sandboxed frame or a local file. Such pages may read why they are refused."""

_ORIGIN = re.compile(ORIGIN.pattern.encode())
_REQUESTED_METHOD = b"access-control-request-method"

_EXPOSE: Final[Header] = (
    b"access-control-expose-headers",
    b"x-request-id, location, retry-after, ratelimit, ratelimit-policy, x-ratelimit-limit,"
    b" x-ratelimit-remaining, x-ratelimit-reset, idempotency-replayed, preference-applied,"
    b" www-authenticate",
)
"""The response headers that pages may read."""

_ACCEPTED = (
    b"authorization, content-type, idempotency-key, prefer, x-request-id, last-event-id,"
    b" cache-control, traceparent, tracestate, baggage, x-requested-with"
)
"""The request headers that pages may send: ours, and those that libraries add on their own."""

_PREFLIGHT: Final[Sequence[Header]] = (
    # All methods, on every path: a page that uses a wrong one is told so by the 405.
    (b"access-control-allow-methods", b"GET, HEAD, POST, PUT, PATCH, DELETE"),
    (b"access-control-allow-headers", _ACCEPTED),
    (b"access-control-max-age", b"7200"),  # Chromium keeps no answer for longer.
    (b"vary", b"Access-Control-Request-Method, Access-Control-Request-Headers"),
)

_ALL: Final[Sequence[Header]] = (
    (b"cache-control", b"no-store"),  # It says how the caller's data is now.
    (b"vary", b"Origin"),
    (b"x-content-type-options", b"nosniff"),
)
_DATA: Final = b"default-src 'none'; frame-ancestors 'none'"
_PICTURE: Final[Sequence[Header]] = (
    *_ALL,
    (b"content-security-policy", b"default-src 'none'; sandbox"),
    (b"cross-origin-resource-policy", b"cross-origin"),
)
_PAGE: Final[Sequence[Header]] = (
    *_ALL,
    (
        b"content-security-policy",
        b"default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' data: blob:;"
        b" connect-src 'self'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    ),
    (b"referrer-policy", b"no-referrer"),  # Links to pictures are secrets.
    (b"cross-origin-opener-policy", b"same-origin"),
)
_ANYTHING_ELSE: Final[Sequence[Header]] = (*_ALL, (b"content-security-policy", _DATA))
_BY_TYPE: Final = {
    b"image/jpeg": _PICTURE,
    b"image/png": _PICTURE,
    b"image/webp": _PICTURE,
    b"text/html": _PAGE,
    b"text/html; charset=utf-8": _PAGE,
}
_HTTPS_ONLY = (b"strict-transport-security", b"max-age=31536000")


REFUSAL_HEADERS: Final = (*_ANYTHING_ELSE, _EXPOSE)
"""The headers of a response to what is not a request."""

_NAMES = frozenset(name for headers in (_ANYTHING_ELSE, *_BY_TYPE.values()) for name, _ in headers)


class BrowserHeaders:
    """The headers that every response gets. They are put together once: no response costs more than
    a few look-ups. With ``https_only``, browsers are told to come by HTTPS from then on."""

    def __init__(self, *, https_only: bool = False) -> None:
        further = [_HTTPS_ONLY] if https_only else []
        self._else = (*_ANYTHING_ELSE, *further)
        self._by_type = {kind: (*headers, *further) for kind, headers in _BY_TYPE.items()}

    def add_to(self, headers: list[Header], *, origin: bytes | None) -> None:
        """Add them to the ``headers`` of a response. Those that it has already are kept, and its
        ``Vary`` gets longer. A page of ``origin`` may read the response."""
        media_type, has_own = b"", False
        for name, value in headers:
            if name == b"content-type":
                media_type = value
            elif name in _NAMES:
                has_own = True
        added = self._by_type.get(media_type, self._else)
        if has_own:
            _merge(headers, added)
        else:
            headers += added
        if origin is not None:
            headers += (b"access-control-allow-origin", origin), _EXPOSE


def _merge(headers: list[Header], added: Sequence[Header]) -> None:
    present = dict(headers)
    varies = b", ".join(value for name, value in (*added, *headers) if name == b"vary")
    kept = [header for header in headers if header[0] != b"vary"]
    new = [header for header in added if header[0] not in present]
    headers[:] = [*kept, *(header for header in new if header[0] != b"vary"), (b"vary", varies)]


def readable_by(request: RawHeaders) -> bytes | None:
    """The origin that the response is for. None if a server asks, and for anything that is not
    exactly one origin: it is never repeated."""
    found = None
    for name, value in request:
        if name == b"origin":
            if found is not None:
                return None
            found = value
    if found is None or found == OPAQUE or _ORIGIN.fullmatch(found):
        return found
    return None


def origin_of(request: RawHeaders) -> str | None:
    """The origin of the page that asks; None if a server does. Raises ``DomainMismatch`` for what
    no credential may be used from."""
    given = [value for name, value in request if name == b"origin"]
    if not given:
        return None
    if len(given) > 1 or not _ORIGIN.fullmatch(given[0]):
        raise DomainMismatch("Origin: must be that of a web page, once")
    return given[0].decode()


def is_preflight(scope: HTTPScope) -> bool:
    """Whether a browser asks on its own what a page may do, provided that it names its origin."""
    return scope["method"] == "OPTIONS" and any(
        name == _REQUESTED_METHOD for name, _ in scope["headers"]
    )


async def answer_preflight(scope: Scope, receive: Receive, send: Send) -> None:  # noqa: ARG001
    """Whatever the path: the answer to the request itself says what is wrong, where the page can
    read it."""
    start = {"type": "http.response.start", "status": 204, "headers": list(_PREFLIGHT)}
    await send(start)  # type: ignore[arg-type]
    await send({"type": "http.response.body", "body": b"", "more_body": False})
