"""Owners, sessions, tasks and requests for tests to vary."""

import json
from dataclasses import fields, replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

from uuid_utils.compat import uuid7

from adapters.client_tokens.memory import InMemoryClientTokenRepo
from adapters.queue.payload import encode
from adapters.webhooks.memory import InMemoryWebhookRepo
from adapters.workers.memory import InMemoryWorkerRepo
from domain.callers import Caller
from domain.causes import Cause, CauseKind
from domain.client_tokens import ClientToken
from domain.credits import Channel, Owner
from domain.operators import Operator
from domain.requests import TryOnRequest
from domain.sessions import (
    Accessory,
    Blame,
    Failure,
    Fault,
    GenerationInput,
    GenerationSession,
    StoredPicture,
    Usage,
)
from domain.tasks import GenerationTask
from tests.support.clock import START

STORE = Owner(channel=Channel.B2B, id="store-1")
USER = Owner(channel=Channel.B2C, id="9b2f9a52-6a0c-4e0b-a9f3-0d6a6a2f6d11")
OTHER = Owner(channel=Channel.B2C, id="2f1f3c5e-8f0d-4c7b-9a55-5f9c6f0c7b22")

OPERATOR = Operator(actor="cli:alice", reason="a ticket")

ORIGINS = frozenset({"https://shop.example", "https://m.shop.example"})
"""The origins of every store."""

LEASE = timedelta(seconds=30)
TRACEPARENT = "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01"
MANY = 1_000_000
"""A limit that no test reaches."""
NO_TOKENS = InMemoryClientTokenRepo(clock=lambda: START, origins_of=lambda _: (), budgets={})
"""For tests without shoppers."""
NO_WEBHOOKS = InMemoryWebhookRepo(clock=lambda: START)

NO_WORKERS = InMemoryWorkerRepo(clock=lambda: START, pauses={}, spent_since=lambda _: Decimal(0))
"""For tests without webhooks."""

STORED_PICTURE = StoredPicture(object_key="generated/someone/picture.png", media_type="image/png")
USAGE = Usage(
    provider="openai",
    input_tokens=1_923,
    output_tokens=6_240,
    estimated_cost_usd=Decimal("0.215064"),
)
FAULT = Fault(
    blame=Blame.SESSION,
    cause=Cause(CauseKind.INPUT, "404 host=pictures.example"),
    code="IMAGE_UNREACHABLE",
    worker="worker-1:7",
)
"""Spends an attempt."""
FAILURE = Failure(code="MODERATION_BLOCKED", message="This picture cannot be made")

MODEL_URL = "https://pictures.example/model.jpg"
OUTFIT_URL = "https://pictures.example/outfit.png"
HAT = Accessory(type="hat", url="https://pictures.example/hat.webp")
BAG = Accessory(type="bag", url="https://pictures.example/bag.jpg?size=large")


def an_input(**changes: Any) -> GenerationInput:
    return GenerationInput(**{"model_image_url": MODEL_URL} | changes)


def a_session(**changes: Any) -> GenerationSession:
    """``changes`` are fields of the session and of its input."""
    session = GenerationSession(
        id=uuid7(),
        owner=USER,
        request_id="req_1",
        input=an_input(**_of_input(changes)),
        created_at=START,
    )
    return replace(session, **changes)


def picture_of(session_id: UUID, owner: Owner = USER) -> StoredPicture:
    """A picture of this session: the database accepts no other."""
    prefix = a_session(id=session_id, owner=owner).object_prefix
    return StoredPicture(object_key=f"{prefix}.png", media_type="image/png")


def a_task(**changes: Any) -> GenerationTask:
    return replace(GenerationTask.of(a_session(), task_id=uuid4()), **changes)


def a_token(**changes: Any) -> ClientToken:
    """A client token for a shopper of the store, which is new and lives for an hour."""
    created_at = changes.get("created_at", START)
    token = ClientToken(
        id=uuid7(),
        store=STORE,
        shopper_id="anna",
        token_sha256=uuid4().hex * 2,
        origin="https://shop.example",
        pictures=5,
        created_at=created_at,
        expires_at=created_at + timedelta(hours=1),
    )
    return replace(token, **changes)


EXTREMES = (
    "0001-01-01T00:00:00+14:00",
    "0001-01-01T00:00:00Z",
    "9999-12-31T23:59:59.999999-14:00",
    "9999-12-31T23:59:59Z",
    "2999-01-01T00:00:00Z",
)
"""Times that a readable task may have, and no session of ours."""


def with_created_at(created_at: str) -> bytes:
    """The message of a task of an unknown session, with this time as it is."""
    return json.dumps(json.loads(encode(a_task())) | {"created_at": created_at}).encode()


def a_request(owner: Owner = USER, **changes: Any) -> TryOnRequest:
    """``changes`` are fields of the request and of its input."""
    asked = an_input(**_of_input(changes))
    caller = Caller(owner=owner)
    default = TryOnRequest(caller=caller, request_id="req_1", input=an_input())
    return replace(default, **{"input": asked} | changes)


def _of_input(changes: dict[str, Any]) -> dict[str, Any]:
    """Takes the fields of an input out of ``changes``."""
    names = {field.name for field in fields(GenerationInput)}
    return {name: changes.pop(name) for name in names & changes.keys()}
