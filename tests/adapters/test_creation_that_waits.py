"""The contract of limits once more, for the statements that wait for a locked account. They run
otherwise only for calls that found their account locked."""

from collections.abc import AsyncIterator

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.plans import AccountLimits
from domain.ports import SessionRepoPort
from tests.adapters.console import Console
from tests.contracts.test_limits import *  # noqa: F403 - the contract is the whole module


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
