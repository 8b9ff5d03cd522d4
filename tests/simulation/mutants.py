"""``python -m tests.simulation.mutants``: can the simulation fail?

Each mutant removes one guard, and the simulation must find a violation. Exits 1 if one survives.
"""

import asyncio
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from dataclasses import replace
from datetime import datetime, timedelta
from functools import partial
from itertools import combinations
from typing import Any
from uuid import UUID

import structlog

from adapters.credits.memory import InMemoryCreditRepo
from adapters.images.jobs import JobPictureGenerator
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions import memory, memory_rules
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.memory_limits import InMemoryLimits
from domain import leases, submission
from domain.credits import LedgerKind, Owner
from domain.errors import (
    DatabaseUnavailable,
    QueueUnavailable,
    StorageUnavailable,
    Unconfirmed,
)
from domain.generation import Generation
from domain.picture_ports import PictureGeneratorPort
from domain.plans import Rate, TokenBudget
from domain.ports import Receipt
from domain.recovery import Recovery
from domain.sessions import Blame, Failure, GenerationSession, SessionStatus
from domain.submission import Submission
from domain.tasks import GenerationTask
from tests.simulation import actors
from tests.simulation.cancel_mutants import CANCEL_MUTANTS
from tests.simulation.fates import FAULTS
from tests.simulation.replacing import Mutant
from tests.simulation.replacing import instead as _instead
from tests.simulation.scenarios import (
    run_backlog,
    run_blip,
    run_cancellation,
    run_long_work,
    run_plan,
    run_repetitions,
    run_seed,
    run_shortage,
    run_unsound,
)
from tests.simulation.world import Violation, WatchedImageStorage

SEEDS = 1_000
CPU_SECONDS = 90.0


def any_status_counts_as_queued() -> AbstractContextManager[None]:
    """No compare-and-set of the status: a claim or a cancellation finds any session queued."""
    return _instead(
        (InMemorySessionRepo, "_queued", lambda self, id_: self._rows.get(id_)),
        (GenerationSession, "_require", lambda *_: None),
    )


def any_attempt_may_write() -> AbstractContextManager[None]:
    """No attempt in the WHERE of complete, fail, release and renew."""

    def current(self: Any, session_id: UUID, _: int) -> Any:
        row = self._rows.get(session_id)
        return row if row and row.session.status is SessionStatus.PROCESSING else None

    return _instead((InMemorySessionRepo, "_current", current))


def refunds_are_not_unique() -> AbstractContextManager[None]:
    """Neither the refund's ledger entry is unique, nor is the session marked as refunded."""

    def refund(self: Any, owner: Owner, cost: int, session_id: UUID) -> bool:
        self._record(owner, LedgerKind.REFUND, cost, session_id=session_id)
        return True

    async def refund_missing(self: Any, *, limit: int, **_: Any) -> int:
        for row in self._in_status(SessionStatus.FAILED)[:limit]:
            self._refund(row)
        return 0

    return _instead(
        (InMemoryCreditRepo, "refund", refund),
        (InMemorySessionRepo, "refund_missing", refund_missing),
    )


def a_failure_refunds_nothing() -> AbstractContextManager[None]:
    """No refund in the transaction of the failure."""
    return _instead((InMemorySessionRepo, "_refund", lambda *_: None))


def external_failures_are_not_refunded() -> AbstractContextManager[None]:
    """Recovery refunds no failure that an external consumer wrote."""

    async def refund_missing(*_: Any, **__: Any) -> int:
        return 0

    return _instead((InMemorySessionRepo, "refund_missing", refund_missing))


def a_final_status_may_be_overwritten() -> AbstractContextManager[None]:
    """The database does not guard final rows against other programs."""

    def overwrite(self: Any, session_id: UUID, **changes: Any) -> None:
        row = self._rows[session_id]
        self._put(row, replace(row.session, **changes))

    return _instead((InMemorySessionRepo, "overwrite", overwrite))


def an_external_claim_is_no_attempt() -> AbstractContextManager[None]:
    """An external consumer does not fence the worker before it."""
    guarded = memory_rules.after_trigger

    def unfenced(changed: GenerationSession, *, now: datetime) -> GenerationSession:
        return replace(guarded(changed, now=now), attempt=changed.attempt)

    return _instead((memory, "after_trigger", unfenced))


def a_failed_push_is_not_undone() -> AbstractContextManager[None]:
    """No compensation after a failed push."""

    async def undo(_: Any, __: GenerationSession, cause: Exception) -> None:
        raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return _instead((Submission, "_undo", undo))


