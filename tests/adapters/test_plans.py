"""What serves requests, workers and recovery never reads a big table from end to end, nor sorts
what grows with it: by the server's plans for prepared statements in a store that is full."""

import json
import re
from collections.abc import AsyncIterator, Iterator
from types import ModuleType
from typing import Any

import pytest

from adapters.auth import postgres as auth
from adapters.credits import postgres as credit_repo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database, DatabaseLimits
from adapters.sessions import postgres as sessions
from tests.contracts.backends import PostgresBackend

pytestmark = pytest.mark.anyio

Plan = dict[str, Any]

BIG_TABLES = {"generation_sessions", "credit_ledger", "credit_accounts", "api_keys"}
SORTED_ROWS = 1_000
"""So many may be sorted, by the planner's estimate."""
NO_STATEMENTS = {"_COUNT_ENDED", "_CREATE"}
FOR_OPERATORS = {"_AUDIT", "_ALL"}
"""These read everything, for somebody who waits for it."""

# As a store is after some time: few sessions are unfinished, and most pictures are gone. One owner
# has a tenth of all.
FULL = """
    CREATE TEMPORARY TABLE filled ON COMMIT DROP AS
    SELECT gen_random_uuid() AS id, number,
        'store-' || CASE WHEN number % 10 = 0 THEN 0 ELSE number % 4001 END AS store_id,
        CASE WHEN number % 500 = 0 THEN 'queued' WHEN number % 500 = 1 THEN 'processing'
            WHEN number % 20 = 2 THEN 'failed' ELSE 'completed' END AS status,
        now() - number * interval '1 minute' AS at
    FROM generate_series(1, 40000) AS number;
    INSERT INTO credit_accounts (channel, owner_id, balance, total_granted, total_debited,
        sessions_created)
    SELECT 'b2b', store_id, 0, count(*), count(*), count(*) FROM filled GROUP BY store_id;
    INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, created_at)
    SELECT gen_random_uuid(), 'b2b', owner_id, encode(sha256(owner_id::bytea), 'hex'), '', now()
    FROM credit_accounts;
    INSERT INTO generation_sessions (id, channel, store_id, idempotency_key, request_id, prompt,
        model_image_url, status, attempt, lease_expires_at, created_at, status_changed_at,
        completed_at, error_code, refunded, object_key, media_type, image_deleted_at)
    SELECT id, 'b2b', store_id, 'key-' || number, 'req_1', repeat('p', 200), 'https://a.example/b',
        status, 1, CASE status WHEN 'processing' THEN at + interval '1 hour' END, at, at,
        CASE WHEN status IN ('completed', 'failed') THEN at END,
        CASE status WHEN 'failed' THEN 'GENERATION_FAILED' END,
        status = 'failed' AND number % 1000 <> 2,
        CASE status WHEN 'completed' THEN 'k' END,
        CASE status WHEN 'completed' THEN 'image/png' END,
        CASE WHEN status IN ('completed', 'failed') AND number > 2000 THEN at END
    FROM filled;
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    SELECT 'b2b', store_id, 'debit', -1, id FROM filled;
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    SELECT 'b2b', store_id, 'refund', 1, id FROM filled WHERE status = 'failed'"""


def statements(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        is_sql = isinstance(value, str) and re.match(r"\s*(WITH|SELECT|INSERT|UPDATE)\s", value)
        if is_sql and name not in NO_STATEMENTS | FOR_OPERATORS:
            yield f"{module.__name__.split('.')[1]}{name}", value


STATEMENTS = dict(pair for module in (sessions, credit_repo, auth) for pair in statements(module))


@pytest.fixture(scope="module")
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A full store."""
    database = Database(postgres.url(), limits=DatabaseLimits(command_seconds=60))
    backend = PostgresBackend(database)
    await backend.empty()
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(FULL)
    for table in sorted(BIG_TABLES):
        await database.fetch(f"ANALYZE {table}")
    yield database
    await backend.empty()
    await database.close()


async def plan_of(database: Database, sql: str) -> Plan:
    """The one that serves whatever it is asked, as that of a statement which is run often."""
    arguments = ["NULL"] * max((int(n) for n in re.findall(r"\$(\d+)", sql)), default=0)
    call = f"({', '.join(arguments)})" if arguments else ""
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL plan_cache_mode = force_generic_plan")
        await connection.execute(f"PREPARE asked AS {sql}")
        try:
            (row,) = await connection.fetch(f"EXPLAIN (FORMAT JSON) EXECUTE asked{call}")
        finally:
            await connection.execute("DEALLOCATE asked")
    plan: Plan = json.loads(row[0])[0]["Plan"]
    return plan


def nodes(plan: Plan) -> Iterator[Plan]:
    yield plan
    for child in plan.get("Plans", ()):
        yield from nodes(child)


def faults(plan: Plan) -> list[str]:
    found = []
    for node in nodes(plan):
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in BIG_TABLES:
            found.append(f"reads all of {node['Relation Name']}")
        if node["Node Type"] in ("Sort", "Incremental Sort"):
            rows = node["Plans"][0]["Plan Rows"]
            if rows > SORTED_ROWS:
                found.append(f"sorts {rows} rows by {node['Sort Key']}")
    return found


@pytest.mark.parametrize("name", STATEMENTS)
async def test_no_statement_grows_with_the_store(database: Database, name: str) -> None:
    assert faults(await plan_of(database, STATEMENTS[name])) == []


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT FROM generation_sessions WHERE prompt = $1", "reads all of"),
        ("SELECT id FROM credit_ledger WHERE id > 0 ORDER BY created_at", "sorts"),
    ],
)
async def test_what_would_grow_is_found(database: Database, sql: str, found: str) -> None:
    assert any(fault.startswith(found) for fault in faults(await plan_of(database, sql)))


BY_ID = [name for name, sql in STATEMENTS.items() if "= ANY ($1::uuid[])" in sql]


@pytest.mark.parametrize("name", BY_ID)
async def test_what_is_asked_for_by_id_is_found_by_id(database: Database, name: str) -> None:
    """Not in the index of what waits or is worked on, which is small when the plan is made and may
    be long when it is used."""
    plan = await plan_of(database, STATEMENTS[name])

    assert {node["Index Name"] for node in nodes(plan) if "Index Name" in node} == {
        "generation_sessions_pkey"
    }


def test_every_statement_is_looked_at() -> None:
    assert len(STATEMENTS) >= 28
    assert len(BY_ID) == 5
    assert {"sessions_CREATE_IN_TURN", "credits_GRANT", "auth_OWNER_OF"} <= set(STATEMENTS)
