"""A span for each statement that a request or a task waits for."""

from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager

import asyncpg
from opentelemetry.trace import SpanKind

from adapters.postgres.database import Connection, Database
from adapters.tracing import names
from adapters.tracing.spans import Spans, current_callers
from adapters.tracing.statements import operation_of, summary_of


def traced_database(spans: Spans) -> type[Database]:
    """A ``Database`` whose calls are spans. The text and the arguments of a statement are in none.

    A transaction of several statements is one span."""

    class TracedDatabase(Database):
        async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
            with _span(spans, summary_of(sql)):
                return await super().fetch(sql, *arguments)

        async def fetch_row(self, sql: str, *arguments: object) -> asyncpg.Record | None:
            with _span(spans, summary_of(sql)):
                return await super().fetch_row(sql, *arguments)

        @asynccontextmanager
        async def transaction(self) -> AsyncIterator[Connection]:
            with _span(spans, "BEGIN"):
                async with super().transaction() as connection:
                    yield connection

    return TracedDatabase


@contextmanager
def _span(spans: Spans, summary: str) -> Iterator[None]:
    callers = current_callers()
    attributes: dict[str, str | int] = {
        names.DB_SYSTEM_NAME: names.POSTGRESQL,
        names.DB_OPERATION_NAME: operation_of(summary),
        names.DB_QUERY_SUMMARY: summary,
    }
    if len(callers) > 1:
        attributes[names.DB_OPERATION_BATCH_SIZE] = len(callers)
    with spans.shared(summary, SpanKind.CLIENT, attributes, callers=callers) as span:
        try:
            yield
        except Exception as error:
            sqlstate = getattr(error.__cause__ or error, "sqlstate", None)
            if isinstance(sqlstate, str):
                span.set_attribute(names.DB_RESPONSE_STATUS_CODE, sqlstate)
            raise
