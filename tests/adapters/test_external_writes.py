"""The database completes and checks the writes of external consumers, which know no rule."""

from collections.abc import AsyncIterator
from datetime import timedelta

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.sessions import Failure, SessionStatus
from tests.adapters.console import SESSION, SET, Console
from tests.support.examples import FAILURE, LEASE, picture_of

pytestmark = pytest.mark.anyio


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    try:
        console = Console(database)
        await console.empty()
        yield console
    finally:
        await database.close()


async def test_external_failure_is_completed_by_the_database(console: Console) -> None:
    """It gets an error code and completed_at, and loses its lease. Recovery refunds it, so it
    cannot be deleted before."""
    session_id = await console.in_state("processing")

    await console.run(SET.format("status = 'failed', error_message = 'no'"), session_id)

    session = await console.get(session_id)
    assert session.failure == Failure(code="GENERATION_FAILED", message="no")
    assert session.completed_at is not None
    assert session.lease_expires_at is None
    with pytest.raises(asyncpg.RestrictViolationError):
        await console.run("DELETE FROM generation_sessions WHERE id = $1", session_id)


async def test_external_end_keeps_its_values(console: Console) -> None:
    """The database only fills in missing values."""
    failed, completed = await console.queued(), await console.in_state("processing")

    await console.run(
        SET.format("status = 'failed', error_code = 'BUSY', completed_at = '2026-01-01Z'"), failed
    )
    await console.run(
        SET.format("status = 'completed', generated_image_url = 'https://x.example/'"), completed
    )

    failure, done = await console.get(failed), await console.get(completed)
    assert failure.failure == Failure(code="BUSY", message="")
    assert failure.completed_at is not None
    assert failure.completed_at.isoformat() == "2026-01-01T00:00:00+00:00"
    assert (done.status, done.completed_at is None) == (SessionStatus.COMPLETED, False)


async def test_final_session_may_still_get_its_link(console: Console) -> None:
    """An external consumer may write the status first. Writing it twice is no change."""
    session_id = await console.in_state("queued")
    await console.run(SET.format("status = 'completed'"), session_id)

    await console.run(
        SET.format("status = 'completed', generated_image_url = 'https://x.example/'"), session_id
    )

    assert (await console.get(session_id)).generated_image_url == "https://x.example/"


async def test_link_from_before_its_rule_stops_no_other_write(console: Console) -> None:
    """An older version took any text, also an empty one, and its pictures are still deleted."""
    ids = [(await console.finished(SessionStatus.COMPLETED)).id for _ in range(2)]
    async with console.database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        for session_id, link in zip(ids, ("s3://bucket/picture.png", ""), strict=True):
            await connection.execute(
                "UPDATE generation_sessions SET generated_image_url = $2 WHERE id = $1",
                session_id,
                link,
            )

    assert await console.recovery.mark_images_deleted(ids) == 2


async def test_external_claim_has_an_attempt_and_no_lease(console: Console) -> None:
    """Only a worker's claim, which writes the next attempt number, may have a lease."""
    session_id = await console.in_state("queued")

    await console.run(
        SET.format("status = 'processing', lease_expires_at = now() + interval '1 h'"), session_id
    )

    session = await console.get(session_id)
    assert (session.status, session.attempt) == (SessionStatus.PROCESSING, 1)
    assert session.lease_expires_at is None
    assert session.confirmed


async def test_external_claim_cannot_postpone_its_timeout(console: Console) -> None:
    """The database sets ``status_changed_at``."""
    session_id = await console.in_state("queued")
    await console.run(
        SET.format("status = 'processing', status_changed_at = 'infinity'"), session_id
    )
    await console.run(SET.format("status_changed_at = 'infinity'"), session_id)
    await console.advance(2 * LEASE)

    released = await console.recovery.release_dead_leases(
        max_attempts=2, external_timeout=LEASE, limit=10
    )

    assert released == 1


async def test_external_release_ends_the_attempt(console: Console) -> None:
    """``processing -> queued`` clears the lease, and the previous worker may not write."""
    session_id = await console.in_state("processing")

    await console.run(SET.format("status = 'queued'"), session_id)

    assert (await console.get(session_id)).lease_expires_at is None
    assert not await console.attempts.complete(
        session_id, attempt=1, picture=picture_of(session_id)
    )
    assert (await console.claim(session_id)).attempt == 2


async def test_session_without_a_debit_does_not_stop_a_batch(console: Console) -> None:
    """It was inserted by SQL. It fails with its batch, and without a refund."""
    paid = await console.queued()
    await console.run(SESSION.format(column="outfit_image_url", value="NULL"), paid)
    await console.advance(timedelta(hours=2))

    failed = await console.recovery.fail_expired(FAILURE, older_than=timedelta(hours=1), limit=10)

    assert failed == 2
    assert await console.balance() == 1
    assert len(await console.credits.audit(limit=10)) == 1
