"""The OpenAPI document promises what the code checks: every constraint of a request's fields and
parameters is in the document, and the document has no other."""

from collections.abc import Iterator, Mapping
from typing import Any

import msgspec
import pytest
from litestar.handlers import HTTPRouteHandler
from litestar.params import HeaderParameter, PathParameter, QueryParameter
from litestar.routes import HTTPRoute

from tests.support.http import Api

Constraint = tuple[str, str, Any]
"""Where, which, and its value."""

KEYWORDS = {
    "maximum",
    "maxItems",
    "maxLength",
    "minimum",
    "minItems",
    "minLength",
    "pattern",
    "exclusiveMaximum",
    "exclusiveMinimum",
}
OF_PARAMETERS = {
    "ge": "minimum",
    "gt": "exclusiveMinimum",
    "le": "maximum",
    "lt": "exclusiveMaximum",
    "max_length": "maxLength",
    "min_length": "minLength",
    "pattern": "pattern",
}
DECLARED = (HeaderParameter, PathParameter, QueryParameter)
OPEN_TEXTS = {
    "Prefer",  # what is not known there is ignored
    "X-Request-Id",  # another one is replaced
    "expires",  # part of a signed link, which the service builds
    "key",
    "signature",
}
"""Parameters that may be any text."""


@pytest.fixture(scope="module")
def api() -> Api:
    return Api()


@pytest.fixture(scope="module")
def document(api: Api) -> dict[str, Any]:
    return api.document


def handlers(api: Api) -> Iterator[tuple[str, HTTPRouteHandler]]:
    """Path template and handler of each documented call."""
    for route in api._application.routes:
        if isinstance(route, HTTPRoute):
            for handler in route.route_handlers:
                if handler.resolve_include_in_schema():
                    yield route.path_format, handler


def constraints(schema: Mapping[str, Any], where: str = "") -> set[Constraint]:
    """Those of a value and of what is in it, without those of other named schemas."""
    found = {(where, word, value) for word, value in schema.items() if word in KEYWORDS}
    if "const" in schema or "enum" in schema:
        values = schema.get("enum", [schema.get("const")])
        found.add((where, "enum", tuple(sorted(values))))
    for option in (*schema.get("anyOf", ()), *schema.get("oneOf", ()), *schema.get("allOf", ())):
        found |= constraints(option, where)
    if isinstance(schema.get("items"), dict):
        found |= constraints(schema["items"], f"{where}[]")
    for name, field in schema.get("properties", {}).items():
        found |= constraints(field, f"{where}.{name}")
    return found


def test_bodies_have_the_constraints_of_their_decoders(api: Api, document: dict[str, Any]) -> None:
    """Of each field, of values that may be null, and of the items of lists."""
    fields = [handler.parsed_data_field for _, handler in handlers(api)]
    bodies = [
        field.annotation for field in fields if field and field.is_subclass_of(msgspec.Struct)
    ]
    _, decoded = msgspec.json.schema_components(bodies)
    documented = document["components"]["schemas"]

    assert len(bodies) > 10
    for name, schema in decoded.items():
        assert constraints(documented[name]) == constraints(schema), name
        assert set(documented[name].get("required", ())) == set(schema.get("required", ())), name


def test_parameters_have_the_constraints_of_their_handlers(
    api: Api, document: dict[str, Any]
) -> None:
    for path, handler in handlers(api):
        (method,) = handler.http_methods - {"HEAD", "OPTIONS"}
        documented = {
            parameter["name"]: constraints(parameter["schema"])
            for parameter in document["paths"][path][method.lower()]["parameters"]
        }
        for name, field in handler.parsed_fn_signature.parameters.items():
            declared = field.kwarg_definition
            if isinstance(declared, DECLARED):
                found = documented[declared.name or name]
                for attribute, word in OF_PARAMETERS.items():
                    if (value := getattr(declared, attribute)) is not None:
                        assert ("", word, value) in found, (path, name)


def test_parameters_are_no_open_texts(document: dict[str, Any]) -> None:
    """A text has a pattern or a format, unless it may be anything, and no parameter is null: one
    without a value is left out."""
    for path, calls in document["paths"].items():
        for method, call in calls.items():
            for parameter in call["parameters"]:
                schema, where = parameter["schema"], (method, path, parameter["name"])
                assert "oneOf" not in schema, where
                if schema.get("type") == "string":
                    is_exact = "pattern" in schema or "format" in schema
                    assert is_exact is (parameter["name"] not in OPEN_TEXTS), where
