"""Limits and erasure in PostgreSQL where a statement waited for a row."""

import asyncio
from collections.abc import AsyncIterator
from datetime import UTC, datetime, timedelta
from uuid import uuid4

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.creation import REFUNDS_OF_OWNER, REFUNDS_OF_SHOPPER, SIGN_UP
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.sessions.rows import inserted_values
from adapters.sessions.statements import FAIL_QUEUED
from domain.account_ports import StoreChange
from domain.callers import Shopper
from domain.credits import GENERATION_COST, Owner
from domain.errors import DatabaseUnavailable, RateLimited
from domain.plans import AccountLimits, Plan, TokenBudget
from domain.sessions import ErrorCode, Failure
from tests.adapters.batching import waiting_for_a_lock
from tests.adapters.console import Console
from tests.support.examples import MANY, OPERATOR, STORE, USER, a_session

pytestmark = pytest.mark.anyio

OTHER_STORE = Owner(channel=STORE.channel, id="store-2")
CANCELLED = Failure(code=ErrorCode.CANCELLED, message="test")
WINDOW_OF_NEXT_HOUR = """
    UPDATE credit_accounts SET refunds_now = 7, refunds_before = 5,
        refunds_hour = date_trunc('hour', now(), 'UTC') + interval '1 hour'"""
WINDOW = """
    SELECT refunds_now, refunds_before,
        refunds_hour > date_trunc('hour', now(), 'UTC') AS is_next FROM credit_accounts"""
ISSUE = """
    INSERT INTO client_tokens
        (id, store_id, shopper_id, token_sha256, origin, pictures, expires_at)
    SELECT gen_random_uuid(), store_id, shopper_id, repeat('e', 64), origin, 1, expires_at
    FROM client_tokens"""


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    console = Console(database)
    await console.empty()
    yield console
    await database.close()


async def test_late_refund_keeps_the_window_of_the_next_hour(console: Console) -> None:
    """A refund that waited for the account since the hour before loses no other refund."""
    session_id = await console.queued()
    await console.run(WINDOW_OF_NEXT_HOUR)

    await console.sessions.fail_queued(session_id, CANCELLED)

    (window,) = await console.database.fetch(WINDOW)
    assert tuple(window) == (8, 5, True)


async def test_late_submission_counts_the_refunds_of_the_next_hour(console: Console) -> None:
    """Nor does a submission that waited overlook them."""
    await console.credits.grant(USER, 10, note="test")
    await console.run(WINDOW_OF_NEXT_HOUR)
    repo = console.limited(AccountLimits(refunds_per_hour=7))

    with pytest.raises(RateLimited):
        await repo.create(a_session(), max_active=MANY)


async def test_user_who_signed_up_before_midnight_is_not_counted_again(console: Console) -> None:
    """Two first requests found no account. The second one signs up as the first of the new day."""
    await console.sessions.create(a_session(), max_active=MANY, signup_credits=3)
    await console.run("DELETE FROM signup_days")
    values = (USER.id, None, *inserted_values(a_session()), GENERATION_COST, None, None, 3, 1_000)

    row = await console.database.fetch_row(SIGN_UP, *values)

    assert row is not None
    assert (row["is_new"], row["balance"]) == (False, None)
    assert await console.database.fetch("SELECT FROM signup_days") == []
    assert (await console.credits.account(USER)).total_granted == 3


async def test_forgetting_a_shopper_who_gets_a_token_can_be_repeated(console: Console) -> None:
    """The error says that it is temporary; the next try forgets both tokens."""
    await console.credits.grant(STORE, 1, note="test")
    expires_at = datetime.now(UTC) + timedelta(minutes=5)
    budget = TokenBudget(store_id=STORE.id, shopper_id="ann", pictures=1, expires_at=expires_at)
    await console.add_token(uuid4(), budget)

    async with console.database.transaction() as connection:
        await connection.execute("UPDATE shoppers SET seen_at = now()")
        await connection.execute(ISSUE)
        forgetting = asyncio.create_task(
            console.erasure.forget_shoppers(STORE, shopper="ann", limit=9)
        )
        await waiting_for_a_lock(console.database)

    with pytest.raises(DatabaseUnavailable):
        await forgetting
    assert await console.erasure.forget_shoppers(STORE, shopper="ann", limit=9) == 1


async def with_a_shopper(console: Console) -> None:
    """The store's account and a token of one shopper, and accounts that have nothing to do with
    them: another store's, and that of a user with the store's id."""
    for owner in (STORE, Owner(channel=USER.channel, id=STORE.id), OTHER_STORE):
        await console.credits.grant(owner, 1, note="test")
    expires_at = datetime.now(UTC) + timedelta(minutes=5)
    budget = TokenBudget(store_id=STORE.id, shopper_id="ann", pictures=1, expires_at=expires_at)
    await console.add_token(uuid4(), budget)


