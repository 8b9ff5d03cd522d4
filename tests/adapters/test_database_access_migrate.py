"""What `wearon migrate` does about roles, and in a database that is not its own."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.access import open_points
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import Migration, MigrationError, all_migrations, migrate
from adapters.postgres.roles import TABLES, RoleNames
from tests.adapters.console import Console
from tests.adapters.databases import connected
from tests.support.examples import STORE, picture_of
from tests.support.roles import url_as

pytestmark = pytest.mark.anyio

LIMITS, NAMES = DatabaseLimits(), RoleNames()
ORIGINAL = """
    CREATE TABLE stores (id uuid PRIMARY KEY, shop_domain text);
    CREATE TABLE store_generation_sessions (id uuid PRIMARY KEY, store_id uuid, status text);
    CREATE TABLE generation_sessions (id uuid PRIMARY KEY, user_id uuid, status text)"""
WAITING = "SELECT count(*) FROM pg_locks WHERE NOT granted"
CATALOGUE = """
    SELECT 'class' AS kind, oid::text, xmin::text FROM pg_class WHERE relkind IN ('r', 'v', 'S')
    UNION ALL SELECT 'function', oid::text, xmin::text FROM pg_proc
    UNION ALL SELECT 'column', attrelid || '.' || attnum, xmin::text FROM pg_attribute
    UNION ALL SELECT 'policy', oid::text, xmin::text FROM pg_policy
    UNION ALL SELECT 'schema', oid::text, xmin::text FROM pg_namespace ORDER BY 1, 2"""


@pytest.fixture
async def url(postgres: EmbeddedPostgres) -> str:
    """An empty database."""
    name = f"access-{uuid4()}"
    await asyncio.to_thread(postgres.create_database, name)
    return postgres.url(name)


@pytest.fixture
async def database(url: str) -> AsyncIterator[Database]:
    async with connected(url, LIMITS) as database:
        yield database


async def migrated(database: Database, roles: RoleNames = NAMES) -> list[str]:
    """The lines that were reported."""
    lines: list[str] = []
    await migrate(database, all_migrations(), roles=roles, report=lines.append)
    return lines


async def may(database: Database, role: str, privilege: str, table: str) -> bool:
    sql = "SELECT has_any_column_privilege($1, $2, $3)"
    return bool(await database.fetch_value(sql, role, table, privilege))


async def test_tables_of_the_original(database: Database) -> None:
    """The error says which objects are in the way and what to do, before anything is created: also
    before what only a later migration would meet."""
    async with database.transaction() as connection:
        await connection.execute(ORIGINAL)

    with pytest.raises(MigrationError) as refused:
        await migrate(database, all_migrations())

    assert str(refused.value) == (
        "The schema public has objects of another program: generation_sessions,"
        " store_generation_sessions, stores. Give wearon a schema of its own: run `CREATE SCHEMA"
        " wearon`, add `search_path=wearon` to the parameters of DATABASE_URL, for every process,"
        " and run `wearon migrate` again"
    )
    tables = await database.fetch("SELECT tablename FROM pg_tables WHERE schemaname = 'public'")
    assert len(tables) == 3


async def test_list_of_migrations_of_another_program(database: Database) -> None:
    """Others have a table `schema_migrations` too, with other columns."""
    await database.fetch("CREATE TABLE schema_migrations (version bigint PRIMARY KEY)")

    with pytest.raises(MigrationError, match="a schema of its own: run `CREATE SCHEMA wearon`"):
        await migrate(database, all_migrations())


async def test_table_in_the_way_of_a_later_migration(database: Database) -> None:
    """In the middle of our own tables another schema would be no way out."""
    await migrate(database, all_migrations()[:5])
    await database.fetch("CREATE TABLE stores (id uuid PRIMARY KEY)")

    with pytest.raises(MigrationError, match=r'"stores" already exists.*rename the other object'):
        await migrate(database, all_migrations())


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize(
    "parameters",
    ["search_path=our-own", "schema=our-own", "options=-csearch_path%3Dour-own"],
)
async def test_schema_of_our_own(
    url: str, database: Database, parameters: str, *, pooled: bool
) -> None:
    """Beside the original's tables, which stay as they are. Behind a pooler each transaction names
    the schema, because a pooler passes no parameter on."""
    async with database.transaction() as connection:
        await connection.execute(f'CREATE SCHEMA "our-own"; {ORIGINAL}')
    parameters = parameters.replace("search_path=our-own", 'search_path="our-own"').replace(
        "%3Dour-own", '%3D"our-own"'
    )

    async with connected(f"{url}&{parameters}", LIMITS, transaction_pooler=pooled) as ours:
        await migrate(ours, all_migrations())
        console = Console(ours)
        session_id = await console.queued()
        await console.claim(session_id)
        await console.attempts.complete(session_id, attempt=1, picture=picture_of(session_id))
        failed = await console.queued(STORE)
        await console.run("UPDATE store_generation_sessions SET status = 'failed'")
        assert await console.recovery.refund_missing(limit=10) == 1
        assert await console.money_of(failed, STORE) == ["debit", "refund"]
        assert await console.credits.audit(limit=10) == []

    counted = "SELECT count(*) FROM pg_tables WHERE schemaname = $1"
    assert await database.fetch_value(counted, "public") == 3
    assert await database.fetch_value(counted, "our-own") == len(TABLES)
    assert await database.fetch_value("SELECT count(*) FROM generation_sessions") == 0


@pytest.mark.parametrize("pooled", [False, True])
async def test_schema_that_does_not_exist(url: str, *, pooled: bool) -> None:
    """Nothing lands in another schema, and the error names the setting."""
    async with connected(f"{url}&search_path=nowhere", LIMITS, transaction_pooler=pooled) as ours:
        with pytest.raises(MigrationError, match=r"No schema of the search_path \(nowhere\)"):
            await migrate(ours, all_migrations())


async def test_server_that_is_too_old(url: str, database: Database) -> None:
    """The view for the original's worker needs PostgreSQL 15. A function takes the place of the
    server's own word about its version."""
    name = await database.fetch_value("SELECT current_database()")
    async with database.transaction() as connection:
        await connection.execute("""
            CREATE FUNCTION public.current_setting(name text) RETURNS text LANGUAGE sql AS $$
                SELECT CASE name WHEN 'server_version' THEN '14.20'
                    WHEN 'server_version_num' THEN '140020' ELSE '' END $$""")
        await connection.execute(f'ALTER DATABASE "{name}" SET search_path = public, pg_catalog')

    async with connected(url, LIMITS) as old:
        with pytest.raises(MigrationError, match=r"PostgreSQL 15 .* this is 14\.20"):
            await migrate(old, all_migrations())


