"""What operators are shown: how long each question takes on a database with years of data.

A million sessions of 90 days and 200,000 accounts, unless told otherwise. Every answer comes over
the connections and with the bounds of a real process.
"""

import asyncio
import re
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from statistics import median
from typing import Any
from uuid import UUID

import asyncpg

from adapters.operations.postgres import PostgresOperatorReads
from config.closing import close
from config.container import Container
from config.loading import load_settings
from domain.credits import Channel, Owner
from domain.operator_ports import CostKey, OperatorReadPort, SessionFilter
from domain.sessions import SessionStatus
from tests.bench.figures import Finding, Round, Sample, at_most
from tests.bench.stage import Stage, migrate_database

LARGEST = Owner(channel=Channel.B2B, id="shop-0")
"""Has nearly a third of all sessions."""
SMALL = Owner(channel=Channel.B2B, id="shop-1")
PAGE = 50
QUESTION_MS = 50
AIMS_MS = {"snapshot": 100, "lowest": 100, "costs": 500}
"""Of questions that begin like this: a snapshot has seven parts, the lowest balances read every
account, and costs a row per picture."""
DAY = timedelta(days=1)

# Triggers are off during the fill; CHECKs are not. $1 is the number of sessions, in the last
# INSERT that of accounts. Ids are UUIDv7. Ninety sessions are queued, ten processing, one in fifty
# failed.
FILL = (
    "SET session_replication_role = replica",
    "SET synchronous_commit = off",
    "SET maintenance_work_mem = '256MB'",
    """
    INSERT INTO generation_sessions (id, channel, store_id, request_id, prompt, model_image_url,
        status, attempt, confirmed, refunded, object_key, media_type, error_code, error_message,
        created_at, status_changed_at, started_at, completed_at, lease_expires_at,
        processing_time_ms, input_tokens, output_tokens, estimated_cost_usd)
    SELECT id, 'b2b', store_id, 'req_' || left(digits, 12) || lpad(to_hex(number), 12, '0'),
        'Dress them', 'https://images.example.com/people/' || number || '.jpg', status,
        (status <> 'queued')::int, true, status = 'failed',
        CASE status WHEN 'completed' THEN 'stores/' || store_id || '/generated/' || id || '.png'
            END,
        CASE status WHEN 'completed' THEN 'image/png' END,
        CASE status WHEN 'failed' THEN (ARRAY['GENERATION_FAILED', 'IMAGE_UNREACHABLE',
            'MODERATION_BLOCKED', 'INVALID_IMAGE', 'CANCELLED', 'EXPIRED'])[1 + number / 50 % 6]
            END,
        CASE status WHEN 'failed' THEN 'It could not be made' END, at, at,
        CASE WHEN status <> 'queued' THEN at + interval '4 seconds' END,
        CASE WHEN status IN ('completed', 'failed') THEN at + interval '20 seconds' END,
        CASE status WHEN 'processing' THEN now() + interval '1 minute' END,
        20000, 1923, 6240, CASE status WHEN 'completed' THEN 0.215064 END
    FROM (SELECT number, at, digits,
            (digits || lpad(to_hex(number), 15, '0'))::uuid AS id,
            'shop-' || CASE WHEN number % 10 < 3 THEN 0 ELSE number % 1000 END AS store_id,
            CASE WHEN number > $1::int - 90 THEN 'queued' WHEN number > $1 - 100 THEN 'processing'
                WHEN number % 50 = 0 THEN 'failed' ELSE 'completed' END AS status
        FROM generate_series(1, $1) AS number,
            LATERAL (SELECT now() - ($1 - number + 1) * interval '90 days' / $1 AS at) AS time,
            LATERAL (SELECT lpad(to_hex((extract(epoch FROM at) * 1000)::bigint), 12, '0')
                || '7000a' AS digits) AS id) AS made""",
    """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id, created_at)
    SELECT channel, owner_id, 'debit', -1, id, created_at FROM generation_sessions ORDER BY id""",
    """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id, created_at)
    SELECT channel, owner_id, 'refund', 1, id, completed_at FROM generation_sessions
    WHERE refunded ORDER BY id""",
    """
    INSERT INTO attempt_faults (session_id, attempt, at, code, cause)
    SELECT id, attempt, completed_at, error_code, 'provider 500 host-' || left(id::text, 9)
    FROM generation_sessions WHERE status = 'failed'""",
    """
    INSERT INTO credit_accounts (channel, owner_id, balance, total_granted, total_debited,
        total_refunded, sessions_created, sessions_refunded)
    SELECT channel, owner_id, 1000000000 + sum(amount), 1000000000,
        -sum(amount) FILTER (WHERE kind = 'debit'),
        coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0),
        count(*) FILTER (WHERE kind = 'debit'), count(*) FILTER (WHERE kind = 'refund')
    FROM credit_ledger GROUP BY 1, 2""",
    """
    INSERT INTO credit_accounts (channel, owner_id, balance, total_granted, total_debited)
    SELECT 'b2c', gen_random_uuid()::text, number % 7, 7, 7 - number % 7
    FROM generate_series(1, $1::int) AS number""",
    "VACUUM ANALYZE",
    "CHECKPOINT",
)

BUILDS = {
    "failed_by_code": "CREATE INDEX failed_by_code_2 ON generation_sessions (error_code, id DESC)"
    " WHERE status = 'failed'",
    "attempt_faults_by_time": "CREATE INDEX attempt_faults_by_time_2 ON attempt_faults (at)",
}
"""What migration 0018 adds to large tables, measured on the full database."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A failed session in the middle of the database, and the time now."""

    id: UUID
    request_id: str
    now: datetime


Question = Callable[[OperatorReadPort, Known], Awaitable[object]]


