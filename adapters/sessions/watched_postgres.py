"""Reading watched sessions in PostgreSQL."""

from collections.abc import Mapping, Sequence
from datetime import datetime
from uuid import UUID

from adapters.postgres.arrays import array_of_ids, array_of_numbers
from adapters.postgres.database import Database
from adapters.sessions.batches import readable
from adapters.sessions.rows import SELECTED
from domain.changes import WatchReadPort
from domain.credits import Channel, Owner
from domain.sessions import FINAL_REVISION, GenerationSession

# The revision as ``GenerationSession.revision`` has it.
NEWER = f"""
    SELECT {SELECTED}
    FROM unnest($1::text::uuid[], $2::text::integer[]) AS known (id, revision)
        JOIN generation_sessions AS s ON s.id = known.id
    WHERE CASE WHEN s.status = 'processing' THEN 2 * s.attempt
        WHEN s.status = 'queued' THEN 2 * s.attempt + 1
        ELSE {FINAL_REVISION} END > known.revision"""

RECENT = """
    SELECT s.id, s.channel, s.owner_id
    FROM unnest($1::text[], $2::text[], $3::text[], $4::timestamptz[])
            AS watched (channel, owner_id, shopper_id, since)
        CROSS JOIN (VALUES ('queued', true), ('processing', true), ('completed', false),
            ('failed', false)) AS wanted (status, always)
        CROSS JOIN LATERAL (
            SELECT id, channel, owner_id FROM generation_sessions
            WHERE channel = watched.channel AND owner_id = watched.owner_id
                AND status = wanted.status
                AND created_at > CASE WHEN wanted.always THEN '-infinity' ELSE watched.since END
                AND (watched.shopper_id IS NULL OR shopper_id = watched.shopper_id)
            ORDER BY created_at DESC, id DESC LIMIT $5) AS s"""


class PostgresWatchReads(WatchReadPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def newer(self, known: Sequence[tuple[UUID, int]]) -> list[GenerationSession]:
        ids, revisions = zip(*known, strict=True) if known else ((), ())
        rows = await self._database.fetch(NEWER, array_of_ids(ids), array_of_numbers(revisions))
        return list(readable(rows, {}))

    async def recent(
        self, since: Mapping[tuple[Owner, str | None], datetime], *, limit: int
    ) -> list[tuple[UUID, Owner]]:
        rows = await self._database.fetch(
            RECENT,
            [owner.channel for owner, _ in since],
            [owner.id for owner, _ in since],
            [shopper_id for _, shopper_id in since],
            list(since.values()),
            limit,
        )
        return [
            (row["id"], Owner(channel=Channel(row["channel"]), id=row["owner_id"])) for row in rows
        ]
