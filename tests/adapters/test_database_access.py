"""What each group role may do in the database, tried by attacks. Nobody else may do anything."""

from collections.abc import AsyncIterator, Mapping
from contextlib import AsyncExitStack
from typing import TypeAlias

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.access import PUBLICATION
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import Schema, all_migrations
from adapters.postgres.roles import TABLES, VIEWS
from domain.sessions import CANCELLED, SessionStatus
from tests.adapters.console import Console
from tests.adapters.databases import connected
from tests.support.examples import LEASE, STORE
from tests.support.roles import Connection, member, outcome, url_as

Roles: TypeAlias = Mapping[str | None, Connection]

pytestmark = pytest.mark.anyio

APP, CONSUMER, READER = "wearon_app", "wearon_consumer", "wearon_reader"
ANYONE = (None, APP, CONSUMER, READER)
DENIED, GUARD, CHECK = "42501", "23001", "23514"

DUTIES = {
    "truncate": "TRUNCATE {}",
    "drop": "DROP TABLE {}",
    "alter": "ALTER TABLE {} ADD COLUMN mine integer",
    "disable triggers": "ALTER TABLE {} DISABLE TRIGGER ALL",
    "disable row-level security": "ALTER TABLE {} DISABLE ROW LEVEL SECURITY",
    "policy": "CREATE POLICY mine ON {} USING (true)",
    "trigger": "CREATE TRIGGER mine BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION"
    " suppress_redundant_updates_trigger()",
    "index": "CREATE INDEX ON {} ((1))",
    "rule": "CREATE RULE mine AS ON DELETE TO {} DO INSTEAD NOTHING",
    "own": "ALTER TABLE {} OWNER TO CURRENT_USER",
}
"""An owner's. Nobody else may, on any table."""

NOT_FOR_MEMBERS = {
    "table in our schema": "CREATE TABLE public.mine ()",
    "function in our schema": "CREATE FUNCTION public.mine() RETURNS int RETURN 1",
    "view over a table": "CREATE VIEW public.mine AS SELECT * FROM credit_accounts",
    "schema": "CREATE SCHEMA mine",
    "replace a guard": "CREATE OR REPLACE FUNCTION public.refuse() RETURNS trigger LANGUAGE plpgsql"
    " AS 'BEGIN RETURN NEW; END'",
    "unpin a guard": "ALTER FUNCTION guard_session() RESET search_path",
    "replace the view": "CREATE OR REPLACE VIEW store_generation_sessions AS SELECT 1",
    "sequence": "SELECT setval('credit_ledger_id_seq', 1)",
    "next number": "SELECT nextval('credit_ledger_id_seq')",
    "look at a sequence": "SELECT last_value FROM operator_actions_id_seq",
    "the owner's role": "SET ROLE wearon",
    "the owner's session": "SET SESSION AUTHORIZATION wearon",
    "no triggers": "SET session_replication_role = replica",
    "new role": "CREATE ROLE mine",
    "file": "SELECT pg_read_file('PG_VERSION')",
    "program": "COPY credit_ledger TO PROGRAM 'cat'",
    "call of a guard": "SELECT require_refund()",
    "publication": f"CREATE PUBLICATION {PUBLICATION} FOR TABLE api_keys",
}

