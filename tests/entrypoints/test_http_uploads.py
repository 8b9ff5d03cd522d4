"""Uploads: requested, sent, and used in a generation."""

import asyncio
from collections.abc import AsyncIterator, Callable
from typing import Any
from urllib.parse import urlsplit

import pytest

from domain.credits import Owner
from domain.errors import BodyTooSlow
from domain.uploads import ReceivingLimits, upload_folder
from entrypoints.http.errors import answer_to
from tests.support.examples import STORE, USER
from tests.support.http import MAX_UPLOAD_BYTES, MAX_UPLOADS, PUBLIC_URL, UPLOADS, Answer, Api
from tests.support.images import encoded

pytestmark = pytest.mark.anyio

JPEG = encoded("JPEG")
PNG = encoded("PNG")


@pytest.fixture
def api() -> Api:
    return Api()


async def offered(
    api: Api, content_type: str = "image/jpeg", *, owner: Owner = USER, **options: Any
) -> Any:
    """The data of a 201, for an owner with credits."""
    await api.service.accounts.grant(owner, 1, note="test")
    options["owner"] = owner
    answer = await api.call("POST", UPLOADS, body={"content_type": content_type}, **options)
    assert answer.status == 201
    return answer.data


def target(url: str) -> str:
    """Path and query of one of our links."""
    parts = urlsplit(url)
    assert f"{parts.scheme}://{parts.netloc}" == PUBLIC_URL
    return f"{parts.path}?{parts.query}"


async def put(
    api: Api, url: str, body: object = JPEG, content_type: str | None = "image/jpeg", **options: Any
) -> Answer:
    """Send a picture to its ``upload_url``, without a token."""
    return await api.call(
        "PUT", target(url), owner=None, body=body, content_type=content_type, **options
    )


async def got(api: Api, url: str) -> Answer:
    return await api.get(target(url), owner=None)


@pytest.mark.parametrize("owner", [STORE, USER], ids=str)
async def test_offer(api: Api, owner: Any) -> None:
    """Has everything that a client needs to send the picture, whichever storage receives it."""
    data = await offered(api, owner=owner)

    now = api.service.clock.now()
    folder = upload_folder(owner, now.date())
    assert data.keys() == {
        "upload_url", "method", "headers", "image_url", "expires_at", "max_bytes"
    }  # fmt: skip
    assert data["upload_url"].startswith(f"{PUBLIC_URL}/{folder}/")
    assert data["image_url"].startswith(f"{PUBLIC_URL}/files/{folder}/")
    assert (data["method"], data["headers"]) == ("PUT", {"Content-Type": "image/jpeg"})
    assert data["expires_at"] > now.isoformat()
    assert data["max_bytes"] == MAX_UPLOAD_BYTES


@pytest.mark.parametrize(
    ("content_type", "data"),
    [("image/jpeg", JPEG), ("image/png", PNG), ("image/webp", encoded("WEBP"))],
)
async def test_upload_from_offer_to_generation(api: Api, content_type: str, data: bytes) -> None:
    """The picture is sent, served by its link, and accepted in a generation request."""
    offer = await offered(api, content_type)

    sent = await put(api, offer["upload_url"], data, content_type)
    found = await got(api, offer["image_url"])
    submitted = await api.submit(body={"model_image_url": offer["image_url"]})

    assert (sent.status, sent.data) == (200, {"content_type": content_type, "bytes": len(data)})
    assert (found.body, found.headers["content-type"]) == (data, content_type)
    assert submitted.status == 202


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ({}, "content_type: is required"),
        (
            {"content_type": "image/gif"},
            "content_type: must be image/jpeg, image/png or image/webp",
        ),
        ({"content_type": ""}, "content_type: must be image/jpeg, image/png or image/webp"),
        ({"content_type": "image/jpeg", "name": "me"}, "name: is not a field of this request"),
        ({"content_type": 1}, "content_type: expected str, got int"),
        (b'{"content_type":"image/png","content_type":"image/jpeg"}', "is given more than once"),
        (b"{", "body: is not valid JSON"),
    ],
    ids=repr,
)
async def test_invalid_upload_requests(api: Api, body: object, message: str) -> None:
    """An unsupported media type, and malformed bodies."""
    answer = await api.call("POST", UPLOADS, body=body)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert message in answer.message


async def test_upload_request_must_be_json(api: Api) -> None:
    """415 for other media types, as on every route."""
    answer = await api.call("POST", UPLOADS, body=JPEG, content_type="image/jpeg")

    assert answer.error == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert answer.message == "The Content-Type must be application/json"


