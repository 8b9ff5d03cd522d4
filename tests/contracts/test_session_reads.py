"""SessionReadPort: sessions as their owner sees them, and nobody else."""

from collections.abc import Awaitable, Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import UUID, uuid4

import pytest

from adapters.postgres.database import Database, DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, NotFound
from domain.ports import Position, SessionReadPort, SessionStats
from domain.sessions import GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, OTHER, STORE, STORED_PICTURE, USER, a_session

pytestmark = pytest.mark.anyio

EVERYBODY = None
NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
"""Another account than USER's, on the other channel."""


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
    """All pages of USER's listing, each begun behind the last item of the one before."""
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
    await backend.attempts.complete(completed.id, attempt=1, picture=STORED_PICTURE)
    await backend.attempts.fail(failed.id, FAILURE, attempt=1)
    return {
        SessionStatus.QUEUED: await backend.queued(owner),
        SessionStatus.PROCESSING: (await backend.claimed(owner)).id,
        SessionStatus.COMPLETED: completed.id,
        SessionStatus.FAILED: failed.id,
    }


async def test_an_owner_gets_its_session(backend: Backend) -> None:
    """As it is now; the operator, who has no owner, gets the same."""
    session = (await backend.created(USER)).session

    assert await backend.reads.get(session.id, USER) == session
    assert await backend.reads.get(session.id, EVERYBODY) == session


async def test_anothers_session_is_like_none(backend: Backend) -> None:
    """Also for the owner of the same id on the other channel: the two errors cannot be told
    apart."""
    session_id = await backend.queued(USER)
    errors = []

    for wanted, owner in ((session_id, OTHER), (session_id, NAMESAKE), (uuid4(), USER)):
        with pytest.raises(NotFound) as refusal:
            await backend.reads.get(wanted, owner)
        errors.append(str(refusal.value))

    assert len(set(errors)) == 1


async def test_the_operator_does_not_find_what_does_not_exist(backend: Backend) -> None:
    """NotFound there, too."""
    with pytest.raises(NotFound):
        await backend.reads.get(uuid4(), EVERYBODY)


async def test_a_listing_is_newest_first(backend: Backend) -> None:
    """By creation, not by the latest change, with the sessions as ``get`` shows them."""
    ids = await backend.queued_in_turn(3)
    await backend.claim(ids[0])

    listed = await backend.reads.history(USER, status=None, limit=10, after=None)

    assert [session.id for session in listed] == ids[::-1]
    assert listed == [await backend.get(session_id) for session_id in ids[::-1]]


async def test_a_listing_shows_what_is_the_owners(backend: Backend) -> None:
    """Nothing of others, not of a namesake either; the operator sees all."""
    ids = {owner: await backend.queued(owner) for owner in (USER, OTHER, STORE, NAMESAKE)}

    listed = {owner: await history(backend, owner) for owner in ids}

    assert listed == {owner: [session_id] for owner, session_id in ids.items()}
    assert set(await history(backend, EVERYBODY)) == set(ids.values())
    assert await history(backend, Owner(channel=Channel.B2C, id="nobody")) == []


@pytest.mark.parametrize("owner", [USER, EVERYBODY])
async def test_a_listing_of_one_status(backend: Backend, owner: Owner | None) -> None:
    """Each session is in the listing of its status, and in no other."""
    ids = await one_in_every_status(backend)
    others = await one_in_every_status(backend, OTHER)

    listed = {status: await history(backend, owner, status=status) for status in SessionStatus}

    expected = [ids] if owner else [ids, others]
    assert {status: set(found) for status, found in listed.items()} == {
        status: {each[status] for each in expected} for status in SessionStatus
    }


@pytest.mark.parametrize("limit", [1, 2, 3, 4, 7, 8])
async def test_pages_lose_and_repeat_nothing(backend: Backend, limit: int) -> None:
    """Also where all were created at one time: their ids decide, and a page may end anywhere."""
    ids = [await backend.queued() for _ in range(7)]
    await backend.queued(OTHER)
    await backend.align()

    found = await pages(backend, limit=limit)

    assert [session_id for page in found for session_id in page] == sorted(ids, reverse=True)
    assert all(len(page) == limit for page in found[:-1])


async def test_pages_of_one_status_skip_the_others(backend: Backend) -> None:
    """They are full pages of that status."""
    ids = await backend.queued_in_turn(6)
    for session_id in ids[::2]:
        await backend.claim(session_id)

    found = await pages(backend, limit=2, status=SessionStatus.QUEUED)

    assert found == [[ids[5], ids[3]], [ids[1]]]


