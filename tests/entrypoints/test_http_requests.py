"""What holds for every route: methods, query parameters, encodings and general headers."""

import gzip

import pytest

from tests.support.examples import MODEL_URL, USER
from tests.support.http import GENERATIONS, UPLOADS, Api

pytestmark = pytest.mark.anyio

TRY_ON = {"model_image_url": MODEL_URL}
READS = [
    GENERATIONS,
    f"{GENERATIONS}/stats",
    "/api/v1/credits",
    "/api/v1/credits/ledger",
    "/health/live",
    "/health/ready",
    "/samples/model.png",
    "/schema",
]


@pytest.fixture
async def api() -> Api:
    made = Api()
    await made.service.accounts.grant(USER, 1, note="test")
    return made


@pytest.mark.parametrize("target", [*READS, f"{GENERATIONS}/none", "/nowhere"])
async def test_head_is_get_without_the_body(api: Api, target: str) -> None:
    """The same status and headers, with the length that the body would have."""
    got = await api.get(target, headers=[("x-request-id", "same")])
    head = await api.call("HEAD", target, content_type=None, headers=[("x-request-id", "same")])

    assert (head.status, head.headers, head.body) == (got.status, got.headers, b"")
    assert int(head.headers["content-length"]) == len(got.body)


async def test_head_creates_nothing(api: Api) -> None:
    """``HEAD`` of the path that accepts requests lists sessions; it submits none."""
    answer = await api.call("HEAD", GENERATIONS, body=TRY_ON)

    assert answer.status == 200
    assert await api.service.sessions() == []


@pytest.mark.parametrize("target", [*READS, "/files/a.png"])
async def test_unknown_query_parameters(api: Api, target: str) -> None:
    """Refused like unknown fields of a body: a misspelt filter would otherwise list everything."""
    answer = await api.get(f"{target}?stauts=failed")

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message == "stauts: is not a parameter of this request"


@pytest.mark.parametrize("query", ["dry_run=1", "=", "a", "a=b&a=c", "%FF=1", "&a=1"])
async def test_unknown_query_parameters_of_a_submission(api: Api, query: str) -> None:
    """Nothing is charged."""
    answer = await api.call("POST", f"{GENERATIONS}?{query}", body=TRY_ON)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert api.service.balance() == 1


async def test_repeated_query_parameters(api: Api) -> None:
    """Programs disagree on which one counts."""
    answer = await api.get(f"{GENERATIONS}?limit=1&status=failed&limit=1")

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message == "limit: is given more than once"


async def test_many_query_parameters(api: Api) -> None:
    """Their number is bounded before they are looked at."""
    answer = await api.get(f"{GENERATIONS}?" + "&".join(f"a{n}=1" for n in range(1_000)))

    assert answer.message == "query: has more than 20 parameters"


async def test_unknown_callers_learn_no_parameters(api: Api) -> None:
    """Authentication comes first."""
    answer = await api.get(f"{GENERATIONS}?stauts=failed", owner=None)

    assert answer.status == 401


@pytest.mark.parametrize("target", [GENERATIONS, UPLOADS])
@pytest.mark.parametrize("encoding", ["gzip", "br", "deflate", "GZIP", "gzip, identity"])
async def test_compressed_bodies(api: Api, target: str, encoding: str) -> None:
    """415, instead of a complaint that the body is not JSON."""
    answer = await api.call(
        "POST", target, body=gzip.compress(b"{}"), headers=[("content-encoding", encoding)]
    )

    assert answer.error == (415, "UNSUPPORTED_MEDIA_TYPE")
    assert answer.message == "A Content-Encoding is not supported"


async def test_identity_is_no_compression(api: Api) -> None:
    """It says that the body is as it is."""
    answer = await api.submit(body=TRY_ON, headers=[("content-encoding", "identity")])

    assert answer.status == 202


@pytest.mark.parametrize(
    "body",
    [
        b'\xef\xbb\xbf{"model_image_url":"https://pictures.example/a.png"}',
        b'{"model_image_url":"https://pictures.example/a.png","accessories":null}',
    ],
    ids=["byte order mark", "accessories are null"],
)
async def test_lenient_bodies(api: Api, body: bytes) -> None:
    """What some clients always write: a byte order mark, and null for what they leave out."""
    answer = await api.submit(body=body)

    assert answer.status == 202
    assert (await api.service.sessions())[0].input.accessories == ()


async def test_too_many_accessories(api: Api) -> None:
    """The message says how many are possible."""
    hat = {"type": "hat", "url": MODEL_URL}

    answer = await api.submit(body=TRY_ON | {"accessories": [hat] * 9})

    assert answer.message == "accessories: has more than 8 items"


async def test_nothing_is_stored_on_the_way(api: Api) -> None:
    """No cache may answer with the data of an earlier moment, or keep an error."""
    answers = [
        await api.get(target) for target in (GENERATIONS, "/api/v1/credits", "/health/ready", "/no")
    ]
    submitted = await api.submit(body=TRY_ON)

    found = [answer.headers["cache-control"] for answer in (*answers, submitted)]
    assert found == ["no-store"] * 5


async def test_options_list_all_methods(api: Api) -> None:
    """Those of every handler of the path."""
    answer = await api.call("OPTIONS", GENERATIONS, owner=None)

    assert answer.status == 204
    assert answer.headers["allow"] == "GET, HEAD, OPTIONS, POST"


async def test_document_says_which_calls_need_a_token(api: Api) -> None:
    """Generated clients send it exactly there."""
    without = {
        path
        for path, calls in api.document["paths"].items()
        for call in calls.values()
        if call["security"] == []
    }

    assert without == {"/health/live", "/health/ready", "/files/{key}", "/uploads/{key}"}
