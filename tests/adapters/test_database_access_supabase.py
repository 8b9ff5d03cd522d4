"""In a Supabase project the public key opens nothing, and a user sees their own sessions only."""

from collections.abc import AsyncIterator, Iterator, Mapping
from contextlib import AsyncExitStack
from typing import TypeAlias

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.access import PUBLICATION
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import Migration, all_migrations, migrate
from adapters.postgres.roles import TABLES, USER_COLUMNS, VIEWS
from domain.sessions import SessionStatus
from tests.adapters.console import Console
from tests.adapters.databases import connected
from tests.support import supabase
from tests.support.examples import OTHER, STORE, USER, picture_of
from tests.support.roles import Connection, outcome

pytestmark = [pytest.mark.anyio, pytest.mark.postgres]

Requests: TypeAlias = Mapping[str, Connection]

DENIED = "42501"
LIMITS = DatabaseLimits()
COLUMNS = ", ".join(USER_COLUMNS)
OWN_SESSIONS = f"SELECT {COLUMNS} FROM generation_sessions"  # noqa: S608 - our own columns
EVERYTHING = (
    "SELECT FROM {}",
    "INSERT INTO {} DEFAULT VALUES",
    "DELETE FROM {}",
    "COPY {} TO STDOUT",
    "LOCK TABLE {} IN ACCESS EXCLUSIVE MODE",
    "TRUNCATE {}",
    "CREATE TRIGGER mine BEFORE UPDATE ON {} FOR EACH ROW EXECUTE FUNCTION"
    " suppress_redundant_updates_trigger()",
)
OF_TABLES = EVERYTHING[-2:]
WRITES = {
    "balance": "UPDATE credit_accounts SET balance = 1000, total_granted = 1000",
    "result": "UPDATE generation_sessions SET status = 'completed'",
    "result through the view": "UPDATE store_generation_sessions SET status = 'completed'",
    "entry": "INSERT INTO credit_ledger (channel, owner_id, kind, amount) VALUES"
    " ('b2c', 'me', 'grant', 9)",
    "key": "UPDATE api_keys SET revoked_at = NULL",
    "table in our schema": "CREATE TABLE public.mine ()",
    "taken keys": "SELECT key_is_taken('b2c', 'me', 'key')",
    "unfinished sessions": "SELECT count_unfinished('b2c', 'me', 5)",
    "call of a guard": "SELECT require_refund()",
    "next number": "SELECT nextval('credit_ledger_id_seq')",
    "last number": "SELECT setval('operator_actions_id_seq', 1)",
    "look at a number": "SELECT last_value FROM credit_ledger_id_seq",
    "the owner's role": "SET ROLE postgres",
    "the application's role": "SET ROLE wearon_app",
    "the consumer's role": "SET ROLE wearon_consumer",
    "no triggers": "SET session_replication_role = replica",
    "publication": f"ALTER PUBLICATION {PUBLICATION} ADD TABLE api_keys",
}
OF_USER = {
    "every column": ("SELECT * FROM generation_sessions", DENIED),
    "prompt": ("SELECT prompt FROM generation_sessions", DENIED),
    "where the picture is": ("SELECT object_key FROM generation_sessions", DENIED),
    "link of a consumer": ("SELECT generated_image_url FROM generation_sessions", DENIED),
    "by a hidden column": (
        "SELECT id FROM generation_sessions WHERE idempotency_key LIKE 'k%'",
        DENIED,
    ),
    "order by a hidden column": (
        "SELECT id FROM generation_sessions ORDER BY client_token_id",
        DENIED,
    ),
    "lock": ("SELECT id FROM generation_sessions FOR UPDATE", DENIED),
    "own sessions": (OWN_SESSIONS, "SELECT 2"),
    "stores' sessions": ("SELECT id FROM generation_sessions WHERE channel = 'b2b'", "SELECT 0"),
    "own sessions copied": (f"COPY generation_sessions ({COLUMNS}) TO STDOUT", "COPY 2"),
}


@pytest.fixture(scope="module")
def server() -> Iterator[EmbeddedPostgres]:
    with supabase.server() as server:
        yield server


@pytest.fixture(scope="module")
async def url(server: EmbeddedPostgres) -> str:
    """A project into which the role ``postgres`` has migrated."""
    url = await supabase.create_database(server, "project")
    async with connected(url, LIMITS) as database:
        lines: list[str] = []
        await migrate(database, all_migrations(), report=lines.append)
        assert lines == []
    return url


@pytest.fixture(scope="module")
async def console(url: str) -> AsyncIterator[Console]:
    """Two users, one with a completed and a queued session, and a store."""
    database = Database(url, limits=LIMITS)
    console = Console(database)
    await console.queued()
    await console.finished(SessionStatus.COMPLETED)
    await console.queued(OTHER)
    await console.queued(STORE)
    yield console
    await database.close()


