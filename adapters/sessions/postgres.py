"""Sessions in PostgreSQL. All SQL on ``generation_sessions`` is here.

Every write is one statement, so it is one transaction and one round trip. Guards stand in the
WHERE of the write itself. Nothing waits in a circle: what locks several rows locks sessions before
accounts, and each kind in one order or, where any sessions will do, only those that are free.

A batch is picked by ``ARRAY (SELECT ... LIMIT ... FOR UPDATE)``, which runs once. ``IN (SELECT``
would be a join, which may run it again for each row and so exceed the limit.
"""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from uuid import UUID

import asyncpg
import msgspec

from adapters.postgres.database import Database
from domain.credits import GENERATION_COST, Channel, Owner
from domain.errors import InsufficientCredits, NotFound, StoreUnavailable, TooManyActive
from domain.ports import (
    Position,
    ProviderJobPort,
    Receipt,
    RecoveryRepoPort,
    SessionReadPort,
    SessionRepoPort,
    SessionStats,
)
from domain.sessions import (
    Accessory,
    Artefact,
    ErrorCode,
    Failure,
    GenerationSession,
    SessionStatus,
    Usage,
)

CREATE_TRIES = 5

_COLUMNS = """
    s.id, s.channel, s.owner_id, s.idempotency_key, s.status, s.request_id, s.prompt,
    s.model_image_url, s.outfit_image_url, s.accessories, s.object_key, s.media_type,
    s.input_tokens, s.output_tokens, s.estimated_cost_usd, s.provider_job, s.generated_image_url,
    s.error_code, s.error_message, s.confirmed, s.attempt, s.lease_expires_at, s.created_at,
    s.started_at, s.completed_at, s.processing_time_ms, s.image_deleted_at"""

_ACTIVE = """
    SELECT count(*) FROM (
        SELECT FROM generation_sessions
        WHERE channel = $1 AND owner_id = $2 AND status IN ('queued', 'processing') LIMIT $4
    ) AS active"""

# Whoever waited for the account looks at it, and for the key, once more: of all that send a key at
# once one debits. The others never get as far as the unique index, where they would wait for
# whoever undoes that one's session, which waits for the account.
_CREATE = f"""
    WITH debit AS (
        UPDATE credit_accounts
        SET balance = balance - $5::bigint, total_debited = total_debited + $5::bigint
        WHERE channel = $1 AND owner_id = $2 AND balance >= $5::bigint
            AND ({_ACTIVE}) < $4::bigint AND NOT key_is_taken($1, $2, $3)
        RETURNING balance
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        SELECT $1, $2, 'debit', -$5::bigint, $6::uuid FROM debit
    ), session AS (
        INSERT INTO generation_sessions (channel, store_id, user_id, idempotency_key, id,
            request_id, prompt, model_image_url, outfit_image_url, accessories)
        SELECT $1, CASE $1 WHEN 'b2b' THEN $2 END, CASE $1 WHEN 'b2c' THEN $2 END, $3, $6::uuid,
            $7, $8, $9, $10, $11::jsonb
        FROM debit
        RETURNING created_at
    )
    SELECT balance, created_at FROM debit, session"""

# Why nothing was created, as things are now.
_WHY_NOT = f"""
    SELECT {_COLUMNS}, coalesce(account.balance, 0) AS balance,
        ({_ACTIVE}) >= $4::bigint AS crowded
    FROM (VALUES (1)) AS one
        LEFT JOIN credit_accounts AS account ON account.channel = $1 AND account.owner_id = $2
        LEFT JOIN generation_sessions AS s
            ON s.channel = $1 AND s.owner_id = $2 AND s.idempotency_key = $3"""

# A row that is locked is being claimed, ended or pushed again, or is another consumer's for long.
_CONFIRM = """
    WITH confirmed AS (
        UPDATE generation_sessions SET confirmed = true
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE id = ANY ($1::uuid[]) AND status = 'queued' AND NOT confirmed
            ORDER BY id FOR UPDATE SKIP LOCKED))
        RETURNING id
    )
    SELECT count(*) FROM confirmed"""

_CLAIM = f"""
    UPDATE generation_sessions AS s
    SET status = 'processing', attempt = attempt + 1, confirmed = true,
        lease_expires_at = now() + $2::interval, started_at = now()
    WHERE id = $1 AND status = 'queued'
    RETURNING {_COLUMNS}"""

_RENEW = """
    UPDATE generation_sessions SET lease_expires_at = now() + $3::interval
    WHERE id = $1 AND status = 'processing' AND attempt = $2
    RETURNING true"""

_NOTE_JOB = """
    UPDATE generation_sessions SET provider_job = $3
    WHERE id = $1 AND status = 'processing' AND attempt = $2
    RETURNING true"""

