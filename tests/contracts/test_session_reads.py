"""SessionReadPort: owners see their own sessions only, the operator sees all."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, NotFound
from domain.ports import Position, SessionReadPort, SessionStats
from domain.sessions import GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, OTHER, STORE, USER, a_session, picture_of

pytestmark = pytest.mark.anyio

OPERATOR = None
NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
"""The same id as USER's on the other channel: another account."""


async def history(
    backend: Backend,
    owner: Owner | None = USER,
    *,
    status: SessionStatus | None = None,
    limit: int = 100,
    after: Position | None = None,
) -> list[UUID]:
    sessions = await backend.reads.history(owner, status=status, limit=limit, after=after)
    return [session.id for session in sessions]


async def pages(
    backend: Backend, *, limit: int, status: SessionStatus | None = None
) -> list[list[UUID]]:
    """All pages of USER's sessions, each starting after the last item of the previous page."""
    found: list[list[UUID]] = []
    after = None
    while page := await backend.reads.history(USER, status=status, limit=limit, after=after):
        found.append([session.id for session in page])
        assert len(found) <= 10, "the pages have no end"
        after = position(page[-1])
    return found


def position(session: GenerationSession) -> Position:
    return Position(created_at=session.created_at, id=session.id)


async def one_in_every_status(backend: Backend, owner: Owner = USER) -> dict[SessionStatus, UUID]:
    completed, failed = await backend.claimed(owner), await backend.claimed(owner)
    await backend.attempts.complete(
        completed.id, attempt=1, picture=picture_of(completed.id, owner)
    )
    await backend.attempts.fail(failed.id, FAILURE, attempt=1)
    return {
        SessionStatus.QUEUED: await backend.queued(owner),
        SessionStatus.PROCESSING: (await backend.claimed(owner)).id,
        SessionStatus.COMPLETED: completed.id,
        SessionStatus.FAILED: failed.id,
    }


async def test_owner_gets_its_session(backend: Backend) -> None:
    """In its current state. The operator gets the same."""
    session = (await backend.created(USER)).session

    assert await backend.reads.get(session.id, USER) == session
    assert await backend.reads.get(session.id, OPERATOR) == session


async def test_another_owners_session_is_not_found(backend: Backend) -> None:
    """Nor that of the same id on the other channel. The error is that of an unknown id."""
    session_id = await backend.queued(USER)
    errors = []

    for wanted, owner in ((session_id, OTHER), (session_id, NAMESAKE), (uuid4(), USER)):
        with pytest.raises(NotFound) as refusal:
            await backend.reads.get(wanted, owner)
        errors.append(str(refusal.value))

    assert len(set(errors)) == 1


async def test_unknown_session_is_not_found(backend: Backend) -> None:
    """Also for the operator."""
    with pytest.raises(NotFound):
        await backend.reads.get(uuid4(), OPERATOR)


async def test_history_is_newest_first(backend: Backend) -> None:
    """By creation, not by the latest change. The sessions equal those of ``get``."""
    ids = await backend.queued_in_turn(3)
    await backend.claim(ids[0])

    listed = await backend.reads.history(USER, status=None, limit=10, after=None)

    assert [session.id for session in listed] == ids[::-1]
    assert listed == [await backend.get(session_id) for session_id in ids[::-1]]


async def test_history_shows_only_the_owners_sessions(backend: Backend) -> None:
    """Not those of the same id on the other channel. The operator sees all."""
    ids = {owner: await backend.queued(owner) for owner in (USER, OTHER, STORE, NAMESAKE)}

    listed = {owner: await history(backend, owner) for owner in ids}

    assert listed == {owner: [session_id] for owner, session_id in ids.items()}
    assert set(await history(backend, OPERATOR)) == set(ids.values())
    assert await history(backend, Owner(channel=Channel.B2C, id="nobody")) == []


@pytest.mark.parametrize("owner", [USER, OPERATOR])
async def test_history_of_one_status(backend: Backend, owner: Owner | None) -> None:
    """Each session is in the list of its status and in no other."""
    ids = await one_in_every_status(backend)
    others = await one_in_every_status(backend, OTHER)

    listed = {status: await history(backend, owner, status=status) for status in SessionStatus}

    expected = [ids] if owner else [ids, others]
    assert {status: set(found) for status, found in listed.items()} == {
        status: {each[status] for each in expected} for status in SessionStatus
    }


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 8])
async def test_pages_lose_and_repeat_no_session(backend: Backend, limit: int) -> None:
    """Even if all were created at the same time: then the ids decide."""
    ids = [await backend.queued() for _ in range(7)]
    await backend.queued(OTHER)
    await backend.align()

    found = await pages(backend, limit=limit)

    assert [session_id for page in found for session_id in page] == sorted(ids, reverse=True)
    assert all(len(page) == limit for page in found[:-1])


async def test_pages_of_one_status_are_full(backend: Backend) -> None:
    """Sessions of another status take no place."""
    ids = await backend.queued_in_turn(6)
    for session_id in ids[::2]:
        await backend.claim(session_id)

    found = await pages(backend, limit=2, status=SessionStatus.QUEUED)

    assert found == [[ids[5], ids[3]], [ids[1]]]


