"""The rules of cancelled sessions."""

from collections.abc import Iterator

from domain.sessions import CANCELLED, GenerationSession, SessionStatus


def broken_cancellation(before: GenerationSession, now: GenerationSession) -> Iterator[str]:
    """What is wrong with a session's step, as far as its cancellation is concerned."""
    requested_at = now.cancel_requested_at
    if before.cancel_requested_at not in {None, requested_at}:
        yield f"{now.id} was to be cancelled at {before.cancel_requested_at}, now {requested_at}"
    if (requested_at is None) != (now.failure != CANCELLED) and now.status is SessionStatus.FAILED:
        yield f"{now.id} failed with {now.failure}; its cancellation was asked at {requested_at}"
    if requested_at is not None and now.status is SessionStatus.QUEUED:
        yield f"{now.id} is queued, and was to be cancelled at {requested_at}"
    if before.cancel_requested_at is not None and before.attempt != now.attempt:
        yield f"{now.id} was to be cancelled and has another attempt"