_COMPLETE = """
    UPDATE generation_sessions
    SET status = 'completed', object_key = $3, media_type = $4, input_tokens = $5,
        output_tokens = $6, estimated_cost_usd = $7, lease_expires_at = NULL, completed_at = now(),
        processing_time_ms = round(extract(epoch FROM now() - started_at) * 1000)
    WHERE id = $1 AND status = 'processing' AND attempt = $2
    RETURNING true"""

_RELEASE = """
    UPDATE generation_sessions
    SET status = 'queued', lease_expires_at = NULL, push_again_at = now() + $3::interval
    WHERE id = $1 AND status = 'processing' AND attempt = $2
    RETURNING true"""

# Gives back what the sessions in "ended" were charged, each once, to who was charged. The accounts
# are locked first, so that the entries of each are numbered in the order of its balances.
_REFUND_ENDED = """
    charged AS (
        SELECT debit.channel, debit.owner_id, debit.amount, debit.session_id
        FROM ended JOIN credit_ledger AS debit ON debit.session_id = ended.id
        WHERE debit.kind = 'debit'
    ), payer AS MATERIALIZED (
        SELECT channel, owner_id FROM credit_accounts AS account
            JOIN (SELECT DISTINCT channel, owner_id FROM charged) AS of_charged
                USING (channel, owner_id)
        ORDER BY 1, 2 FOR NO KEY UPDATE OF account
    ), refund AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        SELECT channel, owner_id, 'refund', -amount, session_id
        FROM charged JOIN payer USING (channel, owner_id)
        ON CONFLICT (session_id) WHERE kind = 'refund' DO NOTHING
        RETURNING channel, owner_id, amount
    ), credit AS (
        UPDATE credit_accounts AS account
        SET balance = balance + due.amount, total_refunded = total_refunded + due.amount
        FROM (SELECT channel, owner_id, sum(amount)::bigint AS amount FROM refund GROUP BY 1, 2)
            AS due
        WHERE account.channel = due.channel AND account.owner_id = due.owner_id
    )"""
_COUNT_ENDED = "SELECT count(*) FROM ended"


def _fail_where(guard: str, *, result: str = _COUNT_ENDED) -> str:
    """The statement that fails the sessions for which ``guard`` holds and refunds them. What was
    never queued was answered 503: its idempotency key may be used again."""
    return f"""
    WITH ended AS (
        UPDATE generation_sessions AS s
        SET status = 'failed', error_code = $1, error_message = $2, refunded = true,
            lease_expires_at = NULL, completed_at = now(), idempotency_key =
                CASE WHEN $1 <> '{ErrorCode.QUEUE_UNAVAILABLE}' THEN s.idempotency_key END
        WHERE {guard}
        RETURNING {_COLUMNS}
    ), {_REFUND_ENDED}
    {result}"""


# A session set to 'processing' by a consumer that is not ours has no lease.
_DEAD = """
    status = 'processing' AND (lease_expires_at < now()
        OR (lease_expires_at IS NULL AND status_changed_at < now() - {without_lease}::interval))"""

_FAIL_QUEUED = _fail_where("id = $3 AND status = 'queued'")
_FAIL_ATTEMPT = _fail_where("id = $3 AND status = 'processing' AND attempt = $4")
_FAIL_EXPIRED = _fail_where("""
    id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE status = 'queued' AND created_at < now() - $3::interval
        ORDER BY created_at, id LIMIT $4 FOR UPDATE SKIP LOCKED))""")
_FAIL_DEAD_LEASES = _fail_where(
    f"""
    id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE {_DEAD.format(without_lease="$3")} AND attempt >= $4
        LIMIT $5 FOR UPDATE SKIP LOCKED))""",
    result="SELECT * FROM ended",
)

_RELEASE_DEAD_LEASES = f"""
    WITH released AS (
        UPDATE generation_sessions
        SET status = 'queued', lease_expires_at = NULL, push_again_at = now()
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE {_DEAD.format(without_lease="$1")} AND attempt < $2
            LIMIT $3 FOR UPDATE SKIP LOCKED))
        RETURNING id
    )
    SELECT count(*) FROM released"""

_REFUND_MISSING = f"""
    WITH ended AS (
        UPDATE generation_sessions SET refunded = true
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE status = 'failed' AND NOT refunded
            LIMIT $1 FOR UPDATE SKIP LOCKED))
        RETURNING id
    ), {_REFUND_ENDED}
    {_COUNT_ENDED}"""

_OVERDUE = f"""
    UPDATE generation_sessions AS s SET push_again_at = now() + $2::interval
    WHERE id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE status = 'queued' AND created_at < coalesce($1::timestamptz, 'infinity')
            AND coalesce(push_again_at, created_at + $2::interval) <= now()
        ORDER BY created_at DESC, id DESC LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING {_COLUMNS}"""

