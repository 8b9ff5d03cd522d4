"""Mutants of the guards of work, money and recovery."""

import asyncio
from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

from adapters.credits.memory import InMemoryCreditRepo
from adapters.images.jobs import JobPictureGenerator
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions import memory, memory_rules
from adapters.sessions.memory import InMemorySessionRepo
from domain import leases
from domain.credits import LedgerKind, Owner
from domain.errors import (
    StorageUnavailable,
)
from domain.generation import Generation
from domain.picture_ports import PictureGeneratorPort
from domain.recovery import Recovery
from domain.sessions import Blame, GenerationSession, SessionStatus
from domain.tasks import GenerationTask
from tests.simulation.replacing import Mutant, instead
from tests.simulation.watched import WatchedImageStorage


def any_status_counts_as_queued() -> AbstractContextManager[None]:
    """No compare-and-set of the status: a claim or a cancellation finds any session queued."""
    return instead(
        (InMemorySessionRepo, "_queued", lambda self, id_: self._rows.get(id_)),
        (GenerationSession, "_require", lambda *_: None),
    )


def any_attempt_may_write() -> AbstractContextManager[None]:
    """No attempt in the WHERE of complete, fail, release and renew."""

    def current(self: Any, session_id: UUID, _: int) -> Any:
        row = self._rows.get(session_id)
        return row if row and row.session.status is SessionStatus.PROCESSING else None

    return instead((InMemorySessionRepo, "_current", current))


def refunds_are_not_unique() -> AbstractContextManager[None]:
    """Neither the refund's ledger entry is unique, nor is the session marked as refunded."""

    def refund(self: Any, owner: Owner, cost: int, session_id: UUID) -> bool:
        self._record(owner, LedgerKind.REFUND, cost, session_id=session_id)
        return True

    async def refund_missing(self: Any, *, limit: int, **_: Any) -> int:
        for row in self._in_status(SessionStatus.FAILED)[:limit]:
            self._refund(row)
        return 0

    return instead(
        (InMemoryCreditRepo, "refund", refund),
        (InMemorySessionRepo, "refund_missing", refund_missing),
    )


def a_failure_refunds_nothing() -> AbstractContextManager[None]:
    """No refund in the transaction of the failure."""
    return instead((InMemorySessionRepo, "_refund", lambda *_: None))


def external_failures_are_not_refunded() -> AbstractContextManager[None]:
    """Recovery refunds no failure that an external consumer wrote."""

    async def refund_missing(*_: Any, **__: Any) -> int:
        return 0

    return instead((InMemorySessionRepo, "refund_missing", refund_missing))


def a_final_status_may_be_overwritten() -> AbstractContextManager[None]:
    """The database does not guard final rows against other programs."""

    def overwrite(self: Any, session_id: UUID, **changes: Any) -> None:
        row = self._rows[session_id]
        self._put(row, replace(row.session, **changes))

    return instead((InMemorySessionRepo, "overwrite", overwrite))


def an_external_claim_is_no_attempt() -> AbstractContextManager[None]:
    """An external consumer does not fence the worker before it."""
    guarded = memory_rules.after_trigger

    def unfenced(changed: GenerationSession, *, now: datetime) -> GenerationSession:
        return replace(guarded(changed, now=now), attempt=changed.attempt)

    return instead((memory, "after_trigger", unfenced))


def unconfirmed_sessions_are_pushed_again() -> AbstractContextManager[None]:
    """Recovery pushes sessions whose caller got no 202, instead of failing them."""
    overdue = InMemorySessionRepo.claim_overdue

    async def all_confirmed(self: Any, **options: Any) -> list[GenerationSession]:
        found = await overdue(self, **options)
        return [replace(session, confirmed=True) for session in found]

    return instead((InMemorySessionRepo, "claim_overdue", all_confirmed))


def lost_tasks_stay_lost() -> AbstractContextManager[None]:
    """Recovery does not push again what the queue lost."""

    async def push_lost(*_: Any) -> None:
        return

    return instead((Recovery, "_push_lost", push_lost))


def recovered_tasks_go_to_the_end() -> AbstractContextManager[None]:
    """Recovered tasks are pushed behind all others, instead of before them."""

    async def push_next(self: Any, tasks: Sequence[GenerationTask]) -> None:
        for task in tasks:
            await self.push(task)

    return instead((InMemoryTaskQueue, "push_next", push_next))


def expired_leases_stay() -> AbstractContextManager[None]:
    """Recovery does not release a dead worker's session."""

    async def release_dead_leases(*_: Any, **__: Any) -> int:
        return 0

    return instead((InMemorySessionRepo, "release_dead_leases", release_dead_leases))


