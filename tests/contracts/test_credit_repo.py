"""CreditRepoPort: a balance is what its ledger adds up to, and an audit finds where it is not."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

from adapters.credits.postgres import PostgresCreditRepo
from adapters.postgres.database import Database, DatabaseLimits
from domain.credits import Channel, CreditAccount, LedgerEntry, LedgerKind, Owner
from domain.errors import DatabaseUnavailable
from domain.ports import CreditRepoPort
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, OTHER, STORE, STORED_PICTURE, USER

pytestmark = pytest.mark.anyio

NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
"""Another account than USER's, on the other channel."""


async def failed(backend: Backend) -> UUID:
    session_id = await backend.queued()
    assert await backend.sessions.fail_queued(session_id, FAILURE)
    return session_id


async def completed(backend: Backend) -> UUID:
    session = await backend.claimed()
    assert await backend.attempts.complete(session.id, attempt=1, picture=STORED_PICTURE)
    return session.id


async def off(backend: Backend) -> set[str]:
    """What an audit names."""
    return {found.subject for found in await backend.credits.audit(limit=100)}


async def test_an_owner_without_an_account_has_nothing(backend: Backend) -> None:
    """A balance of 0 and an empty ledger, not an error; asking makes no account."""
    assert await backend.credits.account(USER) == CreditAccount(owner=USER)
    assert await backend.credits.ledger(USER, limit=10, before_id=None) == []
    assert await backend.credits.audit(limit=10) == []


async def test_a_grant_is_added(backend: Backend) -> None:
    """To an account that is made for it, and then to that one; each has its entry."""
    first = await backend.credits.grant(USER, 5, note="for a start")
    second = await backend.credits.grant(USER, 7, note="Nachschub 👒")

    assert first == CreditAccount(owner=USER, balance=5, total_granted=5)
    assert second == CreditAccount(owner=USER, balance=12, total_granted=12)
    assert await backend.credits.account(USER) == second
    entries = [
        (entry.owner, entry.kind, entry.amount, entry.session_id, entry.note)
        for entry in await backend.ledger()
    ]
    assert entries == [
        (USER, LedgerKind.GRANT, 5, None, "for a start"),
        (USER, LedgerKind.GRANT, 7, None, "Nachschub 👒"),
    ]


async def test_accounts_are_apart(backend: Backend) -> None:
    """A grant is nobody else's, not a namesake's on the other channel either."""
    await backend.credits.grant(USER, 5, note="test")

    for owner in (OTHER, NAMESAKE):
        assert await backend.credits.account(owner) == CreditAccount(owner=owner)
        assert await backend.ledger(owner) == []


async def test_grants_at_once_all_count(backend: Backend) -> None:
    """Also where each of them would have made the account: every answer is another balance."""
    accounts = await asyncio.gather(
        *(backend.credits.grant(USER, 1, note="test") for _ in range(20))
    )

    assert sorted(account.balance for account in accounts) == list(range(1, 21))
    assert (await backend.credits.account(USER)).total_granted == 20
    assert len(await backend.ledger()) == 20
    assert await off(backend) == set()


async def test_totals_tell_what_became_of_the_credits(backend: Backend) -> None:
    """Granted, spent, given back, and what is left."""
    await completed(backend)
    await failed(backend)
    await backend.queued()

    assert await backend.credits.account(USER) == CreditAccount(
        owner=USER, balance=1, total_granted=3, total_debited=3, total_refunded=1
    )


async def test_the_ledger_explains_the_balance(backend: Backend) -> None:
    """Newest first: each debit and refund names its session, each grant its note, all their
    time."""
    session_id = await failed(backend)

    refund, debit, grant = await backend.credits.ledger(USER, limit=10, before_id=None)

    assert (refund.kind, refund.amount, refund.session_id) == (LedgerKind.REFUND, 1, session_id)
    assert (debit.kind, debit.amount, debit.session_id) == (LedgerKind.DEBIT, -1, session_id)
    assert (grant.kind, grant.amount, grant.session_id) == (LedgerKind.GRANT, 1, None)
    assert (refund.note, debit.note, grant.note) == (None, None, "test")
    assert refund.id > debit.id > grant.id
    assert refund.created_at >= debit.created_at >= grant.created_at
    assert grant.created_at.utcoffset() is not None


@pytest.mark.parametrize("limit", [1, 3, 7, 8])
async def test_pages_of_the_ledger_lose_and_repeat_nothing(backend: Backend, limit: int) -> None:
    """Each begins behind the last entry of the one before, whatever others and later entries do
    in between."""
    for amount in range(1, 8):
        await backend.credits.grant(USER, amount, note="test")
        await backend.credits.grant(OTHER, 100, note="test")
    found: list[LedgerEntry] = []
    before_id = None

    while page := await backend.credits.ledger(USER, limit=limit, before_id=before_id):
        found += page
        assert len(found) <= 7
        before_id = page[-1].id
        await backend.credits.grant(USER, 50, note="later")

    assert [entry.amount for entry in found] == [7, 6, 5, 4, 3, 2, 1]


