"""One row that recovery cannot settle delays no other, on a real database: it is named and passed
over, wherever it sorts."""

from collections.abc import AsyncIterator, Awaitable, Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from uuid import UUID, uuid4

import asyncpg
import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from adapters.postgres.database import Database
from adapters.postgres.limits import BACKGROUND, DatabaseLimits
from adapters.queue.memory import InMemoryTaskQueue
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.storage.memory import InMemoryPictureStorage
from adapters.storage.signing import UrlSigner
from domain.credits import Channel, Owner
from domain.ports import RecoveryRepoPort
from domain.recovery import Recovery, RecoveryPolicy
from domain.sessions import BlockedSession, SessionStatus
from tests.adapters.console import Console
from tests.support.examples import (
    EXTREMES,
    FAILURE,
    LEASE,
    NO_TOKENS,
    NO_WEBHOOKS,
    NO_WORKERS,
    USER,
    picture_of,
    with_created_at,
)

pytestmark = pytest.mark.anyio

ZEROTH = Owner(channel=Channel.B2B, id="00-sorts-before-it")
FIRST = Owner(channel=Channel.B2B, id="0-sorts-first")
EXTERNAL = timedelta(minutes=10)

# No credit can be added to it. Its balance is still its totals.
_FULL = """
    UPDATE credit_accounts
    SET total_granted = 0, total_refunded = 9223372036854775807,
        total_debited = 9223372036854775807
    WHERE channel = 'b2b' AND owner_id = $1"""
_REFUSE = """
    CREATE OR REPLACE FUNCTION refuse_one() RETURNS trigger LANGUAGE plpgsql AS
        $$ BEGIN RAISE EXCEPTION 'no change of %', NEW.store_id; END $$;
    CREATE TRIGGER refuse_one BEFORE UPDATE ON generation_sessions
        FOR EACH ROW WHEN (NEW.store_id = '0-sorts-first') EXECUTE FUNCTION refuse_one()"""

Blocked = dict[UUID, BlockedSession]
Step = Callable[[RecoveryRepoPort, Blocked, int], Awaitable[object]]
Make = Callable[[Console, Owner], Awaitable[UUID]]


async def _queued(console: Console, owner: Owner) -> UUID:
    return await console.queued(owner)


async def _dead(console: Console, owner: Owner) -> UUID:
    return (await console.claimed(owner)).id


async def _spent(console: Console, owner: Owner) -> UUID:
    return (await console.claimed(owner, attempt=2)).id


async def _failed(console: Console, owner: Owner) -> UUID:
    return await console.set_externally("failed", owner)


async def _ended(console: Console, owner: Owner) -> UUID:
    """USER's completed, any other owner's failed."""
    if owner != USER:
        return await _failed_by_us(console, owner)
    session = await console.claimed(owner)
    await console.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))
    return session.id


async def _failed_by_us(console: Console, owner: Owner) -> UUID:
    session = await console.claimed(owner)
    await console.attempts.fail(session.id, FAILURE, attempt=1)
    return session.id


REFUNDS: dict[str, tuple[Make, Step]] = {
    "refund_missing": (
        _failed,
        lambda repo, blocked, limit: repo.refund_missing(limit=limit, blocked=blocked),
    ),
    "fail_expired": (
        _queued,
        lambda repo, blocked, limit: repo.fail_expired(
            FAILURE, older_than=LEASE, limit=limit, blocked=blocked
        ),
    ),
    "fail_dead_leases": (
        _spent,
        lambda repo, blocked, limit: repo.fail_dead_leases(
            FAILURE, max_attempts=2, external_timeout=EXTERNAL, limit=limit, blocked=blocked
        ),
    ),
}
CHANGES: dict[str, tuple[Make, Step]] = {
    **REFUNDS,
    "release_dead_leases": (
        _dead,
        lambda repo, blocked, limit: repo.release_dead_leases(
            max_attempts=2, external_timeout=EXTERNAL, limit=limit, blocked=blocked
        ),
    ),
    "claim_overdue": (
        _queued,
        lambda repo, blocked, limit: repo.claim_overdue(
            created_before=None, again_after=LEASE, limit=limit, blocked=blocked
        ),
    ),
    "claim_expired_images": (
        _ended,
        lambda repo, blocked, limit: repo.claim_expired_images(
            older_than=LEASE, again_after=LEASE, limit=limit, blocked=blocked
        ),
    ),
}


