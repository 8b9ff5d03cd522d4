"""The statements that create sessions, by themselves. The contract of limits once more, for those
that wait for a locked account: they run otherwise only for calls that found their account locked.
And batches that must not fail, because the calls of a failed batch run again one by one."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from unittest.mock import ANY
from uuid import uuid4

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.creation import CREATE_FOR_SHOPPERS_SKIP_LOCKED, CREATE_FOR_SHOPPERS_WAIT
from adapters.sessions.postgres import PostgresSessionRepo
from domain.callers import Shopper
from domain.plans import AccountLimits, TokenBudget
from domain.ports import Receipt, SessionRepoPort
from domain.refusals import Refusal
from tests.adapters.batching import waiting_for_a_lock
from tests.adapters.console import Console
from tests.contracts.test_limits import *  # noqa: F403 - the contract is the whole module
from tests.contracts.test_limits import NAMESAKE, OTHER_STORE, a_token
from tests.support.examples import MANY, STORE, a_session


class WaitingConsole(Console):
    def __init__(self, database: Database) -> None:
        super().__init__(database)
        waiting(self.sessions)

    def limited(self, limits: AccountLimits) -> SessionRepoPort:
        return waiting(super().limited(limits))


def waiting(repo: SessionRepoPort) -> SessionRepoPort:
    """The repository, which from now on waits for every account from the start."""
    assert isinstance(repo, PostgresSessionRepo)
    creation = repo._creation
    for name in ("_create", "_create_for_shopper"):
        setattr(creation, name, getattr(creation, name)._blocked)
    return repo


@pytest.fixture
async def backend(postgres: EmbeddedPostgres) -> AsyncIterator[WaitingConsole]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    console = WaitingConsole(database)
    await console.empty()
    yield console
    await database.close()


both_statements = pytest.mark.parametrize(
    "statement", [CREATE_FOR_SHOPPERS_SKIP_LOCKED, CREATE_FOR_SHOPPERS_WAIT], ids=["skip", "wait"]
)


@both_statements
async def test_one_statement_creates_for_shoppers_who_look_alike(
    backend: WaitingConsole, statement: str
) -> None:
    """Shoppers of one store, of two stores by the same id, a key that is given twice, and a user
    with the id of a store."""
    await backend.credits.grant(NAMESAKE, 7, note="test")
    mine, second = await a_token(backend), await a_token(backend, shopper_id="shopper-2")
    others = await a_token(backend, OTHER_STORE)
    repo = backend.sessions
    assert isinstance(repo, PostgresSessionRepo)
    payers = [(STORE, mine), (STORE, mine), (STORE, second), (OTHER_STORE, others)]
    sessions = [
        a_session(owner=owner, shopper=shopper, idempotency_key=key)
        for (owner, shopper), key in zip(
            [*payers, (NAMESAKE, mine)], ["k", "k", None, "k", None], strict=True
        )
    ]

    *created, refused = await repo._creation._run_for_shoppers(
        statement, [(session, MANY) for session in sessions]
    )

    receipts = [outcome for outcome in created if isinstance(outcome, Receipt)]
    assert [receipt.replayed for receipt in receipts] == [False, True, False, False]
    assert not isinstance(refused, Receipt)
    assert refused[0] is Refusal.TOKEN_INVALID
    owners = (STORE, OTHER_STORE, NAMESAKE)
    assert [await backend.balance(owner) for owner in owners] == [198, 99, 7]


@both_statements
async def test_call_without_its_account_locks_no_token(
    backend: WaitingConsole, statement: str
) -> None:
    """A token is locked after its account, or not at all. The account of one call is missing, and
    that of another, whose id another channel's account has."""
    mine = await a_token(backend)
    others = [Shopper(id=name, token_id=uuid4()) for name in ("bob", "cem")]
    expires_at = datetime.now(UTC) + timedelta(minutes=15)
    for shopper in others:
        budget = TokenBudget(
            store_id=OTHER_STORE.id, shopper_id=shopper.id, pictures=1, expires_at=expires_at
        )
        await backend.add_token(shopper.token_id, budget)
    repo = backend.sessions
    assert isinstance(repo, PostgresSessionRepo)
    asked = zip((STORE, OTHER_STORE, NAMESAKE), (mine, *others), strict=True)
    creations = [(a_session(owner=owner, shopper=shopper), MANY) for owner, shopper in asked]

    async with backend.database.transaction() as connection:
        await connection.execute("SELECT FROM shoppers WHERE store_id = 'store-1' FOR UPDATE")
        creating = asyncio.create_task(repo._creation._run_for_shoppers(statement, creations))
        await waiting_for_a_lock(backend.database)
        free = await backend.database.fetch(
            "SELECT FROM client_tokens WHERE store_id = 'store-2' FOR UPDATE NOWAIT"
        )

    created, *refused = await creating
    assert (len(free), isinstance(created, Receipt)) == (2, True)
    assert refused == [(Refusal.NO_ACCOUNT, ANY)] * 2
