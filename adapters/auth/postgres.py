"""API keys and service keys in PostgreSQL."""

from collections.abc import Sequence
from uuid import UUID

import asyncpg

from adapters.coalescing import DEFAULT_LIMITS, BatchLimits, Coalescer
from adapters.postgres.database import Database, too_many_calls
from domain.account_ports import ServiceKey, ServiceKeyRepoPort
from domain.callers import Caller, Scope, Service
from domain.credits import Channel, Owner
from domain.errors import IdempotencyKeyReused
from domain.operators import Operator
from domain.ports import MAX_KEYS, ApiKey, ApiKeyRepoPort

_CALLERS_OF = """
    SELECT key.key_sha256, key.channel, key.owner_id, coalesce(store.origins, '{}') AS origins
    FROM api_keys AS key
        LEFT JOIN stores AS store ON store.id = key.owner_id AND key.channel = 'b2b'
    WHERE key.key_sha256 = ANY($1::text[]) AND key.revoked_at IS NULL"""

_ADD = """
    WITH added AS (
        INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, prefix, created_at,
            idempotency_key)
        VALUES ($1, $2, $3, $4, $5, $6, $7, $8)
        ON CONFLICT (idempotency_key) DO NOTHING
        RETURNING id, channel, owner_id, key_sha256, label, prefix, created_at, revoked_at
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $9::text, 'key.create', channel || ':' || owner_id, $10::text,
            jsonb_build_object('key_id', id, 'prefix', prefix, 'label', label)
        FROM added WHERE $9 IS NOT NULL
    )
    SELECT * FROM added"""

_BY_IDEMPOTENCY_KEY = """
    SELECT id, channel, owner_id, key_sha256, label, prefix, created_at, revoked_at
    FROM api_keys WHERE idempotency_key = $1"""

_GET = """
    SELECT id, channel, owner_id, key_sha256, label, prefix, created_at, revoked_at
    FROM api_keys WHERE id = $1"""

_ALL = """
    SELECT id, channel, owner_id, key_sha256, label, prefix, created_at, revoked_at FROM api_keys
    WHERE $1::text IS NULL OR (channel = $1 AND owner_id = $2)
    ORDER BY created_at DESC, id DESC LIMIT $3"""

_REVOKE = """
    WITH revoked AS (
        UPDATE api_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL
        RETURNING id, channel, owner_id, label, prefix
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $2::text, 'key.revoke', channel || ':' || owner_id, $3::text,
            jsonb_build_object('key_id', id, 'prefix', prefix, 'label', label)
        FROM revoked WHERE $2 IS NOT NULL
    )
    SELECT id FROM revoked"""

_SERVICE_OF = """
    SELECT id, label, scopes FROM service_keys WHERE key_sha256 = $1 AND revoked_at IS NULL"""

_ADD_SERVICE = """
    WITH added AS (
        INSERT INTO service_keys (id, key_sha256, label, scopes, prefix, created_at)
        VALUES ($1, $2, $3, $4::text[], $5, $6)
        RETURNING id, label, scopes, prefix
    )
    INSERT INTO operator_actions (actor, action, subject, reason, details)
    SELECT $7, 'service.create', 'service:' || label, $8,
        jsonb_build_object('key_id', id, 'prefix', prefix, 'scopes', scopes)
    FROM added"""

_SERVICES = """
    SELECT id, key_sha256, label, scopes, prefix, created_at, revoked_at FROM service_keys
    ORDER BY created_at DESC, id DESC LIMIT $1"""

_REVOKE_SERVICE = """
    WITH revoked AS (
        UPDATE service_keys SET revoked_at = now() WHERE id = $1 AND revoked_at IS NULL
        RETURNING id, label, scopes, prefix
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $2, 'service.revoke', 'service:' || label, $3,
            jsonb_build_object('key_id', id, 'prefix', prefix, 'scopes', scopes)
        FROM revoked
    )
    SELECT id FROM revoked"""


