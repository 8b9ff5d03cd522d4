"""Hostile input: rejected with the field's name, in the envelope, without a charge."""

import base64
import json
from collections.abc import AsyncIterator
from typing import Any

import pytest

from tests.support.examples import MODEL_URL, STORE
from tests.support.http import GENERATIONS, Api

pytestmark = pytest.mark.anyio

LEDGER = "/api/v1/credits/ledger"


@pytest.fixture(scope="module")
def large_limit() -> Api:
    """Accepts bodies up to 10 MB, so that their contents are validated."""
    return Api(max_body_bytes=10_000_000)


@pytest.fixture
async def api(large_limit: Api) -> AsyncIterator[Api]:
    """Checks after each test that nothing was charged, created or queued."""
    balance = (await large_limit.service.accounts.grant(STORE, 1, note="test")).account.balance
    yield large_limit
    assert large_limit.service.balance(STORE) == balance
    assert await large_limit.service.sessions() == []
    assert large_limit.service.waiting() == []


def try_on(**fields: Any) -> bytes:
    return json.dumps({"model_image_url": MODEL_URL, **fields}).encode()


def with_text(field: str, json_text: str) -> bytes:
    """A try-on whose ``field`` is this piece of JSON, valid or not."""
    return f'{{"model_image_url": "{MODEL_URL}", "{field}": {json_text}}}'.encode("latin-1")


HAT = {"type": "hat", "url": "https://pictures.example/hat.webp"}
NESTED = "[" * 200_000
BODIES = {
    "empty": (b"", "body"),
    "spaces": (b"   ", "body"),
    "cut": (b'{"model_image_url": "https:', "body"),
    "no JSON": (b"model_image_url=a", "body"),
    "two values": (try_on() + try_on(), "body"),
    "NaN": (with_text("prompt", "NaN"), "body"),
    "not UTF-8": (with_text("prompt", '"\xff"'), "body"),
    "overlong UTF-8": (with_text("prompt", '"\xc0\x80"'), "body"),
    "UTF-16": (try_on().decode().encode("utf-16"), "body"),
    "two byte order marks": (b"\xef\xbb\xbf" * 2 + try_on(), "body"),
    "raw NUL": (with_text("prompt", '"\x00"'), "body"),
    "null": (b"null", "body"),
    "list": (b"[]", "body"),
    "text": (b'"a"', "body"),
    "number": (b"1e400", "body"),
    "nested lists": (NESTED.encode(), "body"),
    "nested objects": (b'{"a":' * 200_000, "a"),
    "nested in a known field": (with_text("prompt", NESTED), "prompt"),
    "nested in a list": (with_text("accessories", NESTED), "accessories[0]"),
    "lone high surrogate": (with_text("prompt", '"\\ud800"'), "body"),
    "lone low surrogate": (with_text("prompt", '"\\udc00"'), "body"),
    "surrogate and letter": (with_text("prompt", '"\\ud800\\u0041"'), "body"),
    "no model": (b"{}", "model_image_url"),
    "model is null": (b'{"model_image_url": null}', "model_image_url"),
    "2^70": (with_text("outfit_image_url", str(2**70)), "outfit_image_url"),
    "1e400": (with_text("outfit_image_url", "1e400"), "outfit_image_url"),
    "5,000 digits": (with_text("outfit_image_url", "9" * 5_000), "outfit_image_url"),
    "true": (with_text("prompt", "true"), "prompt"),
    "URL with NUL": (try_on(outfit_image_url=f"{MODEL_URL}\x00"), "outfit_image_url"),
    "URL with ESC": (try_on(outfit_image_url=f"{MODEL_URL}\x1b[2J"), "outfit_image_url"),
    "URL with a line end": (try_on(outfit_image_url=f"{MODEL_URL}\r\nA: b"), "outfit_image_url"),
    "URL of 100 kB": (try_on(outfit_image_url=MODEL_URL + "x" * 100_000), "outfit_image_url"),
    "URL of a file": (try_on(outfit_image_url="file:///etc/passwd"), "outfit_image_url"),
    "empty URL": (try_on(outfit_image_url=""), "outfit_image_url"),
    "prompt with NUL": (try_on(prompt="a\x00b"), "prompt"),
    "prompt with ESC": (try_on(prompt="\x1b]0;title\x07"), "prompt"),
    "prompt with C1": (try_on(prompt="\x9b2J"), "prompt"),
    "prompt that turns": (try_on(prompt="\u202egnp.exe"), "prompt"),
    "empty prompt": (try_on(prompt=""), "prompt"),
    "prompt of spaces": (try_on(prompt=" \n\t "), "prompt"),
    "prompt of 100 kB": (try_on(prompt="x" * 100_000), "prompt"),
    "10,000 accessories": (try_on(accessories=[HAT] * 10_000), "accessories"),
    "nine accessories": (try_on(accessories=[HAT] * 9), "accessories"),
    "accessory is text": (try_on(accessories=[HAT, "hat"]), "accessories[1]"),
    "accessory without URL": (try_on(accessories=[{"type": "hat"}]), "accessories[0].url"),
    "accessory's URL": (try_on(accessories=[HAT | {"url": "a"}]), "accessories[0].url"),
    "accessory's type": (try_on(accessories=[HAT | {"type": "\x1b"}]), "accessories[0].type"),
    "accessory of type ''": (try_on(accessories=[HAT | {"type": ""}]), "accessories[0].type"),
    "accessory's extra": (try_on(accessories=[HAT | {"size": 1}]), "accessories[0].size"),
    "unknown field": (try_on(user_id="me"), "user_id"),
    "camelCase": (try_on(outfitImageUrl=MODEL_URL), "outfitImageUrl"),
    "unknown, enormous": (with_text("a", "1e400"), "a"),
    "field twice": (with_text("model_image_url", '"https://other.example/"'), "model_image_url"),
    "field twice, inside": (
        with_text("accessories", '[{"type": "a", "url": "https://a.example/", "type": "b"}]'),
        "type",
    ),
}


