"""The fetcher against a real server on this machine, and against links that lead elsewhere."""

import asyncio
import gzip
import socket
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import aiohttp.connector
import pytest
from aiohttp import web
from aiohttp.test_utils import TestServer, unused_port

from adapters.images.fetcher import HttpPictureFetcher, Lookup
from adapters.images.inspection import inspect_picture
from adapters.images.limits import FetchLimits
from domain.errors import Refused, TryAgain
from domain.ports import Picture
from domain.sessions import ErrorCode
from tests.support.images import encoded
from tests.support.tls import self_signed

pytestmark = pytest.mark.anyio

JPEG = encoded("JPEG")
SMALL = FetchLimits(total_timeout_seconds=5, max_bytes=100_000)

Handler = Callable[[web.Request], Awaitable[web.StreamResponse]]


class Site:
    """A web server on this machine: answers as told, 404 elsewhere, and keeps the requests."""

    def __init__(self) -> None:
        self.answers: dict[str, Handler] = {}
        self.requests: list[web.Request] = []
        app = web.Application()
        app.router.add_get("/{path:.*}", self._answer)
        self.server = TestServer(app, host="127.0.0.1")

    async def _answer(self, request: web.Request) -> web.StreamResponse:
        self.requests.append(request)
        if request.path not in self.answers:
            raise web.HTTPNotFound
        return await self.answers[request.path](request)

    def serves(self, path: str, data: bytes = JPEG, **options: Any) -> str:
        """Answer ``path`` with a response of these options; returns its URL."""

        async def respond(_: web.Request) -> web.Response:
            return web.Response(body=data, **options)

        return self.does(path, respond)

    def does(self, path: str, handler: Handler) -> str:
        self.answers[path] = handler
        return self.url(path)

    def url(self, path: str, *, host: str = "127.0.0.1") -> str:
        return f"{self.server.scheme}://{host}:{self.server.port}{path}"

    @property
    def paths(self) -> list[str]:
        return [request.path for request in self.requests]


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    site = Site()
    await site.server.start_server()
    yield site
    await site.server.close()


class Names:
    """A name service that knows some names and remembers which were asked for."""

    def __init__(self, names: dict[str, list[str]]) -> None:
        self._names = names
        self.asked: list[str] = []

    async def __call__(self, host: str) -> Sequence[str]:
        self.asked.append(host)
        if host not in self._names:
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")
        return self._names[host]


async def inspected(data: bytes) -> Picture:
    """Stands in for the processes that prepare pictures."""
    return inspect_picture(data)


NewFetcher = Callable[..., HttpPictureFetcher]


@pytest.fixture
async def new_fetcher() -> AsyncIterator[NewFetcher]:
    """Makes fetchers that ask no real name service, and closes them."""
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


@pytest.fixture
def dialled(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """Every address that a connection is attempted to; none is let through."""
    addresses: list[Any] = []

    async def refuse(_: object, __: socket.socket, address: object) -> None:
        addresses.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", refuse)
    return addresses


async def refusal_of(fetcher: HttpPictureFetcher, url: str) -> Refused:
    with pytest.raises(Refused) as refusal:
        await fetcher.fetch(url)
    return refusal.value


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
async def test_a_picture_arrives(site: Site, new_fetcher: NewFetcher, image_format: str) -> None:
    """The bytes arrive unchanged where they are prepared, and what comes out there is given out;
    the type that the server claims has no say in it."""
    data = encoded(image_format)
    url = site.serves("/a", data, content_type="text/html")

    picture = await new_fetcher().fetch(url)

    assert picture == Picture(data=data, media_type=f"image/{image_format.lower()}")


async def test_what_is_no_picture_is_refused(site: Site, new_fetcher: NewFetcher) -> None:
    """What cannot be prepared is refused as the preparation says, whatever it claims to be."""
    url = site.serves("/a.jpg", b"<html>", content_type="image/jpeg")

    refusal = await refusal_of(new_fetcher(), url)

    assert refusal.reason == ErrorCode.INVALID_IMAGE


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 400, 401, 403, 404, 410, 418, 451])
async def test_a_lasting_status_is_refused(
    site: Site, new_fetcher: NewFetcher, status: int
) -> None:
    """No further attempt would bring the picture; the other side's words stay unsaid."""
    url = site.serves("/a", JPEG, status=status, reason="Internal secret")

    refusal = await refusal_of(new_fetcher(), url)

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert "secret" not in str(refusal)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
async def test_a_passing_status_is_tried_again(
    site: Site, new_fetcher: NewFetcher, status: int
) -> None:
    """The other side is busy or broken: a later attempt may succeed."""
    url = site.serves("/a", JPEG, status=status)

    with pytest.raises(TryAgain) as failure:
        await new_fetcher().fetch(url)

    assert failure.value.reason == ErrorCode.IMAGE_UNREACHABLE
    assert failure.value.retry_after_seconds == 0


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("asked", "granted"),
    [
        ("7", 7),
        ("60", 60),
        ("86400", 60),
        ("9" * 5_000, 0),
        ("-1", 0),
        ("nan", 0),
        ("Wed, 21 Oct 2026 07:28:00 GMT", 0),
    ],
    ids=lambda value: str(value)[:8],
)
async def test_retry_after_is_honoured(
    site: Site, new_fetcher: NewFetcher, status: int, asked: str, granted: float
) -> None:
    """Seconds are honoured up to a minute; anything else counts as not said."""
    url = site.serves("/a", status=status, headers={"Retry-After": asked})

    with pytest.raises(TryAgain) as failure:
        await new_fetcher().fetch(url)

    assert failure.value.retry_after_seconds == granted