def the_undo_ignores_who_won() -> AbstractContextManager[None]:
    """503 even if a worker won the compare-and-set."""

    async def undo(self: Any, session: GenerationSession, cause: Exception) -> None:
        with suppress(DatabaseUnavailable):
            await self._sessions.fail_queued(session.id, submission.NOT_PUSHED, undo=True)
        raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return _instead((Submission, "_undo", undo))


def an_unknown_outcome_is_answered_503() -> AbstractContextManager[None]:
    """503 even if neither the queue nor the database answered."""

    async def undo(self: Any, session: GenerationSession, cause: Exception) -> None:
        try:
            undone = await self._sessions.fail_queued(session.id, submission.NOT_PUSHED, undo=True)
        except DatabaseUnavailable:
            undone = True
        if undone:
            raise QueueUnavailable(submission.UNAVAILABLE_MESSAGE) from cause

    return _instead((Submission, "_undo", undo))


def every_error_reply_counts_as_a_refusal() -> AbstractContextManager[None]:
    """A proxy's error reply counts as Redis's own: as if the push had had no effect."""

    def refused(call: str, _: bool) -> Exception:
        return QueueUnavailable(call, refused=True)

    return _instead((actors, "queue_error", refused))


def the_push_precedes_the_debit() -> AbstractContextManager[None]:
    """The credit is taken when the task is in the queue already."""
    submit = Submission.submit

    async def push_and_charge(self: Any, request: Any) -> Any:
        session = self._session(request)
        await self._queue.push(GenerationTask.of(session, task_id=self._new_id()))
        return await submit(self, request)

    return _instead((Submission, "submit", push_and_charge))


def keys_are_not_unique() -> AbstractContextManager[None]:
    """Several sessions per idempotency key."""
    return _instead((InMemorySessionRepo, "_with_key", lambda *_: None))


def recovery_frees_keys() -> AbstractContextManager[None]:
    """Every session that was never pushed gives its key back, also one that recovery fails."""
    failed = GenerationSession.failed

    def freeing(self: GenerationSession, failure: Failure, **how: Any) -> GenerationSession:
        after = failed(self, failure, **how)
        never_pushed = failure == submission.NOT_PUSHED
        return replace(after, idempotency_key=None) if never_pushed else after

    return _instead((GenerationSession, "failed", freeing))


def the_undo_ignores_confirmations() -> AbstractContextManager[None]:
    """The undo frees the key of a session that was claimed and released meanwhile."""
    fail_queued = InMemorySessionRepo.fail_queued

    async def any_queued(
        self: Any, session_id: UUID, failure: Failure, *, undo: bool = False
    ) -> bool:
        if undo and (row := self._queued(session_id)) is not None:
            row.session = replace(row.session, confirmed=False)
        return await fail_queued(self, session_id, failure, undo=undo)

    return _instead((InMemorySessionRepo, "fail_queued", any_queued))


def replays_do_not_wait() -> AbstractContextManager[None]:
    """A replay is answered with a session that its first submitter may still undo."""

    async def at_once(_: Any, __: GenerationSession, receipt: Receipt) -> Receipt:
        return receipt

    return _instead((Submission, "_until_confirmed", at_once))


def replays_adopt_a_session() -> AbstractContextManager[None]:
    """A replay pushes the task of a session that is not confirmed."""

    async def push(self: Any, _: GenerationSession, receipt: Receipt) -> Receipt:
        if not self._stands(receipt.session):
            await self._queue.push(GenerationTask.of(receipt.session, task_id=self._new_id()))
            self._unconfirmed[receipt.session.id] = None
        return receipt

    return _instead((Submission, "_until_confirmed", push))


def an_unknown_undo_keeps_its_202() -> AbstractContextManager[None]:
    """202 for a key that the undo may have freed."""
    undo = Submission._undo

    async def accepting(self: Any, session: GenerationSession, cause: Exception) -> None:
        with suppress(Unconfirmed):
            await undo(self, session, cause)

    return _instead((Submission, "_undo", accepting))


def unconfirmed_sessions_are_pushed_again() -> AbstractContextManager[None]:
    """Recovery pushes sessions whose caller got no 202, instead of failing them."""
    overdue = InMemorySessionRepo.claim_overdue

    async def all_confirmed(self: Any, **options: Any) -> list[GenerationSession]:
        found = await overdue(self, **options)
        return [replace(session, confirmed=True) for session in found]

    return _instead((InMemorySessionRepo, "claim_overdue", all_confirmed))


