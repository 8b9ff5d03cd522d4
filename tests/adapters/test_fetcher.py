"""The picture fetcher against a real server on this machine: content, size, speed and errors."""

import asyncio
import gzip
import resource
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

import pytest
from aiohttp import web
from aiohttp.test_utils import unused_port
from yarl import URL

from adapters.images.fetcher import HttpPictureFetcher
from adapters.images.limits import FetchLimits
from domain.errors import InputUnavailable, TryAgain, WorkerExhausted
from domain.picture_ports import Picture
from domain.sessions import ErrorCode
from tests.adapters.fetching import (
    JPEG,
    SMALL,
    Handler,
    Names,
    NewFetcher,
    Site,
    fetchers,
    refusal_of,
    running_site,
)
from tests.adapters.generators import inspected
from tests.support.images import encoded

pytestmark = pytest.mark.anyio


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site() as site:
        yield site


@pytest.fixture
async def new_fetcher() -> AsyncIterator[NewFetcher]:
    async with fetchers() as new_fetcher:
        yield new_fetcher


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "WEBP"])
async def test_picture_is_downloaded_and_prepared(
    site: Site, new_fetcher: NewFetcher, image_format: str
) -> None:
    """The bytes reach the preparation unchanged, and its result is returned. The server's content
    type is ignored."""
    data = encoded(image_format)
    url = site.add("/a", data, content_type="text/html")

    picture = await new_fetcher().fetch(url)

    assert picture == Picture(data=data, media_type=f"image/{image_format.lower()}")


async def test_file_that_is_no_picture_is_refused(site: Site, new_fetcher: NewFetcher) -> None:
    """With the preparation's error, whatever content type the server claims."""
    url = site.add("/a.jpg", b"<html>", content_type="image/jpeg")

    refusal = await refusal_of(new_fetcher(), url)

    assert refusal.reason == ErrorCode.INVALID_IMAGE


@pytest.mark.parametrize("status", [201, 204, 206, 300, 304, 400, 401, 403, 404, 410, 418, 451])
async def test_permanent_status_is_refused(
    site: Site, new_fetcher: NewFetcher, status: int
) -> None:
    """Another attempt would not help. The message does not quote the server."""
    url = site.add("/a", JPEG, status=status, reason="Internal secret")

    refusal = await refusal_of(new_fetcher(), url)

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert "secret" not in str(refusal)


@pytest.mark.parametrize("status", [408, 425, 429, 500, 502, 503, 504, 520])
async def test_transient_status_is_retried(
    site: Site, new_fetcher: NewFetcher, status: int
) -> None:
    """The server is busy or broken: a later attempt may succeed."""
    url = site.add("/a", JPEG, status=status)

    with pytest.raises(InputUnavailable) as failure:
        await new_fetcher().fetch(f"{url}?token=secret")

    assert failure.value.reason == ErrorCode.IMAGE_UNREACHABLE
    assert failure.value.retry_after_seconds == 0
    assert str(failure.value.cause) == f"input {status} host={URL(url).host}"


async def test_missing_descriptors_are_not_the_hosts_fault(
    site: Site, new_fetcher: NewFetcher
) -> None:
    """So they cost the session nothing."""
    url = site.add("/a", JPEG)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    fetcher = new_fetcher()

    resource.setrlimit(resource.RLIMIT_NOFILE, (0, hard))
    try:
        with pytest.raises(WorkerExhausted) as failure:
            await fetcher.fetch(url)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))

    assert str(failure.value.cause) == "worker too many open files"


