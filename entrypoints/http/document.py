"""What Litestar leaves out of the OpenAPI document, added once it is built."""

import re
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import msgspec
from litestar.openapi.spec import (
    OpenAPI,
    OpenAPIHeader,
    OpenAPIMediaType,
    OpenAPIResponse,
    OpenAPIType,
    Operation,
    Parameter,
    Reference,
    RequestBody,
    Schema,
)
from msgspec import Struct

from domain.sessions import ErrorCode
from entrypoints.http.errors import ERRORS
from entrypoints.http.patterns import CURSOR, ID, IDEMPOTENCY_KEY

_STRING = Schema(type=OpenAPIType.STRING)
_INTEGER = Schema(type=OpenAPIType.INTEGER)
_NULL = Schema(type=OpenAPIType.NULL)
_BINARY = Schema(type=OpenAPIType.STRING, format="binary")  # type: ignore[arg-type]
_EVENT = Schema(
    type=OpenAPIType.OBJECT,
    description="A server-sent event. The first one of a stream has only `retry`.",
    properties={
        "id": _STRING,
        "event": _STRING,
        "retry": _INTEGER,
        "data": Schema(
            type=OpenAPIType.STRING,
            content_media_type="application/json",
            content_schema=Reference(ref="#/components/schemas/Session"),
        ),
    },
)
_KEY = Schema(type=OpenAPIType.STRING, pattern=IDEMPOTENCY_KEY)

_SENT_REQUEST_ID = Parameter(
    name="X-Request-Id",
    param_in="header",
    schema=_STRING,
    description="Your own id of this request: up to 128 of `A-Z a-z 0-9 . _ -`."
    " Any other is replaced.",
)
_REQUEST_ID = OpenAPIHeader(
    schema=_STRING,
    description="This request's id: the one you sent if it is well formed, else a new one.",
)
_RETRY_AFTER = OpenAPIHeader(schema=_INTEGER, description="Seconds to wait.")
_RATES = {
    "RateLimit-Policy": OpenAPIHeader(
        schema=_STRING, description="Each rate: its quota `q` and its window `w` in seconds."
    ),
    "RateLimit": OpenAPIHeader(
        schema=_STRING,
        description="Each rate: what remains (`r`), and the seconds until all is back (`t`).",
    ),
    "X-RateLimit-Limit": OpenAPIHeader(
        schema=_INTEGER, description="The quota of the rate that ends first."
    ),
    "X-RateLimit-Remaining": OpenAPIHeader(schema=_INTEGER, description="What remains of it."),
    "X-RateLimit-Reset": OpenAPIHeader(
        schema=_INTEGER, description="When all of it is back, as a Unix time."
    ),
}
_BY_STATUS = {
    "401": {"WWW-Authenticate": OpenAPIHeader(schema=_STRING, description="`Bearer`")},
    "429": {"Retry-After": _RETRY_AFTER, **_RATES},
    "503": {"Retry-After": _RETRY_AFTER},
}
_REPLAYED = OpenAPIHeader(
    schema=_STRING, description="`true` if an earlier request with this key was accepted."
)
_APPLIED = OpenAPIHeader(schema=_STRING, description="`wait=N` if the request has waited.")
_BY_OPERATION = {
    ("submit_generation", "202"): {
        "Location": OpenAPIHeader(
            schema=_STRING, description="The session's path; the same as `status_url`."
        ),
        "Idempotency-Replayed": _REPLAYED,
        "Preference-Applied": _APPLIED,
        **_RATES,
    },
    ("submit_generation", "200"): {"Preference-Applied": _APPLIED},
    ("get_generation", "200"): {"Preference-Applied": _APPLIED},
    ("submit_batch", "202"): {
        "Retry-After": OpenAPIHeader(
            schema=_INTEGER, description="The longest wait of all items that may be repeated."
        ),
        **_RATES,
    },
}

_NEEDS_KEY = {"create_key"}
_PATTERNS = {"cursor": CURSOR, "owner_id": ID, "shopper_id": ID, "store_id": ID}
"""Those of parameters, by their names."""
_OPEN = {"OriginalRequest"}
"""Requests whose unknown fields are ignored."""
_CONSTRAINTS = {
    "enum": "enum",
    "maximum": "maximum",
    "maxItems": "max_items",
    "maxLength": "max_length",
    "minimum": "minimum",
    "minItems": "min_items",
    "minLength": "min_length",
    "pattern": "pattern",
}
"""JSON Schema's names, and Litestar's. Litestar loses those of a list's items, of a value within
a union, and what a field adds to its schema."""


@dataclass
class _OpenEnum(Schema):
    """A text of which the known values are listed. Clients accept others: generators take an
    ``enum`` for complete, and ignore an extension that they do not know."""

    known: Collection[str] | None = field(default=None, metadata={"alias": "x-extensible-enum"})


_CODES: dict[tuple[str, str], list[str]] = {
    ("ErrorBody", "code"): sorted({answer.code for answer in ERRORS.values()}),
    ("Session", "error_code"): sorted(map(str, ErrorCode)),
}