class Counting(Database):
    """Counts the statements."""

    count = 0

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        self.count += 1
        return await super().fetch(sql, *arguments)


@pytest.fixture
async def database(postgres: EmbeddedPostgres) -> AsyncIterator[Counting]:
    database = Counting(postgres.url(), limits=DatabaseLimits())
    yield database
    await database.close()


@pytest.fixture
async def console(database: Counting) -> AsyncIterator[Console]:
    try:
        console = Console(database)
        await console.empty()
        yield console
    finally:
        await database.fetch("DROP TRIGGER IF EXISTS refuse_one ON generation_sessions")


async def refuse_first(console: Console) -> None:
    async with console.database.transaction() as connection:
        await connection.execute(_REFUSE)


def size(moved: object) -> int:
    return moved if isinstance(moved, int) else len(moved)  # type: ignore[arg-type]


async def test_account_without_its_counters_gets_its_refund(console: Console) -> None:
    """It was imported, or an older version debited it, which counts nothing."""
    session_id = await console.set_externally("failed")
    await console.run("UPDATE credit_accounts SET sessions_created = 0, unfinished_at_most = 0")

    assert await console.recovery.refund_missing(limit=10) == 1

    assert await console.money_of(session_id) == ["debit", "refund"]
    (problem,) = await console.credits.audit(limit=10)
    assert (problem.subject, problem.problem) == (
        str(USER),
        "counts 0 session(s), 1 refunded, but its ledger has 1 debit(s) and 1 refund(s)",
    )
    assert (await console.reads.stats(USER)).completed == 0


@pytest.mark.parametrize("step", REFUNDS)
async def test_refund_that_the_account_cannot_take_delays_no_other(
    console: Console, step: str
) -> None:
    """The balance of the first account would be out of range: its sessions stay as they are."""
    make, run = REFUNDS[step]
    full = [await make(console, FIRST) for _ in range(2)]
    sound = await make(console, USER)
    await console.advance(2 * LEASE)
    await console.run(_FULL, FIRST.id)
    before = [await console.get(session_id) for session_id in full]
    blocked: Blocked = {}

    moved = await run(console.recovery, blocked, 10)

    assert size(moved) == 1
    assert await console.money_of(sound) == ["debit", "refund"]
    assert [await console.get(session_id) for session_id in full] == before
    assert list(blocked.values()) == [
        BlockedSession(id=id_, owner=str(FIRST), problem="22003 bigint out of range")
        for id_ in blocked
    ]
    assert set(blocked) == set(full)


@pytest.mark.parametrize("step", CHANGES)
async def test_blocked_sessions_are_passed_over(
    database: Counting, console: Console, step: str
) -> None:
    """Though they fill a whole batch before the others. Then nothing is rejected any more, and a
    run takes one statement again."""
    make, run = CHANGES[step]
    newest_first = step == "claim_overdue"
    sound = await make(console, USER) if newest_first else None
    refused = {await make(console, FIRST) for _ in range(3)}
    sound = sound or await make(console, USER)
    await console.advance(2 * LEASE)
    await refuse_first(console)
    blocked: Blocked = {}

    moved = [size(await run(console.recovery, blocked, 2)) for _ in range(2)]
    database.count = 0
    moved.append(size(await run(console.recovery, blocked, 2)))

    assert (moved, database.count) == ([0, 1, 0], 1)
    assert set(blocked) == refused
    assert sound not in blocked


