"""``POST /api/v1/generations``: the whole route as a plain ASGI application.

It is the busiest route, and Litestar would account for most of a request's cost. Litestar still
declares the route: for the API's description, and for routing requests off the fast path to it.
"""

from collections.abc import Awaitable, Mapping
from typing import Annotated

import msgspec
from litestar import post
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.datastructures import ResponseSpec
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg
from litestar.types import ASGIApp, HTTPScope, Receive, Scope, Send

from config.metrics import SUBMISSIONS
from domain.callers import Caller
from domain.errors import Unconfirmed
from domain.ports import Receipt
from domain.requests import TryOnRequest
from domain.submission import Submission
from domain.views import SessionViews
from entrypoints.http.access import for_shoppers_too
from entrypoints.http.cors import Header
from entrypoints.http.door import Door
from entrypoints.http.errors import answer_to
from entrypoints.http.generations import GENERATION_TAGS, try_on
from entrypoints.http.inputs import IdempotencyKey, decoded
from entrypoints.http.openapi import failures
from entrypoints.http.prefer import Prefer, Waits, applied, wait_seconds
from entrypoints.http.rates import rate_headers
from entrypoints.http.reception import Reception, Reply, reply_to, respond
from entrypoints.http.request_info import RequestInfo
from entrypoints.http.schemas import (
    NewGeneration,
    Session,
    SessionEnvelope,
    Submitted,
    SubmittedEnvelope,
)

_EXAMPLE = {
    "model_image_url": "https://images.example.com/person.jpg",
    "outfit_image_url": "https://images.example.com/coat.jpg",
    "accessories": [{"type": "hat", "url": "https://images.example.com/hat.jpg"}],
}
Body = Annotated[NewGeneration, BodyKwarg(examples=[Example(value=_EXAMPLE)])]

_ACCESS = for_shoppers_too()
_decoder = msgspec.json.Decoder(NewGeneration)


class SubmitRoute:
    """Answers every request that it gets, also with errors, which it never raises."""

    def __init__(
        self,
        *,
        door: Door,
        submission: Submission,
        waits: Waits,
        views: SessionViews,
        max_body_bytes: int,
    ) -> None:
        self._reception = Reception(door=door, options=_ACCESS, max_body_bytes=max_body_bytes)
        self._submission = submission
        self._waits = waits
        self._views = views

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP  # noqa: S101 - no other type has this path and method
        info: RequestInfo = scope["state"]["request_info"]
        try:
            request = await self._request(scope, receive, info)
            receipt = await self._submission.submit(request)
            info["session_id"] = receipt.session.id
            reply: Reply = accepted(receipt)
            SUBMISSIONS.inc(outcome_of(receipt))
            if seconds := wait_seconds(scope["headers"]):
                reply = await self._waited(reply, receipt, request.caller, seconds, receive)
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is unexpected
            reply = reply_to(error)
            SUBMISSIONS.inc(outcome_of(error))
        await respond(send, reply)

    async def _waited(
        self, reply: Reply, receipt: Receipt, caller: Caller, seconds: int, receive: Receive
    ) -> Reply:
        """The final session if there is one in time, else ``reply``. The request is accepted, so
        no fault of the wait changes that."""
        session, has_waited = await self._waits.final(
            receipt.session, caller, seconds=seconds, receive=receive
        )
        status, headers, envelope = reply
        if has_waited:
            headers = [*headers, applied(seconds)]
        if session is None:
            return status, headers, envelope
        view = self._views.view_of(session)
        return 200, headers, SessionEnvelope(data=Session.seen_by(caller, view), error=None)

    async def _request(self, scope: HTTPScope, receive: Receive, info: RequestInfo) -> TryOnRequest:
        """Raises the errors that ``envelope_for`` knows."""
        caller, body, key = await self._reception.receive(scope, receive, info)
        data = decoded(body, _decoder)
        links = self._submission.links
        return try_on(data, caller=caller, info=info, key=key, links=links)


def outcome_of(submitted: Receipt | Exception) -> str:
    """What a submission came to, as the metrics name it: the code of a refusal."""
    if isinstance(submitted, Receipt):
        return "replayed" if submitted.replayed else "accepted"
    return answer_to(submitted).code


def fast_path(app: ASGIApp, posts: Mapping[str, ASGIApp]) -> ASGIApp:
    """``app``, bypassed by POST requests for one of the paths in ``posts``. Litestar leads other
    spellings of these paths there as well, and answers other methods."""

    def route(scope: Scope, receive: Receive, send: Send) -> Awaitable[None]:
        bypass = posts.get(scope["path"])
        return (bypass if bypass and scope.get("method") == "POST" else app)(scope, receive, send)

    return route


def declare(submit: ASGIApp) -> HTTPRouteHandler:
    """The route's declaration, for routing and the OpenAPI document. ``submit`` takes the place of
    its handler."""

    @post(
        "/generations",
        status_code=202,
        opt=_ACCESS,
        middleware=[lambda app: submit],  # noqa: ARG005 - Litestar passes it by name
        tags=GENERATION_TAGS,
        summary="Create a generation",
        response_description="Accepted and charged; the picture will be generated.",
        responses={
            200: ResponseSpec(
                SessionEnvelope,
                description="The final session, after a wait.",
                generate_examples=False,
            ),
            **failures(401, 402, 403, Unconfirmed, 413, 415, 422, 429, 503),
        },
    )
    async def submit_generation(  # Litestar reads its signature, and never calls it.
        data: Body,  # noqa: ARG001
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001
        prefer: Prefer = None,  # noqa: ARG001
    ) -> SubmittedEnvelope:
        """Takes one credit and queues the work. After a 202 the session will reach a final status:
        `completed` with a picture, or `failed` with the credit refunded. Follow it by its events,
        or poll `status_url`. With `Prefer: wait=N` the answer is a 200 with the final session if
        there is one within N seconds, else the 202.
        After a 503 the credit is refunded, now or automatically later.

        With an `Idempotency-Key` you can repeat a request, whatever the first response was: you are
        charged once and get the same session, in its current state, with
        `Idempotency-Replayed: true`. While it is not known whether the first request is accepted,
        a repetition waits, and gets a 409 with `Retry-After` in the end."""
        raise AssertionError("Litestar calls the middleware instead")

    return submit_generation


def accepted(receipt: Receipt) -> tuple[int, list[Header], SubmittedEnvelope]:
    """The status, headers and body of the answer to an accepted request."""
    submitted = Submitted.of(receipt)
    rates = () if receipt.session.shopper else receipt.rates  # They are the store's.
    headers = [(b"location", submitted.status_url.encode()), *rate_headers(rates)]
    if receipt.replayed:
        headers.append((b"idempotency-replayed", b"true"))
    return 202, headers, SubmittedEnvelope(data=submitted, error=None)
