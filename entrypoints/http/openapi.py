"""The OpenAPI document, and Swagger UI to read it, with no assets from other hosts."""

from functools import cache
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from litestar import Request, Response, Router, get
from litestar.openapi import OpenAPIConfig, ResponseSpec
from litestar.openapi.plugins import JsonRenderPlugin, SwaggerRenderPlugin
from litestar.openapi.spec import (
    Components,
    Example,
    SecurityScheme,
    Tag,
)
from litestar.params import FromPath
from litestar.response import File

from domain.errors import NotFound, Unconfirmed, UnknownStore
from entrypoints.http.errors import ERRORS, Answer
from entrypoints.http.probe_schemas import NotReadyEnvelope
from entrypoints.http.schemas import ErrorBody, ErrorEnvelope

SECURITY_SCHEME = "bearer"

_ASSETS_PATH = "/schema/assets"
_START = "start.js"
_ASSETS = {
    "favicon-32x32.png",
    "swagger-ui-bundle.js",
    "swagger-ui.css",
}

_DESCRIPTION = """\
Virtual try-on: pictures of a person wearing the items that you choose.

**Authentication.** Send `Authorization: Bearer <token>` with every call under `/api`. Stores send
their API key (`wk_...`), users their JWT. Both use the same paths; each caller sees only its own
resources. A store's pages send a client token (`wc_...`), which the store's server creates for each
shopper: it creates and shows this shopper's generations only.

**Generations.** `POST /api/v1/generations` takes one credit and returns immediately. Then poll
`status_url` until `status` is final:
`queued` → `processing` → `completed`, or `failed` with the credit refunded. Instead of polling, let
`POST /api/v1/webhooks` name a URL of yours that is told.

**Responses.** Always an envelope: `{"data": ..., "error": null}`, or
`{"data": null, "error": {"code": "...", "message": "..."}}`. Programs should act on `code`;
`message` is for people. A field without a value is `null`. Times are UTC.

**Troubleshooting.** Every response has an `X-Request-Id`; quote it when you contact support. You
can send your own: up to 128 of `A-Z a-z 0-9 . _ -`. After a 429 or a 503, wait `Retry-After`
seconds before you try again. With an `Idempotency-Key`, repeating a request is safe.
"""

_EXPLANATIONS: dict[int | type[Exception], str] = {
    400: "The request is invalid; the message names the field.",
    401: "The token or API key is missing, malformed, unknown or expired.",
    402: "The balance is too low; nothing was charged.",
    403: "The credential may not be used for this, or not from this web page.",
    404: "The resource does not exist, or belongs to another owner.",
    UnknownStore: "No such store; the message names similar ones.",
    409: "The resource's current state does not allow this.",
    Unconfirmed: "An earlier request with the same key is not settled yet; try again later.",
    413: "The request body is too large.",
    415: "The Content-Type is not supported here.",
    422: "The idempotency key, or reference, was used for another request; nothing was done.",
    429: "Too many active sessions, or a limit is reached; nothing was charged.",
    500: "Internal server error.",
    503: "A dependency is temporarily unavailable; try again later.",
}

_MESSAGES = {
    "VALIDATION_ERROR": "accessories[0].url: expected str, got int",
    "INVALID_TOKEN": "The token has expired",
    "INVALID_API_KEY": "The API key is not valid",
    "INSUFFICIENT_CREDITS": "This costs 1 credit(s), which the balance does not cover",
    "NOT_FOUND": "No store has the id corner-shp; similar: corner-shop (Corner Shop)",
    "CONFLICT": "The session has ended: it cannot be cancelled any more",
    "UNSUPPORTED_MEDIA_TYPE": "The Content-Type must be application/json",
    "IDEMPOTENCY_KEY_REUSED": "This Idempotency-Key belongs to another request",
    "RATE_LIMIT_EXCEEDED": "The daily limit of 1000 uploads is reached",
    "TOO_MANY_ACTIVE": "Too many sessions are unfinished; wait for some to end",
    "FORBIDDEN": "A shopper may not call this",
    "DOMAIN_MISMATCH": "This credential cannot be used from this web page",
    "AGE_VERIFICATION_REQUIRED": "age_verified: must be true",
    "SERVICE_UNAVAILABLE": "Too many requests are waiting already; try again later",
}
"""Examples for errors whose message is not fixed."""


_OF_SOME_ROUTES = (Unconfirmed, UnknownStore)


def failures(*kinds: int | type[Exception]) -> dict[int, ResponseSpec]:
    """The error responses of a route: the given statuses or errors, and those that every route can
    return. What needs a credential also has rates."""
    responses = {}
    of_rates = {429} if 401 in kinds else set()
    for kind in (400, *of_rates - set(kinds), *kinds, 500):
        answers = _answers(kind) if isinstance(kind, int) else [ERRORS[kind]]
        responses[answers[0].status] = ResponseSpec(
            ErrorEnvelope,
            description=_EXPLANATIONS[kind],
            examples=[_example(answer) for answer in answers],
            generate_examples=False,  # the library for that takes a third of a second to import
        )
    return dict(sorted(responses.items()))


_NOT_READY = NotReadyEnvelope(
    data={"database": "ok", "queue": "unavailable"},
    error=ErrorBody(code="SERVICE_UNAVAILABLE", message="Unavailable: queue"),
)


