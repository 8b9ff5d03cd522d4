"""The statements that create sessions, by themselves. The contract of limits once more, for those
that wait for a locked account: they run otherwise only for calls that found their account locked.
And batches that must not fail, because the calls of a failed batch run again one by one."""

from collections.abc import AsyncIterator

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.creation import CREATE_FOR_SHOPPERS_SKIP_LOCKED, CREATE_FOR_SHOPPERS_WAIT
from adapters.sessions.postgres import PostgresSessionRepo
from domain.plans import AccountLimits
from domain.ports import Receipt, SessionRepoPort
from domain.refusals import Refusal
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


@pytest.mark.parametrize(
    "statement", [CREATE_FOR_SHOPPERS_SKIP_LOCKED, CREATE_FOR_SHOPPERS_WAIT], ids=["skip", "wait"]
)
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
