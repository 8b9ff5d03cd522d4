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


HOSTILE_LINKS = [
    "http://127.0.0.1/",
    "http://2130706433/",
    "http://0x7f000001/",
    "http://0x7f.1/",
    "http://0177.0.0.1/",
    "http://017700000001/",
    "http://127.1/",
    "http://127.0.0.1./",
    "http://127.0.0.1:443/",
    "https://127.0.0.1/",
    "http://0/",
    "http://0.0.0.0/",
    "http://127.000.000.001/",
    "http://0x7f.0x0.0x0.0x1/",
    "http://0X7F000001/",
    "http://0177.1/",
    "http://00000177.0.0.1/",
    "http://127.0.1/",
    "http://127.65530/",
    "http://3232235777/",
    "http://0xa9fea9fe/",
    "http://0251.0376.0251.0376/",
    "http://169.254.43518/",
    "http://10.0.0.1/",
    "http://172.16.0.1/",
    "http://192.168.1.1/",
    "http://100.100.100.200/latest/meta-data/",
    "http://168.63.129.16/",
    "http://192.0.0.192/opc/v2/instance/",
    "http://255.255.255.255/",
    "http://224.0.0.1/",
    "http://127.0.0.1%00.good.example/",
    "http://127.0.0.1%2egood.example/",
    "http://127%2e0%2e0%2e1/",
    "http://127\uff0e0\uff0e0\uff0e1/",
    "http://127\uff610\uff610\uff611/",
    "http://\uff10\uff58\uff17\uff46\uff10\uff10\uff10\uff10\uff10\uff11/",
    "http://\u0661\u0662\u0667.0.0.1/",
    "http://\U0001d7cf\U0001d7d0\U0001d7d5.0.0.1/",
    "http://1\uff12\uff17.\uff10.\uff10.\uff11/",
    "http://127\u30020\u30020\u30021/",
    "http://\u2460\u2461\u2466.0.0.1/",
    "http://%31%32%37.0.0.1/",
    "http://8.8.8.8/",
    "http://169.254.169.254/latest/meta-data/",
    "http://[::1]/",
    "http://[::ffff:127.0.0.1]/",
    "http://[::127.0.0.1]/",
    "http://[::]/",
    "http://[0:0:0:0:0:0:0:1]/",
    "http://[::ffff:7f00:1]/",
    "http://[::ffff:0:127.0.0.1]/",
    "http://[::7f00:1]/",
    "http://[64:ff9b::7f00:1]/",
    "http://[64:ff9b::169.254.169.254]/",
    "http://[64:ff9b:1::a00:1]/",
    "http://[2002:7f00:1::]/",
    "http://[2002:a9fe:a9fe::1]/",
    "http://[2001:0:4136:e378:8000:63bf:80ff:fffe]/",
    "http://[fec0::1]/",
    "http://[fc00::1]/",
    "http://[ff02::1]/",
    "http://[::1%25lo]/",
    "http://[::1/",
    "http://::1/",
    "http://[v1.127]/",
    "http://[fd00:ec2::254]/",
    "http://[fe80::1%25eth0]/",
    "http://[2606:4700:4700::1111]/",
    "http://good.example\\@127.0.0.1/",
    "http://user@good.example/",
    "http://user:password@good.example/",
    "http://good.example%2f@127.0.0.1/",
    "http://good.example:80@127.0.0.1/",
    "http://good.example%40127.0.0.1/",
    "http://:@good.example/",
    "http://good.example;127.0.0.1/",
    "http://good.example,127.0.0.1/",
    "http:\\\\127.0.0.1/",
    "http:/\\127.0.0.1/",
    "http:127.0.0.1/",
    "http:///127.0.0.1/",
    "\\\\127.0.0.1\\a",
    "http://good.example\\.127.0.0.1/",
    "http://-/",
    "http://*/",
    "http://good.example:80:22/",
    "http://good.example:+22/",
    "http://good.example:\uff12\uff12/",
    "http://good.example/\u202egpj.exe",
    "jar:http://good.example!/",
    "view-source:http://good.example/",
    "javascript:alert(1)",
    "dict://good.example:80/",
    "ldap://good.example:80/",
    "unix:///run/docker.sock",
    "http://good.example/a\r\nHost: 127.0.0.1",
    "http://good.example\t/",
    "http://good.example /",
    "http://good.example\0/",
    "http://good..example/",
    "http://good%2eexample/",
    "http://" + "a" * 64 + ".example/",
    "http://good.example:22/",
    "http://good.example:8080/",
    "http://good.example:0/",
    "http://good.example:99999/",
    "http:///a",
    "http://",
    "//good.example/",
    "/a",
    "",
    "file:///etc/passwd",
    "ftp://good.example/",
    "gopher://good.example:80/",
    "data:image/png;base64,AAAA",
    "ws://good.example/",
]
"""Links that are refused before any look-up. The name `good.example` is public."""

PRIVATE_ANSWERS = [
    ["127.0.0.1"],
    ["10.0.0.1"],
    ["169.254.169.254"],
    ["::1"],
    ["::ffff:10.0.0.1"],
    ["::10.0.0.1"],
    ["64:ff9b::a00:1"],
    ["2002:a00:1::"],
    ["2001:0:4136:e378:8000:63bf:f5ff:fffe"],
    ["168.63.129.16"],
    ["100.100.100.200"],
    ["192.0.0.192"],
    ["fec0::1"],
    ["224.0.0.1"],
    ["fe80::1%eth0"],
    ["8.8.8.8", "10.0.0.1"],
    ["10.0.0.1", "8.8.8.8"],
    ["8.8.8.8", "fd00:ec2::254"],
    ["2606:4700:4700::1111", "127.0.0.1"],
]
"""The addresses of names that are refused: not all of them are public."""