async def claims_too_much(request: web.Request) -> web.StreamResponse:
    """A length of a terabyte, and then nothing."""
    response = web.StreamResponse(headers={"Content-Length": str(10**12)})
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def sends_for_ever(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(JPEG * 10)


async def sends_a_bomb(_: web.Request) -> web.StreamResponse:
    """20 MB that travel as 20 kB."""
    return web.Response(body=gzip.compress(bytes(20_000_000)), headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("handler", [claims_too_much, sends_for_ever, sends_a_bomb])
async def test_too_much_is_refused(site: Site, new_fetcher: NewFetcher, handler: Handler) -> None:
    """More than ``max_bytes``, claimed or sent, packed or not, is an invalid image."""
    url = site.does("/a", handler)

    refusal = await refusal_of(new_fetcher(), url)

    assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert "0.1 MB" in str(refusal)


async def test_the_largest_picture_is_accepted(site: Site, new_fetcher: NewFetcher) -> None:
    """``max_bytes`` is itself allowed."""
    data = JPEG.ljust(SMALL.max_bytes, b"\0")
    url = site.serves("/a", data)

    assert (await new_fetcher().fetch(url)).data == data


async def drips(request: web.Request) -> web.StreamResponse:
    """A byte at a time, never done."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"\xff")
        await asyncio.sleep(0.01)


async def says_nothing(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Half of what it announced."""
    response = web.StreamResponse(headers={"Content-Length": str(len(JPEG))})
    await response.prepare(request)
    await response.write(JPEG[:-10])
    hang_up(request)
    return response


async def hangs_up(request: web.Request) -> web.StreamResponse:
    hang_up(request)
    return web.Response()


def hang_up(request: web.Request) -> None:
    assert request.transport is not None
    request.transport.close()


@pytest.mark.parametrize("handler", [drips, says_nothing, breaks_off, hangs_up])
async def test_a_broken_delivery_is_tried_again(
    site: Site, new_fetcher: NewFetcher, handler: Handler
) -> None:
    """Slow, silent and cut off deliveries end within the total timeout, as passing faults."""
    url = site.does("/a", handler)
    fetcher = new_fetcher(limits=FetchLimits(total_timeout_seconds=0.2))

    with pytest.raises(TryAgain) as failure:
        await fetcher.fetch(url)

    assert failure.value.reason == ErrorCode.IMAGE_UNREACHABLE


async def drips_its_headers(request: web.Request) -> web.StreamResponse:
    """One header after the other, never the last."""
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\n")
    while not request.transport.is_closing():
        request.transport.write(b"X-More: 1\r\n")
        await asyncio.sleep(0.01)
    return web.Response()


async def falls_silent(request: web.Request) -> web.StreamResponse:
    """The beginning of an answer, and nothing in it."""
    response = web.StreamResponse()
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def redirects_and_drips(request: web.Request) -> web.StreamResponse:
    """A redirect whose body never ends."""
    response = web.StreamResponse(status=302, headers={"Location": "/drips"})
    await response.prepare(request)
    await response.write(b"x")
    return response


@pytest.mark.parametrize(
    "handler", [drips, says_nothing, falls_silent, drips_its_headers, redirects_and_drips]
)
async def test_a_drip_is_cut_off_early(
    site: Site, new_fetcher: NewFetcher, handler: Handler
) -> None:
    """Below the least rate a download ends long before the total timeout, as a passing fault."""
    site.does("/drips", drips)
    url = site.does("/a", handler)
    fetcher = new_fetcher(
        limits=FetchLimits(
            total_timeout_seconds=600, connect_timeout_seconds=0.2, grace_seconds=0.2
        )
    )

    async with asyncio.timeout(20):
        with pytest.raises(TryAgain) as failure:
            await fetcher.fetch(url)

    assert failure.value.reason == ErrorCode.IMAGE_UNREACHABLE


async def test_the_rate_is_that_of_the_whole_download(site: Site, new_fetcher: NewFetcher) -> None:
    """A fast start buys time for a pause: a download may take longer than the grace."""

    async def pauses(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(JPEG.ljust(2_000, b"\0"))
        await asyncio.sleep(0.5)
        await response.write(b"\0")
        return response

    url = site.does("/a", pauses)
    patient = new_fetcher(limits=FetchLimits(grace_seconds=0.1, min_bytes_per_second=100))
    strict = new_fetcher(limits=FetchLimits(grace_seconds=0.1, min_bytes_per_second=100_000))

    assert len((await patient.fetch(url)).data) == 2_001
    with pytest.raises(TryAgain):
        await strict.fetch(url)


async def test_no_server_is_tried_again(new_fetcher: NewFetcher) -> None:
    """A refused connection is a passing fault."""
    with pytest.raises(TryAgain):
        await new_fetcher().fetch(f"http://127.0.0.1:{unused_port()}/a")


async def test_no_http_is_tried_again(new_fetcher: NewFetcher) -> None:
    """A server that speaks another protocol counts as broken."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async with server:
        with pytest.raises(TryAgain):
            await new_fetcher().fetch(f"http://127.0.0.1:{port}/a")


async def test_an_unknown_name_is_tried_again(new_fetcher: NewFetcher) -> None:
    """A name service that does not know the name may know it later."""
    with pytest.raises(TryAgain):
        await new_fetcher(Names({})).fetch("http://unknown.example/a")


async def test_a_silent_name_service_is_tried_again(new_fetcher: NewFetcher) -> None:
    """The total timeout also covers the look-up."""

    async def never(_: str) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TryAgain):
        await new_fetcher(never, limits=FetchLimits(total_timeout_seconds=0.05)).fetch(
            "http://slow.example/a"
        )


async def test_nothing_of_ours_is_sent(
    site: Site, new_fetcher: NewFetcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No proxy or password from the environment, no cookie from an earlier answer."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    url = site.serves("/a", headers={"Set-Cookie": "follow=me"})
    fetcher = new_fetcher()

    await fetcher.fetch(url)
    await fetcher.fetch(url)

    sent = site.requests[1].headers
    assert sent["User-Agent"] == "wearon"
    assert sent.keys() <= {"Host", "User-Agent", "Accept", "Accept-Encoding"}


async def test_a_fetcher_may_be_closed_unused() -> None:
    """There is nothing to close before the first picture."""
    await HttpPictureFetcher(SMALL, prepare=inspected).close()


@pytest.mark.parametrize(
    "url",
    [
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
    ],
    ids=ascii,
)
async def test_a_hostile_link_is_refused_at_sight(
    new_fetcher: NewFetcher, dialled: list[Any], url: str
) -> None:
    """Only http and https, to a name, on port 80 or 443: all else is not even looked up."""
    names = Names({"good.example": ["8.8.8.8"]})

    refusal = await refusal_of(new_fetcher(names, allow_loopback=False), url)

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert names.asked == []
    assert dialled == []


@pytest.mark.parametrize(
    "addresses",
    [
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
    ],
    ids=str,
)
async def test_a_name_with_a_forbidden_address_is_refused(
    new_fetcher: NewFetcher, dialled: list[Any], addresses: list[str]
) -> None:
    """One forbidden address among those of a name is enough, and nothing is connected to."""
    names = Names({"good.example": addresses})

    refusal = await refusal_of(new_fetcher(names, allow_loopback=False), "https://good.example/a")

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert not any(address in str(refusal) for address in addresses)
    assert dialled == []


@pytest.mark.parametrize(
    ("url", "port"),
    [
        ("http://good.example/a", 80),
        ("https://good.example/a", 443),
        ("HTTP://GOOD.example:443/a", 443),
        ("http://\uff47ood\u3002example/a", 80),
        ("http://good.example#@127.0.0.1/", 80),
        ("http://good.example?@127.0.0.1/", 80),
        ("http://good.example/@127.0.0.1/", 80),
        ("http://@good.example/", 80),
        (" http://good.example/", 80),
    ],
)
async def test_the_checked_addresses_are_the_ones_connected_to(
    new_fetcher: NewFetcher, dialled: list[Any], url: str, port: int
) -> None:
    """A name is looked up once, and a connection goes to no address but those found."""
    names = Names({"good.example": ["8.8.8.8", "1.1.1.1"]})

    with pytest.raises(TryAgain):
        await new_fetcher(names, allow_loopback=False).fetch(url)

    assert names.asked == ["good.example"]
    assert set(dialled) == {("1.1.1.1", port), ("8.8.8.8", port)}


async def test_a_name_that_changes_its_mind(new_fetcher: NewFetcher, dialled: list[Any]) -> None:
    """Rebinding: a name that is public when it is asked first and private ever after is asked
    once for each download, so it is connected to where it was public, or not at all."""
    answers = [["8.8.8.8"], ["127.0.0.1"], ["10.0.0.1"]]

    async def rebinding(_: str) -> Sequence[str]:
        return answers.pop(0) if answers else ["127.0.0.1"]

    fetcher = new_fetcher(rebinding, allow_loopback=False)

    with pytest.raises(TryAgain):
        await fetcher.fetch("http://rebinding.example/a")
    for _ in range(3):
        refusal = await refusal_of(fetcher, "http://rebinding.example/a")
        assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE

    assert dialled == [("8.8.8.8", 80)]


@pytest.fixture
def internet(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The site stands on the internet, at 8.8.8.8 port 80. The addresses that are dialled."""
    addresses: list[Any] = []
    connect = asyncio.SelectorEventLoop.sock_connect

    async def lead(loop: asyncio.SelectorEventLoop, sock: socket.socket, address: object) -> None:
        addresses.append(address)
        if address == ("8.8.8.8", 80):
            address = ("127.0.0.1", site.server.port)
        await connect(loop, sock, address)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", lead)
    return addresses


PUBLIC = Names({"good.example": ["8.8.8.8"], "rebound.example": ["127.0.0.1"]})


async def test_the_internet_of_these_tests_works(
    site: Site, internet: list[Any], new_fetcher: NewFetcher
) -> None:
    """A picture of the site arrives over its public address, also after a redirect."""
    site.serves("/b")
    redirects(site, "/a", "http://good.example/b")

    await new_fetcher(PUBLIC, allow_loopback=False).fetch("http://good.example/a")

    assert site.paths == ["/a", "/b"]
    assert set(internet) == {("8.8.8.8", 80)}


@pytest.mark.parametrize(
    "location",
    [
        "http://127.0.0.1:{port}/secret",
        "http://[::ffff:127.0.0.1]:{port}/secret",
        "http://localhost:{port}/secret",
        "http://rebound.example:{port}/secret",
        "http://rebound.example/secret",
        "//rebound.example/secret",
        "http://good.example:{port}/secret",
        "http://good.example@127.0.0.1:{port}/secret",
        "http://2130706433:{port}/secret",
        "http://169.254.169.254/latest/meta-data/",
        "http:\\\\127.0.0.1:{port}\\secret",
        "gopher://127.0.0.1:{port}/secret",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "javascript:alert(1)",
        "",
    ],
    ids=str,
)
async def test_a_public_server_leads_nowhere_private(
    site: Site, internet: list[Any], new_fetcher: NewFetcher, location: str
) -> None:
    """The site also listens on a private address, where it would notice; nobody comes."""
    site.serves("/secret")
    redirects(site, "/a", location.format(port=site.server.port))
    fetcher = new_fetcher(PUBLIC, allow_loopback=False)

    refusal = await refusal_of(fetcher, "http://good.example/a")

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert "/secret" not in site.paths
    assert set(internet) == {("8.8.8.8", 80)}


async def test_the_server_sees_the_name(site: Site, new_fetcher: NewFetcher) -> None:
    """Connecting to a checked address changes nothing in the request: its Host is the name."""
    site.serves("/a")
    names = Names({"pictures.example": ["127.0.0.1"]})

    await new_fetcher(names).fetch(site.url("/a", host="pictures.example"))

    assert site.requests[0].host == f"pictures.example:{site.server.port}"
    assert names.asked == ["pictures.example"]


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "10.0.0.1"])
async def test_development_takes_only_plain_loopback_addresses(
    site: Site, new_fetcher: NewFetcher, host: str
) -> None:
    """``allow_loopback`` admits 127.0.0.1 as such, not in disguise, and no private address."""
    await refusal_of(new_fetcher(), site.url("/a", host=host))

    assert site.requests == []


async def test_development_admits_no_other_private_address(
    site: Site, new_fetcher: NewFetcher
) -> None:
    """``allow_loopback`` does not help a name that also has a private address."""
    names = Names({"good.example": ["127.0.0.1", "10.0.0.1"]})

    await refusal_of(new_fetcher(names), site.url("/a", host="good.example"))

    assert site.requests == []


def redirects(site: Site, path: str, location: str, status: int = 302) -> str:
    return site.serves(path, b"", status=status, headers={"Location": location})


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(
    site: Site, new_fetcher: NewFetcher, status: int
) -> None:
    """Relative and absolute ones, up to the bound."""
    site.serves("/d")
    redirects(site, "/c", "d", status)
    redirects(site, "/b", site.url("/c"), status)

    await new_fetcher().fetch(redirects(site, "/a", "/b", status))

    assert site.paths == ["/a", "/b", "/c", "/d"]


async def test_a_fourth_redirect_is_refused(site: Site, new_fetcher: NewFetcher) -> None:
    """A loop ends at the bound."""
    refusal = await refusal_of(new_fetcher(), redirects(site, "/a", "/a"))

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert len(site.requests) == 4


@pytest.mark.parametrize(
    "location",
    [
        "http://10.0.0.1/",
        "//169.254.169.254/latest/meta-data/",
        "http://private.example/",
        "http://mixed.example/",
        "http://user@pictures.example/",
        "http://[::ffff:10.0.0.1]/",
        "http://2130706433/",
        "file:///etc/passwd",
        "data:image/png;base64,AAAA",
        "http://pictures.example:99999/",
        "http://good.example\\@10.0.0.1/",
    ],
)
async def test_a_redirect_is_checked_like_a_link(
    site: Site, new_fetcher: NewFetcher, location: str
) -> None:
    """A server cannot send us where a link could not."""
    names = Names({"private.example": ["10.0.0.1"], "mixed.example": ["127.0.0.1", "10.0.0.1"]})

    refusal = await refusal_of(new_fetcher(names), redirects(site, "/a", location))

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert "10.0.0.1" not in str(refusal)
    assert site.paths == ["/a"]


@pytest.fixture
async def https_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Site, list[str]]]:
    """pictures.example over HTTPS, trusted; and the names that clients greeted it with."""
    server, client = self_signed("pictures.example", tmp_path)
    greeted: list[str] = []

    def note(_: ssl.SSLObject, name: str, __: ssl.SSLContext) -> None:
        greeted.append(name)

    server.sni_callback = note
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", client)
    site = Site()
    await site.server.start_server(ssl=server)
    yield site, greeted
    await site.server.close()


async def test_https_names_the_host(
    https_site: tuple[Site, list[str]], new_fetcher: NewFetcher
) -> None:
    """The handshake carries the link's name, and the certificate is checked against it."""
    site, greeted = https_site
    site.serves("/a")
    names = Names({"pictures.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    fetcher = new_fetcher(names)

    await fetcher.fetch(site.url("/a", host="pictures.example"))
    with pytest.raises(TryAgain):
        await fetcher.fetch(site.url("/a", host="other.example"))

    assert greeted == ["pictures.example", "other.example"]
    assert site.paths == ["/a"]


async def test_https_is_not_left(
    https_site: tuple[Site, list[str]], site: Site, new_fetcher: NewFetcher
) -> None:
    """A redirect from https to http is refused."""
    secure, _ = https_site
    redirects(secure, "/a", site.serves("/b"))
    names = Names({"pictures.example": ["127.0.0.1"]})

    await refusal_of(new_fetcher(names), secure.url("/a", host="pictures.example"))

    assert site.requests == []