async def test_repeated_run_writes_nothing(database: Database) -> None:
    """Not a row of the catalogue, so it takes no lock that others wait for."""
    assert await migrated(database) == []
    before = await database.fetch(CATALOGUE)

    assert await migrated(database) == []

    assert await database.fetch(CATALOGUE) == before


async def test_open_door_is_closed_by_the_next_run(database: Database) -> None:
    """Privileges that somebody granted by hand, to PUBLIC or beyond a group's own. What the table
    grants on columns survives."""
    await migrated(database)
    async with database.transaction() as connection:
        await connection.execute("""
            GRANT ALL ON credit_accounts, store_generation_sessions TO PUBLIC;
            GRANT SELECT (key_sha256) ON api_keys TO wearon_reader;
            GRANT ALL ON generation_sessions TO wearon_consumer;
            GRANT EXECUTE ON FUNCTION key_is_taken(text, text, text) TO PUBLIC;
            GRANT USAGE ON SEQUENCE credit_ledger_id_seq TO PUBLIC;
            ALTER TABLE api_keys DISABLE ROW LEVEL SECURITY;
            DROP POLICY wearon_consumer_update ON generation_sessions""")

    assert await migrated(database) == []

    opened = await database.fetch_row("""
        SELECT has_table_privilege('wearon_reader', 'credit_accounts', 'DELETE'),
            has_column_privilege('wearon_reader', 'api_keys', 'key_sha256', 'SELECT'),
            has_table_privilege('wearon_consumer', 'generation_sessions', 'UPDATE'),
            has_function_privilege('wearon_reader', 'key_is_taken(text, text, text)', 'EXECUTE'),
            has_sequence_privilege('wearon_app', 'credit_ledger_id_seq', 'USAGE'),
            NOT (SELECT relrowsecurity FROM pg_class WHERE oid = 'api_keys'::regclass)""")
    assert opened is not None
    assert not any(opened)
    assert await may(database, "wearon_consumer", "UPDATE", "generation_sessions")
    assert await database.fetch("SELECT FROM pg_policies WHERE policyname LIKE '%consumer_update'")


async def test_table_of_a_later_migration(database: Database) -> None:
    """Its default privileges are taken back in the transaction that creates it; here a table that
    an earlier version did not protect stands for it."""
    await migrated(database)
    async with database.transaction() as connection:
        await connection.execute("DROP TABLE signup_days; GRANT CREATE ON SCHEMA public TO PUBLIC")
        await connection.execute("ALTER DEFAULT PRIVILEGES GRANT ALL ON TABLES TO PUBLIC")
    later = Migration(
        name="0099_later",
        sql="CREATE TABLE signup_days (day date PRIMARY KEY, grants bigint NOT NULL)",
    )

    await migrate(database, [*all_migrations(), later])

    assert not await may(database, "wearon_consumer", "SELECT", "signup_days")
    assert await may(database, "wearon_app", "UPDATE", "signup_days")
    assert await database.fetch("SELECT FROM pg_policies WHERE tablename = 'signup_days'")
    (note,) = await open_points(database, NAMES)
    assert note == (
        "PUBLIC may create objects beside ours; as the schema's owner run:"
        " REVOKE CREATE ON SCHEMA public FROM PUBLIC;"
    )


