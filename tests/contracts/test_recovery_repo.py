"""RecoveryRepoPort: abandoned sessions reach a final status once, in bounded batches."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID

import pytest

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable
from domain.ports import RecoveryRepoPort
from domain.sessions import Failure, GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, STORE, USER, picture_of

pytestmark = pytest.mark.anyio

AGAIN_AFTER = timedelta(minutes=5)
EXTERNAL_TIMEOUT = timedelta(minutes=15)
QUEUE_TTL = timedelta(hours=1)
MAX_ATTEMPTS = 3
MOMENT = timedelta(seconds=30)
"""Shorter than any timeout here, and longer than a test."""

CHARGED = ["debit"]
REFUNDED = ["debit", "refund"]
OWNERS = [USER, STORE, *(Owner(channel=Channel.B2C, id=f"user-{number}") for number in range(3))]


async def overdue(
    backend: Backend, *, created_before: datetime | None = None, limit: int = 100
) -> list[GenerationSession]:
    return await backend.recovery.claim_overdue(
        created_before=created_before, again_after=AGAIN_AFTER, limit=limit
    )


async def overdue_ids(backend: Backend, *, limit: int = 100) -> list[UUID]:
    return [session.id for session in await overdue(backend, limit=limit)]


async def release(backend: Backend, *, limit: int = 100) -> int:
    return await backend.recovery.release_dead_leases(
        max_attempts=MAX_ATTEMPTS, external_timeout=EXTERNAL_TIMEOUT, limit=limit
    )


async def fail_dead(backend: Backend, *, limit: int = 100) -> int:
    failed = await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=MAX_ATTEMPTS, external_timeout=EXTERNAL_TIMEOUT, limit=limit
    )
    assert failed == [await backend.get(session.id) for session in failed]
    return len(failed)


async def fail_expired(backend: Backend, *, limit: int = 100) -> int:
    return await backend.recovery.fail_expired(FAILURE, older_than=QUEUE_TTL, limit=limit)


async def refund_missing(backend: Backend, *, limit: int = 100) -> int:
    return await backend.recovery.refund_missing(limit=limit)


async def expired(backend: Backend, owner: Owner) -> UUID:
    return await backend.queued(owner)


async def dead(backend: Backend, owner: Owner) -> UUID:
    return (await backend.claimed(owner)).id


async def spent(backend: Backend, owner: Owner) -> UUID:
    return (await backend.claimed(owner, attempt=MAX_ATTEMPTS)).id


async def unrefunded(backend: Backend, owner: Owner) -> UUID:
    return await backend.set_externally("failed", owner)


Make = Callable[[Backend, Owner], Awaitable[UUID]]
STEPS: dict[str, tuple[Make, Callable[..., Awaitable[int]], timedelta, list[str]]] = {
    "release_dead_leases": (dead, release, LEASE, CHARGED),
    "fail_dead_leases": (spent, fail_dead, LEASE, REFUNDED),
    "fail_expired": (expired, fail_expired, QUEUE_TTL, REFUNDED),
    "refund_missing": (unrefunded, refund_missing, timedelta(0), REFUNDED),
}
"""By method: a function that makes a session for it, the call, the time after which the session is
due, and the session's ledger entries afterwards."""


@pytest.mark.parametrize("method", STEPS)
async def test_step_stops_at_its_limit(backend: Backend, method: str) -> None:
    """The next call continues, and the last one finds no session."""
    make, step, due_after, money = STEPS[method]
    ids = [await make(backend, USER) for _ in range(5)]
    await backend.advance(due_after + MOMENT)

    counts = [await step(backend, limit=2) for _ in range(4)]

    assert counts == [2, 2, 1, 0]
    assert [await backend.money_of(session_id) for session_id in ids] == [money] * 5


@pytest.mark.parametrize("method", STEPS)
async def test_concurrent_steps_move_each_session_once(backend: Backend, method: str) -> None:
    """20 at once over the sessions of five owners: no deadlock, and each credit moves once."""
    make, step, due_after, money = STEPS[method]
    owner_of = {await make(backend, owner): owner for _ in range(6) for owner in OWNERS}
    await backend.advance(due_after + MOMENT)

    counts = await asyncio.gather(*(step(backend, limit=7) for _ in range(20)))

    assert sum(counts) == len(owner_of)
    assert max(counts) <= 7
    for session_id, owner in owner_of.items():
        assert await backend.money_of(session_id, owner) == money
    assert await backend.credits.audit(limit=10) == []


