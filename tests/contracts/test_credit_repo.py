"""CreditRepoPort: a balance is the sum of its ledger, and an audit finds every exception."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path
from uuid import UUID

import pytest

from adapters.credits.postgres import PostgresCreditRepo
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import Channel, CreditAccount, LedgerEntry, LedgerKind, Owner
from domain.errors import DatabaseUnavailable
from domain.ports import CreditRepoPort
from tests.contracts.backends import Backend
from tests.support.examples import FAILURE, OTHER, STORE, USER, picture_of

pytestmark = pytest.mark.anyio

NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
"""The same id as USER's on the other channel: another account."""


async def failed(backend: Backend) -> UUID:
    session_id = await backend.queued()
    assert await backend.sessions.fail_queued(session_id, FAILURE)
    return session_id


async def completed(backend: Backend) -> UUID:
    session = await backend.claimed()
    assert await backend.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))
    return session.id


async def wrong(backend: Backend) -> set[str]:
    """The subjects that an audit names."""
    return {found.subject for found in await backend.credits.audit(limit=100)}


async def test_owner_without_an_account(backend: Backend) -> None:
    """A balance of 0 and an empty ledger, not an error. Reading creates no account."""
    assert await backend.credits.account(USER) == CreditAccount(owner=USER)
    assert await backend.credits.ledger(USER, limit=10, before_id=None) == []
    assert await backend.credits.audit(limit=10) == []


async def test_grants_add_up(backend: Backend) -> None:
    """The first one creates the account. Each has its ledger entry."""
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


async def test_grant_changes_one_account(backend: Backend) -> None:
    """Not another owner's, nor that of the same id on the other channel."""
    await backend.credits.grant(USER, 5, note="test")

    for owner in (OTHER, NAMESAKE):
        assert await backend.credits.account(owner) == CreditAccount(owner=owner)
        assert await backend.ledger(owner) == []


async def test_concurrent_grants_all_count(backend: Backend) -> None:
    """Even if each would have created the account: every answer has another balance."""
    accounts = await asyncio.gather(
        *(backend.credits.grant(USER, 1, note="test") for _ in range(20))
    )

    assert sorted(account.balance for account in accounts) == list(range(1, 21))
    assert (await backend.credits.account(USER)).total_granted == 20
    assert len(await backend.ledger()) == 20
    assert await wrong(backend) == set()


async def test_totals_explain_the_balance(backend: Backend) -> None:
    """Granted, debited and refunded."""
    await completed(backend)
    await failed(backend)
    await backend.queued()

    assert await backend.credits.account(USER) == CreditAccount(
        owner=USER, balance=1, total_granted=3, total_debited=3, total_refunded=1
    )


async def test_ledger_explains_the_balance(backend: Backend) -> None:
    """Newest first. Debits and refunds have their session, grants their note."""
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
async def test_pages_of_the_ledger_lose_and_repeat_no_entry(backend: Backend, limit: int) -> None:
    """Each page starts after the last entry of the previous one, whatever entries are added in
    between."""
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


async def test_audit_of_correct_books_is_empty(backend: Backend) -> None:
    """Sessions in every status, several owners, and an owner with credits only."""
    await completed(backend)
    await failed(backend)
    await backend.claimed(STORE)
    await backend.queued(OTHER)
    await backend.credits.grant(NAMESAKE, 1, note="test")

    assert await backend.credits.audit(limit=100) == []


@pytest.mark.parametrize("amount", [1, -1])
async def test_audit_finds_a_wrong_balance(backend: Backend, amount: int) -> None:
    """Higher or lower than the sum of the ledger. Only that owner is named."""
    await backend.credits.grant(USER, 5, note="test")
    await backend.credits.grant(OTHER, 5, note="test")

    await backend.change_balance(USER, amount)

    assert await wrong(backend) == {str(USER)}


async def test_audit_finds_a_missing_debit(backend: Backend) -> None:
    """The session is named, and the balance, which is too low for the ledger."""
    session_id = await backend.queued()
    await backend.queued()

    await backend.delete_entry(session_id, LedgerKind.DEBIT)

    assert await wrong(backend) == {f"session {session_id}", str(USER)}


async def test_audit_finds_a_missing_refund(backend: Backend) -> None:
    """The session is named, and the balance, which is too high for the ledger."""
    session_id = await failed(backend)
    await failed(backend)

    await backend.delete_entry(session_id, LedgerKind.REFUND)

    assert await wrong(backend) == {f"session {session_id}", str(USER)}


