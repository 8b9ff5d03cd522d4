"""Shared by the tests of ``Database``."""

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits

ONE_CONNECTION = DatabaseLimits(connections=1, command_seconds=0.5)


@asynccontextmanager
async def connected(
    url: str, limits: DatabaseLimits = ONE_CONNECTION, *, transaction_pooler: bool = False
) -> AsyncIterator[Database]:
    database = Database(url, limits=limits, transaction_pooler=transaction_pooler)
    try:
        yield database
    finally:
        await database.close()


async def create_and_fail(database: Database, table: str) -> None:
    """Create a table in a transaction that then fails."""
    async with database.transaction() as connection:
        await connection.execute(f"CREATE TABLE {table} ()")
        await connection.execute("SELECT 1 / 0")
