"""The fetcher of key sets against a real server on this machine, and what its faults mean for
users' tokens."""

import asyncio
import gzip
from collections.abc import AsyncIterator
from dataclasses import dataclass
from urllib.parse import urlsplit

import pytest
from structlog.testing import capture_logs

from adapters.auth.jwks_client import Fetched, FetchFailed, JwksClient, JwksLimits
from adapters.auth.user_keys import KeyRules, UserKeys
from adapters.auth.user_tokens import UserTokens
from tests.support.examples import USER
from tests.support.http import Answer, Api
from tests.support.sites import Site, answer, client_tls, running_site, server_tls
from tests.support.tokens import ALGORITHMS, NOW, RULES, claims, es256, hs256, key_set, token

pytestmark = pytest.mark.anyio

SOON = 0.5
"""Seconds after which a provider that takes too long is given up. It is more than a fast one needs
on a busy machine."""
SET = key_set(es256("es").named("es"))
TOKEN = token(claims(), {"alg": "ES256", "kid": "es"}, es256("es").sign)
UNAVAILABLE = "A dependency is temporarily unavailable; try again later"


@pytest.fixture
async def site() -> AsyncIterator[Site]:
    async with running_site() as site:
        yield site


def client(site: Site, *, total_seconds: float = 10.0) -> JwksClient:
    limits = JwksLimits(total_seconds=total_seconds, max_bytes=10_000, max_header_bytes=2_000)
    return JwksClient(site.url, limits=limits, allow_http=True)


CHUNKED = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n"
GOOD = {
    "one piece": (answer(b"{}"), Fetched(b"{}")),
    "chunked": (CHUNKED + b"1\r\n{\r\n1\r\n}\r\n0\r\n\r\n", Fetched(b"{}")),
    "until the end": (b"HTTP/1.1 200 OK\r\n\r\n{}", Fetched(b"{}")),
    "HTTP/1.0": (b"HTTP/1.0 200 OK\r\nContent-Length: 2\r\n\r\n{}", Fetched(b"{}")),
    "max-age": (answer(b"{}", "Cache-Control: public, max-age=60"), Fetched(b"{}", 60)),
    "max-age alone": (answer(b"{}", "cache-control: MAX-AGE=0"), Fetched(b"{}", 0)),
    "s-maxage": (answer(b"{}", "Cache-Control: s-maxage=60"), Fetched(b"{}")),
    "max-age of nonsense": (answer(b"{}", "Cache-Control: max-age=-1"), Fetched(b"{}")),
    "any content type": (answer(b"{}", "Content-Type: text/html"), Fetched(b"{}")),
    "as large as allowed": (answer(b" " * 10_000), Fetched(b" " * 10_000)),
}


@pytest.mark.parametrize(("sent", "fetched"), GOOD.values(), ids=GOOD)
async def test_answers_that_are_read(site: Site, sent: bytes, fetched: Fetched) -> None:
    """Whatever frames the body, also if it comes byte by byte."""
    site.serve(sent)
    at_once = await client(site)()
    site.serve(*(sent[place : place + 1] for place in range(min(len(sent), 200))), sent[200:])

    assert at_once == await client(site)() == fetched


async def test_request_is_plain(site: Site) -> None:
    """One GET of the URL's path and query, with no credential and no compression."""
    site.serve(answer(b"{}"))
    site.url += "?p=1"

    await client(site)()

    (request,) = site.requests
    lines = request.decode().splitlines()
    assert lines[:2] == ["GET /keys?p=1 HTTP/1.1", f"Host: {urlsplit(site.url).netloc}"]
    assert "Accept-Encoding: identity" in lines
    assert "authorization" not in request.decode().lower()


@dataclass(frozen=True, slots=True)
class Fault:
    """What a site sends, and the reason that is logged."""

    reason: str
    chunks: tuple[bytes, ...] = ()
    pause_seconds: float = 0.0
    hangs: bool = False

    @property
    def total_seconds(self) -> float:
        return SOON if self.hangs or self.pause_seconds else 10.0


