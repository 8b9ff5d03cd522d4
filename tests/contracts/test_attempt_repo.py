"""AttemptRepoPort: a claim hands out an attempt number, and only the current attempt may write."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from functools import partial
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.errors import DatabaseUnavailable, IllegalTransition
from domain.ports import AttemptRepoPort
from domain.sessions import Failure, GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, USAGE, picture_of

pytestmark = pytest.mark.anyio

NO_DELAY = timedelta(0)
CHARGED = ["debit"]
REFUNDED = ["debit", "refund"]
Write = Callable[[AttemptRepoPort, UUID, int], Awaitable[object]]
WRITES: dict[str, Write] = {
    "renew": lambda repo, id_, attempt: repo.renew(id_, attempt=attempt, lease=LEASE),
    "complete": lambda repo, id_, attempt: repo.complete(
        id_, attempt=attempt, picture=picture_of(id_)
    ),
    "fail": lambda repo, id_, attempt: repo.fail(id_, FAILURE, attempt=attempt),
    "release": lambda repo, id_, attempt: repo.release(id_, attempt=attempt, delay=NO_DELAY),
    "record_job": lambda repo, id_, attempt: repo.record_job(id_, attempt=attempt, job="fake:1"),
}


async def is_due(backend: Backend, session_id: UUID) -> bool:
    """Whether recovery would push the session again now."""
    due = await backend.recovery.claim_overdue(
        created_before=None, again_after=timedelta(days=1), limit=100
    )
    return session_id in {session.id for session in due}


async def test_claim_starts_an_attempt(backend: Backend) -> None:
    """``queued -> processing`` with the next attempt number and a lease from now on. It confirms
    the push."""
    queued = (await backend.created()).session

    claimed = await backend.claim(queued.id, lease=LEASE)

    assert claimed == await backend.get(queued.id)
    assert claimed.started_at is not None
    assert claimed == replace(
        queued,
        status=SessionStatus.PROCESSING,
        attempt=1,
        confirmed=True,
        started_at=claimed.started_at,
        lease_expires_at=claimed.started_at + LEASE,
    )


async def test_each_claim_has_its_own_attempt_number_and_start(backend: Backend) -> None:
    """So an older attempt can be distinguished from a newer one."""
    first = await backend.claimed()
    await backend.attempts.release(first.id, attempt=1, delay=NO_DELAY)
    first = await backend.get(first.id)
    await backend.advance(timedelta(minutes=1))

    second = await backend.claim(first.id)

    assert second.attempt == 2
    assert first.started_at is not None
    assert second.started_at is not None
    assert second.started_at > first.started_at


async def test_claim_of_an_unclaimable_session(backend: Backend) -> None:
    """None for a session that is unknown, processing or final."""
    working = await backend.claimed()
    ended = [await backend.finished(status) for status in SessionStatus if status.is_final]

    claims = [
        await backend.attempts.claim(session_id, lease=LEASE)
        for session_id in (uuid4(), working.id, *(session.id for session in ended))
    ]

    assert claims == [None, None, None, None]
    assert await backend.get(working.id) == working


async def test_one_of_many_concurrent_claims_wins(backend: Backend) -> None:
    """Copies of a task are harmless: each session gets one worker and one attempt."""
    ids = [await backend.queued() for _ in range(5)]

    claims = await asyncio.gather(
        *(backend.attempts.claim(session_id, lease=LEASE) for session_id in ids * 8)
    )

    winners = [claim for claim in claims if claim is not None]
    assert sorted(claim.id for claim in winners) == sorted(ids)
    assert {claim.attempt for claim in winners} == {1}


async def test_renewed_lease_starts_now(backend: Backend) -> None:
    """The new end is ``lease`` after the renewal, not after the old end."""
    claimed = await backend.claimed(lease=LEASE)
    await backend.advance(LEASE / 2)
    before = await backend.get(claimed.id)

    assert await backend.attempts.renew(claimed.id, attempt=1, lease=LEASE)

    after = await backend.get(claimed.id)
    assert before.lease_expires_at is not None
    assert after.lease_expires_at is not None
    gained = after.lease_expires_at - before.lease_expires_at
    assert LEASE / 2 <= gained < LEASE
    assert after == replace(before, lease_expires_at=after.lease_expires_at)


async def test_expired_lease_can_be_renewed(backend: Backend) -> None:
    """Only another attempt ends an attempt, time alone does not."""
    claimed = await backend.claimed()
    await backend.advance(2 * LEASE)

    assert await backend.attempts.renew(claimed.id, attempt=1, lease=LEASE)

    released = await backend.recovery.release_dead_leases(
        max_attempts=3, external_timeout=LEASE, limit=10
    )
    assert released == 0


async def test_complete_records_the_picture(backend: Backend) -> None:
    """``processing -> completed`` with picture, end and duration. The lease is cleared, and there
    is no refund."""
    claimed = await backend.claimed()
    await backend.advance(timedelta(seconds=2))
    before = await backend.get(claimed.id)

    assert await backend.attempts.complete(claimed.id, attempt=1, picture=picture_of(claimed.id))

    after = await backend.get(claimed.id)
    assert after.completed_at is not None
    assert after.processing_time_ms is not None
    assert before.started_at is not None
    assert after == replace(
        before,
        status=SessionStatus.COMPLETED,
        picture=picture_of(before.id),
        lease_expires_at=None,
        completed_at=after.completed_at,
        processing_time_ms=after.processing_time_ms,
    )
    took = (after.completed_at - before.started_at).total_seconds() * 1000
    assert after.processing_time_ms == pytest.approx(took, abs=1)
    assert 2_000 <= after.processing_time_ms < 10_000
    assert await backend.money_of(claimed.id) == CHARGED


async def test_complete_records_the_usage(backend: Backend) -> None:
    """Tokens and cost, to the last digit. None if the usage is unknown."""
    known, unknown = await backend.claimed(), await backend.claimed()

    assert await backend.attempts.complete(
        known.id, attempt=1, picture=picture_of(known.id), usage=USAGE
    )
    assert await backend.attempts.complete(
        unknown.id, attempt=1, picture=picture_of(unknown.id), usage=None
    )

    kept = (await backend.get(known.id)).usage
    assert kept == USAGE
    assert str(kept.estimated_cost_usd) == str(USAGE.estimated_cost_usd)
    assert (await backend.get(unknown.id)).usage is None
    assert (await backend.get(known.id)).picture == picture_of(known.id)


@pytest.mark.parametrize("claimed", [False, True])
async def test_fail_refunds_the_session(backend: Backend, *, claimed: bool) -> None:
    """``queued | processing -> failed`` with the reason, the end and the refund."""
    session = await backend.claimed() if claimed else (await backend.created()).session

    if claimed:
        assert await backend.attempts.fail(session.id, FAILURE, attempt=1)
    else:
        assert await backend.sessions.fail_queued(session.id, FAILURE)

    after = await backend.get(session.id)
    assert after.completed_at is not None
    assert after == replace(
        session,
        status=SessionStatus.FAILED,
        failure=FAILURE,
        lease_expires_at=None,
        completed_at=after.completed_at,
    )
    assert await backend.money_of(session.id) == REFUNDED
    assert await backend.balance() == 1


async def test_release_returns_the_session_to_the_queue(backend: Backend) -> None:
    """``processing -> queued`` without a lease. The attempt counts, and there is no refund."""
    claimed = await backend.claimed()

    assert await backend.attempts.release(claimed.id, attempt=1, delay=NO_DELAY)

    assert await backend.get(claimed.id) == replace(
        claimed, status=SessionStatus.QUEUED, lease_expires_at=None, attempts_excused=1
    )
    assert await backend.money_of(claimed.id) == CHARGED


async def test_released_session_is_due_after_its_delay(backend: Backend) -> None:
    """Not earlier, although it was created long ago."""
    claimed = await backend.claimed()
    await backend.advance(timedelta(hours=1))
    await backend.attempts.release(claimed.id, attempt=1, delay=timedelta(minutes=5))

    await backend.advance(timedelta(minutes=4))
    too_early = await is_due(backend, claimed.id)
    await backend.advance(timedelta(minutes=1))

    assert not too_early
    assert await is_due(backend, claimed.id)


async def test_released_session_can_be_claimed_before_its_delay(backend: Backend) -> None:
    """The delay is for recovery only. A task in the queue may be claimed at any time."""
    claimed = await backend.claimed()
    await backend.attempts.release(claimed.id, attempt=1, delay=timedelta(hours=1))

    assert (await backend.claim(claimed.id)).attempt == 2


async def test_postponed_session_is_due_after_its_delay(backend: Backend) -> None:
    """It stays ``queued`` without an attempt, and its push counts as confirmed: its task was
    popped. A claim may come earlier."""
    queued = (await backend.created()).session
    other = (await backend.created()).session

    assert await backend.attempts.postpone(queued.id, delay=timedelta(minutes=5))

    assert await backend.get(queued.id) == replace(queued, confirmed=True)
    assert not (await backend.get(other.id)).confirmed
    await backend.advance(timedelta(minutes=4))
    too_early = await is_due(backend, queued.id)
    await backend.advance(timedelta(minutes=1))
    assert (too_early, await is_due(backend, queued.id)) == (False, True)
    assert (await backend.claim(queued.id)).attempt == 1


async def test_only_a_queued_session_is_postponed(backend: Backend) -> None:
    """Nothing changes for one that is worked on, has ended or does not exist."""
    claimed = await backend.claimed()
    await backend.created()

    assert not await backend.attempts.postpone(claimed.id, delay=NO_DELAY)
    assert not await backend.attempts.postpone(UUID(int=1), delay=NO_DELAY)

    assert await backend.get(claimed.id) == claimed
    await backend.attempts.complete(claimed.id, attempt=1, picture=picture_of(claimed.id))
    ended = await backend.get(claimed.id)
    assert not await backend.attempts.postpone(claimed.id, delay=NO_DELAY)
    assert await backend.get(claimed.id) == ended


@pytest.mark.parametrize("write", WRITES)
@pytest.mark.parametrize("attempt", [0, 1, 3])
async def test_only_the_current_attempt_may_write(
    backend: Backend, write: str, attempt: int
) -> None:
    """A worker with another attempt number changes neither the session nor the ledger."""
    current = await backend.claimed(attempt=2)
    ledger = await backend.ledger()

    assert not await WRITES[write](backend.attempts, current.id, attempt)

    assert await backend.get(current.id) == current
    assert await backend.ledger() == ledger


@pytest.mark.parametrize("write", WRITES)
async def test_released_attempt_may_not_write(backend: Backend, write: str) -> None:
    """Not even before the next claim."""
    claimed = await backend.claimed()
    await backend.attempts.release(claimed.id, attempt=1, delay=NO_DELAY)
    before = await backend.get(claimed.id)

    assert not await WRITES[write](backend.attempts, claimed.id, 1)

    assert await backend.get(claimed.id) == before
    assert await backend.money_of(claimed.id) == CHARGED


@pytest.mark.parametrize("write", WRITES)
async def test_write_to_an_unknown_session(backend: Backend, write: str) -> None:
    """The result is False, not an error, and there is no refund."""
    assert not await WRITES[write](backend.attempts, uuid4(), 1)
    assert not await backend.sessions.fail_queued(uuid4(), FAILURE)

    assert await backend.ledger() == []


async def test_fail_needs_a_processing_session(backend: Backend) -> None:
    """A queued session has no current attempt."""
    session_id = await backend.queued()

    assert not await backend.attempts.fail(session_id, FAILURE, attempt=0)

    assert await backend.money_of(session_id) == CHARGED


@pytest.mark.parametrize("status", [SessionStatus.COMPLETED, SessionStatus.FAILED])
async def test_final_status_is_final(backend: Backend, status: SessionStatus) -> None:
    """None of our writes changes a final session or its ledger entries."""
    ended = await backend.finished(status)
    ledger = await backend.ledger()

    written = [await write(backend.attempts, ended.id, 1) for write in WRITES.values()]
    failed = await backend.sessions.fail_queued(ended.id, Failure(code="EXPIRED", message="again"))

    assert not any(written)
    assert not failed
    assert await backend.attempts.claim(ended.id, lease=LEASE) is None
    assert await backend.sessions.confirm([ended.id]) == 0
    assert await backend.get(ended.id) == ended
    assert await backend.ledger() == ledger


@pytest.mark.parametrize("status", [SessionStatus.COMPLETED, SessionStatus.FAILED])
async def test_final_status_is_final_for_external_consumers(
    backend: Backend, status: SessionStatus
) -> None:
    """The database refuses their writes as well."""
    ended = await backend.finished(status)

    for other in set(SessionStatus) - {status}:
        with pytest.raises(IllegalTransition):
            await backend.external_write(ended.id, status=other)

    assert await backend.get(ended.id) == ended


@pytest.mark.parametrize(
    "attempt", [pytest.param(None, id="queued"), pytest.param(1, id="processing")]
)
async def test_concurrent_failures_make_one_refund(backend: Backend, attempt: int | None) -> None:
    """Of many that fail the same session one succeeds."""
    session_id = (await backend.claimed()).id if attempt else await backend.queued()

    def fail() -> Awaitable[object]:
        if attempt is None:
            return backend.sessions.fail_queued(session_id, FAILURE)
        return backend.attempts.fail(session_id, FAILURE, attempt=attempt)

    results = await asyncio.gather(*(fail() for _ in range(20)))

    assert Counter(map(bool, results)) == {True: 1, False: 19}
    assert await backend.money_of(session_id) == REFUNDED
    assert await backend.balance() == 1


@pytest.mark.parametrize(
    ("claimed", "one", "other"),
    [
        (False, "cancel", "claim"),
        (True, "complete", "fail"),
        (True, "complete", "release"),
        (True, "fail", "release"),
    ],
)
async def test_one_of_two_concurrent_transitions_wins(
    backend: Backend, *, claimed: bool, one: str, other: str
) -> None:
    """The first one decides, and the ledger matches the status."""
    sessions = [await (backend.claimed() if claimed else backend.created()) for _ in range(20)]
    ids = [item.id if isinstance(item, GenerationSession) else item.session.id for item in sessions]

    async def cancel(session_id: UUID) -> bool:
        return await backend.sessions.fail_queued(session_id, FAILURE)

    async def claim(session_id: UUID) -> bool:
        return await backend.attempts.claim(session_id, lease=LEASE) is not None

    calls: dict[str, Callable[[UUID], Awaitable[bool]]] = {
        "cancel": cancel,
        "claim": claim,
        **{
            name: partial(_first_attempt, backend.attempts, write) for name, write in WRITES.items()
        },
    }
    results = await asyncio.gather(
        *(calls[name](session_id) for session_id in ids for name in (one, other))
    )

    assert [sum(pair) for pair in zip(results[::2], results[1::2], strict=True)] == [1] * 20
    for session_id in ids:
        session = await backend.get(session_id)
        expected = REFUNDED if session.status is SessionStatus.FAILED else CHARGED
        assert await backend.money_of(session_id) == expected


async def test_external_end_is_final(backend: Backend) -> None:
    """An external consumer completed or failed the session in the meantime. Our worker's writes
    come too late, and the database has filled in the missing columns."""
    completed, failed = await backend.claimed(), await backend.claimed()
    await backend.external_write(
        completed.id, status="completed", generated_image_url="https://x.example/", attempt=1
    )
    await backend.external_write(failed.id, status="failed", error_message="upstream said no")

    for session in (completed, failed):
        for write in WRITES.values():
            assert not await write(backend.attempts, session.id, 1)

    done, refused = await backend.get(completed.id), await backend.get(failed.id)
    assert done.generated_image_url == "https://x.example/"
    assert refused.failure == Failure(code="GENERATION_FAILED", message="upstream said no")
    for session in (done, refused):
        assert session.completed_at is not None
        assert session.lease_expires_at is None


async def _first_attempt(repo: AttemptRepoPort, write: Write, session_id: UUID) -> bool:
    return bool(await write(repo, session_id, 1))


async def _unknown_session(write: Write, repo: AttemptRepoPort) -> bool:
    return bool(await write(repo, uuid4(), 1))


CALLS: dict[str, Callable[[PostgresSessionRepo], Awaitable[object]]] = {
    "claim": lambda repo: repo.claim(uuid4(), lease=LEASE),
    "postpone": lambda repo: repo.postpone(uuid4(), delay=NO_DELAY),
    **{name: partial(_unknown_session, write) for name, write in WRITES.items()},
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
    assert set(CALLS) == {name for name in vars(AttemptRepoPort) if not name.startswith("_")}
