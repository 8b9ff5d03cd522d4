"""``python -m tests.simulation.mutants``: can the simulation fail?

Each mutant takes one guard away, and the simulation has to find out. Exits 1 if one survives.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from dataclasses import replace
from datetime import timedelta
from functools import partial
from itertools import combinations
from typing import Any
from uuid import UUID

import structlog

from adapters.credits.memory import InMemoryCreditRepo
from adapters.images.jobs import JobPictureGenerator
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions.memory import InMemorySessionRepo
from domain import leases, submission
from domain.credits import LedgerKind, Owner
from domain.errors import DatabaseUnavailable, QueueUnavailable
from domain.recovery import Recovery
from domain.sessions import Failure, GenerationSession, SessionStatus
from domain.submission import Submission
from domain.tasks import GenerationTask
from tests.simulation.fates import FAULTS
from tests.simulation.scenarios import run_backlog, run_long_work, run_plan, run_seed
from tests.simulation.world import Violation

SEEDS = 1_000
SECONDS = 90.0

Mutant = Callable[[], AbstractContextManager[None]]


@contextmanager
def _instead(*changes: tuple[Any, str, Any]) -> Iterator[None]:
    """Each attribute has another value for a while."""
    before = [(owner, name, getattr(owner, name)) for owner, name, _ in changes]
    try:
        for owner, name, value in changes:
            setattr(owner, name, value)
        yield
    finally:
        for owner, name, value in before:
            setattr(owner, name, value)


def any_status_may_be_failed() -> AbstractContextManager[None]:
    """The compare-and-set of the status: a claim or a cancellation finds any session queued."""
    return _instead(
        (InMemorySessionRepo, "_queued", lambda self, id_: self._rows.get(id_)),
        (GenerationSession, "_require", lambda *_: None),
    )


def any_attempt_may_write() -> AbstractContextManager[None]:
    """The attempt in the WHERE of complete, fail, release and renew."""

    def current(self: Any, session_id: UUID, _: int) -> Any:
        row = self._rows.get(session_id)
        return row if row and row.session.status is SessionStatus.PROCESSING else None

    return _instead((InMemorySessionRepo, "_current", current))


def refunds_are_not_unique() -> AbstractContextManager[None]:
    """The unique refund, and the note that a session has had it."""

    def refund(self: Any, owner: Owner, cost: int, session_id: UUID) -> bool:
        self._record(owner, LedgerKind.REFUND, cost, session_id=session_id)
        return True

    async def refund_missing(self: Any, *, limit: int) -> int:
        for row in self._in_status(SessionStatus.FAILED)[:limit]:
            self._refund(row)
        return 0

    return _instead(
        (InMemoryCreditRepo, "refund", refund),
        (InMemorySessionRepo, "refund_missing", refund_missing),
    )


def a_failure_refunds_nothing() -> AbstractContextManager[None]:
    """The refund in the transaction of the failure."""
    return _instead((InMemorySessionRepo, "_refund", lambda *_: None))


def foreign_failures_are_not_refunded() -> AbstractContextManager[None]:
    """Recovery's look for missing refunds."""

    async def refund_missing(*_: Any, **__: Any) -> int:
        return 0

    return _instead((InMemorySessionRepo, "refund_missing", refund_missing))


def a_final_status_may_be_overwritten() -> AbstractContextManager[None]:
    """The store's guard against writers that know of no rule."""

    def overwrite(self: Any, session_id: UUID, **changes: Any) -> None:
        row = self._rows[session_id]
        self._put(row, replace(row.session, **changes))

    return _instead((InMemorySessionRepo, "overwrite", overwrite))


def a_foreign_take_is_no_attempt() -> AbstractContextManager[None]:
    """A consumer that is not ours fences the worker before it."""
    guarded = InMemorySessionRepo._guarded

    def unfenced(self: Any, changed: GenerationSession) -> GenerationSession:
        after = guarded(self, changed)
        return replace(after, attempt=changed.attempt)

    return _instead((InMemorySessionRepo, "_guarded", unfenced))