FAULTS = {
    "silent": Fault(f"no answer within {SOON} s", hangs=True),
    "drip": Fault(
        f"no answer within {SOON} s", (answer(SET)[:20], *[b"x"] * 99), pause_seconds=0.05
    ),
    "stalled": Fault(f"no answer within {SOON} s", (answer(SET)[:-1],), hangs=True),
    "closed at once": Fault("the answer was cut off"),
    "cut off": Fault("the answer was cut off", (answer(SET)[:-1],)),
    "cut off in a chunk": Fault("the answer was cut off", (CHUNKED + b"5\r\n{",)),
    "cut off in its headers": Fault("the answer was cut off", (b"HTTP/1.1 200 OK\r\nA: b",)),
    "huge": Fault("the answer is larger than 10000 bytes", (answer(b" " * 10_001),)),
    "endless": Fault(
        "the answer is larger than 10000 bytes",
        (CHUNKED, *[b"400\r\n" + b" " * 1_024 + b"\r\n"] * 99),
    ),
    "huge headers": Fault(
        "the answer and its headers are too large", (b"HTTP/1.1 200 OK\r\n", *[b"A: b\r\n"] * 9_999)
    ),
    "compressed": Fault(
        "the answer is compressed", (answer(gzip.compress(SET), "Content-Encoding: gzip"),)
    ),
    "redirect": Fault(
        "status 302", (answer(b"", "Location: http://127.0.0.1:1/", status="302 Found"),)
    ),
    "not found": Fault("status 404", (answer(SET, status="404 Not Found"),)),
    "created": Fault("status 201", (answer(SET, status="201 Created"),)),
    "not modified": Fault("status 304", (answer(b"", status="304 Not Modified"),)),
    "broken": Fault("status 500", (answer(SET, status="500 Internal Server Error"),)),
    "not HTTP": Fault("the answer is not HTTP", (b"SSH-2.0-OpenSSH\r\n\r\n",)),
    "wrong length": Fault(
        "the answer is not HTTP", (b"HTTP/1.1 200 OK\r\nContent-Length: x\r\n\r\n",)
    ),
    "no JSON": Fault(
        "not a key set: JSON is malformed: invalid character (byte 0)", (answer(b"<html>"),)
    ),
    "empty": Fault("not a key set: Input data was truncated", (answer(b""),)),
    "a list": Fault("not a key set: Expected `object`, got `array`", (answer(b"[]"),)),
    "no keys": Fault("not a key set: Object missing required field `keys`", (answer(b"{}"),)),
    "keys no list": Fault(
        "not a key set: Expected `array`, got `object` - at `$.keys`", (answer(b'{"keys": {}}'),)
    ),
}


@pytest.mark.parametrize("fault", FAULTS.values(), ids=FAULTS)
async def test_faults_of_the_provider(site: Site, fault: Fault) -> None:
    """Never fetched: 503, because the token may be valid; tokens by the secret are accepted.
    Fetched before: its keys stay in use. The log has the reason once, and nothing of the server's.
    """
    api = Api(users=users(site, total_seconds=fault.total_seconds))
    site.serve(*fault.chunks, pause_seconds=fault.pause_seconds, hangs=fault.hangs)
    with capture_logs() as logs:
        never, by_secret = await answered(api, TOKEN), await answered(api, hs256())
    site.serve(answer(SET))
    keys = user_keys(site, total_seconds=fault.total_seconds)
    before = Api(users=UserTokens(RULES, keys=keys, clock=lambda: NOW))
    loaded = await answered(before, TOKEN)
    site.serve(*fault.chunks, pause_seconds=fault.pause_seconds, hangs=fault.hangs)
    await keys._started_fetch()
    kept = await answered(before, TOKEN)

    assert (*never.error, never.message) == (503, "SERVICE_UNAVAILABLE", UNAVAILABLE)
    assert [it.status for it in (by_secret, loaded, kept)] == [200, 200, 200]
    assert [log["cause"] for log in logs if log["event"] == "user_keys_not_fetched"] == [
        f"user keys {fault.reason}"
    ]


