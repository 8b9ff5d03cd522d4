"""AttemptRepoPort and RecoveryRepoPort: each write by itself changes the session it names, or those
that are due, and no other."""

import asyncio
from datetime import timedelta

import pytest

from domain.sessions import SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, picture_of

pytestmark = pytest.mark.anyio

EXTERNAL_TIMEOUT = timedelta(minutes=15)
MAX_ATTEMPTS = 3
MOMENT = timedelta(seconds=30)


async def release_dead(backend: Backend) -> int:
    return await backend.recovery.release_dead_leases(
        max_attempts=MAX_ATTEMPTS, external_timeout=EXTERNAL_TIMEOUT, limit=10
    )


async def fail_dead(backend: Backend) -> int:
    failed = await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=MAX_ATTEMPTS, external_timeout=EXTERNAL_TIMEOUT, limit=10
    )
    return len(failed)


@pytest.mark.parametrize("attempt", [1, MAX_ATTEMPTS])
async def test_live_lease_has_no_other_bound(backend: Backend, attempt: int) -> None:
    """The time since the claim counts only for an external consumer, which has no lease."""
    claimed = await backend.claimed(attempt=attempt, lease=3 * EXTERNAL_TIMEOUT)
    await backend.advance(2 * EXTERNAL_TIMEOUT)
    before = await backend.get(claimed.id)

    assert (await release_dead(backend), await fail_dead(backend)) == (0, 0)

    assert await backend.get(claimed.id) == before


async def test_dead_lease_with_attempts_left_is_not_failed(backend: Backend) -> None:
    """Even if nothing has released it yet."""
    claimed = (await backend.claimed(attempt=MAX_ATTEMPTS - 1)).id
    external = await backend.queued()
    await backend.external_write(external, status="processing")
    await backend.advance(EXTERNAL_TIMEOUT + MOMENT)

    assert await fail_dead(backend) == 0

    for session_id in (claimed, external):
        assert (await backend.get(session_id)).status is SessionStatus.PROCESSING


async def test_external_work_on_the_last_attempt_has_its_bound(backend: Backend) -> None:
    """It is failed after the time without a lease, not before."""
    session_id = await backend.queued()
    for _ in range(MAX_ATTEMPTS):
        await backend.external_write(session_id, status="queued")
        await backend.external_write(session_id, status="processing")

    await backend.advance(EXTERNAL_TIMEOUT - MOMENT)
    too_early = await fail_dead(backend)
    await backend.advance(2 * MOMENT)

    assert (too_early, await fail_dead(backend)) == (0, 1)
    assert await backend.money_of(session_id) == ["debit", "refund"]


async def test_final_session_is_not_confirmed(backend: Backend) -> None:
    """Also one that failed before its push was confirmed: nothing of a final session changes."""
    session_id = await backend.queued()
    await backend.sessions.fail_queued(session_id, FAILURE)
    before = await backend.get(session_id)

    assert await backend.sessions.confirm([session_id]) == 0

    assert await backend.get(session_id) == before
    assert not before.confirmed


async def test_pictures_completed_at_once_belong_each_to_its_session(backend: Backend) -> None:
    """However many calls share a statement."""
    sessions = [await backend.claimed() for _ in range(5)]
    pictures = [picture_of(session.id) for session in sessions]

    await asyncio.gather(
        *(
            backend.attempts.complete(session.id, attempt=1, picture=picture)
            for session, picture in zip(sessions, pictures, strict=True)
        )
    )

    assert [(await backend.get(session.id)).picture for session in sessions] == pictures


async def test_leases_renewed_at_once_belong_each_to_its_session(backend: Backend) -> None:
    """However many calls share a statement."""
    sessions = [await backend.claimed() for _ in range(5)]
    before = [(await backend.get(session.id)).lease_expires_at for session in sessions]

    await asyncio.gather(
        *(
            backend.attempts.renew(session.id, attempt=1, lease=(n + 2) * LEASE)
            for n, session in enumerate(sessions)
        )
    )

    for n, session in enumerate(sessions):
        old, new = before[n], (await backend.get(session.id)).lease_expires_at
        assert old is not None
        assert new is not None
        assert (new - old) / LEASE == pytest.approx(n + 1, abs=0.5)
