"""Sessions in PostgreSQL. All SQL on ``generation_sessions`` is here, except for the audit of the
books (``adapters/credits/postgres.py``).

Every write is one statement, so it is one transaction and one round trip. Guards stand in the
WHERE of the write itself. Nothing waits in a circle: what locks several rows locks sessions before
accounts, of sessions only those that are free, and accounts in one order.

A batch is picked by ``ARRAY (SELECT ... LIMIT ... FOR UPDATE)``, which runs once. ``IN (SELECT``
would be a join, which may run it again for each row and so exceed the limit.
"""

from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from decimal import Decimal
from functools import partial
from typing import TypeAlias
from uuid import UUID

import asyncpg
import msgspec

from adapters.coalescing import (
    BLOCKED,
    DEFAULT_LIMITS,
    BatchLimits,
    Blocked,
    Call,
    Coalescer,
    Result,
)
from adapters.postgres.database import Database
from domain.credits import GENERATION_COST, Channel, Owner
from domain.errors import DatabaseUnavailable, InsufficientCredits, NotFound, TooManyActive
from domain.ports import (
    AttemptRepoPort,
    Position,
    Receipt,
    RecoveryRepoPort,
    SessionReadPort,
    SessionRepoPort,
    SessionStats,
)
from domain.sessions import (
    Accessory,
    ErrorCode,
    Failure,
    GenerationSession,
    SessionStatus,
    StoredPicture,
    Usage,
)

CREATE_TRIES = 5
HELD_AT_ONCE = 4
"""So many accounts, and so many sessions for each kind of call, that others hold are waited for at
once, by a connection each."""

STEP = 16
"""So many sessions are claimed or completed at once. Were it all that wait, a busy worker's slots
would go through their work in one step: the store would wait while it is done, and the worker
while that is written."""

_COLUMNS = """
    s.id, s.channel, s.owner_id, s.idempotency_key, s.status, s.request_id, s.prompt,
    s.model_image_url, s.outfit_image_url, s.accessories, s.object_key, s.media_type,
    s.input_tokens, s.output_tokens, s.estimated_cost_usd, s.provider_job, s.generated_image_url,
    s.error_code, s.error_message, s.confirmed, s.attempt, s.lease_expires_at, s.created_at,
    s.started_at, s.completed_at, s.processing_time_ms, s.image_deleted_at"""

