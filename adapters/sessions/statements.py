"""All SQL on ``generation_sessions``, except for its creation (``creation.py``), the guards
(``guards.py``), the audit (``adapters/credits/postgres.py``) and what operators are shown
(``lists.py``, ``adapters/operations``).

Every write is one statement, so it is one transaction and one round trip. Guards are part of the
WHERE of the write itself.

No deadlocks: a statement that locks several rows locks sessions before accounts, skips locked
sessions, and locks accounts in one order; client tokens and
shoppers only with their account. Where a statement exists twice, ``..._SKIP_LOCKED`` skips locked
rows and ``..._WAIT`` waits for them. A batch runs the first; a call whose row was locked, perhaps
for long by an external consumer, runs the second in a batch of its own.

A batch is picked by ``ARRAY (SELECT ... LIMIT ... FOR UPDATE)``, which runs once. ``IN (SELECT``
would be a join, which may run the subquery once per row and so exceed the limit.
"""

from collections.abc import Mapping

from adapters.sessions.columns import RESULTS
from adapters.sessions.rows import SELECTED
from domain.sessions import CALLERS_FAULTS, LOST_LEASE, Blame, ErrorCode

FIND_BY_KEY = f"""
    SELECT {SELECTED}, balance
    FROM generation_sessions AS s JOIN credit_accounts USING (channel, owner_id)
    WHERE s.channel = $1 AND s.owner_id = $2 AND s.idempotency_key = $3"""

IS_KNOWN = "SELECT EXISTS (SELECT FROM generation_sessions WHERE id = $1)"

# A session given by its id is locked by its id, and its status is checked afterwards. The planner
# could also use the index of the status, and would then read a whole backlog.
# Locked rows are skipped: they are being claimed, ended or pushed again, or an external consumer
# holds them for long.
CONFIRM = """
    WITH free AS MATERIALIZED (
        SELECT id, status, confirmed FROM generation_sessions
        WHERE id = ANY ($1::text::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED
    ), confirmed AS (
        UPDATE generation_sessions SET confirmed = true
        WHERE id = ANY (ARRAY (SELECT id FROM free WHERE status = 'queued' AND NOT confirmed))
        RETURNING id
    )
    SELECT count(*) FROM confirmed"""


def _claim(locking: str = "") -> str:
    return f"""
    WITH locked AS MATERIALIZED (
        SELECT id, status FROM generation_sessions
        WHERE id = ANY ($1::uuid[]) FOR NO KEY UPDATE {locking}
    ), asked AS (
        SELECT DISTINCT ON (id) * FROM unnest($1::uuid[], $2::interval[]) AS asked (id, lease)
    )
    UPDATE generation_sessions AS s
    SET status = 'processing', attempt = attempt + 1, confirmed = true,
        lease_expires_at = now() + asked.lease, started_at = now()
    FROM locked JOIN asked USING (id)
    WHERE s.id = locked.id AND locked.status = 'queued'
    RETURNING {SELECTED}"""


CLAIM_SKIP_LOCKED = _claim("SKIP LOCKED")
CLAIM_WAIT = _claim()


def _fenced_update(
    locking: str, *, columns: Mapping[str, str], changes: str, returning: str = ""
) -> str:
    """Updates the session of each attempt in a batch, if that attempt is the current one. The
    arguments are arrays: ids, attempts, and one for each of ``columns``, given with their types."""
    asked = {"id": "uuid", "attempt": "integer", **columns}
    arrays = ", ".join(f"${place}::{type_}[]" for place, type_ in enumerate(asked.values(), 1))
    return f"""
    WITH asked AS (
        SELECT * FROM unnest({arrays}) AS asked ({", ".join(asked)})
    ), locked AS MATERIALIZED (
        SELECT id, status, attempt FROM generation_sessions
        WHERE id = ANY ($1::uuid[]) FOR NO KEY UPDATE {locking}
    )
    UPDATE generation_sessions AS s SET {changes}
    FROM locked JOIN asked USING (id, attempt)
    WHERE s.id = locked.id AND locked.status = 'processing'
    RETURNING s.id, s.attempt{returning}"""


