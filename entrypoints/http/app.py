"""The application: its routes, their dependencies, and the middleware around them."""

from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from dataclasses import dataclass
from datetime import datetime

from litestar import Litestar, Router
from litestar.di import Provide
from litestar.handlers import HTTPRouteHandler
from litestar.routes import HTTPRoute
from litestar.types import ASGIApp
from msgspec import Struct

from config.logging import AccessLine, logged_access_line
from config.tracing import WrapApp, untraced
from domain.client_tokens import ClientTokens
from domain.erasure import Erasure
from domain.picture_ports import SignedReadPort
from domain.ports import CreditRepoPort, SessionReadPort
from domain.signup import CallerAccounts
from domain.submission import Submission
from domain.uploads import UploadReceiver, Uploads
from domain.views import SessionViews
from domain.watching import Watching
from domain.webhooks import Webhooks
from entrypoints.http import public
from entrypoints.http.admin import ADMIN_HANDLERS, Administration
from entrypoints.http.batch import BATCH_PATH, BatchRoute, declare_batch
from entrypoints.http.client_tokens import CLIENT_TOKEN_HANDLERS
from entrypoints.http.cors import BrowserHeaders
from entrypoints.http.credits import CREDIT_HANDLERS
from entrypoints.http.disconnects import DRAIN
from entrypoints.http.document import complete_document, query_parameters
from entrypoints.http.door import Door
from entrypoints.http.errors import respond
from entrypoints.http.generations import GENERATION_HANDLERS
from entrypoints.http.inputs import AnyRequest, check_is_plain, check_query
from entrypoints.http.middleware import Authentication, RequestContext
from entrypoints.http.openapi import (
    SECURITY_SCHEME,
    get_asset,
    openapi_config,
)
from entrypoints.http.original import ORIGINAL_HANDLERS
from entrypoints.http.playground import (
    PLAYGROUND_PATH,
    Playground,
    declare_playground,
    leading_to,
)
from entrypoints.http.prefer import Waits
from entrypoints.http.schemas import GENERATIONS_PATH
from entrypoints.http.streams import EventStreams, declare_streams
from entrypoints.http.submit import SubmitRoute, declare, fast_path
from entrypoints.http.uploads import offer_upload, put_upload
from entrypoints.http.webhook_document import describe_webhooks
from entrypoints.http.webhooks import WEBHOOK_HANDLERS

