"""One session as operators read it."""

from dataclasses import replace
from datetime import timedelta

from domain.credits import LedgerEntry, LedgerKind
from domain.operator_ports import SessionFile
from domain.session_files import charged, timeline, verdict
from domain.sessions import AttemptFault, GenerationSession, SessionStatus
from tests.support.clock import START
from tests.support.examples import FAILURE, STORED_PICTURE, USER, a_session

SECOND = timedelta(seconds=1)
LEASE = timedelta(seconds=30)


def an_entry(number: int, kind: LedgerKind, amount: int) -> LedgerEntry:
    return LedgerEntry(
        id=number, owner=USER, kind=kind, amount=amount, session_id=None, note=None,
        created_at=START,
    )  # fmt: skip


DEBIT = an_entry(4, LedgerKind.DEBIT, -1)
REFUND = an_entry(7, LedgerKind.REFUND, 1)


def a_fault(attempt: int, *, worker: str | None = "host-a:7") -> AttemptFault:
    return AttemptFault(
        attempt=attempt, at=START + attempt * SECOND, worker=worker, code="GENERATION_FAILED",
        cause="provider 500",
    )  # fmt: skip


def a_file(
    session: GenerationSession, *entries: LedgerEntry, faults: tuple[AttemptFault, ...] = ()
) -> SessionFile:
    return SessionFile(session=session, entries=entries, faults=faults)


def texts(file: SessionFile) -> list[str]:
    return [event.text for event in timeline(file)]


def test_failure_is_told_from_debit_to_refund() -> None:
    """Each attempt with its worker and cause; one whose worker died has no name."""
    failed = replace(a_session(), attempt=2, started_at=START).failed(
        FAILURE, now=START + 3 * SECOND
    )
    file = a_file(failed, DEBIT, REFUND, faults=(a_fault(1), a_fault(2, worker=None)))

    assert texts(file) == [
        "requested, 1 credit(s) debited (entry 4)",
        "attempt 1 failed at host-a:7: provider 500",
        "attempt 2 failed at a worker that died: provider 500",
        "failed as MODERATION_BLOCKED, credit refunded (entry 7)",
    ]
    assert (charged(file), verdict(file)) == (0, "the customer was not charged")


def test_success_is_told_with_its_last_attempt() -> None:
    """It leaves no record of its own, but the session knows when it began."""
    done = a_session().claimed(now=START + SECOND, lease=LEASE)
    file = a_file(done.completed(STORED_PICTURE, now=START + 2 * SECOND), DEBIT)

    assert texts(file)[1:] == ["attempt 1 began", "completed"]
    assert (charged(file), verdict(file)) == (1, "the customer was charged 1 credit(s)")


def test_events_are_in_the_order_of_time() -> None:
    """Also a request to cancel, and what happened to the picture later."""
    session = replace(
        a_session().claimed(now=START + 2 * SECOND, lease=LEASE),
        cancel_requested_at=START + 5 * SECOND,
        image_deleted_at=START + 9 * SECOND,
        erased_at=START + 10 * SECOND,
    )
    file = a_file(session, DEBIT, faults=(a_fault(4),))

    assert [event.at for event in timeline(file)] == sorted(e.at for e in timeline(file))
    assert texts(file)[1:] == [
        "attempt 1 began", "attempt 4 failed at host-a:7: provider 500", "cancellation requested",
        "picture deleted", "personal data erased",
    ]  # fmt: skip


def test_refund_that_is_missing_is_owed() -> None:
    """An external consumer may have failed the session."""
    file = a_file(a_session().failed(FAILURE, now=START), DEBIT)

    assert texts(file)[-1] == "failed as MODERATION_BLOCKED, not refunded yet"
    assert verdict(file) == "a refund is owed"


def test_unfinished_session_is_not_judged() -> None:
    """Its credit comes back if it fails."""
    file = a_file(a_session(), DEBIT)

    assert verdict(file) == "1 credit(s) debited; a failure gives them back"
    assert file.session.status is SessionStatus.QUEUED


def test_session_without_a_debit_is_said_to_have_none() -> None:
    """A row that another program wrote."""
    file = a_file(a_session())

    assert texts(file) == ["requested, no debit"]
    assert verdict(file) == "the ledger has no entry of this session"
