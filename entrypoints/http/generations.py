"""Generations: ask for one, see what became of it, take it back."""

from datetime import UTC, datetime, timedelta
from typing import Annotated
from uuid import UUID

import msgspec
from litestar import Response, get, post
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg, QueryParameter
from msgspec import Meta

from domain.credits import Owner
from domain.ports import Position, Receipt, SessionReadPort
from domain.sessions import GenerationSession, SessionStatus
from domain.submission import Submission, TryOnRequest
from domain.views import SessionViews
from entrypoints.http.inputs import (
    Cursor,
    CursorText,
    IdempotencyKey,
    Injected,
    Limit,
    NewGenerationBody,
    OwnedRequest,
    SessionIdInPath,
    check_given_once,
)
from entrypoints.http.openapi import failures
from entrypoints.http.schemas import (
    NewGeneration,
    Session,
    SessionEnvelope,
    SessionPage,
    SessionPageEnvelope,
    Stats,
    StatsEnvelope,
    Submitted,
    SubmittedEnvelope,
)

StatusFilter = Annotated[
    SessionStatus | None, QueryParameter(description="Only sessions in this status.")
]

_EXAMPLE = {
    "model_image_url": "https://images.example.com/person.jpg",
    "outfit_image_url": "https://images.example.com/coat.jpg",
    "accessories": [{"type": "hat", "url": "https://images.example.com/hat.jpg"}],
}
Body = Annotated[NewGeneration, BodyKwarg(examples=[Example(value=_EXAMPLE)])]

_TAGS = ["Generations"]
_EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
_MICROSECOND = timedelta(microseconds=1)
_Microseconds = Annotated[
    int, Meta(ge=0, lt=(datetime.max.replace(tzinfo=UTC) - _EPOCH) // _MICROSECOND)
]
_CURSOR: Cursor[tuple[int, UUID]] = Cursor(msgspec.json.Decoder(tuple[_Microseconds, UUID]))


@post(
    "/generations",
    status_code=202,
    dto=NewGenerationBody,
    return_dto=None,
    tags=_TAGS,
    summary="Ask for a picture",
    response_description="Accepted and paid; the picture is on its way.",
    responses=failures(401, 402, 413, 415, 422, 429, 503),
)
async def submit_generation(
    request: OwnedRequest,
    data: Body,
    submission: Injected[Submission],
    idempotency_key: IdempotencyKey = None,
) -> Response[SubmittedEnvelope]:
    """Takes one credit and queues the work. After a 202 the session will reach a final status:
    `completed` with a picture, or `failed` with the credit back. Ask at `status_url`.
    After a 503 the credit is back, or comes back by itself.

    With an `Idempotency-Key` you may repeat a request, whatever became of the first one: you are
    charged once and get the same session, as it is now, with `Idempotency-Replayed: true`."""
    check_given_once(request, "idempotency-key")
    info = request.scope["state"]["request_info"]
    receipt = await submission.submit(
        try_on(data, owner=request.user, request_id=info["request_id"], key=idempotency_key)
    )
    info["session_id"] = receipt.session.id
    headers, envelope = accepted(receipt)
    return Response(envelope, headers=headers)


def accepted(receipt: Receipt) -> tuple[dict[str, str], SubmittedEnvelope]:
    """The headers and the body of the answer to a request that was accepted."""
    submitted = Submitted.of(receipt)
    headers = {"Location": submitted.status_url}
    if receipt.replayed:
        headers["Idempotency-Replayed"] = "true"
    return headers, SubmittedEnvelope(data=submitted, error=None)


def try_on(data: NewGeneration, *, owner: Owner, request_id: str, key: str | None) -> TryOnRequest:
    """What the body and the headers of a request ask for. Raises InvalidInput."""
    return TryOnRequest(owner=owner, request_id=request_id, input=data.asked(), idempotency_key=key)


@get(
    "/generations",
    tags=_TAGS,
    summary="List your sessions",
    response_description="A part of your sessions, newest first.",
    responses=failures(401, 503),
)
async def list_generations(
    *,
    request: OwnedRequest,
    sessions: Injected[SessionReadPort],
    views: Injected[SessionViews],
    status: StatusFilter = None,
    limit: Limit = 20,
    cursor: CursorText = None,
) -> SessionPageEnvelope:
    """Newest first, up to `limit` at a time. `queue_position` is null here."""
    found = await sessions.history(
        request.user, status=status, limit=limit + 1, after=_position(cursor)
    )
    items = [Session.of(views.view_of(session)) for session in found[:limit]]
    next_cursor = _cursor(found[limit - 1]) if len(found) > limit else None
    return SessionPageEnvelope(data=SessionPage(items=items, next_cursor=next_cursor), error=None)


def _position(cursor: str | None) -> Position | None:
    if cursor is None:
        return None
    microseconds, session_id = _CURSOR.decode(cursor)
    return Position(created_at=_EPOCH + microseconds * _MICROSECOND, id=session_id)


def _cursor(session: GenerationSession) -> str:
    return _CURSOR.encode(((session.created_at - _EPOCH) // _MICROSECOND, session.id))


@get(
    "/generations/stats",
    tags=_TAGS,
    summary="Count your sessions",
    response_description="Your sessions, counted by status.",
    responses=failures(401, 503),
)
async def count_generations(
    request: OwnedRequest, sessions: Injected[SessionReadPort]
) -> StatsEnvelope:
    """How many sessions you have, by status."""
    return StatsEnvelope(data=Stats.of(await sessions.stats(request.user)), error=None)


@get(
    "/generations/{session_id:str}",
    tags=_TAGS,
    summary="See one session",
    response_description="The session as it is now.",
    responses=failures(401, 404, 503),
)
async def get_generation(
    request: OwnedRequest, session_id: SessionIdInPath, views: Injected[SessionViews]
) -> SessionEnvelope:
    """The session, with its picture once it is completed. Ask about once a second until `status`
    is `completed` or `failed`."""
    return SessionEnvelope(data=Session.of(await views.get(session_id, request.user)), error=None)


@post(
    "/generations/{session_id:str}/cancel",
    status_code=200,
    tags=_TAGS,
    summary="Take a request back",
    response_description="The session, failed as `CANCELLED`; its credit is back.",
    responses=failures(401, 404, 409, 503),
)
async def cancel_generation(
    request: OwnedRequest,
    session_id: SessionIdInPath,
    submission: Injected[Submission],
    views: Injected[SessionViews],
) -> SessionEnvelope:
    """Possible while the session is `queued`; afterwards the answer is 409."""
    session = await submission.cancel(session_id, request.user)
    return SessionEnvelope(data=Session.of(views.view_of(session)), error=None)


GENERATION_HANDLERS = (
    submit_generation,
    list_generations,
    count_generations,
    get_generation,
    cancel_generation,
)