async def test_upload_link_works_once(api: Api) -> None:
    """A second PUT gets 409 and replaces nothing, concurrently or later; with the same bytes it is
    a repetition and gets 200."""
    offer = await offered(api)
    pictures = [encoded("JPEG", color=color) for color in ("red", "blue")]

    answers = await asyncio.gather(*(put(api, offer["upload_url"], data) for data in pictures))
    late = await put(api, offer["upload_url"])

    assert sorted(answer.status for answer in answers) == [200, 409]
    assert late.error == (409, "CONFLICT")
    (kept,) = [data for data, answer in zip(pictures, answers, strict=True) if answer.status == 200]
    assert (await got(api, offer["image_url"])).body == kept
    assert (await put(api, offer["upload_url"], kept)).status == 200


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"", "A picture is not a JPEG, PNG or WebP file"),
        (encoded("GIF"), "A picture is not a JPEG, PNG or WebP file"),
        (JPEG[:10], "A picture is damaged"),
        (encoded("JPEG", size=(8, 8)), "A picture is smaller than 16 x 16 pixels"),
        (PNG, "is image/png, not image/jpeg as announced"),
    ],
    ids=["empty", "another type", "damaged", "small", "a png"],
)
async def test_invalid_pictures(api: Api, body: bytes, message: str) -> None:
    """400 with the reason; nothing is stored, and the link is used up."""
    offer = await offered(api)

    answer = await put(api, offer["upload_url"], body)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message == f"body: {message}"
    assert (await got(api, offer["image_url"])).status == 404
    assert (await put(api, offer["upload_url"])).error == (409, "CONFLICT")


@pytest.mark.parametrize("content_type", ["image/jpg", "IMAGE/JPEG", "image/jpeg; q=1"])
async def test_other_names_of_a_format(api: Api, content_type: str) -> None:
    """``image/jpg`` is not registered, but what many programs call a JPEG."""
    offer = await offered(api, content_type)

    sent = await put(api, offer["upload_url"], content_type=content_type)

    assert offer["headers"] == {"Content-Type": "image/jpeg"}
    assert (sent.status, sent.data["content_type"]) == (200, "image/jpeg")


@pytest.mark.parametrize("content_type", [None, "image/png", "application/octet-stream"])
async def test_content_type_must_be_the_announced_one(api: Api, content_type: str | None) -> None:
    """415 otherwise: cloud storage would store another one and serve the picture with it."""
    offer = await offered(api)

    answer = await put(api, offer["upload_url"], content_type=content_type)

    assert answer.error == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert answer.message == "The Content-Type must be image/jpeg"


def padded(size: int) -> bytes:
    """A JPEG of this size; bytes after its end are ignored."""
    return JPEG + bytes(size - len(JPEG))


async def test_picture_at_the_size_limit(api: Api) -> None:
    """Accepted: uploads have a limit of their own, above that of other bodies."""
    offer = await offered(api)

    assert (await put(api, offer["upload_url"], padded(MAX_UPLOAD_BYTES))).status == 200


@pytest.mark.parametrize("how", ["announced", "in chunks", "announced as less"])
async def test_picture_above_the_size_limit(api: Api, how: str) -> None:
    """413, with a true, a false or no Content-Length."""
    offer = await offered(api)
    data = padded(MAX_UPLOAD_BYTES + 1)
    chunks = [data[:50_000], data[50_000:100_000], data[100_000:]]
    headers = [("content-length", "100")] if how == "announced as less" else []

    body = data if how == "announced" else chunks
    answer = await put(api, offer["upload_url"], body, headers=headers)

    assert answer.error == (413, "PAYLOAD_TOO_LARGE")
    assert (await got(api, offer["image_url"])).status == 404
    assert (await put(api, offer["upload_url"])).error == (409, "CONFLICT")


async def test_invalid_upload_links(api: Api) -> None:
    """404 for every changed part, another link's signature and a read link, before the body is
    read."""
    offer, other = await offered(api), await offered(api)
    path, _, query = target(offer["upload_url"]).partition("?")
    folder, _, name = path.rpartition("/")
    changed = [
        f"{path}?{target(other['upload_url']).partition('?')[2]}",
        f"{path}?{target(offer['image_url']).partition('?')[2]}",
        f"{folder}/00000000-0000-0000-0000-000000000000.jpg?{query}",
        f"{folder}x/{name}?{query}",
        f"{path.replace('/uploads/', '/uploads/uploads/')}?{query}",
        f"{path}?{query.replace('expires=', 'expires=9')}",
        f"{path}?{query.replace('expires=', 'expires=-')}",
        f"{path}?{query.partition('&')[0]}",
        path,
        "/uploads/../stores/x.jpg?" + query,
        "/uploads/x?" + query,
    ]

    for link in changed:
        answer = await api.call(
            "PUT", link, owner=USER, body=padded(MAX_UPLOAD_BYTES + 1), content_type="image/jpeg"
        )
        assert answer.error == (404, "NOT_FOUND"), link
    assert (await api.call("PUT", "/uploads/", owner=None)).status in {404, 405}


