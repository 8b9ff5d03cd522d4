"""Stores in PostgreSQL."""

import asyncpg

from adapters.postgres.database import Database
from domain.account_ports import MAX_ORIGINS, Store, StoreChange, StoreRepoPort
from domain.errors import InvalidInput
from domain.operators import Operator
from domain.plans import Plan

_CREATE = """
    WITH store AS (
        INSERT INTO stores (id, name, origins) VALUES ($1, $2, $3::text[])
        ON CONFLICT DO NOTHING
        RETURNING id, name, origins, created_at
    ), account AS (
        INSERT INTO credit_accounts (channel, owner_id, balance, plan)
        SELECT 'b2b', id, 0, $4 FROM store
        ON CONFLICT (channel, owner_id) DO UPDATE SET plan = excluded.plan
        RETURNING plan
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $5::text, 'store.create', 'b2b:' || id, $6::text,
            jsonb_build_object('name', name, 'origins', origins, 'plan', plan)
        FROM store, account WHERE $5 IS NOT NULL
    )
    SELECT id, name, origins, plan, created_at FROM store, account"""

_GET = """
    SELECT id, name, origins, plan, store.created_at
    FROM stores AS store
        JOIN credit_accounts AS account ON account.channel = 'b2b' AND account.owner_id = store.id
    WHERE store.id = $1"""

_ALL = """
    SELECT id, name, origins, plan, store.created_at
    FROM stores AS store
        JOIN credit_accounts AS account ON account.channel = 'b2b' AND account.owner_id = store.id
    ORDER BY store.id LIMIT $1"""

# The rows are locked before the change is computed from them, so that concurrent changes add up.
_CHANGE = """
    WITH old AS (
        SELECT id, name, origins, plan, store.created_at
        FROM stores AS store
            JOIN credit_accounts AS account
                ON account.channel = 'b2b' AND account.owner_id = store.id
        WHERE store.id = $1
        FOR UPDATE
    ), new AS (
        SELECT id, created_at, coalesce($2, name) AS name, coalesce($3, plan) AS plan,
            ARRAY(
                SELECT DISTINCT origin COLLATE "C"
                FROM unnest(coalesce($4::text[], origins) || $5::text[]) AS origin
                WHERE origin <> ALL ($6::text[])
                ORDER BY 1
            ) AS origins
        FROM old
    ), store AS (
        UPDATE stores SET name = new.name, origins = new.origins
        FROM new WHERE stores.id = new.id
    ), account AS (
        UPDATE credit_accounts AS account SET plan = new.plan
        FROM new JOIN old USING (id) WHERE account.channel = 'b2b' AND account.owner_id = new.id
            AND old.plan <> new.plan
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $7, 'store.change', 'b2b:' || new.id, $8,
            jsonb_build_object('name', new.name, 'origins', new.origins, 'plan', new.plan)
        FROM new JOIN old USING (id)
        WHERE (new.name, new.origins, new.plan) <> (old.name, old.origins, old.plan)
    )
    SELECT id, name, origins, plan, created_at FROM new"""


class PostgresStoreRepo(StoreRepoPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, store: Store, *, by: Operator | None = None) -> Store | None:
        row = await self._database.fetch_row(
            _CREATE,
            store.id,
            store.name,
            list(store.origins),
            store.plan,
            None if by is None else by.actor,
            None if by is None else by.reason,
        )
        return None if row is None else _store(row)

    async def get(self, store_id: str) -> Store | None:
        row = await self._database.fetch_row(_GET, store_id)
        return None if row is None else _store(row)

    async def all(self, *, limit: int) -> list[Store]:
        return [_store(row) for row in await self._database.fetch(_ALL, limit)]

    async def change(self, store_id: str, change: StoreChange, *, by: Operator) -> Store | None:
        try:
            row = await self._database.fetch_row(
                _CHANGE,
                store_id,
                change.name,
                change.plan,
                None if change.origins is None else list(change.origins),
                list(change.add_origins),
                list(change.remove_origins),
                by.actor,
                by.reason,
            )
        except asyncpg.CheckViolationError as error:
            raise InvalidInput("origins", f"has more than {MAX_ORIGINS} items") from error
        return None if row is None else _store(row)


def _store(row: asyncpg.Record) -> Store:
    return Store(
        id=row["id"],
        name=row["name"],
        origins=tuple(row["origins"]),
        plan=Plan(row["plan"]),
        created_at=row["created_at"],
    )
