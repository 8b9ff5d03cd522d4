"""Mutants of the guards of submitting: of its undo, its idempotency keys and its limits."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from typing import Any
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.memory_limits import InMemoryLimits
from domain import submission
from domain.credits import Owner
from domain.errors import (
    DatabaseUnavailable,
    QueueUnavailable,
    Unconfirmed,
)
from domain.plans import Rate, TokenBudget
from domain.ports import Receipt
from domain.sessions import Failure, GenerationSession
from domain.submission import Submission
from domain.tasks import GenerationTask
from tests.simulation import actors
from tests.simulation.replacing import Mutant, instead


def a_failed_push_is_not_undone() -> AbstractContextManager[None]:
    """No compensation after a failed push."""

    async def undo(_: Any, __: GenerationSession, cause: Exception) -> None:
        raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return instead((Submission, "_undo", undo))


def the_undo_ignores_who_won() -> AbstractContextManager[None]:
    """503 even if a worker won the compare-and-set."""

    async def undo(self: Any, session: GenerationSession, cause: Exception) -> None:
        with suppress(DatabaseUnavailable):
            await self._sessions.fail_queued(session.id, submission.NOT_PUSHED, undo=True)
        raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return instead((Submission, "_undo", undo))


def an_unknown_outcome_is_answered_503() -> AbstractContextManager[None]:
    """503 even if neither the queue nor the database answered."""

    async def undo(self: Any, session: GenerationSession, cause: Exception) -> None:
        try:
            undone = await self._sessions.fail_queued(session.id, submission.NOT_PUSHED, undo=True)
        except DatabaseUnavailable:
            undone = True
        if undone:
            raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return instead((Submission, "_undo", undo))


def every_error_reply_counts_as_a_refusal() -> AbstractContextManager[None]:
    """A proxy's error reply counts as Redis's own: as if the push had had no effect."""

    def refused(call: str, _: bool) -> Exception:
        return QueueUnavailable(call, refused=True)

    return instead((actors, "queue_error", refused))


def the_push_precedes_the_debit() -> AbstractContextManager[None]:
    """The credit is taken when the task is in the queue already."""
    submit = Submission.submit

    async def push_and_charge(self: Any, request: Any) -> Any:
        session = self._session(request)
        await self._queue.push(GenerationTask.of(session, task_id=self._new_id()))
        return await submit(self, request)

    return instead((Submission, "submit", push_and_charge))


def keys_are_not_unique() -> AbstractContextManager[None]:
    """Several sessions per idempotency key."""
    return instead((InMemorySessionRepo, "_with_key", lambda *_: None))


def recovery_frees_keys() -> AbstractContextManager[None]:
    """Every session that was never pushed gives its key back, also one that recovery fails."""
    failed = GenerationSession.failed

    def freeing(self: GenerationSession, failure: Failure, **how: Any) -> GenerationSession:
        after = failed(self, failure, **how)
        never_pushed = failure == submission.NOT_PUSHED
        return replace(after, idempotency_key=None) if never_pushed else after

    return instead((GenerationSession, "failed", freeing))


def the_undo_ignores_confirmations() -> AbstractContextManager[None]:
    """The undo frees the key of a session that was claimed and released meanwhile."""
    fail_queued = InMemorySessionRepo.fail_queued

    async def any_queued(
        self: Any, session_id: UUID, failure: Failure, *, undo: bool = False
    ) -> bool:
        if undo and (row := self._queued(session_id)) is not None:
            row.session = replace(row.session, confirmed=False)
        return await fail_queued(self, session_id, failure, undo=undo)

    return instead((InMemorySessionRepo, "fail_queued", any_queued))


def replays_do_not_wait() -> AbstractContextManager[None]:
    """A replay is answered with a session that its first submitter may still undo."""

    async def at_once(_: Any, __: GenerationSession, receipt: Receipt) -> Receipt:
        return receipt

    return instead((Submission, "_until_confirmed", at_once))


def replays_adopt_a_session() -> AbstractContextManager[None]:
    """A replay pushes the task of a session that is not confirmed."""

    async def push(self: Any, _: GenerationSession, receipt: Receipt) -> Receipt:
        if not self._stands(receipt.session):
            await self._queue.push(GenerationTask.of(receipt.session, task_id=self._new_id()))
            self._unconfirmed[receipt.session.id] = None
        return receipt

    return instead((Submission, "_until_confirmed", push))


def an_unknown_undo_keeps_its_202() -> AbstractContextManager[None]:
    """202 for a key that the undo may have freed."""
    undo = Submission._undo

    async def accepting(self: Any, session: GenerationSession, cause: Exception) -> None:
        with suppress(Unconfirmed):
            await undo(self, session, cause)

    return instead((Submission, "_undo", accepting))


def refunds_keep_the_tokens_picture() -> AbstractContextManager[None]:
    """A shopper's failed session still counts against its client token."""
    return instead((InMemoryLimits, "refunded", lambda *_: None))


def tokens_are_not_checked() -> AbstractContextManager[None]:
    """A client token allows any number of pictures."""
    return instead((TokenBudget, "is_used_up", False))


def rates_are_not_counted() -> AbstractContextManager[None]:
    """A debit leaves the rate as it was."""
    return instead((Rate, "used", lambda _, unused_at, now, calls=1: unused_at or now))  # noqa: ARG005


def users_sign_up_at_every_debit() -> AbstractContextManager[None]:
    """The sign-up credits are not tied to an account without entries."""

    def sign_up(self: Any, owner: Owner, credits_: int) -> None:
        self._accounts.grant_at_once(owner, credits_, note="sign-up credits")

    create = InMemorySessionRepo.create

    async def granted(self: Any, session: Any, **terms: Any) -> Receipt:
        if terms.get("signup_credits"):
            sign_up(self, session.owner, terms["signup_credits"])
        return await create(self, session, max_active=terms["max_active"])

    return instead((InMemorySessionRepo, "create", granted))


def signups_of_a_day_are_not_capped() -> AbstractContextManager[None]:
    """Every newcomer is granted its credits."""
    return instead((InMemoryCreditRepo, "count_signup", lambda *_, per_day: per_day > 0))


SUBMIT_MUTANTS: Sequence[Mutant] = (
    a_failed_push_is_not_undone,
    the_undo_ignores_who_won,
    an_unknown_outcome_is_answered_503,
    every_error_reply_counts_as_a_refusal,
    the_push_precedes_the_debit,
    keys_are_not_unique,
    recovery_frees_keys,
    the_undo_ignores_confirmations,
    replays_do_not_wait,
    replays_adopt_a_session,
    an_unknown_undo_keeps_its_202,
    refunds_keep_the_tokens_picture,
    tokens_are_not_checked,
    rates_are_not_counted,
    users_sign_up_at_every_debit,
    signups_of_a_day_are_not_capped,
)