NEW_SESSION = (
    "INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url)"
    " VALUES (gen_random_uuid(), 'b2c', 'user', 'r', 'p', 'https://a.example/1')"
)
A_REFUND = (
    "INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)"
    " SELECT channel, owner_id, 'refund', 1, id FROM generation_sessions LIMIT 1"
)
OF_CONSUMER = {
    "balance": ("UPDATE credit_accounts SET balance = 1000", DENIED),
    "look at balances": ("SELECT FROM credit_accounts", DENIED),
    "ledger entry": ("INSERT INTO credit_ledger (kind) VALUES ('grant')", DENIED),
    "look at the ledger": ("SELECT FROM credit_ledger", DENIED),
    "copy the ledger": ("COPY credit_ledger TO STDOUT", DENIED),
    "look at keys": ("SELECT key_sha256 FROM api_keys", DENIED),
    "look at service keys": ("SELECT FROM service_keys", DENIED),
    "look at client tokens": ("SELECT FROM client_tokens", DENIED),
    "look at operators": ("SELECT FROM operator_actions", DENIED),
    "look at causes": ("SELECT cause FROM attempt_faults", DENIED),
    "new session": (NEW_SESSION, DENIED),
    "new session through the view": (
        "INSERT INTO store_generation_sessions (id, store_id) VALUES (gen_random_uuid(), 's')",
        DENIED,
    ),
    "delete a session": ("DELETE FROM generation_sessions", DENIED),
    "delete through the view": ("DELETE FROM store_generation_sessions", DENIED),
    "prompt": ("UPDATE generation_sessions SET prompt = 'mine'", DENIED),
    "prompt through the view": ("UPDATE store_generation_sessions SET prompt = 'mine'", DENIED),
    "another's session": ("UPDATE generation_sessions SET user_id = 'mine'", DENIED),
    "attempt": ("UPDATE generation_sessions SET attempt = 9", DENIED),
    "lease": ("UPDATE generation_sessions SET lease_expires_at = 'infinity'", DENIED),
    "refunded": ("UPDATE generation_sessions SET refunded = true", DENIED),
    "age": ("UPDATE generation_sessions SET age_verified = true", DENIED),
    "stored picture": ("UPDATE generation_sessions SET object_key = 'x'", DENIED),
    "all in one": (
        "UPDATE generation_sessions SET status = 'completed', refunded = true",
        DENIED,
    ),
    "table lock": ("LOCK TABLE generation_sessions IN ACCESS EXCLUSIVE MODE", DENIED),
    "taken keys": ("SELECT key_is_taken('b2c', 'user', 'key')", DENIED),
    "unfinished sessions": ("SELECT count_unfinished('b2c', 'user', 5)", DENIED),
    "the application's role": (f"SET ROLE {APP}", DENIED),
    "back from the end": ("UPDATE generation_sessions SET status = 'queued'", GUARD),
    "unknown status": (
        "UPDATE generation_sessions SET status = 'paid' WHERE status = 'queued'",
        CHECK,
    ),
    "link of another kind": (
        "UPDATE generation_sessions SET generated_image_url = 'javascript:alert(1)'",
        GUARD,
    ),
    "user's session through the view": (
        "UPDATE store_generation_sessions AS s SET status = 'failed' FROM generation_sessions AS t"
        " WHERE t.id = s.id AND t.channel = 'b2c'",
        "UPDATE 0",
    ),
    "users' sessions in the view": (
        "SELECT FROM store_generation_sessions AS s JOIN generation_sessions AS t USING (id)"
        " WHERE t.channel <> 'b2b'",
        "SELECT 0",
    ),
    "look at sessions": ("SELECT * FROM generation_sessions", "SELECT 3"),
}
OF_READER = {
    "keys": ("SELECT key_sha256 FROM api_keys", DENIED),
    "all of keys": ("SELECT * FROM api_keys", DENIED),
    "keys by their hash": ("SELECT id FROM api_keys WHERE key_sha256 > ''", DENIED),
    "copy keys": ("COPY api_keys TO STDOUT", DENIED),
    "service keys": ("SELECT key_sha256 FROM service_keys", DENIED),
    "client tokens": ("SELECT token_sha256 FROM client_tokens", DENIED),
    "labels of keys": ("SELECT id, label FROM api_keys", "SELECT 1"),
    "sessions": ("SELECT * FROM generation_sessions", "SELECT 3"),
    "ledger": ("SELECT FROM credit_ledger WHERE kind = 'debit'", "SELECT 3"),
    "result": ("UPDATE generation_sessions SET status = 'failed'", DENIED),
    "result through the view": ("UPDATE store_generation_sessions SET status = 'failed'", DENIED),
    "lock rows": ("SELECT FROM generation_sessions FOR UPDATE", DENIED),
    "lock a table": ("LOCK TABLE generation_sessions IN SHARE MODE", DENIED),
    "session": (NEW_SESSION, DENIED),
    "balance": ("UPDATE credit_accounts SET balance = 1000", DENIED),
    "entry": ("INSERT INTO credit_ledger (kind) VALUES ('grant')", DENIED),
    "delete": ("DELETE FROM attempt_faults", DENIED),
    "audit": ("DELETE FROM operator_actions", DENIED),
    "key": ("UPDATE api_keys SET revoked_at = NULL", DENIED),
    "the application's role": (f"SET ROLE {APP}", DENIED),
    "taken keys": ("SELECT key_is_taken('b2c', 'user', 'key')", DENIED),
}
OF_APP = {
    "change the ledger": ("UPDATE credit_ledger SET amount = 1000", DENIED),
    "delete of the ledger": ("DELETE FROM credit_ledger", DENIED),
    "delete sessions": ("DELETE FROM generation_sessions", DENIED),
    "delete accounts": ("DELETE FROM credit_accounts", DENIED),
    "delete keys": ("DELETE FROM api_keys", DENIED),
    "delete stores": ("DELETE FROM stores", DENIED),
    "change the audit log": ("UPDATE operator_actions SET actor = 'me'", DENIED),
    "delete of the audit log": ("DELETE FROM operator_actions", DENIED),
    "migrations": ("DELETE FROM schema_migrations", DENIED),
    "a migration": ("INSERT INTO schema_migrations VALUES ('0099_x', 'x')", DENIED),
    "change causes": ("UPDATE attempt_faults SET cause = 'x'", DENIED),
    "balance": ("UPDATE credit_accounts SET balance = balance + 1000", CHECK),
    "number of an entry": (
        "INSERT INTO credit_ledger (id, channel, owner_id, kind, amount)"
        " VALUES (1, 'b2c', 'user', 'grant', 1)",
        "428C9",
    ),
    "refund of what is not failed": (A_REFUND, GUARD),
    "prompt": ("UPDATE generation_sessions SET prompt = 'mine'", GUARD),
    "refunded": ("UPDATE generation_sessions SET status = 'failed', refunded = true", GUARD),
    "the consumer's role": (f"SET ROLE {CONSUMER}", DENIED),
    "the sessions": ("SELECT * FROM generation_sessions", "SELECT 3"),
}


