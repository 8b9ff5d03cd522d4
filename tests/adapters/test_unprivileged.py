"""A role that may only read and update sessions gets past no guard, whatever it creates in its own
session or sets as its search_path."""

import asyncio
from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.postgres.migrate import all_migrations, migrate
from domain.sessions import SessionStatus
from tests.adapters.console import SET, Console
from tests.support.examples import FAILURE, picture_of

pytestmark = pytest.mark.anyio

GUARD = asyncpg.RestrictViolationError

# All functions of ours, and whether each looks for names where we say.
FUNCTIONS = """
    SELECT proname, coalesce(array_to_string(proconfig, ' '), '') AS settings FROM pg_proc
    WHERE pronamespace = current_schema()::regnamespace"""
SETUP = """
    CREATE ROLE consumer;
    CREATE SCHEMA theirs AUTHORIZATION consumer;
    GRANT wearon_consumer TO consumer;
    GRANT UPDATE ON generation_sessions TO consumer"""


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    try:
        console = Console(database)
        await console.empty()
        yield console
    finally:
        await database.close()


@pytest.fixture
async def consumer(
    postgres: EmbeddedPostgres, console: Console
) -> AsyncIterator["asyncpg.Connection[asyncpg.Record]"]:
    """A connection of a consumer that may, by mistake, write each column, and has a schema."""
    async with console.database.transaction() as owner:
        await owner.execute(SETUP)
    connection = await asyncpg.connect(postgres.url())
    try:
        await connection.execute("SET SESSION AUTHORIZATION consumer")
        yield connection
    finally:
        await connection.close()
        async with console.database.transaction() as owner:
            await owner.execute("DROP SCHEMA theirs CASCADE; DROP OWNED BY consumer")
            await owner.execute("DROP ROLE consumer")


async def test_every_function_pins_its_search_path(console: Console) -> None:
    """To the server's own names first and a caller's temporary tables last."""
    functions = await console.database.fetch(FUNCTIONS)

    assert len(functions) >= 7
    for name, settings in functions:
        assert settings.startswith("search_path=pg_catalog, "), name
        assert settings.endswith(", pg_temp"), name


@pytest.mark.parametrize("may_read", [False, True])
async def test_temporary_ledger_vouches_for_no_refund(
    console: Console, consumer: "asyncpg.Connection[asyncpg.Record]", *, may_read: bool
) -> None:
    """It is found before ours unless the function says where to look. The function reads ours as
    its owner, whether the writer may read it or not: row-level security would hide the debit."""
    session_id = await console.in_state("processing")
    if may_read:
        await console.run("GRANT SELECT ON credit_ledger TO consumer")
    await consumer.execute("CREATE TEMP TABLE credit_ledger (session_id uuid, kind text)")

    with pytest.raises(GUARD):
        await consumer.execute(SET.format("status = 'failed', refunded = true"), session_id)

    assert (await console.get(session_id)).status is SessionStatus.PROCESSING


async def test_operators_of_a_writer_decide_nothing(
    console: Console, consumer: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """An operator ``=`` for text in its own schema, which its search_path names first."""
    session_id = await console.in_state("completed")
    await consumer.execute("""
        CREATE FUNCTION theirs.no(text, text) RETURNS boolean LANGUAGE sql AS 'SELECT false';
        CREATE OPERATOR theirs.= (LEFTARG = text, RIGHTARG = text, FUNCTION = theirs.no);
        CREATE OPERATOR theirs.<> (LEFTARG = text, RIGHTARG = text, FUNCTION = theirs.no);
        SET search_path = theirs, pg_catalog, public""")

    with pytest.raises(GUARD):
        await consumer.execute(SET.format("status = 'failed'"), session_id)

    assert (await console.get(session_id)).status is SessionStatus.COMPLETED


async def test_guards_find_their_tables_without_a_search_path(
    console: Console, consumer: "asyncpg.Connection[asyncpg.Record]"
) -> None:
    """A careful writer sets none, and names the schema."""
    session_id = await console.in_state("processing")
    await consumer.execute("SET search_path = ''")

    await consumer.execute(
        "UPDATE public.generation_sessions SET status = 'failed' WHERE id = $1", session_id
    )
    assert await console.recovery.refund_missing(limit=10) == 1

    assert await console.credits.audit(limit=10) == []


async def test_migrations_apply_in_the_schema_of_the_search_path(
    postgres: EmbeddedPostgres,
) -> None:
    """The guards look for the tables there, and nothing is created anywhere else."""
    name = f"schema-{uuid4()}"
    await asyncio.to_thread(postgres.create_database, name)
    database = Database(postgres.url(name), limits=DatabaseLimits())
    await database.fetch("CREATE SCHEMA our_own")
    await database.fetch(f'ALTER DATABASE "{name}" SET search_path = our_own, public')
    await database.close()
    database = Database(postgres.url(name), limits=DatabaseLimits())

    await migrate(database, all_migrations())
    console = Console(database)
    for number in range(2):
        receipt = await console.created(idempotency_key=f"key-{number}")
        session = await console.claim(receipt.session.id)
        if number:
            await console.attempts.fail(session.id, FAILURE, attempt=1)
        else:
            await console.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))
    schemas = await database.fetch(
        "SELECT DISTINCT schemaname FROM pg_tables WHERE schemaname !~ '^(pg_|information_)'"
    )
    audit = await console.credits.audit(limit=10)
    await database.close()

    assert audit == []
    assert [tuple(row) for row in schemas] == [("our_own",)]