def _renew(locking: str = "") -> str:
    return _fenced_update(
        locking,
        columns={"lease": "interval"},
        changes="lease_expires_at = now() + asked.lease",
        returning=", s.cancel_requested_at IS NOT NULL AS is_to_be_cancelled",
    )


RENEW_SKIP_LOCKED = _renew("SKIP LOCKED")
RENEW_WAIT = _renew()


def _complete(locking: str = "") -> str:
    results = ", ".join(f"{column.name} = asked.{column.name}" for column in RESULTS)
    return _fenced_update(
        locking,
        columns={column.name: column.type for column in RESULTS},
        changes=f"""
        status = 'completed', {results}, lease_expires_at = NULL, completed_at = now(),
        processing_time_ms = round(extract(epoch FROM now() - s.started_at) * 1000)""",
    )


COMPLETE_SKIP_LOCKED = _complete("SKIP LOCKED")
COMPLETE_WAIT = _complete()

RECORD_JOB = """
    UPDATE generation_sessions SET provider_job = $3
    WHERE id = $1 AND status = 'processing' AND attempt = $2
    RETURNING true"""


def _record_fault(ended: str, worker: str, code: str, cause: str) -> str:
    """Records why the attempts in ``ended`` failed; nothing if ``cause`` is an argument that is
    NULL."""
    where = f"WHERE {cause} IS NOT NULL" if cause.startswith("$") else ""
    return f"""
    fault AS (
        INSERT INTO attempt_faults (session_id, attempt, worker, code, cause)
        SELECT id, attempt, {worker}, {code}, {cause} FROM {ended} {where}
    )"""


_LOST_LEASE = f"'{LOST_LEASE.cause}'"

POSTPONE = """
    UPDATE generation_sessions SET push_again_at = now() + $2::interval, confirmed = true
    WHERE id = $1 AND status = 'queued'
    RETURNING true"""

_CALLERS_FAULTS = ", ".join(f"'{code}'" for code in sorted(CALLERS_FAULTS))
_THIS_HOUR = "date_trunc('hour', now(), 'UTC')"
_ADDED_REFUNDS = f"""refunds_hour = greatest(refunds_hour, {_THIS_HOUR}),
            refunds_now = due.counted + CASE WHEN refunds_hour >= {_THIS_HOUR} THEN refunds_now
                ELSE 0 END,
            refunds_before = CASE WHEN refunds_hour >= {_THIS_HOUR} THEN refunds_before
                WHEN refunds_hour = {_THIS_HOUR} - interval '1 hour' THEN refunds_now ELSE 0 END"""
"""Adds to the window of refunds, as ``RefundWindow`` does. A statement that waited for the row
since the hour before finds a later hour than its own, and keeps it."""

# Refunds the sessions in "ended": once each, the amount of the debit, to the account of the debit,
# and the picture to the client token. What was undone was no submission. Only failures through the
# caller's own fault count against it.
# The accounts are locked first, so that each account's entries are numbered in the order of its
# balances.
_REFUND_ENDED = f"""
    charged AS (
        SELECT debit.channel, debit.owner_id, debit.amount, debit.session_id,
            ended.client_token_id, ended.shopper_id,
            (ended.error_code IN ({_CALLERS_FAULTS}))::int AS counted,
            (ended.error_code = '{ErrorCode.QUEUE_UNAVAILABLE}')::int AS undone
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
        RETURNING session_id
    ), refunded AS (
        SELECT charged.* FROM refund JOIN charged USING (session_id)
    ), credit AS (
        UPDATE credit_accounts AS account
        SET balance = balance + due.amount, total_refunded = total_refunded + due.amount,
            sessions_refunded = sessions_refunded + due.sessions, {_ADDED_REFUNDS}
        FROM (SELECT channel, owner_id, -sum(amount)::bigint AS amount, count(*) AS sessions,
                    sum(counted) AS counted
                FROM refunded GROUP BY 1, 2) AS due
        WHERE account.channel = due.channel AND account.owner_id = due.owner_id
    ), token_credit AS (
        UPDATE client_tokens AS token
        SET used = used - due.sessions, submissions = submissions - due.undone
        FROM (SELECT client_token_id, count(*) AS sessions, sum(undone) AS undone
                FROM refunded WHERE client_token_id IS NOT NULL GROUP BY 1) AS due
        WHERE token.id = due.client_token_id
    ), shopper_refund AS (
        UPDATE shoppers AS shopper SET {_ADDED_REFUNDS}
        FROM (SELECT owner_id, shopper_id, sum(counted) AS counted
                FROM refunded WHERE shopper_id IS NOT NULL GROUP BY 1, 2) AS due
        WHERE store_id = due.owner_id AND shopper.shopper_id = due.shopper_id
    )"""
