"""What browsers are told: which pages may read a response (CORS), and what it may do."""

import re
from typing import Any
from urllib.parse import urlsplit

import pytest

from domain.callers import Caller, Principal
from domain.credits import Owner
from entrypoints.http.cors import BrowserHeaders
from tests.support.examples import MODEL_URL, STORE, USER
from tests.support.http import GENERATIONS, PAGE, UPLOADS, Answer, Api
from tests.support.images import encoded

pytestmark = pytest.mark.anyio

OTHER_PAGE = "https://other.example"
TRY_ON = {"model_image_url": MODEL_URL}
PATHS = [
    GENERATIONS,
    f"{GENERATIONS}/0b0e6a55-9a3c-4a55-8a52-0e5f2f1f7a10/cancel",
    "/api/v1/credits",
    "/uploads/2026-11-27/a.png",
    "/files/a.png",
    "/samples/model.png",
    "/health/ready",
    "/schema",
    "/nowhere",
]
ORIGINS = [
    PAGE,
    OTHER_PAGE,
    "http://localhost:3000",
    "http://[::1]:3000",
    "https://xn--bcher-kva.example",
    "capacitor://localhost",
    "chrome-extension://abcdefghijklmnop",
]
NOT_ORIGINS = {
    "empty": "",
    "wildcard": "*",
    "no scheme": "shop.example",
    "path": f"{PAGE}/",
    "upper case": "https://Shop.example",
    "two in one": f"{PAGE}, {OTHER_PAGE}",
    "two in one without a comma": f"{PAGE} {OTHER_PAGE}",
    "line end": f"{PAGE}\r\nset-cookie: a=b",
    "line feed at the end": f"{PAGE}\n",
    "NUL": f"{PAGE}\x00",
    "Latin-1": "https://sh\xf6p.example",
    "user": "https://user@shop.example",
    "long host": f"https://{'a' * 300}",
    "long port": f"{PAGE}:123456",
    "nulls": "null, null",
}


@pytest.fixture
def api() -> Api:
    return Api()


def page(origin: str) -> list[tuple[str, str]]:
    """The header that a browser adds."""
    return [("origin", origin)]


def preflight(origin: str, method: str) -> list[tuple[str, str]]:
    return [*page(origin), ("access-control-request-method", method)]


def words(header: str) -> set[str]:
    return set(header.split(", "))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("method", ["GET", "POST", "PUT", "PATCH", "DELETE"])
async def test_preflight_succeeds(api: Api, path: str, method: str) -> None:
    """Without a credential, on every path and for every method: what is wrong with the request
    itself is in its own response, which the page can read."""
    answer = await api.call(
        "OPTIONS",
        path,
        owner=None,
        content_type=None,
        headers=[
            *preflight(OTHER_PAGE, method),
            ("access-control-request-headers", "authorization,content-type,idempotency-key"),
        ],
    )

    assert (answer.status, answer.body) == (204, b"")
    assert answer.headers["access-control-allow-origin"] == OTHER_PAGE
    assert method in words(answer.headers["access-control-allow-methods"])
    assert words(answer.headers["access-control-allow-headers"]) >= {
        "authorization", "content-type", "idempotency-key", "prefer", "x-request-id",
        "last-event-id",
    }  # fmt: skip
    assert int(answer.headers["access-control-max-age"]) > 0
    assert words(answer.headers["vary"]) == {
        "Origin", "Access-Control-Request-Method", "Access-Control-Request-Headers",
    }  # fmt: skip


async def test_plain_options_is_no_preflight(api: Api) -> None:
    """It still lists the methods of the route."""
    answers = [
        await api.call("OPTIONS", GENERATIONS, owner=None, content_type=None, headers=headers)
        for headers in ([], page(PAGE), [("access-control-request-method", "POST")])
    ]

    for answer in answers:
        assert (answer.status, answer.headers["allow"]) == (204, "GET, HEAD, OPTIONS, POST")
        assert "access-control-allow-methods" not in answer.headers


