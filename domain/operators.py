"""Who changes accounts, stores and keys for the operator, and the log of what they changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from domain.labels import MAX_NAME_LENGTH, MAX_NOTE_LENGTH, checked_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who makes a change, and why. ``actor`` is ``service:LABEL`` for a service key, and
    ``cli:USER`` for a person at the command line."""

    actor: str
    reason: str | None = None

    def __post_init__(self) -> None:
        checked_label("actor", self.actor, max_length=MAX_NAME_LENGTH)
        if self.reason is not None:
            checked_label("reason", self.reason, max_length=MAX_NOTE_LENGTH)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAction:
    """One entry of the audit log, which is append-only. ``action`` is a word such as
    ``credits.grant``, ``subject`` what was changed: an owner (``b2b:store-1``) or a service key
    (``service:billing``). ``details`` are the values that were written."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    reason: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