_COUNT_ENDED = "SELECT count(*) FROM ended"


def _fail_where(
    guard: str, *, changes: str = "", fault: str = "", result: str = _COUNT_ENDED
) -> str:
    """Fails and refunds the sessions that match ``guard``, and records the ``fault``."""
    return f"""
    WITH ended AS (
        UPDATE generation_sessions AS s
        SET status = 'failed', error_code = $1, error_message = $2, refunded = true,
            lease_expires_at = NULL, completed_at = now(){changes}
        WHERE {guard}
        RETURNING {SELECTED}
    ), {fault}{_REFUND_ENDED}
    {result}"""


# Without a fault, $4 to $7 are NULL. The trigger fails a session whose cancellation was requested
# instead of queueing it; this statement refunds it.
RELEASE = f"""
    WITH released AS (
        UPDATE generation_sessions AS s
        SET status = 'queued', refunded = cancel_requested_at IS NOT NULL, lease_expires_at = NULL,
            push_again_at = now() + $3::interval,
            attempts_excused = attempts_excused
                + CASE WHEN $4::text = '{Blame.SESSION}' THEN 0 ELSE 1 END,
            failing_since = CASE WHEN $4 IS NULL THEN failing_since
                WHEN $4 = '{Blame.PROVIDER}' THEN coalesce(failing_since, now()) END
        WHERE id = $1 AND status = 'processing' AND attempt = $2
        RETURNING id, attempt, status, error_code, client_token_id, shopper_id
    ), ended AS (
        SELECT * FROM released WHERE status = 'failed'
    ), {_record_fault("released", "$5::text", "$6::text", "$7::text")}, {_REFUND_ENDED}
    SELECT status, error_code FROM released"""

# One statement decides by the row as it is once it is locked: a claim or a release may come first.
CANCEL = f"""
    WITH asked AS (
        UPDATE generation_sessions AS s
        SET cancel_requested_at = coalesce(cancel_requested_at, now()),
            status = CASE status WHEN 'queued' THEN 'failed' ELSE status END,
            error_code = CASE status WHEN 'queued' THEN $1 ELSE error_code END,
            error_message = CASE status WHEN 'queued' THEN $2 ELSE error_message END,
            refunded = status = 'queued'
        WHERE id = $3 AND status IN ('queued', 'processing')
        RETURNING {SELECTED}
    ), ended AS (
        SELECT * FROM asked WHERE status = 'failed'
    ), {_REFUND_ENDED}
    SELECT * FROM asked"""


def _expired(older_than: str) -> str:
    return f"status = 'queued' AND created_at < now() - {older_than}::interval"


def _lease_expired(external_timeout: str) -> str:
    """A session that an external consumer set to 'processing' has no lease."""
    return f"""
    status = 'processing' AND (lease_expires_at < now()
        OR (lease_expires_at IS NULL
            AND status_changed_at < now() - {external_timeout}::interval))"""


def _no_attempt_left(max_attempts: str) -> str:
    return f"(attempt - attempts_excused >= {max_attempts} OR cancel_requested_at IS NOT NULL)"


def _among(skip: str, only: str) -> str:
    """Narrows a batch of recovery: not the sessions in ``skip``, and if ``only`` is not NULL, only
    those."""
    return f"""
            AND id <> ALL ({skip}::uuid[]) AND ({only}::uuid[] IS NULL OR id = ANY ({only}))"""


def _due(guard: str, *, order: str, skip: str, limit: str) -> str:
    """The sessions of a batch of recovery, to go through one by one."""
    return f"""
    SELECT id, channel, owner_id FROM generation_sessions
    WHERE {guard} AND id <> ALL ({skip}::uuid[]) {order} LIMIT {limit}"""