async def test_pages_do_not_shift_while_sessions_are_added(backend: Backend) -> None:
    """A new session does not push an item onto the next page again."""
    ids = await backend.queued_in_turn(3)
    (first,) = await backend.reads.history(USER, status=None, limit=1, after=None)

    await backend.queued_in_turn(2)

    first = await backend.reads.get(first.id, USER)  # its date may have moved with the time
    assert await history(backend, after=position(first)) == [ids[1], ids[0]]


async def test_history_may_start_after_an_unknown_session(backend: Backend) -> None:
    """A position is a place, not a session: after one in the past there is nothing, after one in
    the future everything."""
    session_id = await backend.queued()
    past, future = datetime(1999, 12, 31, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)

    assert await history(backend, after=Position(created_at=past, id=uuid4())) == []
    assert await history(backend, after=Position(created_at=future, id=uuid4())) == [session_id]


async def test_stats_count_only_the_owners_sessions(backend: Backend) -> None:
    """By status."""
    await one_in_every_status(backend)
    await backend.queued()
    await backend.queued(OTHER)
    await backend.queued(NAMESAKE)

    stats = await backend.reads.stats(USER)

    assert stats == SessionStats(queued=2, processing=1, completed=1, failed=1)
    assert (stats.total, stats.active) == (5, 3)


async def test_stats_without_sessions_are_zero(backend: Backend) -> None:
    """With and without an account."""
    await backend.credits.grant(STORE, 1, note="test")

    assert await backend.reads.stats(STORE) == SessionStats()
    assert await backend.reads.stats(USER) == SessionStats()


async def test_queued_before_counts_all_owners(backend: Backend) -> None:
    """Only older ``queued`` sessions count."""
    await one_in_every_status(backend, OTHER)
    await backend.queued(STORE)
    await backend.advance(timedelta(minutes=1))
    session_id = await backend.queued(USER)
    await backend.advance(timedelta(minutes=1))
    await backend.queued(USER)

    session = await backend.reads.get(session_id, USER)

    assert await backend.reads.queued_before(session, limit=100) == 2


async def test_queued_before_counts_up_to_its_limit(backend: Backend) -> None:
    """A long queue costs no more than the limit."""
    ids = await backend.queued_in_turn(5)

    last = await backend.get(ids[-1])

    counts = [await backend.reads.queued_before(last, limit=limit) for limit in (1, 3, 4, 100)]
    assert counts == [1, 3, 4, 4]


async def test_queued_before_orders_sessions_of_one_time_by_id(backend: Backend) -> None:
    """Each has its own position."""
    ids = [await backend.queued() for _ in range(4)]
    await backend.align()

    sessions = [await backend.get(session_id) for session_id in sorted(ids)]

    before = [await backend.reads.queued_before(session, limit=100) for session in sessions]
    assert before == [0, 1, 2, 3]


async def test_sessions_are_known(backend: Backend) -> None:
    """In every status; and no others are."""
    queued = (await backend.created()).session
    failed = (await backend.created()).session
    await backend.sessions.fail_queued(failed.id, FAILURE)

    known = [await backend.reads.is_known(id_) for id_ in (queued.id, failed.id, uuid4())]

    assert known == [True, True, False]


CALLS: dict[str, Callable[[SessionReadPort], Awaitable[object]]] = {
    "get": lambda reads: reads.get(uuid4(), USER),
    "is_known": lambda reads: reads.is_known(uuid4()),
    "history": lambda reads: reads.history(USER, status=None, limit=1, after=None),
    "stats": lambda reads: reads.stats(USER),
    "queued_before": lambda reads: reads.queued_before(a_session(), limit=1),
    "attempt_faults": lambda reads: reads.attempt_faults(uuid4()),
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
    assert set(CALLS) == {name for name in vars(SessionReadPort) if not name.startswith("_")}


async def test_operator_pages_lose_and_repeat_nothing(backend: Backend) -> None:
    """Over the sessions of all owners."""
    ids = [await backend.queued(owner) for owner in (USER, STORE, OTHER)]
    sessions = {session_id: await backend.get(session_id) for session_id in ids}

    behind = [
        await history(backend, OPERATOR, after=position(sessions[session_id])) for session_id in ids
    ]

    assert behind == [[], [ids[0]], [ids[1], ids[0]]]


async def test_queue_order_is_that_of_creation(backend: Backend) -> None:
    """The ids decide only between sessions of one time."""
    older = (await backend.created(id=UUID(int=2))).session.id
    await backend.advance(timedelta(minutes=1))
    younger = (await backend.created(id=UUID(int=1))).session.id

    sessions = [await backend.get(session_id) for session_id in (older, younger)]

    before = [await backend.reads.queued_before(session, limit=100) for session in sessions]
    assert before == [0, 1]


async def test_stats_count_nothing_of_neighbours(backend: Backend) -> None:
    """The same id on the other channel and other ids on the same one, in each status, and what is
    owed its refund."""
    for owner, times in ((USER, 1), (NAMESAKE, 2), (OTHER, 3)):
        for _ in range(times):
            await one_in_every_status(backend, owner)
            await backend.external_write(await backend.queued(owner), status="failed")

    stats = {owner: await backend.reads.stats(owner) for owner in (USER, NAMESAKE, OTHER)}

    assert stats == {
        owner: SessionStats(queued=times, processing=times, completed=times, failed=2 * times)
        for owner, times in ((USER, 1), (NAMESAKE, 2), (OTHER, 3))
    }
