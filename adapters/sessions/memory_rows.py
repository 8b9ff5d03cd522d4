"""The rows of sessions in memory."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import datetime
from uuid import UUID

from domain.credits import Owner
from domain.sessions import AttemptFault, Failure, GenerationSession


@dataclass(slots=True)
class Row:
    """A session, the state that only recovery needs, why it is about to fail, and its attempts'
    faults."""

    session: GenerationSession
    status_changed_at: datetime
    push_again_at: datetime | None = None
    delete_again_at: datetime | None = None
    refunded: bool = False
    failing: Failure | None = None
    faults: list[AttemptFault] = field(default_factory=list)


def may_retry(row: Row, max_attempts: int) -> bool:
    session = row.session
    return session.attempts_spent < max_attempts and session.cancel_requested_at is None


def is_of(session: GenerationSession, owner: Owner | None, shopper_id: str | None) -> bool:
    return owner in {None, session.owner} and shopper_id in {None, session.shopper_id}


def position_of(row: Row) -> tuple[datetime, UUID]:
    return row.session.created_at, row.session.id


def newest_first(rows: Iterable[Row]) -> list[Row]:
    return sorted(rows, key=position_of, reverse=True)