@pytest.mark.parametrize(("body", "field"), BODIES.values(), ids=BODIES)
async def test_invalid_bodies(api: Api, body: bytes, field: str) -> None:
    """400, and the message begins with the field's name."""
    answer = await api.submit(owner=STORE, body=body)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith(f"{field}: ")


async def test_error_message_is_bounded(api: Api) -> None:
    """The name of an unknown field comes from the caller, and is cut off."""
    answer = await api.submit(owner=STORE, body={"x" * 100_000: 1})

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message == "x" * 300


async def test_malformed_json_message_has_its_position(api: Api) -> None:
    """In one sentence."""
    answer = await api.submit(owner=STORE, body=b'{"model_image_url": oops}')

    assert answer.message == "body: is not valid JSON: invalid character (byte 20)"


@pytest.mark.parametrize(
    "content_type",
    [
        None,
        "",
        "text/plain",
        "application/jsonp",
        "application/x-www-form-urlencoded",
        "multipart/form-data; boundary=a",
        "text/html, application/json",
        "\xff",
        "*/*",
    ],
)
async def test_unsupported_media_types(api: Api, content_type: str | None) -> None:
    """415 unless the Content-Type is JSON, even if the body is."""
    answer = await api.submit(owner=STORE, body=try_on(), content_type=content_type)

    assert answer.error == (415, "UNSUPPORTED_MEDIA_TYPE")


@pytest.mark.parametrize(
    "content_type",
    ["application/json", "application/json; charset=utf-8", "Application/JSON ;charset=UTF-8"],
)
async def test_supported_media_types(content_type: str) -> None:
    """JSON, in upper or lower case, with or without parameters."""
    api = Api()
    await api.service.accounts.grant(STORE, 1, note="test")

    answer = await api.submit(owner=STORE, body=try_on(), content_type=content_type)

    assert answer.status == 202


@pytest.mark.parametrize("chunked", [False, True])
async def test_body_size_limit(api: Api, chunked: bool) -> None:
    """413 above the limit, with or without a Content-Length; a body at the limit is read."""
    kilobyte = b" " * 1_000
    too_large = [kilobyte] * 10_000 + [b" "]
    at_most = [kilobyte] * 10_000

    refused = await api.submit(owner=STORE, body=too_large if chunked else b"".join(too_large))
    read = await api.submit(owner=STORE, body=at_most if chunked else b"".join(at_most))

    assert refused.error == (413, "PAYLOAD_TOO_LARGE")
    assert read.error == (400, "VALIDATION_ERROR")


async def test_authentication_precedes_the_body(api: Api) -> None:
    """401 without a token, before the body is read."""
    answer = await api.submit(owner=None, body=[b" " * 1_000_000] * 11, content_type=None)

    assert answer.error == (401, "INVALID_TOKEN")


def cursor(text: str) -> str:
    return base64.urlsafe_b64encode(text.encode("latin-1")).decode().rstrip("=")