@pytest.mark.parametrize("method", STEPS)
async def test_step_leaves_other_sessions_alone(backend: Backend, method: str) -> None:
    """Queued sessions that are not due, sessions with a live lease, and final sessions."""
    ids = await backend.in_every_status()
    before = {name: await backend.get(session_id) for name, session_id in ids.items()}

    assert await STEPS[method][1](backend) == 0

    after = {name: await backend.get(session_id) for name, session_id in ids.items()}
    assert after == before


async def test_overdue_by_age(backend: Backend) -> None:
    """At least ``again_after``. A younger session's push is still in progress."""
    older = await backend.queued()
    await backend.advance(MOMENT)
    younger = await backend.queued()
    too_early = await overdue_ids(backend)

    await backend.advance(AGAIN_AFTER - MOMENT)
    first = await overdue_ids(backend)
    await backend.advance(MOMENT)
    second = await overdue_ids(backend)

    assert (too_early, first, second) == ([], [older], [younger])


async def test_only_queued_sessions_are_overdue(backend: Backend) -> None:
    """No processing or final session, by any writer."""
    ids = await backend.in_every_status()
    await backend.advance(AGAIN_AFTER)

    assert await overdue_ids(backend) == [ids["queued"]]


async def test_overdue_session_does_not_change(backend: Backend) -> None:
    """Confirmed or not, its owner sees no difference."""
    confirmed, unconfirmed = await backend.queued_in_turn(2)
    await backend.sessions.confirm([confirmed])
    await backend.advance(AGAIN_AFTER)
    before = [await backend.get(unconfirmed), await backend.get(confirmed)]

    sessions = await overdue(backend)

    assert sessions == before
    assert [session.confirmed for session in sessions] == [False, True]
    assert [await backend.get(session.id) for session in sessions] == before


async def test_overdue_sessions_are_newest_first(backend: Backend) -> None:
    """Each batch has the newest of the rest, up to the limit."""
    ids = await backend.queued_in_turn(5)
    await backend.advance(AGAIN_AFTER)

    batches = [await overdue_ids(backend, limit=2) for _ in range(4)]

    assert batches == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]], []]


async def test_overdue_sessions_of_one_time_are_ordered_by_id(backend: Backend) -> None:
    """So two readers agree."""
    ids = [await backend.queued() for _ in range(5)]
    await backend.align()
    await backend.advance(AGAIN_AFTER)

    assert await overdue_ids(backend) == sorted(ids, reverse=True)


async def test_created_before_is_exclusive(backend: Backend) -> None:
    """A session created at that very time is left out."""
    await backend.queued_in_turn(3)
    await backend.advance(AGAIN_AFTER)
    oldest, middle, _ = reversed(
        await backend.reads.history(None, status=None, limit=3, after=None)
    )

    older = await overdue(backend, created_before=middle.created_at)
    none = await overdue(backend, created_before=datetime(1999, 12, 31, tzinfo=UTC))

    assert ([session.id for session in older], none) == ([oldest.id], [])


async def test_overdue_session_is_due_again_after_again_after(backend: Backend) -> None:
    """Counted from its last claim, as often as needed."""
    session_id = await backend.queued()
    await backend.advance(2 * AGAIN_AFTER)
    returned = []

    for _ in range(3):
        returned += [await overdue_ids(backend), await overdue_ids(backend)]
        await backend.advance(AGAIN_AFTER - MOMENT)
        returned.append(await overdue_ids(backend))
        await backend.advance(MOMENT)

    assert returned == [[session_id], [], []] * 3


async def test_concurrent_callers_share_the_overdue_sessions(backend: Backend) -> None:
    """20 at once: no session is returned twice, and none is missed."""
    ids = [await backend.queued() for _ in range(30)]
    await backend.advance(AGAIN_AFTER)

    batches = await asyncio.gather(*(overdue(backend, limit=7) for _ in range(20)))

    assert sorted(session.id for batch in batches for session in batch) == sorted(ids)
    assert max(map(len, batches)) <= 7


async def test_released_session_is_due_by_its_delay(backend: Backend) -> None:
    """Its age and its earlier claims do not count."""
    session_id = await backend.queued()
    await backend.advance(AGAIN_AFTER)
    assert await overdue_ids(backend) == [session_id]
    await backend.claim(session_id)
    await backend.attempts.release(session_id, attempt=1, delay=AGAIN_AFTER / 2)

    too_early = await overdue_ids(backend)
    await backend.advance(AGAIN_AFTER / 2)

    assert (too_early, await overdue_ids(backend)) == ([], [session_id])