# The condition on the pictures is that of the index sessions_with_image.
_PAST_LIFETIME = f"""
    UPDATE generation_sessions AS s SET delete_again_at = now() + $2::interval
    WHERE id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE image_deleted_at IS NULL AND ((status = 'completed' AND object_key IS NOT NULL)
                OR (status = 'failed' AND attempt > 0))
            AND status_changed_at < now() - $1::interval
            AND coalesce(delete_again_at, '-infinity') <= now()
        ORDER BY status_changed_at LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING {_COLUMNS}"""

_MARK_IMAGES_DELETED = """
    WITH marked AS (
        UPDATE generation_sessions SET image_deleted_at = now()
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE id = ANY ($1::uuid[]) AND status IN ('completed', 'failed')
                AND image_deleted_at IS NULL
            ORDER BY id FOR UPDATE SKIP LOCKED))
        RETURNING id
    )
    SELECT count(*) FROM marked"""

_STATS = """
    SELECT status, count(*) FROM generation_sessions
    WHERE channel = $1 AND owner_id = $2 GROUP BY status"""

_QUEUED_BEFORE = """
    SELECT count(*) FROM (
        SELECT FROM generation_sessions
        WHERE status = 'queued' AND (created_at, id) < ($1, $2) LIMIT $3) AS older"""

_encode_accessories = msgspec.json.Encoder().encode
_decode_accessories = msgspec.json.Decoder(tuple[Accessory, ...]).decode


