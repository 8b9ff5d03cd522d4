"""The plans of our statements: none reads a large table from end to end, or sorts a result that
grows with it. The generic plans of prepared statements are checked on a full database, and so are
the plans behind a pooler, where no statement is prepared."""

import json
import re
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from types import ModuleType
from typing import Any

import asyncpg
import pytest

from adapters.audit_log import postgres as audit_log
from adapters.auth import postgres as auth
from adapters.book_checks import postgres as book_checks
from adapters.client_tokens import postgres as client_tokens
from adapters.credits import postgres as credit_repo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.erasure import postgres as erasure
from adapters.operations import statements as operations
from adapters.operators import postgres as operators
from adapters.pauses import postgres as pauses
from adapters.postgres.database import Connection, Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate
from adapters.sessions import creation, lists, watched_postgres
from adapters.sessions import statements as sessions
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.stores import postgres as stores
from adapters.webhooks import statements as webhooks
from adapters.workers import postgres as workers
from domain.credits import Channel, Owner
from domain.errors import NotFound
from domain.ports import Position, RecoveryRepoPort, SessionReadPort
from domain.sessions import SessionStatus
from tests.contracts.backends import PostgresBackend
from tests.support.examples import FAILURE, a_session

pytestmark = pytest.mark.anyio

Plan = dict[str, Any]

BIG_TABLES = {
    "attempt_faults",
    "generation_sessions",
    "credit_ledger",
    "credit_accounts",
    "api_keys",
    "client_tokens",
    "shoppers",
    "stores",
    "operator_actions",
    "webhook_endpoints",
    "webhook_deliveries",
    "webhook_attempts",
}
ENDLESS_TABLES = {"generation_sessions", "credit_ledger"}
WHOLE_INDEXES = {
    "credit_accounts_pkey",
    "credit_ledger_pkey",
    "one_debit_per_session",
    "one_refund_per_session",
    "generation_sessions_pkey",
    "sessions_of_owner",
    "sessions_of_shopper",
    "client_tokens_pkey",
    "client_tokens_of_shopper",
    "shoppers_pkey",
    "webhook_endpoints_pkey",
    "webhook_deliveries_pkey",
    "webhook_deliveries_of_endpoint",
    "webhook_attempts_pkey",
}
SORTED_ROWS = 1_000
"""The largest number of rows that may be sorted, by the planner's estimate."""
NO_STATEMENTS = {"_COUNT_ENDED"}
FOR_OPERATORS = {"_AUDIT", "_SERVICES", "ALL_TOTALS", "ALL_LOWEST"}
"""These read whole tables, for an operator."""

ALL_KEYS = auth._ALL
"""So does this one, without an owner."""

