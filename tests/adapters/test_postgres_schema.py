"""The store defends the invariants by itself, against any SQL: consumers that are not ours write
sessions without knowing a rule, and so may a person at a console."""

from collections.abc import AsyncIterator
from datetime import timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.sessions import Failure, SessionStatus
from tests.contracts.backends import PostgresBackend
from tests.support.examples import FAILURE, LEASE, STORED_PICTURE, USER

pytestmark = pytest.mark.anyio

Refusal = type[asyncpg.PostgresError]
CHECK = asyncpg.CheckViolationError
UNIQUE = asyncpg.UniqueViolationError
FOREIGN_KEY = asyncpg.ForeignKeyViolationError
GUARD = asyncpg.RestrictViolationError


class Console(PostgresBackend):
    """The store, and any SQL on it."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.database = database

    async def run(self, sql: str, *arguments: object) -> None:
        await self.database.fetch(sql, *arguments)

    async def in_state(self, state: str) -> UUID:
        """A session of USER's, brought there by ours."""
        session_id = (await self.created(idempotency_key="key")).session.id
        if state != "queued":
            await self.claim(session_id)
        if state == "completed":
            await self.attempts.complete(session_id, attempt=1, picture=STORED_PICTURE)
        if state == "failed":
            await self.attempts.fail(session_id, FAILURE, attempt=1)
        return session_id

    async def everything(self) -> list[list[asyncpg.Record]]:
        tables = ("credit_accounts", "credit_ledger", "generation_sessions")
        return [await self.database.fetch(f"SELECT * FROM {table}") for table in tables]  # noqa: S608