# Creates what a batch asks for, as far as each account allows, in the order of the batch. Whoever
# holds an account is the only one to create sessions of its owner, so what is asked while it is
# held stays true: the functions see what was committed until then. Nobody else gets as far as the
# unique index of the keys, where it would wait for whoever undoes the session that has its key.
_CREATE = """
    WITH asked AS (
        SELECT * FROM unnest($1::text[], $2::text[], $3::text[], $4::bigint[], $5::uuid[],
            $6::text[], $7::text[], $8::text[], $9::text[], $10::text[]) WITH ORDINALITY
            AS asked (channel, owner_id, idempotency_key, max_active, id, request_id, prompt,
                model_image_url, outfit_image_url, accessories, number)
    ), account AS MATERIALIZED (
        SELECT account.channel, account.owner_id, balance, unfinished_at_most, asked, least_active,
            max_active
        FROM (SELECT channel, owner_id, count(*) AS asked, min(max_active) AS least_active,
                    max(max_active) AS max_active
                FROM asked GROUP BY 1, 2) AS owner
            JOIN credit_accounts AS account USING (channel, owner_id)
        ORDER BY 1, 2 FOR NO KEY UPDATE OF account {skip}
    ), held AS MATERIALIZED (
        SELECT channel, owner_id, balance, CASE WHEN unfinished_at_most + asked <= least_active
            THEN unfinished_at_most
            ELSE least(unfinished_at_most, count_unfinished(channel, owner_id, max_active))
            END AS unfinished
        FROM account
    ), looked_at AS MATERIALIZED (
        SELECT asked.*, balance, unfinished, CASE
            WHEN held.owner_id IS NULL THEN 'no_account'
            WHEN idempotency_key IS NOT NULL AND (
                row_number() OVER (PARTITION BY channel, owner_id, idempotency_key
                    ORDER BY number) > 1
                OR key_is_taken(held.channel, held.owner_id, idempotency_key)) THEN 'key_is_taken'
            WHEN unfinished >= max_active THEN 'too_many_active' END AS refusal
        FROM asked LEFT JOIN held USING (channel, owner_id)
    ), placed AS MATERIALIZED (
        SELECT *, row_number() OVER (PARTITION BY channel, owner_id, refusal IS NULL
            ORDER BY number) AS place
        FROM looked_at
    ), decided AS MATERIALIZED (
        SELECT *, CASE
            WHEN refusal IS NOT NULL THEN refusal
            WHEN unfinished + place > max_active THEN 'too_many_active'
            WHEN place * $11::bigint > balance THEN 'too_little_balance'
            ELSE 'created' END AS outcome
        FROM placed
    ), created AS (
        SELECT * FROM decided WHERE outcome = 'created' ORDER BY number
    ), debit AS (
        UPDATE credit_accounts AS account
        SET balance = account.balance - made.sessions * $11::bigint,
            total_debited = total_debited + made.sessions * $11::bigint,
            sessions_created = sessions_created + made.sessions,
            unfinished_at_most = made.unfinished + made.sessions
        FROM (SELECT channel, owner_id, unfinished, count(*) AS sessions
                FROM created GROUP BY 1, 2, 3) AS made
        WHERE account.channel = made.channel AND account.owner_id = made.owner_id
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        SELECT channel, owner_id, 'debit', -$11::bigint, id FROM created
    ), session AS (
        INSERT INTO generation_sessions (channel, store_id, user_id, idempotency_key, id,
            request_id, prompt, model_image_url, outfit_image_url, accessories)
        SELECT channel, CASE channel WHEN 'b2b' THEN owner_id END,
            CASE channel WHEN 'b2c' THEN owner_id END, idempotency_key, id, request_id, prompt,
            model_image_url, outfit_image_url, accessories::jsonb
        FROM created
        RETURNING id, created_at
    )
    SELECT outcome, balance - place * $11::bigint AS balance, session.created_at
    FROM decided LEFT JOIN session USING (id) ORDER BY number"""
_CREATE_WHERE_FREE = _CREATE.format(skip="SKIP LOCKED")
_CREATE_IN_TURN = _CREATE.format(skip="")

# The same for a batch of one, without what only several need, which would be a fifth of the work.
# There is no row where the account is not there, or is held by somebody else.
_CREATE_ONE = """
    WITH account AS MATERIALIZED (
        SELECT channel, owner_id, balance, unfinished_at_most FROM credit_accounts
        WHERE channel = $1 AND owner_id = $2 FOR NO KEY UPDATE {skip}
    ), held AS MATERIALIZED (
        SELECT channel, owner_id, balance, CASE WHEN unfinished_at_most < $4::bigint
            THEN unfinished_at_most
            ELSE least(unfinished_at_most, count_unfinished(channel, owner_id, $4::bigint))
            END AS unfinished
        FROM account
    ), decided AS MATERIALIZED (
        SELECT *, CASE
            WHEN $3::text IS NOT NULL AND key_is_taken(channel, owner_id, $3::text)
                THEN 'key_is_taken'
            WHEN unfinished >= $4::bigint THEN 'too_many_active'
            WHEN $11::bigint > balance THEN 'too_little_balance'
            ELSE 'created' END AS outcome
        FROM held
    ), debit AS (
        UPDATE credit_accounts AS account
        SET balance = account.balance - $11::bigint, total_debited = total_debited + $11::bigint,
            sessions_created = sessions_created + 1, unfinished_at_most = unfinished + 1
        FROM decided
        WHERE account.channel = decided.channel AND account.owner_id = decided.owner_id
            AND outcome = 'created'
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        SELECT channel, owner_id, 'debit', -$11::bigint, $5::uuid
        FROM decided WHERE outcome = 'created'
    ), session AS (
        INSERT INTO generation_sessions (channel, store_id, user_id, idempotency_key, id,
            request_id, prompt, model_image_url, outfit_image_url, accessories)
        SELECT channel, CASE channel WHEN 'b2b' THEN owner_id END,
            CASE channel WHEN 'b2c' THEN owner_id END, $3::text, $5::uuid, $6, $7, $8, $9,
            $10::text::jsonb
        FROM decided WHERE outcome = 'created'
        RETURNING created_at
    )
    SELECT outcome, balance - $11::bigint AS balance, created_at
    FROM decided LEFT JOIN session ON true"""
