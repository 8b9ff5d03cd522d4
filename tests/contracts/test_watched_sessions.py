"""WatchReadPort: what waiting clients need, many sessions in one call."""

from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import pytest

from domain.changes import NEVER_READ
from domain.sessions import FINAL_REVISION, GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, OTHER, STORE, USER, picture_of

pytestmark = pytest.mark.anyio

LONG_AGO = datetime(2000, 1, 1, tzinfo=UTC)
SOON = datetime(2100, 1, 1, tzinfo=UTC)


async def states(backend: Backend) -> dict[int, GenerationSession]:
    """A session in each of these states, by its revision; final ones last."""
    queued = await backend.queued()
    processing = await backend.claimed()
    again = await backend.claimed()
    await backend.attempts.release(again.id, attempt=1, delay=timedelta(0))
    failed = await backend.claimed()
    await backend.attempts.fail(failed.id, FAILURE, attempt=1)
    ids = (queued, processing.id, again.id, failed.id)
    found = [await backend.reads.get(session_id, None) for session_id in ids]
    return {session.revision: session for session in found}


async def test_revisions_of_all_states(backend: Backend) -> None:
    """The database compares as the session does: of each state, everything below its own revision
    makes it news, and its own does not."""
    by_revision = await states(backend)
    assert list(by_revision) == [1, 2, 3, FINAL_REVISION]

    for revision, session in by_revision.items():
        assert await backend.watched.newer([(session.id, revision - 1)]) == [session]
        assert await backend.watched.newer([(session.id, revision)]) == []


async def test_sessions_of_all_owners_are_read_in_one_call(backend: Backend) -> None:
    ids = [await backend.queued(owner) for owner in (USER, STORE, OTHER)]
    known = [(session_id, NEVER_READ) for session_id in (*ids, uuid4())]

    found = await backend.watched.newer(known)

    assert sorted(session.id for session in found) == sorted(ids)
    assert await backend.watched.newer([]) == []


async def test_external_changes_have_a_newer_revision(backend: Backend) -> None:
    """An external consumer writes the status only."""
    session_id = await backend.queued()
    seen = [NEVER_READ]
    for status in (SessionStatus.PROCESSING, SessionStatus.QUEUED, SessionStatus.COMPLETED):
        await backend.external_write(session_id, status=status)
        (now,) = await backend.watched.newer([(session_id, seen[-1])])
        seen.append(now.revision)

    assert seen == sorted(set(seen))
    assert seen[-1] == FINAL_REVISION


async def test_recent_sessions(backend: Backend) -> None:
    """Unfinished ones however old, finished ones only if they are younger than the given time."""
    queued, processing, finished = (
        await backend.queued(),
        await backend.claimed(),
        await backend.claimed(),
    )
    await backend.attempts.complete(finished.id, attempt=1, picture=picture_of(finished.id))
    await backend.queued(OTHER)
    unfinished = {(queued, USER), (processing.id, USER)}

    young = await backend.watched.recent({(USER, None): SOON}, limit=10)
    old = await backend.watched.recent({(USER, None): LONG_AGO}, limit=10)

    assert set(young) == unfinished
    assert set(old) == {*unfinished, (finished.id, USER)}


async def test_recent_sessions_of_several_owners(backend: Backend) -> None:
    """Each with its own time, and the newest of each status only."""
    ids: dict[object, list[UUID]] = {USER: [], STORE: []}
    for owner in (USER, STORE):
        for _ in range(3):
            ids[owner].append(await backend.queued(owner))

    found = await backend.watched.recent({(USER, None): SOON, (STORE, None): SOON}, limit=2)

    newest = {(session_id, owner) for owner in (USER, STORE) for session_id in ids[owner][1:]}
    assert set(found) == newest


async def test_lease_does_not_change_the_revision(backend: Backend) -> None:
    session = await backend.claimed()
    await backend.attempts.renew(session.id, attempt=1, lease=LEASE)

    assert await backend.watched.newer([(session.id, session.revision)]) == []