def _list(**which: Any) -> Question:
    return lambda reads, _: reads.sessions(SessionFilter(**which), limit=PAGE)


def _costs(by: CostKey, days: int, owner: Owner | None = None) -> Question:
    return lambda reads, known: reads.costs(
        by, since=known.now - days * DAY, until=known.now, owner=owner, limit=PAGE
    )


def _pace(days: int) -> Question:
    span = days * DAY
    return lambda reads, known: reads.pace(since=known.now - span, step=span / 100, steps=100)


async def _anew(reads: OperatorReadPort, _: Known) -> object:
    assert isinstance(reads, PostgresOperatorReads)
    reads._totals = None
    return await reads.snapshot()


QUESTIONS: dict[str, Question] = {
    "snapshot": lambda reads, _: reads.snapshot(),
    "snapshot, with totals": _anew,
    "pace, a day": _pace(days=1),
    "pace, a week": _pace(days=7),
    "lowest balances": lambda reads, _: reads.lowest_balances(limit=20),
    "sessions": _list(),
    **{f"sessions, {status}": _list(statuses=(status,)) for status in SessionStatus},
    "sessions, queued or failed": _list(statuses=(SessionStatus.QUEUED, SessionStatus.FAILED)),
    "sessions of the largest owner": _list(owner=LARGEST),
    "sessions of the largest owner, failed": _list(owner=LARGEST, statuses=(SessionStatus.FAILED,)),
    "sessions of a small owner": _list(owner=SMALL),
    "sessions by code": _list(error_code="EXPIRED"),
    "sessions by code, unknown": _list(error_code="UNKNOWN"),
    "sessions by code and owner": _list(error_code="EXPIRED", owner=LARGEST),
    "sessions by our request id": lambda reads, known: reads.sessions(
        SessionFilter(request_id=known.request_id), limit=PAGE
    ),
    "sessions by a caller's request id": _list(request_id="order-77"),
    "sessions of a day": lambda reads, known: reads.sessions(
        SessionFilter(since=known.now - 61 * DAY, until=known.now - 60 * DAY), limit=PAGE
    ),
    "session file": lambda reads, known: reads.session_file(known.id),
    "costs by day, 7 days": _costs(CostKey.DAY, 7),
    "costs by owner, 7 days": _costs(CostKey.OWNER, 7),
    "costs by provider, 7 days": _costs(CostKey.PROVIDER, 7),
    "costs by day, 30 days": _costs(CostKey.DAY, 30),
    "costs of an owner by day, 30 days": _costs(CostKey.DAY, 30, SMALL),
}


async def ask(
    stage: Stage, *, sessions: int, accounts: int, rounds: int, times: int, pooled: bool
) -> tuple[list[Finding], list[dict[str, Sample]]]:
    """Ask each question ``times`` per round, on a warm database."""
    name = "operations"
    stage.postgres.create_database(name)
    environ = stage.environ | {
        "DATABASE_URL": stage.postgres.url(name),
        "WEARON_DATABASE_TRANSACTION_POOLER": str(pooled).lower(),
    }
    settings = load_settings(environ)
    await migrate_database(load_settings(environ | {"WEARON_DATABASE_SECONDS": "600"}))
    connection = await asyncpg.connect(stage.postgres.url(name))
    container = Container(settings=settings)
    try:
        await _fill(connection, sessions, accounts)
        known = await _known(connection)
        builds = await _build(connection)
        reads = container.operator_reads()
        await _measure(reads, known, times)
        results = [await _measure(reads, known, times) | builds for _ in range(rounds)]
    finally:
        await close(container)
        await connection.close()
    findings = [
        Finding(
            name=question,
            title=f"{question}: p50, ms",
            aim=at_most(AIMS_MS.get(re.split("[ ,]", question)[0], QUESTION_MS)),
            value=median(values),
            values=values,
        )
        for question in QUESTIONS
        for values in [[round_[question]["ms"] for round_ in results]]
    ]
    return findings, results


async def _fill(connection: "asyncpg.Connection[Any]", sessions: int, accounts: int) -> None:
    for statement in FILL:
        numbers = [accounts if "'b2c'" in statement else sessions] if "$1" in statement else []
        await connection.execute(statement, *numbers, timeout=600)
    await connection.execute("RESET session_replication_role")


async def _known(connection: "asyncpg.Connection[Any]") -> Known:
    row = await connection.fetchrow(
        "SELECT id, request_id FROM generation_sessions WHERE status = 'failed'"
        " AND created_at < now() - interval '45 days' ORDER BY created_at DESC LIMIT 1"
    )
    assert row is not None
    return Known(id=row["id"], request_id=row["request_id"], now=datetime.now(UTC))


async def _build(connection: "asyncpg.Connection[Any]") -> dict[str, Sample]:
    built: dict[str, Sample] = {}
    for name, statement in BUILDS.items():
        started_at = time.perf_counter()
        await connection.execute(statement)
        built[f"build of {name}"] = {"ms": (time.perf_counter() - started_at) * 1e3}
        await connection.execute(f"DROP INDEX {name}_2")
    return built


async def _measure(reads: OperatorReadPort, known: Known, times: int) -> dict[str, Sample]:
    samples: dict[str, Sample] = {}
    for name, question in QUESTIONS.items():
        seconds = []
        for _ in range(times):
            started_at = time.perf_counter()
            await question(reads, known)
            seconds.append(time.perf_counter() - started_at)
        samples[name] = {"ms": median(seconds) * 1e3}
    return samples


def run(
    stage: Stage, *, sessions: int, accounts: int, rounds: int, times: int, pooled: bool = False
) -> tuple[list[Finding], Sequence[Round]]:
    return asyncio.run(
        ask(stage, sessions=sessions, accounts=accounts, rounds=rounds, times=times, pooled=pooled)
    )