# $4 undoes the creation: of a session that was never confirmed, and with its idempotency key.
FAIL_QUEUED = _fail_where(
    "id = $3 AND status = 'queued' AND NOT (confirmed AND $4)",
    changes=", idempotency_key = CASE WHEN NOT $4 THEN idempotency_key END",
)
# The same for many, without waiting for a claim or an external consumer that holds some of them.
UNDO_SKIP_LOCKED = _fail_where(
    """
    id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE id = ANY ($3::uuid[]) ORDER BY id FOR UPDATE SKIP LOCKED))
    AND status = 'queued' AND NOT confirmed""",
    changes=", idempotency_key = NULL",
    result="SELECT id FROM ended",
)
FAIL_ATTEMPT = _fail_where(
    "id = $3 AND status = 'processing' AND attempt = $4",
    fault=f"{_record_fault('ended', '$5::text', '$6::text', '$7::text')}, ",
    result="SELECT error_code FROM ended",
)
FAIL_EXPIRED = _fail_where(f"""
    id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE {_expired("$3")} {_among("$5", "$6")}
        ORDER BY created_at, id LIMIT $4 FOR UPDATE SKIP LOCKED))""")
FAIL_EXPIRED_DUE = _due(_expired("$1"), order="ORDER BY created_at, id", skip="$2", limit="$3")
FAIL_DEAD_LEASES = _fail_where(
    f"""
    id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE {_lease_expired("$3")} AND {_no_attempt_left("$4")} {_among("$6", "$7")}
        LIMIT $5 FOR UPDATE SKIP LOCKED))""",
    fault=f"{_record_fault('ended', 'NULL', '$1', _LOST_LEASE)}, ",
    result="SELECT * FROM ended",
)
FAIL_DEAD_LEASES_DUE = _due(
    f"{_lease_expired('$1')} AND {_no_attempt_left('$2')}",
    order="ORDER BY status_changed_at",
    skip="$3",
    limit="$4",
)

RELEASE_DEAD_LEASES = f"""
    WITH released AS (
        UPDATE generation_sessions
        SET status = 'queued', lease_expires_at = NULL, push_again_at = now(),
            failing_since = NULL
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE {_lease_expired("$1")} AND NOT {_no_attempt_left("$2")} {_among("$4", "$5")}
            LIMIT $3 FOR UPDATE SKIP LOCKED))
        RETURNING id, attempt
    ), {_record_fault("released", "NULL", f"'{LOST_LEASE.code}'", _LOST_LEASE)}
    SELECT count(*) FROM released"""
RELEASE_DEAD_LEASES_DUE = _due(
    f"{_lease_expired('$1')} AND NOT {_no_attempt_left('$2')}",
    order="ORDER BY status_changed_at",
    skip="$3",
    limit="$4",
)

# ORDER BY the index's columns forces that index. Without it the planner expects matches early in
# any order: it does not know that most failed sessions have their refund.
REFUND_MISSING = f"""
    WITH ended AS (
        UPDATE generation_sessions SET refunded = true
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE status = 'failed' AND NOT refunded {_among("$2", "$3")}
            ORDER BY channel, owner_id LIMIT $1 FOR UPDATE SKIP LOCKED))
        RETURNING id, error_code, client_token_id, shopper_id
    ), {_REFUND_ENDED}
    {_COUNT_ENDED}"""
REFUND_MISSING_DUE = _due(
    "status = 'failed' AND NOT refunded",
    order="ORDER BY channel, owner_id",
    skip="$1",
    limit="$2",
)

_OVERDUE = """
            status = 'queued' AND created_at < coalesce($1::timestamptz, 'infinity')
            AND coalesce(push_again_at, created_at + $2::interval) <= now()"""
CLAIM_OVERDUE = f"""
    UPDATE generation_sessions AS s SET push_again_at = now() + $2::interval
    WHERE id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE {_OVERDUE} {_among("$4", "$5")}
        ORDER BY created_at DESC, id DESC LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING {SELECTED}"""
CLAIM_OVERDUE_DUE = _due(_OVERDUE, order="ORDER BY created_at DESC, id DESC", skip="$3", limit="$4")

