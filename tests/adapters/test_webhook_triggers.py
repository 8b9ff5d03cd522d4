"""The database itself writes what webhooks deliver: for every writer, and at no cost for owners
without an endpoint."""

import asyncio
import json
from collections.abc import AsyncIterator
from datetime import timedelta
from typing import Any
from uuid import UUID

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import Channel, Owner
from domain.endpoints import DeliveryStatus, WebhookEvent
from domain.errors import DatabaseUnavailable
from domain.sessions import SessionStatus
from tests.adapters.console import SET, Console
from tests.support.examples import FAILURE, OTHER, STORE, USER
from tests.support.roles import member
from tests.support.webhooks import TURN, a_result, added, an_endpoint, deliveries_of

pytestmark = pytest.mark.anyio
EVERY = frozenset({WebhookEvent.FAILED, WebhookEvent.CREDITS_LOW})

DELIVERIES = "SELECT session_id, event FROM webhook_deliveries"
TRIGGER = "end_of_session_is_told"


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    try:
        console = Console(database)
        await console.empty()
        yield console
    finally:
        await database.close()


async def told(console: Console) -> list[tuple[UUID, str]]:
    return [tuple(row) for row in await console.database.fetch(DELIVERIES)]


@pytest.mark.parametrize("table", ["generation_sessions", "store_generation_sessions"])
@pytest.mark.parametrize("status", ["completed", "failed"])
async def test_external_consumer_needs_no_privilege(
    postgres: EmbeddedPostgres, console: Console, table: str, status: str
) -> None:
    """Its plain write is told, by the names that it knows, while it may not touch our tables."""
    await added(console.webhooks, STORE)
    session_id = await console.queued(STORE)

    async with member(postgres.url(), "wearon_consumer") as consumer:
        await consumer.execute(
            f"UPDATE {table} SET status = $2 WHERE id = $1",  # noqa: S608
            session_id,
            status,
        )
        refused = []
        for sql in (
            "SELECT FROM webhook_endpoints",
            "SELECT FROM webhook_deliveries",
            "INSERT INTO webhook_deliveries (endpoint_id, event) VALUES (gen_random_uuid(), 'x')",
            "SELECT tell_of_session()",
        ):
            try:
                await consumer.execute(sql)
            except asyncpg.InsufficientPrivilegeError:
                refused.append(sql)

    assert await told(console) == [(session_id, f"generation.{status}")]
    assert len(refused) == 4


async def test_external_consumer_cannot_divert_a_delivery(
    postgres: EmbeddedPostgres, console: Console
) -> None:
    """A temporary table of the same name, and a search_path that puts it first, change nothing."""
    await added(console.webhooks)
    session_id = await console.queued()

    async with member(postgres.url(), "wearon_consumer") as consumer:
        await consumer.execute("""
            CREATE TEMPORARY TABLE webhook_endpoints (id uuid, channel text, owner_id text,
                events text[]);
            CREATE TEMPORARY TABLE webhook_deliveries (endpoint_id uuid, event text,
                session_id uuid);
            SET search_path = pg_temp, public""")
        await consumer.execute(f"{SET.format('status = $2')}", session_id, "completed")
        diverted = await consumer.fetchval("SELECT count(*) FROM pg_temp.webhook_deliveries")

    assert diverted == 0
    assert await told(console) == [(session_id, "generation.completed")]


async def test_rolled_back_end_is_not_told(console: Console) -> None:
    await added(console.webhooks)
    session_id = await console.queued()

    async with console.database.transaction() as connection:
        savepoint = connection.transaction()
        await savepoint.start()
        await connection.execute(SET.format("status = 'completed'"), session_id)
        await savepoint.rollback()

    assert await told(console) == []


async def test_one_statement_may_end_many_sessions(console: Console) -> None:
    """Of several owners, each with its own endpoints."""
    mine, theirs = await added(console.webhooks), await added(console.webhooks, STORE)
    ids = {owner: [await console.queued(owner) for _ in range(3)] for owner in (USER, STORE)}

    await console.run("UPDATE generation_sessions SET status = 'failed'")

    for endpoint in (mine, theirs):
        found = await deliveries_of(console.webhooks, endpoint)
        assert {one.session_id for one in found} == set(ids[endpoint.owner])


