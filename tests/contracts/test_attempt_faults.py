"""Why attempts failed: what is recorded, what an attempt costs, and when the record goes."""

from dataclasses import replace
from datetime import timedelta

import pytest

from domain.sessions import LOST_LEASE, AttemptFault, Blame, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, FAULT, LEASE, picture_of

pytestmark = pytest.mark.anyio

NO_DELAY = timedelta(0)
MINUTE = timedelta(minutes=1)


async def recorded(backend: Backend, session_id: object) -> list[AttemptFault]:
    return await backend.reads.attempt_faults(session_id)  # type: ignore[arg-type]


async def test_released_attempt_leaves_its_fault(backend: Backend) -> None:
    """With the time, the worker, the code and the cause."""
    session = await backend.released(FAULT)

    (fault,) = await recorded(backend, session.id)

    assert fault == AttemptFault(
        attempt=1,
        at=fault.at,
        worker="worker-1:7",
        code="IMAGE_UNREACHABLE",
        cause="input 404 host=pictures.example",
    )
    assert fault.at >= session.created_at


async def test_failed_attempt_leaves_its_fault(backend: Backend) -> None:
    """Below those of the attempts before it."""
    session = await backend.claimed(attempt=2)

    assert await backend.attempts.fail(session.id, FAILURE, attempt=2, fault=FAULT)

    assert [fault.attempt for fault in await recorded(backend, session.id)] == [1, 2]


async def test_attempts_without_a_fault_leave_nothing(backend: Backend) -> None:
    """Neither a completion nor a session that was given back."""
    done = await backend.claimed()
    assert await backend.attempts.complete(done.id, attempt=1, picture=picture_of(done.id))
    given_back = await backend.released(None)

    assert await recorded(backend, done.id) == []
    assert await recorded(backend, given_back.id) == []


async def test_stale_attempt_records_nothing(backend: Backend) -> None:
    """It changes nothing, so its fault is not the session's."""
    session = await backend.claimed()

    assert not await backend.attempts.fail(session.id, FAILURE, attempt=2, fault=FAULT)
    assert not await backend.attempts.release(session.id, attempt=2, delay=NO_DELAY, fault=FAULT)

    assert await recorded(backend, session.id) == []


async def test_lost_leases_leave_their_faults(backend: Backend) -> None:
    """Both the one that is released and the last one. The dead worker's name is not known."""
    session = await backend.claimed()
    await backend.advance(LEASE + MINUTE)
    assert await backend.recovery.release_dead_leases(
        max_attempts=2, external_timeout=LEASE, limit=9
    )
    await backend.claim(session.id)
    await backend.advance(LEASE + MINUTE)
    assert await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=2, external_timeout=LEASE, limit=9
    )

    first, last = await recorded(backend, session.id)

    assert (first.cause, last.cause) == (str(LOST_LEASE.cause),) * 2
    assert (first.attempt, first.worker, first.code) == (1, None, LOST_LEASE.code)
    assert (last.attempt, last.worker, last.code) == (2, None, FAILURE.code)


async def test_faults_go_with_the_pictures(backend: Backend) -> None:
    """Those of other sessions stay."""
    failed, other = await backend.claimed(), await backend.released(FAULT)
    assert await backend.attempts.fail(failed.id, FAILURE, attempt=1, fault=FAULT)

    assert await backend.recovery.mark_images_deleted([failed.id, other.id]) == 1

    assert await recorded(backend, failed.id) == []
    assert len(await recorded(backend, other.id)) == 1


@pytest.mark.parametrize("blame", [*Blame, None])
async def test_only_the_sessions_own_faults_are_spent(
    backend: Backend, blame: Blame | None
) -> None:
    """``attempt`` always increases; what others did wrong is excused."""
    fault = None if blame is None else replace(FAULT, blame=blame)
    released = await backend.released(fault)

    claimed = await backend.claim(released.id)

    spent = 1 if blame is Blame.SESSION else 0
    assert (claimed.attempt, claimed.attempts_spent) == (2, spent + 1)


async def test_excused_attempts_keep_a_session_alive(backend: Backend) -> None:
    """After any number of them, a dead worker is the session's first."""
    session = await backend.claimed()
    for attempt in range(1, 6):
        ours = replace(FAULT, blame=Blame.OURS)
        await backend.attempts.release(session.id, attempt=attempt, delay=NO_DELAY, fault=ours)
        await backend.claim(session.id)
    await backend.advance(LEASE + MINUTE)

    failed = await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=2, external_timeout=LEASE, limit=9
    )
    released = await backend.recovery.release_dead_leases(
        max_attempts=2, external_timeout=LEASE, limit=9
    )

    assert (failed, released) == ([], 1)
    assert (await backend.get(session.id)).status is SessionStatus.QUEUED


async def test_providers_trouble_is_timed_from_its_first_fault(backend: Backend) -> None:
    """Later ones keep that time, and so does a session that is given back. Another fault ends the
    row."""
    providers = replace(FAULT, blame=Blame.PROVIDER)
    began = (await backend.released(providers)).failing_since
    assert began is not None

    times = []
    session = await backend.released(providers)
    first = session.failing_since
    for attempt, fault in enumerate((providers, None, FAULT), 2):
        await backend.claim(session.id)
        await backend.attempts.release(session.id, attempt=attempt, delay=NO_DELAY, fault=fault)
        times.append((await backend.get(session.id)).failing_since)

    assert times == [first, first, None]


async def test_lost_lease_ends_the_providers_trouble(backend: Backend) -> None:
    """It is another fault."""
    session = await backend.released(replace(FAULT, blame=Blame.PROVIDER))
    await backend.claim(session.id)
    await backend.advance(LEASE + MINUTE)

    await backend.recovery.release_dead_leases(max_attempts=9, external_timeout=LEASE, limit=9)

    assert (await backend.get(session.id)).failing_since is None
