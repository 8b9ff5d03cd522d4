"""What the audit looks at, each thing by itself: also one that a rule of the schema forbids, with
that rule off."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import pytest

from adapters.credits.postgres import PostgresCreditRepo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Connection, Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import LedgerKind
from tests.contracts.backends import PostgresBackend
from tests.support.examples import FAILURE, OTHER, USER

pytestmark = pytest.mark.anyio


class Undone(Exception):
    """Ends a transaction that is not to be committed."""


class OneTransaction(Database):
    """Everything within one transaction, which the test undoes."""

    def __init__(self, connection: Connection) -> None:
        super().__init__("", limits=DatabaseLimits())
        self.connection = connection

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        yield self.connection


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    await PostgresBackend(database).empty()
    yield database
    await database.close()


@pytest.mark.parametrize(
    "column", ["balance", "total_granted", "total_debited", "total_refunded", "total_adjusted"]
)
async def test_audit_compares_each_total_with_the_ledger(database: Database, column: str) -> None:
    """Also where the balance is not what the totals say, which the schema forbids."""
    backend = PostgresBackend(database)
    await backend.queued()
    problems = []

    with suppress(Undone):
        async with database.transaction() as connection:
            audit = PostgresCreditRepo(OneTransaction(connection)).audit
            await connection.execute(
                "ALTER TABLE credit_accounts DROP CONSTRAINT balance_is_its_totals"
            )
            problems.append(await audit(limit=10))
            await connection.execute(f"UPDATE credit_accounts SET {column} = {column} + 1")  # noqa: S608
            problems.append(await audit(limit=10))
            raise Undone

    assert [[problem.subject for problem in found] for found in problems] == [[], [str(USER)]]


@pytest.mark.parametrize("column", ["sessions_created", "sessions_refunded"])
async def test_audit_compares_each_counter_with_the_ledger(database: Database, column: str) -> None:
    """``stats`` would show too many sessions, or too few."""
    backend = PostgresBackend(database)
    await backend.queued()
    await database.fetch(f"UPDATE credit_accounts SET {column} = {column} + 1")  # noqa: S608

    (problem,) = await backend.credits.audit(limit=10)

    assert problem.subject == str(USER)
    assert problem.problem.startswith("counts ")


async def test_audit_counts_refunds(database: Database) -> None:
    """Two that add up to the debit are one too many, though the schema allows only one."""
    backend = PostgresBackend(database)
    await backend.credits.grant(USER, 5, note="test")
    session_id = await backend.queued()
    await backend.sessions.fail_queued(session_id, FAILURE)

    with suppress(Undone):
        async with database.transaction() as connection:
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute("DROP INDEX one_refund_per_session")
            await connection.execute("UPDATE credit_ledger SET amount = -2 WHERE kind = 'debit'")
            await connection.execute(
                "INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)"
                " VALUES ('b2c', $1, 'refund', 1, $2)",
                USER.id,
                session_id,
            )
            problems = await PostgresCreditRepo(OneTransaction(connection)).audit(limit=10)
            raise Undone

    assert [found.problem for found in problems if found.subject == f"session {session_id}"] == [
        "is failed with 1 debit(s) and 2 refund(s), net 0"
    ]


async def test_audit_says_what_is_wrong_with_a_session(database: Database) -> None:
    """In words that an operator can act on."""
    backend = PostgresBackend(database)
    elsewhere, unseen, unpaid = [await backend.queued() for _ in range(3)]
    await backend.credits.grant(OTHER, 1, note="test")
    await backend.delete_entry(elsewhere, LedgerKind.DEBIT)
    await backend.add_entry(OTHER, LedgerKind.DEBIT, -1, elsewhere)
    await backend.external_write(unseen, status="completed")
    await backend.delete_entry(unpaid, LedgerKind.DEBIT)

    problems = {found.subject: found.problem for found in await backend.credits.audit(limit=10)}

    assert problems[f"session {elsewhere}"] == (
        "is queued with 1 debit(s) and 0 refund(s), net -1, on another account"
    )
    assert problems[f"session {unseen}"] == (
        "is completed with 1 debit(s) and 0 refund(s), net -1, without a picture"
    )
    assert problems[f"session {unpaid}"] == "is queued with 0 debit(s) and 0 refund(s), net 0"
