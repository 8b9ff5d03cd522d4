"""Generations: list, read, cancel and erase them. ``submit`` creates them."""

from typing import Annotated

from litestar import Response, delete, get, post
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import QueryParameter

from domain.callers import Caller, CallerKind
from domain.client_tokens import check_shopper_id
from domain.erasure import Erasure
from domain.errors import InvalidInput
from domain.links import LinkRules
from domain.ports import SessionReadPort
from domain.requests import TryOnRequest
from domain.sessions import SessionStatus
from domain.submission import Submission
from domain.views import SessionViews
from entrypoints.http.access import for_shoppers_too
from entrypoints.http.inputs import (
    CursorText,
    Injected,
    Limit,
    OwnedRequest,
    SessionIdInPath,
    cursor_after,
    position_after,
)
from entrypoints.http.openapi import failures
from entrypoints.http.prefer import Prefer, Waits, applied, wait_seconds
from entrypoints.http.rates import as_text
from entrypoints.http.request_info import RequestInfo
from entrypoints.http.schemas import (
    NewGeneration,
    Session,
    SessionEnvelope,
    SessionPage,
    SessionPageEnvelope,
    Stats,
    StatsEnvelope,
)

StatusFilter = Annotated[
    SessionStatus | None, QueryParameter(description="Only sessions in this status.")
]

ShopperFilter = Annotated[
    str | None,
    QueryParameter(description="Stores only: only sessions of this shopper, by your own id."),
]

GENERATION_TAGS = ["Generations"]


def try_on(
    data: NewGeneration, *, caller: Caller, info: RequestInfo, key: str | None, links: LinkRules
) -> TryOnRequest:
    """The request that body and headers describe. Raises InvalidInput."""
    return TryOnRequest(
        caller=caller,
        request_id=info["request_id"],
        input=data.asked(),
        idempotency_key=key,
        traceparent=info.get("traceparent"),
        links=links,
    )


@get(
    "/generations",
    opt=for_shoppers_too(),
    tags=GENERATION_TAGS,
    summary="List your sessions",
    response_description="One page of your sessions, newest first.",
    responses=failures(401, 403, 503),
)
async def list_generations(
    *,
    request: OwnedRequest,
    sessions: Injected[SessionReadPort],
    views: Injected[SessionViews],
    status: StatusFilter = None,
    limit: Limit = 20,
    cursor: CursorText = None,
    shopper_id: ShopperFilter = None,
) -> SessionPageEnvelope:
    """Newest first, up to `limit` per page. `queue_position` is always null here."""
    caller = request.user
    found = await sessions.history(
        caller.owner,
        status=status,
        limit=limit + 1,
        after=position_after(cursor),
        shopper_id=_shopper(caller, shopper_id),
    )
    items = [Session.seen_by(caller, views.view_of(session)) for session in found[:limit]]
    next_cursor = cursor_after(found[limit - 1]) if len(found) > limit else None
    return SessionPageEnvelope(data=SessionPage(items=items, next_cursor=next_cursor), error=None)


def _shopper(caller: Caller, asked: str | None) -> str | None:
    """Whose sessions to list. Shoppers and users cannot ask for a shopper's."""
    if asked is None:
        return caller.shopper_id
    if caller.kind is not CallerKind.STORE:
        raise InvalidInput("shopper_id", "only stores may give it")
    check_shopper_id(asked)
    return asked


@get(
    "/generations/stats",
    opt=for_shoppers_too(),
    tags=GENERATION_TAGS,
    summary="Count your sessions",
    response_description="The number of your sessions, by status.",
    responses=failures(401, 403, 503),
)
async def count_generations(
    request: OwnedRequest, sessions: Injected[SessionReadPort]
) -> StatsEnvelope:
    """The number of your sessions, in total and by status."""
    caller = request.user
    stats = await sessions.stats(caller.owner, shopper_id=caller.shopper_id)
    return StatsEnvelope(data=Stats.of(stats), error=None)


@get(
    "/generations/{session_id:str}",
    opt=for_shoppers_too(),
    tags=GENERATION_TAGS,
    summary="Get a session",
    response_description="The session's current state.",
    responses=failures(401, 403, 404, 503),
)
async def get_generation(
    request: OwnedRequest,
    session_id: SessionIdInPath,
    views: Injected[SessionViews],
    waits: Injected[Waits],
    prefer: Prefer = None,  # noqa: ARG001 - read from the headers
) -> Response[SessionEnvelope]:
    """The session, with its picture once completed. With `Prefer: wait=N`, the answer comes once
    `status` is `completed` or `failed`, after N seconds at the latest."""
    caller = request.user
    view = await views.get(session_id, caller.owner, shopper_id=caller.shopper_id)
    headers = {}
    seconds = wait_seconds(request.scope["headers"])
    if seconds and not view.session.status.is_final:
        session, has_waited = await waits.final(
            view.session, caller, seconds=seconds, receive=request.receive
        )
        if has_waited:
            headers = as_text([applied(seconds)])
        if session is None:
            view = await views.get(session_id, caller.owner, shopper_id=caller.shopper_id)
        else:
            view = views.view_of(session)
    return Response(
        SessionEnvelope(data=Session.seen_by(caller, view), error=None), headers=headers
    )


@post(
    "/generations/{session_id:str}/cancel",
    status_code=200,
    opt=for_shoppers_too(),
    tags=GENERATION_TAGS,
    summary="Cancel a generation",
    response_description="The session, failed with `CANCELLED`; its credit is refunded.",
    responses={
        202: ResponseSpec(
            SessionEnvelope,
            description="The session, still `processing`; its cancellation is requested.",
            generate_examples=False,
        ),
        **failures(401, 403, 404, 409, 503),
    },
)
async def cancel_generation(
    request: OwnedRequest,
    session_id: SessionIdInPath,
    submission: Injected[Submission],
    views: Injected[SessionViews],
) -> Response[SessionEnvelope]:
    """A `queued` session fails at once: 200. A `processing` one is told to stop: 202. It soon fails
    with `CANCELLED` and a refund, unless its picture is there already: then it is `completed`. It
    is never `queued` again. Repeating it is safe. A final session cannot be cancelled: 409."""
    caller = request.user
    session = await submission.cancel(session_id, caller.owner, shopper_id=caller.shopper_id)
    envelope = SessionEnvelope(data=Session.seen_by(caller, views.view_of(session)), error=None)
    return Response(envelope, status_code=200 if session.status.is_final else 202)


@delete(
    "/generations/{session_id:str}/picture",
    status_code=200,
    opt=for_shoppers_too(),
    tags=GENERATION_TAGS,
    summary="Erase a generation",
    response_description="The session without its picture, links and prompt.",
    responses=failures(401, 403, 404, 409, 503),
)
async def erase_generation(
    request: OwnedRequest,
    session_id: SessionIdInPath,
    erasure: Injected[Erasure],
    views: Injected[SessionViews],
) -> SessionEnvelope:
    """Deletes the picture, your uploads that this session used, its links and its prompt, at once
    and for good. Status, times and amounts stay. Possible once `status` is final; otherwise 409.
    Repeating it is safe. After a 503 it may not be complete: repeat it."""
    session = await erasure.erase_session(session_id, request.user)
    return SessionEnvelope(data=Session.seen_by(request.user, views.view_of(session)), error=None)


GENERATION_HANDLERS = (
    list_generations,
    count_generations,
    get_generation,
    cancel_generation,
    erase_generation,
)
