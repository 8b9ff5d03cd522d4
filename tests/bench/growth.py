"""Growth: each operation must be as fast on a database with years of data as on a new one."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import AsyncExitStack
from dataclasses import dataclass
from datetime import timedelta
from random import Random
from statistics import median
from typing import Any
from uuid import UUID

import asyncpg
from uuid_utils.compat import uuid7

from adapters.queue.payload import encode
from adapters.queue.redis import TASKS_KEY
from config.closing import close
from config.container import Container
from config.loading import load_settings
from domain.credits import Channel, Owner
from domain.ports import Position
from domain.sessions import SessionStatus
from domain.tasks import GenerationTask
from tests.bench.figures import Finding, Sample, at_most
from tests.bench.stage import Stage, migrate_database
from tests.support.examples import FAILURE, a_session

OWNER = Owner(channel=Channel.B2B, id="old-shop")
PAGE = 20
DEEP = 10_000
"""The number of a page far down in a listing."""
WARM_UP_TIMES = 20
LEASE = timedelta(seconds=30)
MAX_ACTIVE = 1_000
"""Active sessions of one owner; the default."""
LIMIT = at_most(1.25)

# Triggers are off during the fill; CHECKs are not. Ids grow with time, as ours do. One session in
# ten failed and was refunded, and old pictures are deleted. The queued sessions belong to other
# owners, a hundred each, and were created in the last minute. The rest of the ledger belongs to
# these owners too, for sessions that were deleted.
FILL = (
    "SET session_replication_role = replica",
    "SET synchronous_commit = off",
    "SET maintenance_work_mem = '256MB'",
    """
    INSERT INTO generation_sessions (id, channel, store_id, request_id, prompt, model_image_url,
        status, attempt, confirmed, refunded, object_key, media_type, error_code, error_message,
        created_at, status_changed_at, started_at, completed_at, processing_time_ms,
        image_deleted_at)
    SELECT lpad(to_hex(number), 32, '0')::uuid, 'b2b', 'old-shop', 'req_' || number, 'Dress them',
        'https://images.example.com/people/' || number || '.jpg',
        CASE WHEN number % 10 = 0 THEN 'failed' ELSE 'completed' END, 1, true, number % 10 = 0,
        CASE WHEN number % 10 > 0 THEN 'stores/old-shop/generated/'
            || lpad(to_hex(number), 32, '0')::uuid || '.jpg' END,
        CASE WHEN number % 10 > 0 THEN 'image/jpeg' END,
        CASE WHEN number % 10 = 0 THEN 'GENERATION_FAILED' END,
        CASE WHEN number % 10 = 0 THEN 'It could not be made' END,
        began, began + interval '20 seconds', began, began + interval '20 seconds', 20000,
        CASE WHEN began < now() - interval '29 days' THEN began + interval '30 days' END
    FROM generate_series(1, $1::int) AS number,
        LATERAL (SELECT now() - interval '2 hours' - ($1 - number) * interval '30 seconds' AS began)
            AS at""",
    """
    INSERT INTO generation_sessions (id, channel, store_id, request_id, prompt, model_image_url,
        confirmed, created_at)
    SELECT lpad(to_hex(1000000000::bigint + number), 32, '0')::uuid, 'b2b',
        'shop-' || number % 1000, 'req_w' || number, 'Dress them',
        'https://images.example.com/people/' || number || '.jpg',
        true, now() - interval '1 minute' + (number::float / $1::int) * interval '1 minute'
    FROM generate_series(1, $1::int) AS number""",
    """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id, created_at)
    SELECT channel, owner_id, 'debit', -1, id, created_at FROM generation_sessions ORDER BY id""",
    """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id, created_at)
    SELECT channel, owner_id, 'refund', 1, id, completed_at FROM generation_sessions
    WHERE refunded ORDER BY id""",
    """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    SELECT 'b2b', 'shop-' || number % 1000, 'debit', -1,
        lpad(to_hex(2000000000::bigint + number), 32, '0')::uuid
    FROM generate_series(1, $1::int) AS number""",
    """
    INSERT INTO credit_accounts (channel, owner_id, balance, total_granted, total_debited,
        total_refunded, sessions_created, sessions_refunded, unfinished_at_most)
    SELECT channel, owner_id, 1000000000 + sum(amount), 1000000000,
        -sum(amount) FILTER (WHERE kind = 'debit'),
        coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0),
        count(*) FILTER (WHERE kind = 'debit'), count(*) FILTER (WHERE kind = 'refund'),
        count(*) FILTER (WHERE kind = 'debit')
    FROM credit_ledger GROUP BY 1, 2""",
    """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, note)
    SELECT channel, owner_id, 'grant', 1000000000, 'filled' FROM credit_accounts""",
    "VACUUM ANALYZE",
    "CHECKPOINT",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """The size of a database: final ``sessions`` of one owner, ``waiting`` (queued) sessions of
    others, and ledger entries in all, of which there are at least those of the sessions."""

    sessions: int
    ledger: int
    waiting: int

    @property
    def other_entries(self) -> int:
        """Ledger entries without a session."""
        return max(0, self.ledger - self.sessions - self.sessions // 10 - self.waiting)


SMALL = Size(sessions=200, ledger=240, waiting=20)


class Subject:
    """A filled database, its queue, and the operations that are measured on them."""

    def __init__(self, container: Container, connection: "asyncpg.Connection[Any]") -> None:
        self.container = container
        self._connection = connection
        self._random = Random(1)
        self._deep_session: Position | None = None
        self._deep_entry = 0
        self._final: list[tuple[UUID, Owner]] = []
        self._waiting: list[tuple[UUID, Owner]] = []
        self._undo: Awaitable[object] | None = None

    async def prepare(self) -> None:
        """Choose the sessions and the positions that the operations use."""
        self._final = await self._random_sessions("completed")
        self._waiting = await self._random_sessions("queued")
        size: int = await self._connection.fetchval("SELECT count(*) FROM generation_sessions")
        offset = min(DEEP * PAGE, size // 2)
        row = await self._connection.fetchrow(
            "SELECT created_at, id FROM generation_sessions WHERE owner_id = $1"
            " ORDER BY created_at DESC, id DESC OFFSET $2 LIMIT 1",
            OWNER.id,
            offset,
        )
        assert row is not None
        self._deep_session = Position(created_at=row["created_at"], id=row["id"])
        self._deep_entry = await self._connection.fetchval(
            "SELECT id FROM credit_ledger WHERE owner_id = $1 ORDER BY id DESC OFFSET $2 LIMIT 1",
            OWNER.id,
            offset,
        )

    async def _random_sessions(self, status: str) -> list[tuple[UUID, Owner]]:
        rows = await self._connection.fetch(
            "SELECT id, owner_id FROM generation_sessions WHERE status = $1"
            " ORDER BY random() LIMIT 500",
            status,
        )
        return [(row["id"], Owner(channel=Channel.B2B, id=row["owner_id"])) for row in rows]

    async def submit(self) -> None:
        session = a_session(owner=OWNER, id=uuid7())
        repo = self.container.sessions()
        await repo.create(session, max_active=MAX_ACTIVE)
        self._undo = repo.fail_queued(session.id, FAILURE)

    async def get(self) -> None:
        await self.container.views().get(*self._random.choice(self._final))

    async def get_waiting(self) -> None:
        await self.container.views().get(*self._random.choice(self._waiting))

    async def history(self) -> None:
        await self._history(None)

    async def history_deep(self) -> None:
        await self._history(self._deep_session)

    async def history_failed(self) -> None:
        await self._history(None, SessionStatus.FAILED)

    async def stats(self) -> None:
        await self.container.sessions().stats(OWNER)

    async def ledger(self) -> None:
        await self.container.accounts().ledger(OWNER, limit=PAGE + 1, before_id=None)

    async def ledger_deep(self) -> None:
        await self.container.accounts().ledger(OWNER, limit=PAGE + 1, before_id=self._deep_entry)

    async def balance(self) -> None:
        await self.container.accounts().account(OWNER)

    async def claim(self) -> None:
        session_id, _ = self._random.choice(self._waiting)
        assert await self.container.sessions().claim(session_id, lease=LEASE) is not None
        self._undo = self._connection.execute(
            "UPDATE generation_sessions SET status = 'queued', lease_expires_at = NULL"
            " WHERE id = $1",
            session_id,
        )

    async def recover(self) -> None:
        report = await self.container.recovery().run_once()
        assert report.total == 0

    async def undo(self) -> None:
        """Undo the operation, so that the size of the queue stays the same."""
        if self._undo is not None:
            await self._undo
            self._undo = None

    async def _history(self, after: Position | None, status: SessionStatus | None = None) -> None:
        found = await self.container.sessions().history(
            OWNER, status=status, limit=PAGE + 1, after=after
        )
        assert found

    async def waiting_tasks(self) -> list[bytes]:
        """The encoded tasks of all queued sessions, oldest first."""
        sessions = await self.container.sessions().history(
            None, status=SessionStatus.QUEUED, limit=10_000_000, after=None
        )
        return [
            encode(GenerationTask.of(session, task_id=uuid7())) for session in reversed(sessions)
        ]


OPERATIONS: dict[str, Callable[[Subject], Awaitable[None]]] = {
    "submit": Subject.submit,
    "get": Subject.get,
    "get, queued": Subject.get_waiting,
    "history": Subject.history,
    f"history, page {DEEP}": Subject.history_deep,
    "history, failed": Subject.history_failed,
    "stats": Subject.stats,
    "ledger": Subject.ledger,
    f"ledger, page {DEEP}": Subject.ledger_deep,
    "balance": Subject.balance,
    "claim": Subject.claim,
    "recover": Subject.recover,
}


async def grow(
    stage: Stage, size: Size, *, rounds: int, times: int
) -> tuple[list[Finding], list[dict[str, Sample]]]:
    """Measure each operation on a small and a large database in turn, ``times`` per round."""
    async with AsyncExitStack() as stack:
        subjects = [
            await _filled(stage, stack, name, number, of)
            for number, (name, of) in enumerate((("small", SMALL), ("large", size)), 1)
        ]
        await _measure(subjects, WARM_UP_TIMES)
        results = [await _measure(subjects, times) for _ in range(rounds)]
    findings = [
        Finding(
            name=name,
            title=f"{name}: large database / small database, p50",
            aim=LIMIT,
            value=median(values),
            values=values,
        )
        for name in OPERATIONS
        for values in [[round_[name]["ratio"] for round_ in results]]
    ]
    return findings, results


async def _filled(
    stage: Stage, stack: AsyncExitStack, name: str, number: int, size: Size
) -> Subject:
    """A database of this size, with its tasks in a Redis database of its own."""
    stage.postgres.create_database(name)
    environ = stage.environ | {
        "DATABASE_URL": stage.postgres.url(name),
        "REDIS_URL": f"{stage.valkey.url}?db={number}",
        "WEARON_DATABASE_SECONDS": "600",
    }
    settings = load_settings(environ)
    await migrate_database(settings)
    connection = await asyncpg.connect(stage.postgres.url(name))
    stack.push_async_callback(connection.close)
    arguments = iter((size.sessions, size.waiting, size.other_entries))
    for statement in FILL:
        await connection.execute(statement, *([next(arguments)] if "$1" in statement else []))
    await connection.execute("RESET session_replication_role")
    await connection.execute("RESET synchronous_commit")
    container = Container(settings=settings)
    stack.push_async_callback(close, container)
    subject = Subject(container, connection)
    await subject.prepare()
    with stage.redis(number) as redis:
        tasks = await subject.waiting_tasks()
        for start in range(0, len(tasks), 1000):
            redis.lpush(TASKS_KEY, *tasks[start : start + 1000])
    return subject


async def _measure(subjects: Sequence[Subject], times: int) -> dict[str, Sample]:
    """Every operation, on the small and on the large database in turn."""
    samples: dict[str, Sample] = {}
    for name, operation in OPERATIONS.items():
        latencies: list[list[float]] = [[], []]
        for _ in range(times):
            for subject, seconds in zip(subjects, latencies, strict=True):
                started_at = time.perf_counter()
                await operation(subject)
                seconds.append(time.perf_counter() - started_at)
                await subject.undo()
        small, large = (median(seconds) * 1e6 for seconds in latencies)
        samples[name] = {"small_us": small, "large_us": large, "ratio": large / small}
    return samples


def run(
    stage: Stage, size: Size, *, rounds: int, times: int
) -> tuple[list[Finding], list[dict[str, Sample]]]:
    return asyncio.run(grow(stage, size, rounds=rounds, times=times))