_CREATE_ONE_WHERE_FREE = _CREATE_ONE.format(skip="SKIP LOCKED")
_CREATE_ONE_IN_TURN = _CREATE_ONE.format(skip="")

_WITH_KEY = f"""
    SELECT {_COLUMNS}, balance
    FROM generation_sessions AS s JOIN credit_accounts USING (channel, owner_id)
    WHERE s.channel = $1 AND s.owner_id = $2 AND s.idempotency_key = $3"""

# What is asked for by its id is found by its id, and its status looked at when it is locked: by the
# index of a status it could be found as well, but there a backlog would be read from end to end.
# A row that is locked is being claimed, ended or pushed again, or is another consumer's for long.
_CONFIRM = """
    WITH free AS MATERIALIZED (
        SELECT id, status, confirmed FROM generation_sessions
        WHERE id = ANY ($1::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED
    ), confirmed AS (
        UPDATE generation_sessions SET confirmed = true
        WHERE id = ANY (ARRAY (SELECT id FROM free WHERE status = 'queued' AND NOT confirmed))
        RETURNING id
    )
    SELECT count(*) FROM confirmed"""

# A batch passes over what somebody else holds, who may be a consumer that is not ours and hold it
# for long. So what it did not write is asked for again, alone, and then waited for.
_CLAIM = f"""
    WITH locked AS MATERIALIZED (
        SELECT id, status FROM generation_sessions
        WHERE id = ANY ($1::uuid[]) FOR NO KEY UPDATE {{skip}}
    ), asked AS (
        SELECT DISTINCT ON (id) * FROM unnest($1::uuid[], $2::interval[]) AS asked (id, lease)
    )
    UPDATE generation_sessions AS s
    SET status = 'processing', attempt = attempt + 1, confirmed = true,
        lease_expires_at = now() + asked.lease, started_at = now()
    FROM locked JOIN asked USING (id)
    WHERE s.id = locked.id AND locked.status = 'queued'
    RETURNING {_COLUMNS}"""
_CLAIM_WHERE_FREE = _CLAIM.format(skip="SKIP LOCKED")
_CLAIM_IN_TURN = _CLAIM.format(skip="")


def _of_attempts(columns: str, types: str, changes: str) -> str:
    """The statement that changes, for each attempt in a batch, its session, if that attempt is the
    current one. Its arguments are arrays: ids, attempts, and one for each of ``columns``."""
    return f"""
    WITH asked AS (
        SELECT * FROM unnest($1::uuid[], $2::integer[], {types})
            AS asked (id, attempt, {columns})
    ), locked AS MATERIALIZED (
        SELECT id, status, attempt FROM generation_sessions
        WHERE id = ANY ($1::uuid[]) FOR NO KEY UPDATE {{skip}}
    )
    UPDATE generation_sessions AS s SET {changes}
    FROM locked JOIN asked USING (id, attempt)
    WHERE s.id = locked.id AND locked.status = 'processing'
    RETURNING s.id, s.attempt"""


_RENEW = _of_attempts("lease", "$3::interval[]", "lease_expires_at = now() + asked.lease")
_RENEW_WHERE_FREE = _RENEW.format(skip="SKIP LOCKED")
_RENEW_IN_TURN = _RENEW.format(skip="")

_COMPLETE = _of_attempts(
    "object_key, media_type, input_tokens, output_tokens, cost",
    "$3::text[], $4::text[], $5::integer[], $6::integer[], $7::numeric[]",
    """
        status = 'completed', object_key = asked.object_key, media_type = asked.media_type,
        input_tokens = asked.input_tokens, output_tokens = asked.output_tokens,
        estimated_cost_usd = asked.cost, lease_expires_at = NULL, completed_at = now(),
        processing_time_ms = round(extract(epoch FROM now() - s.started_at) * 1000)""",
)
_COMPLETE_WHERE_FREE = _COMPLETE.format(skip="SKIP LOCKED")
_COMPLETE_IN_TURN = _COMPLETE.format(skip="")

