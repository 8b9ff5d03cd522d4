"""The origins of all stores, for what is configured outside of this service."""

from adapters.postgres.database import Database

_ALL = "SELECT DISTINCT unnest(origins) AS origin FROM stores ORDER BY origin"


async def store_origins(database: Database) -> list[str]:
    return [row["origin"] for row in await database.fetch(_ALL)]