Lifespan = Callable[[Litestar], AbstractAsyncContextManager[None]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """The handlers' dependencies, built by the composition root or by a test.

    ``files`` and ``receiver`` are None if the storage serves its links itself; ``samples`` is None
    except in development. ``samples`` raises KeyError for an unknown name. ``playground`` is None
    if the page is not served.
    """

    submission: Submission
    views: SessionViews
    watching: Watching
    sessions: SessionReadPort
    credits: CreditRepoPort
    accounts: CallerAccounts
    door: Door
    readiness: Mapping[str, public.Check]
    uploads: Uploads
    erasure: Erasure
    client_tokens: ClientTokens
    webhooks: Webhooks
    files: SignedReadPort | None
    receiver: UploadReceiver | None
    samples: Callable[[str], bytes] | None
    playground: Playground | None
    clock: Callable[[], datetime]
    administration: Administration


def create_app(
    services: Services,
    *,
    lifespan: Sequence[Lifespan] = (),
    access_line: AccessLine = logged_access_line,
    max_body_bytes: int,
    max_upload_bytes: int,
    https_only: bool = False,
    traced: WrapApp = untraced,
) -> Litestar:
    """The ASGI application. Nothing connects before ``lifespan`` is entered. With ``https_only``,
    browsers are told never to come without TLS again. ``traced`` wraps what answers requests."""
    waits = Waits(services.watching)
    streams = EventStreams(door=services.door, watching=services.watching, views=services.views)
    submit = SubmitRoute(
        door=services.door,
        submission=services.submission,
        waits=waits,
        views=services.views,
        max_body_bytes=max_body_bytes,
    )
    batch = BatchRoute(door=services.door, submission=services.submission)
    parameters: dict[tuple[str, str], Collection[str]] = {}

    async def check_request(request: AnyRequest) -> None:
        if request.method != "OPTIONS":
            route = (request.scope["path_template"], request.method)
            check_query(request.scope["query_string"], parameters.get(route, ()))
            check_is_plain(request.headers.get("content-encoding", ""))

    def drain() -> None:
        services.watching.drain()

    app = Litestar(
        [_api(services, submit, batch, streams), *_public(services, max_upload_bytes), get_asset],
        dependencies={
            "submission": _always(services.submission),
            "views": _always(services.views),
            "waits": _always(waits),
            "sessions": _always(services.sessions),
            "credit_repo": _always(services.credits),
            "accounts": _always(services.accounts),
            "readiness": _always(services.readiness),
            "uploads": _always(services.uploads),
            "erasure": _always(services.erasure),
            "client_tokens": _always(services.client_tokens),
            "webhooks": _always(services.webhooks),
            "files": _always(services.files),
            "receiver": _always(services.receiver),
            "samples": _always(services.samples),
            "clock": _always(services.clock),
            "door": _always(services.door),
            "administration": _always(services.administration),
        },
        before_request=check_request,
        exception_handlers={Exception: respond},
        lifespan=lifespan,
        logging_config=None,
        openapi_config=openapi_config(_samples_url(services)),
        request_max_body_size=max_body_bytes,
    )
    app.state[DRAIN] = drain
    complete_document(app.openapi_schema, _bodies(app))
    describe_webhooks(app.openapi_schema)
    parameters.update(query_parameters(app.openapi_schema))
    # Litestar's own middleware does not see requests that match no route.
    off_router: dict[str, ASGIApp] = {GENERATIONS_PATH: submit, BATCH_PATH: batch}
    app.asgi_handler = RequestContext(
        traced(fast_path(app.asgi_handler, off_router), off_router),
        methods={
            route.path_format: route.methods for route in app.routes if isinstance(route, HTTPRoute)
        },
        access_line=access_line,
        browser_headers=BrowserHeaders(https_only=https_only),
    )
    return app


def _bodies(app: Litestar) -> set[type[Struct]]:
    """What the calls accept as JSON."""
    handlers = [one for route in app.routes for one in getattr(route, "route_handlers", ())]
    fields = [handler.parsed_data_field for handler in handlers]
    return {field.annotation for field in fields if field and field.is_subclass_of(Struct)}


def _api(
    services: Services, submit: SubmitRoute, batch: BatchRoute, streams: EventStreams
) -> Router:
    return Router(
        "/api/v1",
        route_handlers=[
            declare(submit),
            declare_batch(batch),
            *GENERATION_HANDLERS,
            *declare_streams(streams),
            offer_upload,
            *CLIENT_TOKEN_HANDLERS,
            *CREDIT_HANDLERS,
            *WEBHOOK_HANDLERS,
            *ADMIN_HANDLERS,
            *ORIGINAL_HANDLERS,
        ],
        middleware=[_authentication(services.door)],
        security=[{SECURITY_SCHEME: []}],
    )


def _authentication(door: Door) -> Callable[[ASGIApp], ASGIApp]:
    # Litestar deep-copies routers, except for functions: as an argument of DefineMiddleware, the
    # door's authenticator would get a database pool of its own.
    return lambda app: Authentication(app, door)


def _public(services: Services, max_upload_bytes: int) -> list[HTTPRouteHandler | Router]:
    handlers: list[HTTPRouteHandler | Router] = [public.check_live, public.check_ready]
    if services.files is not None:
        handlers.append(public.get_file)
    if services.receiver is not None:
        handlers.append(
            Router("/", route_handlers=[put_upload], request_max_body_size=max_upload_bytes)
        )
    if services.samples is not None:
        handlers.append(public.get_sample)
    if services.playground is None:
        return [*handlers, leading_to("/schema")]
    return [*handlers, leading_to(PLAYGROUND_PATH), *declare_playground(services.playground)]


def _samples_url(services: Services) -> str | None:
    return None if services.playground is None else services.playground.samples_url


def _always(value: object) -> Provide:
    return Provide(lambda: value, sync_to_thread=False)
