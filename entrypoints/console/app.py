"""The console's application: its routes, and the headers of every answer."""

from collections.abc import Callable, Sequence
from contextlib import AbstractAsyncContextManager
from http import HTTPStatus
from typing import Any

import structlog
from litestar import Litestar, Response, get
from litestar.di import Provide
from litestar.enums import ScopeType
from litestar.params import FromPath
from litestar.types import Message, Receive, Scope, Send

from domain.errors import NotFound, Unavailable
from entrypoints.console.acting import action_handlers
from entrypoints.console.auth import LOGIN_HANDLERS, NotSignedIn, door, to_login
from entrypoints.console.costs import costs
from entrypoints.console.pace import pace
from entrypoints.console.pages import READ_HANDLERS
from entrypoints.console.rendering import (
    Pages,
    StaticFile,
    json_response,
    person_of,
    static_files,
    wants_json,
)
from entrypoints.console.services import Services
from entrypoints.http.disconnects import DRAIN
from entrypoints.http.errors import envelope_for
from entrypoints.http.inputs import AnyRequest, Injected

MAX_BODY_BYTES = 65_536
_YEAR = 31_536_000

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]

log = structlog.get_logger(__name__)


def create_app(services: Services, *, lifespan: Sequence[Lifespan] = ()) -> Litestar:
    """The ASGI application. Nothing connects before ``lifespan`` is entered."""
    files = static_files()
    pages = Pages(access=services.access, setup=services.setup, files=files)

    def respond(request: AnyRequest, error: Exception) -> Response[Any]:
        return _error_page(request, error, pages)

    app = Litestar(
        [
            go_to_console,
            get_static,
            *LOGIN_HANDLERS,
            *READ_HANDLERS,
            costs,
            pace,
            *action_handlers(),
        ],
        dependencies={
            "services": _always(services),
            "pages": _always(pages),
            "files": _always(files),
        },
        before_request=door(services),
        exception_handlers={Exception: respond},
        lifespan=lifespan,
        logging_config=None,
        openapi_config=None,
        request_max_body_size=MAX_BODY_BYTES,
    )
    app.state[DRAIN] = lambda: None
    app.asgi_handler = _Headers(app.asgi_handler, policy(services.setup.picture_origin))
    return app


def policy(picture_origin: str | None) -> str:
    """The content security policy: scripts, styles and pictures of ours, and nothing else."""
    pictures = "'self'" if picture_origin is None else f"'self' {picture_origin}"
    return (
        "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self';"
        f" img-src {pictures}; form-action 'self'; frame-ancestors 'none'; base-uri 'none'"
    )


@get("/")
async def go_to_console() -> Response[None]:
    return Response(None, status_code=307, headers={"Location": "/console"})


@get("/console/static/{name:str}")
async def get_static(
    files: Injected[dict[str, StaticFile]], name: FromPath[str]
) -> Response[bytes]:
    """For a year: the pages name each version by its hash."""
    if (file := files.get(name)) is None:
        raise NotFound(name)
    headers = {"Cache-Control": f"public, max-age={_YEAR}, immutable"}
    return Response(file.data, media_type=file.media_type, headers=headers)


def _error_page(request: AnyRequest, error: Exception, pages: Pages) -> Response[Any]:
    if isinstance(error, NotSignedIn) and not wants_json(request):
        return to_login(request)
    status, headers, envelope = envelope_for(error)
    if wants_json(request):
        response = json_response(envelope, status)
        response.headers.update(headers)
        return response
    data = {
        "heading": HTTPStatus(status).phrase,
        "message": envelope.error.message,
        # Operators may know which server does not answer, and why.
        "detail": str(error.cause) if isinstance(error, Unavailable) and _known(request) else "",
    }
    html = pages.render(request, "error.html", data)
    kept = {name: value for name, value in headers.items() if name == "Retry-After"}
    return Response(html, status_code=status, headers=kept, media_type="text/html")


def _known(request: AnyRequest) -> bool:
    return person_of(request) is not None


class _Headers:
    """Adds the headers of every answer. Pages are never cached."""

    def __init__(self, app: Callable[..., Any], content_policy: str) -> None:
        self._app = app
        self._added = [
            (b"content-security-policy", content_policy.encode()),
            (b"x-content-type-options", b"nosniff"),
            (b"referrer-policy", b"same-origin"),
            (b"cross-origin-opener-policy", b"same-origin"),
            (b"cross-origin-resource-policy", b"same-origin"),
        ]

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != ScopeType.HTTP:
            await self._app(scope, receive, send)
            return
        method = scope["method"]

        async def send_with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                headers = [*message["headers"], *self._added]
                if not any(name.lower() == b"cache-control" for name, _ in headers):
                    headers.append((b"cache-control", b"no-store"))
                message["headers"] = headers
                # The route, because the path of a one-time link is a secret.
                log.info(
                    "console_request",
                    method=method,
                    route=scope.get("path_template", ""),
                    status=message["status"],
                    operator=getattr(scope.get("state", {}).get("person"), "name", None),
                )
            await send(message)

        await self._app(scope, receive, send_with_headers)


def _always(value: object) -> Provide:
    return Provide(lambda: value, sync_to_thread=False)
