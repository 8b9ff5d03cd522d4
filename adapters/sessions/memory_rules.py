"""The guards of the database on sessions, for the adapter in memory."""

import re
from dataclasses import replace
from datetime import datetime

from domain.sessions import (
    CANCELLED,
    AttemptFault,
    ErrorCode,
    Failure,
    Fault,
    GenerationSession,
    SessionStatus,
)


def may_have_image(session: GenerationSession) -> bool:
    """Whether the picture storage may hold something of a final session."""
    if session.image_deleted_at is not None:
        return False
    is_completed = session.status is SessionStatus.COMPLETED
    return session.status.is_final and (is_completed or session.attempt > 0)


is_http = re.compile(r"https?://\S+", re.IGNORECASE).fullmatch


def keeps_result(before: GenerationSession, after: GenerationSession) -> bool:
    """Whether a final session keeps its picture and its link, which may come late."""
    link = before.generated_image_url
    is_late = link is None and before.image_deleted_at is None and before.erased_at is None
    return before.picture == after.picture and (link == after.generated_image_url or is_late)


def cancelled_instead(before: GenerationSession, after: GenerationSession) -> GenerationSession:
    """A session whose cancellation was requested fails for that reason, and is not queued."""
    if before.cancel_requested_at is None or after.status is SessionStatus.COMPLETED:
        return after
    return replace(after, status=SessionStatus.FAILED, failure=CANCELLED)


def paid_for(session: GenerationSession) -> tuple[object, ...]:
    """Who paid, when and for what. The idempotency key can only be given back by ``failed``."""
    return (
        session.id,
        session.owner,
        session.created_at,
        session.request_id,
        session.input,
        session.idempotency_key,
    )


def was_undone(session: GenerationSession) -> bool:
    """Whether a session failed before its task was known to have reached the queue. Unless recovery
    found it, its submission undid it, and its caller was told that there is none."""
    code = None if session.failure is None else session.failure.code
    return code == ErrorCode.QUEUE_UNAVAILABLE and not session.confirmed


def after_trigger(changed: GenerationSession, *, now: datetime) -> GenerationSession:
    """The row after the database's trigger, for a status that was written without a claim."""
    changed = replace(changed, lease_expires_at=None)
    if changed.status is SessionStatus.PROCESSING:
        return replace(changed, attempt=changed.attempt + 1, confirmed=True, started_at=now)
    if changed.status is SessionStatus.FAILED and changed.failure is None:
        failure = Failure(code=ErrorCode.GENERATION_FAILED, message="")
        changed = replace(changed, failure=failure)
    if changed.status.is_final and changed.completed_at is None:
        changed = replace(changed, completed_at=now)
    return changed


def recorded(fault: Fault, *, attempt: int, at: datetime) -> AttemptFault:
    """The fault as the database keeps it."""
    return AttemptFault(
        attempt=attempt,
        at=at,
        worker=fault.worker or None,
        code=fault.code,
        cause=str(fault.cause),
    )


def code_of(session: GenerationSession) -> str:
    """As it is counted: empty unless the session failed."""
    return "" if session.failure is None else session.failure.code
