"""SessionRepoPort: creating, confirming and failing queued sessions, atomic with the credit."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, InsufficientCredits, NotFound
from domain.ports import Receipt, SessionRepoPort
from domain.sessions import SessionStatus
from tests.contracts.backends import Backend
from tests.support.examples import (
    BAG,
    FAILURE,
    HAT,
    MANY,
    OTHER,
    OUTFIT_URL,
    STORE,
    USER,
    a_session,
)

pytestmark = pytest.mark.anyio

CHARGED = ["debit"]


async def test_create_debits_once_and_stores_the_session(backend: Backend) -> None:
    """The receipt has the stored session and the new balance. The ledger has one debit."""
    await backend.credits.grant(STORE, 3, note="test")
    session = a_session(
        owner=STORE,
        prompt="Zwei Zeilen,\n'im' \"Regen\" \\ 👒",
        outfit_image_url=OUTFIT_URL,
        accessories=(HAT, BAG),
        request_id="req_" + "x" * 124,
        idempotency_key="k-1",
    )

    receipt = await backend.sessions.create(session, max_active=MANY)

    assert receipt.credits_remaining == await backend.balance(STORE) == 2
    assert receipt.session == replace(session, created_at=receipt.session.created_at)
    assert await backend.get(session.id) == receipt.session
    assert await backend.money_of(session.id, STORE) == CHARGED


async def test_created_at_is_set_by_the_database(backend: Backend) -> None:
    """The clock of the process does not count."""
    claimed_time = datetime(1999, 12, 31, tzinfo=UTC)

    receipt = await backend.created(created_at=claimed_time)

    assert receipt.session.created_at > claimed_time
    assert receipt.session.created_at.utcoffset() == timedelta(0)


@pytest.mark.parametrize(("granted", "spent"), [(0, 0), (2, 2)])
async def test_insufficient_credits(backend: Backend, granted: int, spent: int) -> None:
    """The error has the cost. There is no session and no ledger entry."""
    if granted:
        await backend.credits.grant(USER, granted, note="test")
    for _ in range(spent):
        await backend.sessions.create(a_session(), max_active=MANY)
    session, before = a_session(), await backend.ledger()

    with pytest.raises(InsufficientCredits) as refusal:
        await backend.sessions.create(session, max_active=MANY)

    assert refusal.value.required == 1
    assert await backend.ledger() == before
    with pytest.raises(NotFound):
        await backend.get(session.id)


async def test_credits_of_another_owner_do_not_count(backend: Backend) -> None:
    """Nor those of the same id on the other channel."""
    await backend.credits.grant(OTHER, 1, note="test")
    await backend.credits.grant(Owner(channel=Channel.B2B, id=USER.id), 1, note="test")

    with pytest.raises(InsufficientCredits):
        await backend.sessions.create(a_session(owner=USER), max_active=MANY)

    assert await backend.balance(OTHER) == 1


async def test_concurrent_creations_never_overspend(backend: Backend) -> None:
    """50 submissions with a balance of 20: exactly 20 sessions, each with another remaining
    balance. The others are refused."""
    await backend.credits.grant(USER, 20, note="test")

    results = await asyncio.gather(
        *(backend.sessions.create(a_session(), max_active=MANY) for _ in range(50)),
        return_exceptions=True,
    )

    receipts = [result for result in results if isinstance(result, Receipt)]
    refusals = [result for result in results if isinstance(result, InsufficientCredits)]
    assert (len(receipts), len(refusals)) == (20, 30)
    assert sorted(receipt.credits_remaining for receipt in receipts) == list(range(20))
    assert await backend.balance() == 0
    assert len(await backend.ledger()) == 1 + 20
    assert (await backend.reads.stats(USER)).queued == 20


async def test_confirm_counts_the_changed_sessions(backend: Backend) -> None:
    """Only queued, unconfirmed sessions change. Unknown ids are ignored."""
    first, second, left_out = [await backend.queued() for _ in range(3)]
    claimed = await backend.claimed()
    ended = await backend.finished(SessionStatus.FAILED)

    assert await backend.sessions.confirm([first, claimed.id, ended.id, uuid4()]) == 1
    assert await backend.sessions.confirm([first, second]) == 1
    assert await backend.sessions.confirm([]) == 0

    assert (await backend.get(first)).confirmed
    assert (await backend.get(second)).confirmed
    assert not (await backend.get(left_out)).confirmed
    assert await backend.get(ended.id) == ended


async def test_refund_goes_to_the_payer(backend: Backend) -> None:
    """A store and a user with the same id have two accounts."""
    store, user = (Owner(channel=channel, id="same") for channel in Channel)
    await backend.queued(user)
    session_id = await backend.queued(store)

    await backend.sessions.fail_queued(session_id, FAILURE)

    assert (await backend.balance(store), await backend.balance(user)) == (1, 0)


async def test_confirmed_session_may_fail(backend: Backend) -> None:
    """A caller cancels it, or it expires: only an undo of its creation comes too late."""
    session_id = await backend.queued()
    await backend.sessions.confirm([session_id])

    assert not await backend.sessions.fail_queued(session_id, FAILURE, undo=True)
    assert await backend.sessions.fail_queued(session_id, FAILURE)

    assert (await backend.get(session_id)).failure == FAILURE


async def test_fail_queued_needs_a_queued_session(backend: Backend) -> None:
    """It cannot take a session from its worker."""
    claimed = await backend.claimed()

    assert not await backend.sessions.fail_queued(claimed.id, FAILURE)

    assert await backend.get(claimed.id) == claimed
    assert await backend.money_of(claimed.id) == CHARGED


async def test_concurrent_failures_of_one_owner_are_all_refunded(backend: Backend) -> None:
    """No refund is lost if many change one balance."""
    ids = [await backend.queued() for _ in range(20)]

    await asyncio.gather(
        *(backend.sessions.fail_queued(session_id, FAILURE) for session_id in ids),
        *(backend.created() for _ in range(20)),
    )

    assert await backend.balance() == 20
    assert await backend.credits.audit(limit=10) == []


CALLS: dict[str, Callable[[PostgresSessionRepo], Awaitable[object]]] = {
    "create": lambda repo: repo.create(a_session(), max_active=MANY),
    "create_many": lambda repo: repo.create_many([a_session()], max_active=MANY),
    "undo_many": lambda repo: repo.undo_many([uuid4()], FAILURE),
    "find_replay": lambda repo: repo.find_replay(a_session(idempotency_key="k")),
    "confirm": lambda repo: repo.confirm([uuid4()]),
    "fail_queued": lambda repo: repo.fail_queued(uuid4(), FAILURE),
    "cancel": lambda repo: repo.cancel(uuid4()),
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
    assert set(CALLS) == {name for name in vars(SessionRepoPort) if not name.startswith("_")}