async def test_dead_lease_is_released(backend: Backend) -> None:
    """``processing -> queued``, due at once. The attempt counts, and there is no refund."""
    claimed = await backend.claimed(lease=LEASE)
    await backend.advance(LEASE + MOMENT)
    before = await backend.get(claimed.id)

    assert await release(backend) == 1

    assert await backend.get(claimed.id) == replace(
        before, status=SessionStatus.QUEUED, lease_expires_at=None
    )
    assert await overdue_ids(backend) == [claimed.id]
    assert await backend.money_of(claimed.id) == CHARGED


@pytest.mark.parametrize("attempt", [1, MAX_ATTEMPTS])
async def test_live_lease_is_left_alone(backend: Backend, attempt: int) -> None:
    """Alive means a renewed lease. The session's age does not count."""
    claimed = await backend.claimed(attempt=attempt, lease=LEASE)
    for _ in range(4):
        await backend.advance(LEASE - timedelta(seconds=10))
        assert await backend.attempts.renew(claimed.id, attempt=attempt, lease=LEASE)
        before = await backend.get(claimed.id)

        assert await release(backend) + await fail_dead(backend) == 0

        assert await backend.get(claimed.id) == before


@pytest.mark.parametrize("attempt", range(1, MAX_ATTEMPTS + 2))
async def test_dead_lease_is_released_until_its_attempts_are_spent(
    backend: Backend, attempt: int
) -> None:
    """Depending on the attempt number, exactly one of the two steps applies."""
    claimed = await backend.claimed(attempt=attempt)
    await backend.advance(LEASE + MOMENT)

    counts = (await release(backend), await fail_dead(backend))

    assert counts == ((1, 0) if attempt < MAX_ATTEMPTS else (0, 1))
    status = (await backend.get(claimed.id)).status
    assert status is (SessionStatus.QUEUED if attempt < MAX_ATTEMPTS else SessionStatus.FAILED)


async def test_spent_attempts_end_in_a_refund(backend: Backend) -> None:
    """``processing -> failed`` with the reason, the end and the refund."""
    claimed = await backend.claimed(attempt=MAX_ATTEMPTS)
    await backend.advance(LEASE + MOMENT)
    before = await backend.get(claimed.id)

    assert await fail_dead(backend) == 1

    after = await backend.get(claimed.id)
    assert after.completed_at is not None
    assert after == replace(
        before,
        status=SessionStatus.FAILED,
        failure=FAILURE,
        lease_expires_at=None,
        completed_at=after.completed_at,
    )
    assert await backend.money_of(claimed.id) == REFUNDED
    assert await backend.balance() == 1


async def test_worker_may_not_write_after_its_lease_died(backend: Backend) -> None:
    """After a release and after a failure, also if the worker was only slow."""
    released, failed = await backend.claimed(), await backend.claimed(attempt=MAX_ATTEMPTS)
    await backend.advance(LEASE + MOMENT)
    assert (await release(backend), await fail_dead(backend)) == (1, 1)

    for session in (released, failed):
        assert not await backend.attempts.complete(
            session.id, attempt=session.attempt, picture=picture_of(session.id)
        )


async def test_external_timeout(backend: Backend) -> None:
    """An external consumer has no lease. The time since ``processing`` counts, not the session's
    age, nor later writes. Then it is due at once."""
    session_id = await backend.queued()
    await backend.advance(EXTERNAL_TIMEOUT)
    await backend.external_write(session_id, status="processing")
    await backend.advance(EXTERNAL_TIMEOUT - MOMENT)
    await backend.external_write(session_id, status="processing", error_message="slow today")
    too_early = await release(backend) + await fail_dead(backend)
    await backend.advance(2 * MOMENT)

    released = await release(backend)

    assert (too_early, released) == (0, 1)
    session = await backend.get(session_id)
    assert (session.status, session.lease_expires_at) == (SessionStatus.QUEUED, None)
    assert await overdue_ids(backend) == [session_id]


async def test_external_claim_counts_as_an_attempt(backend: Backend) -> None:
    """So a task that kills every consumer ends in a refund as well."""
    session_id = await backend.queued()
    steps = []
    for _ in range(MAX_ATTEMPTS):
        await backend.external_write(session_id, status="processing")
        await backend.advance(EXTERNAL_TIMEOUT + MOMENT)
        steps.append((await release(backend), await fail_dead(backend)))

    assert steps == [(1, 0)] * (MAX_ATTEMPTS - 1) + [(0, 1)]
    assert (await backend.get(session_id)).attempt == MAX_ATTEMPTS
    assert await backend.money_of(session_id) == REFUNDED