@pytest.fixture(scope="module")
async def requests(url: str, console: Console) -> AsyncIterator[Requests]:
    """A connection for each role of Supabase; ``authenticated`` is USER."""
    assert await console.balance() == 0
    async with AsyncExitStack() as stack:
        yield {
            role: await stack.enter_async_context(supabase.request_as(url, role, user_id))
            for role, user_id in {
                "anon": "",
                "authenticated": USER.id,
                "service_role": "",
            }.items()
        }


async def test_default_privileges_open_new_tables(server: EmbeddedPostgres) -> None:
    """Without a migration that revokes, the public key could write: this is what we close."""
    url = await supabase.create_database(server, "before")
    async with connected(url, LIMITS) as database:
        await database.fetch("CREATE TABLE balances (balance integer)")

    async with supabase.request_as(url, "anon") as anon:
        assert await outcome(anon, "INSERT INTO balances VALUES (1000)") == "INSERT 0 1"


@pytest.mark.parametrize("role", ["anon", "service_role"])
@pytest.mark.parametrize("sql", EVERYTHING)
async def test_keys_of_the_project_open_no_table(requests: Requests, role: str, sql: str) -> None:
    """Neither the public key nor, unless it is put into a group, the secret one, which bypasses
    row-level security."""
    relations = [*TABLES] if sql in OF_TABLES else [*TABLES, *VIEWS]

    answers = {name: await outcome(requests[role], sql.format(name)) for name in relations}

    assert answers == dict.fromkeys(relations, DENIED)


@pytest.mark.parametrize("role", ["anon", "authenticated", "service_role"])
@pytest.mark.parametrize("sql", WRITES.values(), ids=WRITES)
async def test_nobody_of_supabase_writes(requests: Requests, role: str, sql: str) -> None:
    """No balance, no result, no key, no number of a sequence; and nobody becomes somebody else."""
    assert await outcome(requests[role], sql) == DENIED


@pytest.mark.parametrize("sql", EVERYTHING)
async def test_users_see_no_other_table(requests: Requests, sql: str) -> None:
    """A user's token opens the sessions, for SELECT of some columns, and nothing else."""
    relations = {*TABLES} if sql in OF_TABLES else {*TABLES, *VIEWS}
    if sql.startswith("SELECT"):
        relations.remove("generation_sessions")

    answers = {
        name: await outcome(requests["authenticated"], sql.format(name)) for name in relations
    }

    assert answers == dict.fromkeys(relations, DENIED)


@pytest.mark.parametrize(("sql", "answer"), OF_USER.values(), ids=OF_USER)
async def test_attack_of_a_user(requests: Requests, sql: str, answer: str) -> None:
    """A user reads the columns that the API shows, of their own rows."""
    assert await outcome(requests["authenticated"], sql) == answer


@pytest.mark.parametrize(
    ("user_id", "count"), [(USER.id, 2), (OTHER.id, 1), (USER.id.upper(), 2), ("", 0)]
)
async def test_users_see_their_own_sessions(url: str, user_id: str, count: int) -> None:
    """By the user in the token; without one, no row. A uuid has one spelling as text."""
    async with supabase.request_as(url, "authenticated", user_id) as user:
        assert await outcome(user, "SELECT id FROM generation_sessions") == f"SELECT {count}"


async def test_user_named_like_a_store_sees_nothing_of_it(url: str, console: Console) -> None:
    """A store may have any id, also a user's."""
    await console.run(
        "INSERT INTO credit_accounts (channel, owner_id, balance) VALUES ('b2b', $1, 0)", OTHER.id
    )
    await console.run(
        "INSERT INTO generation_sessions (id, channel, store_id, request_id, prompt,"
        " model_image_url) VALUES (gen_random_uuid(), 'b2b', $1, 'r', 'p', 'https://a.example')",
        OTHER.id,
    )

    async with supabase.request_as(url, "authenticated", OTHER.id) as user:
        assert await outcome(user, "SELECT id FROM generation_sessions") == "SELECT 1"


async def test_sessions_of_a_user_are_found_by_an_index(requests: Requests) -> None:
    """The policy names the indexed column, so that a user's SELECT reads no other rows."""
    user = requests["authenticated"]
    async with user.transaction():
        await user.execute("SET LOCAL enable_seqscan = off")
        plan = await user.fetch("EXPLAIN SELECT id FROM generation_sessions")

    text = "\n".join(row[0] for row in plan)
    assert "sessions_of_owner" in text
    assert "Index Cond: ((channel = 'b2c'::text) AND (owner_id = " in text


async def test_service_role_in_the_consumers_group(url: str, console: Console) -> None:
    """So the original's worker goes on through the REST API with the secret key: it reads sessions
    and writes results, and no more."""
    await console.run("GRANT wearon_consumer TO service_role")
    try:
        async with supabase.request_as(url, "service_role") as worker:
            result = "UPDATE store_generation_sessions SET status = 'processing'"
            assert await outcome(worker, f"{result} WHERE status = 'queued'") == "UPDATE 2"
            for sql in (WRITES["balance"], WRITES["entry"], "DELETE FROM generation_sessions"):
                assert await outcome(worker, sql) == DENIED
    finally:
        await console.run("REVOKE wearon_consumer FROM service_role")


