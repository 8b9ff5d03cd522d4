"""Fetches a key set with one bounded HTTP/1.1 request.

On the standard library's streams and uvicorn's parser: importing aiohttp takes 0.27 s, and an API
process needs it for nothing else.
"""

import asyncio
import os
import re
import socket
import ssl
from dataclasses import dataclass
from urllib.parse import urlsplit

from httptools import HttpParserError, HttpResponseParser

_CHUNK = 65_536
_MAX_AGE = re.compile(r"(?:^|[\s,])max-age=([0-9]{1,9})(?:$|[\s,])", re.IGNORECASE)


@dataclass(frozen=True, slots=True, kw_only=True)
class JwksLimits:
    """Bounds of one fetch, from the name lookup to the last byte. ``max_header_bytes`` come on top
    of those of the body."""

    total_seconds: float = 5.0
    max_bytes: int = 262_144
    max_header_bytes: int = 16_384


@dataclass(frozen=True, slots=True)
class Fetched:
    """``max_age_seconds`` is that of Cache-Control, if there is one."""

    body: bytes
    max_age_seconds: int | None = None


class FetchFailed(Exception):
    """``str(error)`` says why, for the log, without any text of the server's."""


class JwksClient:
    """Fetches ``url`` over verified TLS, without redirects. ``allow_http`` is for development.
    ``tls`` replaces the system's certificates."""

    def __init__(
        self,
        url: str,
        *,
        limits: JwksLimits | None = None,
        allow_http: bool = False,
        tls: ssl.SSLContext | None = None,
    ) -> None:
        self._url = urlsplit(url)
        self._limits = limits or JwksLimits()
        self._allow_http = allow_http
        self._tls = tls

    async def __call__(self) -> Fetched:
        """Raises ``FetchFailed``."""
        try:
            async with asyncio.timeout(self._limits.total_seconds):
                return await self._fetch()
        except TimeoutError:
            raise FetchFailed(f"no answer within {self._limits.total_seconds:g} s") from None
        except ssl.SSLCertVerificationError as error:
            raise FetchFailed(f"certificate not valid: {error.verify_message}") from None
        except UnicodeError:
            raise FetchFailed("the host's name is not valid") from None
        except OSError as error:
            raise FetchFailed(f"connection failed: {_reason(error)}") from None
        except HttpParserError:
            raise FetchFailed("the answer is not HTTP") from None

    async def _fetch(self) -> Fetched:
        reader, writer = await asyncio.open_connection(
            self._url.hostname, self._url.port or self._default_port(), ssl=await self._context()
        )
        try:
            writer.write(self._request())
            return await self._answer(reader)
        finally:
            writer.transport.abort()

    def _default_port(self) -> int:
        return 443 if self._url.scheme == "https" else 80

    async def _context(self) -> ssl.SSLContext | None:
        if self._url.scheme == "https":
            if self._tls is None:
                self._tls = await asyncio.to_thread(ssl.create_default_context)
            return self._tls
        if not self._allow_http:
            raise FetchFailed("the URL is not https")
        return None

    def _request(self) -> bytes:
        target = (self._url.path or "/") + (f"?{self._url.query}" if self._url.query else "")
        return (
            f"GET {target} HTTP/1.1\r\nHost: {self._url.netloc}\r\nUser-Agent: wearon\r\n"
            "Accept: application/jwk-set+json, application/json\r\n"
            "Accept-Encoding: identity\r\nConnection: close\r\n\r\n"
        ).encode("ascii")

    async def _answer(self, reader: asyncio.StreamReader) -> Fetched:
        answer, received = _Answer(), 0
        limits = self._limits
        while not answer.is_complete and (data := await reader.read(_CHUNK)):
            received += len(data)
            answer.feed(data)
            if len(answer.body) > limits.max_bytes:
                raise FetchFailed(f"the answer is larger than {limits.max_bytes} bytes")
            if received > limits.max_bytes + limits.max_header_bytes:
                raise FetchFailed("the answer and its headers are too large")
        if not answer.is_whole:
            raise FetchFailed("the answer was cut off")
        return Fetched(bytes(answer.body), answer.max_age_seconds)


def _reason(error: OSError) -> str:
    """Without the address, which the error's own text has."""
    if isinstance(error, socket.gaierror):
        return "name lookup"
    if isinstance(error, ssl.SSLError):
        return f"TLS {error.reason}"
    return os.strerror(error.errno) if error.errno else type(error).__name__


class _Answer:
    """What the parser has found."""

    def __init__(self) -> None:
        self.body = bytearray()
        self.is_complete = False
        self._ends_with_connection = True
        self._headers: dict[bytes, bytes] = {}
        self._parser = HttpResponseParser(self)
        self._status: int | None = None

    def feed(self, data: bytes) -> None:
        """Raises ``HttpParserError``, and ``FetchFailed`` for an answer that is no plain 200."""
        self._parser.feed_data(data)
        if self._status not in {None, 200}:
            raise FetchFailed(f"status {self._status}")
        if self._headers.get(b"content-encoding", b"identity").lower() != b"identity":
            raise FetchFailed("the answer is compressed")

    @property
    def is_whole(self) -> bool:
        """Without a length, the end of the connection is that of the body."""
        return self.is_complete or (self._status is not None and self._ends_with_connection)

    @property
    def max_age_seconds(self) -> int | None:
        match = _MAX_AGE.search(self._headers.get(b"cache-control", b"").decode("latin-1"))
        return int(match[1]) if match else None

    def on_header(self, name: bytes, value: bytes) -> None:
        self._headers[name.lower()] = value

    def on_headers_complete(self) -> None:
        self._status = self._parser.get_status_code()
        framing = {b"content-length", b"transfer-encoding"}
        self._ends_with_connection = not framing & self._headers.keys()

    def on_body(self, data: bytes) -> None:
        self.body += data

    def on_message_complete(self) -> None:
        self.is_complete = True