async def test_audit_finds_an_external_failure_before_its_refund(backend: Backend) -> None:
    """Only the session is named. After the refund the books balance."""
    session_id = await backend.queued()
    await backend.external_write(session_id, status="failed")

    owed = await wrong(backend)
    await backend.recovery.refund_missing(limit=10)

    assert (owed, await wrong(backend)) == ({f"session {session_id}"}, set())


async def test_audit_finds_a_refund_without_a_failure(backend: Backend) -> None:
    """A completed or unfinished session has no refund."""
    delivered, waiting = await completed(backend), await backend.queued()

    for session_id in (delivered, waiting):
        await backend.add_entry(USER, LedgerKind.REFUND, 1, session_id)

    assert await wrong(backend) == {f"session {delivered}", f"session {waiting}", str(USER)}


async def test_audit_finds_a_refund_of_another_amount(backend: Backend) -> None:
    """The refund equals the debit."""
    session_id = await failed(backend)
    await backend.delete_entry(session_id, LedgerKind.REFUND)

    await backend.add_entry(USER, LedgerKind.REFUND, 2, session_id)

    assert f"session {session_id}" in await wrong(backend)


async def test_audit_finds_a_refund_to_another_account(backend: Backend) -> None:
    """The session is named, and both balances."""
    session_id = await failed(backend)
    await backend.credits.grant(OTHER, 1, note="test")
    await backend.delete_entry(session_id, LedgerKind.REFUND)

    await backend.add_entry(OTHER, LedgerKind.REFUND, 1, session_id)

    assert await wrong(backend) == {f"session {session_id}", str(USER), str(OTHER)}


async def test_audit_finds_a_completed_session_without_a_picture(backend: Backend) -> None:
    """Until an external consumer adds its link. A picture that was deleted after its lifetime
    counts."""
    session_id, expired = await backend.queued(), await completed(backend)
    await backend.external_write(session_id, status="completed")
    await backend.recovery.mark_images_deleted([expired])

    without = await wrong(backend)
    await backend.external_write(session_id, generated_image_url="https://x.example/")

    assert (without, await wrong(backend)) == ({f"session {session_id}"}, set())


async def test_empty_link_is_no_picture(backend: Backend) -> None:
    """An external consumer that has no picture may say so with an empty text."""
    session_id = await backend.queued()

    await backend.external_write(session_id, status="completed", generated_image_url="")

    assert (await backend.get(session_id)).generated_image_url is None
    assert await wrong(backend) == {f"session {session_id}"}


async def test_audit_stops_at_its_limit(backend: Backend) -> None:
    """For accounts and for sessions."""
    for owner in (USER, OTHER, STORE):
        await backend.credits.grant(owner, 1, note="test")
        await backend.change_balance(owner, 1)
    for _ in range(3):
        await backend.external_write(await backend.queued(NAMESAKE), status="failed")

    counts = [len(await backend.credits.audit(limit=limit)) for limit in (1, 4, 6, 100)]

    assert counts == [1, 4, 6, 6]


CALLS: dict[str, Callable[[CreditRepoPort], Awaitable[object]]] = {
    "account": lambda repo: repo.account(USER),
    "ledger": lambda repo: repo.ledger(USER, limit=1, before_id=None),
    "grant": lambda repo: repo.grant(USER, 1, note="test"),
    "signups_today": lambda repo: repo.signups_today(),
    "audit": lambda repo: repo.audit(limit=1),
}


@pytest.mark.parametrize("method", CALLS)
async def test_database_that_is_down_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method raises DatabaseUnavailable."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresCreditRepo(database))

    await database.close()


def test_every_method_is_called_without_a_server() -> None:
    """A new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(CreditRepoPort) if not name.startswith("_")}


async def test_audit_finds_a_refund_on_the_other_channel(backend: Backend) -> None:
    """The account of the same id there is somebody else's."""
    session_id = await failed(backend)
    await backend.credits.grant(NAMESAKE, 1, note="test")
    await backend.delete_entry(session_id, LedgerKind.REFUND)

    await backend.add_entry(NAMESAKE, LedgerKind.REFUND, 1, session_id)

    assert await wrong(backend) == {f"session {session_id}", str(USER), str(NAMESAKE)}
