"""Shared by the tests of the picture fetcher: a web site, a name service, and fetchers."""

import socket
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer

from adapters.images.fetcher import HttpPictureFetcher
from adapters.images.limits import FetchLimits
from adapters.images.lookups import Lookup
from domain.errors import Refused
from tests.adapters.generators import inspected
from tests.support.images import encoded

JPEG = encoded("JPEG")
SMALL = FetchLimits(total_timeout_seconds=5, max_bytes=100_000)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]
NewFetcher = Callable[..., HttpPictureFetcher]


class Site:
    """A web server on this machine. Paths without a handler get 404. Keeps all requests."""

    def __init__(self) -> None:
        self.handlers: dict[str, Handler] = {}
        self.requests: list[web.Request] = []
        app = web.Application()
        app.router.add_get("/{path:.*}", self._respond)
        self.server = TestServer(app, host="127.0.0.1")

    async def _respond(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path not in self.handlers:
            raise web.HTTPNotFound
        return await self.handlers[request.path](request)

    def add(self, path: str, data: bytes = JPEG, **options: Any) -> str:
        """Serve a ``web.Response`` with these options at ``path``; returns the URL."""

        async def respond(_: web.Request) -> web.Response:
            return web.Response(body=data, **options)

        return self.add_handler(path, respond)

    def add_redirect(self, path: str, location: str, status: int = 302) -> str:
        return self.add(path, b"", status=status, headers={"Location": location})

    def add_handler(self, path: str, handler: Handler) -> str:
        self.handlers[path] = handler
        return self.url(path)

    def url(self, path: str, *, host: str = "127.0.0.1") -> str:
        return f"{self.server.scheme}://{host}:{self.server.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@asynccontextmanager
async def running_site() -> AsyncIterator[Site]:
    site = Site()
    await site.server.start_server()
    yield site
    await site.server.close()


class Names:
    """A name service with fixed names. Keeps all lookups."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names
        self.lookups: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.lookups.append(host)
        if host not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self._names[host]


@asynccontextmanager
async def fetchers() -> AsyncIterator[NewFetcher]:
    """Makes fetchers that never use a real name service; closes them."""
    made: list[HttpPictureFetcher] = []

    def make(
        lookup: Lookup | None = None, *, limits: FetchLimits = SMALL, allow_loopback: bool = True
    ) -> HttpPictureFetcher:
        fetcher = HttpPictureFetcher(
            limits,
            prepare=inspected,
            allow_loopback=allow_loopback,
            lookup=lookup or Names({}),
        )
        made.append(fetcher)
        return fetcher

    yield make
    for fetcher in made:
        await fetcher.close()


async def refusal_of(fetcher: HttpPictureFetcher, url: str) -> Refused:
    with pytest.raises(Refused) as refusal:
        await fetcher.fetch(url)
    return refusal.value