async def test_end_that_is_written_again_is_told_once(console: Console) -> None:
    """As an external consumer may do that is not sure of its first write."""
    await added(console.webhooks)
    session_id = await console.queued()

    for _ in range(2):
        await console.run("UPDATE generation_sessions SET status = 'failed'")

    assert await told(console) == [(session_id, "generation.failed")]


async def test_only_the_owner_is_told(console: Console) -> None:
    """Of what each endpoint asks for. Not another owner of its channel, nor one with its id on the
    other channel."""
    twin = Owner(channel=Channel.B2B, id=USER.id)
    others = [await added(console.webhooks, owner, events=EVERY) for owner in (OTHER, twin)]
    mine = await added(console.webhooks, events=EVERY)
    partly = await added(console.webhooks, events=frozenset({WebhookEvent.FAILED}))
    await console.queued()
    await console.credits.grant(USER, 10, note="test")
    await console.webhooks.set_threshold(USER, 10)

    await console.run("UPDATE generation_sessions SET status = 'failed'")
    await console.run("UPDATE credit_accounts SET balance = 1, total_debited = total_granted - 1")

    assert [await deliveries_of(console.webhooks, endpoint) for endpoint in others] == [[], []]
    for endpoint in (mine, partly):
        found = await deliveries_of(console.webhooks, endpoint)
        assert {delivery.event for delivery in found} == endpoint.events


async def trigger_calls(console: Console, sql: str, *arguments: object) -> dict[str, int]:
    """How often each trigger was called by a statement, which is executed."""
    plan = await console.database.fetch_value(f"EXPLAIN (ANALYZE, FORMAT JSON) {sql}", *arguments)
    triggers: list[dict[str, Any]] = json.loads(plan)[0]["Triggers"]
    return {trigger["Trigger Name"]: round(trigger["Calls"]) for trigger in triggers}


async def test_owner_without_endpoints_pays_for_no_call(console: Console) -> None:
    """Others' endpoints cost nothing either."""
    await added(console.webhooks, STORE)
    mine, theirs = await console.queued(USER), await console.queued(STORE)

    calls = [
        await trigger_calls(console, SET.format("status = 'completed'"), session_id)
        for session_id in (mine, theirs)
    ]

    assert [TRIGGER in call for call in calls] == [False, True]


async def test_owner_without_a_threshold_pays_for_no_call(console: Console) -> None:
    """With one, only the debit that crosses the threshold is told."""
    debit = "UPDATE credit_accounts SET balance = balance - 1, total_debited = total_debited + 1"
    endpoint = await added(console.webhooks, events=frozenset({WebhookEvent.CREDITS_LOW}))
    await console.credits.grant(USER, 10, note="test")

    calls, told_so_far = [], []
    for threshold in (None, 20, 5, 7):
        await console.webhooks.set_threshold(USER, threshold)
        calls.append(await trigger_calls(console, debit))
        told_so_far.append(len(await deliveries_of(console.webhooks, endpoint)))

    assert ["low_credits_are_told" in call for call in calls] == [False, True, True, True]
    assert told_so_far == [0, 0, 0, 1]


async def test_session_that_is_created_meanwhile_is_told(console: Console) -> None:
    """A creation that holds the account when the first endpoint is added is waited for, and marked
    with the others."""
    await console.credits.grant(USER, 1, note="test")
    async with console.database.transaction() as connection:
        await connection.execute("SELECT FROM credit_accounts FOR UPDATE")
        adding = asyncio.create_task(added(console.webhooks))
        await asyncio.sleep(0.05)
        row = await connection.fetchrow("""
            INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt,
                model_image_url)
            SELECT gen_random_uuid(), channel, owner_id, 'req_1', 'p', 'https://a.example/'
            FROM credit_accounts RETURNING id""")
        assert row is not None
        assert not adding.done()
    endpoint = await adding

    await console.run(SET.format("status = 'completed'"), row["id"])

    (delivery,) = await deliveries_of(console.webhooks, endpoint)
    assert delivery.session_id == row["id"]


