"""Mutants of the guards of batches."""

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import Any

from domain import submission
from domain.errors import QueueUnavailable, Unconfirmed
from domain.ports import Receipt
from domain.submission import Submission
from domain.tasks import GenerationTask
from tests.simulation import actors
from tests.simulation.replacing import Mutant, instead

Outcomes = Sequence[Receipt | Exception | None]


def a_failed_batch_is_not_undone() -> AbstractContextManager[None]:
    """503 for every item of a push that failed, whose sessions stay."""

    async def undo_many(_: Submission, outcomes: Outcomes, __: Exception) -> Outcomes:
        return [_refused() if isinstance(one, Receipt) else one for one in outcomes]

    return instead((Submission, "_undo_many", undo_many))


def the_undo_of_a_batch_ignores_who_won() -> AbstractContextManager[None]:
    """503 also for the items that a worker has claimed before the undo."""
    undo_many = Submission._undo_many

    async def undo_all(self: Submission, outcomes: Outcomes, cause: Exception) -> Outcomes:
        await undo_many(self, outcomes, cause)
        return [_refused() if isinstance(one, Receipt) else one for one in outcomes]

    return instead((Submission, "_undo_many", undo_all))


def an_unknown_undo_of_a_batch_keeps_its_202s() -> AbstractContextManager[None]:
    """202 for keys that the undo may have freed."""
    undo_many = Submission._undo_many

    async def accepting(self: Submission, outcomes: Outcomes, cause: Exception) -> Outcomes:
        answers = await undo_many(self, outcomes, cause)
        return [
            before if isinstance(answer, Unconfirmed) else answer
            for before, answer in zip(outcomes, answers, strict=True)
        ]

    return instead((Submission, "_undo_many", accepting))


def batches_are_not_confirmed() -> AbstractContextManager[None]:
    """The items of a batch that was pushed are not noted for the next confirmation."""
    create_and_push = Submission._create_and_push

    async def unnoted(self: Any, *args: Any) -> Outcomes:
        outcomes = await create_and_push(self, *args)
        for outcome in outcomes:
            if isinstance(outcome, Receipt):
                self._unconfirmed.pop(outcome.session.id, None)
        return outcomes

    return instead((Submission, "_create_and_push", unnoted))


def items_share_the_key_of_their_batch() -> AbstractContextManager[None]:
    """Each item after the first counts as a repetition of it."""
    return instead((actors, "item_key", lambda batch_key, _: batch_key))


def repetitions_in_a_batch_are_answered_at_once() -> AbstractContextManager[None]:
    """A repetition gets its 202 without waiting for the first request, which may be undone."""
    create_and_push = Submission._create_and_push

    async def replayed(self: Any, sessions: Any, signup_credits: int) -> Outcomes:
        outcomes = await create_and_push(self, sessions, signup_credits)
        return [
            await self._sessions.find_replay(session) if outcome is None else outcome
            for session, outcome in zip(sessions, outcomes, strict=True)
        ]

    return instead((Submission, "_create_and_push", replayed))


def answers_of_a_batch_are_mixed_up() -> AbstractContextManager[None]:
    """The answers do not come in the order of the items."""
    together = Submission._submit_together

    async def reversed_(self: Submission, requests: Any) -> Outcomes:
        return list(reversed(await together(self, requests)))

    return instead((Submission, "_submit_together", reversed_))


def a_batch_is_pushed_before_its_debits() -> AbstractContextManager[None]:
    """The credits are taken when the tasks are in the queue already."""
    create_and_push = Submission._create_and_push

    async def push_and_charge(self: Any, sessions: Any, signup_credits: int) -> Outcomes:
        tasks = [GenerationTask.of(session, task_id=self._new_id()) for session in sessions]
        await self._queue.push_many(tasks)
        return await create_and_push(self, sessions, signup_credits)

    return instead((Submission, "_create_and_push", push_and_charge))


def _refused() -> Exception:
    return QueueUnavailable(submission.UNAVAILABLE_MESSAGE)


BATCH_MUTANTS: Sequence[Mutant] = (
    a_failed_batch_is_not_undone,
    the_undo_of_a_batch_ignores_who_won,
    an_unknown_undo_of_a_batch_keeps_its_202s,
    batches_are_not_confirmed,
    items_share_the_key_of_their_batch,
    repetitions_in_a_batch_are_answered_at_once,
    answers_of_a_batch_are_mixed_up,
    a_batch_is_pushed_before_its_debits,
)