# A database after some time: few sessions are unfinished, one in ten failed, and most pictures are
# deleted. One owner has a tenth of all sessions.
FULL = """
    CREATE TEMPORARY TABLE filled ON COMMIT DROP AS
    SELECT gen_random_uuid() AS id, number,
        'store-' || CASE WHEN number % 10 = 0 THEN 0 ELSE number % 1001 END AS store_id,
        CASE WHEN number % 500 = 0 THEN 'queued' WHEN number % 500 = 1 THEN 'processing'
            WHEN number % 10 = 2 THEN 'failed' ELSE 'completed' END AS status,
        now() - number * interval '1 minute' AS at
    FROM generate_series(1, 40000) AS number;
    INSERT INTO credit_accounts (channel, owner_id, balance, total_granted, total_debited,
        sessions_created)
    SELECT 'b2b', store_id, 0, count(*), count(*), count(*) FROM filled GROUP BY store_id;
    INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, created_at)
    SELECT gen_random_uuid(), 'b2b', owner_id, encode(sha256(owner_id::bytea), 'hex'), '', now()
    FROM credit_accounts;
    INSERT INTO stores (id, name) SELECT owner_id, owner_id FROM credit_accounts;
    INSERT INTO operator_actions (actor, action, subject)
    SELECT 'cli:alice', 'credits.grant', 'b2b:' || store_id FROM filled;
    INSERT INTO shoppers (store_id, shopper_id, seen_at)
    SELECT store_id, 'shopper-' || number, max(at) FROM filled GROUP BY store_id, number;
    INSERT INTO client_tokens (id, store_id, shopper_id, token_sha256, origin, pictures, created_at,
        expires_at)
    SELECT gen_random_uuid(), store_id, shopper_id, encode(sha256(shopper_id::bytea), 'hex'),
        'https://shop.example', 1, seen_at, seen_at + interval '1 hour' FROM shoppers;
    INSERT INTO generation_sessions (id, channel, store_id, shopper_id, client_token_id,
        idempotency_key, request_id, prompt,
        model_image_url, status, attempt, lease_expires_at, created_at, status_changed_at,
        completed_at, error_code, refunded, object_key, media_type, image_deleted_at)
    SELECT id, 'b2b', store_id,
        CASE WHEN number % 3 = 0 THEN 'shopper-' || number / 100 * 100 END,
        CASE WHEN number % 3 = 0 THEN gen_random_uuid() END, 'key-' || number, 'req_1',
        repeat('p', 200), 'https://a.example/b',
        status, 1, CASE status WHEN 'processing' THEN at + interval '1 hour' END, at, at,
        CASE WHEN status IN ('completed', 'failed') THEN at END,
        CASE status WHEN 'failed' THEN 'GENERATION_FAILED' END,
        status = 'failed' AND number % 1000 <> 2,
        CASE status WHEN 'completed'
            THEN 'stores/' || store_id || '/generated/' || id || '.png' END,
        CASE status WHEN 'completed' THEN 'image/png' END,
        CASE WHEN status IN ('completed', 'failed') AND number > 2000 THEN at END
    FROM filled;
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    SELECT 'b2b', store_id, 'debit', -1, id FROM filled;
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    SELECT 'b2b', store_id, 'refund', 1, id FROM filled WHERE status = 'failed';
    INSERT INTO attempt_faults (session_id, attempt, at, code, cause)
    SELECT id, 1, at, 'GENERATION_FAILED', 'provider 500 server_error' FROM filled;
    INSERT INTO webhook_endpoints (id, channel, owner_id, url, events, description, secret)
    SELECT gen_random_uuid(), 'b2b', owner_id, 'https://a.example/', '{generation.failed}', '',
        'whsec_' || repeat('A', 43) || '=' FROM credit_accounts;
    INSERT INTO webhook_deliveries (endpoint_id, event, session_id, status, created_at,
        status_changed_at, next_attempt_at)
    SELECT e.id, 'generation.failed', filled.id,
        CASE WHEN number % 100 = 0 THEN 'pending' ELSE 'delivered' END, at, at,
        CASE WHEN number % 100 = 0 THEN at END
    FROM filled JOIN webhook_endpoints AS e ON e.owner_id = store_id;
    INSERT INTO webhook_attempts (delivery_id, number, at, http_status, duration_ms, response)
    SELECT id, 1, created_at, 200, 1, 'ok' FROM webhook_deliveries"""


def statements(module: ModuleType) -> Iterator[tuple[str, str]]:
    for name, value in vars(module).items():
        is_sql = isinstance(value, str) and re.match(r"\s*(WITH|SELECT|INSERT|UPDATE)\s", value)
        if is_sql and name not in NO_STATEMENTS | FOR_OPERATORS and value != ALL_KEYS:
            yield f"{module.__name__.split('.')[1]}_{name.removeprefix('_')}", value


MODULES = (
    creation,
    sessions,
    credit_repo,
    auth,
    client_tokens,
    stores,
    pauses,
    audit_log,
    operators,
    erasure,
    watched_postgres,
    webhooks,
    lists,
    operations,
    workers,
    book_checks,
)
STATEMENTS = dict(pair for module in MODULES for pair in statements(module))


