"""A database with rows gets the rendered guards without a look at its rows."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate

pytestmark = pytest.mark.anyio

BEFORE = [migration for migration in all_migrations() if migration.name < "0009"]

# A row that breaks a rule shows whether a migration reads the rows: no writer could make it.
ROWS = """
    INSERT INTO credit_accounts (channel, owner_id, balance) VALUES ('b2c', 'u', 0);
    INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url)
    SELECT lpad(to_hex(number), 32, '0')::uuid, 'b2c', 'u', 'req_1', 'p', 'https://a.example/'
    FROM generate_series(1, 3) AS number;
    ALTER TABLE generation_sessions DISABLE TRIGGER USER;
    ALTER TABLE generation_sessions DROP CONSTRAINT session_is_sound;
    UPDATE generation_sessions SET error_code = 'X', object_key = 'k'
    WHERE id = lpad('1', 32, '0')::uuid;
    ALTER TABLE generation_sessions ENABLE TRIGGER USER"""
CHECK_AGAIN = """
    ALTER TABLE generation_sessions ADD CONSTRAINT session_is_sound CHECK (session_is_sound(channel,
        store_id, user_id, idempotency_key, status, object_key, media_type, provider_job,
        input_tokens, output_tokens, estimated_cost_usd, error_code, refunded, lease_expires_at,
        completed_at, image_deleted_at)) NOT VALID"""


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A database of the version before, with three sessions, of which one breaks a rule."""
    name = f"guards-{uuid4()}"
    await asyncio.to_thread(postgres.create_database, name)
    database = Database(postgres.url(name), limits=DatabaseLimits())
    await migrate(database, BEFORE)
    async with database.transaction() as connection:
        await connection.execute(ROWS)
    await database.fetch(CHECK_AGAIN)
    yield database
    await database.close()


async def test_migration_reads_no_row_and_guards_every_write(database: Database) -> None:
    """The rows are not even rewritten, and the unsound one is accepted; each later write is
    checked."""
    rows = "SELECT id, xmin::text, object_key FROM generation_sessions ORDER BY id"
    before = await database.fetch(rows)

    await migrate(database, all_migrations())

    assert await database.fetch(rows) == before
    for change, error in {
        "media_type = 'image/png'": asyncpg.CheckViolationError,
        "prompt = 'another'": asyncpg.RestrictViolationError,
    }.items():
        with pytest.raises(error):
            await database.fetch(f"UPDATE generation_sessions SET {change}")  # noqa: S608