def not_ready() -> dict[int, ResponseSpec]:
    """The readiness probe's 503, which names the unavailable dependencies."""
    return {
        503: ResponseSpec(
            NotReadyEnvelope,
            description="A dependency does not answer.",
            examples=[Example(summary="SERVICE_UNAVAILABLE", value=_NOT_READY)],
            generate_examples=False,
        )
    }


def _answers(status: int) -> list[Answer]:
    """All answers with this status, except for errors of some routes only."""
    found: list[Answer] = []
    for kind, answer in ERRORS.items():
        if answer.status == status and answer not in found and kind not in _OF_SOME_ROUTES:
            found.append(answer)
    return found


def _example(answer: Answer) -> Example:
    message = answer.message or _MESSAGES[answer.code]
    envelope = ErrorEnvelope(data=None, error=ErrorBody(code=answer.code, message=message))
    return Example(summary=answer.code, value=envelope)


def openapi_config(samples_url: str | None = None) -> OpenAPIConfig:
    """The document's contents other than the routes. With ``samples_url``, its examples link to
    sample pictures, so that they work."""
    return OpenAPIConfig(
        title="wearon",
        version="1",
        description=_DESCRIPTION,
        use_handler_docstrings=True,
        operation_id_creator=lambda handler, _, __: handler.handler_name,
        render_plugins=[_OfflineSwaggerUI(path="/"), _Document(samples_url)],
        components=Components(
            security_schemes={
                SECURITY_SCHEME: SecurityScheme(
                    type="http",
                    scheme="bearer",
                    description="A store's API key (`wk_...`) or client token (`wc_...`), a user's"
                    " JWT, or a service key (`wa_...`).",
                )
            }
        ),
        tags=[
            Tag(name="Generations", description="Create generations and follow their progress"),
            Tag(name="Events", description="States of generations as they change"),
            Tag(name="Uploads", description="Upload pictures to use in generations"),
            Tag(name="Client tokens", description="Let shoppers' browsers call, for stores"),
            Tag(name="Webhooks", description="Be told when something happens"),
            Tag(name="Credits", description="Your balance and its ledger"),
            Tag(name="Administration", description="For the operator's services: accounts, stores"),
            Tag(name="Files", description="Download pictures"),
            Tag(name="Original", description="The original's calls for stores, deprecated"),
            Tag(name="Health", description="Probes for operators and orchestrators"),
        ],
    )


class _OfflineSwaggerUI(SwaggerRenderPlugin):
    """Leaves unknown paths under /schema to the application, so that they get its usual 404. Its
    page has no script and no style of its own, which the content security policy would stop."""

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:  # noqa: ARG002
        return _PAGE.encode()

    def receive_router(self, router: Router) -> None:
        router.routes = [route for route in router.routes if not route.path_parameters]


class _Document(JsonRenderPlugin):
    """The document as JSON. Its examples are written with links to ``_EXAMPLES``."""

    def __init__(self, samples_url: str | None) -> None:
        super().__init__()
        self._samples_url = samples_url

    def render(self, request: Request[Any, Any, Any], openapi_schema: dict[str, Any]) -> bytes:
        document = super().render(request, openapi_schema)
        if self._samples_url is not None:
            for example, sample in _SAMPLES.items():
                link = f"{self._samples_url}/{sample}"
                document = document.replace(f"{_EXAMPLES}/{example}".encode(), link.encode())
        return document


_EXAMPLES = "https://images.example.com"
_SAMPLES = {
    "person.jpg": "model.png",
    "other.jpg": "model.png",
    "coat.jpg": "outfit.png",
    "hat.jpg": "hat.png",
}

_PAGE = f"""\
<!DOCTYPE html>
<html lang="en">
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>wearon</title>
<link rel="icon" type="image/png" href="{_ASSETS_PATH}/favicon-32x32.png">
<link rel="stylesheet" href="{_ASSETS_PATH}/swagger-ui.css">
<script defer src="{_ASSETS_PATH}/swagger-ui-bundle.js"></script>
<script defer src="{_ASSETS_PATH}/{_START}"></script>
<div id="page"></div>
"""

_SCRIPT = """\
SwaggerUIBundle({
  url: "/schema/openapi.json",
  dom_id: "#page",
  deepLinking: true,
  persistAuthorization: true,
  showExtensions: true,
  showCommonExtensions: true,
});
"""


@get(f"{_ASSETS_PATH}/{{name:str}}", include_in_schema=False)
async def get_asset(name: FromPath[str]) -> Response[str] | File:
    """One of the page's assets. (Litestar's static files return 500 for invalid file names.)"""
    if name == _START:
        return Response(_SCRIPT, media_type="text/javascript")
    if name not in _ASSETS:
        raise NotFound(name)
    path = _swagger_ui_files() / name
    return File(path, filename=name, content_disposition_type="inline")


@cache
def _swagger_ui_files() -> Path:
    """Swagger UI's files, from the package swagger-ui-py, whose code we do not use."""
    package = find_spec("swagger_ui")
    if package is None or package.origin is None:
        raise RuntimeError("swagger-ui-py is not installed")
    return Path(package.origin).parent / "static"
