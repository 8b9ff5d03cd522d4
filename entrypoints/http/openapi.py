"""The API's description of itself, and Swagger UI to read it, served without any other host."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path

from litestar import Router, get
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import (
    Components,
    Example,
    OpenAPI,
    OpenAPIHeader,
    OpenAPIResponse,
    OpenAPIType,
    Schema,
    SecurityScheme,
    Tag,
)
from litestar.params import FromPath
from litestar.response import File

from domain.errors import NotFound
from entrypoints.http.errors import ERRORS, Answer
from entrypoints.http.schemas import ErrorBody, ErrorEnvelope, NotReadyEnvelope

SECURITY_SCHEME = "bearer"

_ASSETS_PATH = "/schema/assets"
_ASSETS = {
    "favicon-32x32.png",
    "swagger-ui-bundle.js",
    "swagger-ui-standalone-preset.js",
    "swagger-ui.css",
}

_DESCRIPTION = """\
Pictures of a person wearing what you choose.

**Who you are.** Send `Authorization: Bearer <token>` with every call under `/api`: stores send
their API key (`wk_...`), users their token. Both use the same paths; each sees only its own.

**How it goes.** `POST /api/v1/generations` takes one credit and answers at once. Then ask at
`status_url` until `status` is final:
`queued` → `processing` → `completed`, or `failed` with the credit back.

**What you get.** Always an envelope: `{"data": ..., "error": null}`, or
`{"data": null, "error": {"code": "...", "message": "..."}}`. Act on `code`; `message` is for
people. A field without a value is `null`. Times are UTC.

**When something is odd.** Every response has an `X-Request-Id`; name it when you ask us. You may
send your own: up to 128 of `A-Z a-z 0-9 . _ -`. After a 429 or a 503, wait for `Retry-After`
seconds. With an `Idempotency-Key` you may then send the same request again.
"""

_EXPLANATIONS = {
    400: "Something in the request is wrong; the message names the field.",
    401: "The token or API key is missing, malformed, unknown or expired.",
    402: "The balance does not cover this; nothing was charged.",
    404: "There is no such thing, or it is somebody else's.",
    409: "It is not in a state that allows this.",
    413: "The body is too large.",
    415: "The Content-Type is not the one that this takes.",
    422: "The idempotency key belongs to another request; nothing was charged.",
    429: "Too many of your sessions are unfinished, or too many uploads are of today; nothing was "
    "charged.",
    500: "Our mistake.",
    503: "Something that the service needs does not answer; try again.",
}

_WORDS = {
    "VALIDATION_ERROR": "accessories[0].url: expected str, got int",
    "INVALID_TOKEN": "The token has expired",
    "INVALID_API_KEY": "The API key is not valid",
    "INSUFFICIENT_CREDITS": "This costs 1 credit(s), which the balance does not cover",
    "CONFLICT": "Only a queued session can be cancelled",
    "UNSUPPORTED_MEDIA_TYPE": "The Content-Type must be application/json",
    "IDEMPOTENCY_KEY_REUSED": "This Idempotency-Key belongs to another request",
    "RATE_LIMIT_EXCEEDED": "Too many sessions are unfinished; wait for some to end",
    "SERVICE_UNAVAILABLE": "Too many requests are waiting already; try again later",
}


def failures(*statuses: int) -> dict[int, ResponseSpec]:
    """The error responses of a route: these, and those that any route may have."""
    return {
        status: ResponseSpec(
            ErrorEnvelope,
            description=_EXPLANATIONS[status],
            examples=[_example(answer) for answer in _answers(status)],
            generate_examples=False,  # by a library that takes a third of a second to load
        )
        for status in sorted({400, *statuses, 500})
    }


_NOT_READY = NotReadyEnvelope(
    data={"store": "ok", "queue": "unavailable"},
    error=ErrorBody(code="SERVICE_UNAVAILABLE", message="Unavailable: queue"),
)


def not_ready() -> dict[int, ResponseSpec]:
    """The 503 of the readiness probe, which says what is missing."""
    return {
        503: ResponseSpec(
            NotReadyEnvelope,
            description="Something that it needs does not answer.",
            examples=[Example(summary="SERVICE_UNAVAILABLE", value=_NOT_READY)],
            generate_examples=False,
        )
    }


def _answers(status: int) -> list[Answer]:
    """The ways in which this status is answered."""
    found: list[Answer] = []
    for answer in ERRORS.values():
        if answer.status == status and answer not in found:
            found.append(answer)
    return found


def _example(answer: Answer) -> Example:
    message = answer.message or _WORDS[answer.code]
    envelope = ErrorEnvelope(data=None, error=ErrorBody(code=answer.code, message=message))
    return Example(summary=answer.code, value=envelope)


def openapi_config() -> OpenAPIConfig:
    """What the document says besides the routes."""
    return OpenAPIConfig(
        title="wearon",
        version="1",
        description=_DESCRIPTION,
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, _, __: handler.handler_name,
        render_plugins=[_swagger_ui(), JsonRenderPlugin()],
        components=Components(
            security_schemes={
                SECURITY_SCHEME: SecurityScheme(
                    type="http",
                    scheme="bearer",
                    description="A store's API key (`wk_...`) or a user's JWT.",
                )
            }
        ),
        tags=[
            Tag(name="Generations", description="Ask for pictures and follow what becomes of them"),
            Tag(name="Uploads", description="Bring pictures of your own"),
            Tag(name="Credits", description="What is left, and where the rest went"),
            Tag(name="Files", description="The pictures themselves"),
            Tag(name="Health", description="For whoever keeps the service running"),
        ],
    )


class _OfflineSwaggerUI(SwaggerRenderPlugin):
    """Leaves unknown paths under /schema to the application, which answers as everywhere."""

    def receive_router(self, router: Router) -> None:
        router.routes = [route for route in router.routes if not route.path_parameters]


def _swagger_ui() -> SwaggerRenderPlugin:
    return _OfflineSwaggerUI(
        js_url=f"{_ASSETS_PATH}/swagger-ui-bundle.js",
        css_url=f"{_ASSETS_PATH}/swagger-ui.css",
        standalone_preset_js_url=f"{_ASSETS_PATH}/swagger-ui-standalone-preset.js",
        favicon=f"<link rel='icon' type='image/png' href='{_ASSETS_PATH}/favicon-32x32.png'>",
        path="/",
    )


@get(f"{_ASSETS_PATH}/{{name:str}}", include_in_schema=False)
async def get_asset(name: FromPath[str]) -> File:
    """What the page loads, by name: Litestar's static files fail on paths that no file can have."""
    if name not in _ASSETS:
        raise NotFound(name)
    path = _swagger_ui_files() / name
    return File(path, filename=name, content_disposition_type="inline")