def a_failed_push_is_not_undone() -> AbstractContextManager[None]:
    """The compensation."""

    async def undo(_: Any, __: UUID, cause: QueueUnavailable) -> None:
        raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return _instead((Submission, "_undo", undo))


def the_undo_does_not_look_who_won() -> AbstractContextManager[None]:
    """503 only where the failing compare-and-set won."""

    async def undo(self: Any, session_id: UUID, cause: QueueUnavailable) -> None:
        with suppress(DatabaseUnavailable):
            await self._sessions.fail_queued(session_id, submission.NOT_PUSHED)
        raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return _instead((Submission, "_undo", undo))


def a_doubt_is_told_as_a_refusal() -> AbstractContextManager[None]:
    """202 where neither queue nor store told what happened."""

    async def undo(self: Any, session_id: UUID, cause: QueueUnavailable) -> None:
        try:
            undone = await self._sessions.fail_queued(session_id, submission.NOT_PUSHED)
        except DatabaseUnavailable:
            undone = True
        if undone:
            raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return _instead((Submission, "_undo", undo))


def the_push_comes_first() -> AbstractContextManager[None]:
    """The order of charging and pushing: the credit is taken when the task is in the queue."""
    submit = Submission.submit

    async def push_and_charge(self: Any, request: Any) -> Any:
        session = self._session(request)
        await self._queue.push(GenerationTask.of(session, task_id=self._new_id()))
        return await submit(self, request)

    return _instead((Submission, "submit", push_and_charge))


def keys_are_not_unique() -> AbstractContextManager[None]:
    """One session per idempotency key."""
    return _instead((InMemorySessionRepo, "_with_key", lambda *_: None))


def an_undone_key_stays_taken() -> AbstractContextManager[None]:
    """A key whose submission ended 503 may be used again."""
    failed = GenerationSession.failed

    def keeping_its_key(
        self: GenerationSession, failure: Failure, **when: Any
    ) -> GenerationSession:
        return replace(failed(self, failure, **when), idempotency_key=self.idempotency_key)

    return _instead((GenerationSession, "failed", keeping_its_key))


def what_was_never_confirmed_is_pushed() -> AbstractContextManager[None]:
    """Recovery fails what its submitter never told anybody of."""
    overdue = InMemorySessionRepo.claim_overdue

    async def all_confirmed(self: Any, **options: Any) -> list[GenerationSession]:
        found = await overdue(self, **options)
        return [replace(session, confirmed=True) for session in found]

    return _instead((InMemorySessionRepo, "claim_overdue", all_confirmed))


def lost_tasks_stay_lost() -> AbstractContextManager[None]:
    """Recovery pushes again what the queue lost."""

    async def push_lost(*_: Any) -> None:
        return

    return _instead((Recovery, "_push_lost", push_lost))


def recovered_tasks_go_to_the_end() -> AbstractContextManager[None]:
    """Recovery's tail rule: what was lost goes before all others."""

    async def push_next(self: Any, tasks: Sequence[GenerationTask]) -> None:
        for task in tasks:
            await self.push(task)

    return _instead((InMemoryTaskQueue, "push_next", push_next))


def dead_leases_stay() -> AbstractContextManager[None]:
    """Recovery takes a dead worker's session away from it."""

    async def release_dead_leases(*_: Any, **__: Any) -> int:
        return 0

    return _instead((InMemorySessionRepo, "release_dead_leases", release_dead_leases))


def pictures_have_no_lifetime() -> AbstractContextManager[None]:
    """Only what is old is deleted."""
    claim_expired_images = InMemorySessionRepo.claim_expired_images

    async def all_ended(self: Any, **options: Any) -> list[GenerationSession]:
        return await claim_expired_images(self, **options | {"older_than": timedelta(0)})

    return _instead((InMemorySessionRepo, "claim_expired_images", all_ended))


def what_could_not_be_deleted_counts_as_deleted() -> AbstractContextManager[None]:
    """A deletion is noted when it has happened."""
    delete_picture = Recovery._delete_picture

    async def always(self: Any, session: GenerationSession) -> bool:
        await delete_picture(self, session)
        return True

    return _instead((Recovery, "_delete_picture", always))