def complete_document(document: OpenAPI, bodies: Collection[type[Struct]]) -> None:
    """Add what Litestar leaves out: headers, constraints, known codes, which bodies are binary,
    which fields are refused, and that a call needs no token. ``bodies`` are what calls accept."""
    for _, _, operation in operations(document):
        if operation.security is None:
            operation.security = []
        operation.parameters = [
            *[_complete_parameter(one, operation) for one in operation.parameters or ()],
            _SENT_REQUEST_ID,
        ]
        if isinstance(operation.request_body, RequestBody):
            _describe_others(operation.request_body.content)
        for status, response in (operation.responses or {}).items():
            if isinstance(response, OpenAPIResponse):
                _describe_others(response.content or {})
                response.headers = {
                    **(response.headers or {}),
                    **_BY_STATUS.get(status, {}),
                    **_BY_OPERATION.get((operation.operation_id or "", status), {}),
                    "X-Request-Id": _REQUEST_ID,
                }
    schemas = document.components.schemas
    for name in _in_requests(document) - _OPEN:
        if schemas[name].type == OpenAPIType.OBJECT:
            schemas[name].additional_properties = False
    _take_constraints(schemas, bodies)
    for (name, attribute), codes in _CODES.items():
        properties = schemas[name].properties or {}
        properties[attribute] = _with_codes(properties[attribute], codes)


def _complete_parameter(
    parameter: Parameter | Reference, operation: Operation
) -> Parameter | Reference:
    if not isinstance(parameter, Parameter):
        return parameter
    if parameter.name == "Idempotency-Key":
        needed = operation.operation_id in _NEEDS_KEY
        return replace(parameter, schema=_KEY, required=needed)
    schema = _not_null(parameter.schema)
    if parameter.name in _PATTERNS and isinstance(schema, Schema):
        schema = replace(schema, pattern=_PATTERNS[parameter.name])
    return replace(parameter, schema=schema)


def _not_null(schema: Schema | Reference | None) -> Schema | Reference | None:
    """An optional parameter is left out: a text cannot be null."""
    if not (isinstance(schema, Schema) and schema.one_of):
        return schema
    options = [one for one in schema.one_of if one != _NULL]
    if len(options) != 1:
        return schema
    (option,) = options
    if isinstance(option, Reference):
        return replace(schema, one_of=None, all_of=[option])
    return replace(schema, one_of=None, type=option.type)


def _describe_others(content: Mapping[str, OpenAPIMediaType]) -> None:
    """Bodies that are no JSON."""
    for media_type, described in content.items():
        if media_type.startswith("image/"):
            described.schema = _BINARY
        if media_type == "text/event-stream":
            described.schema = _EVENT


def _in_requests(document: OpenAPI) -> set[str]:
    """The names of the schemas of all requests, and of those in them."""
    found: set[str] = set()
    texts = [
        str(operation.request_body.to_schema())
        for _, _, operation in operations(document)
        if isinstance(operation.request_body, RequestBody)
    ]
    while texts:
        for name in re.findall(r"#/components/schemas/(\w+)", texts.pop()):
            if name not in found:
                found.add(name)
                texts.append(str(document.components.schemas[name].to_schema()))
    return found


def _take_constraints(schemas: Mapping[str, Schema], bodies: Collection[type[Struct]]) -> None:
    """Those of msgspec's own schemas, which decide what is accepted."""
    _, described = msgspec.json.schema_components(bodies)
    for name, own in described.items():
        for attribute, schema in (schemas[name].properties or {}).items():
            _constrain(schema, own["properties"][attribute])


def _constrain(schema: Schema | Reference, own: Mapping[str, Any]) -> None:
    if not isinstance(schema, Schema):
        return
    options = [schema, *[one for one in schema.one_of or () if isinstance(one, Schema)]]
    for described in own.get("anyOf", [own]):
        for option in options:
            if option.type is not None and option.type == described.get("type"):
                for name, attribute in _CONSTRAINTS.items():
                    if name in described:
                        setattr(option, attribute, described[name])
                if option.items:
                    _constrain(option.items, described["items"])


def _with_codes(schema: Schema | Reference, codes: Collection[str]) -> Schema | Reference:
    assert isinstance(schema, Schema)  # noqa: S101 - a text, or a text or null
    listed = ", ".join(f"`{code}`" for code in codes)
    described = f"{schema.description} Known: {listed}. Accept others."
    return _OpenEnum(
        type=schema.type,
        one_of=schema.one_of,
        examples=schema.examples,
        description=described,
        known=list(codes),
    )


def query_parameters(document: OpenAPI) -> Mapping[tuple[str, str], Collection[str]]:
    """The names of the query parameters of each call, by its path template and method."""
    return {
        (path, method): {
            parameter.name
            for parameter in operation.parameters or ()
            if isinstance(parameter, Parameter) and parameter.param_in == "query"
        }
        for path, method, operation in operations(document)
    }


def operations(document: OpenAPI) -> Iterator[tuple[str, str, Operation]]:
    """Path template, method and description of each call."""
    for path, item in (document.paths or {}).items():
        for method in ("GET", "POST", "PUT", "PATCH", "DELETE"):
            operation: Operation | None = getattr(item, method.lower())
            if operation is not None:
                yield path, method, operation