@pytest.fixture(scope="module")
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    """A database with a user's queued and completed session, a store's session, and a key."""
    database = Database(postgres.url(), limits=DatabaseLimits())
    console = Console(database)
    try:
        await console.empty()
        await console.queued()
        await console.finished(SessionStatus.COMPLETED)
        await console.queued(STORE)
        await console.run(
            "INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, created_at)"
            " VALUES (gen_random_uuid(), 'b2b', 's', repeat('0', 64), 'l', now())"
        )
        yield console
        await console.empty()
    finally:
        await database.close()


@pytest.fixture(scope="module")
async def roles(postgres: EmbeddedPostgres, console: Console) -> AsyncIterator[Roles]:
    """A member of each group, and of none, in the database of ``console``."""
    await console.balance()
    async with AsyncExitStack() as stack:
        yield {
            group: await stack.enter_async_context(member(postgres.url(), group))
            for group in ANYONE
        }


@pytest.mark.parametrize("group", ANYONE)
@pytest.mark.parametrize("sql", DUTIES.values(), ids=DUTIES)
async def test_tables_are_changed_by_their_owner_only(
    roles: Roles, group: str | None, sql: str
) -> None:
    """No group may alter, empty or drop a table, whichever it is."""
    answers = {table: await outcome(roles[group], sql.format(table)) for table in TABLES}

    assert answers == dict.fromkeys(TABLES, DENIED)


@pytest.mark.parametrize("group", ANYONE)
@pytest.mark.parametrize("sql", NOT_FOR_MEMBERS.values(), ids=NOT_FOR_MEMBERS)
async def test_members_create_nothing_and_become_nobody(
    roles: Roles, group: str | None, sql: str
) -> None:
    """In our schema, beside it, or as another role; and they call no guard."""
    assert await outcome(roles[group], sql) == DENIED


@pytest.mark.parametrize(
    "sql",
    ["SELECT FROM {}", "INSERT INTO {} DEFAULT VALUES", "DELETE FROM {}", "COPY {} TO STDOUT"],
)
async def test_strangers_may_do_nothing(roles: Roles, sql: str) -> None:
    """PUBLIC has no privilege on any table or on the view."""
    relations = [*TABLES, *VIEWS]

    answers = {name: await outcome(roles[None], sql.format(name)) for name in relations}

    assert answers == dict.fromkeys(relations, DENIED)


@pytest.mark.parametrize(("sql", "answer"), OF_CONSUMER.values(), ids=OF_CONSUMER)
async def test_attack_of_a_consumer(roles: Roles, sql: str, answer: str) -> None:
    """It reads sessions and writes results, and the guards hold for these."""
    assert await outcome(roles[CONSUMER], sql) == answer


@pytest.mark.parametrize(("sql", "answer"), OF_READER.values(), ids=OF_READER)
async def test_attack_of_a_reader(roles: Roles, sql: str, answer: str) -> None:
    """It writes and locks nothing, and reads no hash of a credential, not even in a condition."""
    assert await outcome(roles[READER], sql) == answer