def age_counts_as_death() -> AbstractContextManager[None]:
    """Alive means a renewed lease, never an age."""

    def dead(self: Any, _: timedelta) -> list[Any]:
        before = self._clock() - timedelta(seconds=3)
        rows = self._in_status(SessionStatus.PROCESSING)
        return [row for row in rows if (row.session.started_at or before) <= before]

    return _instead((InMemorySessionRepo, "_dead", dead))


def leases_follow_the_workers_clock() -> AbstractContextManager[None]:
    """The lease is measured on the store's clock; here the worker's is an hour ahead."""
    claimed = GenerationSession.claimed

    def ahead(self: GenerationSession, **when: Any) -> GenerationSession:
        session = claimed(self, **when)
        return replace(session, lease_expires_at=when["now"] + timedelta(hours=1))

    return _instead((GenerationSession, "claimed", ahead))


def leases_are_not_renewed() -> AbstractContextManager[None]:
    """A worker that lives keeps its lease, and one that lost it stops."""

    async def keep_lease(*_: Any) -> None:
        await asyncio.sleep(3_600)

    return _instead((leases, "_keep_lease", keep_lease))


def noted_jobs_are_not_resumed() -> AbstractContextManager[None]:
    """A later attempt waits for the job that an earlier one began."""

    async def resume(*_: Any) -> None:
        return None

    return _instead((JobPictureGenerator, "resume", resume))


def a_release_forgets_the_job() -> AbstractContextManager[None]:
    """A job stays with its session, whoever works on that next."""
    released = GenerationSession.released

    def forgetful(self: GenerationSession) -> GenerationSession:
        return replace(released(self), provider_job=None)

    return _instead((GenerationSession, "released", forgetful))


MUTANTS: Sequence[Mutant] = (
    any_status_may_be_failed,
    any_attempt_may_write,
    refunds_are_not_unique,
    a_failure_refunds_nothing,
    foreign_failures_are_not_refunded,
    a_final_status_may_be_overwritten,
    a_foreign_take_is_no_attempt,
    a_failed_push_is_not_undone,
    the_undo_does_not_look_who_won,
    a_doubt_is_told_as_a_refusal,
    the_push_comes_first,
    keys_are_not_unique,
    an_undone_key_stays_taken,
    what_was_never_confirmed_is_pushed,
    lost_tasks_stay_lost,
    recovered_tasks_go_to_the_end,
    dead_leases_stay,
    pictures_have_no_lifetime,
    what_could_not_be_deleted_counts_as_deleted,
    age_counts_as_death,
    leases_follow_the_workers_clock,
    leases_are_not_renewed,
    noted_jobs_are_not_resumed,
    a_release_forgets_the_job,
)


def caught(mutant: Mutant) -> str | None:
    """By what, and after how many runs; None if the mutant survives."""
    with mutant():
        for name, runs in (("scenario", _scenarios()), ("seed", _seeds()), ("plan", _plans())):
            deadline = time.monotonic() + SECONDS
            for number, run in enumerate(runs, 1):
                try:
                    run()
                except Violation:
                    return f"{name} {number}"
                if time.monotonic() > deadline:
                    break
    return None


def _scenarios() -> Iterator[Callable[[], object]]:
    yield from (run_backlog, run_long_work)


def _seeds() -> Iterator[Callable[[], object]]:
    for seed in range(SEEDS):
        yield partial(run_seed, seed)


def _plans() -> Iterator[Callable[[], object]]:
    """One fault at every call, then two."""
    calls = range(len(run_plan({})))
    for fault in FAULTS:
        for first in calls:
            yield partial(run_plan, {first: fault})
    for first, second in combinations(calls, 2):
        for one in FAULTS:
            for other in FAULTS:
                yield partial(run_plan, {first: one, second: other})


def main() -> None:
    """Print who caught which mutant. Exits 1 if one survives."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    survivors = 0
    for mutant in MUTANTS:
        by = caught(mutant)
        survivors += by is None
        print(f"{mutant.__name__:36} {by or 'SURVIVED'}", flush=True)  # noqa: T201
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
