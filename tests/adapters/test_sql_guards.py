"""Each rule of the schema by itself: also one that another rule would cover, with that one off."""

from collections.abc import AsyncIterator
from contextlib import suppress
from uuid import UUID

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Connection, Database
from adapters.postgres.limits import DatabaseLimits
from domain.credits import Channel, Owner
from domain.sessions import SessionStatus
from tests.contracts.backends import PostgresBackend
from tests.support.examples import FAILURE, USER, picture_of

pytestmark = pytest.mark.anyio

CHECK = asyncpg.CheckViolationError
UNIQUE = asyncpg.UniqueViolationError
FOREIGN_KEY = asyncpg.ForeignKeyViolationError
GUARD = asyncpg.RestrictViolationError


class Console(PostgresBackend):
    """The database, and any SQL on it."""

    def __init__(self, database: Database) -> None:
        super().__init__(database)
        self.database = database

    async def run(self, sql: str, *arguments: object) -> None:
        await self.database.fetch(sql, *arguments)

    async def set(self, session_id: UUID, assignments: str) -> asyncpg.Record:
        """The session's row after an UPDATE of it."""
        row = await self.database.fetch_row(
            f"UPDATE generation_sessions SET {assignments} WHERE id = $1 RETURNING *",  # noqa: S608
            session_id,
        )
        assert row is not None
        return row

    async def completed(self) -> UUID:
        session = await self.claimed()
        await self.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))
        return session.id

    async def failed(self) -> UUID:
        """A session of ours that was refunded."""
        session_id = await self.queued()
        await self.sessions.fail_queued(session_id, FAILURE)
        return session_id


@pytest.fixture
async def console(postgres: EmbeddedPostgres) -> AsyncIterator[Console]:
    database = Database(postgres.url(), limits=DatabaseLimits())
    console = Console(database)
    await console.empty()
    yield console
    await database.close()


class Undone(Exception):
    """Ends a transaction that is not to be committed."""


class Rules:
    """The database within a transaction that is undone at its end, so rules may be dropped."""

    def __init__(self, connection: Connection) -> None:
        self._connection = connection

    async def run(self, sql: str, *arguments: object) -> None:
        await self._connection.execute(sql, *arguments)

    async def refuses(self, refusal: type[asyncpg.PostgresError], sql: str, *args: object) -> None:
        with pytest.raises(refusal):
            async with self._connection.transaction():
                await self._connection.execute(sql, *args)


@pytest.fixture
async def rules(console: Console) -> AsyncIterator[Rules]:
    with suppress(Undone):
        async with console.database.transaction() as connection:
            yield Rules(connection)
            raise Undone


ADD_KEY = """
    INSERT INTO api_keys (id, channel, owner_id, key_sha256, label, created_at)
    VALUES (gen_random_uuid(), $1, 'store-1', $2, '', now())"""
HASH = "0123456789abcdef" * 4


@pytest.mark.parametrize(
    ("channel", "key_sha256", "rule"),
    [
        ("b2x", HASH, "api_keys_channel_check"),
        ("b2b", HASH[1:], "api_keys_key_sha256_check"),
        ("b2b", HASH + "0", "api_keys_key_sha256_check"),
        ("b2b", HASH.upper(), "api_keys_key_sha256_check"),
    ],
)
async def test_api_key_has_a_channel_and_a_hash(
    console: Console, channel: str, key_sha256: str, rule: str
) -> None:
    """The SHA-256 in lower case, as the repository looks it up; never the key itself."""
    with pytest.raises(CHECK) as refusal:
        await console.run(ADD_KEY, channel, key_sha256)

    assert refusal.value.constraint_name == rule


async def test_api_key_hash_is_unique(console: Console) -> None:
    """A key authenticates one owner."""
    await console.run(ADD_KEY, "b2b", HASH)

    with pytest.raises(UNIQUE):
        await console.run(ADD_KEY, "b2c", HASH)


@pytest.mark.parametrize(
    ("assignment", "rule"),
    [
        ("sessions_created = -1", "credit_accounts_sessions_created_check"),
        ("unfinished_at_most = -1", "credit_accounts_unfinished_at_most_check"),
    ],
)
async def test_account_counters_make_sense(console: Console, assignment: str, rule: str) -> None:
    """None is negative. The refusal names the rule, also where two forbid the same."""
    await console.credits.grant(USER, 1, note="test")

    with pytest.raises(CHECK) as refusal:
        await console.run(f"UPDATE credit_accounts SET {assignment}")  # noqa: S608

    assert refusal.value.constraint_name == rule


ADD_ENTRY = """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    VALUES ('b2c', $1, $2, $3, $4)"""


async def test_refund_entry_is_positive(console: Console) -> None:
    """A refund that takes credits is refused by its amount, before its session is looked at."""
    session_id = await console.queued()
    await console.external_write(session_id, status="failed")

    with pytest.raises(CHECK):
        await console.run(ADD_ENTRY, USER.id, "refund", -1, session_id)