@pytest.fixture(scope="module")
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A full database."""
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
    """The generic plan."""
    async with database.transaction() as connection:
        return await explained(connection, sql)


async def explained(connection: Connection, sql: str) -> Plan:
    arguments = ["NULL"] * max((int(n) for n in re.findall(r"\$(\d+)", sql)), default=0)
    call = f"({', '.join(arguments)})" if arguments else ""
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


def faults(plan: Plan, tables: set[str] = BIG_TABLES) -> list[str]:
    found = []
    for node in nodes(plan):
        if node["Node Type"] == "Seq Scan" and node["Relation Name"] in tables:
            found.append(f"reads all of {node['Relation Name']}")
        if node.get("Index Name") in WHOLE_INDEXES and "Index Cond" not in node:
            found.append(f"reads all of {node['Index Name']}")
        if node["Node Type"] in ("Sort", "Incremental Sort"):
            rows = node["Plans"][0]["Plan Rows"]
            if rows > SORTED_ROWS:
                found.append(f"sorts {rows} rows by {node['Sort Key']}")
    return found


@pytest.mark.parametrize("name", STATEMENTS)
async def test_statement_does_not_grow_with_the_database(database: Database, name: str) -> None:
    assert faults(await plan_of(database, STATEMENTS[name])) == []


@pytest.mark.parametrize(
    ("sql", "found"),
    [
        ("SELECT FROM generation_sessions WHERE prompt = $1", "reads all of generation_sessions"),
        ("SELECT prompt FROM generation_sessions ORDER BY id", "reads all of generation_sessions_"),
        ("SELECT id FROM credit_ledger WHERE id > 0 ORDER BY created_at", "sorts"),
    ],
)
async def test_growing_statements_are_found(database: Database, sql: str, found: str) -> None:
    assert any(fault.startswith(found) for fault in faults(await plan_of(database, sql)))


class Undone(Exception):
    """Rolls a transaction back."""


@pytest.mark.parametrize("name", STATEMENTS)
async def test_plan_made_on_an_empty_database_serves_a_full_one(
    database: Database, name: str
) -> None:
    """A plan is kept for a minute or more. A backlog may build up in that time."""
    with suppress(Undone):
        async with database.transaction() as connection:
            await connection.execute(f"TRUNCATE {', '.join(sorted(BIG_TABLES))} CASCADE")
            await connection.execute("ANALYZE")
            plan = await explained(connection, STATEMENTS[name])
            raise Undone

    assert [
        node
        for node in nodes(plan)
        if node.get("Relation Name") in BIG_TABLES and node["Node Type"] == "Seq Scan"
    ] == []


DELIVERY_PLANS = {
    "webhooks_CLAIM": {"webhook_deliveries_due"},
    "webhooks_SETTLE": {"webhook_deliveries_pkey"},
    "webhooks_PURGE_ORPHANS": {"webhook_deliveries_due"},
    "webhooks_DELIVERIES": {"webhook_deliveries_of_endpoint"},
    "webhooks_DELIVERIES_FAILED": {"webhook_deliveries_failed"},
    "webhooks_RETRY_FAILED": {"webhook_deliveries_failed"},
    "webhooks_EXPIRE": {"webhook_deliveries_pending"},
    "webhooks_PURGE": {"webhook_deliveries_ended"},
}


ALWAYS = {
    "webhooks_CLAIM",
    "webhooks_SETTLE",
    "webhooks_PURGE_ORPHANS",
    "webhooks_EXPIRE",
    "webhooks_PURGE",
}
"""These run all the time."""


@pytest.mark.parametrize("name", DELIVERY_PLANS)
async def test_backlog_of_webhooks_is_not_read(database: Database, name: str) -> None:
    """Not even with a plan made on an empty database, where all indexes look alike. An owner who
    looks at an endpoint may read its deliveries of a week then, until the next ANALYZE."""
    full = await plan_of(database, STATEMENTS[name])
    with suppress(Undone):
        async with database.transaction() as connection:
            await connection.execute("TRUNCATE webhook_deliveries")
            await connection.execute("ANALYZE webhook_deliveries")
            empty = await explained(connection, STATEMENTS[name])
            raise Undone

    for plan in (full, empty) if name in ALWAYS else (full,):
        used = {node["Index Name"] for node in nodes(plan) if "Index Name" in node}
        assert {index for index in used if "deliveries" in index} == DELIVERY_PLANS[name]


async def test_statement_is_planned_once(database: Database) -> None:
    """Even if a plan for the arguments of one call looks cheaper, as in a full database."""
    repo = PostgresSessionRepo(database)

    for _ in range(10):
        await repo.history(WIDE, status=None, limit=21, after=None)

    (row,) = await database.fetch(
        "SELECT generic_plans, custom_plans FROM pg_prepared_statements WHERE statement = $1",
        sessions.HISTORY,
    )
    assert (row["generic_plans"], row["custom_plans"]) == (10, 0)


class Asking(Database):
    """Records at the end of each transaction whether sequential scans were allowed."""

    seqscan = ""

    @asynccontextmanager
    async def transaction(self) -> AsyncIterator[Connection]:
        async with super().transaction() as connection:
            yield connection
            self.seqscan = await connection.fetchval("SHOW enable_seqscan")


@pytest.mark.parametrize(
    "work",
    [
        lambda database: credit_repo.PostgresCreditRepo(database).audit(limit=1),
        lambda database: migrate(database, all_migrations()),
    ],
    ids=["audit", "migrate"],
)
async def test_audit_and_migration_may_read_whole_tables(
    postgres: EmbeddedPostgres, work: Callable[[Database], Awaitable[object]]
) -> None:
    """In the order of an index, a large table costs one disk read per row. Later statements on the
    same connection may not."""
    database = Asking(postgres.url(), limits=DatabaseLimits(connections=1))

    await work(database)
    after = await database.fetch_value("SHOW enable_seqscan")
    await database.close()

    assert (database.seqscan, after) == ("on", "off")


IDS = ("= ANY ($1::uuid[])", "= ANY ($1::text::uuid[])")
BY_ID = [name for name, sql in STATEMENTS.items() if any(ids in sql for ids in IDS)]


@pytest.mark.parametrize("name", BY_ID)
async def test_sessions_given_by_id_are_found_by_id(database: Database, name: str) -> None:
    """Not by the index of a status: it is small when the plan is made, and may be large when the
    plan is used."""
    plan = await plan_of(database, STATEMENTS[name])

    used = {node["Index Name"] for node in nodes(plan) if "Index Name" in node}
    assert used - {"attempt_faults_pkey"} == {"generation_sessions_pkey"}


class Explaining(Database):
    """Records the plan for the arguments of each call, as without prepared statements. Runs no
    statement."""

    def __init__(self, url: str) -> None:
        super().__init__(url, limits=DatabaseLimits(command_seconds=60), transaction_pooler=True)
        self.plans: list[Plan] = []

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        await self.fetch_row(sql, *arguments)
        return []

    async def fetch_row(self, sql: str, *arguments: object) -> asyncpg.Record | None:
        row = await super().fetch_row(f"EXPLAIN (FORMAT JSON) {sql}", *arguments)
        assert row is not None
        self.plans.append(json.loads(row[0])[0]["Plan"])
        return None


WIDE = Owner(channel=Channel.B2B, id="store-0")
NARROW = Owner(channel=Channel.B2B, id="store-7")
SHOPPER = "shopper-300"
LONG_AGO = Position(created_at=datetime(2000, 1, 1, tzinfo=UTC), id=a_session().id)
MINUTE, BATCH = timedelta(minutes=1), 100


async def history_of_each_kind(repo: PostgresSessionRepo) -> None:
    for owner, status, after, shopper_id in product(
        (WIDE, NARROW), (None, *SessionStatus), (None, LONG_AGO), (None, SHOPPER)
    ):
        await repo.history(owner, status=status, limit=21, after=after, shopper_id=shopper_id)


async def get_of_each_kind(repo: PostgresSessionRepo) -> None:
    for shopper_id in (None, SHOPPER):
        with suppress(NotFound):
            await repo.get(a_session().id, WIDE, shopper_id=shopper_id)


async def stats_of_each_kind(repo: PostgresSessionRepo) -> None:
    for shopper_id in (None, SHOPPER):
        await repo.stats(WIDE, shopper_id=shopper_id)


CALLS: dict[str, Callable[[PostgresSessionRepo], Awaitable[object]]] = {
    "claim_overdue": lambda repo: repo.claim_overdue(
        created_before=None, again_after=MINUTE, limit=BATCH
    ),
    "release_dead_leases": lambda repo: repo.release_dead_leases(
        max_attempts=3, external_timeout=MINUTE, limit=BATCH
    ),
    "fail_dead_leases": lambda repo: repo.fail_dead_leases(
        FAILURE, max_attempts=3, external_timeout=MINUTE, limit=BATCH
    ),
    "fail_expired": lambda repo: repo.fail_expired(FAILURE, older_than=MINUTE, limit=BATCH),
    "refund_missing": lambda repo: repo.refund_missing(limit=BATCH),
    "claim_expired_images": lambda repo: repo.claim_expired_images(
        older_than=MINUTE, again_after=MINUTE, limit=BATCH
    ),
    "mark_images_deleted": lambda repo: repo.mark_images_deleted([a_session().id] * BATCH),
    "get": get_of_each_kind,
    "stats": stats_of_each_kind,
    "queued_before": lambda repo: repo.queued_before(a_session(), limit=BATCH),
    "history": history_of_each_kind,
    "is_known": lambda repo: repo.is_known(a_session().id),
    "attempt_faults": lambda repo: repo.attempt_faults(a_session().id),
}


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("call", CALLS)
async def test_call_does_not_grow_with_the_database_behind_a_pooler(
    postgres: EmbeddedPostgres, call: str
) -> None:
    """Without prepared statements the planner knows the arguments and may choose another plan. For
    a small LIMIT it scans a table from the start, if it wrongly expects an early match."""
    explaining = Explaining(postgres.url())

    with suppress(NotFound):
        await CALLS[call](PostgresSessionRepo(explaining))

    await explaining.close()
    assert explaining.plans
    # A batch of a hundred refunds may read some hundred accounts, if the server expects random
    # reads to be expensive.
    assert [fault for plan in explaining.plans for fault in faults(plan, ENDLESS_TABLES)] == []


@pytest.mark.usefixtures("database")
async def test_ledger_entries_are_found_by_owner(postgres: EmbeddedPostgres) -> None:
    """Also without prepared statements and for an owner with many entries. A scan of all owners'
    newest entries would be slow for an owner that was idle for long."""
    explaining = Explaining(postgres.url())
    repo = credit_repo.PostgresCreditRepo(explaining)

    for owner, before_id in product((WIDE, NARROW), (None, 100, 1_000_000)):
        await repo.ledger(owner, limit=21, before_id=before_id)

    await explaining.close()
    found = [node for plan in explaining.plans for node in nodes(plan) if "Index Name" in node]
    assert len(found) == len(explaining.plans) == 6
    assert all("owner_id" in node.get("Index Cond", "") for node in found)


def test_every_read_and_recovery_call_is_checked() -> None:
    """A new one cannot be forgotten."""
    methods = {*vars(SessionReadPort), *vars(RecoveryRepoPort)}
    assert set(CALLS) == {name for name in methods if not name.startswith("_")}


def test_every_statement_is_checked() -> None:
    assert len(STATEMENTS) >= 30
    assert len(BY_ID) == 11
    assert {"sessions_CREATE_WAIT", "credits_GRANT", "auth_CALLERS_OF"} <= set(STATEMENTS)
    assert {"sessions_NEWER", "sessions_RECENT"} <= set(STATEMENTS)
    assert {"client_tokens_PURGE", "sessions_HISTORY_OF_SHOPPER"} <= set(STATEMENTS)