async def test_an_audit_of_right_books_finds_nothing(backend: Backend) -> None:
    """Sessions in every status, several owners, and an owner who only has credits."""
    await completed(backend)
    await failed(backend)
    await backend.claimed(STORE)
    await backend.queued(OTHER)
    await backend.credits.grant(NAMESAKE, 1, note="test")

    assert await backend.credits.audit(limit=100) == []


@pytest.mark.parametrize("amount", [1, -1])
async def test_an_audit_finds_a_balance_without_its_entries(backend: Backend, amount: int) -> None:
    """More or less than the ledger adds up to; the owner is named, and no other."""
    await backend.credits.grant(USER, 5, note="test")
    await backend.credits.grant(OTHER, 5, note="test")

    await backend.misbook(USER, amount)

    assert await off(backend) == {str(USER)}


async def test_an_audit_finds_a_session_that_nobody_paid_for(backend: Backend) -> None:
    """Its debit is missing, and so the balance is too small for the ledger."""
    session_id = await backend.queued()
    await backend.queued()

    await backend.strike(session_id, LedgerKind.DEBIT)

    assert await off(backend) == {f"session {session_id}", str(USER)}


async def test_an_audit_finds_a_failure_without_its_refund(backend: Backend) -> None:
    """Its refund is gone, and so the balance is too large for the ledger."""
    session_id = await failed(backend)
    await failed(backend)

    await backend.strike(session_id, LedgerKind.REFUND)

    assert await off(backend) == {f"session {session_id}", str(USER)}


async def test_an_audit_finds_what_is_still_owed(backend: Backend) -> None:
    """What another consumer failed counts until it is refunded: only the session is off."""
    session_id = await backend.queued()
    await backend.foreign_write(session_id, status="failed")

    owed = await off(backend)
    await backend.recovery.refund_missing(limit=10)

    assert (owed, await off(backend)) == ({f"session {session_id}"}, set())


async def test_an_audit_finds_a_refund_of_what_was_delivered(backend: Backend) -> None:
    """A completed session is never refunded, nor is one that is still waiting."""
    delivered, waiting = await completed(backend), await backend.queued()

    for session_id in (delivered, waiting):
        await backend.enter(USER, LedgerKind.REFUND, 1, session_id)

    assert await off(backend) == {f"session {delivered}", f"session {waiting}", str(USER)}


async def test_an_audit_finds_a_refund_of_another_amount(backend: Backend) -> None:
    """What comes back is what was charged."""
    session_id = await failed(backend)
    await backend.strike(session_id, LedgerKind.REFUND)

    await backend.enter(USER, LedgerKind.REFUND, 2, session_id)

    assert f"session {session_id}" in await off(backend)


async def test_an_audit_finds_a_refund_to_somebody_else(backend: Backend) -> None:
    """It belongs to who paid: both balances are off, and the session is."""
    session_id = await failed(backend)
    await backend.credits.grant(OTHER, 1, note="test")
    await backend.strike(session_id, LedgerKind.REFUND)

    await backend.enter(OTHER, LedgerKind.REFUND, 1, session_id)

    assert await off(backend) == {f"session {session_id}", str(USER), str(OTHER)}


async def test_an_audit_finds_what_was_completed_without_a_picture(backend: Backend) -> None:
    """Its owner paid for nothing, until a consumer that is not ours adds its link; a picture that
    was deleted after its time was there."""
    session_id, expired = await backend.queued(), await completed(backend)
    await backend.foreign_write(session_id, status="completed")
    await backend.recovery.mark_images_deleted([expired])

    without = await off(backend)
    await backend.foreign_write(session_id, generated_image_url="https://x.example/")

    assert (without, await off(backend)) == ({f"session {session_id}"}, set())


async def test_an_audit_returns_no_more_than_its_limit(backend: Backend) -> None:
    """Whether accounts or sessions are off."""
    for owner in (USER, OTHER, STORE):
        await backend.credits.grant(owner, 1, note="test")
        await backend.misbook(owner, 1)
    for _ in range(3):
        await backend.foreign_write(await backend.queued(NAMESAKE), status="failed")

    counts = [len(await backend.credits.audit(limit=limit)) for limit in (1, 4, 6, 100)]

    assert counts == [1, 4, 6, 6]


CALLS: dict[str, Callable[[CreditRepoPort], Awaitable[object]]] = {
    "account": lambda repo: repo.account(USER),
    "ledger": lambda repo: repo.ledger(USER, limit=1, before_id=None),
    "grant": lambda repo: repo.grant(USER, 1, note="test"),
    "audit": lambda repo: repo.audit(limit=1),
}


@pytest.mark.parametrize("method", CALLS)
async def test_a_store_that_is_away_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method says so by the same error."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresCreditRepo(database))

    await database.close()


def test_every_method_of_the_port_is_tried_without_a_server() -> None:
    """So that a new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(CreditRepoPort) if not name.startswith("_")}


async def test_audit_finds_a_refund_on_the_other_channel(backend: Backend) -> None:
    """The account of the same id there is somebody else's."""
    session_id = await failed(backend)
    await backend.credits.grant(NAMESAKE, 1, note="test")
    await backend.strike(session_id, LedgerKind.REFUND)

    await backend.enter(NAMESAKE, LedgerKind.REFUND, 1, session_id)

    assert await off(backend) == {f"session {session_id}", str(USER), str(NAMESAKE)}
