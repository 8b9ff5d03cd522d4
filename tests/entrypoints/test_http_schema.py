"""The OpenAPI document. ``tests.support.http`` checks with every response that its status is
documented."""

import json
import re
from typing import Any

import pytest

from tests.support.http import Api

pytestmark = pytest.mark.anyio

PROBES_AND_FILES = {"/health/live", "/health/ready", "/files/{key}", "/uploads/{key}"}
ROUTES = {
    ("/api/v1/generations", "post"),
    ("/api/v1/generations/batch", "post"),
    ("/api/v1/generations", "get"),
    ("/api/v1/generations/stats", "get"),
    ("/api/v1/generations/{session_id}/events", "get"),
    ("/api/v1/events", "get"),
    ("/api/v1/generations/{session_id}", "get"),
    ("/api/v1/generations/{session_id}/cancel", "post"),
    ("/api/v1/generations/{session_id}/picture", "delete"),
    ("/api/v1/generation/create", "post"),
    ("/api/v1/generation/{session_id}", "get"),
    ("/api/v1/credits/balance", "get"),
    ("/api/v1/stores/config", "get"),
    ("/api/v1/credits", "get"),
    ("/api/v1/credits/ledger", "get"),
    ("/api/v1/uploads", "post"),
    ("/api/v1/client-tokens", "post"),
    ("/api/v1/client-tokens", "get"),
    ("/api/v1/client-tokens/{token_id}", "delete"),
    ("/api/v1/shoppers/{shopper_id}", "get"),
    ("/api/v1/credits/alert", "get"),
    ("/api/v1/credits/alert", "put"),
    ("/api/v1/webhooks", "get"),
    ("/api/v1/webhooks", "post"),
    ("/api/v1/webhooks/{endpoint_id}", "get"),
    ("/api/v1/webhooks/{endpoint_id}", "patch"),
    ("/api/v1/webhooks/{endpoint_id}", "delete"),
    ("/api/v1/webhooks/{endpoint_id}/rotate", "post"),
    ("/api/v1/webhooks/{endpoint_id}/test", "post"),
    ("/api/v1/webhooks/{endpoint_id}/deliveries", "get"),
    ("/api/v1/webhooks/{endpoint_id}/deliveries/retry", "post"),
    ("/api/v1/webhooks/deliveries/{delivery_id}/retry", "post"),
    ("/uploads/{key}", "put"),
    ("/health/live", "get"),
    ("/health/ready", "get"),
    ("/files/{key}", "get"),
    ("/api/v1/admin/grants", "post"),
    ("/api/v1/admin/adjustments", "post"),
    ("/api/v1/admin/stores", "post"),
    ("/api/v1/admin/stores/{store_id}", "get"),
    ("/api/v1/admin/stores/{store_id}", "patch"),
    ("/api/v1/admin/stores/{store_id}/keys", "post"),
    ("/api/v1/admin/stores/{store_id}/keys", "get"),
    ("/api/v1/admin/keys/{key_id}", "delete"),
    ("/api/v1/admin/accounts/{channel}/{owner_id}", "get"),
    ("/api/v1/admin/accounts/{channel}/{owner_id}/ledger", "get"),
    ("/api/v1/admin/accounts/{channel}/{owner_id}/suspend", "post"),
    ("/api/v1/admin/accounts/{channel}/{owner_id}/resume", "post"),
    ("/api/v1/admin/accounts/{channel}/{owner_id}/plan", "put"),
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


def test_every_route_is_documented(api: Api) -> None:
    """With a summary, a description and a unique operation id."""
    described = operations(api)

    assert described.keys() == ROUTES
    assert len({operation["operationId"] for operation in described.values()}) == len(ROUTES)
    assert all(operation["summary"] for operation in described.values())
    assert all(operation["description"] for operation in described.values())


def test_response_headers_are_documented(api: Api) -> None:
    """X-Request-Id on all, Retry-After on 429 and 503, WWW-Authenticate on 401."""
    by_status = {"429": "Retry-After", "503": "Retry-After", "401": "WWW-Authenticate"}

    for status, response in responses(api):
        assert response["headers"].keys() >= {"X-Request-Id", by_status.get(status, "X-Request-Id")}
    submit = operations(api)["/api/v1/generations", "post"]
    assert "Location" in submit["responses"]["202"]["headers"]


def test_errors_are_envelopes_with_examples(api: Api) -> None:
    """One example for each code that a status can have."""
    examples = {
        (status, example["value"]["error"]["code"])
        for status, response in responses(api)
        for content in response.get("content", {}).values()
        for example in content.get("examples", {}).values()
        if int(status) >= 400
    }

    assert {("401", "INVALID_TOKEN"), ("401", "INVALID_API_KEY")} <= examples
    for status, response in responses(api):
        if int(status) >= 400:
            (content,) = response["content"].values()
            assert content["schema"]["$ref"].endswith(("/ErrorEnvelope", "/NotReadyEnvelope"))


def test_authentication_is_documented(api: Api) -> None:
    """All API routes require it and can answer 401; probes and files do not."""
    for (path, _), operation in operations(api).items():
        is_public = path in PROBES_AND_FILES
        assert operation.get("security") == ([] if is_public else [{"bearer": []}])
        assert ("401" in operation["responses"]) is not is_public


def test_nullable_fields_are_required(api: Api) -> None:
    """A field without a value is null, not missing."""
    schemas = api.document["components"]["schemas"]
    session = schemas["Session"]

    assert set(session["required"]) == set(session["properties"])
    assert {"type": "null"} in session["properties"]["queue_position"]["oneOf"]


def test_upload_body_is_documented(api: Api) -> None:
    """A picture's bytes; Litestar itself documents only bodies that it decodes."""
    body = operations(api)["/uploads/{key}", "put"]["requestBody"]

    assert body["required"] is True
    assert body["content"].keys() == {"image/*"}


async def test_document_is_served(api: Api) -> None:
    """As JSON, without a token."""
    answer = await Api(playground=None).get("/schema/openapi.json", owner=None)

    assert answer.status == 200
    assert json.loads(answer.body) == api.document
    assert answer.json["openapi"].startswith("3.1")


async def test_swagger_ui_works_offline(api: Api) -> None:
    """The page loads everything from us."""
    page = await api.get("/schema", owner=None)
    html = page.body.decode()

    loaded = re.findall(r"""(?:src|href)=["']([^"']+)""", html)
    assets = [await api.get(target, owner=None) for target in loaded]

    assert page.headers["content-type"].startswith("text/html")
    assert {target.rpartition(".")[2] for target in loaded} == {"js", "css", "png"}
    assert all(asset.status == 200 and asset.body for asset in assets)
    assert "//" not in html


async def test_page_contains_no_code_and_no_style(api: Api) -> None:
    """Its content security policy would stop them. In no frame can it be clicked on unseen, and no
    other page learns from it which links it leads to."""
    page = await api.get("/schema", owner=None)

    assert not re.search(rb"<style|style=|<script(?![^>]*src=)| on\w+=", page.body)
    policy = page.headers["content-security-policy"]
    assert "unsafe" not in policy
    assert "frame-ancestors 'none'" in policy
    assert page.headers["referrer-policy"] == "no-referrer"
    assert page.headers["cross-origin-opener-policy"] == "same-origin"


async def test_assets_have_their_media_type(api: Api) -> None:
    """Browsers reject scripts and style sheets with a wrong one."""
    script = await api.get("/schema/assets/swagger-ui-bundle.js", owner=None)
    style = await api.get("/schema/assets/swagger-ui.css", owner=None)

    assert script.headers["content-type"].startswith(("text/javascript", "application/javascript"))
    assert style.headers["content-type"].startswith("text/css")
