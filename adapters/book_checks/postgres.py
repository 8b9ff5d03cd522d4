"""The latest check of the books in PostgreSQL: a table of one row."""

from datetime import timedelta

from adapters.postgres.database import Database
from domain.operator_ports import BookCheck, BookCheckRepoPort

_CLAIM = """
    UPDATE book_checks SET claimed_until = now() + $1::interval
    WHERE coalesce(claimed_until, due_at) <= now()
    RETURNING only_one"""

_RECORD = """
    UPDATE book_checks SET due_at = now() + $1::interval, claimed_until = NULL, checked_at = now(),
        took_ms = $2, discrepancies = $3, first = $4"""

_POSTPONE = "UPDATE book_checks SET due_at = now() + $1::interval, claimed_until = NULL"

_MILLISECOND = timedelta(milliseconds=1)


class PostgresBookCheckRepo(BookCheckRepoPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def claim(self, *, lease: timedelta) -> bool:
        return bool(await self._database.fetch(_CLAIM, lease))

    async def record(self, check: BookCheck, *, again_after: timedelta) -> None:
        took_ms = check.took // _MILLISECOND
        await self._database.fetch(_RECORD, again_after, took_ms, check.discrepancies, check.first)

    async def postpone(self, *, again_after: timedelta) -> None:
        await self._database.fetch(_POSTPONE, again_after)
