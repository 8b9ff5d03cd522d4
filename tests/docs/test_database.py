"""docs/database.md is true: its SQL runs, and its table is the one that `wearon migrate` uses."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate
from adapters.postgres.roles import (
    OURS,
    RESULT_COLUMNS,
    TABLES,
    USER_COLUMNS,
    VIEWS,
    Grants,
    Group,
    RoleNames,
)
from tests.docs.pages import blocks, code_spans, pages, prose, table_after

PAGE = pages()["docs/database.md"]
MEMBERS = {
    "wearon_api": "wearon_app",
    "tryon_worker": "wearon_consumer",
    "reports": "wearon_reader",
}
MEMBERS_SQL, SCHEMA_SQL, PATH_SQL, SERVICE_SQL = (
    block.text for block in blocks(PAGE) if block.language == "sql"
)


def shown(grants: Grants) -> str:
    """A cell of the page's table."""
    parts = {"SELECT": " without secrets", "UPDATE": " of results"}
    return ", ".join(
        f"{command}{parts[command] if columns else ''}" for command, columns in grants.items()
    )


def test_table_of_the_page_is_that_of_the_code() -> None:
    """Every relation, and every privilege of each group."""
    rows = [
        [cell.strip() for cell in " | ".join(row).split("|")]
        for row in table_after(PAGE, "## Group roles")
    ]

    assert rows == [
        [f"`{relation}`", *(shown(groups.get(group, {})) for group in OURS)]
        for relation, groups in {**TABLES, **VIEWS}.items()
    ]


def test_columns_of_the_page_are_those_of_the_code() -> None:
    """A consumer's results, and what a user selects."""
    results = next(line for line in PAGE.splitlines() if line.startswith("- `wearon_consumer`"))
    users = next(line for line in PAGE.splitlines() if line.startswith("A user with a token"))

    assert tuple(code_spans(results)[1:]) == RESULT_COLUMNS
    assert ", ".join(f"`{column}`" for column in USER_COLUMNS) in users
    assert all(RoleNames().of(group) in prose(PAGE) for group in Group)


@pytest.fixture
async def sql(postgres: EmbeddedPostgres) -> "AsyncIterator[asyncpg.Connection[asyncpg.Record]]":
    """A database of its own, migrated, with all that the page creates; dropped afterwards."""
    name = f"page-{uuid4()}"
    await asyncio.to_thread(postgres.create_database, name)
    database = Database(postgres.url(name), limits=DatabaseLimits())
    await migrate(database, all_migrations())
    await database.close()
    connection = await asyncpg.connect(postgres.url(name))
    try:
        await connection.execute("CREATE ROLE service_role")
        await connection.execute(f"{MEMBERS_SQL}; {SCHEMA_SQL}; {PATH_SQL}; {SERVICE_SQL}")
        yield connection
    finally:
        await connection.execute(f"DROP ROLE service_role, {', '.join(MEMBERS)}")
        await connection.close()


@pytest.mark.anyio
async def test_sql_of_the_page(sql: "asyncpg.Connection[asyncpg.Record]") -> None:
    """Each login role is in its group, and the worker's finds the schema by itself."""
    groups = {**MEMBERS, "service_role": "wearon_consumer"}

    for role, group in groups.items():
        assert await sql.fetchval("SELECT pg_has_role($1, $2, 'USAGE')", role, group)
    settings = await sql.fetchval("SELECT rolconfig FROM pg_roles WHERE rolname = 'tryon_worker'")
    assert settings == ["search_path=wearon"]