def pictures_have_no_lifetime() -> AbstractContextManager[None]:
    """Pictures of all final sessions are deleted, not only old ones."""
    claim_expired_images = InMemorySessionRepo.claim_expired_images

    async def all_ended(self: Any, **options: Any) -> list[GenerationSession]:
        return await claim_expired_images(self, **options | {"older_than": timedelta(0)})

    return instead((InMemorySessionRepo, "claim_expired_images", all_ended))


def failed_deletions_count_as_done() -> AbstractContextManager[None]:
    """Recovery marks pictures as deleted that are not."""
    delete_picture = Recovery._delete_picture

    async def always(self: Any, session: GenerationSession) -> None:
        await delete_picture(self, session)

    return instead((Recovery, "_delete_picture", always))


def age_counts_as_death() -> AbstractContextManager[None]:
    """A worker is dead after a certain time, whether or not its lease is renewed."""

    def dead(self: Any, _: timedelta) -> list[Any]:
        before = self._clock() - timedelta(seconds=3)
        rows = self._in_status(SessionStatus.PROCESSING)
        return [row for row in rows if (row.session.started_at or before) <= before]

    return instead((InMemorySessionRepo, "_dead", dead))


def leases_follow_the_workers_clock() -> AbstractContextManager[None]:
    """Leases are measured on the worker's clock, which is an hour ahead of the database's."""
    claimed = GenerationSession.claimed

    def ahead(self: GenerationSession, **when: Any) -> GenerationSession:
        session = claimed(self, **when)
        return replace(session, lease_expires_at=when["now"] + timedelta(hours=1))

    return instead((GenerationSession, "claimed", ahead))


def leases_are_not_renewed() -> AbstractContextManager[None]:
    """A live worker loses its lease, and one that lost it does not stop."""

    async def keep_lease(*_: Any) -> None:
        await asyncio.sleep(3_600)

    return instead((leases, "_keep_lease", keep_lease))


def recorded_jobs_are_not_resumed() -> AbstractContextManager[None]:
    """A later attempt begins a new job instead of waiting for the earlier one."""

    async def resume(*_: Any) -> None:
        return None

    return instead((JobPictureGenerator, "resume", resume))


def a_release_forgets_the_job() -> AbstractContextManager[None]:
    """A released session does not keep the name of its job."""
    released = GenerationSession.released

    def forgetful(self: GenerationSession, *args: Any, **kwargs: Any) -> GenerationSession:
        return replace(released(self, *args, **kwargs), provider_job=None)

    return instead((GenerationSession, "released", forgetful))


def our_faults_are_the_sessions() -> AbstractContextManager[None]:
    """A full storage and a busy provider spend the session's attempts."""
    released = GenerationSession.released

    def blamed(self: GenerationSession, _: Blame | None = None, **kwargs: Any) -> GenerationSession:
        return released(self, Blame.SESSION, **kwargs)

    def was_last(self: Generation, session: GenerationSession, _: Exception) -> bool:
        return session.attempts_spent >= self._policy.max_attempts

    return instead((GenerationSession, "released", blamed), (Generation, "_was_last", was_last))


def full_storage_is_not_found_out() -> AbstractContextManager[None]:
    """A picture is paid for although it cannot be stored."""

    async def check(_: object) -> None:
        return None

    return instead((WatchedImageStorage, "check", check))


def paid_pictures_are_not_held() -> AbstractContextManager[None]:
    """A picture that the storage does not take is dropped, and paid for again."""

    async def give_up(_: object, __: object, held: Any) -> None:
        raise StorageUnavailable("full", cause=held.cause)

    return instead(
        (Generation, "_store_held", give_up),
        (JobPictureGenerator, "resume", PictureGeneratorPort.resume),
    )


def an_unsound_session_stops_its_batch() -> AbstractContextManager[None]:
    """The database rejects a batch as a whole, and recovery does not go through it one by one."""
    each = InMemorySessionRepo._each

    def all_or_none(self: Any, due: Any, move: Any, limit: int, _: Any) -> Any:
        return each(self, due, move, limit, None)

    return instead((InMemorySessionRepo, "_each", all_or_none))


def unsound_sessions_are_not_passed_over() -> AbstractContextManager[None]:
    """They are first in every batch."""
    each = InMemorySessionRepo._each

    def from_the_start(self: Any, due: Any, move: Any, limit: int, blocked: Any) -> Any:
        found: dict[UUID, Any] = {}
        moved = each(self, due, move, limit, found)
        blocked.update(found)
        return moved

    return instead((InMemorySessionRepo, "_each", from_the_start))


WORK_MUTANTS: Sequence[Mutant] = (
    any_status_counts_as_queued,
    any_attempt_may_write,
    refunds_are_not_unique,
    a_failure_refunds_nothing,
    external_failures_are_not_refunded,
    a_final_status_may_be_overwritten,
    an_external_claim_is_no_attempt,
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
)