async def test_account_has_a_known_channel(console: Console) -> None:
    with pytest.raises(CHECK) as refusal:
        await console.run(
            "INSERT INTO credit_accounts (channel, owner_id, balance) VALUES ('b2x', 'a', 0)"
        )

    assert refusal.value.constraint_name == "credit_accounts_channel_check"


async def test_ledger_entry_has_an_account(console: Console) -> None:
    """Or no balance would include it. Also as the last of many, and in the right channel."""
    await console.credits.grant(USER, 1, note="test")
    others = """
        INSERT INTO credit_ledger (channel, owner_id, kind, amount)
        SELECT channel, owner_id, 'grant', 1 FROM credit_accounts
        UNION ALL VALUES ($1::text, $2::text, 'grant', 1)"""

    for channel, owner_id in (("b2c", "unknown"), ("b2b", USER.id)):
        with pytest.raises(FOREIGN_KEY) as refusal:
            await console.run(others, channel, owner_id)
        assert refusal.value.constraint_name == "owner_has_an_account"
        assert refusal.value.table_name == "credit_ledger"


ADD_SESSION = """
    INSERT INTO generation_sessions (id, channel, store_id, user_id, request_id, prompt,
        model_image_url)
    VALUES (gen_random_uuid(), $1, $2, $3, 'req_1', '', '')"""


@pytest.mark.parametrize(
    ("channel", "store_id", "user_id"),
    [("b2b", "a", "b"), ("b2c", "a", "b"), ("b2b", None, "b"), ("b2c", "a", None), ("x", "a", "b")],
)
async def test_session_owner_matches_its_channel(
    console: Console, channel: str, store_id: str | None, user_id: str | None
) -> None:
    """A store for b2b, a user for b2c, never both."""
    with pytest.raises(CHECK):
        await console.run(ADD_SESSION, channel, store_id, user_id)


@pytest.mark.parametrize("channel", ["b2b", "b2c"])
async def test_session_has_an_owner(rules: Rules, channel: str) -> None:
    """Its channel's, even if the column of both kinds of owners accepted NULL."""
    await rules.run("ALTER TABLE generation_sessions ALTER owner_id DROP NOT NULL")

    await rules.refuses(CHECK, ADD_SESSION, channel, None, None)


@pytest.mark.parametrize("assignment", ["confirmed = true", "refunded = true"])
async def test_session_begins_unconfirmed_and_unrefunded(console: Console, assignment: str) -> None:
    """Its submitter confirms it when it is in the queue."""
    column, _, value = assignment.partition(" = ")
    session_id = await console.queued()

    with pytest.raises(GUARD):
        await console.run(
            f"""
            INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt,
                model_image_url, {column})
            SELECT gen_random_uuid(), channel, user_id, request_id, prompt, model_image_url, {value}
            FROM generation_sessions WHERE id = $1""",  # noqa: S608
            session_id,
        )


@pytest.mark.parametrize(
    "assignment",
    [
        "id = gen_random_uuid()",
        "created_at = created_at - interval '1 s'",
        "request_id = 'req_2'",
        "prompt = 'another'",
        "model_image_url = 'https://x.example/'",
        "outfit_image_url = 'https://x.example/'",
        "accessories = '[1]'",
    ],
)
async def test_paid_order_cannot_be_changed(console: Console, assignment: str) -> None:
    """Neither any part of it alone, whatever else is written."""
    session_id = await console.queued()

    with pytest.raises(GUARD):
        await console.set(session_id, assignment)


@pytest.mark.parametrize("assignment", ["channel = 'b2b'", "user_id = 'b'", "store_id = 'b'"])
async def test_payer_cannot_be_changed(console: Console, rules: Rules, assignment: str) -> None:
    """Even if no other rule told whose a session is."""
    session_id = await console.queued()
    await rules.run("ALTER TABLE generation_sessions DROP CONSTRAINT session_is_sound")

    await rules.refuses(
        GUARD,
        f"UPDATE generation_sessions SET {assignment} WHERE id = $1",  # noqa: S608
        session_id,
    )


async def test_writing_the_same_is_no_change(console: Console) -> None:
    """A writer that sends whole rows is not refused."""
    session_id = (await console.created(idempotency_key="k")).session.id
    ended = await console.completed()
    await console.recovery.mark_images_deleted([ended])

    before = await console.set(session_id, "status = status")
    after = await console.set(
        session_id,
        "id = id, channel = channel, user_id = user_id, store_id = store_id, prompt = prompt,"
        " accessories = accessories, idempotency_key = idempotency_key, refunded = refunded",
    )
    deleted_at = (await console.set(ended, "status = status"))["image_deleted_at"]
    still = await console.set(ended, "image_deleted_at = image_deleted_at, refunded = false")

    assert before == after
    assert still["image_deleted_at"] == deleted_at is not None