async def test_external_claim_ends_the_attempt_before_it(backend: Backend) -> None:
    """A worker that lost its lease cannot write after an external consumer's claim."""
    claimed = await backend.claimed()
    await backend.advance(LEASE + MOMENT)
    assert await release(backend) == 1
    await backend.external_write(claimed.id, status="processing")

    stale = [
        await backend.attempts.renew(claimed.id, attempt=1, lease=LEASE),
        await backend.attempts.release(claimed.id, attempt=1, delay=LEASE),
        await backend.attempts.complete(claimed.id, attempt=1, picture=picture_of(claimed.id)),
        await backend.attempts.fail(claimed.id, FAILURE, attempt=1),
    ]

    assert not any(stale)
    assert (await backend.get(claimed.id)).status is SessionStatus.PROCESSING


async def test_external_claim_confirms_the_push(backend: Backend) -> None:
    """Its consumer has had the task."""
    session_id = await backend.set_externally("processing")

    assert (await backend.get(session_id)).confirmed


async def test_expired_session_is_refunded(backend: Backend) -> None:
    """``queued -> failed`` with the reason, the end and the refund, more than ``older_than`` after
    its creation."""
    session_id = await backend.queued()
    await backend.advance(QUEUE_TTL - MOMENT)
    too_early = await fail_expired(backend)
    await backend.advance(2 * MOMENT)
    before = await backend.get(session_id)

    assert (too_early, await fail_expired(backend)) == (0, 1)

    after = await backend.get(session_id)
    assert after.completed_at is not None
    assert after == replace(
        before, status=SessionStatus.FAILED, failure=FAILURE, completed_at=after.completed_at
    )
    assert await backend.money_of(session_id) == REFUNDED


async def test_only_queued_sessions_expire(backend: Backend) -> None:
    """A released session expires by its creation. A processing one does not."""
    ids = await backend.in_every_status()
    await backend.advance(QUEUE_TTL + MOMENT)

    assert await fail_expired(backend) == 2

    failed = await backend.reads.history(None, status=SessionStatus.FAILED, limit=10, after=None)
    expected = {ids[name] for name in ("queued", "released", "failed")}
    assert {session.id for session in failed} == expected


async def test_external_failure_is_refunded_once(backend: Backend) -> None:
    """The consumer's error message stays."""
    session_id = await backend.queued()
    await backend.external_write(session_id, status="failed", error_message="upstream said no")
    before = await backend.get(session_id)

    counts = (await refund_missing(backend), await refund_missing(backend))

    assert counts == (1, 0)
    assert await backend.get(session_id) == before
    assert before.failure == Failure(code="GENERATION_FAILED", message="upstream said no")
    assert await backend.money_of(session_id) == REFUNDED
    assert await backend.balance() == 1


async def test_refund_goes_to_the_payer(backend: Backend) -> None:
    """A store and a user with the same id have two accounts."""
    store, user = (Owner(channel=channel, id="same") for channel in Channel)
    await backend.queued(user)
    await backend.set_externally("failed", store)

    await refund_missing(backend)

    assert (await backend.balance(store), await backend.balance(user)) == (1, 0)


CALLS: dict[str, Callable[[RecoveryRepoPort], Awaitable[object]]] = {
    "claim_overdue": lambda repo: repo.claim_overdue(
        created_before=None, again_after=LEASE, limit=1
    ),
    "release_dead_leases": lambda repo: repo.release_dead_leases(
        max_attempts=1, external_timeout=LEASE, limit=1
    ),
    "fail_dead_leases": lambda repo: repo.fail_dead_leases(
        FAILURE, max_attempts=1, external_timeout=LEASE, limit=1
    ),
    "fail_expired": lambda repo: repo.fail_expired(FAILURE, older_than=LEASE, limit=1),
    "refund_missing": lambda repo: repo.refund_missing(limit=1),
    "claim_expired_images": lambda repo: repo.claim_expired_images(
        older_than=LEASE, again_after=LEASE, limit=1
    ),
    "mark_images_deleted": lambda repo: repo.mark_images_deleted([UUID(int=0)]),
}


@pytest.mark.parametrize("method", CALLS)
async def test_database_that_is_down_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method raises DatabaseUnavailable."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresSessionRepo(database))

    await database.close()


def test_every_method_is_called_without_a_server() -> None:
    """A new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(RecoveryRepoPort) if not name.startswith("_")}
