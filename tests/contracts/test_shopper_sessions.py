"""Sessions of shoppers: they are read like those of other owners, and hold their client token."""

from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.callers import Shopper
from domain.client_tokens import ClientToken
from domain.credits import Channel, Owner
from domain.errors import NotFound
from domain.ports import Position, SessionStats
from domain.sessions import GenerationSession, SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, LEASE, MANY, ORIGINS, STORE, USER, a_token, picture_of

pytestmark = pytest.mark.anyio

OTHER_STORE = Owner(channel=Channel.B2B, id="store-2")
HOUR, DAY = timedelta(hours=1), timedelta(days=1)


@pytest.fixture
async def backend(backend: Backend) -> Backend:
    """With two stores."""
    for store in (STORE, OTHER_STORE):
        await backend.name_origins(store, ORIGINS)
    return backend


async def a_live_token(backend: Backend, shopper_id: str = "anna", **changes: Any) -> ClientToken:
    token = a_token(shopper_id=shopper_id, created_at=backend.now(), **changes)
    await backend.client_tokens.add(token, max_live=MANY)
    return token


async def of(backend: Backend, token: ClientToken) -> GenerationSession:
    """A new session of the token's shopper."""
    shopper = Shopper(id=token.shopper_id, token_id=token.id)
    return (await backend.created(token.store, shopper=shopper)).session


async def listed(
    backend: Backend, owner: Owner, shopper_id: str | None, **changes: Any
) -> list[UUID]:
    asked: dict[str, Any] = {"status": None, "limit": 100, "after": None}
    found = await backend.reads.history(owner, shopper_id=shopper_id, **asked | changes)
    return [session.id for session in found]


async def test_shopper_s_sessions_are_read_apart(backend: Backend) -> None:
    """With any of its tokens. Those of other shoppers, of the store itself, and of the shopper with
    the same id in another store are not found; the store finds all of its own."""
    anna, again = await a_live_token(backend), await a_live_token(backend)
    ben = await a_live_token(backend, "ben")
    elsewhere = await a_live_token(backend, store=OTHER_STORE)
    sessions = [await of(backend, token) for token in (anna, again, ben, elsewhere)]
    first, second, ben_s, elsewhere_s = sessions
    own = (await backend.created(STORE)).session
    get = backend.reads.get

    for session in (first, second):
        assert await get(session.id, STORE, shopper_id="anna") == session
        assert await get(session.id, STORE) == session
    for session in (ben_s, own, elsewhere_s):
        with pytest.raises(NotFound, match="No such generation"):
            await get(session.id, STORE, shopper_id="anna")
    with pytest.raises(NotFound):
        await get(first.id, OTHER_STORE, shopper_id="anna")
    assert set(await listed(backend, STORE, "anna")) == {first.id, second.id}
    assert await listed(backend, OTHER_STORE, "anna") == [elsewhere_s.id]
    assert await listed(backend, STORE, "nobody") == []
    assert set(await listed(backend, STORE, None)) == {first.id, second.id, ben_s.id, own.id}
    assert (await backend.reads.stats(STORE, shopper_id="anna")).total == 2


async def test_shopper_s_history_is_paged(backend: Backend) -> None:
    """Newest first, by status, up to the limit, after a position."""
    anna = await a_live_token(backend)
    sessions = []
    for _ in range(4):
        sessions.append((await of(backend, anna)).id)
        await backend.advance(timedelta(minutes=1))
    await backend.sessions.fail_queued(sessions[1], FAILURE)
    last = await backend.get(sessions[3])
    after = Position(created_at=last.created_at, id=last.id)

    assert await listed(backend, STORE, "anna", limit=2) == sessions[:1:-1]
    assert await listed(backend, STORE, "anna", after=after) == sessions[2::-1]
    assert await listed(backend, STORE, "anna", status=SessionStatus.FAILED) == [sessions[1]]
    assert await listed(backend, STORE, "anna", status=SessionStatus.COMPLETED) == []


async def test_shopper_s_sessions_are_counted(backend: Backend) -> None:
    """In every status, and nobody else's."""
    anna, ben = await a_live_token(backend), await a_live_token(backend, "ben")
    await of(backend, ben)
    await backend.queued(USER)
    await of(backend, anna)
    failed, processing, completed = [await of(backend, anna) for _ in range(3)]
    await backend.sessions.fail_queued(failed.id, FAILURE)
    for session in (processing, completed):
        await backend.claim(session.id)
    await backend.attempts.complete(
        completed.id, attempt=1, picture=picture_of(completed.id, STORE)
    )

    stats = await backend.reads.stats(STORE, shopper_id="anna")

    assert stats == SessionStats(queued=1, processing=1, completed=1, failed=1)


async def test_pictures_are_counted_on_the_token(backend: Backend) -> None:
    """As the token itself shows it; a refund gives the picture back, but not the submission."""
    anna = await a_live_token(backend, pictures=2)
    first = await of(backend, anna)
    await of(backend, anna)
    await backend.sessions.fail_queued(first.id, FAILURE)

    token = await backend.client_tokens.get(anna.id)
    (live,) = await backend.client_tokens.live(STORE, shopper_id="anna", limit=10)

    assert token is not None
    assert live == token
    assert (token.used, token.submissions, token.pictures_left) == (1, 2, 1)


@pytest.mark.parametrize("state", ["queued", "processing", "failed externally"])
async def test_token_stays_until_its_sessions_owe_nothing(backend: Backend, state: str) -> None:
    """However long ago it expired: the refund belongs to it."""
    anna = await a_live_token(backend)
    session = await of(backend, anna)
    if state == "processing":
        await backend.claim(session.id, lease=LEASE)
    if state == "failed externally":
        await backend.external_write(session.id, status="failed")
    await backend.advance(HOUR + 2 * DAY)

    kept = await backend.client_tokens.purge(expired_for=DAY, limit=10)
    token = await backend.client_tokens.get(anna.id)
    if state == "processing":
        await backend.attempts.fail(session.id, FAILURE, attempt=1)
    elif state == "queued":
        await backend.sessions.fail_queued(session.id, FAILURE)
    else:
        await backend.recovery.refund_missing(limit=10)
    refunded = await backend.client_tokens.get(anna.id)
    purged = await backend.client_tokens.purge(expired_for=DAY, limit=10)

    assert (kept, purged) == (0, 1)
    assert token is not None
    assert refunded is not None
    assert (token.used, refunded.used) == (1, 0)
    assert await backend.client_tokens.get(anna.id) is None
    assert await backend.credits.audit(limit=10) == []


async def test_token_of_completed_sessions_is_purged(backend: Backend) -> None:
    """The sessions keep its id."""
    anna = await a_live_token(backend)
    session = await of(backend, anna)
    await backend.claim(session.id)
    await backend.attempts.complete(session.id, attempt=1, picture=picture_of(session.id, STORE))
    await backend.advance(HOUR + 2 * DAY)

    assert await backend.client_tokens.purge(expired_for=DAY, limit=10) == 1
    shopper = (await backend.get(session.id)).shopper
    assert shopper == Shopper(id="anna", token_id=anna.id)


async def test_recent_sessions_of_a_shopper(backend: Backend) -> None:
    """Those of its store and of other shoppers are left out."""
    long_ago = datetime(2000, 1, 1, tzinfo=UTC)
    tokens = [await a_live_token(backend, shopper_id) for shopper_id in ("anna", "bea")]
    await backend.queued(STORE)
    anna_s, _ = [await of(backend, token) for token in tokens]

    found = await backend.watched.recent({(STORE, "anna"): long_ago}, limit=10)

    assert found == [(anna_s.id, STORE)]
