"""Server-sent events: streams of the states of sessions, each as a plain ASGI application.

Litestar declares the routes, for routing and for the API's description. Its response would cost
each open stream a generator and a task more.
"""

import asyncio
import random
import re
from collections.abc import Sequence
from typing import Annotated
from urllib.parse import parse_qsl
from uuid import UUID

import msgspec
from litestar import get
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.params import HeaderParameter, QueryParameter
from litestar.types import HTTPScope, Receive, Scope, Send

from domain.callers import Caller
from domain.changes import NEVER_READ
from domain.errors import InvalidInput, NotFound
from domain.sessions import FINAL_REVISION, GenerationSession
from domain.views import SessionViews
from domain.watches import Watch
from domain.watching import MAX_IDS, Watching
from entrypoints.http.access import for_shoppers_too
from entrypoints.http.disconnects import ended_by_disconnect
from entrypoints.http.door import Door
from entrypoints.http.inputs import SessionIdInPath, check_query
from entrypoints.http.openapi import failures
from entrypoints.http.schemas import Session

EVENT_TAGS = ["Events"]
EVENT = "generation"
CHECK_SECONDS = 60.0
"""How long the credential of an open stream is trusted. Checked when the stream is woken next, so
with the pings, a stream outlives its credential by at most two minutes."""

_PING = b": ping\n\n"
_MIN_RETRY_MS, _MAX_RETRY_MS = 1_000, 3_000
_HEADERS = (
    (b"content-type", b"text/event-stream"),
    (b"x-accel-buffering", b"no"),  # nginx passes each event on at once.
)
_EVENT_ID = re.compile(rb"[0-9]{1,10}")
_encode = msgspec.json.Encoder().encode

LastEventId = Annotated[
    str | None,
    HeaderParameter(
        name="Last-Event-ID",
        pattern="^[0-9]{1,10}$",
        description="The `id` of the last event that you have: only newer states are sent.",
    ),
]
_UUID = "[0-9a-fA-F]{8}-(?:[0-9a-fA-F]{4}-){3}[0-9a-fA-F]{12}"
Ids = Annotated[
    str | None,
    QueryParameter(
        pattern=f"^{_UUID}(?:,{_UUID}){{0,{MAX_IDS - 1}}}$",
        description=f"Up to {MAX_IDS} of your sessions, separated by commas. Without it: all that"
        " change from now on.",
    ),
]