@cache
def _swagger_ui_files() -> Path:
    """Where swagger-ui-py, whose code is not used, keeps Swagger UI."""
    package = find_spec("swagger_ui")
    if package is None or package.origin is None:
        raise RuntimeError("swagger-ui-py is not installed")
    return Path(package.origin).parent / "static"


_STRING = Schema(type=OpenAPIType.STRING)
_REQUEST_ID = OpenAPIHeader(
    schema=_STRING, description="The id of this request: yours if well formed, else a new one."
)
_RETRY_AFTER = OpenAPIHeader(
    schema=Schema(type=OpenAPIType.INTEGER), description="Seconds to wait."
)
_HEADERS_BY_STATUS = {
    "202": {
        "Location": OpenAPIHeader(
            schema=_STRING, description="Path of the new session; the same as `status_url`."
        ),
        "Idempotency-Replayed": OpenAPIHeader(
            schema=_STRING, description="`true` where the key was used before for this request."
        ),
    },
    "401": {"WWW-Authenticate": OpenAPIHeader(schema=_STRING, description="`Bearer`")},
    "429": {"Retry-After": _RETRY_AFTER},
    "503": {"Retry-After": _RETRY_AFTER},
}


def describe_headers(document: OpenAPI) -> None:
    """Add the headers that come with every response of a kind; Litestar describes none of them."""
    for path in (document.paths or {}).values():
        for operation in filter(None, (path.get, path.post, path.put)):
            for status, response in (operation.responses or {}).items():
                if isinstance(response, OpenAPIResponse):
                    response.headers = {
                        **(response.headers or {}),
                        **_HEADERS_BY_STATUS.get(status, {}),
                        "X-Request-Id": _REQUEST_ID,
                    }
