"""The OpenAPI document: as exact as the service, as far as generators of clients use it."""

import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest

from domain.sessions import ErrorCode
from entrypoints.http.errors import ERRORS
from tests.support.http import Api

REDOCLY = "@redocly/cli@2.77.0"
RATES = {"RateLimit", "RateLimit-Policy", "X-RateLimit-Limit"}


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return Api().document


def parameters(document: dict[str, Any], path: str, method: str) -> dict[str, dict[str, Any]]:
    return {one["name"]: one for one in document["paths"][path][method]["parameters"]}


def schemas_in(document: dict[str, Any], part: object) -> set[str]:
    """The names of all schemas to which a part of the document leads."""
    found: set[str] = set()
    texts = [json.dumps(part)]
    while texts:
        for piece in texts.pop().split('"#/components/schemas/')[1:]:
            name = piece.partition('"')[0]
            if name not in found:
                found.add(name)
                texts.append(json.dumps(document["components"]["schemas"][name]))
    return found


def test_redocly_finds_no_error(document: dict[str, Any], tmp_path: Path) -> None:
    """With its recommended rules."""
    npx = shutil.which("npx")
    if npx is None:
        pytest.skip("npx is not installed")
    file = tmp_path / "openapi.json"
    file.write_text(json.dumps(document))

    linted = subprocess.run(
        [npx, "--yes", REDOCLY, "lint", file.name],
        cwd=tmp_path,
        env={**os.environ, "REDOCLY_TELEMETRY": "off"},
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    if "npm error" in linted.stderr and "validat" not in linted.stderr:
        pytest.skip(f"the linter cannot be installed: {linted.stderr[-300:]}")
    assert linted.returncode == 0, linted.stdout + linted.stderr


def test_known_codes_are_an_open_enum(document: dict[str, Any]) -> None:
    """Listed, without an ``enum`` that a generator would take for complete."""
    schemas = document["components"]["schemas"]
    code = schemas["ErrorBody"]["properties"]["code"]
    error_code = schemas["Session"]["properties"]["error_code"]

    assert set(code["x-extensible-enum"]) == {answer.code for answer in ERRORS.values()}
    assert set(error_code["x-extensible-enum"]) == set(ErrorCode)
    assert "enum" not in code
    assert "enum" not in error_code


def test_only_requests_refuse_further_fields(document: dict[str, Any]) -> None:
    """All but the original's, which ignores them. Answers may get new fields."""
    calls = [call for path in document["paths"].values() for call in path.values()]
    requests = schemas_in(document, [call.get("requestBody") for call in calls])
    answers = schemas_in(document, [call["responses"] for call in calls])
    schemas = document["components"]["schemas"]
    closed = {name for name in schemas if schemas[name].get("additionalProperties") is False}
    objects = {name for name in requests if schemas[name].get("type") == "object"}

    assert closed == objects - {"OriginalRequest"}
    assert not closed & answers


def test_parameters(document: dict[str, Any]) -> None:
    """Ids in paths and keys have their pattern, and a new API key needs a key of its own."""
    of_key = parameters(document, "/api/v1/admin/stores/{store_id}/keys", "post")
    of_shopper = parameters(document, "/api/v1/shoppers/{shopper_id}", "get")
    of_submission = parameters(document, "/api/v1/generations", "post")

    assert of_key["store_id"]["schema"]["pattern"].startswith("^[A-Za-z0-9]")
    assert of_shopper["shopper_id"]["schema"]["pattern"].startswith("^[A-Za-z0-9]")
    assert of_key["Idempotency-Key"]["required"] is True
    assert of_submission["Idempotency-Key"]["required"] is False
    assert of_submission["Idempotency-Key"]["schema"]["pattern"] == "^[!-~]{1,255}$"
    for path, calls in document["paths"].items():
        for method in calls:
            assert "X-Request-Id" in parameters(document, path, method)


def test_rates_are_documented(document: dict[str, Any]) -> None:
    """On submissions and on every 429."""
    for path in ("/api/v1/generations", "/api/v1/generations/batch"):
        responses = document["paths"][path]["post"]["responses"]
        assert responses["202"]["headers"].keys() >= RATES
    for calls in document["paths"].values():
        for call in calls.values():
            if "429" in call["responses"]:
                assert call["responses"]["429"]["headers"].keys() >= RATES


def test_pictures_are_binary(document: dict[str, Any]) -> None:
    binary = {"image/*": {"schema": {"type": "string", "format": "binary"}}}
    paths = document["paths"]

    assert paths["/uploads/{key}"]["put"]["requestBody"]["content"] == binary
    assert paths["/files/{key}"]["get"]["responses"]["200"]["content"] == binary


def test_tags_are_declared(document: dict[str, Any]) -> None:
    used = {
        tag
        for calls in document["paths"].values()
        for call in calls.values()
        for tag in call["tags"]
    }
    assert used == {tag["name"] for tag in document["tags"]}


def test_conflict_of_the_original(document: dict[str, Any]) -> None:
    """Only an unsettled key leads to it."""
    responses = document["paths"]["/api/v1/generation/create"]["post"]["responses"]

    assert "same key is not settled" in responses["409"]["description"]