async def test_key_is_not_exchanged_by_an_undone_submission(console: Console) -> None:
    """Its key may be given back, not replaced."""
    session_id = (await console.created(idempotency_key="k")).session.id

    with pytest.raises(GUARD):
        await console.set(
            session_id,
            "status = 'failed', error_code = 'QUEUE_UNAVAILABLE', idempotency_key = 'another'",
        )


async def test_refund_mark_may_be_repeated(console: Console) -> None:
    """Its refund was looked up when the session was marked, and the ledger may be archived since
    then."""
    session_id = await console.failed()
    async with console.database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute("DELETE FROM credit_ledger WHERE kind = 'refund'")

    assert (await console.set(session_id, "refunded = true"))["refunded"]


async def test_refund_mark_needs_the_refund_of_its_session(console: Console) -> None:
    """Another session's does not count."""
    await console.failed()
    session_id = await console.queued()

    with pytest.raises(GUARD):
        await console.set(session_id, "status = 'failed', refunded = true")


async def test_refund_needs_the_debit_of_its_session(console: Console) -> None:
    """Another session of the payer's was charged the same."""
    await console.queued()
    await console.run(ADD_SESSION, "b2c", None, USER.id)
    uncharged = await console.database.fetch_value(
        "UPDATE generation_sessions SET status = 'failed'"
        " WHERE id NOT IN (SELECT session_id FROM credit_ledger WHERE kind = 'debit') RETURNING id"
    )

    with pytest.raises(GUARD):
        await console.run(ADD_ENTRY, USER.id, "refund", 1, uncharged)


async def test_refund_needs_the_failure_of_its_session(console: Console) -> None:
    """Another session of the payer's failed."""
    failed, waiting = await console.queued(), await console.queued()
    await console.external_write(failed, status="failed")

    with pytest.raises(GUARD):
        await console.run(ADD_ENTRY, USER.id, "refund", 1, waiting)


async def test_refund_goes_to_the_channel_of_the_payer(console: Console) -> None:
    """The account of the same id on the other channel did not pay."""
    session_id = await console.queued()
    await console.external_write(session_id, status="failed")
    await console.credits.grant(Owner(channel=Channel.B2B, id=USER.id), 1, note="test")

    with pytest.raises(GUARD):
        await console.run(ADD_ENTRY.replace("'b2c'", "'b2b'"), USER.id, "refund", 1, session_id)


async def test_only_a_debit_vouches_for_a_refund(console: Console, rules: Rules) -> None:
    """Neither another kind of entry of the same session and amount, if there could be one."""
    await console.credits.grant(USER, 1, note="test")
    await console.run(ADD_SESSION, "b2c", None, USER.id)
    session_id = await console.database.fetch_value(
        "UPDATE generation_sessions SET status = 'failed' RETURNING id"
    )
    await rules.run(
        "ALTER TABLE credit_ledger DROP CONSTRAINT session_matches_kind,"
        " DROP CONSTRAINT amount_matches_kind"
    )
    await rules.run(ADD_ENTRY, USER.id, "grant", -1, session_id)

    await rules.refuses(GUARD, ADD_ENTRY, USER.id, "refund", 1, session_id)


async def test_only_a_debit_makes_a_refund_due(console: Console, rules: Rules) -> None:
    """Neither another kind of entry of the session, if there could be one."""
    await console.credits.grant(USER, 1, note="test")
    await console.run(ADD_SESSION, "b2c", None, USER.id)
    await rules.run("ALTER TABLE credit_ledger DROP CONSTRAINT session_matches_kind")
    await rules.run(
        "INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)"
        " SELECT channel, owner_id, 'grant', 1, id FROM generation_sessions"
    )

    await rules.run("UPDATE generation_sessions SET status = 'failed', refunded = true")


async def test_external_take_has_no_end(console: Console) -> None:
    """Whatever an external consumer writes: a session has its end when it is final."""
    session_id = await console.queued()

    row = await console.set(session_id, "status = 'processing', completed_at = now()")

    assert row["completed_at"] is None
    assert (await console.get(session_id)).status is SessionStatus.PROCESSING


MANY_WITHOUT_A_KEY = """
    INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url)
    SELECT gen_random_uuid(), 'b2c', $1, 'req_1', '', '' FROM generate_series(1, 1000)"""


async def test_index_of_keys_holds_no_session_without_a_key(console: Console) -> None:
    """So it stays small where few requests have one."""
    await console.credits.grant(USER, 1, note="test")

    await console.run(MANY_WITHOUT_A_KEY, USER.id)

    pages = "SELECT pg_relation_size('one_session_per_key') / current_setting('block_size')::int"
    assert await console.database.fetch_value(pages) <= 1
