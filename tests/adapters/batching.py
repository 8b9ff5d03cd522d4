"""A database that holds statements back, so that concurrent calls share them."""

import asyncio
from collections.abc import Sequence
from typing import Any

import asyncpg

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.ports import Receipt
from tests.contracts.backends import PostgresBackend

DEADLINE_SECONDS = 20.0


def calls_of(arguments: Sequence[object]) -> int:
    """By how many calls a statement is shared: the length of its first argument, an array of values
    without commas."""
    match arguments:
        case [tuple() as array, *_]:
            return len(array)
        case [str() as array, *_] if array.startswith("{"):
            return array.count(",") + 1
    return 1


class Gated(Database):
    """Counts the statements, and holds them back until the gate opens, so that calls which arrive
    in the meantime share one."""

    def __init__(self, url: str, *, command_seconds: float = 10.0) -> None:
        super().__init__(url, limits=DatabaseLimits(command_seconds=command_seconds))
        self.gate = asyncio.Event()
        self.statements: list[tuple[str, int]] = []

    async def fetch(self, sql: str, *arguments: object) -> list[asyncpg.Record]:
        await self.gate.wait()
        self.statements.append((sql, calls_of(arguments)))
        return await super().fetch(sql, *arguments)

    def sizes(self) -> list[int]:
        """The sizes of the batches, in their order."""
        return [size for _, size in self.statements]


async def together(database: Gated, *calls: Any) -> list[Any]:
    """The results of calls that share a statement."""
    database.gate.clear()
    database.statements.clear()
    tasks = [asyncio.ensure_future(call) for call in calls]
    await asyncio.sleep(0)
    database.gate.set()
    async with asyncio.timeout(DEADLINE_SECONDS):
        return await asyncio.gather(*tasks, return_exceptions=True)


def kinds(outcomes: Sequence[Any]) -> list[str]:
    return [
        ("replayed" if outcome.replayed else "created")
        if isinstance(outcome, Receipt)
        else type(outcome).__name__
        for outcome in outcomes
    ]


async def books_balance(backend: PostgresBackend, database: Database) -> None:
    """The ledger, the balances, and the counters of the accounts."""
    assert await backend.credits.audit(limit=10) == []
    wrong = await database.fetch("""
        SELECT account.owner_id, sessions_created, sessions_refunded, unfinished_at_most,
            created, refunded, unfinished
        FROM credit_accounts AS account CROSS JOIN LATERAL (
            SELECT count(*) AS created, count(*) FILTER (WHERE refunded) AS refunded,
                count(*) FILTER (WHERE status IN ('queued', 'processing')) AS unfinished
            FROM generation_sessions AS s
            WHERE (s.channel, s.owner_id) = (account.channel, account.owner_id)) AS truth
        WHERE (sessions_created, sessions_refunded) <> (created, refunded)
            OR unfinished_at_most < unfinished""")
    assert wrong == []


async def waiting_for_a_lock(database: Database) -> None:
    """Return once a connection waits for a lock."""
    sql = "SELECT count(*) FROM pg_stat_activity WHERE wait_event_type = 'Lock'"
    async with asyncio.timeout(DEADLINE_SECONDS):
        while not await database.fetch_value(sql):
            pass