async def responses(api: Api, headers: list[tuple[str, str]]) -> list[Answer]:
    """One of each kind, to a user's requests with these headers."""
    await api.service.accounts.grant(USER, 2, note="test")

    async def fails() -> None:
        raise RuntimeError("a bug")

    api.readiness["database"] = fails
    api.service.repo.faults.away.add("history")
    return [
        await api.submit(body=TRY_ON, headers=headers),
        await api.call("POST", UPLOADS, body={"content_type": "image/png"}, headers=headers),
        await api.get("/api/v1/credits", headers=headers),
        await api.call("HEAD", "/api/v1/credits", content_type=None, headers=headers),
        await api.get("/health/live", headers=headers),
        await api.get("/schema", headers=headers),
        await api.get("/samples/model.png", headers=headers),
        await api.submit(body=b"{", headers=headers),
        await api.submit(owner=None, body=TRY_ON, headers=headers),
        await api.submit(owner=STORE, body=TRY_ON, headers=headers),
        await api.get("/files/a.png", headers=headers),
        await api.get("/nowhere", headers=headers),
        await api.call("PUT", "/uploads/a.png", headers=headers),
        await api.call("DELETE", "/api/v1/credits", headers=headers),
        await api.submit(body=bytes(65_537), headers=headers),
        await api.submit(body=b"{}", content_type="text/plain", headers=headers),
        await api.get("/health/ready", headers=headers),
        await api.get(GENERATIONS, headers=headers),
    ]


STATUSES = [202, 201, *[200] * 5, 400, 401, 403, 404, 404, 404, 405, 413, 415, 500, 503]


async def test_page_may_read_every_response(api: Api) -> None:
    """Errors too, and on the fast path as elsewhere. It may read the headers that it needs."""
    answers = await responses(api, page(PAGE))

    assert [answer.status for answer in answers] == STATUSES
    for answer in answers:
        assert answer.headers["access-control-allow-origin"] == PAGE
        assert words(answer.headers["access-control-expose-headers"]) >= {
            "x-request-id", "location", "retry-after", "ratelimit", "ratelimit-policy",
            "x-ratelimit-limit", "x-ratelimit-remaining", "x-ratelimit-reset",
            "idempotency-replayed", "preference-applied",
        }  # fmt: skip


async def test_server_is_told_nothing_of_pages(api: Api) -> None:
    """Without an Origin, no response is for a page."""
    answers = await responses(api, [])

    assert [answer.status for answer in answers] == [402 if s == 403 else s for s in STATUSES]
    for answer in answers:
        assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("origin", [*ORIGINS, "null"])
async def test_any_origin_may_read_an_error(api: Api, origin: str) -> None:
    """Whatever page asks: its developer sees the code."""
    answer = await api.submit(owner=None, body=TRY_ON, headers=page(origin))

    assert answer.error == (401, "INVALID_TOKEN")
    assert answer.headers["access-control-allow-origin"] == origin


@pytest.mark.parametrize("value", NOT_ORIGINS.values(), ids=NOT_ORIGINS)
async def test_anything_but_an_origin_is_not_repeated(api: Api, value: str) -> None:
    """Nor does any credential match it, nor is it a preflight."""
    await api.service.accounts.grant(USER, 1, note="test")

    answer = await api.submit(body=TRY_ON, headers=page(value))
    options = await api.call("OPTIONS", GENERATIONS, owner=None, headers=preflight(value, "POST"))

    assert answer.error == (403, "DOMAIN_MISMATCH")
    assert "access-control-allow-origin" not in answer.headers
    assert "access-control-allow-methods" not in options.headers
    assert api.service.balance() == 1


async def test_two_origins_are_refused(api: Api) -> None:
    """Even if the credential may be used from both."""
    answer = await api.get("/api/v1/credits", headers=page(PAGE) * 2)

    assert answer.error == (403, "DOMAIN_MISMATCH")
    assert "access-control-allow-origin" not in answer.headers


@pytest.mark.parametrize("value", [b"null", *[text.encode("latin-1") for text in ["", f"{PAGE}/"]]])
async def test_no_credential_is_for_a_page_without_an_origin(api: Api, value: bytes) -> None:
    """A sandboxed frame may be anyone's, so it is refused even where all origins are allowed."""
    api.door._authenticate = AnyOrigin()

    answer = await api.get("/api/v1/credits", headers=[("origin", value.decode("latin-1"))])

    assert answer.error == (403, "DOMAIN_MISMATCH")


class AnyOrigin:
    """Takes every token for one that may be used from all pages."""

    async def __call__(self, token: str) -> Principal:  # noqa: ARG002
        return Caller(owner=USER, any_origin=True)

    def known(self, token: str) -> Principal | None:  # noqa: ARG002
        return None


def done(api: Api) -> tuple[Any, ...]:
    """What was asked of the database, the queue and the storage, and all entries of the ledger."""
    adapters = (api.service.repo, api.service.queue, api.storage)
    return *(tuple(adapter.faults.calls) for adapter in adapters), len(api.service.accounts.entries)