async def _undue(console: Console, step: str) -> None:
    """Sessions in each state in which some rule of recovery leaves them alone, changed for the last
    time before all others or after them."""
    repo = console.recovery
    attempt = 2 if step == "fail_dead_leases" else 1
    await console.claimed(ZEROTH, attempt=attempt, lease=100 * EXTERNAL)
    await _failed_by_us(console, ZEROTH)
    claimed = await console.claimed(ZEROTH, attempt=attempt)
    await console.attempts.complete(
        claimed.id, attempt=attempt, picture=picture_of(claimed.id, ZEROTH)
    )
    await console.sessions.fail_queued(await console.queued(ZEROTH), FAILURE)
    await console.advance(LEASE)
    deleted = [await _failed_by_us(console, ZEROTH) for _ in range(2)]
    await repo.mark_images_deleted(deleted[:1])
    if step in {"fail_dead_leases", "release_dead_leases"}:
        await console.claimed(ZEROTH, attempt=1 if step == "fail_dead_leases" else 2)
    await console.advance(2 * EXTERNAL)
    await repo.claim_expired_images(older_than=LEASE, again_after=20 * LEASE, limit=100)
    external = await console.set_externally("processing", ZEROTH)
    if attempt == 2:
        await console.external_write(external, status="queued")
        await console.external_write(external, status="processing")


@pytest.mark.parametrize("step", CHANGES)
async def test_sessions_that_are_not_due_take_no_place_in_a_rejected_batch(
    console: Console, step: str
) -> None:
    """It has as many places as there are sessions that are due."""
    make, run = CHANGES[step]
    await _undue(console, step)
    sound = await make(console, USER)
    await make(console, FIRST)
    await console.advance(2 * LEASE)
    if step == "claim_overdue":
        await console.queued(ZEROTH)
    await refuse_first(console)
    blocked: Blocked = {}

    moved = await run(console.recovery, blocked, 2)

    assert size(moved) == 1
    assert len(blocked) == 1
    assert sound not in blocked


async def test_newer_sessions_take_no_place_in_a_rejected_batch(console: Console) -> None:
    """The newest lost task is pushed first: not one that is in work, nor one that may be in the
    queue."""
    sound = await console.queued()
    await console.queued(FIRST)
    await console.advance(LEASE)
    await console.claimed(ZEROTH)
    waiting = await console.get(await console.queued(ZEROTH))
    await console.advance(2 * LEASE)
    waiting = await console.get(waiting.id)
    await refuse_first(console)
    blocked: Blocked = {}

    moved = await console.recovery.claim_overdue(
        created_before=waiting.created_at, again_after=LEASE, limit=2, blocked=blocked
    )

    assert ([session.id for session in moved], len(blocked)) == ([sound], 1)


@pytest.mark.parametrize("step", ["release_dead_leases", "fail_dead_leases"])
async def test_external_attempt_in_a_rejected_batch_has_a_timeout(
    console: Console, step: str
) -> None:
    """It has no lease."""
    make, run = CHANGES[step]
    session_id = await console.queued()
    if step == "fail_dead_leases":
        await console.external_write(session_id, status="processing")
        await console.external_write(session_id, status="queued")
    await console.external_write(session_id, status="processing")
    await make(console, FIRST)
    await console.advance(2 * EXTERNAL)
    await refuse_first(console)
    blocked: Blocked = {}

    moved = await run(console.recovery, blocked, 2)

    assert (size(moved), len(blocked)) == (1, 1)