async def test_pages_do_not_shift_while_sessions_are_added(backend: Backend) -> None:
    """What is newer than the first page does not push an item to the next one again."""
    ids = await backend.queued_in_turn(3)
    (first,) = await backend.reads.history(USER, status=None, limit=1, after=None)

    await backend.queued_in_turn(2)

    first = await backend.reads.get(first.id, USER)  # its date may have moved with the time
    assert await history(backend, after=position(first)) == [ids[1], ids[0]]


async def test_a_listing_may_begin_behind_what_does_not_exist(backend: Backend) -> None:
    """A position is a place, not a session: in the past it has nothing behind it, in the future
    everything."""
    session_id = await backend.queued()
    past, future = datetime(1999, 12, 31, tzinfo=UTC), datetime(2999, 1, 1, tzinfo=UTC)

    assert await history(backend, after=Position(created_at=past, id=uuid4())) == []
    assert await history(backend, after=Position(created_at=future, id=uuid4())) == [session_id]


async def test_stats_count_the_owners_sessions(backend: Backend) -> None:
    """By status, and nobody else's."""
    await one_in_every_status(backend)
    await backend.queued()
    await backend.queued(OTHER)
    await backend.queued(NAMESAKE)

    stats = await backend.reads.stats(USER)

    assert stats == SessionStats(queued=2, processing=1, completed=1, failed=1)
    assert (stats.total, stats.active) == (5, 3)


async def test_who_has_no_sessions_has_zeros(backend: Backend) -> None:
    """No error, whether or not there is an account."""
    await backend.credits.grant(STORE, 1, note="test")

    assert await backend.reads.stats(STORE) == SessionStats()
    assert await backend.reads.stats(USER) == SessionStats()


async def test_the_queue_before_a_session_is_everybodys(backend: Backend) -> None:
    """Older ``queued`` sessions count, whoever owns them; those being worked on or ended, and
    younger ones, do not."""
    await one_in_every_status(backend, OTHER)
    await backend.queued(STORE)
    await backend.advance(timedelta(minutes=1))
    session_id = await backend.queued(USER)
    await backend.advance(timedelta(minutes=1))
    await backend.queued(USER)

    session = await backend.reads.get(session_id, USER)

    assert await backend.reads.queued_before(session, limit=100) == 2


async def test_the_queue_before_a_session_is_counted_to_a_limit(backend: Backend) -> None:
    """So that a long queue costs no more than the limit."""
    ids = await backend.queued_in_turn(5)

    last = await backend.get(ids[-1])

    counts = [await backend.reads.queued_before(last, limit=limit) for limit in (1, 3, 4, 100)]
    assert counts == [1, 3, 4, 4]


async def test_sessions_of_one_time_queue_in_the_order_of_their_ids(backend: Backend) -> None:
    """Each has another place."""
    ids = [await backend.queued() for _ in range(4)]
    await backend.align()

    sessions = [await backend.get(session_id) for session_id in sorted(ids)]

    before = [await backend.reads.queued_before(session, limit=100) for session in sessions]
    assert before == [0, 1, 2, 3]


CALLS: dict[str, Callable[[SessionReadPort], Awaitable[object]]] = {
    "get": lambda reads: reads.get(uuid4(), USER),
    "history": lambda reads: reads.history(USER, status=None, limit=1, after=None),
    "stats": lambda reads: reads.stats(USER),
    "queued_before": lambda reads: reads.queued_before(a_session(), limit=1),
}


@pytest.mark.parametrize("method", CALLS)
async def test_a_store_that_is_away_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method says so by the same error."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresSessionRepo(database))

    await database.close()


def test_every_method_of_the_port_is_tried_without_a_server() -> None:
    """So that a new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(SessionReadPort) if not name.startswith("_")}


async def test_operator_pages_lose_and_repeat_nothing(backend: Backend) -> None:
    """Over the sessions of all owners."""
    ids = [await backend.queued(owner) for owner in (USER, STORE, OTHER)]
    sessions = {session_id: await backend.get(session_id) for session_id in ids}

    behind = [
        await history(backend, EVERYBODY, after=position(sessions[session_id]))
        for session_id in ids
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
            await backend.foreign_write(await backend.queued(owner), status="failed")

    stats = {owner: await backend.reads.stats(owner) for owner in (USER, NAMESAKE, OTHER)}

    assert stats == {
        owner: SessionStats(queued=times, processing=times, completed=times, failed=2 * times)
        for owner, times in ((USER, 1), (NAMESAKE, 2), (OTHER, 3))
    }
