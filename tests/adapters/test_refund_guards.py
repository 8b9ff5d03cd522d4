"""A refund goes to the payer of its session, once, in each statement that makes one; also where
another rule would refuse the opposite, with that one off."""

from collections.abc import AsyncIterator, Awaitable, Callable
from datetime import timedelta
from uuid import UUID

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import Channel, LedgerKind, Owner
from tests.contracts.backends import PostgresBackend
from tests.support.examples import FAILURE, LEASE, OTHER, USER

pytestmark = pytest.mark.anyio

NAMESAKE = Owner(channel=Channel.B2B, id=USER.id)
"""Another account than USER's, on the other channel."""

Step = Callable[[PostgresBackend, UUID], Awaitable[object]]


async def _waiting(backend: PostgresBackend, owner: Owner) -> UUID:
    return (await backend.created(owner, idempotency_key="k")).session.id


async def _working(backend: PostgresBackend, owner: Owner) -> UUID:
    session_id = await _waiting(backend, owner)
    await backend.claim(session_id)
    return session_id


async def _failed_elsewhere(backend: PostgresBackend, owner: Owner) -> UUID:
    session_id = await _waiting(backend, owner)
    await backend.external_write(session_id, status="failed")
    return session_id


async def _advanced(backend: PostgresBackend) -> None:
    await backend.advance(2 * LEASE)


async def _fail_expired(backend: PostgresBackend, _: UUID) -> object:
    return await backend.recovery.fail_expired(FAILURE, older_than=LEASE, limit=10)


async def _fail_dead_leases(backend: PostgresBackend, _: UUID) -> object:
    return await backend.recovery.fail_dead_leases(
        FAILURE, max_attempts=1, external_timeout=timedelta(hours=1), limit=10
    )


Make = Callable[[PostgresBackend, Owner], Awaitable[UUID]]
STEPS: dict[str, tuple[Make, Step]] = {
    "fail_queued": (_waiting, lambda backend, id_: backend.sessions.fail_queued(id_, FAILURE)),
    "fail": (_working, lambda backend, id_: backend.attempts.fail(id_, FAILURE, attempt=1)),
    "fail_expired": (_waiting, _fail_expired),
    "fail_dead_leases": (_working, _fail_dead_leases),
    "refund_missing": (
        _failed_elsewhere,
        lambda backend, _: backend.recovery.refund_missing(limit=10),
    ),
}
"""How a session is made that is refunded by the call, and the call."""
BATCHES = ("fail_expired", "fail_dead_leases", "refund_missing")

steps = pytest.mark.parametrize("step", STEPS)


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    yield database
    await database.close()


@pytest.fixture
async def backend(database: Database) -> PostgresBackend:
    backend = PostgresBackend(database)
    await backend.empty()
    return backend


async def due(backend: PostgresBackend, step: str, owner: Owner = USER) -> UUID:
    """A session that the step refunds."""
    session_id = await STEPS[step][0](backend, owner)
    await _advanced(backend)
    return session_id


async def run(backend: PostgresBackend, step: str, session_id: UUID) -> object:
    return await STEPS[step][1](backend, session_id)


async def accounts(database: Database) -> dict[tuple[str, str], tuple[object, ...]]:
    rows = await database.fetch(
        "SELECT channel, owner_id, balance, total_refunded, sessions_refunded FROM credit_accounts"
    )
    return {(row["channel"], row["owner_id"]): tuple(row)[2:] for row in rows}


@steps
async def test_refund_changes_the_account_of_its_payer_only(
    database: Database, backend: PostgresBackend, step: str
) -> None:
    """Not that of the same id on the other channel, nor another one on the same channel."""
    session_id = await due(backend, step)
    for owner in (NAMESAKE, OTHER):
        await backend.created(owner)
    before = await accounts(database)

    assert await run(backend, step, session_id)

    assert await accounts(database) == before | {("b2c", USER.id): (1, 1, 1)}


@steps
async def test_refund_waits_for_the_account_of_its_payer_only(
    database: Database, backend: PostgresBackend, step: str
) -> None:
    """Others may be locked for long."""
    for owner in (NAMESAKE, OTHER):
        await backend.credits.grant(owner, 1, note="test")
    session_id = await due(backend, step)

    async with database.transaction() as holder:
        await holder.execute(
            "SELECT FROM credit_accounts WHERE (channel, owner_id) <> ('b2c', $1) FOR UPDATE",
            USER.id,
        )
        assert await run(backend, step, session_id)

    assert await backend.balance() == 1


@pytest.mark.parametrize("step", BATCHES)
async def test_refunds_of_one_statement_go_to_their_payers(
    backend: PostgresBackend, step: str
) -> None:
    """A store and a user of the same id, and another user."""
    owners = (USER, NAMESAKE, OTHER, USER)
    ids = [await STEPS[step][0](backend, owner) for owner in owners[:3]]
    ids.append((await backend.created(USER)).session.id)
    if step == "fail_dead_leases":
        await backend.claim(ids[3])
    if step == "refund_missing":
        await backend.external_write(ids[3], status="failed")
    await _advanced(backend)

    await run(backend, step, ids[0])

    assert [await backend.balance(owner) for owner in owners] == [2, 1, 1, 2]
    assert await backend.credits.audit(limit=10) == []


@steps
async def test_refund_that_is_in_the_ledger_is_not_made_again(
    backend: PostgresBackend, step: str
) -> None:
    """Though the status says that it is due: the session fails, and its payer gets nothing more."""
    session_id = await due(backend, step)
    await backend.add_entry(USER, LedgerKind.REFUND, 1, session_id)

    assert await run(backend, step, session_id)

    assert await backend.money_of(session_id) == ["debit", "refund"]
    assert await backend.balance() == 0
    assert (await backend.get(session_id)).status == "failed"


@steps
async def test_refund_is_not_left_out_because_of_another_conflict(
    database: Database, backend: PostgresBackend, step: str
) -> None:
    """Only an earlier refund of the session excuses it: with the number of another entry, which no
    sequence gives unless it was set back, the whole statement is refused."""
    session_id = await due(backend, step)
    await database.fetch(
        "SELECT setval(pg_get_serial_sequence('credit_ledger', 'id'), min(id), false)"
        " FROM credit_ledger"
    )
    before = await backend.get(session_id)

    with pytest.raises(asyncpg.UniqueViolationError):
        await run(backend, step, session_id)

    assert await backend.get(session_id) == before


@steps
async def test_refunded_session_keeps_its_key(backend: PostgresBackend, step: str) -> None:
    """A repeated request is answered with the failure, not charged again."""
    session_id = await due(backend, step)

    assert await run(backend, step, session_id)

    assert (await backend.get(session_id)).idempotency_key == "k"


@steps
async def test_refund_needs_a_debit_of_its_session(
    database: Database, backend: PostgresBackend, step: str
) -> None:
    """What was not charged ends without one; another session's debit is not given back for it."""
    session_id = await due(backend, step)
    charged = (await backend.created(USER)).session.id
    await backend.delete_entry(session_id, LedgerKind.DEBIT)

    assert await run(backend, step, session_id)

    assert await backend.money_of(charged) == ["debit"]
    assert await backend.money_of(session_id) == []
    assert (await accounts(database))["b2c", USER.id] == (0, 0, 0)