class PostgresApiKeyRepo(ApiKeyRepoPort):
    """Stores only hashes: reading the table does not reveal a usable key.

    Concurrent look-ups share a statement: every key of a busy process is looked up again each time
    that its cached caller expires."""

    def __init__(self, database: Database, *, batches: BatchLimits = DEFAULT_LIMITS) -> None:
        self._database = database
        self._caller_of: Coalescer[str, Caller | None] = batches.coalescer(
            self._callers_of, too_many=too_many_calls
        )

    async def caller_of(self, key_sha256: str) -> Caller | None:
        return await self._caller_of(key_sha256)

    async def _callers_of(self, hashes: Sequence[str]) -> Sequence[Caller | None]:
        rows = await self._database.fetch(_CALLERS_OF, hashes)
        callers = {
            row["key_sha256"]: Caller(owner=_owner(row), origins=frozenset(row["origins"]))
            for row in rows
        }
        return [callers.get(sha256) for sha256 in hashes]

    async def add(
        self, key: ApiKey, *, idempotency_key: str | None = None, by: Operator | None = None
    ) -> ApiKey:
        row = await self._database.fetch_row(
            _ADD,
            key.id,
            key.owner.channel,
            key.owner.id,
            key.key_sha256,
            key.label,
            key.prefix,
            key.created_at,
            idempotency_key,
            None if by is None else by.actor,
            None if by is None else by.reason,
        )
        if row is not None:
            return _key(row)
        row = await self._database.fetch_row(_BY_IDEMPOTENCY_KEY, idempotency_key)
        assert row is not None  # noqa: S101 - no key is ever deleted
        earlier = _key(row)
        if (earlier.owner, earlier.label) != (key.owner, key.label):
            raise IdempotencyKeyReused("This Idempotency-Key belongs to another key")
        return earlier

    async def get(self, key_id: UUID) -> ApiKey | None:
        row = await self._database.fetch_row(_GET, key_id)
        return None if row is None else _key(row)

    async def all(self, owner: Owner | None, *, limit: int = MAX_KEYS) -> list[ApiKey]:
        owner_columns = (None, None) if owner is None else (owner.channel, owner.id)
        return [_key(row) for row in await self._database.fetch(_ALL, *owner_columns, limit)]

    async def revoke(self, key_id: UUID, *, by: Operator | None = None) -> bool:
        actor, reason = (None, None) if by is None else (by.actor, by.reason)
        return await self._database.fetch_row(_REVOKE, key_id, actor, reason) is not None


def _owner(row: asyncpg.Record) -> Owner:
    return Owner(channel=Channel(row["channel"]), id=row["owner_id"])


def _key(row: asyncpg.Record) -> ApiKey:
    return ApiKey(
        id=row["id"],
        owner=_owner(row),
        key_sha256=row["key_sha256"],
        label=row["label"],
        prefix=row["prefix"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )


class PostgresServiceKeyRepo(ServiceKeyRepoPort):
    """Stores only hashes."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def service_of(self, key_sha256: str) -> Service | None:
        row = await self._database.fetch_row(_SERVICE_OF, key_sha256)
        if row is None:
            return None
        return Service(key_id=row["id"], label=row["label"], scopes=_scopes(row))

    async def add(self, key: ServiceKey, *, by: Operator) -> None:
        await self._database.fetch(
            _ADD_SERVICE,
            key.id,
            key.key_sha256,
            key.label,
            sorted(key.scopes),
            key.prefix,
            key.created_at,
            by.actor,
            by.reason,
        )

    async def all(self, *, limit: int) -> list[ServiceKey]:
        return [_service_key(row) for row in await self._database.fetch(_SERVICES, limit)]

    async def revoke(self, key_id: UUID, *, by: Operator) -> bool:
        row = await self._database.fetch_row(_REVOKE_SERVICE, key_id, by.actor, by.reason)
        return row is not None


def _scopes(row: asyncpg.Record) -> frozenset[Scope]:
    return frozenset(Scope(scope) for scope in row["scopes"])


def _service_key(row: asyncpg.Record) -> ServiceKey:
    return ServiceKey(
        id=row["id"],
        key_sha256=row["key_sha256"],
        label=row["label"],
        scopes=_scopes(row),
        prefix=row["prefix"],
        created_at=row["created_at"],
        revoked_at=row["revoked_at"],
    )
