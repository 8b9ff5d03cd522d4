"""The table of columns: where a row of ``generation_sessions`` keeps each part of a session.

The CREATE statements, the row mapping and the guards in the database are derived from it, so that
a new column is one line here. The guards need a migration as well: see ``guards.py``.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import msgspec

from domain.credits import Channel
from domain.sessions import Accessory, SessionStatus


@dataclass(frozen=True, slots=True)
class Column:
    """``path`` is the attribute of a session that the column holds, such as ``input.prompt``; None
    for the database's own columns. ``encode`` and ``decode`` translate between the two.

    CREATE writes the ``inserted`` columns; the others have a default, or are written later. The
    ``immutable`` columns are protected by a trigger: they say who paid, when and for what.
    ``erased`` is the SQL literal with which erasure replaces personal data; None if the column
    stays.
    """

    name: str
    type: str = "text"
    path: str | None = None
    inserted: bool = False
    immutable: bool = False
    encode: Callable[[Any], object] | None = None
    decode: Callable[[Any], Any] | None = None
    erased: str | None = None

    @property
    def part(self) -> str:
        """Where ``path`` leads before its last attribute; empty for a session's own attributes."""
        return (self.path or "").rpartition(".")[0]

    @property
    def attribute(self) -> str:
        """The last attribute of ``path``."""
        return (self.path or "").rpartition(".")[2]

    @property
    def wire_type(self) -> str:
        """The type as which a value is sent: JSON travels as text and is cast by the statement."""
        return "text" if self.type == "jsonb" else self.type


def _input(
    name: str,
    type_: str = "text",
    *,
    encode: Callable[[Any], object] | None = None,
    decode: Callable[[Any], Any] | None = None,
    erased: str | None = None,
) -> Column:
    """The column of a field of ``GenerationInput``."""
    return Column(
        name,
        type_,
        f"input.{name}",
        inserted=True,
        immutable=True,
        encode=encode,
        decode=decode,
        erased=erased,
    )


_encode_json = msgspec.json.Encoder().encode


def _json_text(value: object) -> str:
    return _encode_json(value).decode()


COLUMNS: Sequence[Column] = (
    Column("id", "uuid", "id", inserted=True, immutable=True),
    Column("created_at", "timestamptz", "created_at", immutable=True),
    Column("request_id", "text", "request_id", inserted=True, immutable=True),
    # The owner. CREATE writes store_id or user_id; owner_id is generated from both.
    Column(
        "channel",
        "text",
        "owner.channel",
        immutable=True,
        decode={channel.value: channel for channel in Channel}.__getitem__,
    ),
    Column("owner_id", "text", "owner.id"),
    Column("store_id", immutable=True),
    Column("user_id", immutable=True),
    # Only sessions of shoppers have these, which a CREATE of their own writes.
    Column("shopper_id", "text", "shopper.id", immutable=True, erased="NULL"),
    Column("client_token_id", "uuid", "shopper.token_id", immutable=True),
    # The input.
    _input("model_image_url", erased="''"),
    _input("outfit_image_url", erased="NULL"),
    _input(
        "accessories",
        "jsonb",
        encode=_json_text,
        decode=msgspec.json.Decoder(tuple[Accessory, ...]).decode,
        erased="'[]'",
    ),
    _input("prompt", erased="''"),
    _input("age_verified", "boolean"),
    # The state. A trigger of its own (key_is_kept) protects the idempotency key.
    Column("idempotency_key", "text", "idempotency_key"),
    Column("traceparent", "text", "traceparent", inserted=True),
    Column(
        "status",
        "text",
        "status",
        decode={status.value: status for status in SessionStatus}.__getitem__,
    ),
    Column("confirmed", "boolean", "confirmed"),
    Column("attempt", "integer", "attempt"),
    Column("attempts_excused", "integer", "attempts_excused"),
    Column("failing_since", "timestamptz", "failing_since"),
    Column("lease_expires_at", "timestamptz", "lease_expires_at"),
    Column("cancel_requested_at", "timestamptz", "cancel_requested_at"),
    Column("provider_job", "text", "provider_job", erased="NULL"),
    Column("started_at", "timestamptz", "started_at"),
    Column("completed_at", "timestamptz", "completed_at"),
    Column("processing_time_ms", "bigint", "processing_time_ms"),
    # The result. An external consumer leaves error_message empty.
    Column("object_key", "text", "picture.object_key"),
    Column("media_type", "text", "picture.media_type"),
    Column("provider", "text", "usage.provider"),
    Column("input_tokens", "integer", "usage.input_tokens"),
    Column("output_tokens", "integer", "usage.output_tokens"),
    Column("estimated_cost_usd", "numeric", "usage.estimated_cost_usd"),
    Column("error_code", "text", "failure.code"),
    Column("error_message", "text", "failure.message", decode=lambda message: message or ""),
    Column("generated_image_url", "text", "generated_image_url", erased="NULL"),
    Column("image_deleted_at", "timestamptz", "image_deleted_at"),
    Column("erased_at", "timestamptz", "erased_at"),
    # The database's own.
    Column("refunded", "boolean"),
    Column("status_changed_at", "timestamptz"),
    Column("push_again_at", "timestamptz"),
    Column("delete_again_at", "timestamptz"),
    Column("has_webhooks", "boolean"),
)

MAPPED: Sequence[Column] = [column for column in COLUMNS if column.path is not None]
"""The columns of a session, in the order in which every statement returns them."""

INSERTED: Sequence[Column] = [column for column in COLUMNS if column.inserted]
"""The columns that CREATE writes, beside the owner and the idempotency key."""

RESULTS: Sequence[Column] = [
    column for part in ("picture", "usage") for column in COLUMNS if column.part == part
]
"""The columns that completing a session writes."""

IMMUTABLE: Sequence[Column] = [column for column in COLUMNS if column.immutable]

ERASED: Sequence[Column] = [
    column for column in COLUMNS if column.erased is not None and column.part != "shopper"
]
"""The columns that an erased session has lost. It may lose its shopper as well, or later."""
