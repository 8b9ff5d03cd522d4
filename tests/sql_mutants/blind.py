"""A suite that sends statements and asserts nothing: every mutant survives it."""

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from tests.contracts.backends import PostgresBackend

pytestmark = pytest.mark.anyio


async def test_nothing(postgres: EmbeddedPostgres) -> None:
    """The file's name keeps pytest from collecting it with the others."""
    database = Database(postgres.url(), limits=DatabaseLimits())
    backend = PostgresBackend(database)
    session = await backend.claimed()
    await backend.attempts.record_job(session.id, attempt=1, job="a job")
    await database.close()