async def test_endpoint_appears_only_once_all_sessions_are_marked(
    postgres: EmbeddedPostgres, console: Console
) -> None:
    """An external consumer may hold a session. If that takes too long, there is no endpoint, and
    the call can be repeated."""
    session_id = await console.queued()
    limits = DatabaseLimits(command_seconds=0.3)
    hurried = Console(Database(postgres.url(), limits=limits))
    async with console.database.transaction() as connection:
        await connection.execute(SET.format("processing_time_ms = 7"), session_id)
        with pytest.raises(DatabaseUnavailable):
            await hurried.webhooks.add(an_endpoint(), max_endpoints=9)
        assert await console.webhooks.all(USER) == []

    endpoint = await added(hurried.webhooks)
    await hurried.database.close()
    await console.sessions.fail_queued(session_id, FAILURE)

    assert len(await deliveries_of(console.webhooks, endpoint)) == 1


async def test_many_sessions_are_marked_in_batches(console: Console) -> None:
    """Of this owner alone."""
    ids = [await console.queued() for _ in range(7)]
    theirs = await console.queued(STORE)
    console.webhooks._marked_at_once = 3  # type: ignore[attr-defined]

    await added(console.webhooks)

    rows = await console.database.fetch("SELECT id FROM generation_sessions WHERE has_webhooks")
    assert {row["id"] for row in rows} == set(ids)
    assert theirs not in ids


async def test_deleted_endpoint_leaves_nothing_behind(console: Console) -> None:
    """Recovery deletes what is left of many deliveries."""
    endpoint = await added(console.webhooks)
    for _ in range(3):
        await console.finished(SessionStatus.COMPLETED)
    (turn,) = await console.webhooks.claim(limit=1, window=8, lease=TURN)
    await console.webhooks.settle(a_result(turn))
    await console.run("DELETE FROM webhook_endpoints WHERE id = $1", endpoint.id)

    week = timedelta(days=7)
    for limit in (1, 1, 9):
        await console.webhooks.purge(finished_for=week, pending_for=2 * week, limit=limit)
    after_pending = await told(console)
    await console.advance(week)
    await console.webhooks.purge(finished_for=week, pending_for=2 * week, limit=9)

    assert len(after_pending) == 1
    assert await told(console) == []
    assert await console.database.fetch("SELECT FROM webhook_attempts") == []


async def test_backlog_of_a_silent_endpoint_costs_no_look(console: Console) -> None:
    """Looking for due deliveries reads one entry of the index for each endpoint that has any, and a
    paused endpoint's turn reads one more when its pause ends."""
    endpoint = await added(console.webhooks)
    await console.run(
        "INSERT INTO webhook_deliveries (endpoint_id, event)"
        " SELECT $1, 'webhook.test' FROM generate_series(1, 20000)",
        endpoint.id,
    )
    await console.run("ANALYZE webhook_deliveries")
    (turn,) = await console.webhooks.claim(limit=1, window=8, lease=TURN)
    await console.webhooks.settle(a_result(turn, failures=3, paused_for=TURN))

    async def read() -> int:
        """Index entries and rows of deliveries that a claim reads."""
        await console.run("SELECT pg_stat_force_next_flush()")
        before = await console.database.fetch_value(READ)
        await console.webhooks.claim(limit=10, window=8, lease=TURN)
        await console.run("SELECT pg_stat_force_next_flush()")
        return int(await console.database.fetch_value(READ)) - int(before)

    paused = await read()
    await console.advance(TURN)
    probed = await read()

    assert len(await deliveries_of(console.webhooks, endpoint, DeliveryStatus.DELIVERED)) == 1
    assert paused <= 10
    assert 1 <= probed <= 10


READ = """
    SELECT coalesce(sum(idx_tup_read), 0)::bigint FROM pg_stat_user_indexes
    WHERE relname = 'webhook_deliveries'"""
