"""Batches of recovery: one unsound row costs the others of its batch nothing."""

from collections.abc import Awaitable, Callable, Iterator, Sequence
from uuid import UUID

import asyncpg

from adapters.postgres.database import is_locked
from adapters.sessions.rows import session_of
from domain.errors import DatabaseUnavailable
from domain.sessions import Blocked, BlockedSession, GenerationSession

REJECTED = (asyncpg.DataError, asyncpg.IntegrityConstraintViolationError, asyncpg.PLPGSQLError)
"""Errors that are about the data of a row: a number out of range, a CHECK or a unique index, and
the guards, which raise ``restrict_violation``."""

Rows = list[asyncpg.Record]


async def in_batch(
    run: Callable[[Sequence[UUID], Sequence[UUID] | None], Awaitable[Rows]],
    due: Callable[[Sequence[UUID]], Awaitable[Rows]],
    blocked: Blocked,
) -> Rows:
    """Move a batch by ``run(skip, only)``: not the sessions in ``skip``, and unless ``only`` is
    None, only those. If the database rejects the batch, move each session of ``due(skip)`` by
    itself; those that it rejects again are added to ``blocked``.

    The same if another transaction keeps an account locked: its sessions wait for the next call,
    and the others do not."""
    skip = list(blocked or ())
    try:
        return await run(skip, None)
    except (*REJECTED, DatabaseUnavailable) as error:
        if blocked is None or not (isinstance(error, REJECTED) or is_locked(error)):
            raise
    rows = []
    locked = set()
    for session in await due(skip):
        owner = session["channel"], session["owner_id"]
        if owner in locked:
            continue
        try:
            rows += await run((), [session["id"]])
        except DatabaseUnavailable as error:
            if not is_locked(error):
                raise
            locked.add(owner)
        except REJECTED as error:
            # Without its DETAIL, which shows the values of the row.
            _block(blocked, session, f"{error.sqlstate} {error.args[0]}")
    return rows


def readable(rows: Rows, blocked: Blocked) -> Iterator[GenerationSession]:
    """The sessions of the rows; one that breaks a rule of the domain is added to ``blocked``."""
    for row in rows:
        try:
            yield session_of(row)
        except Exception as error:
            if blocked is None:
                raise
            _block(blocked, row, f"its row cannot be read: {type(error).__name__}")


def _block(blocked: dict[UUID, BlockedSession], row: asyncpg.Record, problem: str) -> None:
    blocked[row["id"]] = BlockedSession(
        id=row["id"], owner=f"{row['channel']}:{row['owner_id']}", problem=problem
    )