async def test_upload_link_expires(api: Api) -> None:
    """404 after ``expires_at``."""
    offer = await offered(api)
    api.service.clock.advance(api.uploads._policy.send_within)

    assert (await put(api, offer["upload_url"])).error == (404, "NOT_FOUND")


async def test_daily_quota(api: Api) -> None:
    """429 with Retry-After for a new offer, and for a PUT to a link that was issued earlier."""
    early = await offered(api)
    for _ in range(MAX_UPLOADS):
        assert (await put(api, (await offered(api))["upload_url"])).status == 200

    asked = await api.call("POST", UPLOADS, body={"content_type": "image/jpeg"})
    sent = await put(api, early["upload_url"])

    for answer in (asked, sent):
        assert answer.error == (429, "RATE_LIMIT_EXCEEDED")
        assert 0 < int(answer.headers["retry-after"]) <= 86_400
    assert (await put(api, (await offered(api, owner=STORE))["upload_url"])).status == 200


async def test_uploads_in_progress_are_bounded(api: Api) -> None:
    """503 above the bound, and 409 for a link that is receiving a picture, both with Retry-After;
    the links can still be used."""
    offers = [await offered(api) for _ in range(3)]
    arrive = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await arrive.wait()
        yield JPEG

    in_progress = [asyncio.create_task(received(api, offer, slow)) for offer in offers[:2]]
    await asyncio.sleep(0)
    same = await put(api, offers[0]["upload_url"])
    another = await put(api, offers[2]["upload_url"])
    arrive.set()
    await asyncio.gather(*in_progress)

    assert same.error == (409, "CONFLICT")
    assert another.error == (503, "SERVICE_UNAVAILABLE")
    assert same.headers["retry-after"] == another.headers["retry-after"] == "5"
    assert (await put(api, offers[2]["upload_url"])).status == 200


async def test_uploads_of_an_owner_in_progress_are_bounded(api: Api) -> None:
    """429 with Retry-After; another owner is not held up."""
    api.receiver._limits = ReceivingLimits(per_owner=1)
    first, second = await offered(api), await offered(api)
    theirs = await offered(api, owner=STORE)
    arrive = asyncio.Event()

    async def slow() -> AsyncIterator[bytes]:
        await arrive.wait()
        yield JPEG

    in_progress = asyncio.create_task(received(api, first, slow))
    await asyncio.sleep(0)
    mine = await put(api, second["upload_url"])
    other = await put(api, theirs["upload_url"])
    arrive.set()
    await in_progress

    assert mine.error == (429, "RATE_LIMIT_EXCEEDED")
    assert mine.headers["retry-after"] == "5"
    assert other.status == 200


async def test_body_that_does_not_arrive(api: Api) -> None:
    """400, and the link can still be used."""
    api.receiver._limits = ReceivingLimits(grace_seconds=0.01)
    offer = await offered(api)

    async def never() -> AsyncIterator[bytes]:
        await asyncio.Event().wait()
        yield JPEG

    with pytest.raises(BodyTooSlow) as error:
        await received(api, offer, never)

    assert answer_to(error.value).status == 400
    assert (await put(api, offer["upload_url"])).status == 200


async def test_upload_needs_credits(api: Api) -> None:
    """402 for a caller who could not use the picture."""
    answer = await api.call("POST", UPLOADS, body={"content_type": "image/jpeg"})

    assert answer.error == (402, "INSUFFICIENT_CREDITS")


async def test_hostile_header_is_not_parsed(api: Api) -> None:
    """A JPEG of very many segments is taken as it is, in no time: only a worker's process looks
    for its size."""
    offer = await offered(api)
    flood = JPEG[:2] + b"\xff\xe4\x00\x02" * (MAX_UPLOAD_BYTES // 4 - 1_000) + JPEG[2:]

    assert (await put(api, offer["upload_url"], flood)).status == 200


async def received(api: Api, offer: Any, body: Callable[[], AsyncIterator[bytes]]) -> None:
    """Send a picture without HTTP."""
    parts = urlsplit(offer["upload_url"])
    query = dict(pair.split("=") for pair in parts.query.split("&"))
    await api.receiver.receive(
        parts.path.removeprefix("/"),
        expires=int(query["expires"]),
        signature=query["signature"],
        address="192.0.2.1",
        body=body,
    )


async def test_unavailable_storage(api: Api) -> None:
    """503 for the offer and the PUT; the link can still be used afterwards."""
    offer = await offered(api)
    api.storage.faults.away |= {"count_uploads", "read_signed"}

    answers = [
        await api.call("POST", UPLOADS, body={"content_type": "image/jpeg"}),
        await put(api, offer["upload_url"]),
    ]
    api.storage.faults.clear()

    assert {answer.error for answer in answers} == {(503, "SERVICE_UNAVAILABLE")}
    assert (await put(api, offer["upload_url"])).status == 200