def lost_tasks_stay_lost() -> AbstractContextManager[None]:
    """Recovery does not push again what the queue lost."""

    async def push_lost(*_: Any) -> None:
        return

    return _instead((Recovery, "_push_lost", push_lost))


def recovered_tasks_go_to_the_end() -> AbstractContextManager[None]:
    """Recovered tasks are pushed behind all others, instead of before them."""

    async def push_next(self: Any, tasks: Sequence[GenerationTask]) -> None:
        for task in tasks:
            await self.push(task)

    return _instead((InMemoryTaskQueue, "push_next", push_next))


def expired_leases_stay() -> AbstractContextManager[None]:
    """Recovery does not release a dead worker's session."""

    async def release_dead_leases(*_: Any, **__: Any) -> int:
        return 0

    return _instead((InMemorySessionRepo, "release_dead_leases", release_dead_leases))


def pictures_have_no_lifetime() -> AbstractContextManager[None]:
    """Pictures of all final sessions are deleted, not only old ones."""
    claim_expired_images = InMemorySessionRepo.claim_expired_images

    async def all_ended(self: Any, **options: Any) -> list[GenerationSession]:
        return await claim_expired_images(self, **options | {"older_than": timedelta(0)})

    return _instead((InMemorySessionRepo, "claim_expired_images", all_ended))


def failed_deletions_count_as_done() -> AbstractContextManager[None]:
    """Recovery marks pictures as deleted that are not."""
    delete_picture = Recovery._delete_picture

    async def always(self: Any, session: GenerationSession) -> None:
        await delete_picture(self, session)

    return _instead((Recovery, "_delete_picture", always))


def age_counts_as_death() -> AbstractContextManager[None]:
    """A worker is dead after a certain time, whether or not its lease is renewed."""

    def dead(self: Any, _: timedelta) -> list[Any]:
        before = self._clock() - timedelta(seconds=3)
        rows = self._in_status(SessionStatus.PROCESSING)
        return [row for row in rows if (row.session.started_at or before) <= before]

    return _instead((InMemorySessionRepo, "_dead", dead))


def leases_follow_the_workers_clock() -> AbstractContextManager[None]:
    """Leases are measured on the worker's clock, which is an hour ahead of the database's."""
    claimed = GenerationSession.claimed

    def ahead(self: GenerationSession, **when: Any) -> GenerationSession:
        session = claimed(self, **when)
        return replace(session, lease_expires_at=when["now"] + timedelta(hours=1))

    return _instead((GenerationSession, "claimed", ahead))


def leases_are_not_renewed() -> AbstractContextManager[None]:
    """A live worker loses its lease, and one that lost it does not stop."""

    async def keep_lease(*_: Any) -> None:
        await asyncio.sleep(3_600)

    return _instead((leases, "_keep_lease", keep_lease))


def recorded_jobs_are_not_resumed() -> AbstractContextManager[None]:
    """A later attempt begins a new job instead of waiting for the earlier one."""

    async def resume(*_: Any) -> None:
        return None

    return _instead((JobPictureGenerator, "resume", resume))


def a_release_forgets_the_job() -> AbstractContextManager[None]:
    """A released session does not keep the name of its job."""
    released = GenerationSession.released

    def forgetful(self: GenerationSession, *args: Any, **kwargs: Any) -> GenerationSession:
        return replace(released(self, *args, **kwargs), provider_job=None)

    return _instead((GenerationSession, "released", forgetful))


def our_faults_are_the_sessions() -> AbstractContextManager[None]:
    """A full storage and a busy provider spend the session's attempts."""
    released = GenerationSession.released

    def blamed(self: GenerationSession, _: Blame | None = None, **kwargs: Any) -> GenerationSession:
        return released(self, Blame.SESSION, **kwargs)

    def was_last(self: Generation, session: GenerationSession, _: Exception) -> bool:
        return session.attempts_spent >= self._policy.max_attempts

    return _instead((GenerationSession, "released", blamed), (Generation, "_was_last", was_last))


def full_storage_is_not_found_out() -> AbstractContextManager[None]:
    """A picture is paid for although it cannot be stored."""

    async def check(_: object) -> None:
        return None

    return _instead((WatchedImageStorage, "check", check))


def paid_pictures_are_not_held() -> AbstractContextManager[None]:
    """A picture that the storage does not take is dropped, and paid for again."""

    async def give_up(_: object, __: object, held: Any) -> None:
        raise StorageUnavailable("full", cause=held.cause)

    return _instead(
        (Generation, "_store_held", give_up),
        (JobPictureGenerator, "resume", PictureGeneratorPort.resume),
    )


