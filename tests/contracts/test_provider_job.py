"""AttemptRepoPort: the next attempt knows the provider job of the one before."""

import asyncio
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.errors import DatabaseUnavailable
from domain.sessions import GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, picture_of

pytestmark = pytest.mark.anyio

NO_DELAY = timedelta(0)
JOB, OTHER_JOB = "provider:1", "provider:2"


async def processing(backend: Backend) -> GenerationSession:
    """A session whose second attempt has recorded a job."""
    claimed = await backend.claimed(attempt=2)
    assert await backend.attempts.record_job(claimed.id, attempt=2, job=JOB)
    return await backend.get(claimed.id)


@pytest.mark.parametrize("job", ["x", JOB, "provider:" + "x" * 191, "\N{UMBRELLA}"])
async def test_job_is_recorded(backend: Backend, job: str) -> None:
    """Nothing else of the session changes."""
    claimed = await backend.claimed()

    assert await backend.attempts.record_job(claimed.id, attempt=1, job=job)

    assert claimed.provider_job is None
    assert await backend.get(claimed.id) == replace(claimed, provider_job=job)


async def test_later_job_replaces_the_earlier_one(backend: Backend) -> None:
    """Recording the same job again checks the attempt and changes nothing."""
    session = await processing(backend)

    for _ in range(2):
        assert await backend.attempts.record_job(session.id, attempt=2, job=OTHER_JOB)

        assert await backend.get(session.id) == replace(session, provider_job=OTHER_JOB)


@pytest.mark.parametrize("attempt", [0, 1, 3])
async def test_only_the_current_attempt_records_a_job(backend: Backend, attempt: int) -> None:
    """A superseded worker cannot hide the job of the current one."""
    session = await processing(backend)

    assert not await backend.attempts.record_job(session.id, attempt=attempt, job=OTHER_JOB)

    assert await backend.get(session.id) == session


@pytest.mark.parametrize("end", ["release", "complete", "fail", "external"])
async def test_ended_attempt_records_no_job(backend: Backend, end: str) -> None:
    """The recorded job stays, whatever ended the attempt."""
    session = await processing(backend)
    match end:
        case "release":
            await backend.attempts.release(session.id, attempt=2, delay=NO_DELAY)
        case "complete":
            await backend.attempts.complete(session.id, attempt=2, picture=picture_of(session.id))
        case "fail":
            await backend.attempts.fail(session.id, FAILURE, attempt=2)
        case "external":
            await backend.external_write(session.id, status="failed", error_message="no")

    assert not await backend.attempts.record_job(session.id, attempt=2, job=OTHER_JOB)

    after = await backend.get(session.id)
    assert after.provider_job == JOB
    assert after.status is not SessionStatus.PROCESSING


@pytest.mark.parametrize("attempt", [0, 1])
async def test_no_job_is_recorded_before_a_claim(backend: Backend, attempt: int) -> None:
    """A queued session has no current attempt. An unknown session is no error."""
    session_id = await backend.queued()

    assert not await backend.attempts.record_job(session_id, attempt=attempt, job=JOB)
    assert not await backend.attempts.record_job(uuid4(), attempt=attempt, job=JOB)

    assert (await backend.get(session_id)).provider_job is None


async def test_next_attempt_gets_the_job(backend: Backend) -> None:
    """The claim returns it, after a release and after a dead lease."""
    given_back, died = await processing(backend), await processing(backend)
    await backend.attempts.release(given_back.id, attempt=2, delay=NO_DELAY)
    await backend.advance(2 * LEASE)
    released = await backend.recovery.release_dead_leases(
        max_attempts=3, external_timeout=LEASE, limit=10
    )

    claims = [await backend.claim(session.id) for session in (given_back, died)]

    assert released == 1
    assert [(claim.attempt, claim.provider_job) for claim in claims] == [(3, JOB)] * 2


async def test_external_consumer_keeps_the_job(backend: Backend) -> None:
    """It claims and releases the session without knowing of jobs. The job stays."""
    session = await processing(backend)
    await backend.external_write(session.id, status="queued")
    await backend.external_write(session.id, status="processing")

    assert not await backend.attempts.record_job(session.id, attempt=2, job=OTHER_JOB)

    after = await backend.get(session.id)
    assert (after.attempt, after.provider_job) == (3, JOB)


async def test_newer_of_two_concurrent_attempts_records_its_job(backend: Backend) -> None:
    """For any order of their writes."""
    sessions = [await backend.claimed() for _ in range(20)]

    async def change_hands(session: GenerationSession) -> bool:
        await backend.attempts.release(session.id, attempt=1, delay=NO_DELAY)
        await backend.claim(session.id)
        return await backend.attempts.record_job(session.id, attempt=2, job=OTHER_JOB)

    results = await asyncio.gather(
        *(change_hands(session) for session in sessions),
        *(backend.attempts.record_job(session.id, attempt=1, job=JOB) for session in sessions),
    )

    assert results[:20] == [True] * 20
    assert {(await backend.get(item.id)).provider_job for item in sessions} == {OTHER_JOB}


async def test_database_that_is_down_is_unavailable(tmp_path: Path) -> None:
    """The job may or may not have been recorded."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await PostgresSessionRepo(database).record_job(uuid4(), attempt=1, job=JOB)

    await database.close()


async def test_job_is_recorded_on_its_session_only(backend: Backend) -> None:
    """Other sessions in the same attempt keep their own."""
    session, other = await backend.claimed(), await backend.claimed()

    assert await backend.attempts.record_job(session.id, attempt=1, job=JOB)

    assert (await backend.get(session.id)).provider_job == JOB
    assert await backend.get(other.id) == other
