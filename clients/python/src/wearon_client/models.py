"""The JSON of the API. These types describe it and check nothing at run time, so fields, codes and
statuses that a newer service adds pass through unchanged."""

from typing import Any, NotRequired, TypedDict

FINAL_STATUSES = frozenset({"completed", "failed"})


class Accessory(TypedDict):
    """One further item to wear."""

    type: str
    url: str


class NewGeneration(TypedDict):
    """A try-on request: a person and the items to wear. ``prompt`` is for stores only."""

    model_image_url: str
    outfit_image_url: NotRequired[str | None]
    accessories: NotRequired[list[Accessory] | None]
    prompt: NotRequired[str | None]
    age_verified: NotRequired[bool | None]


class BatchItem(NewGeneration):
    """One request of a batch."""

    idempotency_key: NotRequired[str | None]


class Submitted(TypedDict):
    """An accepted and charged request: its session will reach a final status."""

    session_id: str
    status: str
    status_url: str
    credits_remaining: int | None
    pictures_remaining: int | None
    created_at: str


class Session(TypedDict):
    """A generation session. ``status`` is ``queued``, ``processing``, ``completed`` or ``failed``;
    timestamps are ISO 8601, UTC; ``estimated_cost_usd`` is a decimal as text."""

    session_id: str
    status: str
    channel: str
    model_image_url: str | None
    outfit_image_url: str | None
    accessories: list[Accessory]
    shopper_id: str | None
    prompt: str | None
    age_verified: bool | None
    generated_image_url: str | None
    image_expired: bool
    media_type: str | None
    error_code: str | None
    error_message: str | None
    attempt: int
    queue_position: int | None
    request_id: str
    created_at: str
    started_at: str | None
    cancel_requested_at: str | None
    completed_at: str | None
    processing_time_ms: int | None
    erased_at: str | None
    input_tokens: int | None
    output_tokens: int | None
    estimated_cost_usd: str | None
    status_url: str


class SessionPage(TypedDict):
    """One page of sessions, newest first; ``next_cursor`` is None on the last page."""

    items: list[Session]
    next_cursor: str | None


class ErrorBody(TypedDict):
    """An error: a code for programs, a message for people."""

    code: str
    message: str


class BatchResult(TypedDict):
    """The answer to one item of a batch: the status, and the data or the error, that a request of
    its own would have got; ``replayed`` if an earlier request with its key was accepted."""

    status: int
    data: Submitted | None
    error: ErrorBody | None
    replayed: bool


class WebhookEvent(TypedDict):
    """A verified webhook. ``data`` is a `Session` for ``generation.completed`` and
    ``generation.failed``; other types have data of their own."""

    type: str
    timestamp: str
    data: Any


def is_final(session: Session) -> bool:
    """Whether the session changes no more."""
    return session["status"] in FINAL_STATUSES