@pytest.mark.parametrize(("sql", "answer"), OF_APP.values(), ids=OF_APP)
async def test_attack_of_the_application(roles: Roles, sql: str, answer: str) -> None:
    """What is append-only it only appends to, and it deletes what the service deletes."""
    assert await outcome(roles[APP], sql) == answer


LOOK = "SELECT status, store_id, model_image_url FROM {} WHERE id = $1"
LOOK_FOR_A_REQUEST = "SELECT cancel_requested_at FROM {} WHERE id = $1"
ORIGINAL = {
    "processing": "UPDATE {} SET status = 'processing' WHERE id = $1",
    "completed": "UPDATE {} SET status = 'completed', processing_time_ms = 4200,"
    " generated_image_url = 'https://pictures.example.com/1.jpg' WHERE id = $1",
    "failed": "UPDATE {} SET status = 'failed', error_message = 'No face' WHERE id = $1",
    "queued": "UPDATE {} SET status = 'queued' WHERE id = $1",
}


@pytest.mark.parametrize("relation", ["store_generation_sessions", "generation_sessions"])
@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_statements_of_the_original_worker(
    console: Console, roles: Roles, relation: str, status: str
) -> None:
    """It takes a store's session and ends it under either name; recovery refunds a failure, and
    the end is final."""
    session_id, worker = await console.queued(STORE), roles[CONSUMER]

    found = await worker.fetchrow(LOOK.format(relation), session_id)
    for step in ("processing", status):
        assert await worker.execute(ORIGINAL[step].format(relation), session_id) == "UPDATE 1"
    with pytest.raises(asyncpg.RestrictViolationError):
        await worker.execute(ORIGINAL["processing"].format(relation), session_id)
    refunded = await console.recovery.refund_missing(limit=10)

    assert found is not None
    assert (found["status"], found["store_id"]) == ("queued", STORE.id)
    assert (await console.get(session_id)).status == status
    assert refunded == (status == "failed")
    problems = [row for row in await console.credits.audit(limit=10) if str(session_id) in str(row)]
    assert problems == []


@pytest.mark.parametrize("relation", ["store_generation_sessions", "generation_sessions"])
@pytest.mark.parametrize("status", ["completed", "failed", "queued"])
async def test_cancelled_session_of_the_original_worker(
    console: Console, roles: Roles, relation: str, status: str
) -> None:
    """It may look, and need not: what it completes stays, and what it gives back or up has failed
    as cancelled, is no longer worked on, and is refunded once."""
    session_id, worker = await console.queued(STORE), roles[CONSUMER]
    await worker.execute(ORIGINAL["processing"].format(relation), session_id)
    await console.sessions.cancel(session_id)

    seen = await worker.fetchval(LOOK_FOR_A_REQUEST.format(relation), session_id)
    assert await worker.execute(ORIGINAL[status].format(relation), session_id) == "UPDATE 1"
    claimed = await console.attempts.claim(session_id, lease=LEASE)
    refunds = [await console.recovery.refund_missing(limit=10) for _ in range(2)]

    session = await console.get(session_id)
    is_completed = status == "completed"
    assert (seen is None, claimed) == (False, None)
    assert session.status == ("completed" if is_completed else "failed")
    assert session.failure == (None if is_completed else CANCELLED)
    assert refunds == [0 if is_completed else 1, 0]
    money = await console.money_of(session_id, STORE)
    assert money == ["debit", "refund"][: 1 + (not is_completed)]


@pytest.mark.parametrize("group", [APP, READER])
async def test_members_know_the_version_of_the_schema(
    postgres: EmbeddedPostgres, roles: Roles, group: str
) -> None:
    """The API and the workers compare it when they start."""
    role = await roles[group].fetchval("SELECT current_user")

    async with connected(url_as(postgres.url(), role), DatabaseLimits()) as database:
        await Schema(database, all_migrations()).check()


async def test_guard_is_called_for_every_writer(console: Console) -> None:
    """The CHECK of a session's row needs EXECUTE for whoever writes it, so it is granted to the
    groups that write sessions and to nobody else. A role without it writes no session."""
    may_call = await console.database.fetch(
        "SELECT rolname::text FROM pg_roles WHERE rolname = ANY ($1) AND has_function_privilege("
        "rolname, (SELECT oid FROM pg_proc WHERE proname = 'session_is_sound'), 'EXECUTE')",
        [APP, CONSUMER, READER],
    )

    assert {row[0] for row in may_call} == {APP, CONSUMER}
