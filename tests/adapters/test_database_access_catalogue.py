"""Everything in our schema is closed to everybody but our groups: what is there today, and what
later migrations add, because the catalogue is asked and not a list."""

from collections.abc import AsyncIterator

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.roles import (
    FUNCTIONS,
    OURS,
    RESULT_COLUMNS,
    SEQUENCES,
    TABLES,
    USER_COLUMNS,
    VIEWS,
    Group,
    RoleNames,
)
from adapters.sessions.columns import IMMUTABLE
from entrypoints.http.schemas import Session
from tests.support.roles import Connection

pytestmark = pytest.mark.anyio

NAMES = RoleNames()
OPEN = {
    "tables without row-level security": """
        SELECT relname FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'p')
            AND (NOT relrowsecurity OR relforcerowsecurity)""",
    "relations of another kind": """
        SELECT relname FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind NOT IN
            ('r', 'v', 'i', 'S')""",
    "relations that are missing in roles.py": """
        SELECT relname FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind NOT IN ('i', 'I')
            AND relname <> ALL ($1)""",
    "functions that are missing in roles.py": """
        SELECT proname FROM pg_proc
        WHERE pronamespace = current_schema()::regnamespace AND proname <> ALL ($1)""",
    "views with their owner's privileges": """
        SELECT relname FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('v', 'm')
            AND array_position(reloptions, 'security_invoker=true') IS NULL""",
    "functions without a pinned search_path": """
        SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
            AND coalesce(proconfig[1], '') !~ '^search_path=pg_catalog, (.*, )?pg_temp$'""",
    "functions that run as their owner": """
        SELECT proname FROM pg_proc WHERE pronamespace = current_schema()::regnamespace
            AND prosecdef
            AND proname NOT IN ('require_failure', 'require_refund', 'require_accounts',
                'tell_of_session', 'tell_of_low_credits')""",
    "relations that others have privileges on": """
        SELECT relname FROM pg_class LEFT JOIN pg_attribute ON attrelid = pg_class.oid
            CROSS JOIN aclexplode(coalesce(relacl, acldefault('r', relowner))
                || coalesce(attacl, '{}'))
        WHERE relnamespace = current_schema()::regnamespace AND relkind NOT IN ('i', 'I')
            AND grantee <> relowner AND (grantee = 0 OR NOT grantee::regrole::text = ANY ($1))""",
    "functions that others may call": """
        SELECT proname FROM pg_proc
            CROSS JOIN aclexplode(coalesce(proacl, acldefault('f', proowner)))
        WHERE pronamespace = current_schema()::regnamespace
            AND grantee <> proowner AND (grantee = 0 OR NOT grantee::regrole::text = ANY ($1))""",
    "triggers that are off": """
        SELECT tgname FROM pg_trigger JOIN pg_class ON pg_class.oid = tgrelid
        WHERE relnamespace = current_schema()::regnamespace AND tgenabled <> 'O'""",
}
"""What must not be there, by name."""

LATER = {
    "tables without row-level security": "CREATE TABLE later ()",
    "relations of another kind": "CREATE MATERIALIZED VIEW later AS SELECT 1",
    "relations that are missing in roles.py": "CREATE SEQUENCE later",
    "functions that are missing in roles.py": "CREATE FUNCTION later() RETURNS int RETURN 1",
    "views with their owner's privileges": "CREATE VIEW later AS SELECT * FROM credit_accounts",
    "functions without a pinned search_path": "CREATE FUNCTION later() RETURNS int RETURN 1",
    "functions that run as their owner": (
        "CREATE FUNCTION later() RETURNS int SECURITY DEFINER RETURN 1"
    ),
    "relations that others have privileges on": (
        "GRANT UPDATE (balance) ON credit_accounts TO PUBLIC"
    ),
    "functions that others may call": "CREATE FUNCTION later() RETURNS int RETURN 1",
    "triggers that are off": "ALTER TABLE credit_ledger DISABLE TRIGGER ledger_is_append_only",
}
"""What a careless migration might do."""

POLICIES = """
    SELECT tablename::text, roles::text[], cmd, permissive, qual, with_check
    FROM pg_policies WHERE schemaname = current_schema()"""