_NOTE_JOB = """
    UPDATE generation_sessions SET provider_job = $3
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
        SET balance = balance + due.amount, total_refunded = total_refunded + due.amount,
            sessions_refunded = sessions_refunded + due.sessions
        FROM (SELECT channel, owner_id, sum(amount)::bigint AS amount, count(*) AS sessions
                FROM refund GROUP BY 1, 2) AS due
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
        OR (lease_expires_at IS NULL
            AND status_changed_at < now() - {external_timeout}::interval))"""

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
        WHERE {_DEAD.format(external_timeout="$3")} AND attempt >= $4
        LIMIT $5 FOR UPDATE SKIP LOCKED))""",
    result="SELECT * FROM ended",
)

_RELEASE_DEAD_LEASES = f"""
    WITH released AS (
        UPDATE generation_sessions
        SET status = 'queued', lease_expires_at = NULL, push_again_at = now()
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE {_DEAD.format(external_timeout="$1")} AND attempt < $2
            LIMIT $3 FOR UPDATE SKIP LOCKED))
        RETURNING id
    )
    SELECT count(*) FROM released"""

# In the order of its index, or the planner expects to meet what it looks for soon in any order: of
# sessions many have failed and few are owed a refund, and it does not know that these are the same.
_REFUND_MISSING = f"""
    WITH ended AS (
        UPDATE generation_sessions SET refunded = true
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE status = 'failed' AND NOT refunded
            ORDER BY channel, owner_id LIMIT $1 FOR UPDATE SKIP LOCKED))
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

_GET = f"SELECT {_COLUMNS} FROM generation_sessions AS s WHERE s.id = $1"
_GET_OWNED = f"{_GET} AND s.channel = $2 AND s.owner_id = $3"

# Counts few: what is unfinished, and what failed and has no refund yet.
_STATS = """
    SELECT status, count(*) FROM generation_sessions
    WHERE channel = $1 AND owner_id = $2 AND status IN ('queued', 'processing') GROUP BY status
    UNION ALL
    SELECT 'owed', count(*) FROM generation_sessions
    WHERE channel = $1 AND owner_id = $2 AND status = 'failed' AND NOT refunded
    UNION ALL
    SELECT unnest(ARRAY['created', 'refunded']), unnest(ARRAY[sessions_created, sessions_refunded])
    FROM credit_accounts WHERE channel = $1 AND owner_id = $2"""

# The newest of each status by the index, and of these the newest.
_HISTORY = f"""
    SELECT s.* FROM unnest($3::text[]) AS wanted (status) CROSS JOIN LATERAL (
        SELECT {_COLUMNS} FROM generation_sessions AS s
        WHERE s.channel = $1 AND s.owner_id = $2 AND s.status = wanted.status
            AND (s.created_at, s.id) < ($4, $5)
        ORDER BY s.created_at DESC, s.id DESC LIMIT $6) AS s
    ORDER BY s.created_at DESC, s.id DESC LIMIT $6"""

# By the primary key, for ids are made in the order of time (UUIDv7).
_HISTORY_OF_ALL = f"""
    SELECT {_COLUMNS} FROM generation_sessions AS s
    WHERE s.status = ANY ($1::text[]) AND s.id < $2 ORDER BY s.id DESC LIMIT $3"""
_END_OF_TIME = datetime.max.replace(tzinfo=UTC)
_LAST_ID = UUID(int=2**128 - 1)

_QUEUED_BEFORE = """
    SELECT count(*) FROM (
        SELECT FROM generation_sessions
        WHERE status = 'queued' AND (created_at, id) < ($1, $2) LIMIT $3) AS older"""

_encode_accessories = msgspec.json.Encoder().encode
_decode_accessories = msgspec.json.Decoder(tuple[Accessory, ...]).decode


_Creation: TypeAlias = tuple[GenerationSession, int]
"""A session to be created, and how many unfinished ones its owner may have."""