@pytest.mark.parametrize("status", [429, 503])
@pytest.mark.parametrize(
    ("header", "seconds"),
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
async def test_retry_after_is_respected(
    site: Site, new_fetcher: NewFetcher, status: int, header: str, seconds: float
) -> None:
    """In seconds, up to a minute; other values are ignored."""
    url = site.add("/a", status=status, headers={"Retry-After": header})

    with pytest.raises(TryAgain) as failure:
        await new_fetcher().fetch(url)

    assert failure.value.retry_after_seconds == seconds


async def announces_a_terabyte(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse(headers={"Content-Length": str(10**12)})
    await response.prepare(request)
    await asyncio.Event().wait()
    return response


async def sends_for_ever(request: web.Request) -> web.StreamResponse:
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(JPEG * 10)


async def sends_a_gzip_bomb(_: web.Request) -> web.StreamResponse:
    """20 MB, compressed to 20 kB."""
    return web.Response(body=gzip.compress(bytes(20_000_000)), headers={"Content-Encoding": "gzip"})


@pytest.mark.parametrize("handler", [announces_a_terabyte, sends_for_ever, sends_a_gzip_bomb])
async def test_too_large_file_is_refused(
    site: Site, new_fetcher: NewFetcher, handler: Handler
) -> None:
    """More than ``max_bytes``, announced or sent, compressed or not."""
    url = site.add_handler("/a", handler)

    refusal = await refusal_of(new_fetcher(), url)

    assert refusal.reason == ErrorCode.INVALID_IMAGE
    assert "0.1 MB" in str(refusal)


async def test_file_of_the_maximum_size_is_accepted(site: Site, new_fetcher: NewFetcher) -> None:
    data = JPEG.ljust(SMALL.max_bytes, b"\0")
    url = site.add("/a", data)

    assert (await new_fetcher().fetch(url)).data == data


async def drips(request: web.Request) -> web.StreamResponse:
    """One byte at a time, for ever."""
    response = web.StreamResponse()
    await response.prepare(request)
    while True:
        await response.write(b"\xff")
        await asyncio.sleep(0.01)


async def never_responds(_: web.Request) -> web.StreamResponse:
    await asyncio.Event().wait()
    raise AssertionError


async def breaks_off(request: web.Request) -> web.StreamResponse:
    """Ten bytes less than announced."""
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


@pytest.mark.parametrize("handler", [drips, never_responds, breaks_off, hangs_up])
async def test_broken_download_is_retried(
    site: Site, new_fetcher: NewFetcher, handler: Handler
) -> None:
    """Slow, silent and interrupted downloads end within the total timeout as transient errors."""
    url = site.add_handler("/a", handler)
    fetcher = new_fetcher(limits=FetchLimits(total_timeout_seconds=0.2))

    with pytest.raises(TryAgain) as failure:
        await fetcher.fetch(url)

    assert failure.value.reason == ErrorCode.IMAGE_UNREACHABLE


async def drips_headers(request: web.Request) -> web.StreamResponse:
    """Header after header, for ever."""
    assert request.transport is not None
    request.transport.write(b"HTTP/1.1 200 OK\r\n")
    while not request.transport.is_closing():
        request.transport.write(b"X-More: 1\r\n")
        await asyncio.sleep(0.01)
    return web.Response()


async def sends_no_body(request: web.Request) -> web.StreamResponse:
    """Status and headers, and then nothing."""
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
    "handler", [drips, never_responds, sends_no_body, drips_headers, redirects_and_drips]
)
async def test_slow_drip_is_cut_off_early(
    site: Site, new_fetcher: NewFetcher, handler: Handler
) -> None:
    """A download below the minimum rate ends long before the total timeout, as a transient
    error."""
    site.add_handler("/drips", drips)
    url = site.add_handler("/a", handler)
    fetcher = new_fetcher(
        limits=FetchLimits(
            total_timeout_seconds=600, connect_timeout_seconds=0.2, grace_seconds=0.2
        )
    )

    async with asyncio.timeout(20):
        with pytest.raises(TryAgain) as failure:
            await fetcher.fetch(url)

    assert failure.value.reason == ErrorCode.IMAGE_UNREACHABLE


async def test_minimum_rate_is_an_average(site: Site, new_fetcher: NewFetcher) -> None:
    """After a fast start a download may pause for longer than ``grace_seconds``."""

    async def pauses(request: web.Request) -> web.StreamResponse:
        response = web.StreamResponse()
        await response.prepare(request)
        await response.write(JPEG.ljust(2_000, b"\0"))
        await asyncio.sleep(0.5)
        await response.write(b"\0")
        return response

    url = site.add_handler("/a", pauses)
    patient = new_fetcher(limits=FetchLimits(grace_seconds=0.1, min_bytes_per_second=100))
    strict = new_fetcher(limits=FetchLimits(grace_seconds=0.1, min_bytes_per_second=100_000))

    assert len((await patient.fetch(url)).data) == 2_001
    with pytest.raises(TryAgain):
        await strict.fetch(url)


async def test_refused_connection_is_retried(new_fetcher: NewFetcher) -> None:
    with pytest.raises(TryAgain):
        await new_fetcher().fetch(f"http://127.0.0.1:{unused_port()}/a")


async def test_other_protocol_is_retried(new_fetcher: NewFetcher) -> None:
    """A server that does not speak HTTP counts as broken."""

    async def talk(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        writer.close()

    server = await asyncio.start_server(talk, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]

    async with server:
        with pytest.raises(TryAgain):
            await new_fetcher().fetch(f"http://127.0.0.1:{port}/a")


async def test_unknown_name_is_retried(new_fetcher: NewFetcher) -> None:
    """The name service may know the name later."""
    with pytest.raises(TryAgain):
        await new_fetcher(Names({})).fetch("http://unknown.example/a")


async def test_silent_name_service_is_retried(new_fetcher: NewFetcher) -> None:
    """The total timeout includes the name lookup."""

    async def never(_: str) -> Sequence[str]:
        await asyncio.Event().wait()
        raise AssertionError

    with pytest.raises(TryAgain):
        await new_fetcher(never, limits=FetchLimits(total_timeout_seconds=0.05)).fetch(
            "http://slow.example/a"
        )


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
async def test_three_redirects_are_followed(
    site: Site, new_fetcher: NewFetcher, status: int
) -> None:
    """Relative and absolute ones, up to ``max_redirects``."""
    site.add("/d")
    site.add_redirect("/c", "d", status)
    site.add_redirect("/b", site.url("/c"), status)

    await new_fetcher().fetch(site.add_redirect("/a", "/b", status))

    assert site.paths == ["/a", "/b", "/c", "/d"]


async def test_fourth_redirect_is_refused(site: Site, new_fetcher: NewFetcher) -> None:
    """So a redirect loop ends."""
    refusal = await refusal_of(new_fetcher(), site.add_redirect("/a", "/a"))

    assert refusal.reason == ErrorCode.IMAGE_UNREACHABLE
    assert len(site.requests) == 4


async def test_requests_carry_nothing_from_the_environment(
    site: Site, new_fetcher: NewFetcher, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """No proxy or password from the environment, and no cookie from an earlier response."""
    netrc = tmp_path / "netrc"
    netrc.write_text("machine 127.0.0.1 login someone password secret\n")
    monkeypatch.setenv("NETRC", str(netrc))
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{unused_port()}")
    url = site.add("/a", headers={"Set-Cookie": "follow=me"})
    fetcher = new_fetcher()

    await fetcher.fetch(url)
    await fetcher.fetch(url)

    sent = site.requests[1].headers
    assert sent["User-Agent"] == "wearon"
    assert sent.keys() <= {"Host", "User-Agent", "Accept", "Accept-Encoding"}


async def test_unused_fetcher_can_be_closed() -> None:
    await HttpPictureFetcher(SMALL, prepare=inspected).close()