ACCOUNT = "credit_accounts WHERE channel = 'b2b' AND owner_id = 'store-1'"
LOCK = "SELECT FROM {} FOR UPDATE"


@pytest.mark.parametrize(
    ("locked", "still_free"),
    [(ACCOUNT, "client_tokens"), (ACCOUNT, "shoppers"), ("client_tokens", "shoppers")],
)
async def test_forgetting_a_shopper_locks_in_the_order_of_a_debit(
    console: Console, locked: str, still_free: str
) -> None:
    """First the account, then the tokens, then the shoppers: a submission or a refund meanwhile
    never waits for a statement that waits for it."""
    await with_a_shopper(console)

    async with console.database.transaction() as connection:
        await connection.execute(LOCK.format(locked))
        forgetting = asyncio.create_task(
            console.erasure.forget_shoppers(STORE, shopper=None, limit=9)
        )
        await waiting_for_a_lock(console.database)
        free = await console.database.fetch(LOCK.format(still_free) + " NOWAIT")

    assert (len(free), await forgetting) == (1, 1)


async def test_forgetting_a_shopper_waits_for_no_other_account(console: Console) -> None:
    await with_a_shopper(console)
    others = "credit_accounts WHERE channel = 'b2c' OR owner_id <> 'store-1'"

    async with console.database.transaction() as connection:
        assert len(await connection.fetch(LOCK.format(others))) == 2

        assert await console.erasure.forget_shoppers(STORE, shopper=None, limit=9) == 1


async def test_submission_waits_for_the_refund_of_the_last_picture(console: Console) -> None:
    """It gets the picture that comes back, although its snapshot still has a token used up."""
    await console.credits.grant(STORE, 2, note="test")
    expires_at = datetime.now(UTC) + timedelta(minutes=5)
    shopper = Shopper(id="ann", token_id=uuid4())
    budget = TokenBudget(store_id=STORE.id, shopper_id="ann", pictures=1, expires_at=expires_at)
    await console.add_token(shopper.token_id, budget)
    first = a_session(owner=STORE, shopper=shopper)
    await console.sessions.create(first, max_active=MANY)

    async with console.database.transaction() as connection:
        await connection.execute(FAIL_QUEUED, CANCELLED.code, CANCELLED.message, first.id, False)
        second = a_session(owner=STORE, shopper=shopper)
        submitting = asyncio.create_task(console.sessions.create(second, max_active=MANY))
        await waiting_for_a_lock(console.database)

    assert (await submitting).pictures_remaining == 0
    assert (await console.budget_of(shopper.token_id)).used == 1


async def test_submission_waits_for_the_refund_of_the_last_credit(console: Console) -> None:
    """It gets the credit that comes back, although its snapshot still has a balance of 0."""
    await console.credits.grant(USER, 1, note="test")
    first = a_session()
    await console.sessions.create(first, max_active=MANY)

    async with console.database.transaction() as connection:
        await connection.execute(FAIL_QUEUED, CANCELLED.code, CANCELLED.message, first.id, False)
        submitting = asyncio.create_task(console.sessions.create(a_session(), max_active=MANY))
        await waiting_for_a_lock(console.database)

    assert (await submitting).credits_remaining == 0
    assert await console.balance() == 0


@pytest.mark.parametrize("statement", [REFUNDS_OF_OWNER, REFUNDS_OF_SHOPPER])
async def test_refusal_of_a_shopper_who_is_forgotten_meanwhile(
    console: Console, statement: str
) -> None:
    """It was decided by a row that is no longer there."""
    repo = console.sessions
    assert isinstance(repo, PostgresSessionRepo)

    error = await repo._creation._refunds(statement, ("store-9", "ann"), 2)

    assert isinstance(error, RateLimited)
    assert error.retry_after_seconds == 1


async def test_plan_that_a_store_had_before_is_set_again(console: Console) -> None:
    """By a change that waited for another one: what it answers is what the account has."""
    await console.name_origins(STORE, [])
    await console.credits.grant(STORE, 1, note="test")

    async with console.database.transaction() as connection:
        await connection.execute("UPDATE credit_accounts SET plan = 'growth'")
        change = StoreChange(plan=Plan.DEFAULT)
        changing = asyncio.create_task(console.stores.change(STORE.id, change, by=OPERATOR))
        await waiting_for_a_lock(console.database)

    changed = await changing
    assert changed is not None
    assert changed.plan is Plan.DEFAULT
    assert (await console.credits.account(STORE)).plan is Plan.DEFAULT
