"""RecoveryRepoPort: expired pictures are claimed for deletion, and the deletion is recorded."""

import asyncio
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest

from domain.credits import Channel, Owner
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, STORE, USER, picture_of

pytestmark = pytest.mark.anyio

AGAIN_AFTER = timedelta(minutes=5)
LIFETIME = timedelta(days=30)
MOMENT = timedelta(seconds=30)
"""Shorter than any timeout here, and longer than a test."""

OWNERS = [USER, STORE, *(Owner(channel=Channel.B2C, id=f"user-{number}") for number in range(3))]


async def claim_expired_images(backend: Backend, *, limit: int = 100) -> list[UUID]:
    sessions = await backend.recovery.claim_expired_images(
        older_than=LIFETIME, again_after=AGAIN_AFTER, limit=limit
    )
    assert sessions == [await backend.get(session.id) for session in sessions]
    return [session.id for session in sessions]


async def with_picture(backend: Backend, owner: Owner = USER) -> UUID:
    """A completed session with a picture of our worker."""
    session = await backend.claimed(owner)
    assert await backend.attempts.complete(
        session.id, attempt=1, picture=picture_of(session.id, owner)
    )
    return session.id


async def test_picture_expires_by_the_end_of_its_session(backend: Backend) -> None:
    """``older_than`` after the change to a final status. Its creation does not count, nor the
    ``completed_at`` of an external consumer."""
    session_id = await backend.queued()
    await backend.advance(2 * LIFETIME)
    await backend.claim(session_id)
    await backend.attempts.complete(session_id, attempt=1, picture=picture_of(session_id))
    await backend.external_write(session_id, completed_at=datetime(1999, 12, 31, tzinfo=UTC))
    await backend.advance(LIFETIME - MOMENT)
    too_early = await claim_expired_images(backend)
    await backend.advance(2 * MOMENT)

    assert (too_early, await claim_expired_images(backend)) == ([], [session_id])


async def test_only_sessions_that_may_have_a_picture_are_claimed(backend: Backend) -> None:
    """Completed ones, and failed ones with an attempt, which may have saved one. Also a session
    that an external consumer completed: before that, an attempt of ours may have saved a picture,
    or the consumer shares our storage."""
    ids = await backend.in_every_status()
    never_attempted = await backend.queued()
    await backend.sessions.fail_queued(never_attempted, FAILURE)
    await backend.external_write(
        ids["completed externally"], generated_image_url="https://x.example/"
    )
    await backend.advance(2 * LIFETIME)

    assert set(await claim_expired_images(backend)) == {
        ids["completed"],
        ids["completed externally"],
        ids["failed"],
    }


async def test_oldest_pictures_are_claimed_first(backend: Backend) -> None:
    """The next call continues after the limit, and the last one finds no session."""
    ids = []
    for _ in range(5):
        ids.append(await with_picture(backend))
        await backend.advance(timedelta(minutes=1))
    await backend.advance(LIFETIME)

    batches = [set(await claim_expired_images(backend, limit=2)) for _ in range(4)]

    assert batches == [set(ids[:2]), set(ids[2:4]), set(ids[4:]), set()]


async def test_undeleted_picture_is_claimed_again(backend: Backend) -> None:
    """Each time after ``again_after``, until its deletion is recorded."""
    session_id = await with_picture(backend)
    await backend.advance(LIFETIME + MOMENT)
    returned = []

    for _ in range(2):
        returned += [await claim_expired_images(backend), await claim_expired_images(backend)]
        await backend.advance(AGAIN_AFTER - MOMENT)
        returned.append(await claim_expired_images(backend))
        await backend.advance(MOMENT)
    await backend.recovery.mark_images_deleted([session_id])

    assert returned == [[session_id], [], []] * 2
    assert await claim_expired_images(backend) == []


async def test_concurrent_callers_share_the_expired_pictures(backend: Backend) -> None:
    """20 at once: none is returned twice or missed, and each deletion is recorded once."""
    ids = [await with_picture(backend, owner) for _ in range(6) for owner in OWNERS]
    await backend.advance(LIFETIME + MOMENT)

    batches = await asyncio.gather(*(claim_expired_images(backend, limit=7) for _ in range(20)))
    marks = await asyncio.gather(*(backend.recovery.mark_images_deleted(ids) for _ in range(20)))

    assert sorted(session_id for batch in batches for session_id in batch) == sorted(ids)
    assert max(map(len, batches)) <= 7
    assert sum(marks) == len(ids)


async def test_deletion_is_recorded_on_final_sessions(backend: Backend) -> None:
    """Once, with its time. Nothing else changes. Unfinished and unknown sessions are left alone."""
    ids = await backend.in_every_status()
    before = {name: await backend.get(session_id) for name, session_id in ids.items()}
    mine = [*ids.values(), UUID(int=0)]

    counts = [await backend.recovery.mark_images_deleted(mine) for _ in range(2)]

    after = {name: await backend.get(session_id) for name, session_id in ids.items()}
    marked = {name for name, session in after.items() if session.image_deleted_at is not None}
    assert counts == [3, 0]
    assert marked == {"completed", "completed externally", "failed"}
    assert {name for name, session in after.items() if session.image_expired} == {"completed"}
    assert {
        name: replace(session, image_deleted_at=None) for name, session in after.items()
    } == before
    assert await backend.recovery.mark_images_deleted([]) == 0
