"""The database defends the invariants by itself against any SQL: external consumers write sessions
without knowing a rule, and so may a person at a console."""

from collections.abc import AsyncIterator
from uuid import uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.columns import COLUMNS, IMMUTABLE
from adapters.sessions.guards import RULES, session_guards
from tests.adapters.console import SESSION, SET, Console
from tests.support.examples import USER

pytestmark = pytest.mark.anyio

Refusal = type[asyncpg.PostgresError]
CHECK = asyncpg.CheckViolationError
UNIQUE = asyncpg.UniqueViolationError
FOREIGN_KEY = asyncpg.ForeignKeyViolationError
GUARD = asyncpg.RestrictViolationError


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    try:
        console = Console(database)
        await console.empty()
        yield console
    finally:
        await database.close()


LEDGER = "INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id) "
PAYER = "SELECT 'b2c', user_id"
WITH_KEY_OF_ANOTHER = """
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

FAULT = (
    "INSERT INTO attempt_faults (session_id, attempt, worker, code, cause)"
    " SELECT $1, 1, {}, 'C', {}"
)

CHANGES = {
    "uuid": "gen_random_uuid()",
    "text": "'another'",
    "timestamptz": "now() + interval '1 s'",
    "jsonb": "'[{}]'",
    "boolean": "true",
}
"""Another value for an immutable column of the type."""

OWN_PICTURE = (
    "media_type = 'image/png', object_key = 'generated/' || user_id || '/' || id || '.png'"
)
COMPLETE_WITH_ANOTHERS = SET.format(
    "status = 'completed', media_type = 'image/png',"
    " object_key = 'generated/' || user_id || '/' || gen_random_uuid() || '.png'"
)
ATTACKS: dict[str, tuple[tuple[str, ...], str, Refusal]] = {
    "fault without a cause": (("processing",), FAULT.format("'w'", "''"), CHECK),
    "fault with a long cause": (("processing",), FAULT.format("'w'", "repeat('x', 251)"), CHECK),
    "fault of a worker without a name": (("processing",), FAULT.format("''", "'c'"), CHECK),
    "fault of a long name": (("processing",), FAULT.format("repeat('x', 101)", "'c'"), CHECK),
    "unknown status": (OPEN, SET.format("status = 'cancelled'"), CHECK),
    "status is NULL": (OPEN, SET.format("status = NULL"), asyncpg.NotNullViolationError),
    "final to queued": (FINAL, SET.format("status = 'queued'"), GUARD),
    "final to processing": (FINAL, SET.format("status = 'processing'"), GUARD),
    "completed to failed": (("completed",), SET.format("status = 'failed'"), GUARD),
    "failed to completed": (("failed",), SET.format("status = 'completed'"), GUARD),
    "idempotency key changed": (ALL, SET.format("idempotency_key = 'another'"), GUARD),
    "idempotency key of another session": (ALL, WITH_KEY_OF_ANOTHER, GUARD),
    "idempotency key removed": (ALL, SET.format("idempotency_key = NULL"), GUARD),
    "idempotency key removed by another failure": (
        OPEN,
        SET.format("status = 'failed', error_code = 'EXPIRED', idempotency_key = NULL"),
        GUARD,
    ),
    "idempotency key removed without an error code": (
        OPEN,
        SET.format("status = 'failed', idempotency_key = NULL"),
        GUARD,
    ),
    "idempotency key removed by the failure of a session that was pushed": (
        ("confirmed", "processing"),
        SET.format("status = 'failed', error_code = 'QUEUE_UNAVAILABLE', idempotency_key = NULL"),
        GUARD,
    ),
    "idempotency key removed after the end": (
        ("failed", "never pushed"),
        SET.format("error_code = 'QUEUE_UNAVAILABLE', idempotency_key = NULL"),
        GUARD,
    ),
    "idempotency key removed while queued": (
        ("queued",),
        SET.format("error_code = 'QUEUE_UNAVAILABLE', idempotency_key = NULL"),
        GUARD,
    ),
    "idempotency key empty": (
        ("queued",),
        SESSION.format(column="idempotency_key", value="''"),
        CHECK,
    ),
    "idempotency key too long": (
        ("queued",),
        SESSION.format(column="idempotency_key", value="repeat('x', 256)"),
        CHECK,
    ),
    "idempotency key used twice": (
        ALL,
        SESSION.format(column="idempotency_key", value="idempotency_key"),
        UNIQUE,
    ),
    "attempt increased without a claim": (ALL, SET.format("attempt = attempt + 1"), GUARD),
    "attempt decreased": (ALL, SET.format("attempt = attempt - 1"), GUARD),
    "attempt increased by two": (
        ("queued",),
        SET.format("status = 'processing', attempt = attempt + 2"),
        GUARD,
    ),
    "picture of another session": (("processing",), COMPLETE_WITH_ANOTHERS, CHECK),
    "picture that is no picture": (
        ("processing",),
        SET.format(
            "status = 'completed', media_type = 'text/html',"
            " object_key = 'generated/' || user_id || '/' || id || '.html'"
        ),
        CHECK,
    ),
    "picture of a failed session": (
        ("failed",),
        SET.format(f"{OWN_PICTURE}, error_message = 'none'"),
        GUARD,
    ),
    "picture before the end": (OPEN, SET.format(OWN_PICTURE), CHECK),
    "picture changed after the end": (
        ("completed",),
        SET.format("object_key = 'generated/' || user_id || '/' || id || '.jpg'"),
        GUARD,
    ),
    "picture removed after the end": (
        ("completed",),
        SET.format("object_key = NULL, media_type = NULL"),
        GUARD,
    ),
    "pictures kept for ever": (ALL, SET.format("delete_again_at = 'infinity'"), GUARD),
    "link that is a script": (ALL, SET.format("generated_image_url = 'javascript:1'"), GUARD),
    "link to a file": (ALL, SET.format("generated_image_url = 'file:///etc/passwd'"), GUARD),
    "link without a scheme": (ALL, SET.format("generated_image_url = '//x.example/'"), GUARD),
    "link with another line": (
        ALL,
        SET.format("generated_image_url = E'https://x.example/\\nSet-Cookie: a'"),
        GUARD,
    ),
    "link without a host": (ALL, SET.format("generated_image_url = 'https://'"), GUARD),
    "input tokens negative": (
        ALL,
        SET.format("input_tokens = -1, output_tokens = 1, estimated_cost_usd = 0"),
        CHECK,
    ),
    "output tokens negative": (
        ALL,
        SET.format("input_tokens = 1, output_tokens = -1, estimated_cost_usd = 0"),
        CHECK,
    ),
    "cost negative": (
        ALL,
        SET.format("input_tokens = 1, output_tokens = 1, estimated_cost_usd = -0.000001"),
        CHECK,
    ),
    "provider job empty": (ALL, SET.format("provider_job = ''"), CHECK),
    "provider job too long": (ALL, SET.format("provider_job = repeat('x', 201)"), CHECK),
    "claim without an end": (
        ("queued",),
        SET.format("status = 'processing', attempt = attempt + 1, lease_expires_at = 'infinity'"),
        GUARD,
    ),
    "lease without an end": (("processing",), SET.format("lease_expires_at = 'infinity'"), GUARD),
    "lease without an attempt": (
        ("queued", *FINAL),
        SET.format("lease_expires_at = now()"),
        CHECK,
    ),
    "completed_at on an unfinished session": (
        OPEN,
        SET.format("completed_at = now()"),
        CHECK,
    ),
    "final status without completed_at": (FINAL, SET.format("completed_at = NULL"), CHECK),
    "failure without an error code": (("failed",), SET.format("error_code = NULL"), CHECK),
    "picture without a media type": (
        OPEN,
        SET.format("object_key = 'somewhere'"),
        CHECK,
    ),
    "image deleted before the end": (
        OPEN,
        SET.format("image_deleted_at = now()"),
        CHECK,
    ),
    "refund mark without a failure": (
        (*OPEN, "completed"),
        SET.format("refunded = true"),
        CHECK,
    ),
    "refund mark without a refund": (
        OPEN,
        SET.format("status = 'failed', refunded = true"),
        GUARD,
    ),
    "unfinished session deleted": (
        OPEN,
        "DELETE FROM generation_sessions WHERE id = $1",
        GUARD,
    ),
    "session inserted as completed": (
        ("queued",),
        SESSION.format(column="status, completed_at", value="'completed', now()"),
        GUARD,
    ),
    "session inserted as failed": (
        ("queued",),
        SESSION.format(column="status, error_code, completed_at", value="'failed', 'X', now()"),
        GUARD,
    ),
    "session inserted as processing": (
        ("queued",),
        SESSION.format(column="status", value="'processing'"),
        GUARD,
    ),
    "session inserted with attempts": (
        ("queued",),
        SESSION.format(column="attempt", value="-2147483648"),
        GUARD,
    ),
    "session of two owners": (
        ("queued",),
        SESSION.format(column="store_id", value="'store-1'"),
        CHECK,
    ),
    "session without an account": (
        ("queued",),
        """
        INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url)
        SELECT gen_random_uuid(), channel, 'nobody', request_id, prompt, model_image_url
        FROM generation_sessions WHERE id = $1""",
        FOREIGN_KEY,
    ),
    "second debit": (
        ALL,
        f"{LEDGER} {PAYER}, 'debit', -1, id FROM generation_sessions WHERE id = $1",
        UNIQUE,
    ),
    "second refund": (
        ("failed",),
        f"{LEDGER} {PAYER}, 'refund', 1, id FROM generation_sessions WHERE id = $1",
        UNIQUE,
    ),
    "refund without a failure": (
        (*OPEN, "completed"),
        f"{LEDGER} {PAYER}, 'refund', 1, id FROM generation_sessions WHERE id = $1",
        GUARD,
    ),
    "positive debit": (
        ALL,
        f"{LEDGER} {PAYER}, 'debit', 1, gen_random_uuid() FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "negative grant": (
        ALL,
        f"{LEDGER} {PAYER}, 'grant', -1, NULL FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "ledger entry of an unknown kind": (
        ALL,
        f"{LEDGER} {PAYER}, 'gift', 1, NULL FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "debit without a session": (
        ALL,
        f"{LEDGER} {PAYER}, 'debit', -1, NULL FROM generation_sessions WHERE id = $1",
        CHECK,
    ),
    "ledger entry changed": (
        ALL,
        "UPDATE credit_ledger SET amount = amount * 2 WHERE session_id = $1",
        GUARD,
    ),
    "ledger entry deleted": (ALL, "DELETE FROM credit_ledger WHERE session_id = $1", GUARD),
    "balance below 0": (
        ("queued",),
        "UPDATE credit_accounts SET balance = balance - 1, total_debited = total_debited + 1"
        " WHERE $1::uuid IS NOT NULL",
        CHECK,
    ),
    "balance without its totals": (
        ALL,
        "UPDATE credit_accounts SET balance = balance + 1 WHERE $1::uuid IS NOT NULL",
        CHECK,
    ),
    "account with a ledger deleted": (
        ALL,
        "DELETE FROM credit_accounts WHERE $1::uuid IS NOT NULL",
        GUARD,
    ),
    **{
        f"{column.name} changed": (
            ALL,
            SET.format(f"{column.name} = {CHANGES[column.type]}"),
            GUARD,
        )
        for column in IMMUTABLE
    },
}


BROKEN: dict[str, tuple[str, str]] = {
    "its status is one of the four": ("queued", SET.format("status = 'cancelled'")),
    "its owner matches its channel": (
        "queued",
        SESSION.format(column="store_id", value="'store-1'"),
    ),
    "its idempotency key has 1 to 255 characters": (
        "queued",
        SESSION.format(column="idempotency_key", value="''"),
    ),
    "its provider job has 1 to 200 characters": ("queued", SET.format("provider_job = ''")),
    "it has a lease only while it is processing": (
        "queued",
        SET.format("lease_expires_at = now()"),
    ),
    "it is not queued once its cancellation was requested": (
        "queued",
        SET.format("cancel_requested_at = now()"),
    ),
    "it has a completed_at exactly if it is final": ("queued", SET.format("completed_at = now()")),
    "it has an error code if it failed": ("failed", SET.format("error_code = NULL")),
    "its picture has both a key and a media type": ("queued", SET.format("object_key = 'k'")),
    "it is refunded only if it failed": ("queued", SET.format("refunded = true")),
    "its images are deleted only if it is final": (
        "queued",
        SET.format("image_deleted_at = now()"),
    ),
    "its picture has the key of this session": (
        "processing",
        SET.format("status = 'completed', media_type = 'image/png', object_key = 'k.png'"),
    ),
    "it has a picture only if it completed": ("queued", SET.format(OWN_PICTURE)),
    "its usage is not negative": (
        "queued",
        SET.format("input_tokens = 1, output_tokens = 1, estimated_cost_usd = -1"),
    ),
    "its provider has 1 to 50 characters": ("queued", SET.format("provider = ''")),
    "its age is verified or not recorded": (
        "queued",
        SESSION.format(column="age_verified", value="false"),
    ),
    "it is erased only if it is final": (
        "queued",
        SESSION.format(column="erased_at", value="now()"),
    ),
}
"""By rule, the state of a session and a statement that would break this rule alone."""

GUARDS = """
    SELECT prosrc, pg_get_function_arguments(oid) FROM pg_proc WHERE proname = 'session_is_sound'
    UNION ALL
    SELECT pg_get_constraintdef(oid), '' FROM pg_constraint WHERE conname = 'session_is_sound'
    UNION ALL
    SELECT pg_get_triggerdef(oid), '' FROM pg_trigger
    WHERE tgname IN ('session_stays_what_was_paid', 'session_is_erased_as_a_whole')
    ORDER BY 1"""


@pytest.mark.parametrize(
    ("attack", "state"),
    [(name, state) for name, (states, *_) in ATTACKS.items() for state in states],
)
async def test_attack_is_refused(console: Console, attack: str, state: str) -> None:
    """A statement that would break an invariant fails as a whole and changes nothing."""
    _, sql, refusal = ATTACKS[attack]
    session_id = await console.in_state(state)
    before = await console.everything()

    with pytest.raises(refusal):
        await console.run(sql, session_id)

    assert await console.everything() == before


async def test_rules_of_a_row_are_one_check(console: Console) -> None:
    """PostgreSQL parses the text of every CHECK anew for each statement that writes sessions."""
    checks = await console.database.fetch(
        "SELECT conname FROM pg_constraint"
        " WHERE conrelid = 'generation_sessions'::regclass AND contype = 'c'"
    )

    assert [check["conname"] for check in checks] == ["session_is_sound"]


@pytest.mark.parametrize("rule", RULES)
async def test_check_names_the_broken_rule(console: Console, rule: str) -> None:
    """And the session, so that an operator finds both."""
    state, sql = BROKEN[rule]
    session_id = await console.in_state(state)

    with pytest.raises(
        CHECK, match=rf"^session [0-9a-f-]{{36}} breaks the rule: {rule}$"
    ) as broken:
        await console.run(sql, session_id)

    assert broken.value.constraint_name == "session_is_sound"


async def test_guards_in_the_database_are_those_of_the_table_of_columns(console: Console) -> None:
    """A change of the columns or rules needs a migration: append the output of
    ``python -m adapters.sessions.guards`` to it."""
    async with console.database.transaction() as connection:
        migrated = await connection.fetch(GUARDS)
        await connection.execute(session_guards())
        rendered = await connection.fetch(GUARDS)
        await connection.execute("ROLLBACK AND CHAIN")

    assert len(migrated) == 4
    assert migrated == rendered


async def test_table_of_columns_has_every_column_of_the_database(console: Console) -> None:
    """With its type; and no other."""
    migrated = await console.database.fetch("""
        SELECT attname, atttypid::regtype::text FROM pg_attribute
        WHERE attrelid = 'generation_sessions'::regclass AND attnum > 0 AND NOT attisdropped""")
    listed = await console.database.fetch(
        "SELECT name, type::regtype::text FROM unnest($1::text[], $2::text[]) AS c (name, type)",
        [column.name for column in COLUMNS],
        [column.type for column in COLUMNS],
    )

    assert sorted(map(tuple, listed)) == sorted(map(tuple, migrated))


async def test_refund_to_another_account_is_refused(console: Console) -> None:
    """The refund goes to the account of the debit, and not more than the debit."""
    await console.credits.grant(USER, 1, note="test")
    session_id = await console.queued()
    await console.external_write(session_id, status="failed")
    await console.run(
        "INSERT INTO credit_accounts (channel, owner_id, balance) VALUES ('b2c', 'thief', 0)"
    )

    for owner_id, amount in (("thief", 1), (USER.id, 2)):
        with pytest.raises(GUARD):
            await console.run(
                f"{LEDGER} VALUES ('b2c', $1, 'refund', $2, $3)", owner_id, amount, session_id
            )

    assert await console.recovery.refund_missing(limit=10) == 1
    assert await console.credits.audit(limit=10) == []


async def test_refund_of_an_unknown_session_is_refused(console: Console) -> None:
    """A session that does not exist was not paid for."""
    await console.credits.grant(USER, 1, note="test")

    with pytest.raises(GUARD):
        await console.run(f"{LEDGER} VALUES ('b2c', $1, 'refund', 1, $2)", USER.id, uuid4())


async def test_reset_refund_mark_makes_no_second_refund(console: Console) -> None:
    """The ledger decides, not the column ``refunded``."""
    session_id = await console.in_state("failed")
    await console.run(SET.format("refunded = false"), session_id)

    await console.recovery.refund_missing(limit=10)

    assert await console.money_of(session_id) == ["debit", "refund"]
    assert await console.credits.audit(limit=10) == []


@pytest.mark.parametrize("later", ["NULL", "now() + interval '1 day'"])
async def test_image_deleted_at_cannot_be_changed(console: Console, later: str) -> None:
    """A deleted picture does not come back."""
    session_id = await console.in_state("completed")
    await console.recovery.mark_images_deleted([session_id])
    before = await console.everything()

    with pytest.raises(GUARD):
        await console.run(SET.format(f"image_deleted_at = {later}"), session_id)

    assert await console.everything() == before


@pytest.mark.parametrize("state", FINAL)
async def test_final_session_may_be_deleted(console: Console, state: str) -> None:
    """The ledger outlives it, and the audit says so: nobody can tell any more what was paid for."""
    session_id = await console.in_state(state)
    money = await console.money_of(session_id)
    await console.created()

    await console.run("DELETE FROM generation_sessions WHERE id = $1", session_id)

    refunds = money.count("refund")
    assert await console.money_of(session_id) == money
    (found,) = await console.credits.audit(limit=10)
    assert found.subject == f"session {session_id}"
    assert found.problem == (
        f"does not exist, but has 1 debit(s) and {refunds} refund(s), net {refunds - 1}"
    )