def an_unsound_session_stops_its_batch() -> AbstractContextManager[None]:
    """The database rejects a batch as a whole, and recovery does not go through it one by one."""
    each = InMemorySessionRepo._each

    def all_or_none(self: Any, due: Any, move: Any, limit: int, _: Any) -> Any:
        return each(self, due, move, limit, None)

    return _instead((InMemorySessionRepo, "_each", all_or_none))


def unsound_sessions_are_not_passed_over() -> AbstractContextManager[None]:
    """They are first in every batch."""
    each = InMemorySessionRepo._each

    def from_the_start(self: Any, due: Any, move: Any, limit: int, blocked: Any) -> Any:
        found: dict[UUID, Any] = {}
        moved = each(self, due, move, limit, found)
        blocked.update(found)
        return moved

    return _instead((InMemorySessionRepo, "_each", from_the_start))


def refunds_keep_the_tokens_picture() -> AbstractContextManager[None]:
    """A shopper's failed session still counts against its client token."""
    return _instead((InMemoryLimits, "refunded", lambda *_: None))


def tokens_are_not_checked() -> AbstractContextManager[None]:
    """A client token allows any number of pictures."""
    return _instead((TokenBudget, "is_used_up", False))


def rates_are_not_counted() -> AbstractContextManager[None]:
    """A debit leaves the rate as it was."""
    return _instead((Rate, "used", lambda _, unused_at, now, calls=1: unused_at or now))  # noqa: ARG005


def users_sign_up_at_every_debit() -> AbstractContextManager[None]:
    """The sign-up credits are not tied to an account without entries."""

    def sign_up(self: Any, owner: Owner, credits_: int) -> None:
        self._accounts.grant_at_once(owner, credits_, note="sign-up credits")

    create = InMemorySessionRepo.create

    async def granted(self: Any, session: Any, **terms: Any) -> Receipt:
        if terms.get("signup_credits"):
            sign_up(self, session.owner, terms["signup_credits"])
        return await create(self, session, max_active=terms["max_active"])

    return _instead((InMemorySessionRepo, "create", granted))


def signups_of_a_day_are_not_capped() -> AbstractContextManager[None]:
    """Every newcomer is granted its credits."""
    return _instead((InMemoryCreditRepo, "count_signup", lambda *_, per_day: per_day > 0))


MUTANTS: Sequence[Mutant] = (
    any_status_counts_as_queued,
    any_attempt_may_write,
    refunds_are_not_unique,
    a_failure_refunds_nothing,
    external_failures_are_not_refunded,
    a_final_status_may_be_overwritten,
    an_external_claim_is_no_attempt,
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
    unconfirmed_sessions_are_pushed_again,
    lost_tasks_stay_lost,
    recovered_tasks_go_to_the_end,
    expired_leases_stay,
    pictures_have_no_lifetime,
    failed_deletions_count_as_done,
    age_counts_as_death,
    leases_follow_the_workers_clock,
    leases_are_not_renewed,
    recorded_jobs_are_not_resumed,
    a_release_forgets_the_job,
    our_faults_are_the_sessions,
    full_storage_is_not_found_out,
    paid_pictures_are_not_held,
    an_unsound_session_stops_its_batch,
    unsound_sessions_are_not_passed_over,
    refunds_keep_the_tokens_picture,
    tokens_are_not_checked,
    rates_are_not_counted,
    users_sign_up_at_every_debit,
    signups_of_a_day_are_not_capped,
    *CANCEL_MUTANTS,
)


def caught(mutant: Mutant) -> str | None:
    """Which run found a violation; None if the mutant survives."""
    with mutant():
        for name, runs in (("scenario", _scenarios()), ("seed", _seeds()), ("plan", _plans())):
            deadline = time.process_time() + CPU_SECONDS
            for number, run in enumerate(runs, 1):
                try:
                    run()
                except Violation:
                    return f"{name} {number}"
                if time.process_time() > deadline:
                    break
    return None


def _scenarios() -> Iterator[Callable[[], object]]:
    yield from (run_backlog, run_long_work, run_shortage, run_blip, run_repetitions, run_unsound)
    yield run_cancellation


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
    """Print which run caught each mutant. Exits 1 if one survives."""
    structlog.configure(wrapper_class=structlog.make_filtering_bound_logger("critical"))
    survivors = 0
    for mutant in MUTANTS:
        by = caught(mutant)
        survivors += by is None
        print(f"{mutant.__name__:36} {by or 'SURVIVED'}", flush=True)  # noqa: T201
    sys.exit(1 if survivors else 0)


if __name__ == "__main__":
    main()
