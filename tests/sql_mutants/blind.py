"""A suite that sends statements and would never notice what they do: every mutant survives it."""

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from tests.contracts.backends import PostgresBackend

pytestmark = pytest.mark.anyio


async def test_nothing(postgres: EmbeddedPostgres) -> None:
    """Not collected with the others, because of the file's name."""
    database = Database(postgres.url(), limits=DatabaseLimits())
    backend = PostgresBackend(database)
    session = await backend.claimed()
    await backend.attempts.record_job(session.id, attempt=1, job="a job")
    await database.close()
