"""Mutants of the guards that cancel what is processed."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from typing import Any
from uuid import UUID

from adapters.images.jobs import JobPictureGenerator
from adapters.sessions import memory
from adapters.sessions.memory import InMemorySessionRepo
from domain.errors import CancelRequested
from domain.generation import Generation
from domain.sessions import CANCELLED, Failure, GenerationSession, SessionStatus
from tests.simulation.replacing import Mutant, instead


def a_release_ignores_the_request() -> AbstractContextManager[None]:
    """A session that is to be cancelled goes back to the queue: by its worker, or by recovery."""
    released = GenerationSession.released

    def unaware(self: GenerationSession, *args: Any, **kwargs: Any) -> GenerationSession:
        after = released(replace(self, cancel_requested_at=None), *args, **kwargs)
        return replace(after, cancel_requested_at=self.cancel_requested_at)

    return instead((GenerationSession, "released", unaware))


def an_external_release_ignores_the_request() -> AbstractContextManager[None]:
    """The database lets an external consumer put such a session back to the queue."""
    return instead((memory, "cancelled_instead", lambda _, after: after))


def another_failure_hides_the_cancellation() -> AbstractContextManager[None]:
    """A session that is to be cancelled fails for any reason."""
    failed = GenerationSession.failed

    def with_its_own(self: GenerationSession, failure: Failure, **how: Any) -> GenerationSession:
        return replace(failed(self, failure, **how), failure=failure)

    return instead((GenerationSession, "failed", with_its_own))


def the_last_request_counts() -> AbstractContextManager[None]:
    """A repeated request changes the time of the first one."""
    cancelled = GenerationSession.cancelled

    def anew(self: GenerationSession, **when: Any) -> GenerationSession:
        return cancelled(replace(self, cancel_requested_at=None), **when)

    return instead((GenerationSession, "cancelled", anew))


def a_final_session_is_cancelled() -> AbstractContextManager[None]:
    """The request has no guard on the status."""

    async def cancel(self: Any, session_id: UUID) -> GenerationSession | None:
        row = self._rows.get(session_id)
        if row is None:
            return None
        as_queued = replace(row.session, status=SessionStatus.QUEUED)
        self._end(row, as_queued.cancelled(now=self._clock()))
        ended: GenerationSession = row.session
        return ended

    return instead((InMemorySessionRepo, "cancel", cancel))


def only_queued_sessions_are_cancelled() -> AbstractContextManager[None]:
    """The request to cancel a session that is processed is accepted and forgotten."""
    cancel = InMemorySessionRepo.cancel

    async def forgetful(self: Any, session_id: UUID) -> GenerationSession | None:
        row = self._rows.get(session_id)
        if row is not None and row.session.status is SessionStatus.PROCESSING:
            found: GenerationSession = row.session.cancelled(now=self._clock())
            return found
        return await cancel(self, session_id)

    return instead((InMemorySessionRepo, "cancel", forgetful))


def a_renewal_does_not_tell() -> AbstractContextManager[None]:
    """A worker goes on, whatever its renewals say."""
    renew = Generation._renew

    async def deaf(self: Generation, session: GenerationSession) -> bool:
        try:
            return await renew(self, session)
        except CancelRequested:
            return True

    return instead((Generation, "_renew", deaf))


def hints_are_ignored() -> AbstractContextManager[None]:
    """A worker learns of a cancellation at its next renewal only."""
    return instead((Generation, "check_now", lambda *_: None))


def the_provider_is_not_told() -> AbstractContextManager[None]:
    """The provider's job of a cancelled session runs on."""

    async def abandon(*_: Any) -> None:
        return

    return instead((JobPictureGenerator, "_abandon", abandon))


def a_cancelled_session_is_not_refunded() -> AbstractContextManager[None]:
    """It fails, and the credit stays where it is."""
    refund = InMemorySessionRepo._refund

    def unless_cancelled(self: Any, row: Any) -> None:
        if row.failing != CANCELLED:
            refund(self, row)

    return instead((InMemorySessionRepo, "_refund", unless_cancelled))


CANCEL_MUTANTS: Sequence[Mutant] = (
    a_release_ignores_the_request,
    an_external_release_ignores_the_request,
    another_failure_hides_the_cancellation,
    the_last_request_counts,
    a_final_session_is_cancelled,
    only_queued_sessions_are_cancelled,
    a_renewal_does_not_tell,
    hints_are_ignored,
    the_provider_is_not_told,
    a_cancelled_session_is_not_refunded,
)
