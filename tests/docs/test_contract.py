"""docs/contract.md is enough to write an external consumer or a client: its task is read by ours,
its SQL does what it says with the privileges that it names, and its calls are the API's."""

import json
import re
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from datetime import UTC, datetime
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.changes.redis import changes_of
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.queue.payload import decode, encode
from domain.credits import Channel, Owner
from domain.tasks import GenerationTask
from tests.docs.pages import blocks, code_spans, pages, table_after
from tests.support.examples import TRACEPARENT
from tests.support.http import Api

CONTRACT = pages()["docs/contract.md"]
GRANTS, TAKE, COMPLETE, FAIL = (block.text for block in blocks(CONTRACT) if block.language == "sql")
ROLE = "external_consumer"
QUEUED = """
    WITH account AS (
        INSERT INTO credit_accounts (channel, owner_id, balance, total_granted)
        VALUES ('b2c', 'reader', 1, 1) ON CONFLICT DO NOTHING
    )
    INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url)
    VALUES ($1, 'b2c', 'reader', 'req_1', 'a prompt', 'https://images.example.com/person.jpg')"""

OF_STORE = QUEUED.replace("'b2c'", "'b2b'").replace("user_id", "store_id")


@asynccontextmanager
async def consumer(postgres: EmbeddedPostgres) -> AsyncIterator[tuple[asyncpg.Connection, UUID]]:
    """A connection with the privileges of the page and no others, and a session that waits."""
    connection = await asyncpg.connect(postgres.url())
    try:
        session_id = uuid4()
        await connection.execute(QUEUED, session_id)
        await connection.execute(GRANTS)
        await connection.execute(f"SET ROLE {ROLE}")
        yield connection, session_id
    finally:
        await connection.execute(f"RESET ROLE; DROP OWNED BY {ROLE}; DROP ROLE {ROLE}")
        await connection.close()


def test_task_of_the_page_is_read() -> None:
    """Our own consumer reads the task that the page shows."""
    example, _ = json_examples()

    task = decode(example)

    assert isinstance(task, GenerationTask)
    assert task.owner.channel is Channel.B2C


def json_examples() -> list[str]:
    return [block.text for block in blocks(CONTRACT) if block.language == "json"]


def test_published_change_of_the_page_is_read() -> None:
    """By an API process whose clients wait."""
    _, example = json_examples()

    (change,) = changes_of(example)

    assert change.owner == Owner(channel=Channel.B2B, id="demo-store")


def test_task_fields_of_the_page_are_those_that_are_written() -> None:
    """The table has every field that our producer writes, and no other."""
    tasks = [
        GenerationTask(
            task_id=uuid4(),
            owner=Owner(channel=channel, id="owner-1"),
            session_id=uuid4(),
            image_urls=("https://images.example.com/person.jpg",),
            prompt="a prompt",
            request_id="req_1",
            created_at=datetime.now(UTC),
            traceparent=TRACEPARENT,
        )
        for channel in Channel
    ]

    written = {field for task in tasks for field in json.loads(encode(task))}

    assert {name.strip("`") for name, _, _ in table_after(CONTRACT, "## The task")} == written


@pytest.mark.anyio
async def test_external_consumer_completes_a_session(postgres: EmbeddedPostgres) -> None:
    """Taken once, completed once, and not again."""
    async with consumer(postgres) as (sql, session_id):
        attempt = await sql.fetchval(TAKE, session_id)
        taken_again = await sql.fetchval(TAKE, session_id)
        result = (session_id, attempt, "https://pictures.example.com/1.jpg", 4_200)
        completed_at = await sql.fetchval(COMPLETE, *result)
        completed_again = await sql.fetchval(COMPLETE, *result)

    assert (attempt, taken_again) == (1, None)
    assert completed_at is not None
    assert completed_again is None


@pytest.mark.anyio
async def test_external_consumer_of_stores(postgres: EmbeddedPostgres) -> None:
    """The same statements on the view for stores: a store's session is completed, and a user's is
    not there."""
    take, complete = (
        sql.replace("generation_sessions", "store_generation_sessions") for sql in (TAKE, COMPLETE)
    )
    async with consumer(postgres) as (sql, of_user):
        await sql.execute("RESET ROLE")
        await sql.execute(OF_STORE, of_store := uuid4())
        await sql.execute(f"SET ROLE {ROLE}")
        attempt = await sql.fetchval(take, of_store)
        result = (attempt, "https://pictures.example.com/1.jpg", 4_200)
        completed_at = await sql.fetchval(complete, of_store, *result)
        taken_of_user = await sql.fetchval(take, of_user)

    assert attempt == 1
    assert completed_at is not None
    assert taken_of_user is None


@pytest.mark.anyio
async def test_external_consumer_fails_a_session(postgres: EmbeddedPostgres) -> None:
    """A failure without a code gets one, and its time."""
    async with consumer(postgres) as (sql, session_id):
        attempt = await sql.fetchval(TAKE, session_id)
        failed_at = await sql.fetchval(FAIL, session_id, attempt, None, "No face was found")
        code = await sql.fetchval(
            "SELECT error_code FROM generation_sessions WHERE id = $1", session_id
        )

    assert failed_at is not None
    assert code == "GENERATION_FAILED"


@pytest.mark.anyio
async def test_external_consumer_of_an_old_attempt_writes_nothing(
    postgres: EmbeddedPostgres,
) -> None:
    """With the attempt in its WHERE, a consumer whose session went to another changes nothing."""
    async with consumer(postgres) as (sql, session_id):
        attempt = await sql.fetchval(TAKE, session_id)
        completed_at = await sql.fetchval(COMPLETE, session_id, attempt - 1, "https://a.example", 1)

    assert completed_at is None


@pytest.mark.anyio
async def test_external_consumer_cannot_change_a_final_status(postgres: EmbeddedPostgres) -> None:
    """PostgreSQL rejects it with the SQLSTATE that the page names."""
    async with consumer(postgres) as (sql, session_id):
        await sql.fetchval(FAIL, session_id, await sql.fetchval(TAKE, session_id), None, None)

        with pytest.raises(asyncpg.RestrictViolationError) as rejected:
            await sql.execute(
                "UPDATE generation_sessions SET status = 'completed' WHERE id = $1", session_id
            )

    table = table_after(CONTRACT, "## What the database guards")
    (effect,) = (effect for update, effect in table if update.startswith("changes a final status"))
    assert f"SQLSTATE {rejected.value.sqlstate}" in effect


@pytest.mark.anyio
@pytest.mark.parametrize(
    "statement",
    [
        "UPDATE generation_sessions SET attempt = 5",
        "UPDATE generation_sessions SET refunded = true",
        "UPDATE generation_sessions SET prompt = 'something else'",
        "DELETE FROM generation_sessions",
        "TRUNCATE generation_sessions",
        "SELECT FROM credit_ledger",
        "SELECT FROM credit_accounts",
        "SELECT FROM api_keys",
    ],
)
async def test_external_consumer_may_do_nothing_else(
    postgres: EmbeddedPostgres, statement: str
) -> None:
    """The privileges of the page reach neither money, nor keys, nor what was paid for."""
    async with consumer(postgres) as (sql, _):
        with pytest.raises(asyncpg.InsufficientPrivilegeError):
            await sql.execute(statement)


def test_calls_of_the_page_are_those_of_the_api() -> None:
    """The table has every call that the API documents, and no other."""
    documented = {
        (method.upper(), re.sub(r"\{\w+\}", "{}", path))
        for path, methods in Api().document["paths"].items()
        for method in methods
    }

    rows = table_after(CONTRACT, "## The HTTP API")
    named = {tuple(span.split()) for calls, _ in rows for span in code_spans(calls)}

    assert {(method, re.sub(r"\{\w+\}|\.\.\.", "{}", path)) for method, path in named} == documented