async def test_owner_that_may_not_create_roles(url: str, database: Database) -> None:
    """The tables are made, and the report has the SQL for an administrator. Afterwards the roles
    get what is theirs."""
    owner = f"owner_{uuid4().hex}"
    names = RoleNames(f"by_hand_{uuid4().hex[:8]}")
    async with database.transaction() as connection:
        await connection.execute(f"CREATE ROLE {owner} LOGIN; ALTER SCHEMA public OWNER TO {owner}")

    async with connected(url_as(url, owner), LIMITS) as plain:
        lines = await migrated(plain, names)
        for line in lines:
            await database.fetch(line.partition("run: ")[2].partition(";")[0])
        again = await migrated(plain, names)

    assert len(lines) == 3
    assert lines[1] == (
        "this role may not create roles; as an administrator run: CREATE ROLE"
        f" {names.prefix}_consumer NOLOGIN; then `wearon migrate` again"
    )
    assert again == []
    assert await may(database, f"{names.prefix}_consumer", "UPDATE", "generation_sessions")


async def test_role_with_privileges_but_no_policy(database: Database) -> None:
    """A consumer of before, with privileges of its own: its UPDATEs would silently change nothing,
    so it is named. In the group it has a policy."""
    await migrated(database)
    role = f"legacy_{uuid4().hex}"
    async with database.transaction() as connection:
        await connection.execute(f"""
            CREATE ROLE {role};
            GRANT SELECT, UPDATE (status) ON generation_sessions TO {role}""")

    lines = await migrated(database)
    await database.fetch(f"GRANT wearon_consumer TO {role}")

    assert lines == [
        f"{role} has SELECT, UPDATE on generation_sessions, but no policy: it sees and changes"
        " no row. Put it into a group role (docs/database.md)"
    ]
    assert await migrated(database) == []
    await database.fetch(f"DROP OWNED BY {role}")
    await database.fetch(f"DROP ROLE {role}")


async def test_owner_with_the_name_of_a_group(url: str, database: Database) -> None:
    """A deployment may have called its own role `..._app`. It keeps all that an owner has, and the
    report says why it is no group."""
    names = RoleNames(f"taken_{uuid4().hex[:8]}")
    owner = f"{names.prefix}_app"
    async with database.transaction() as connection:
        await connection.execute(f"CREATE ROLE {owner} LOGIN CREATEROLE")
        await connection.execute(f"ALTER SCHEMA public OWNER TO {owner}")

    async with connected(url_as(url, owner), LIMITS) as own:
        lines = await migrated(own, names)
        await Console(own).empty()

    assert lines == [
        f"{owner} owns the tables, so it is no group role: choose another WEARON_DATABASE_ROLES"
    ]


async def test_concurrent_databases_share_the_roles(postgres: EmbeddedPostgres) -> None:
    """Roles belong to the cluster: of databases that are migrated at once, one creates them."""
    names = RoleNames(f"shared_{uuid4().hex[:8]}")

    async def one() -> list[str]:
        name = f"access-{uuid4()}"
        await asyncio.to_thread(postgres.create_database, name)
        async with connected(postgres.url(name), LIMITS) as database:
            return await migrated(database, names)

    assert await asyncio.gather(*(one() for _ in range(4))) == [[]] * 4


async def test_concurrent_runs_in_an_empty_database(url: str) -> None:
    """None takes the tables of the other for another program's."""

    async def one() -> list[str]:
        async with connected(url, LIMITS) as database:
            return await migrate(database, all_migrations())

    applied = await asyncio.gather(*(one() for _ in range(6)))

    assert sorted(name for names in applied for name in names) == [
        each.name for each in all_migrations()
    ]


async def test_role_is_created_by_two_at_once(postgres: EmbeddedPostgres, url: str) -> None:
    """The second waits for the first one's transaction, finds the role and goes on."""
    names = RoleNames(f"raced_{uuid4().hex[:8]}")
    other = await asyncpg.connect(postgres.url())
    await other.execute(f"BEGIN; CREATE ROLE {names.prefix}_app NOLOGIN")

    async with connected(url, LIMITS) as database:
        running = asyncio.create_task(migrated(database, names))
        async with asyncio.timeout(10):
            while not await other.fetchval(WAITING):  # noqa: ASYNC110 - the server has no event
                await asyncio.sleep(0.01)
        await other.execute("COMMIT")
        await other.close()

        assert await running == []