class PostgresSessionRepo(SessionRepoPort, ProviderJobPort, RecoveryRepoPort, SessionReadPort):
    """The truth about sessions."""

    def __init__(self, database: Database) -> None:
        self._database = database

    async def create(self, session: GenerationSession, *, max_active: int) -> Receipt:
        owner = session.owner
        guards = (owner.channel, owner.id, session.idempotency_key, max_active)
        for _ in range(CREATE_TRIES):
            row = await self._database.fetch_row(
                _CREATE,
                *guards,
                GENERATION_COST,
                session.id,
                session.request_id,
                session.prompt,
                session.model_image_url,
                session.outfit_image_url,
                _encode_accessories(session.accessories).decode(),
            )
            if row is not None:
                stored = replace(session, created_at=row["created_at"])
                return Receipt(session=stored, credits_remaining=row["balance"])
            earlier = await self._earlier(session, guards)
            if earlier is not None:
                return earlier
        raise StoreUnavailable("The account or the idempotency key changed hands too often")

    async def _earlier(
        self, session: GenerationSession, guards: tuple[object, ...]
    ) -> Receipt | None:
        """The session that has this one's key. None if nothing is in the way any more; raises if
        something else is."""
        (row,) = await self._database.fetch(_WHY_NOT, *guards)
        if row["id"] is not None:
            earlier = _session(row)
            earlier.check_repeated_by(session)
            return Receipt(session=earlier, credits_remaining=row["balance"], replayed=True)
        if row["crowded"]:
            raise TooManyActive("Too many sessions are unfinished; wait for some to end")
        if row["balance"] < GENERATION_COST:
            raise InsufficientCredits(required=GENERATION_COST)
        return None

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        return await self._count(_CONFIRM, session_ids)

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        row = await self._database.fetch_row(_CLAIM, session_id, lease)
        return None if row is None else _session(row)

    async def renew(self, session_id: UUID, *, attempt: int, lease: timedelta) -> bool:
        return await self._written(_RENEW, session_id, attempt, lease)

    async def complete(
        self, session_id: UUID, *, attempt: int, artefact: Artefact, usage: Usage | None = None
    ) -> bool:
        return await self._written(
            _COMPLETE,
            session_id,
            attempt,
            artefact.object_key,
            artefact.media_type,
            usage and usage.input_tokens,
            usage and usage.output_tokens,
            usage and usage.estimated_cost_usd,
        )

    async def fail(self, session_id: UUID, failure: Failure, *, attempt: int | None) -> bool:
        arguments = (failure.code, failure.message, session_id)
        if attempt is None:
            return await self._count(_FAIL_QUEUED, *arguments) == 1
        return await self._count(_FAIL_ATTEMPT, *arguments, attempt) == 1

    async def release(self, session_id: UUID, *, attempt: int, delay: timedelta) -> bool:
        return await self._written(_RELEASE, session_id, attempt, delay)

    async def note_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        return await self._written(_NOTE_JOB, session_id, attempt, job)

    async def overdue(
        self, *, created_before: datetime | None, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        rows = await self._database.fetch(_OVERDUE, created_before, again_after, limit)
        sessions = [_session(row) for row in rows]
        return sorted(sessions, key=lambda session: (session.created_at, session.id), reverse=True)

    async def release_dead_leases(
        self, *, max_attempts: int, without_lease: timedelta, limit: int
    ) -> int:
        return await self._count(_RELEASE_DEAD_LEASES, without_lease, max_attempts, limit)

    async def fail_dead_leases(
        self, failure: Failure, *, max_attempts: int, without_lease: timedelta, limit: int
    ) -> list[GenerationSession]:
        rows = await self._database.fetch(
            _FAIL_DEAD_LEASES, failure.code, failure.message, without_lease, max_attempts, limit
        )
        return [_session(row) for row in rows]

    async def fail_expired(self, failure: Failure, *, older_than: timedelta, limit: int) -> int:
        return await self._count(_FAIL_EXPIRED, failure.code, failure.message, older_than, limit)

    async def refund_missing(self, *, limit: int) -> int:
        return await self._count(_REFUND_MISSING, limit)

    async def past_lifetime(
        self, *, older_than: timedelta, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        rows = await self._database.fetch(_PAST_LIFETIME, older_than, again_after, limit)
        return [_session(row) for row in rows]

    async def mark_images_deleted(self, session_ids: Sequence[UUID]) -> int:
        return await self._count(_MARK_IMAGES_DELETED, session_ids)

    async def get(self, session_id: UUID, owner: Owner | None) -> GenerationSession:
        sql, arguments = _select(owner, id=session_id)
        row = await self._database.fetch_row(sql, *arguments)
        if row is None:
            raise NotFound("No such generation")
        return _session(row)

    async def history(
        self,
        owner: Owner | None,
        *,
        status: SessionStatus | None,
        limit: int,
        after: Position | None,
    ) -> list[GenerationSession]:
        sql, arguments = _select(owner, status=status)
        if after is not None:
            arguments += (after.created_at, after.id)
            sql += f" AND (created_at, id) < (${len(arguments) - 1}, ${len(arguments)})"
        arguments += (limit,)
        sql += f" ORDER BY created_at DESC, id DESC LIMIT ${len(arguments)}"
        return [_session(row) for row in await self._database.fetch(sql, *arguments)]

    async def stats(self, owner: Owner) -> SessionStats:
        rows = await self._database.fetch(_STATS, owner.channel, owner.id)
        return SessionStats(**{row["status"]: row["count"] for row in rows})

    async def queued_before(self, session: GenerationSession, *, limit: int) -> int:
        return await self._count(_QUEUED_BEFORE, session.created_at, session.id, limit)

    async def _count(self, sql: str, *arguments: object) -> int:
        count: int = await self._database.fetch_value(sql, *arguments)
        return count

    async def _written(self, sql: str, *arguments: object) -> bool:
        """Whether the guard of a write of one row held."""
        return await self._database.fetch_row(sql, *arguments) is not None


def _select(owner: Owner | None, **equal: object) -> tuple[str, tuple[object, ...]]:
    """A SELECT of sessions by columns, each used where it is not None; an owner of None is the
    operator. One text per combination, so that each gets the plan that fits it."""
    if owner is not None:
        equal |= {"channel": owner.channel, "owner_id": owner.id}
    used = {column: value for column, value in equal.items() if value is not None}
    conditions = [f"s.{column} = ${index}" for index, column in enumerate(used, 1)] or ["true"]
    sql = f"SELECT {_COLUMNS} FROM generation_sessions AS s WHERE {' AND '.join(conditions)}"
    return sql, tuple(used.values())


def _session(row: asyncpg.Record) -> GenerationSession:
    return GenerationSession(
        id=row["id"],
        owner=Owner(channel=Channel(row["channel"]), id=row["owner_id"]),
        request_id=row["request_id"],
        prompt=row["prompt"],
        model_image_url=row["model_image_url"],
        outfit_image_url=row["outfit_image_url"],
        accessories=_decode_accessories(row["accessories"]),
        created_at=row["created_at"],
        idempotency_key=row["idempotency_key"],
        status=SessionStatus(row["status"]),
        confirmed=row["confirmed"],
        attempt=row["attempt"],
        lease_expires_at=row["lease_expires_at"],
        artefact=_artefact(row),
        usage=_usage(row),
        provider_job=row["provider_job"],
        generated_image_url=row["generated_image_url"],
        failure=_failure(row),
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        processing_time_ms=row["processing_time_ms"],
        image_deleted_at=row["image_deleted_at"],
    )


def _artefact(row: asyncpg.Record) -> Artefact | None:
    if row["object_key"] is None:
        return None
    return Artefact(object_key=row["object_key"], media_type=row["media_type"])


def _usage(row: asyncpg.Record) -> Usage | None:
    if row["input_tokens"] is None:
        return None
    return Usage(
        input_tokens=row["input_tokens"],
        output_tokens=row["output_tokens"],
        estimated_cost_usd=row["estimated_cost_usd"],
    )


def _failure(row: asyncpg.Record) -> Failure | None:
    if row["error_code"] is None:
        return None
    return Failure(code=row["error_code"], message=row["error_message"] or "")
