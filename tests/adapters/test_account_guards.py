"""The database defends accounts, stores, keys and the audit log by itself against any SQL, and a
database of the version before gets its stores."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate
from adapters.stores.postgres import PostgresStoreRepo
from domain.plans import Plan
from tests.contracts.backends import PostgresBackend
from tests.support.examples import OPERATOR, USER

pytestmark = pytest.mark.anyio

CHECK = asyncpg.CheckViolationError
UNIQUE = asyncpg.UniqueViolationError
GUARD = asyncpg.RestrictViolationError
LEDGER = (
    "INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id, reference)"
    " SELECT channel, owner_id, {} FROM credit_accounts"
)
STORE = "INSERT INTO stores (id, name, origins) VALUES ({})"
KEY = (
    "INSERT INTO service_keys (id, key_sha256, label, scopes)"
    " VALUES (gen_random_uuid(), repeat('a', 64), 'x', {})"
)
SHOPPER = "INSERT INTO shoppers (store_id, shopper_id) VALUES ({})"
TOKEN = (
    "WITH store AS (INSERT INTO stores (id, name) VALUES ('t', 't')),"
    " shopper AS (INSERT INTO shoppers (store_id, shopper_id) VALUES ('t', 'anna'))"
    " INSERT INTO client_tokens (id, store_id, shopper_id, token_sha256, origin, pictures, used,"
    " submissions, expires_at) SELECT gen_random_uuid(), 't', {}"
)
HASH = "repeat('a', 64), 'https://a.example'"
SOON = "now() + interval '1 hour'"
ATTACKS = {
    "shopper of no store": (SHOPPER.format("'nowhere', 'anna'"), asyncpg.ForeignKeyViolationError),
    "shopper without an id": (SHOPPER.format("'s', ''"), CHECK),
    "shopper of a long id": (SHOPPER.format("'s', repeat('x', 129)"), CHECK),
    "token of no shopper": (
        TOKEN.format(f"'bob', {HASH}, 1, 0, 0, {SOON}"), asyncpg.ForeignKeyViolationError
    ),
    "token without its hash": (
        TOKEN.format(f"'anna', 'wc_secret', 'https://a.example', 1, 0, 0, {SOON}"), CHECK
    ),
    "token without pictures": (TOKEN.format(f"'anna', {HASH}, 0, 0, 0, {SOON}"), CHECK),
    "token of too many pictures": (TOKEN.format(f"'anna', {HASH}, 1001, 0, 0, {SOON}"), CHECK),
    "token used more than it allows": (TOKEN.format(f"'anna', {HASH}, 2, 3, 3, {SOON}"), CHECK),
    "token used less than never": (TOKEN.format(f"'anna', {HASH}, 2, -1, 0, {SOON}"), CHECK),
    "token of fewer submissions": (TOKEN.format(f"'anna', {HASH}, 2, 2, 1, {SOON}"), CHECK),
    "token of too many submissions": (TOKEN.format(f"'anna', {HASH}, 2, 0, 7, {SOON}"), CHECK),
    "token that is valid for long": (
        TOKEN.format(f"'anna', {HASH}, 2, 0, 0, now() + interval '62 minutes'"), CHECK
    ),
    "sign-ups below 0": ("INSERT INTO signup_days (day, grants) VALUES (now(), -1)", CHECK),
    "adjustment that adds": (LEDGER.format("'adjustment', 1, NULL, NULL"), CHECK),
    "adjustment of nothing": (LEDGER.format("'adjustment', 0, NULL, NULL"), CHECK),
    "adjustment of a session": (
        LEDGER.format("'adjustment', -1, gen_random_uuid(), NULL"), CHECK
    ),
    "reference used twice": (LEDGER.format("'grant', 1, NULL, 'invoice-1'"), UNIQUE),
    "reference that is empty": (LEDGER.format("'grant', 1, NULL, ''"), CHECK),
    "reference that is too long": (LEDGER.format("'grant', 1, NULL, repeat('x', 256)"), CHECK),
    "total without its balance": ("UPDATE credit_accounts SET total_adjusted = -1", CHECK),
    "adjustment below 0": (
        "UPDATE credit_accounts SET total_adjusted = -6, balance = balance - 6", CHECK
    ),
    "unknown plan": ("UPDATE credit_accounts SET plan = 'gold'", GUARD),
    "new account with an unknown plan": (
        "INSERT INTO credit_accounts (channel, owner_id, balance, plan)"
        " VALUES ('b2b', 'n', 0, 'x')",
        GUARD,
    ),
    "another owner of an account": ("UPDATE credit_accounts SET owner_id = 'x'", GUARD),
    "another channel of an account": ("UPDATE credit_accounts SET channel = 'b2b'", GUARD),
    "store without a name": (STORE.format("'s', '', '{}'"), CHECK),
    "store of a long name": (STORE.format("'s', repeat('x', 201), '{}'"), CHECK),
    "store of an id with a space": (STORE.format("'a b', 'x', '{}'"), CHECK),
    "store of too many origins": (
        STORE.format("'s', 'x', array_fill('https://a.example'::text, ARRAY[101])"), CHECK
    ),
    "service key without a scope": (KEY.format("'{}'"), CHECK),
    "service key of an unknown scope": (KEY.format("ARRAY['all']"), CHECK),
    "action changed": ("UPDATE operator_actions SET actor = 'cli:nobody'", GUARD),
    "action deleted": ("DELETE FROM operator_actions", GUARD),
    "service key that is not hashed": (
        "INSERT INTO service_keys (id, key_sha256, label, scopes)"
        " VALUES (gen_random_uuid(), 'wa_secret', 'x', ARRAY['read'])",
        CHECK,
    ),
    "service key twice": (
        "INSERT INTO service_keys (id, key_sha256, label, scopes)"
        " SELECT gen_random_uuid(), repeat('a', 64), 'x', ARRAY['read'] FROM generate_series(1, 2)",
        UNIQUE,
    ),
    "token twice": (
        TOKEN.format(f"'anna', {HASH}, 2, 0, 0, {SOON} FROM generate_series(1, 2)"), UNIQUE
    ),
    "action of a long name": (
        "INSERT INTO operator_actions (actor, action, subject) VALUES (repeat('x', 201), 'x', 'x')",
        CHECK,
    ),
    "action of nobody": (
        "INSERT INTO operator_actions (actor, action, subject) VALUES ('', 'x', 'x')", CHECK
    ),
}  # fmt: skip


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """With one account of 5 credits, whose grant has a reference and is in the audit log."""
    database = Database(postgres.url(), limits=DatabaseLimits())
    try:
        backend = PostgresBackend(database)
        await backend.empty()
        await backend.credits.grant(USER, 5, note="n", reference="invoice-1", by=OPERATOR)
        yield database
    finally:
        await database.close()


@pytest.mark.parametrize("attack", ATTACKS)
async def test_attack_is_rejected(database: Database, attack: str) -> None:
    """Whatever program sends it."""
    sql, error = ATTACKS[attack]

    with pytest.raises(error):
        await database.fetch(sql)


@pytest.mark.parametrize("counts", ["1, 0, 0", "1000, 0, 0", "2, 2, 2", "2, 0, 6"])
async def test_sound_client_token_is_accepted(database: Database, counts: str) -> None:
    """Pictures, used and submissions at the ends of what is allowed."""
    await database.fetch(TOKEN.format(f"'anna', {HASH}, {counts}, {SOON}"))

    assert await database.fetch_value("SELECT count(*) FROM client_tokens") == 1


OLD_ROWS = """
    INSERT INTO credit_accounts (channel, owner_id, balance, total_granted)
    VALUES ('b2b', 'with-credits', 5, 5), ('b2c', 'a-user', 5, 5);
    INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, created_at)
    SELECT gen_random_uuid(), channel, id, lpad(number::text, 64, '0'), '', now()
    FROM (VALUES (1, 'b2b', 'with-credits'), (2, 'b2b', 'with-a-key'), (3, 'b2b', 'with-a-key'),
        (4, 'b2c', 'a-user')) AS keys (number, channel, id)"""


async def test_old_stores_exist_after_the_migration(postgres: EmbeddedPostgres) -> None:
    """All that had credits or a key, each with an account, under their ids."""
    name = f"stores-{uuid4()}"
    await asyncio.to_thread(postgres.create_database, name)
    database = Database(postgres.url(name), limits=DatabaseLimits())
    await migrate(database, [one for one in all_migrations() if one.name < "0013"])
    async with database.transaction() as connection:
        await connection.execute(OLD_ROWS)

    await migrate(database, all_migrations())
    stores = await PostgresStoreRepo(database).all(limit=10)
    await database.close()

    assert [(store.id, store.name, store.origins, store.plan) for store in stores] == [
        ("with-a-key", "with-a-key", (), Plan.DEFAULT),
        ("with-credits", "with-credits", (), Plan.DEFAULT),
    ]
