"""API keys in PostgreSQL."""

from uuid import UUID

import asyncpg

from adapters.postgres.database import Database
from domain.callers import Caller
from domain.credits import Channel, Owner
from domain.ports import ApiKey, ApiKeyRepoPort

_CALLER_OF = """
    SELECT key.channel, key.owner_id, coalesce(store.origins, '{}') AS origins
    FROM api_keys AS key
        LEFT JOIN stores AS store ON store.id = key.owner_id AND key.channel = 'b2b'
    WHERE key.key_sha256 = $1 AND key.revoked_at IS NULL"""

_ADD = """
    INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, created_at)
    VALUES ($1, $2, $3, $4, $5, $6)"""

_ALL = """
    SELECT id, channel, owner_id, key_sha256, label, created_at, revoked_at FROM api_keys
    WHERE $1::text IS NULL OR (channel = $1 AND owner_id = $2)
    ORDER BY created_at DESC, id DESC"""

_REVOKE = """
    UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL RETURNING true"""


class PostgresApiKeyRepo(ApiKeyRepoPort):
    """Stores only hashes: reading the table does not reveal a usable key."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def caller_of(self, key_sha256: str) -> Caller | None:
        row = await self._database.fetch_row(_CALLER_OF, key_sha256)
        return None if row is None else Caller(owner=_owner(row), origins=frozenset(row["origins"]))

    async def add(self, key: ApiKey) -> None:
        await self._database.fetch(
            _ADD,
            key.id,
            key.owner.channel,
            key.owner.id,
            key.key_sha256,
            key.label,
            key.created_at,
        )

    async def all(self, owner: Owner | None) -> list[ApiKey]:
        owner_columns = (None, None) if owner is None else (owner.channel, owner.id)
        return [_key(row) for row in await self._database.fetch(_ALL, *owner_columns)]

    async def revoke(self, key_id: UUID) -> bool:
        return await self._database.fetch_row(_REVOKE, key_id) is not None


def _owner(row: asyncpg.Record) -> Owner:
    return Owner(channel=Channel(row["channel"]), id=row["owner_id"])


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        id=row["id"],
        owner=_owner(row),
        key_sha256=row["key_sha256"],
        label=row["label"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )
