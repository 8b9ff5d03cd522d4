"""Spans of statements on a real server."""

import asyncio
from collections.abc import AsyncIterator

import asyncpg
import pytest
from opentelemetry.context import Context
from opentelemetry.trace import SpanKind, StatusCode

from adapters.credits.postgres import PostgresCreditRepo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.tracing.batches import TracedBatches
from adapters.tracing.database import traced_database
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable
from tests.contracts.backends import PostgresBackend
from tests.support.examples import MANY, MODEL_URL, STORE, a_session
from tests.support.tracing import RecordedSpans, context, parent_id

pytestmark = pytest.mark.anyio

CREATE = (
    "SELECT credit_accounts UPDATE credit_accounts INSERT credit_ledger INSERT generation_sessions"
)


@pytest.fixture
def spans() -> RecordedSpans:
    return RecordedSpans()


@pytest.fixture
async def database(postgres: EmbeddedPostgres, spans: RecordedSpans) -> AsyncIterator[Database]:
    database = traced_database(spans)(postgres.url(), limits=DatabaseLimits())
    await PostgresBackend(database).empty()
    yield database
    await database.close()


async def test_a_statement_is_a_span_of_its_request(
    database: Database, spans: RecordedSpans
) -> None:
    """It says what was done to which tables, and neither the text nor an argument."""
    with spans.span("request", SpanKind.SERVER, {}, parent=Context()):
        await PostgresCreditRepo(database).account(STORE)

    statement = spans.one("SELECT credit_accounts")
    assert statement.kind is SpanKind.CLIENT
    assert parent_id(statement) == context(spans.one("request")).span_id
    assert dict(statement.attributes or {}) == {
        "db.system.name": "postgresql",
        "db.operation.name": "SELECT",
        "db.query.summary": "SELECT credit_accounts",
    }
    assert STORE.id not in spans.text


async def test_a_statement_for_several_requests_has_links_to_each(
    database: Database, spans: RecordedSpans
) -> None:
    """Calls that share a statement share its span: a child of the first, with their number."""
    owners = [Owner(channel=Channel.B2B, id=f"store-{number}") for number in range(3)]
    for owner in owners:
        await PostgresCreditRepo(database).grant(owner, 5, note="test")
    repo = PostgresSessionRepo(database, batches=TracedBatches())

    async def create(owner: Owner) -> None:
        with spans.span(owner.id, SpanKind.SERVER, {}, parent=Context()):
            await repo.create(a_session(owner=owner), max_active=MANY)

    await asyncio.gather(*(create(owner) for owner in owners))

    shared = spans.one(CREATE)
    callers = [context(spans.one(owner.id)).span_id for owner in owners]
    assert [link.context.span_id for link in shared.links] == callers
    assert parent_id(shared) == callers[0]
    assert (shared.attributes or {})["db.operation.batch.size"] == 3
    assert MODEL_URL not in spans.text


async def test_a_statement_outside_of_a_request_is_no_span(
    database: Database, spans: RecordedSpans
) -> None:
    """Housekeeping would fill the backend with traces of single statements."""
    await PostgresCreditRepo(database).account(STORE)

    assert spans.ended == ()


async def test_an_error_is_named_by_its_sqlstate(database: Database, spans: RecordedSpans) -> None:
    """The server's sentence is not told: it may quote a value."""
    with (
        spans.span("request", SpanKind.SERVER, {}, parent=Context()),
        pytest.raises(asyncpg.PostgresError, match="private"),
    ):
        await database.fetch_row("SELECT * FROM stores WHERE id = 'private'::int::text")

    failed = spans.one("SELECT stores")
    attributes = failed.attributes or {}
    assert (attributes["error.type"], attributes["db.response.status_code"]) == ("22P02", "22P02")
    assert failed.status.status_code is StatusCode.ERROR
    assert "private" not in spans.text


async def test_a_server_that_is_down_is_named_by_the_class(spans: RecordedSpans) -> None:
    gone = traced_database(spans)("postgresql://127.0.0.1:1/none", limits=DatabaseLimits())

    with (
        spans.span("request", SpanKind.SERVER, {}, parent=Context()),
        pytest.raises(DatabaseUnavailable),
    ):
        await gone.fetch_value("SELECT 1")

    statement = spans.one("SELECT")
    assert (statement.attributes or {})["error.type"] == "ConnectionRefusedError"
    assert "db.response.status_code" not in (statement.attributes or {})


async def test_a_transaction_is_one_span(database: Database, spans: RecordedSpans) -> None:
    with spans.span("request", SpanKind.SERVER, {}, parent=Context()):
        async with database.transaction() as connection:
            await connection.fetchval("SELECT 1")
            await connection.fetchval("SELECT 2")

    assert [span.name for span in spans.ended] == ["BEGIN", "request"]