async def test_realtime_publishes_what_a_user_may_select(url: str) -> None:
    """The sessions, with the columns that the API shows; the identity of a row is its id. Realtime
    shows a change to a user who may select the row, with the columns that they may select."""
    connection = await asyncpg.connect(url)
    published = await connection.fetch(
        "SELECT tablename, attnames::text[] FROM pg_publication_tables WHERE pubname = $1",
        PUBLICATION,
    )
    identity = await connection.fetchval(
        "SELECT relreplident FROM pg_class WHERE oid = 'generation_sessions'::regclass"
    )
    await connection.close()

    ((table, columns),) = published
    assert (table, {*columns}) == ("generation_sessions", {*USER_COLUMNS})
    assert identity == b"d"


async def test_changes_of_a_session_reach_realtime(
    server: EmbeddedPostgres, console: Console
) -> None:
    """Decoded from the log: the new status is there, the prompt and the stored picture are not."""
    admin = await asyncpg.connect(server.url("project"))
    await admin.execute("SELECT pg_create_logical_replication_slot('probe', 'pgoutput')")
    try:
        session_id = (await console.created(prompt="a secret prompt")).session.id
        await console.claim(session_id)
        await console.attempts.complete(session_id, attempt=1, picture=picture_of(session_id))
        changes = await admin.fetch(
            "SELECT data FROM pg_logical_slot_get_binary_changes('probe', NULL, NULL,"
            " 'proto_version', '1', 'publication_names', $1)",
            PUBLICATION,
        )
    finally:
        await admin.execute("SELECT pg_drop_replication_slot('probe')")
        await admin.close()

    decoded = b"".join(row["data"] for row in changes)
    assert str(session_id).encode() in decoded
    assert b"completed" in decoded
    assert b"secret prompt" not in decoded
    assert f"generated/{USER.id}/".encode() not in decoded


async def test_publication_of_another_role(server: EmbeddedPostgres) -> None:
    """It cannot be changed, so the report has the statement; one for all tables needs none."""
    url = await supabase.create_database(server, "others")
    lines: list[str] = []
    admin = await asyncpg.connect(server.url("others"))
    await admin.execute(f"ALTER PUBLICATION {PUBLICATION} OWNER TO supabase_auth_admin")
    async with connected(url, LIMITS) as database:
        await migrate(database, all_migrations(), report=lines.append)
        (line,) = lines
        await admin.execute(line.partition("run: ")[2])
        await migrate(database, all_migrations(), report=lines.append)
        await admin.execute(f"DROP PUBLICATION {PUBLICATION}")
        await admin.execute(f"CREATE PUBLICATION {PUBLICATION} FOR ALL TABLES")
        await migrate(database, all_migrations(), report=lines.append)
    await admin.close()

    assert lines == [line]
    assert line.startswith(f"the publication {PUBLICATION} is another role's; as a superuser run: ")


async def test_later_migration_stays_closed(server: EmbeddedPostgres) -> None:
    """Supabase grants everything on its table and its function; both are closed in the transaction
    that creates them, so even if the next migration fails."""
    url = await supabase.create_database(server, "later")
    sql = """
        DROP TABLE attempt_faults;
        CREATE TABLE attempt_faults (session_id uuid, attempt integer);
        DROP FUNCTION key_is_taken;
        CREATE FUNCTION key_is_taken(channel text, owner_id text, idempotency_key text)
            RETURNS boolean LANGUAGE sql RETURN true"""
    async with connected(url, LIMITS) as database:
        later = Migration(name="0098_later", sql=sql)
        broken = Migration(name="0099_broken", sql="SELECT 1 / 0")
        with pytest.raises(asyncpg.DivisionByZeroError):
            await migrate(database, [*all_migrations(), later, broken])

    for role in ("anon", "authenticated", "service_role"):
        async with supabase.request_as(url, role) as request:
            assert await outcome(request, "SELECT FROM attempt_faults") == DENIED
            assert await outcome(request, WRITES["taken keys"]) == DENIED


async def test_nothing_is_left_to_supabase_in_the_catalogue(url: str) -> None:
    """No privilege of its roles on any relation, sequence or function of ours, except a user's."""
    connection = await asyncpg.connect(url)
    held = await connection.fetch(
        """
        SELECT DISTINCT name, grantee::regrole::text, privilege_type FROM (
            SELECT relname AS name, relacl AS acl FROM pg_class
            WHERE relnamespace = 'public'::regnamespace
            UNION ALL
            SELECT relname, attacl FROM pg_class JOIN pg_attribute ON attrelid = pg_class.oid
            WHERE relnamespace = 'public'::regnamespace
            UNION ALL SELECT proname, coalesce(proacl, acldefault('f', proowner)) FROM pg_proc
            WHERE pronamespace = 'public'::regnamespace) AS item CROSS JOIN aclexplode(acl)
        WHERE grantee = 0
            OR grantee::regrole::text = ANY (ARRAY['anon', 'authenticated', 'service_role'])"""
    )
    await connection.close()

    assert [tuple(row) for row in held] == [("generation_sessions", "authenticated", "SELECT")]
