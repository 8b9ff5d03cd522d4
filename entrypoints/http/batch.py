"""``POST /api/v1/generations/batch``: up to 100 requests in one, as a plain ASGI application like
``submit``."""

from collections.abc import Sequence
from typing import Annotated, TypeAlias

import msgspec
from litestar import post
from litestar.enums import ScopeType
from litestar.handlers import HTTPRouteHandler
from litestar.openapi.spec import Example
from litestar.params import BodyKwarg
from litestar.types import ASGIApp, Receive, Scope, Send
from msgspec import Meta, Raw, Struct

from config.metrics import SUBMISSIONS
from domain.callers import Caller
from domain.errors import InvalidInput, RateLimited, Suspended
from domain.ports import Receipt
from domain.requests import TryOnRequest, check_key, item_key
from domain.submission import Submission
from entrypoints.http.batch_schemas import (
    MAX_ITEMS,
    BatchAnswers,
    BatchEnvelope,
    BatchItem,
    ItemAnswer,
    NewBatch,
)
from entrypoints.http.cors import Header
from entrypoints.http.door import Door
from entrypoints.http.errors import envelope_for
from entrypoints.http.generations import GENERATION_TAGS, try_on
from entrypoints.http.inputs import IdempotencyKey, check_outer_names, converted, decoded
from entrypoints.http.openapi import failures
from entrypoints.http.rates import rate_headers
from entrypoints.http.reception import Reception, Reply, reply_to, respond
from entrypoints.http.request_info import RequestInfo
from entrypoints.http.schemas import GENERATIONS_PATH
from entrypoints.http.submit import outcome_of

BATCH_PATH = f"{GENERATIONS_PATH}/batch"
MAX_BATCH_BYTES = 2_000_000

Outcome: TypeAlias = Receipt | Exception

_EXAMPLE = {
    "items": [
        {
            "model_image_url": "https://images.example.com/person.jpg",
            "outfit_image_url": "https://images.example.com/coat.jpg",
            "idempotency_key": "order-4711",
        },
        {"model_image_url": "https://images.example.com/other.jpg"},
    ]
}
Body = Annotated[NewBatch, BodyKwarg(examples=[Example(value=_EXAMPLE)])]


class _RawBatch(Struct, forbid_unknown_fields=True):
    items: Annotated[list[Raw], Meta(min_length=1, max_length=MAX_ITEMS)]


_decoder = msgspec.json.Decoder(NewBatch)
_raw_decoder = msgspec.json.Decoder(_RawBatch)
_item_decoder = msgspec.json.Decoder(BatchItem)


class BatchRoute:
    """Answers every request that it gets, also with errors, which it never raises."""

    def __init__(self, *, door: Door, submission: Submission) -> None:
        self._reception = Reception(door=door, options={}, max_body_bytes=MAX_BATCH_BYTES)
        self._submission = submission

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        assert scope["type"] == ScopeType.HTTP  # noqa: S101 - no other type has this path and method
        info: RequestInfo = scope["state"]["request_info"]
        try:
            caller, body, key = await self._reception.receive(scope, receive, info)
            reply = _reply(await self._outcomes(caller, body, key, info))
        except Exception as error:  # noqa: BLE001 - answered, and logged if it is unexpected
            reply = reply_to(error)
            SUBMISSIONS.inc(outcome_of(error))
        await respond(send, reply)

    async def _outcomes(
        self, caller: Caller, body: bytes, key: str | None, info: RequestInfo
    ) -> Sequence[Outcome]:
        """One per item. An item that is no valid request does not affect the others."""
        items = _items(body)
        if key is not None:
            check_key(key)
            check_key(item_key(key, len(items) - 1))
        links = self._submission.links
        asked: list[TryOnRequest | InvalidInput] = []
        for index, item in enumerate(items):
            if isinstance(item, InvalidInput):
                asked.append(item)
                continue
            of_item = item.idempotency_key or (None if key is None else item_key(key, index))
            try:
                request = try_on(item, caller=caller, info=info, key=of_item, links=links)
                asked.append(request)
            except InvalidInput as error:
                asked.append(error)
        valid = [one for one in asked if isinstance(one, TryOnRequest)]
        submitted = await self._submission.submit_many(valid)
        suspended = [one for one in submitted if isinstance(one, Suspended)]
        if suspended and len(suspended) == len(submitted):  # It concerns the owner, so the call.
            raise suspended[0]
        outcomes = iter(submitted)
        return [next(outcomes) if isinstance(one, TryOnRequest) else one for one in asked]


def _items(body: bytes) -> Sequence[BatchItem | InvalidInput]:
    """Raises InvalidInput if the body is no batch."""
    try:
        return decoded(body, _decoder).items
    except InvalidInput:
        raw_items = converted(body, _raw_decoder).items
        check_outer_names(body)
        return [_item(bytes(raw)) for raw in raw_items]


def _item(raw: bytes) -> BatchItem | InvalidInput:
    try:
        return decoded(raw, _item_decoder)
    except InvalidInput as error:
        return error


def _reply(outcomes: Sequence[Outcome]) -> Reply:
    """Rates are those after the last item that counted, Retry-After is the longest of all items."""
    failed: dict[tuple[type[Exception], str], ItemAnswer] = {}
    retry_after_seconds = 0
    items: list[ItemAnswer] = []
    headers: list[Header] = []
    for outcome in outcomes:
        SUBMISSIONS.inc(outcome_of(outcome))
        if isinstance(outcome, Receipt):
            items.append(ItemAnswer.accepted(outcome))
            if outcome.rates:
                headers = rate_headers(outcome.rates)
            continue
        kind = (type(outcome), str(outcome))
        if kind not in failed:  # Logged once.
            status, of_error, envelope = envelope_for(outcome)
            failed[kind] = ItemAnswer(status=status, data=None, error=envelope.error)
            retry_after_seconds = max(retry_after_seconds, int(of_error.get("Retry-After", 0)))
            if isinstance(outcome, RateLimited):
                headers = rate_headers(outcome.rates) or headers
        items.append(failed[kind])
    if retry_after_seconds:
        headers.append((b"retry-after", b"%d" % retry_after_seconds))
    return 202, headers, BatchEnvelope(data=BatchAnswers(items=items), error=None)


def declare_batch(batch: ASGIApp) -> HTTPRouteHandler:
    """The route's declaration, for routing and the OpenAPI document, like that of ``submit``."""

    @post(
        "/generations/batch",
        status_code=202,
        middleware=[lambda app: batch],  # noqa: ARG005 - Litestar passes it by name
        tags=GENERATION_TAGS,
        summary="Create up to 100 generations",
        response_description="The answer to each item, in their order.",
        responses=failures(401, 403, 413, 415, 429, 503),
    )
    async def submit_batch(  # Litestar reads its signature, and never calls it.
        data: Body,  # noqa: ARG001
        idempotency_key: IdempotencyKey = None,  # noqa: ARG001
    ) -> BatchEnvelope:
        """Each item is a request of its own, with the `status` and the `data` or `error` that
        `POST /api/v1/generations` would have answered; so some may be accepted and others not. An
        item that is rejected does not affect the others. Rates and limits count items.

        With a header `Idempotency-Key: K`, item number `i`, from 0, has the key `K/i` unless it has
        an `idempotency_key`: repeat the call unchanged, whatever the first answer was, and no item
        is charged twice. `Retry-After` is the longest of all items that should be repeated.

        For users and stores; a client token cannot be used. The body may have up to 2 MB."""
        raise AssertionError("Litestar calls the middleware instead")

    return submit_batch