ID = '"9b2f9a52-6a0c-4e0b-a9f3-0d6a6a2f6d11"'
GOOD_PLACE = f"[1, {ID}]"
QUERIES = {
    "limit": [
        "0",
        "51",
        "-1",
        "x",
        "",
        "1.5",
        "1e400",
        "true",
        "9" * 5_000,
        "%00",
        "%FF",
        "\xff",
        "0x10",
        "%EF%BC%91%EF%BC%91",
        "null",
    ],
    "status": [
        "cancelled",
        "QUEUED",
        "",
        "queued,failed",
        "%00",
        "%FF",
        "\xff",
        "%1B[2J",
        "x" * 10_000,
    ],
    "cursor": [
        "",
        "x",
        "%00",
        "%FF",
        "\xff",
        "=",
        "====",
        "W10",
        "e30",
        "bnVsbA",
        "x" * 10_000,
        f"{cursor(GOOD_PLACE)}%2A%2A%2A%2A",
    ],
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        pytest.param(name, value, id=f"{name}={value[:20]!a}")
        for name, values in QUERIES.items()
        for value in values
    ],
)
async def test_invalid_query_parameters(api: Api, name: str, value: str) -> None:
    """400, and the message begins with the parameter's name."""
    answer = await api.get(f"{GENERATIONS}?{name}={value}")

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith(f"{name}: ")


CURSORS = {
    GENERATIONS: [
        "1",
        "[]",
        "[1]",
        f"[1, {ID}, 2]",
        f"[-1, {ID}]",
        f"[{2**70}, {ID}]",
        f"[1e400, {ID}]",
        f"[1.5, {ID}]",
        f'["1", {ID}]',
        '[1, "x"]',
        '[1, "\xff"]',
        f"[1, {ID}",
        "[" * 7_000,
        f"[{10**18}, {ID}]",
        f"[null, {ID}]",
        "NaN",
    ],
    LEDGER: [
        "0",
        "-1",
        str(2**63),
        str(2**70),
        "1e400",
        "1.5",
        '"1"',
        "null",
        "[1]",
        f"[1, {ID}]",
        "[" * 7_000,
        "9" * 5_000,
    ],
}


@pytest.mark.parametrize(
    ("target", "text"),
    [
        pytest.param(target, text, id=f"{target.rpartition('/')[2]}-{text[:20]!a}")
        for target, texts in CURSORS.items()
        for text in texts
    ],
)
async def test_forged_cursors(api: Api, target: str, text: str) -> None:
    """A cursor's contents are validated, however well it is encoded."""
    answer = await api.get(f"{target}?cursor={cursor(text)}")

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message == "cursor: is not a cursor of this listing"


@pytest.mark.parametrize(
    ("target", "text"),
    [
        (GENERATIONS, GOOD_PLACE),
        (GENERATIONS, f"[0, {ID}]"),
        (GENERATIONS, f"[{2 * 10**17}, {ID}]"),
        (LEDGER, str(2**63 - 1)),
    ],
)
async def test_extreme_cursors(api: Api, target: str, text: str) -> None:
    """The first and last places that a cursor can encode are valid."""
    answer = await api.get(f"{target}?cursor={cursor(text)}")

    assert answer.status == 200


@pytest.mark.parametrize(
    "target",
    [
        "/api",
        "/api/v1",
        "/api/v1/generation",
        "/api/v1/generations/a/b/c",
        "/%00",
        "/%FF",
        "/files",
        "/files/",
        "/samples",
        "/schema/redoc",
        "/schema/openapi.yml",
        "/health",
        "/metrics",
        "/api/v1/../../etc/passwd",
        "/" + "a/" * 5_000,
        "/.env",
    ],
)
async def test_unknown_routes(api: Api, target: str) -> None:
    """404 in the envelope, with or without a token."""
    answers = [await api.get(target, owner=owner) for owner in (STORE, None)]

    assert [answer.error for answer in answers] == [(404, "NOT_FOUND")] * 2


@pytest.mark.parametrize(
    "name",
    [
        "",
        "%00",
        "x",
        "a" * 5_000,
        "..%2Findex.css",
        "../index.css",
        "swagger-ui.css/x",
        "swagger-ui.css%00",
        "LICENSE",
        "%2Fetc%2Fpasswd",
        "swagger-ui.css.map",
        "\xff",
    ],
)
async def test_unknown_assets(api: Api, name: str) -> None:
    """404 for every name other than the page's assets."""
    answer = await api.get(f"/schema/assets/{name}", owner=None)

    assert answer.error == (404, "NOT_FOUND")
