"""The picture fetcher's protection of our network (SSRF): no link, name or redirect leads it to an
address that is not public."""

import asyncio
import socket
import ssl
from collections.abc import AsyncIterator, Sequence
from pathlib import Path
from typing import Any

import aiohttp.connector
import pytest

from domain.errors import TryAgain
from domain.sessions import ErrorCode
from tests.adapters.fetching import (
    HOSTILE_LINKS,
    PRIVATE_ANSWERS,
    Names,
    NewFetcher,
    Site,
    fetchers,
    refusal_of,
    running_site,
)
from tests.support.tls import self_signed

pytestmark = pytest.mark.anyio


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site() as site:
        yield site


@pytest.fixture
async def new_fetcher() -> AsyncIterator[NewFetcher]:
    async with fetchers() as new_fetcher:
        yield new_fetcher


@pytest.fixture
def connections(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The addresses of all attempted connections, which are all refused."""
    addresses: list[Any] = []

    async def refuse(_: object, __: socket.socket, address: object) -> None:
        addresses.append(address)
        raise ConnectionRefusedError

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", refuse)
    return addresses


@pytest.mark.parametrize(
    "url",
    HOSTILE_LINKS,
    ids=ascii,
)
async def test_hostile_link_is_refused_before_any_lookup(
    new_fetcher: NewFetcher, connections: list[Any], url: str
) -> None:
    """Only http and https URLs with a host name and port 80 or 443 are looked up."""
    names = Names({"good.example": ["8.8.8.8"]})

    refusal = await refusal_of(new_fetcher(names, allow_loopback=False), url)

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert names.lookups == []
    assert connections == []


@pytest.mark.parametrize(
    "addresses",
    PRIVATE_ANSWERS,
    ids=str,
)
async def test_name_with_a_private_address_is_refused(
    new_fetcher: NewFetcher, connections: list[Any], addresses: list[str]
) -> None:
    """One address that is not public is enough, and no connection is attempted."""
    names = Names({"good.example": addresses})

    refusal = await refusal_of(new_fetcher(names, allow_loopback=False), "https://good.example/a")

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert not any(address in str(refusal) for address in addresses)
    assert connections == []


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
async def test_connections_use_the_checked_addresses(
    new_fetcher: NewFetcher, connections: list[Any], url: str, port: int
) -> None:
    """A name is looked up once, and connections go only to the addresses of that lookup."""
    names = Names({"good.example": ["8.8.8.8", "1.1.1.1"]})

    with pytest.raises(TryAgain):
        await new_fetcher(names, allow_loopback=False).fetch(url)

    assert names.lookups == ["good.example"]
    assert set(connections) == {("1.1.1.1", port), ("8.8.8.8", port)}


async def test_dns_rebinding_reaches_no_private_address(
    new_fetcher: NewFetcher, connections: list[Any]
) -> None:
    """A name that is public at its first lookup and private from then on: each download looks it up
    once, so it connects to the public address or is refused."""
    answers = [["8.8.8.8"], ["127.0.0.1"], ["10.0.0.1"]]

    async def rebinding(_: str) -> Sequence[str]:
        return answers.pop(0) if answers else ["127.0.0.1"]

    fetcher = new_fetcher(rebinding, allow_loopback=False)

    with pytest.raises(TryAgain):
        await fetcher.fetch("http://rebinding.example/a")
    for _ in range(3):
        refusal = await refusal_of(fetcher, "http://rebinding.example/a")
        assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE

    assert connections == [("8.8.8.8", 80)]


@pytest.fixture
def internet(site: Site, monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """The site appears to be at 8.8.8.8 port 80. Returns the addresses of all connections."""
    addresses: list[Any] = []
    connect = asyncio.SelectorEventLoop.sock_connect

    async def reroute(
        loop: asyncio.SelectorEventLoop, sock: socket.socket, address: object
    ) -> None:
        addresses.append(address)
        if address == ("8.8.8.8", 80):
            address = ("127.0.0.1", site.server.port)
        await connect(loop, sock, address)  # type: ignore[arg-type]

    monkeypatch.setattr(asyncio.SelectorEventLoop, "sock_connect", reroute)
    return addresses


PUBLIC = Names({"good.example": ["8.8.8.8"], "rebound.example": ["127.0.0.1"]})


async def test_public_server_may_redirect_to_itself(
    site: Site, internet: list[Any], new_fetcher: NewFetcher
) -> None:
    """Also shows that the ``internet`` fixture works, on which the next test relies."""
    site.add("/b")
    site.add_redirect("/a", "http://good.example/b")

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
async def test_public_server_cannot_redirect_to_a_private_address(
    site: Site, internet: list[Any], new_fetcher: NewFetcher, location: str
) -> None:
    """The site also listens on a private address, where it would record a request."""
    site.add("/secret")
    site.add_redirect("/a", location.format(port=site.server.port))
    fetcher = new_fetcher(PUBLIC, allow_loopback=False)

    refusal = await refusal_of(fetcher, "http://good.example/a")

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert "/secret" not in site.paths
    assert set(internet) == {("8.8.8.8", 80)}


async def test_host_header_is_the_name(site: Site, new_fetcher: NewFetcher) -> None:
    """Connecting to a checked address does not change the request."""
    site.add("/a")
    names = Names({"pictures.example": ["127.0.0.1"]})

    await new_fetcher(names).fetch(site.url("/a", host="pictures.example"))

    assert site.requests[0].host == f"pictures.example:{site.server.port}"
    assert names.lookups == ["pictures.example"]


@pytest.mark.parametrize("host", ["127.1", "2130706433", "0x7f000001", "0177.0.0.1", "10.0.0.1"])
async def test_allow_loopback_accepts_no_disguised_address(
    site: Site, new_fetcher: NewFetcher, host: str
) -> None:
    """It accepts 127.0.0.1 in its usual spelling only, and no private address."""
    await refusal_of(new_fetcher(), site.url("/a", host=host))

    assert site.requests == []


async def test_allow_loopback_accepts_no_name_with_a_private_address(
    site: Site, new_fetcher: NewFetcher
) -> None:
    """Also if the name has a loopback address too."""
    names = Names({"good.example": ["127.0.0.1", "10.0.0.1"]})

    await refusal_of(new_fetcher(names), site.url("/a", host="good.example"))

    assert site.requests == []


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
async def test_redirect_is_checked_like_a_link(
    site: Site, new_fetcher: NewFetcher, location: str
) -> None:
    """A server cannot redirect to an address that a link could not name."""
    names = Names({"private.example": ["10.0.0.1"], "mixed.example": ["127.0.0.1", "10.0.0.1"]})

    refusal = await refusal_of(new_fetcher(names), site.add_redirect("/a", location))

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert "10.0.0.1" not in str(refusal)
    assert site.paths == ["/a"]


@pytest.fixture
async def https_site(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> AsyncIterator[tuple[Site, list[str]]]:
    """A trusted https://pictures.example, and the names in the handshakes of its clients (SNI)."""
    server, client = self_signed("pictures.example", tmp_path)
    handshakes: list[str] = []

    def on_handshake(_: ssl.SSLObject, name: str, __: ssl.SSLContext) -> None:
        handshakes.append(name)

    server.sni_callback = on_handshake
    monkeypatch.setattr(aiohttp.connector, "_SSL_CONTEXT_VERIFIED", client)
    site = Site()
    await site.server.start_server(ssl=server)
    yield site, handshakes
    await site.server.close()


async def test_https_verifies_the_name(
    https_site: tuple[Site, list[str]], new_fetcher: NewFetcher
) -> None:
    """The handshake carries the link's name, and the certificate is checked against it."""
    site, handshakes = https_site
    site.add("/a")
    names = Names({"pictures.example": ["127.0.0.1"], "other.example": ["127.0.0.1"]})
    fetcher = new_fetcher(names)

    await fetcher.fetch(site.url("/a", host="pictures.example"))
    with pytest.raises(TryAgain):
        await fetcher.fetch(site.url("/a", host="other.example"))

    assert handshakes == ["pictures.example", "other.example"]
    assert site.paths == ["/a"]


async def test_redirect_from_https_to_http_is_refused(
    https_site: tuple[Site, list[str]], site: Site, new_fetcher: NewFetcher
) -> None:
    secure, _ = https_site
    secure.add_redirect("/a", site.add("/b"))
    names = Names({"pictures.example": ["127.0.0.1"]})

    await refusal_of(new_fetcher(names), secure.url("/a", host="pictures.example"))

    assert site.requests == []