def user_keys(site: Site, *, total_seconds: float = 10.0) -> UserKeys:
    return UserKeys(client(site, total_seconds=total_seconds), KeyRules(algorithms=ALGORITHMS))


def users(site: Site, *, total_seconds: float = 10.0) -> UserTokens:
    keys = user_keys(site, total_seconds=total_seconds)
    return UserTokens(RULES, keys=keys, clock=lambda: NOW)


async def answered(api: Api, sent: str) -> Answer:
    headers = [("authorization", f"Bearer {sent}")]
    return await api.get("/api/v1/credits", owner=None, headers=headers)


async def test_empty_set_is_an_answer(site: Site) -> None:
    """It has no key, so the token's key is not known: that is certain, and no 503."""
    site.serve(answer(key_set()))

    rejected = await answered(Api(users=users(site)), TOKEN)

    assert (*rejected.error, rejected.message) == (
        401,
        "INVALID_TOKEN",
        "The token's key is not known",
    )


async def test_unreachable_server() -> None:
    """A refused connection is reported without an address."""
    async with running_site() as site:
        pass

    with pytest.raises(FetchFailed, match=r"^connection failed: Connection refused$"):
        await client(site)()


async def test_impossible_host() -> None:
    """A label of a name has at most 63 characters."""
    with pytest.raises(FetchFailed, match=r"^the host's name is not valid$"):
        await JwksClient(f"https://{'a' * 64}.example/keys")()


async def test_server_without_tls() -> None:
    """The reason is the library's, and no text of the server's."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"SSH-2.0-OpenSSH\r\n")
        writer.close()

    async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
        port = server.sockets[0].getsockname()[1]
        with pytest.raises(FetchFailed, match=r"^connection failed: TLS [A-Z_]+$"):
            await JwksClient(f"https://127.0.0.1:{port}/keys", tls=client_tls())()


async def test_https_is_verified() -> None:
    """With the certificates that are trusted, over a real TLS connection."""
    async with running_site(server_tls()) as site:
        site.serve(answer(SET))
        trusting = JwksClient(site.url, tls=client_tls())
        suspicious = JwksClient(site.url)
        other_name = JwksClient(site.url.replace("127.0.0.1", "localhost"), tls=client_tls())

        fetched = await trusting()

        assert fetched.body == SET
        for refusing in (suspicious, other_name):
            with pytest.raises(FetchFailed, match=r"^certificate not valid: "):
                await refusing()


async def test_http_needs_permission(site: Site) -> None:
    """Without it nothing is sent, so that nobody on the way can choose the keys."""
    with pytest.raises(FetchFailed, match=r"^the URL is not https$"):
        await JwksClient(site.url)()

    assert site.requests == []


async def test_token_signed_by_a_served_key_is_accepted(site: Site) -> None:
    """From the fetch to the answer, over a real connection."""
    site.serve(answer(SET))

    accepted = await answered(Api(users=users(site)), TOKEN)

    assert accepted.data["owner_id"] == USER.id
    assert len(site.requests) == 1


async def test_slow_fetch_does_not_hold_a_caller(
    site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A caller waits for a bounded time, and then gets a 503; the fetch goes on."""
    monkeypatch.setattr("adapters.auth.user_keys.WAIT_SECONDS", 0.01)
    site.serve(hangs=True)
    keys = UserKeys(
        JwksClient(site.url, limits=JwksLimits(total_seconds=60), allow_http=True),
        KeyRules(algorithms=ALGORITHMS),
    )
    api = Api(users=UserTokens(RULES, keys=keys, clock=lambda: NOW))

    async with asyncio.timeout(5):
        refused = await answered(api, TOKEN)
        await keys.close()

    assert refused.error == (503, "SERVICE_UNAVAILABLE")