@pytest.mark.parametrize("pooled", [False, True])
@pytest.mark.parametrize("step", REFUNDS)
async def test_locked_account_delays_no_other(
    postgres: EmbeddedPostgres, console: Console, step: str, *, pooled: bool
) -> None:
    """A transaction that was forgotten holds it. Its sessions wait; they are not unsound."""
    make, run = REFUNDS[step]
    ids = [await make(console, FIRST) for _ in range(2)]
    sound = await make(console, USER)
    await console.advance(2 * LEASE)
    background = Database(
        postgres.url(), limits=replace(BACKGROUND, lock_seconds=0.1), transaction_pooler=pooled
    )
    blocked: Blocked = {}

    async with console.database.transaction() as holder:
        await holder.execute("SELECT FROM credit_accounts WHERE channel = 'b2b' FOR UPDATE")
        moved = await run(PostgresSessionRepo(background), blocked, 10)
    afterwards = await run(PostgresSessionRepo(background), blocked, 10)
    await background.close()

    assert (size(moved), size(afterwards), blocked) == (1, 2, {})
    assert await console.money_of(sound) == ["debit", "refund"]
    assert [await console.money_of(id_, FIRST) for id_ in ids] == [["debit", "refund"]] * 2


async def test_mark_that_is_rejected_delays_no_other(console: Console) -> None:
    """The pictures of both are deleted."""
    refused, sound = await _failed_by_us(console, FIRST), await _failed_by_us(console, USER)
    another = await _failed_by_us(console, USER)
    await refuse_first(console)
    blocked: Blocked = {}

    marked = await console.recovery.mark_images_deleted([refused, sound], blocked=blocked)

    assert (marked, set(blocked)) == (1, {refused})
    assert (await console.get(sound)).image_deleted_at is not None
    assert (await console.get(another)).image_deleted_at is None


@pytest.mark.parametrize("step", ["claim_overdue", "claim_expired_images", "fail_dead_leases"])
async def test_row_that_cannot_be_read_delays_no_other(console: Console, step: str) -> None:
    """Its accessories were written by SQL, before a session was more than a row."""
    make, run = CHANGES[step]
    unreadable, sound = await make(console, FIRST), await make(console, USER)
    await console.advance(2 * LEASE)
    async with console.database.transaction() as connection:
        await connection.execute("SET LOCAL session_replication_role = replica")
        await connection.execute(
            """UPDATE generation_sessions SET accessories = '{"hat": 1}' WHERE id = $1""",
            unreadable,
        )
    blocked: Blocked = {}

    moved = await run(console.recovery, blocked, 10)

    assert isinstance(moved, list)
    assert [session.id for session in moved] == [sound]
    assert [session.problem for session in blocked.values()] == [
        "its row cannot be read: ValidationError"
    ]


async def test_batch_is_rejected_as_a_whole_without_a_place_for_the_blocked(
    console: Console,
) -> None:
    """Nothing of it is changed."""
    session_id = await _failed(console, FIRST)
    await refuse_first(console)

    with pytest.raises(asyncpg.RaiseError):
        await console.recovery.refund_missing(limit=10)

    assert (await console.get(session_id)).status is SessionStatus.FAILED
    assert await console.money_of(session_id, FIRST) == ["debit"]


@pytest.mark.parametrize("created_at", EXTREMES)
async def test_impossible_age_of_a_task_crashes_no_step(console: Console, created_at: str) -> None:
    """PostgreSQL has no such time, or takes it for later than all sessions."""
    lost = (await console.created()).session.id
    await console.sessions.confirm([lost])
    await console.advance(2 * LEASE)
    queue = InMemoryTaskQueue(clock=lambda: datetime.now(UTC))
    queue.messages.append(with_created_at(created_at))
    storage = InMemoryPictureStorage(
        signer=UrlSigner(base_url="", secret=b"", lifetime=LEASE, clock=lambda: datetime.now(UTC))
    )
    recovery = Recovery(
        sessions=console.sessions,
        recovery_repo=console.recovery,
        queue=queue,
        storage=storage,
        uploads=storage,
        tokens=NO_TOKENS,
        webhooks=NO_WEBHOOKS,
        workers=NO_WORKERS,
        policy=RecoveryPolicy(),
        new_id=uuid4,
        clock=lambda: datetime.now(UTC),
    )

    while_it_waits = await recovery.run_once()
    await queue.pop(timeout_seconds=0)
    afterwards = await recovery.run_once()

    assert (while_it_waits.total, afterwards.pushed_again) == (0, 1)