# The condition on the pictures is that of the index sessions_with_image.
_WITH_EXPIRED_IMAGE = """
            image_deleted_at IS NULL AND (status = 'completed'
                OR (status = 'failed' AND attempt > 0))
            AND status_changed_at < now() - $1::interval
            AND coalesce(delete_again_at, '-infinity') <= now()"""
CLAIM_EXPIRED_IMAGES = f"""
    UPDATE generation_sessions AS s SET delete_again_at = now() + $2::interval
    WHERE id = ANY (ARRAY (
        SELECT id FROM generation_sessions
        WHERE {_WITH_EXPIRED_IMAGE} {_among("$4", "$5")}
        ORDER BY status_changed_at LIMIT $3 FOR UPDATE SKIP LOCKED))
    RETURNING {SELECTED}"""
CLAIM_EXPIRED_IMAGES_DUE = _due(
    _WITH_EXPIRED_IMAGE, order="ORDER BY status_changed_at", skip="$2", limit="$3"
)

MARK_IMAGES_DELETED_DUE = """
    SELECT id, channel, owner_id FROM generation_sessions WHERE id = ANY ($1::uuid[])"""
MARK_IMAGES_DELETED = """
    WITH marked AS (
        UPDATE generation_sessions SET image_deleted_at = now()
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE id = ANY ($1::uuid[]) AND status IN ('completed', 'failed')
                AND image_deleted_at IS NULL
            ORDER BY id FOR UPDATE SKIP LOCKED))
        RETURNING id
    ), forgotten AS (
        DELETE FROM attempt_faults WHERE session_id IN (SELECT id FROM marked)
    )
    SELECT count(*) FROM marked"""

GET = f"SELECT {SELECTED} FROM generation_sessions AS s WHERE s.id = $1"
GET_OWNED = f"{GET} AND s.channel = $2 AND s.owner_id = $3"
GET_OF_SHOPPER = f"{GET_OWNED} AND s.shopper_id = $4"

# Counts only few rows: unfinished sessions, and failed ones that still lack their refund.
STATS = """
    SELECT status, count(*) FROM generation_sessions
    WHERE channel = $1 AND owner_id = $2 AND status IN ('queued', 'processing') GROUP BY status
    UNION ALL
    SELECT 'owed', count(*) FROM generation_sessions
    WHERE channel = $1 AND owner_id = $2 AND status = 'failed' AND NOT refunded
    UNION ALL
    SELECT unnest(ARRAY['created', 'refunded']), unnest(ARRAY[sessions_created, sessions_refunded])
    FROM credit_accounts WHERE channel = $1 AND owner_id = $2"""

STATS_OF_SHOPPER = """
    SELECT status, count(*) FROM (
        SELECT status FROM generation_sessions
        WHERE channel = $1 AND owner_id = $2 AND shopper_id = $3
        ORDER BY created_at DESC, id DESC LIMIT $4) AS newest
    GROUP BY status"""

# The newest of each status, by the index, and then the newest of those.
HISTORY = f"""
    SELECT s.* FROM unnest($3::text[]) AS wanted (status) CROSS JOIN LATERAL (
        SELECT {SELECTED} FROM generation_sessions AS s
        WHERE s.channel = $1 AND s.owner_id = $2 AND s.status = wanted.status
            AND (s.created_at, s.id) < ($4, $5)
        ORDER BY s.created_at DESC, s.id DESC LIMIT $6) AS s
    ORDER BY s.created_at DESC, s.id DESC LIMIT $6"""

# A shopper has few sessions, so these have no index by status.
HISTORY_OF_SHOPPER = f"""
    SELECT {SELECTED} FROM generation_sessions AS s
    WHERE s.channel = $1 AND s.owner_id = $2 AND s.shopper_id = $3 AND s.status = ANY ($4::text[])
        AND (s.created_at, s.id) < ($5, $6)
    ORDER BY s.created_at DESC, s.id DESC LIMIT $7"""

FAULTS = """
    SELECT attempt, at, worker, code, cause FROM attempt_faults
    WHERE session_id = $1 ORDER BY attempt"""

QUEUED_BEFORE = """
    SELECT count(*) FROM (
        SELECT FROM generation_sessions
        WHERE status = 'queued' AND (created_at, id) < ($1, $2) LIMIT $3) AS older"""