_Claim: TypeAlias = tuple[UUID, timedelta]
_Renewal: TypeAlias = tuple[UUID, int, timedelta]
_Completion: TypeAlias = tuple[UUID, int, str, str, int | None, int | None, Decimal | None]


class PostgresSessionRepo(SessionRepoPort, AttemptRepoPort, RecoveryRepoPort, SessionReadPort):
    """The truth about sessions."""

    def __init__(self, database: Database, *, batches: BatchLimits = DEFAULT_LIMITS) -> None:
        self._database = database
        held = replace(batches, in_flight=HELD_AT_ONCE, patience_seconds=0)
        self._create = Coalescer(
            self._run_create_where_free,
            limits=batches,
            key=_payer,
            too_many=_too_many,
            blocked=Coalescer(
                self._run_create_in_turn,
                limits=held,
                key=_payer,
                one_key=True,
                too_many=_too_many,
            ),
        )
        step = replace(batches, calls=min(batches.calls, STEP))
        alone = replace(held, calls=1)
        self._claim = _coalescer(self._run_claim, _CLAIM_WHERE_FREE, step)
        self._claim_in_turn = _coalescer(self._run_claim, _CLAIM_IN_TURN, alone)
        self._renew = _coalescer(self._run_write, _RENEW_WHERE_FREE, batches)
        self._renew_in_turn = _coalescer(self._run_write, _RENEW_IN_TURN, alone)
        self._complete = _coalescer(self._run_write, _COMPLETE_WHERE_FREE, step)
        self._complete_in_turn = _coalescer(self._run_write, _COMPLETE_IN_TURN, alone)

    async def create(self, session: GenerationSession, *, max_active: int) -> Receipt:
        for _ in range(CREATE_TRIES):
            outcome = await self._create((session, max_active))
            match outcome:
                case Receipt(replayed=True, session=earlier):
                    earlier.check_repeated_by(session)
                    return outcome
                case Receipt():
                    return outcome
                case "key_is_taken":
                    earlier_receipt = await self._earlier(session)
                    if earlier_receipt is not None:
                        return earlier_receipt
                case "too_little_balance" | "no_account" if max_active > 0:
                    raise InsufficientCredits(required=GENERATION_COST)
                case _:
                    raise TooManyActive("Too many sessions are unfinished; wait for some to end")
        raise DatabaseUnavailable("The idempotency key changed hands too often")

    async def _run_create_where_free(
        self, creations: Sequence[_Creation]
    ) -> Sequence[Receipt | str | Blocked]:
        """An account that somebody else holds is waited for apart from the others, which would
        wait as well."""
        outcomes = await self._run_create(_CREATE_WHERE_FREE, _CREATE_ONE_WHERE_FREE, creations)
        return [BLOCKED if outcome == "no_account" else outcome for outcome in outcomes]

    async def _run_create_in_turn(self, creations: Sequence[_Creation]) -> Sequence[Receipt | str]:
        return await self._run_create(_CREATE_IN_TURN, _CREATE_ONE_IN_TURN, creations)

    async def _run_create(
        self, sql: str, sql_of_one: str, creations: Sequence[_Creation]
    ) -> Sequence[Receipt | str]:
        arguments = [_arguments(*creation) for creation in creations]
        if len(arguments) > 1:
            rows = await self._database.fetch(sql, *_arrays(arguments), GENERATION_COST)
        else:
            rows = await self._database.fetch(sql_of_one, *arguments[0], GENERATION_COST)
            if not rows:
                return ["no_account"]
        return _outcomes(creations, rows)

    async def _earlier(self, session: GenerationSession) -> Receipt | None:
        """The session that has this one's key; None if none has it any more."""
        owner = session.owner
        row = await self._database.fetch_row(
            _WITH_KEY, owner.channel, owner.id, session.idempotency_key
        )
        if row is None:
            return None
        earlier = _session(row)
        earlier.check_repeated_by(session)
        return Receipt(session=earlier, credits_remaining=row["balance"], replayed=True)

    async def confirm(self, session_ids: Sequence[UUID]) -> int:
        return await self._count(_CONFIRM, session_ids)

    async def claim(self, session_id: UUID, *, lease: timedelta) -> GenerationSession | None:
        claim = (session_id, lease)
        return await self._claim(claim) or await self._claim_in_turn(claim)

    async def _run_claim(
        self, sql: str, claims: Sequence[_Claim]
    ) -> Sequence[GenerationSession | None]:
        rows = await self._database.fetch(sql, *_arrays(claims))
        claimed = {row["id"]: _session(row) for row in rows}
        # Whoever asks twice for the same session gets it once.
        return [claimed.pop(session_id, None) for session_id, _ in claims]

    async def renew(self, session_id: UUID, *, attempt: int, lease: timedelta) -> bool:
        renewal = (session_id, attempt, lease)
        return await self._renew(renewal) or await self._renew_in_turn(renewal)

    async def complete(
        self, session_id: UUID, *, attempt: int, picture: StoredPicture, usage: Usage | None = None
    ) -> bool:
        completion = (
            session_id,
            attempt,
            picture.object_key,
            picture.media_type,
            None if usage is None else usage.input_tokens,
            None if usage is None else usage.output_tokens,
            None if usage is None else usage.estimated_cost_usd,
        )
        return await self._complete(completion) or await self._complete_in_turn(completion)

    async def _run_write(
        self, sql: str, attempts: Sequence[_Renewal | _Completion]
    ) -> Sequence[bool]:
        """For each attempt, whether it was the current one."""
        rows = await self._database.fetch(sql, *_arrays(attempts))
        written = {(row["id"], row["attempt"]) for row in rows}
        return [(session_id, attempt) in written for session_id, attempt, *_ in attempts]

    async def fail_queued(self, session_id: UUID, failure: Failure) -> bool:
        arguments = (failure.code, failure.message, session_id)
        return await self._count(_FAIL_QUEUED, *arguments) == 1

    async def fail(self, session_id: UUID, failure: Failure, *, attempt: int) -> bool:
        arguments = (failure.code, failure.message, session_id, attempt)
        return await self._count(_FAIL_ATTEMPT, *arguments) == 1

    async def release(self, session_id: UUID, *, attempt: int, delay: timedelta) -> bool:
        return await self._written(_RELEASE, session_id, attempt, delay)

    async def record_job(self, session_id: UUID, *, attempt: int, job: str) -> bool:
        return await self._written(_NOTE_JOB, session_id, attempt, job)

    async def claim_overdue(
        self, *, created_before: datetime | None, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        rows = await self._database.fetch(_OVERDUE, created_before, again_after, limit)
        sessions = [_session(row) for row in rows]
        return sorted(sessions, key=lambda session: (session.created_at, session.id), reverse=True)

    async def release_dead_leases(
        self, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> int:
        return await self._count(_RELEASE_DEAD_LEASES, external_timeout, max_attempts, limit)

    async def fail_dead_leases(
        self, failure: Failure, *, max_attempts: int, external_timeout: timedelta, limit: int
    ) -> list[GenerationSession]:
        rows = await self._database.fetch(
            _FAIL_DEAD_LEASES, failure.code, failure.message, external_timeout, max_attempts, limit
        )
        return [_session(row) for row in rows]

    async def fail_expired(self, failure: Failure, *, older_than: timedelta, limit: int) -> int:
        return await self._count(_FAIL_EXPIRED, failure.code, failure.message, older_than, limit)

    async def refund_missing(self, *, limit: int) -> int:
        return await self._count(_REFUND_MISSING, limit)

    async def claim_expired_images(
        self, *, older_than: timedelta, again_after: timedelta, limit: int
    ) -> list[GenerationSession]:
        rows = await self._database.fetch(_PAST_LIFETIME, older_than, again_after, limit)
        return [_session(row) for row in rows]

    async def mark_images_deleted(self, session_ids: Sequence[UUID]) -> int:
        return await self._count(_MARK_IMAGES_DELETED, session_ids)

    async def get(self, session_id: UUID, owner: Owner | None) -> GenerationSession:
        if owner is None:
            row = await self._database.fetch_row(_GET, session_id)
        else:
            row = await self._database.fetch_row(_GET_OWNED, session_id, owner.channel, owner.id)
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
        statuses = list(SessionStatus) if status is None else [status]
        if owner is None:
            after_id = _LAST_ID if after is None else after.id
            rows = await self._database.fetch(_HISTORY_OF_ALL, statuses, after_id, limit)
        else:
            place = (_END_OF_TIME, _LAST_ID) if after is None else (after.created_at, after.id)
            rows = await self._database.fetch(
                _HISTORY, owner.channel, owner.id, statuses, *place, limit
            )
        return [_session(row) for row in rows]

    async def stats(self, owner: Owner) -> SessionStats:
        rows = await self._database.fetch(_STATS, owner.channel, owner.id)
        counts = Counter({row["status"]: row["count"] for row in rows})
        active = counts["queued"] + counts["processing"]
        failed = counts["refunded"] + counts["owed"]
        return SessionStats(
            queued=counts["queued"],
            processing=counts["processing"],
            completed=counts["created"] - active - failed,
            failed=failed,
        )

    async def queued_before(self, session: GenerationSession, *, limit: int) -> int:
        return await self._count(_QUEUED_BEFORE, session.created_at, session.id, limit)

    async def _count(self, sql: str, *arguments: object) -> int:
        count: int = await self._database.fetch_value(sql, *arguments)
        return count

    async def _written(self, sql: str, *arguments: object) -> bool:
        """Whether the guard of a write of one row held."""
        return await self._database.fetch_row(sql, *arguments) is not None


def _coalescer(
    run: Callable[[str, Sequence[Call]], Awaitable[Sequence[Result | Blocked]]],
    sql: str,
    batches: BatchLimits,
) -> Coalescer[Call, Result]:
    return Coalescer(partial(run, sql), limits=batches, too_many=_too_many)


def _too_many() -> DatabaseUnavailable:
    return DatabaseUnavailable("Too many calls wait for the store")


def _payer(creation: _Creation) -> Owner:
    return creation[0].owner


def _arguments(session: GenerationSession, max_active: int) -> tuple[object, ...]:
    """What ``_CREATE`` is told of a session."""
    return (
        session.owner.channel,
        session.owner.id,
        session.idempotency_key,
        max_active,
        session.id,
        session.request_id,
        session.prompt,
        session.model_image_url,
        session.outfit_image_url,
        _encode_accessories(session.accessories).decode(),
    )


def _outcomes(
    creations: Sequence[_Creation], rows: Sequence[asyncpg.Record]
) -> Sequence[Receipt | str]:
    """A receipt for what was created, and for its repetitions in the same batch; for all else the
    word for what was in the way. What was in the way of the first of its key is in theirs."""
    outcomes: list[Receipt | str] = []
    of_key: dict[tuple[Owner, str], Receipt | str] = {}
    for (session, _), row in zip(creations, rows, strict=True):
        outcome: Receipt | str = row["outcome"]
        if outcome == "created":
            stored = session.stored(created_at=row["created_at"])
            outcome = Receipt(session=stored, credits_remaining=row["balance"])
        if session.idempotency_key is not None:
            key = (session.owner, session.idempotency_key)
            if outcome == "key_is_taken":
                outcome = of_key.setdefault(key, outcome)
            elif isinstance(outcome, Receipt):
                of_key[key] = replace(outcome, replayed=True)
            else:
                of_key[key] = outcome
        outcomes.append(outcome)
    return outcomes


def _arrays(rows: Iterable[tuple[object, ...]]) -> Iterator[tuple[object, ...]]:
    """An array for each column."""
    return zip(*rows, strict=True)


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
        picture=_artefact(row),
        usage=_usage(row),
        provider_job=row["provider_job"],
        generated_image_url=row["generated_image_url"],
        failure=_failure(row),
        started_at=row["started_at"],
        completed_at=row["completed_at"],
        processing_time_ms=row["processing_time_ms"],
        image_deleted_at=row["image_deleted_at"],
    )


def _artefact(row: asyncpg.Record) -> StoredPicture | None:
    if row["object_key"] is None:
        return None
    return StoredPicture(object_key=row["object_key"], media_type=row["media_type"])


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
