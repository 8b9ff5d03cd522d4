"""The tables of webhooks refuse rows that no code of ours writes."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits

pytestmark = pytest.mark.anyio

ROWS = """
    WITH endpoint AS (
        INSERT INTO webhook_endpoints (id, channel, owner_id, url, events, description, secret)
        VALUES (gen_random_uuid(), 'b2b', 'shop', 'https://shop.example', '{credits.low}', '',
            'whsec_' || repeat('A', 32))
        RETURNING id
    ), delivery AS (
        INSERT INTO webhook_deliveries (endpoint_id, event) SELECT id, 'credits.low' FROM endpoint
        RETURNING id
    )
    INSERT INTO webhook_attempts (delivery_id, number, at, http_status, duration_ms, response)
    SELECT id, 1, now(), 200, 5, '' FROM delivery"""

UNSOUND = {
    "webhook_endpoints": [
        "channel = 'b2x'",
        "url = ''",
        "url = repeat('x', 2049)",
        "events = '{}'",
        "events = '{generation.began}'",
        "description = repeat('x', 201)",
        "secret = 'whsec_short'",
        "disabled_reason = 'bored', disabled_at = now()",
        "disabled_at = now()",
        "disabled_reason = 'owner'",
        "failures = -1",
        "window_size = 0",
        "window_size = 9",
        "previous_secret = secret",
        "previous_secret_until = now()",
    ],
    "webhook_deliveries": [
        "event = 'generation.began', session_id = gen_random_uuid()",
        "event = 'generation.failed'",
        "status = 'lost', next_attempt_at = NULL",
        "status = 'delivered'",
        "next_attempt_at = NULL",
    ],
    "webhook_attempts": [
        "error = repeat('x', 201), http_status = NULL",
        "error = 'timeout'",
        "http_status = NULL",
        "duration_ms = -1",
        "response = repeat('x', 1025)",
    ],
}
"""What would break each rule of each table."""


@pytest.fixture
async def rows(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A sound row in each table."""
    database = Database(postgres.url(), limits=DatabaseLimits())
    await database.fetch(f"TRUNCATE {', '.join(UNSOUND)}")
    await database.fetch(ROWS)
    yield database
    await database.close()


@pytest.mark.parametrize(
    ("table", "change"), [(table, change) for table in UNSOUND for change in UNSOUND[table]]
)
async def test_unsound_row_is_refused(rows: Database, table: str, change: str) -> None:
    with pytest.raises(asyncpg.CheckViolationError):
        await rows.fetch(f"UPDATE {table} SET {change}")  # noqa: S608 - of the table above


@pytest.mark.parametrize("table", UNSOUND)
async def test_every_rule_is_broken_once(rows: Database, table: str) -> None:
    """A new one cannot be forgotten above."""
    names = (
        "SELECT conname FROM pg_constraint WHERE contype = 'c' AND conrelid = $1::text::regclass"
    )
    rules = {row["conname"] for row in await rows.fetch(names, table)}

    broken = set()
    for change in UNSOUND[table]:
        with pytest.raises(asyncpg.CheckViolationError) as refused:
            await rows.fetch(f"UPDATE {table} SET {change}")  # noqa: S608 - of the table above
        broken.add(refused.value.constraint_name)

    assert broken == rules
