"""Our statements keep their promises under every plan and under every lock."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from dataclasses import replace
from datetime import timedelta
from functools import partial
from uuid import uuid4

import asyncpg
import pytest

from adapters.credits.postgres import PostgresCreditRepo
from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Connection, Database
from adapters.postgres.limits import DatabaseLimits
from adapters.sessions.postgres import PostgresSessionRepo
from domain.credits import Channel, Owner
from domain.errors import TooManyActive
from domain.ports import RecoveryRepoPort
from domain.sessions import ErrorCode, Failure
from tests.contracts.backends import PostgresBackend
from tests.support.examples import (
    FAILURE,
    LEASE,
    MANY,
    MODEL_URL,
    USER,
    a_session,
    picture_of,
)

pytestmark = pytest.mark.anyio

DEADLINE_SECONDS = 10.0
NEVER_QUEUED = Failure(code=ErrorCode.QUEUE_UNAVAILABLE, message="not now")

NESTED_LOOPS = ("hashjoin", "mergejoin", "hashagg", "sort", "material")
INDEX_SCANS = ("seqscan", "bitmapscan")
HEAP_SCANS = ("indexscan", "bitmapscan")

MANY_SESSIONS = """
    WITH account AS (
        INSERT INTO credit_accounts (channel, owner_id, balance, total_granted, total_debited,
            sessions_created)
        VALUES ('b2b', 'store-1', 0, 20000, 20000, 20000)
    ), granted AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount)
        VALUES ('b2b', 'store-1', 'grant', 20000)
    ), session AS (
        INSERT INTO generation_sessions (id, channel, store_id, request_id, prompt, model_image_url)
        SELECT gen_random_uuid(), 'b2b', 'store-1', 'req_1', '', '' FROM generate_series(1, 20000)
        RETURNING id
    )
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    SELECT 'b2b', 'store-1', 'debit', -1, id FROM session"""


@asynccontextmanager
async def connected(
    server: EmbeddedPostgres, without: tuple[str, ...] = ()
) -> AsyncIterator[PostgresBackend]:
    """The database, with a planner that avoids some of its methods."""
    url = server.url() + "".join(f"&enable_{method}=off" for method in without)
    database = Database(url, limits=DatabaseLimits())
    try:
        yield PostgresBackend(database)
    finally:
        await database.close()


@pytest.fixture
async def backend(postgres: EmbeddedPostgres) -> AsyncIterator[PostgresBackend]:
    async with connected(postgres) as backend:
        await backend.empty()
        yield backend


async def _fail_dead_leases(repo: RecoveryRepoPort, limit: int) -> int:
    failed = await repo.fail_dead_leases(
        FAILURE, max_attempts=1, external_timeout=LEASE, limit=limit
    )
    return len(failed)


async def _claim_expired_images(repo: RecoveryRepoPort, limit: int) -> int:
    return len(await repo.claim_expired_images(older_than=LEASE, again_after=LEASE, limit=limit))


BATCHES: dict[str, tuple[str, Callable[[RecoveryRepoPort, int], Awaitable[int]]]] = {
    "fail_expired": (
        "queued",
        lambda repo, limit: repo.fail_expired(FAILURE, older_than=LEASE, limit=limit),
    ),
    "fail_dead_leases": (
        "processing",
        _fail_dead_leases,
    ),
    "release_dead_leases": (
        "processing",
        lambda repo, limit: repo.release_dead_leases(
            max_attempts=2, external_timeout=LEASE, limit=limit
        ),
    ),
    "refund_missing": ("failed", lambda repo, limit: repo.refund_missing(limit=limit)),
    "claim_expired_images": ("attempted", _claim_expired_images),
}


@pytest.mark.parametrize("method", BATCHES)
async def test_batch_keeps_its_limit_under_every_plan(
    postgres: EmbeddedPostgres, backend: PostgresBackend, method: str
) -> None:
    """Rows are picked once, even where a join would run the subquery again for each row."""
    status, run = BATCHES[method]
    for _ in range(7):
        if status == "attempted":
            session = await backend.claimed()
            await backend.attempts.fail(session.id, FAILURE, attempt=1)
        else:
            await backend.set_externally(status)
    await backend.advance(2 * LEASE)

    async with connected(postgres, NESTED_LOOPS) as nested:
        counts = [await run(nested.recovery, 3) for _ in range(4)]

    assert counts == [3, 3, 1, 0]


async def test_overdue_batch_keeps_its_limit_under_every_plan(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """Newest first, up to the limit."""
    ids = await backend.queued_in_turn(7)

    async with connected(postgres, NESTED_LOOPS) as nested:
        batches = [
            await nested.recovery.claim_overdue(created_before=None, again_after=LEASE, limit=3)
            for _ in range(3)
        ]

    assert [[session.id for session in batch] for batch in batches] == [
        ids[:3:-1],
        ids[3:0:-1],
        ids[:1],
    ]


async def test_confirm_skips_locked_sessions(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """The others are confirmed in time, and two batches never wait for each other."""
    ids = [await backend.queued() for _ in range(3)]
    database = Database(postgres.url(), limits=DatabaseLimits())

    async with database.transaction() as blocker:
        await blocker.execute("SELECT FROM generation_sessions WHERE id = $1 FOR UPDATE", ids[1])
        counts = await asyncio.gather(*(backend.sessions.confirm(ids) for _ in range(2)))
    await database.close()

    assert sum(counts) == 2
    assert [(await backend.get(id_)).confirmed for id_ in ids] == [True, False, True]


async def test_accounts_of_a_batch_are_locked_in_one_order(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """While a batch waits for the first account it holds no other, so two batches never wait for
    each other."""
    owners = [Owner(channel=Channel.B2C, id=name) for name in "zyxwvutsa"]
    for owner in owners:
        await backend.queued(owner)
    await backend.advance(2 * LEASE)
    database = Database(postgres.url(), limits=DatabaseLimits())

    async with database.transaction() as blocker:
        await blocker.execute("SELECT FROM credit_accounts WHERE owner_id = 'a' FOR UPDATE")
        batch = asyncio.create_task(
            backend.recovery.fail_expired(FAILURE, older_than=LEASE, limit=len(owners))
        )
        await waiting(database, 1)
        free = await database.fetch("SELECT owner_id FROM credit_accounts FOR UPDATE SKIP LOCKED")
    failed = await batch
    await database.close()

    assert {row["owner_id"] for row in free} == {owner.id for owner in owners} - {"a"}
    assert failed == len(owners)


async def test_ledger_is_in_the_order_of_the_balances(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """A new entry never gets a lower number than an entry that is already visible: a statement that
    waits for an account has no entry yet."""
    await backend.credits.grant(USER, 2, note="test")
    refunded, charged = a_session(), a_session()
    await backend.sessions.create(refunded, max_active=MANY)
    database = Database(postgres.url(), limits=DatabaseLimits())

    async with database.transaction() as blocker:
        await blocker.execute("SELECT FROM credit_accounts FOR UPDATE")
        create = asyncio.create_task(backend.sessions.create(charged, max_active=MANY))
        await waiting(database, 1)
        fail = asyncio.create_task(backend.sessions.fail_queued(refunded.id, FAILURE))
        await waiting(database, 2)
    await asyncio.gather(create, fail)
    await database.close()

    entries = [(entry.kind, entry.session_id) for entry in await backend.ledger()]
    assert entries[-2:] == [("debit", charged.id), ("refund", refunded.id)]


# The two steps of a submission with the key "k", and the first step of its undo.
DEBIT = """
    UPDATE credit_accounts
    SET balance = balance - 1, total_debited = total_debited + 1,
        sessions_created = sessions_created + 1, unfinished_at_most = unfinished_at_most + 1"""
SESSION = """
    WITH entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        VALUES ('b2c', $2, 'debit', -1, $1)
    )
    INSERT INTO generation_sessions (id, channel, user_id, request_id, prompt, model_image_url,
        idempotency_key)
    VALUES ($1, 'b2c', $2, 'req_1', $3, $4, 'k')"""
UNDO = """
    UPDATE generation_sessions
    SET status = 'failed', error_code = 'QUEUE_UNAVAILABLE', idempotency_key = NULL WHERE id = $1"""


async def test_copy_does_not_wait_for_the_undo_of_the_first(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """The undo holds the session and waits for the account, which the copy holds. The copy started
    before that session existed, but looks for its key again once it has the account."""
    await backend.credits.grant(USER, 2, note="test")
    copy = a_session(idempotency_key="k")
    first = replace(copy, id=uuid4())
    database = Database(postgres.url(), limits=DatabaseLimits())

    async with database.transaction() as account, database.transaction() as undoing:
        await account.execute(DEBIT)
        create = asyncio.create_task(backend.sessions.create(copy, max_active=MANY))
        await waiting(database, 1)
        await database.fetch(SESSION, first.id, USER.id, first.input.prompt, MODEL_URL)
        await undoing.execute(UNDO, first.id)
        await account.execute("COMMIT AND CHAIN")
        receipt = await create
    await database.close()

    assert (receipt.replayed, receipt.session.id) == (True, first.id)
    assert await backend.recovery.refund_missing(limit=10) == 1
    assert await backend.credits.audit(limit=10) == []


class Undoing(Database):
    """Gives the key of a session back just before a statement runs."""

    def __init__(self, url: str, undo: Callable[[], Awaitable[object]]) -> None:
        super().__init__(url, limits=DatabaseLimits())
        self.undo = undo

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        await self.undo()
        return await super().fetch(sql, *arguments)


async def test_key_given_back_in_the_meantime_is_tried_again(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """The request is then a new one, although the first had the only credit and the only place."""
    first = (await backend.created(idempotency_key="k")).session
    undo = partial(backend.sessions.fail_queued, first.id, NEVER_QUEUED, undo=True)
    database = Undoing(postgres.url(), undo)
    repo = PostgresSessionRepo(database)

    receipt = await repo.create(a_session(idempotency_key="k"), max_active=1)

    await database.close()
    assert not receipt.replayed
    assert await backend.balance() == 0


class Watched(Database):
    """Counts how often each statement scans each of ``relations``."""

    def __init__(self, url: str, *relations: str) -> None:
        super().__init__(url, limits=DatabaseLimits())
        self.relations = relations
        self.scans: list[dict[str, int]] = []

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        async with self.transaction() as connection:
            before = await self._counted(connection)
            rows = await connection.fetch(sql, *arguments)
            after = await self._counted(connection)
        self.scans.append({relation: after[relation] - before[relation] for relation in after})
        return rows

    async def fetch_row(self, sql: str, *arguments: object) -> asyncpg.Record | None:
        return next(iter(await self.fetch(sql, *arguments)), None)

    async def _counted(self, connection: Connection) -> dict[str, int]:
        rows = await connection.fetch(
            "SELECT name, pg_stat_get_xact_numscans(name::regclass) AS scans"
            " FROM unnest($1::text[]) AS name",
            self.relations,
        )
        return {row["name"]: row["scans"] for row in rows}


async def test_submission_scans_only_its_owners_index_entries(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """The key is found by the index of the keys. Unfinished sessions are counted only near the
    limit, by the index of the owner. The same for a replay."""
    await backend.credits.grant(USER, 2, note="test")
    database = Watched(
        postgres.url(), "generation_sessions", "one_session_per_key", "sessions_of_owner"
    )
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(MANY_SESSIONS)
    watched = PostgresBackend(database)

    for _ in range(2):
        await watched.sessions.create(a_session(idempotency_key="k"), max_active=MANY)
    with pytest.raises(TooManyActive):
        await watched.sessions.create(a_session(), max_active=1)
    await database.close()

    created, repeated, answered, refused = database.scans
    for scans in (created, repeated, answered):
        assert scans == {"generation_sessions": 0, "one_session_per_key": 1, "sessions_of_owner": 0}
    assert refused == {"generation_sessions": 0, "one_session_per_key": 0, "sessions_of_owner": 1}


A_FEW_ENTRIES = 2 * 8_192
"""The size of an index with one page of entries and its meta page."""

OLD_SESSIONS = """
    UPDATE generation_sessions
    SET status = 'completed', attempt = 1, completed_at = now(), media_type = 'image/png',
        object_key = 'stores/' || store_id || '/generated/' || id || '.png',
        status_changed_at = now() - interval '40 days', image_deleted_at = now()"""


async def test_expired_pictures_are_found_by_a_small_index(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """Its size follows the number of pictures, not of sessions."""
    database = Watched(postgres.url(), "generation_sessions", "sessions_with_image")
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(MANY_SESSIONS)
        await connection.execute(OLD_SESSIONS)
    old = await backend.claimed()
    await backend.attempts.complete(old.id, attempt=1, picture=picture_of(old.id))
    await backend.advance(timedelta(days=31))
    watched = PostgresBackend(database)
    lifetime = timedelta(days=30)

    found = [
        [session.id for session in batch]
        for batch in [
            await watched.recovery.claim_expired_images(
                older_than=lifetime, again_after=LEASE, limit=50
            )
            for _ in range(2)
        ]
    ]
    index_bytes = await database.fetch_value("SELECT pg_relation_size('sessions_with_image')")
    await database.close()

    assert index_bytes <= A_FEW_ENTRIES
    assert found == [[old.id], []]
    assert database.scans[:2] == [{"generation_sessions": 0, "sessions_with_image": 1}] * 2


async def test_locked_sessions_are_skipped_when_pictures_are_deleted(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """Another process is deleting those, and no process waits."""
    ids = []
    for _ in range(3):
        ids.append((await backend.claimed()).id)
        await backend.attempts.fail(ids[-1], FAILURE, attempt=1)
    await backend.advance(2 * LEASE)
    database = Database(postgres.url(), limits=DatabaseLimits())

    async with database.transaction() as blocker:
        await blocker.execute("SELECT FROM generation_sessions WHERE id = $1 FOR UPDATE", ids[0])
        found = await backend.recovery.claim_expired_images(
            older_than=LEASE, again_after=LEASE, limit=10
        )
        marked = await backend.recovery.mark_images_deleted(ids)
    await database.close()

    assert {session.id for session in found} == set(ids[1:])
    assert marked == 2


async def waiting(database: Database, count: int) -> None:
    """Return once ``count`` connections wait for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while await database.fetch_value(sql) != count:
            pass


@pytest.mark.usefixtures("backend")
async def test_audit_of_many_sessions_is_fast(postgres: EmbeddedPostgres) -> None:
    """It reads each table once, and not the ledger once per session."""
    database = Database(postgres.url(), limits=DatabaseLimits(command_seconds=3))
    async with database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(MANY_SESSIONS)

    found = await PostgresCreditRepo(database).audit(limit=10)

    await database.close()
    assert found == []


class Keeping(Database):
    """Keeps all rows that it was answered."""

    def __init__(self, url: str) -> None:
        super().__init__(url, limits=DatabaseLimits())
        self.rows: list[asyncpg.Record] = []

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        rows = await super().fetch(sql, *arguments)
        self.rows += rows
        return rows


async def test_stats_read_no_session_that_has_ended(
    postgres: EmbeddedPostgres, backend: PostgresBackend
) -> None:
    """The account counts those, however many there are."""
    session = await backend.claimed()
    await backend.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))
    database = Keeping(postgres.url())

    stats = await PostgresBackend(database).reads.stats(USER)

    await database.close()
    assert stats.completed == 1
    assert "completed" not in {row["status"] for row in database.rows}
