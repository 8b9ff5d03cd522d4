"""Row-level security costs the application nothing: its policies are dropped from every plan."""

import re
from collections.abc import AsyncIterator

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from tests.adapters.databases import connected
from tests.adapters.test_plans import STATEMENTS, Plan, nodes, plan_of
from tests.support.roles import member, url_as

pytestmark = pytest.mark.anyio

LIMITS = DatabaseLimits(command_seconds=60)


@pytest.fixture(scope="module")
async def owner(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    async with connected(postgres.url(), LIMITS) as database:
        yield database


@pytest.fixture(scope="module")
async def application(postgres: EmbeddedPostgres) -> AsyncIterator[Database]:
    """A member of the application's group."""
    async with member(postgres.url(), "wearon_app") as connection:
        role = await connection.fetchval("SELECT current_user")
        async with connected(url_as(postgres.url(), role), LIMITS) as database:
            yield database


def steps(plan: Plan) -> list[tuple[object, ...]]:
    """What the plan does, without estimates. The order of a filter's conditions does not count."""
    shown = ("Node Type", "Relation Name", "Index Name", "Index Cond", "Join Type")
    return [
        (
            *(node.get(name) for name in shown),
            sorted(re.findall(r"\w+", node.get("Filter", ""))),
        )
        for node in nodes(plan)
    ]


@pytest.mark.parametrize("sql", STATEMENTS.values(), ids=STATEMENTS)
async def test_statement_has_the_plan_of_the_owner(
    owner: Database, application: Database, sql: str
) -> None:
    """The same indexes, conditions and filters."""
    assert steps(await plan_of(application, sql)) == steps(await plan_of(owner, sql))
