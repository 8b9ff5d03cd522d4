"""The plans of what operators are shown: small indexes and ranges of ids, also behind a pooler."""

import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import Any

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.operations.postgres import PostgresOperatorReads
from adapters.postgres.database import Connection, Database
from adapters.postgres.limits import DatabaseLimits
from domain.errors import NotFound
from domain.ids import uuid7_floor
from domain.operator_ports import CostKey, OperatorReadPort, SessionFilter
from domain.sessions import SessionStatus
from tests.adapters.test_plans import (
    ENDLESS_TABLES,
    NARROW,
    STATEMENTS,
    WIDE,
    Plan,
    database,
    faults,
    nodes,
    plan_of,
)
from tests.support.examples import a_session

__all__ = ["database"]

pytestmark = pytest.mark.anyio


COST_KEYS = ("DAY", "OWNER", "PROVIDER")
LIST_PLANS = {
    "sessions_OF_ALL": {"generation_sessions_pkey"},
    "sessions_OF_STATUSES": {
        "generation_sessions_pkey",
        "failed_by_code",
        "sessions_queued",
        "sessions_processing",
    },
    "sessions_OF_CODE": {"failed_by_code"},
    "sessions_OF_OWNER": {"generation_sessions_pkey", "sessions_of_owner"},
    "sessions_OF_REQUEST": {"generation_sessions_pkey"},
    "operations_NOW": {"sessions_queued", "sessions_processing", "sessions_without_refund"},
    "operations_COMPLETED": {"generation_sessions_pkey"},
    "operations_FAILED": {"failed_by_code"},
    "operations_CAUSES": {"attempt_faults_by_time"},
    **{f"operations_COSTS_BY_{key}": {"generation_sessions_pkey"} for key in COST_KEYS},
    **{f"operations_COSTS_BY_{key}_OF_OWNER": {"sessions_of_owner"} for key in COST_KEYS},
    "operations_ENTRIES": {"one_debit_per_session", "one_refund_per_session"},
}


@pytest.mark.parametrize("name", LIST_PLANS)
async def test_what_operators_are_shown_is_read_from_small_indexes(
    database: Database, name: str
) -> None:
    """A rare status is found by its own index, and a time by a range of ids."""
    plan = await plan_of(database, STATEMENTS[name])

    used = [node for node in nodes(plan) if "Index Name" in node]
    assert {node["Index Name"] for node in used} == LIST_PLANS[name]
    pkey = [node["Index Cond"] for node in used if node["Index Name"] == "generation_sessions_pkey"]
    assert all("id" in condition for condition in pkey)


class Explained:
    """A connection that records the plan of each statement for its arguments, and runs it."""

    def __init__(self, connection: Connection, plans: list[Plan]) -> None:
        self._connection = connection
        self._plans = plans

    async def execute(self, sql: str) -> None:
        await self._connection.execute(sql)

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        (row,) = await self._connection.fetch(f"EXPLAIN (FORMAT JSON) {sql}", *arguments)
        self._plans.append(json.loads(row[0])[0]["Plan"])
        return await self._connection.fetch(sql, *arguments)

    async def fetchrow(self, sql: str, *arguments: object) -> asyncpg.Record | None:
        rows = await self.fetch(sql, *arguments)
        return rows[0] if rows else None

    async def fetchval(self, sql: str, *arguments: object) -> Any:
        row = await self.fetchrow(sql, *arguments)
        return None if row is None else row[0]


class Explaining(Database):
    """Records plans as they are without prepared statements."""

    def __init__(self, url: str) -> None:
        super().__init__(url, limits=DatabaseLimits(command_seconds=60), transaction_pooler=True)
        self.plans: list[Plan] = []

    @asynccontextmanager
    async def snapshot(self) -> AsyncIterator[Connection]:
        async with super().snapshot() as connection:
            yield Explained(connection, self.plans)  # type: ignore[misc]


NOW = datetime.now(UTC)
PAGE = 20
"""Failed sessions of all codes are sorted, this many of each."""


async def every_list(reads: OperatorReadPort) -> None:
    for owner, statuses, code, request_id, since, before in product(
        (None, WIDE, NARROW),
        (
            (),
            *((status,) for status in SessionStatus),
            (SessionStatus.QUEUED, SessionStatus.FAILED),
        ),
        (None, "GENERATION_FAILED"),
        (None, "order-7"),
        (None, NOW - timedelta(hours=1)),
        (None, uuid7_floor(NOW)),
    ):
        which = SessionFilter(
            owner=owner, statuses=statuses, error_code=code, request_id=request_id, since=since
        )
        await reads.sessions(which, limit=PAGE, before=before)


async def every_cost(reads: OperatorReadPort) -> None:
    for by, owner in product(CostKey, (None, WIDE, NARROW)):
        since = NOW - timedelta(days=7)
        await reads.costs(by, since=since, until=NOW, owner=owner, limit=PAGE)


CALLS: dict[str, Callable[[OperatorReadPort], Awaitable[object]]] = {
    "snapshot": lambda reads: reads.snapshot(),
    "sessions": every_list,
    "session_file": lambda reads: reads.session_file(a_session().id),
    "costs": every_cost,
    "pace": lambda reads: reads.pace(
        since=NOW - timedelta(days=1), step=timedelta(hours=1), steps=24
    ),
    "lowest_balances": lambda reads: reads.lowest_balances(limit=PAGE),
}


@pytest.mark.usefixtures("database")
@pytest.mark.parametrize("call", CALLS)
async def test_question_does_not_grow_with_the_database_behind_a_pooler(
    postgres: EmbeddedPostgres, call: str
) -> None:
    """There the planner knows the arguments and may choose another plan."""
    explaining = Explaining(postgres.url())
    reads = PostgresOperatorReads(explaining, settled_within=timedelta(hours=2))

    with suppress(NotFound):
        await CALLS[call](reads)

    await explaining.close()
    assert explaining.plans
    assert [fault for plan in explaining.plans for fault in faults(plan, ENDLESS_TABLES)] == []


def test_every_question_is_checked() -> None:
    """A new one cannot be forgotten."""
    assert set(CALLS) == {name for name in vars(OperatorReadPort) if not name.startswith("_")}
