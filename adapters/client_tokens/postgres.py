"""Client tokens in PostgreSQL. Their pictures are counted by the debit (see
``adapters/sessions/creation.py``) and the refund (``adapters/sessions/statements.py``)."""

from collections.abc import Sequence
from datetime import timedelta
from uuid import UUID

import asyncpg

from adapters.coalescing import DEFAULT_LIMITS, BatchLimits, Coalescer
from adapters.postgres.database import Database, too_many_calls
from domain.client_tokens import ClientToken, ClientTokenRepoPort
from domain.credits import Channel, Owner
from domain.errors import InvalidInput, TooManyTokens

_COLUMNS = """
    token.id, token.store_id, token.shopper_id, token.token_sha256, token.origin, token.pictures,
    token.created_at, token.expires_at, token.used, token.submissions, token.revoked_at"""

# Locks the shopper until the token is added, so that the limit is exact. The update also keeps
# _PURGE_SHOPPERS, which then finds a newer row, from deleting the shopper.
_SEE_SHOPPER = """
    INSERT INTO shoppers (store_id, shopper_id)
    SELECT id, $2 FROM stores WHERE id = $1 AND $3::text = ANY (origins)
    ON CONFLICT (store_id, shopper_id) DO UPDATE SET seen_at = now()
    RETURNING true"""

_ADD = """
    INSERT INTO client_tokens
        (id, store_id, shopper_id, token_sha256, origin, pictures, created_at, expires_at)
    SELECT $2::uuid, $3::text, $4::text, $5::text, $6::text, $7::integer, $8::timestamptz,
        $9::timestamptz
    WHERE $1::bigint > (
        SELECT count(*) FROM client_tokens
        WHERE store_id = $3 AND shopper_id = $4 AND revoked_at IS NULL AND expires_at > now())
    RETURNING true"""

_FIND = f"""
    SELECT {_COLUMNS}
    FROM client_tokens AS token JOIN stores AS store ON store.id = token.store_id
    WHERE token.token_sha256 = ANY ($1::text[]) AND token.revoked_at IS NULL
        AND token.origin = ANY (store.origins)"""  # noqa: S608 - literals

_GET = f"SELECT {_COLUMNS} FROM client_tokens AS token WHERE token.id = $1"  # noqa: S608 - literals

_LIVE_OF_SHOPPER = f"""
    SELECT {_COLUMNS} FROM client_tokens AS token
    WHERE store_id = $1 AND shopper_id = $2 AND revoked_at IS NULL AND expires_at > now()
    ORDER BY created_at DESC, id DESC LIMIT $3"""  # noqa: S608 - literals

_LIVE_OF_STORE = f"""
    SELECT {_COLUMNS} FROM client_tokens AS token
    WHERE store_id = $1 AND revoked_at IS NULL AND expires_at > now()
    ORDER BY created_at DESC, id DESC LIMIT $2"""  # noqa: S608 - literals

_REVOKE = """
    UPDATE client_tokens SET revoked_at = coalesce(revoked_at, now())
    WHERE id = $1 AND ($2::text IS NULL OR store_id = $2)
    RETURNING true"""

# The condition on the sessions is that of the index sessions_unfinished_of_token. With OFFSET 0 the
# planner looks into that index once per token, instead of joining all of it.
_PURGE = """
    WITH purged AS (
        DELETE FROM client_tokens WHERE id = ANY (ARRAY (
            SELECT id FROM client_tokens AS token
            WHERE expires_at < now() - $1::interval AND NOT EXISTS (
                SELECT FROM generation_sessions AS s
                WHERE s.client_token_id = token.id AND (s.status IN ('queued', 'processing')
                    OR (s.status = 'failed' AND NOT s.refunded)) OFFSET 0)
            ORDER BY expires_at LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING id
    )
    SELECT count(*) FROM purged"""

_PURGE_SHOPPERS = """
    WITH purged AS (
        DELETE FROM shoppers WHERE ctid = ANY (ARRAY (
            SELECT ctid FROM shoppers AS shopper
            WHERE seen_at < now() - $1::interval
                AND coalesce(refunds_hour, '-infinity') < now() - $1::interval
                AND NOT EXISTS (
                    SELECT FROM client_tokens AS token
                    WHERE token.store_id = shopper.store_id
                        AND token.shopper_id = shopper.shopper_id OFFSET 0)
            ORDER BY seen_at LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING store_id
    )
    SELECT count(*) FROM purged"""


class PostgresClientTokenRepo(ClientTokenRepoPort):
    """Stores only hashes: reading the table does not reveal a usable token. Concurrent look-ups
    share a statement."""

    def __init__(
        self,
        database: Database,
        *,
        background: Database | None = None,
        batches: BatchLimits = DEFAULT_LIMITS,
    ) -> None:
        self._database = database
        self._background = background or database
        self._find: Coalescer[str, ClientToken | None] = batches.coalescer(
            self._find_all, too_many=too_many_calls
        )

    async def add(self, token: ClientToken, *, max_live: int) -> None:
        async with self._database.transaction() as connection:
            shopper = (token.store.id, token.shopper_id)
            if not await connection.fetchval(_SEE_SHOPPER, *shopper, token.origin):
                raise InvalidInput("origin", "must be one of the store's origins")
            values = (token.token_sha256, token.origin, token.pictures)
            times = (token.created_at, token.expires_at)
            added = await connection.fetchval(_ADD, max_live, token.id, *shopper, *values, *times)
            if not added:
                raise TooManyTokens(f"The shopper has {max_live} live client tokens")

    async def find(self, token_sha256: str) -> ClientToken | None:
        return await self._find(token_sha256)

    async def _find_all(self, hashes: Sequence[str]) -> Sequence[ClientToken | None]:
        rows = await self._database.fetch(_FIND, hashes)
        found = {row["token_sha256"]: _token(row) for row in rows}
        return [found.get(sha256) for sha256 in hashes]

    async def get(self, token_id: UUID) -> ClientToken | None:
        return _optional(await self._database.fetch_row(_GET, token_id))

    async def live(self, store: Owner, *, shopper_id: str | None, limit: int) -> list[ClientToken]:
        if shopper_id is None:
            rows = await self._database.fetch(_LIVE_OF_STORE, store.id, limit)
        else:
            rows = await self._database.fetch(_LIVE_OF_SHOPPER, store.id, shopper_id, limit)
        return [_token(row) for row in rows]

    async def revoke(self, token_id: UUID, store: Owner | None) -> bool:
        store_id = None if store is None else store.id
        return await self._database.fetch_row(_REVOKE, token_id, store_id) is not None

    async def purge(self, *, expired_for: timedelta, limit: int) -> int:
        purged: int = await self._background.fetch_value(_PURGE, expired_for, limit)
        await self._background.fetch_value(_PURGE_SHOPPERS, expired_for, limit)
        return purged


def _optional(row: asyncpg.Record | None) -> ClientToken | None:
    return None if row is None else _token(row)


def _token(row: asyncpg.Record) -> ClientToken:
    columns = dict(row)
    store = Owner(channel=Channel.B2B, id=columns.pop("store_id"))
    return ClientToken(store=store, **columns)