HELD = """
    WITH ours AS (
        SELECT * FROM pg_class
        WHERE relnamespace = current_schema()::regnamespace AND relkind IN ('r', 'v'))
    SELECT relname::text, '', grantee::regrole::text, privilege_type
    FROM ours CROSS JOIN aclexplode(relacl) WHERE grantee <> relowner
    UNION ALL
    SELECT relname, attname, grantee::regrole::text, privilege_type
    FROM ours JOIN pg_attribute ON attrelid = ours.oid CROSS JOIN aclexplode(attacl)"""


@pytest.fixture
async def sql(postgres: EmbeddedPostgres) -> AsyncIterator[Connection]:
    """A transaction in the migrated database that is rolled back."""
    connection = await asyncpg.connect(postgres.url())
    transaction = connection.transaction()
    await transaction.start()
    try:
        yield connection
    finally:
        await transaction.rollback()
        await connection.close()


async def found(sql: Connection, what: str) -> list[str]:
    known = {
        "relations that are missing in roles.py": [*TABLES, *VIEWS, *SEQUENCES],
        "functions that are missing in roles.py": [*FUNCTIONS],
        "relations that others have privileges on": NAMES.ours,
        "functions that others may call": NAMES.ours,
    }
    arguments = [known[what]] if what in known else []
    return sorted({row[0] for row in await sql.fetch(OPEN[what], *arguments)})


@pytest.mark.parametrize("what", OPEN)
async def test_our_schema_has_no(sql: Connection, what: str) -> None:
    """Neither for what the first migrations made nor for what the last one did."""
    assert await found(sql, what) == []


@pytest.mark.parametrize("what", OPEN)
async def test_later_migration_is_caught(sql: Connection, what: str) -> None:
    """The question above finds it, so a migration that opens the door fails here."""
    await sql.execute(LATER[what])

    assert len(await found(sql, what)) == 1


async def test_each_group_has_a_policy_for_each_command(sql: Connection) -> None:
    """Without one it would see no row, and its UPDATEs would change none. Nobody else has any."""
    policies = await sql.fetch(POLICIES)

    assert {(row["tablename"], row["roles"][0], row["cmd"]) for row in policies} == {
        (table, NAMES.of(group), command)
        for table, groups in TABLES.items()
        for group, grants in groups.items()
        if group in OURS
        for command in grants
    }
    assert all(len(row["roles"]) == 1 for row in policies)


async def test_each_group_has_exactly_its_privileges(sql: Connection) -> None:
    """On tables, columns and views: no more and no less than the table in roles.py says."""
    held = {tuple(row) for row in await sql.fetch(HELD)}

    assert {each for each in held if each[2] in NAMES.ours} == {
        (relation, column, NAMES.of(group), command)
        for relation, groups in {**TABLES, **VIEWS}.items()
        for group, grants in groups.items()
        if group in OURS
        for command, columns in grants.items()
        for column in columns or ("",)
    }


async def test_nobody_empties_a_table() -> None:
    """TRUNCATE, TRIGGER and REFERENCES are the owner's alone."""
    commands = {
        command
        for groups in (*TABLES.values(), *VIEWS.values())
        for grants in groups.values()
        for command in grants
    }

    assert commands <= {"SELECT", "INSERT", "UPDATE", "DELETE"}


def test_consumers_write_no_column_that_was_paid_for() -> None:
    """Nor one of the application's work: the table for them is short."""
    assert not {column.name for column in IMMUTABLE} & set(RESULT_COLUMNS)
    assert {*TABLES["generation_sessions"][Group.CONSUMER]["UPDATE"]} == {
        "status", "generated_image_url", "error_code", "error_message", "processing_time_ms"
    }  # fmt: skip


def test_users_select_only_what_the_api_shows() -> None:
    """By the names of the API, and never where the picture is."""
    shown = {name.replace("session_id", "id") for name in Session.__struct_fields__}

    assert {*USER_COLUMNS} <= shown - {"generated_image_url"}
    assert not {"object_key", "prompt", "owner_id", "idempotency_key"} & {*USER_COLUMNS}
