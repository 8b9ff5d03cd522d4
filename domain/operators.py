"""Who changes accounts, stores and keys for the operator, and the log of what they changed."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime

from domain.labels import MAX_NAME_LENGTH, MAX_NOTE_LENGTH, checked_label


@dataclass(frozen=True, slots=True, kw_only=True)
class Operator:
    """Who makes a change, and why. ``actor`` is ``service:LABEL`` for a service key, and
    ``cli:USER`` for a person at the command line. Spaces around the two are dropped."""

    actor: str
    reason: str | None = None

    def __post_init__(self) -> None:
        actor = checked_label("actor", self.actor, max_length=MAX_NAME_LENGTH)
        object.__setattr__(self, "actor", actor)
        if self.reason is not None:
            reason = checked_label("reason", self.reason, max_length=MAX_NOTE_LENGTH)
            object.__setattr__(self, "reason", reason)


@dataclass(frozen=True, slots=True, kw_only=True)
class OperatorAction:
    """One entry of the audit log, which is append-only. ``action`` is a word such as
    ``credits.grant``, ``subject`` what was changed: an owner (``b2b:store-1``), a service key
    (``service:billing``) or a switch (``intake``). ``details`` are the values that were written."""

    id: int
    at: datetime
    actor: str
    action: str
    subject: str
    reason: str | None = None
    details: Mapping[str, object] = field(default_factory=dict)