class EventStreams:
    """Sends a client the states of its sessions until their end, or until it is to come again."""

    def __init__(self, *, door: Door, watching: Watching, views: SessionViews) -> None:
        self._door = door
        self._watching = watching
        self._views = views

    async def of_session(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application of ``/generations/{session_id}/events``."""
        assert scope["type"] == ScopeType.HTTP  # noqa: S101 - no other type has this path
        check_query(scope["query_string"])
        after = _last_event_id(scope)
        ids = [_session_id(scope["path_params"]["session_id"])]
        await self._stream(scope, receive, send, ids=ids, after=after)

    async def of_caller(self, scope: Scope, receive: Receive, send: Send) -> None:
        """The application of ``/events``."""
        assert scope["type"] == ScopeType.HTTP  # noqa: S101 - no other type has this path
        await self._stream(scope, receive, send, ids=_ids(scope["query_string"]))

    async def _stream(
        self,
        scope: HTTPScope,
        receive: Receive,
        send: Send,
        *,
        ids: Sequence[UUID] | None,
        after: int = NEVER_READ,
    ) -> None:
        async with self._watching.watch(scope["user"], ids, after=after) as watch:
            # 204 tells an EventSource to stop: with any other answer, it would come again.
            is_complete = watch.is_over
            headers = [] if is_complete else [*_HEADERS]
            status = 204 if is_complete else 200
            await send({"type": "http.response.start", "status": status, "headers": headers})
            if not (is_complete or scope["state"].get("is_head")):
                async with ended_by_disconnect(receive, watch):
                    await self._follow(watch, scope, send)
            await _send(send, b"", more=False)

    async def _follow(self, watch: Watch, scope: HTTPScope, send: Send) -> None:
        """Send what is new, while the client's credential is valid."""
        now = asyncio.get_running_loop().time
        await _send(send, _retry())
        check_at = now() + CHECK_SECONDS
        while (news := await watch.next()) is not None:
            if now() >= check_at:
                if not await self._door.still_admits(scope):
                    return
                check_at = now() + CHECK_SECONDS
            await _send(send, self._events(scope["user"], news) or _PING)

    def _events(self, caller: Caller, sessions: Sequence[GenerationSession]) -> bytes:
        return b"".join(self._event(caller, session) for session in sessions)

    def _event(self, caller: Caller, session: GenerationSession) -> bytes:
        data = _encode(Session.seen_by(caller, self._views.view_of(session)))
        return b"id: %d\nevent: %s\ndata: %s\n\n" % (session.revision, EVENT.encode(), data)


async def _send(send: Send, body: bytes, *, more: bool = True) -> None:
    await send({"type": "http.response.body", "body": body, "more_body": more})


def _retry() -> bytes:
    """When to come again after the stream has ended: not all clients at once."""
    return b"retry: %d\n\n" % random.randint(_MIN_RETRY_MS, _MAX_RETRY_MS)  # noqa: S311


def _last_event_id(scope: HTTPScope) -> int:
    given = [value for name, value in scope["headers"] if name == b"last-event-id"]
    if not given or given == [b""]:
        return NEVER_READ
    if len(given) > 1 or not _EVENT_ID.fullmatch(given[0]):
        raise InvalidInput("Last-Event-ID", "is not the id of an event of this stream")
    return min(int(given[0]), FINAL_REVISION)


def _session_id(text: str) -> UUID:
    """As for other routes, a malformed id is one that does not exist."""
    try:
        return msgspec.convert(text, UUID)
    except msgspec.ValidationError as error:
        raise NotFound("No such generation") from error


def _ids(query: bytes) -> list[UUID] | None:
    check_query(query, {"ids"})
    given = dict(parse_qsl(query.decode(), keep_blank_values=True))
    if "ids" not in given:
        return None
    texts = given["ids"].split(",")
    if len(texts) > MAX_IDS:
        raise InvalidInput("ids", f"at most {MAX_IDS} are possible")
    try:
        return list(dict.fromkeys(msgspec.convert(texts, list[UUID])))
    except msgspec.ValidationError as error:
        raise InvalidInput("ids", "must be ids of sessions, separated by commas") from error


def declare_streams(streams: EventStreams) -> list[HTTPRouteHandler]:
    """The routes' declarations. The applications of ``streams`` take the place of the handlers."""

    @get(
        "/generations/{session_id:str}/events",
        opt=for_shoppers_too(),
        middleware=[lambda app: streams.of_session],  # noqa: ARG005 - Litestar passes it by name
        tags=EVENT_TAGS,
        summary="Follow a session",
        media_type="text/event-stream",
        response_description="Server-sent events, until the session is final.",
        responses={
            204: ResponseSpec(None, description="You have the final state already."),
            **failures(401, 403, 404, 429, 503),
        },
    )
    async def follow_session(  # Litestar reads its signature, and never calls it.
        session_id: SessionIdInPath,  # noqa: ARG001
        last_event_id: LastEventId = None,  # noqa: ARG001
    ) -> str:
        """The session's current state, then each newer one; the stream ends after the final one.
        States in between may be skipped, the last one never is.

        An event is `generation`. Its `data` is the session as a read shows it, in one line, with
        `queue_position` null. Its `id` is the session's revision, which only increases. After a
        break, ask again with `Last-Event-ID`: you get what is newer, and a 204 if nothing will
        be. The server ends a stream after some time, and when it stops: come again."""
        raise AssertionError("Litestar calls the middleware instead")

    @get(
        "/events",
        opt=for_shoppers_too(),
        middleware=[lambda app: streams.of_caller],  # noqa: ARG005 - Litestar passes it by name
        tags=EVENT_TAGS,
        summary="Follow sessions",
        media_type="text/event-stream",
        response_description="Server-sent events of your sessions.",
        responses=failures(401, 403, 404, 429, 503),
    )
    async def follow_sessions(  # Litestar reads its signature, and never calls it.
        ids: Ids = None,  # noqa: ARG001
    ) -> str:
        """With `ids`: first the current state of each of these sessions, then every newer one; the
        stream ends once all are final. To resume, ask again for those that are not final yet.

        Without `ids`: the states of all your sessions that change from now on. That does not
        resume: after a break, read again what you wait for."""
        raise AssertionError("Litestar calls the middleware instead")

    return [follow_session, follow_sessions]
