"""One session as operators read it: what happened, and whether its owner was charged."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime

from domain.credits import LedgerEntry, LedgerKind
from domain.operator_ports import SessionFile
from domain.sessions import GenerationSession, SessionStatus


@dataclass(frozen=True, slots=True, kw_only=True)
class Event:
    """Something that happened to a session."""

    at: datetime
    text: str


def timeline(file: SessionFile) -> list[Event]:
    """What is known to have happened, in order. An attempt that went well leaves no record of its
    own: the latest one's start is known from the session."""
    events = [*_beginning(file), *_attempts(file), *_end(file), *_afterwards(file.session)]
    return sorted(events, key=lambda event: event.at)


def charged(file: SessionFile) -> int:
    """The credits that the session has cost its owner so far."""
    return -sum(entry.amount for entry in file.entries)


def verdict(file: SessionFile) -> str:
    """Whether the owner was charged, in a sentence without a full stop."""
    cost, status = charged(file), file.session.status
    if not file.entries:
        return "the ledger has no entry of this session"
    if status is SessionStatus.FAILED:
        return "the customer was not charged" if cost == 0 else "a refund is owed"
    if status is SessionStatus.COMPLETED:
        return f"the customer was charged {cost} credit(s)"
    return f"{cost} credit(s) debited; a failure gives them back"


def _beginning(file: SessionFile) -> Iterator[Event]:
    session = file.session
    debit = _entry(file, LedgerKind.DEBIT)
    paid = f", {-debit.amount} credit(s) debited (entry {debit.id})" if debit else ", no debit"
    yield Event(at=session.created_at, text=f"requested{paid}")


def _attempts(file: SessionFile) -> Iterator[Event]:
    for fault in file.faults:
        worker = fault.worker or "a worker that died"
        yield Event(at=fault.at, text=f"attempt {fault.attempt} failed at {worker}: {fault.cause}")
    session = file.session
    is_recorded = any(fault.attempt == session.attempt for fault in file.faults)
    if session.started_at is not None and session.attempt and not is_recorded:
        yield Event(at=session.started_at, text=f"attempt {session.attempt} began")


def _end(file: SessionFile) -> Iterator[Event]:
    session = file.session
    if session.completed_at is None:
        return
    if session.failure is None:
        yield Event(at=session.completed_at, text=str(session.status))
        return
    refund = _entry(file, LedgerKind.REFUND)
    paid = f"credit refunded (entry {refund.id})" if refund else "not refunded yet"
    yield Event(at=session.completed_at, text=f"failed as {session.failure.code}, {paid}")


def _afterwards(session: GenerationSession) -> Iterator[Event]:
    for at, text in (
        (session.cancel_requested_at, "cancellation requested"),
        (session.image_deleted_at, "picture deleted"),
        (session.erased_at, "personal data erased"),
    ):
        if at is not None:
            yield Event(at=at, text=text)


def _entry(file: SessionFile, kind: LedgerKind) -> LedgerEntry | None:
    return next((entry for entry in file.entries if entry.kind is kind), None)
