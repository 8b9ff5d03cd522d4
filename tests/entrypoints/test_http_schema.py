"""The API's description of itself. That every status seen in a test is documented is checked
with every answer, in ``tests.support.http``."""

import json
import re
from typing import Any

import pytest

from tests.support.http import Api

pytestmark = pytest.mark.anyio

PROBES_AND_FILES = {"/health/live", "/health/ready", "/files/{key}", "/uploads/{key}"}
ROUTES = {
    ("/api/v1/generations", "post"),
    ("/api/v1/generations", "get"),
    ("/api/v1/generations/stats", "get"),
    ("/api/v1/generations/{session_id}", "get"),
    ("/api/v1/generations/{session_id}/cancel", "post"),
    ("/api/v1/credits", "get"),
    ("/api/v1/credits/ledger", "get"),
    ("/api/v1/uploads", "post"),
    ("/uploads/{key}", "put"),
    ("/health/live", "get"),
    ("/health/ready", "get"),
    ("/files/{key}", "get"),
}


@pytest.fixture(scope="module")
def api() -> Api:
    return Api()


def operations(api: Api) -> dict[tuple[str, str], Any]:
    return {
        (path, method): operation
        for path, methods in api.document["paths"].items()
        for method, operation in methods.items()
    }


def responses(api: Api) -> list[tuple[str, Any]]:
    """Every documented response, with its status."""
    return [
        response
        for operation in operations(api).values()
        for response in operation["responses"].items()
    ]


def test_every_route_is_described(api: Api) -> None:
    """What there is is documented, with a summary, an explanation and a name for clients."""
    described = operations(api)

    assert described.keys() == ROUTES
    assert len({operation["operationId"] for operation in described.values()}) == len(ROUTES)
    assert all(operation["summary"] for operation in described.values())
    assert all(operation["description"] for operation in described.values())


def test_every_response_has_the_headers_that_it_is_sent_with(api: Api) -> None:
    """X-Request-Id with all, Retry-After where waiting helps, WWW-Authenticate with 401."""
    by_status = {"429": "Retry-After", "503": "Retry-After", "401": "WWW-Authenticate"}

    for status, response in responses(api):
        assert response["headers"].keys() >= {"X-Request-Id", by_status.get(status, "X-Request-Id")}
    submit = operations(api)["/api/v1/generations", "post"]
    assert "Location" in submit["responses"]["202"]["headers"]


def test_every_error_is_the_envelope_with_an_example(api: Api) -> None:
    """Each code that a status can come with is shown."""
    examples = {
        (status, example["value"]["error"]["code"])
        for status, response in responses(api)
        for content in response["content"].values()
        for example in content.get("examples", {}).values()
        if int(status) >= 400
    }

    assert {("401", "INVALID_TOKEN"), ("401", "INVALID_API_KEY")} <= examples
    for status, response in responses(api):
        if int(status) >= 400:
            (content,) = response["content"].values()
            assert content["schema"]["$ref"].endswith(("/ErrorEnvelope", "/NotReadyEnvelope"))


def test_what_needs_a_token_says_so(api: Api) -> None:
    """All of the API does, and can answer 401; probes and files do not."""
    for (path, _), operation in operations(api).items():
        is_public = path in PROBES_AND_FILES
        assert operation.get("security") == (None if is_public else [{"bearer": []}])
        assert ("401" in operation["responses"]) is not is_public


def test_null_is_documented_where_it_can_come(api: Api) -> None:
    """A field without a value is null, not missing: required, and of two types."""
    schemas = api.document["components"]["schemas"]
    session = schemas["Session"]

    assert set(session["required"]) == set(session["properties"])
    assert {"type": "null"} in session["properties"]["queue_position"]["oneOf"]


def test_what_an_upload_takes_is_described(api: Api) -> None:
    """Bytes of a picture; Litestar itself says nothing of a body that it does not decode."""
    body = operations(api)["/uploads/{key}", "put"]["requestBody"]

    assert body["required"] is True
    assert body["content"].keys() == {"image/*"}


async def test_the_document_is_served(api: Api) -> None:
    """As JSON, without a token, and the same that this process has."""
    answer = await api.get("/schema/openapi.json", owner=None)

    assert answer.status == 200
    assert json.loads(answer.body) == api.document
    assert answer.json["openapi"].startswith("3.1")


async def test_the_page_needs_no_other_host(api: Api) -> None:
    """All that the page loads comes from here; links to elsewhere are the examples' only."""
    page = await api.get("/schema", owner=None)
    html = page.body.decode()

    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", html)
    assets = [await api.get(target, owner=None) for target in loaded]

    assert page.headers["content-type"].startswith("text/html")
    assert {target.rpartition(".")[2] for target in loaded} == {"js", "css", "png"}
    assert all(asset.status == 200 and asset.body for asset in assets)
    assert set(re.findall(r"https?://([\w.-]+)", html)) == {"images.example.com"}


async def test_assets_have_their_type(api: Api) -> None:
    """Browsers refuse scripts and style sheets of another type."""
    script = await api.get("/schema/assets/swagger-ui-bundle.js", owner=None)
    style = await api.get("/schema/assets/swagger-ui.css", owner=None)

    assert script.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert style.headers["content-type"].startswith("text/css")