@pytest.mark.parametrize("owner", [USER, STORE], ids=str)
async def test_wrong_page_changes_nothing(api: Api, owner: Owner) -> None:
    """On no route of the API: the origin is checked before anything else is done."""
    session = (await api.service.submitted(owner)).session
    bodies = {GENERATIONS: TRY_ON, UPLOADS: {"content_type": "image/png"}}
    routes = [route for route in api.routes if route[1].startswith("/api/")]
    before = done(api)

    for method, template in routes:
        path = re.sub("{.*?}", str(session.id), template)
        for spelling in (path, f"{path}/"):
            answer = await api.call(
                method,
                spelling,
                owner=owner,
                body=bodies.get(path, {}),
                headers=page(OTHER_PAGE),
            )
            assert answer.error == (403, "DOMAIN_MISMATCH"), f"{method} {spelling}"
            assert answer.headers["access-control-allow-origin"] == OTHER_PAGE

    assert len(routes) >= 8
    assert done(api) == before


async def test_right_page_and_servers_are_served(api: Api) -> None:
    """The same calls, from where the credential may be used: each has its effect."""
    for owner, headers in ((USER, page(PAGE)), (USER, []), (STORE, [])):
        session = (await api.service.submitted(owner)).session
        await api.service.accounts.grant(owner, 1, note="test")
        before = done(api)

        submitted = await api.submit(owner=owner, body=TRY_ON, headers=headers)
        cancelled = await api.cancel(session.id, owner=owner, headers=headers, body={})

        assert (submitted.status, cancelled.status) == (202, 200)
        assert done(api) != before


@pytest.mark.parametrize("origin", [PAGE, OTHER_PAGE, "null"])
async def test_signed_links_work_from_every_page(api: Api, origin: str) -> None:
    """The link is the credential. A picture can be drawn on a canvas, and its name is safe; opened
    as a page, it can do nothing."""
    await api.service.accounts.grant(USER, 1, note="test")
    offer = (await api.call("POST", UPLOADS, body={"content_type": "image/png"})).data

    sent = await api.call(
        "PUT",
        target(offer["upload_url"]),
        owner=None,
        body=encoded("PNG"),
        content_type="image/png",
        headers=page(origin),
    )
    got = await api.get(target(offer["image_url"]), owner=None, headers=page(origin))

    assert (sent.status, got.status) == (200, 200)
    for answer in (sent, got):
        assert answer.headers["access-control-allow-origin"] == origin
    assert got.headers["content-security-policy"] == "default-src 'none'; sandbox"
    assert got.headers["cross-origin-resource-policy"] == "cross-origin"
    name = urlsplit(offer["image_url"]).path.rpartition("/")[2]
    assert got.headers["content-disposition"] == f'inline; filename="{name}"'
    assert got.headers["cache-control"].startswith("private, max-age=")


def target(url: str) -> str:
    """Path and query of a link."""
    parts = urlsplit(url)
    return f"{parts.path}?{parts.query}"


async def test_json_is_never_a_page(api: Api) -> None:
    """It may load nothing, and be in no frame."""
    answer = await api.get("/api/v1/credits")

    assert answer.headers["content-security-policy"] == "default-src 'none'; frame-ancestors 'none'"


def added(*headers: tuple[bytes, bytes], https_only: bool = False) -> dict[bytes, bytes]:
    """The headers of a response that had these."""
    result = list(headers)
    BrowserHeaders(https_only=https_only).add_to(result, origin=None)
    assert len(dict(result)) == len(result)
    return dict(result)


def test_own_headers_of_a_response_are_kept() -> None:
    """A response may vary by more, be cached, or have a policy of its own."""
    headers = added(
        (b"content-type", b"text/html"),
        (b"vary", b"Accept"),
        (b"cache-control", b"max-age=60"),
        (b"content-security-policy", b"default-src 'self'"),
    )

    assert headers[b"vary"] == b"Origin, Accept"
    assert headers[b"cache-control"] == b"max-age=60"
    assert headers[b"content-security-policy"] == b"default-src 'self'"
    assert headers[b"x-content-type-options"] == b"nosniff"


def test_https_is_required_where_it_is_used() -> None:
    """And nowhere else: a browser would never again reach a service that has no TLS."""
    for kind in (b"application/json", b"text/html", b"image/png"):
        header = (b"content-type", kind)
        name = b"strict-transport-security"

        assert added(header, https_only=True)[name] == b"max-age=31536000"
        assert name not in added(header)