@pytest.fixture
async def store(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    try:
        store = Console(database)
        await store.empty()
        yield store
    finally:
        await database.close()


LEDGER = "INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id) "
PAYER = "SELECT 'b2c', user_id"
SESSION = """
    INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url,
        {column})
    SELECT gen_random_uuid(), channel, user_id, request_id, prompt, model_image_url, {value}
    FROM generation_sessions WHERE id = $1"""
SET = "UPDATE generation_sessions SET {} WHERE id = $1"
WITH_ANOTHERS_KEY = """
    WITH another AS (
        INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url,
            idempotency_key)
        SELECT gen_random_uuid(), channel, user_id, request_id, prompt, model_image_url, 'another'
        FROM generation_sessions WHERE id = $1
        RETURNING idempotency_key)
    UPDATE generation_sessions AS s SET idempotency_key = another.idempotency_key
    FROM another WHERE s.id = $1"""
OPEN = ("queued", "processing")
FINAL = ("completed", "failed")
ALL = (*OPEN, *FINAL)

ATTACKS: dict[str, tuple[tuple[str, ...], str, Refusal]] = {
    "a status that is none": (OPEN, SET.format("status = 'cancelled'"), CHECK),
    "no status": (OPEN, SET.format("status = NULL"), asyncpg.NotNullViolationError),
    "back to the queue": (FINAL, SET.format("status = 'queued'"), GUARD),
    "back to work": (FINAL, SET.format("status = 'processing'"), GUARD),
    "from completed to failed": (("completed",), SET.format("status = 'failed'"), GUARD),
    "from failed to completed": (("failed",), SET.format("status = 'completed'"), GUARD),
    "another channel": (ALL, SET.format("channel = 'b2b'"), GUARD),
    "another payer": (ALL, SET.format("user_id = 'somebody'"), GUARD),
    "a second payer": (ALL, SET.format("store_id = 'somebody'"), GUARD),
    "another id": (ALL, SET.format("id = gen_random_uuid()"), GUARD),
    "another age": (ALL, SET.format("created_at = created_at + interval '1 s'"), GUARD),
    "another order": (ALL, SET.format("prompt = 'something else'"), GUARD),
    "another key": (ALL, SET.format("idempotency_key = 'another'"), GUARD),
    "another session's key": (ALL, WITH_ANOTHERS_KEY, GUARD),
    "a key less": (ALL, SET.format("idempotency_key = NULL"), GUARD),
    "a key less in the end": (
        OPEN,
        SET.format("status = 'failed', error_code = 'EXPIRED', idempotency_key = NULL"),
        GUARD,
    ),
    "a key less without a reason": (
        OPEN,
        SET.format("status = 'failed', idempotency_key = NULL"),
        GUARD,
    ),
    "a key less after the end": (
        ("failed",),
        SET.format("error_code = 'QUEUE_UNAVAILABLE', idempotency_key = NULL"),
        GUARD,
    ),
    "a key less while it waits": (
        ("queued",),
        SET.format("error_code = 'QUEUE_UNAVAILABLE', idempotency_key = NULL"),
        GUARD,
    ),
    "a key without a text": (
        ("queued",),
        SESSION.format(column="idempotency_key", value="''"),
        CHECK,
    ),
    "an endless key": (
        ("queued",),
        SESSION.format(column="idempotency_key", value="repeat('x', 256)"),
        CHECK,
    ),
    "a second session of a key": (
        ALL,
        SESSION.format(column="idempotency_key", value="idempotency_key"),
        UNIQUE,
    ),
    "a claim on another attempt": (ALL, SET.format("attempt = attempt + 1"), GUARD),
    "an attempt less": (ALL, SET.format("attempt = attempt - 1"), GUARD),
    "two attempts at once": (
        ("queued",),
        SET.format("status = 'processing', attempt = attempt + 2"),
        GUARD,
    ),
    "half a usage": (ALL, SET.format("input_tokens = 1, output_tokens = 1"), CHECK),
    "an input below nothing": (
        ALL,
        SET.format("input_tokens = -1, output_tokens = 1, estimated_cost_usd = 0"),
        CHECK,
    ),
    "an output below nothing": (
        ALL,
        SET.format("input_tokens = 1, output_tokens = -1, estimated_cost_usd = 0"),
        CHECK,
    ),
    "a cost below nothing": (
        ALL,
        SET.format("input_tokens = 1, output_tokens = 1, estimated_cost_usd = -0.000001"),
        CHECK,
    ),
    "a job without a name": (ALL, SET.format("provider_job = ''"), CHECK),
    "an endless job": (ALL, SET.format("provider_job = repeat('x', 201)"), CHECK),
    "a claim for ever": (
        ("queued",),
        SET.format("status = 'processing', attempt = attempt + 1, lease_expires_at = 'infinity'"),
        GUARD,
    ),
    "a lease for ever": (("processing",), SET.format("lease_expires_at = 'infinity'"), GUARD),
    "a lease without work": (
        ("queued", *FINAL),
        SET.format("lease_expires_at = now()"),
        CHECK,
    ),
    "an end without its status": (
        OPEN,
        SET.format("completed_at = now()"),
        CHECK,
    ),
    "a status without its end": (FINAL, SET.format("completed_at = NULL"), CHECK),
    "a failure without its code": (("failed",), SET.format("error_code = NULL"), CHECK),
    "a picture without its type": (
        OPEN,
        SET.format("object_key = 'somewhere'"),
        CHECK,
    ),
    "deleting a picture that is still to come": (
        OPEN,
        SET.format("image_deleted_at = now()"),
        CHECK,
    ),
    "a refund mark on what did not fail": (
        (*OPEN, "completed"),
        SET.format("refunded = true"),
        CHECK,
    ),
    "a failure that claims its refund": (
        OPEN,
        SET.format("status = 'failed', refunded = true"),
        GUARD,
    ),
    "deleting what is waited for": (
        OPEN,
        "DELETE FROM generation_sessions WHERE id = $1",
        GUARD,
    ),
    "a session that begins at its end": (
        ("queued",),
        SESSION.format(column="status, completed_at", value="'completed', now()"),
        GUARD,
    ),
    "a session that begins as a refundable failure": (
        ("queued",),
        SESSION.format(column="status, error_code, completed_at", value="'failed', 'X', now()"),
        GUARD,
    ),
    "a session that begins in work": (
        ("queued",),
        SESSION.format(column="status", value="'processing'"),
        GUARD,
    ),
    "a session that begins with attempts": (
        ("queued",),
        SESSION.format(column="attempt", value="-2147483648"),
        GUARD,
    ),
    "a session of two owners": (
        ("queued",),
        SESSION.format(column="store_id", value="'store-1'"),
        CHECK,
    ),
    "a session without an account": (
        ("queued",),
        """
        INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url)
        SELECT gen_random_uuid(), channel, 'nobody', request_id, prompt, model_image_url
        FROM generation_sessions WHERE id = $1""",
        FOREIGN_KEY,
    ),
    "a second debit": (
        ALL,
        f"{LEDGER} {PAYER}, 'debit', -1, id FROM generation_sessions WHERE id = $1",
        UNIQUE,
    ),
    "a second refund": (
        ("failed",),
        f"{LEDGER} {PAYER}, 'refund', 1, id FROM generation_sessions WHERE id = $1",
        UNIQUE,
    ),
    "a refund of what did not fail": (
        (*OPEN, "completed"),
        f"{LEDGER} {PAYER}, 'refund', 1, id FROM generation_sessions WHERE id = $1",
        GUARD,
    ),
    "a debit that gives": (
        ALL,
        f"{LEDGER} {PAYER}, 'debit', 1, gen_random_uuid() FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "a grant that takes": (
        ALL,
        f"{LEDGER} {PAYER}, 'grant', -1, NULL FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "an entry of no kind": (
        ALL,
        f"{LEDGER} {PAYER}, 'gift', 1, NULL FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "a debit for nothing": (
        ALL,
        f"{LEDGER} {PAYER}, 'debit', -1, NULL FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "another amount in the ledger": (
        ALL,
        "UPDATE credit_ledger SET amount = amount * 2 WHERE session_id = $1",
        GUARD,
    ),
    "an entry less": (ALL, "DELETE FROM credit_ledger WHERE session_id = $1", GUARD),
    "a balance below 0": (
        ("queued",),
        "UPDATE credit_accounts SET balance = balance - 1, total_debited = total_debited + 1"
        " WHERE $1::uuid IS NOT NULL",
        CHECK,
    ),
    "a balance that its totals do not explain": (
        ALL,
        "UPDATE credit_accounts SET balance = balance + 1 WHERE $1::uuid IS NOT NULL",
        CHECK,
    ),
    "an account less": (ALL, "DELETE FROM credit_accounts WHERE $1::uuid IS NOT NULL", FOREIGN_KEY),
}


@pytest.mark.parametrize(
    ("attack", "state"),
    [(name, state) for name, (states, *_) in ATTACKS.items() for state in states],
)
async def test_the_store_refuses(store: Console, attack: str, state: str) -> None:
    """Whatever breaks an invariant fails as a whole and leaves everything as it was."""
    _, sql, refusal = ATTACKS[attack]
    session_id = await store.in_state(state)
    before = await store.everything()

    with pytest.raises(refusal):
        await store.run(sql, session_id)

    assert await store.everything() == before


async def test_the_rules_of_a_row_are_one_check(store: Console) -> None:
    """Every statement that writes sessions reads the text of each CHECK anew."""
    checks = await store.database.fetch(
        "SELECT conname FROM pg_constraint"
        " WHERE conrelid = 'generation_sessions'::regclass AND contype = 'c'"
    )

    assert [check["conname"] for check in checks] == ["session_is_sound"]


async def test_a_refund_to_somebody_else_is_refused(store: Console) -> None:
    """Of what a failed session was charged, by and to another account than its payer's, or more
    than that."""
    await store.credits.grant(USER, 1, note="test")
    session_id = await store.queued()
    await store.foreign_write(session_id, status="failed")
    await store.run(
        "INSERT INTO credit_accounts (channel, owner_id, balance) VALUES ('b2c', 'thief', 0)"
    )

    for owner_id, amount in (("thief", 1), (USER.id, 2)):
        with pytest.raises(GUARD):
            await store.run(
                f"{LEDGER} VALUES ('b2c', $1, 'refund', $2, $3)", owner_id, amount, session_id
            )

    assert await store.recovery.refund_missing(limit=10) == 1
    assert await store.credits.audit(limit=10) == []


async def test_a_refund_for_nothing_is_refused(store: Console) -> None:
    """A session that does not exist was not paid for."""
    await store.credits.grant(USER, 1, note="test")

    with pytest.raises(GUARD):
        await store.run(f"{LEDGER} VALUES ('b2c', $1, 'refund', 1, $2)", USER.id, uuid4())


async def test_a_forgotten_refund_mark_makes_no_second_refund(store: Console) -> None:
    """The ledger knows better than a column that somebody reset."""
    session_id = await store.in_state("failed")
    await store.run(SET.format("refunded = false"), session_id)

    await store.recovery.refund_missing(limit=10)

    assert await store.money_of(session_id) == ["debit", "refund"]
    assert await store.credits.audit(limit=10) == []


async def test_a_foreign_failure_gets_what_a_failure_has(store: Console) -> None:
    """A code, its end, no lease; its refund is recovery's, so it must not be deleted before."""
    session_id = await store.in_state("processing")

    await store.run(SET.format("status = 'failed', error_message = 'no'"), session_id)

    session = await store.get(session_id)
    assert session.failure == Failure(code="GENERATION_FAILED", message="no")
    assert session.completed_at is not None
    assert session.lease_expires_at is None
    with pytest.raises(GUARD):
        await store.run("DELETE FROM generation_sessions WHERE id = $1", session_id)


async def test_a_foreign_end_keeps_what_its_writer_said(store: Console) -> None:
    """The store only fills in what is missing."""
    failed, completed = await store.queued(), await store.in_state("processing")

    await store.run(
        SET.format("status = 'failed', error_code = 'BUSY', completed_at = '2026-01-01Z'"), failed
    )
    await store.run(
        SET.format("status = 'completed', generated_image_url = 'https://x.example/'"), completed
    )

    failure, done = await store.get(failed), await store.get(completed)
    assert failure.failure == Failure(code="BUSY", message="")
    assert failure.completed_at is not None
    assert failure.completed_at.isoformat() == "2026-01-01T00:00:00+00:00"
    assert (done.status, done.completed_at is None) == (SessionStatus.COMPLETED, False)


async def test_a_final_session_may_still_get_its_link(store: Console) -> None:
    """A consumer that is not ours may write the status first; writing it twice is no change."""
    session_id = await store.in_state("queued")
    await store.run(SET.format("status = 'completed'"), session_id)

    await store.run(
        SET.format("status = 'completed', generated_image_url = 'https://x.example/'"), session_id
    )

    assert (await store.get(session_id)).generated_image_url == "https://x.example/"


@pytest.mark.parametrize("later", ["NULL", "now() + interval '1 day'"])
async def test_a_deleted_picture_does_not_come_back(store: Console, later: str) -> None:
    """When it was deleted stays as it was noted."""
    session_id = await store.in_state("completed")
    await store.recovery.mark_images_deleted([session_id])
    before = await store.everything()

    with pytest.raises(GUARD):
        await store.run(SET.format(f"image_deleted_at = {later}"), session_id)

    assert await store.everything() == before


async def test_a_foreign_take_has_an_attempt_and_no_lease(store: Console) -> None:
    """Whatever lease it writes is not a worker's: only a claim, which takes the next attempt,
    has one."""
    session_id = await store.in_state("queued")

    await store.run(
        SET.format("status = 'processing', lease_expires_at = now() + interval '1 h'"), session_id
    )

    session = await store.get(session_id)
    assert (session.status, session.attempt) == (SessionStatus.PROCESSING, 1)
    assert session.lease_expires_at is None
    assert session.confirmed


async def test_a_foreign_take_cannot_put_its_bound_off(store: Console) -> None:
    """The time of the change is the store's."""
    session_id = await store.in_state("queued")
    await store.run(SET.format("status = 'processing', status_changed_at = 'infinity'"), session_id)
    await store.run(SET.format("status_changed_at = 'infinity'"), session_id)
    await store.advance(2 * LEASE)

    released = await store.recovery.release_dead_leases(
        max_attempts=2, external_timeout=LEASE, limit=10
    )

    assert released == 1


async def test_a_foreign_return_to_the_queue_ends_the_attempt(store: Console) -> None:
    """``processing -> queued`` without a lease, and the worker of before may not write."""
    session_id = await store.in_state("processing")

    await store.run(SET.format("status = 'queued'"), session_id)

    assert (await store.get(session_id)).lease_expires_at is None
    assert not await store.attempts.complete(session_id, attempt=1, picture=STORED_PICTURE)
    assert (await store.claim(session_id)).attempt == 2


@pytest.mark.parametrize("state", FINAL)
async def test_a_final_session_may_be_deleted(store: Console, state: str) -> None:
    """The ledger outlives it and the books stay right."""
    session_id = await store.in_state(state)
    money = await store.money_of(session_id)

    await store.run("DELETE FROM generation_sessions WHERE id = $1", session_id)

    assert await store.money_of(session_id) == money
    assert await store.credits.audit(limit=10) == []


async def test_a_session_without_a_debit_can_still_end(store: Console) -> None:
    """Somebody inserted it by SQL: nothing is owed for it, and it stops no batch of others."""
    paid = await store.queued()
    await store.run(SESSION.format(column="outfit_image_url", value="NULL"), paid)
    await store.advance(timedelta(hours=2))

    failed = await store.recovery.fail_expired(FAILURE, older_than=timedelta(hours=1), limit=10)

    assert failed == 2
    assert await store.balance() == 1
    assert len(await store.credits.audit(limit=10)) == 1
