"""The SQL of what operators are shown. ``adapters/sessions/lists.py`` has that of lists.

A statement about a time reads the range of ids in which all sessions that ended in it were created:
no index has ``completed_at``, which would cost each completed session a write.
"""

from adapters.sessions.lists import failed_codes

MAX_OWED = 1_000
"""How many failed sessions without a refund are counted."""
MAX_CAUSES = 20
MAX_WORKERS = 1_000

# $1 is MAX_OWED. ORDER BY the index's columns forces that index: see REFUND_MISSING.
NOW = """
    SELECT now() AS at, queued.*, processing.*, owed.*
    FROM (
        SELECT count(*) AS queued, min(created_at) AS oldest_queued_at,
            count(*) FILTER (WHERE NOT confirmed AND created_at < now() - interval '5 seconds')
                AS unconfirmed
        FROM generation_sessions WHERE status = 'queued'
    ) AS queued, (
        SELECT count(*) AS processing,
            count(*) FILTER (WHERE lease_expires_at < now()) AS dead_leases
        FROM generation_sessions WHERE status = 'processing'
    ) AS processing, (
        SELECT count(*) AS owed_refunds, min(completed_at) AS oldest_owed_at
        FROM (
            SELECT completed_at FROM generation_sessions
            WHERE status = 'failed' AND NOT refunded
            ORDER BY channel, owner_id LIMIT $1) AS unpaid
    ) AS owed"""


def _percentiles(seconds: str) -> str:
    return f"""percentile_cont(ARRAY[0.5, 0.95])
            WITHIN GROUP (ORDER BY extract(epoch FROM {seconds})::float8)
            FILTER (WHERE completed_at > now() - interval '1 hour')"""


COMPLETED = f"""
    SELECT count(*) AS day,
        count(*) FILTER (WHERE completed_at > now() - interval '15 minutes') AS quarter,
        count(*) FILTER (WHERE completed_at > now() - interval '1 minute') AS minute,
        coalesce(sum(estimated_cost_usd)
            FILTER (WHERE completed_at >= date_trunc('day', now(), 'UTC')), 0) AS spent_today_usd,
        {_percentiles("started_at - created_at")} AS waits,
        {_percentiles("completed_at - started_at")} AS works
    FROM generation_sessions
    WHERE status = 'completed' AND id >= $1 AND completed_at > now() - interval '1 day'"""

FAILED = f"""
    WITH RECURSIVE {failed_codes()}
    SELECT code, failed.* FROM codes CROSS JOIN LATERAL (
        SELECT count(*) AS day,
            count(*) FILTER (WHERE completed_at > now() - interval '15 minutes') AS quarter,
            count(*) FILTER (WHERE completed_at > now() - interval '1 minute') AS minute
        FROM generation_sessions
        WHERE status = 'failed' AND error_code = codes.code AND id >= $1
            AND completed_at > now() - interval '1 day'
    ) AS failed
    WHERE failed.day > 0"""

CAUSES = f"""
    SELECT cause, count(*) FROM attempt_faults
    WHERE at > now() - $1::interval
    GROUP BY cause ORDER BY count(*) DESC, cause LIMIT {MAX_CAUSES}"""

WORKERS = f"""
    SELECT id, host, pid, version, started_at, slots, busy, draining, throttled_until,
        limit_is_local, circuit_until, circuit_cause, done, failed, seen_at
    FROM workers WHERE seen_at > now() - interval '1 day'
    ORDER BY seen_at DESC, id LIMIT {MAX_WORKERS}"""

PAUSES = "SELECT switch, since, actor, reason FROM pauses ORDER BY since, switch"

BOOKS = """
    SELECT checked_at, took_ms, discrepancies, first FROM book_checks
    WHERE checked_at IS NOT NULL"""

# These two read all accounts, which have no index for it: each debit would have to update that.
ALL_TOTALS = """
    SELECT coalesce(sum(sessions_created), 0)::bigint AS created,
        coalesce(sum(sessions_refunded), 0)::bigint AS refunded
    FROM credit_accounts"""

ALL_LOWEST = """
    SELECT channel, owner_id, balance, total_granted, total_debited, total_refunded, total_adjusted,
        plan, suspended_at IS NOT NULL AS suspended
    FROM credit_accounts WHERE total_debited > 0 AND suspended_at IS NULL
    ORDER BY balance, channel, owner_id COLLATE "C" LIMIT $1"""

# Two branches, each of which has its unique index; session_id alone has none.
ENTRIES = """
    SELECT id, channel, owner_id, kind, amount, session_id, note, created_at, reference
    FROM credit_ledger WHERE kind = 'debit' AND session_id = $1
    UNION ALL
    SELECT id, channel, owner_id, kind, amount, session_id, note, created_at, reference
    FROM credit_ledger WHERE kind = 'refund' AND session_id = $1
    ORDER BY id"""


# Steps of $4 seconds from $2 until before $3; those in which no session ended are left out.
PACE = """
    SELECT floor(extract(epoch FROM completed_at - $2) / $4)::int AS step,
        count(*) FILTER (WHERE status = 'completed') AS completed,
        count(*) FILTER (WHERE status = 'failed') AS failed
    FROM generation_sessions
    WHERE id >= $1 AND completed_at >= $2::timestamptz AND completed_at < $3
    GROUP BY step"""


def _costs(key: str, *, order: str, of_owner: bool = False) -> str:
    """Of pictures completed from $3 until before $4, grouped by ``key``. $1 and $2 bound the ids,
    or, of one owner, whose index is in that order, the times of creation."""
    created = "id >= $1 AND id < $2"
    if of_owner:
        created = "channel = $6 AND owner_id = $7 AND created_at >= $1 AND created_at < $2"
    return f"""
    SELECT {key} AS key, count(*) AS pictures,
        count(*) FILTER (WHERE estimated_cost_usd IS NULL) AS unpriced,
        coalesce(sum(input_tokens), 0) AS input_tokens,
        coalesce(sum(output_tokens), 0) AS output_tokens,
        coalesce(sum(estimated_cost_usd), 0) AS estimated_cost_usd
    FROM generation_sessions
    WHERE status = 'completed' AND {created} AND completed_at >= $3 AND completed_at < $4
    GROUP BY {key} ORDER BY {order} LIMIT $5"""


_DAY = "(completed_at AT TIME ZONE 'UTC')::date"
_OWNER = "channel || ':' || owner_id"
_PROVIDER = "coalesce(provider, 'unknown')"
_LARGEST = "estimated_cost_usd DESC, pictures DESC, key"

COSTS_BY_DAY = _costs(_DAY, order="key DESC")
COSTS_BY_OWNER = _costs(_OWNER, order=_LARGEST)
COSTS_BY_PROVIDER = _costs(_PROVIDER, order=_LARGEST)
COSTS_BY_DAY_OF_OWNER = _costs(_DAY, order="key DESC", of_owner=True)
COSTS_BY_OWNER_OF_OWNER = _costs(_OWNER, order=_LARGEST, of_owner=True)
COSTS_BY_PROVIDER_OF_OWNER = _costs(_PROVIDER, order=_LARGEST, of_owner=True)
