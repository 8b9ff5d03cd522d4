"""All SQL on webhooks, except for the triggers that write deliveries (``0017_webhooks.sql``).

Locks: an endpoint's turn locks the endpoint, then its deliveries in the order of their ids. Nothing
here locks a session and an account together.
"""

from adapters.sessions.rows import SELECTED
from domain.endpoints import MAX_ATTEMPTS_SHOWN

ENDPOINT = """
    e.id, e.channel, e.owner_id, e.url, e.events, e.description, e.secret, e.previous_secret,
    e.previous_secret_until, e.created_at, e.disabled_at, e.disabled_reason, e.failures,
    e.failing_since, e.paused_until"""
DELIVERY = """
    d.id, d.endpoint_id, d.event, d.session_id, d.status, d.created_at, d.next_attempt_at,
    d.attempts"""

# From this commit on, new sessions of the owner are marked.
MARK_OWNER = """
    INSERT INTO credit_accounts AS account (channel, owner_id, balance, has_webhooks)
    VALUES ($1, $2, 0, true)
    ON CONFLICT (channel, owner_id) DO UPDATE SET has_webhooks = true
    WHERE NOT account.has_webhooks"""
# In batches, by the index of unfinished sessions. A session that ends meanwhile is not told of: its
# owner has no endpoint yet.
MARK_SESSIONS = """
    WITH marked AS (
        UPDATE generation_sessions SET has_webhooks = true
        WHERE id = ANY (ARRAY (
            SELECT id FROM generation_sessions
            WHERE channel = $1 AND owner_id = $2 AND status IN ('queued', 'processing')
                AND NOT has_webhooks
            ORDER BY channel, owner_id LIMIT $3 FOR NO KEY UPDATE))
        RETURNING id
    )
    SELECT count(*) FROM marked"""
# The lock on the account makes the count exact.
LOCK_OWNER = """
    SELECT true FROM credit_accounts WHERE channel = $1 AND owner_id = $2 FOR NO KEY UPDATE"""
ADD = """
    INSERT INTO webhook_endpoints (id, channel, owner_id, url, events, description, secret)
    SELECT $2::uuid, $3::text, $4::text, $5::text, $6::text[], $7::text, $8::text
    WHERE $1::bigint > (
        SELECT count(*) FROM webhook_endpoints WHERE channel = $3 AND owner_id = $4)
    RETURNING true"""

GET = f"""
    SELECT {ENDPOINT} FROM webhook_endpoints AS e
    WHERE e.id = $1 AND e.channel = $2 AND e.owner_id = $3"""
ALL = f"""
    SELECT {ENDPOINT} FROM webhook_endpoints AS e WHERE e.channel = $1 AND e.owner_id = $2
    ORDER BY e.created_at DESC, e.id DESC"""

# $7 NULL leaves it as it is. Otherwise the turn at the endpoint is fenced: what a disabled endpoint
# did not take is kept, and an enabled one's next turn may begin.
CHANGE = f"""
    UPDATE webhook_endpoints AS e
    SET url = coalesce($4, url), events = coalesce($5::text[], events),
        description = coalesce($6, description),
        disabled_at = CASE WHEN $7::boolean THEN NULL WHEN NOT $7 THEN coalesce(disabled_at, now())
            ELSE disabled_at END,
        disabled_reason = CASE WHEN $7 THEN NULL WHEN NOT $7 THEN 'owner'
            ELSE disabled_reason END,
        failures = CASE WHEN $7 THEN 0 ELSE failures END,
        failing_since = CASE WHEN NOT coalesce($7, false) THEN failing_since END,
        paused_until = CASE WHEN NOT coalesce($7, false) THEN paused_until END,
        leased_until = CASE WHEN $7 IS NULL THEN leased_until END,
        turn = CASE WHEN $7 IS NULL THEN turn ELSE turn + 1 END
    WHERE e.id = $1 AND e.channel = $2 AND e.owner_id = $3
    RETURNING {ENDPOINT}"""

ROTATE = f"""
    UPDATE webhook_endpoints AS e
    SET secret = $4, previous_secret = secret, previous_secret_until = now() + $5::interval
    WHERE e.id = $1 AND e.channel = $2 AND e.owner_id = $3
    RETURNING {ENDPOINT}"""

_DELETE_ATTEMPTS = """
    attempt AS (
        DELETE FROM webhook_attempts WHERE delivery_id = ANY (ARRAY (SELECT id FROM gone))
    )"""

# What is left of many deliveries belongs to no endpoint: PURGE_ORPHANS deletes it.
DELETE = f"""
    WITH endpoint AS (
        DELETE FROM webhook_endpoints WHERE id = $1 AND channel = $2 AND owner_id = $3
        RETURNING id
    ), gone AS (
        DELETE FROM webhook_deliveries WHERE ctid = ANY (ARRAY (
            SELECT d.ctid FROM webhook_deliveries AS d JOIN endpoint ON d.endpoint_id = endpoint.id
            LIMIT $4 FOR UPDATE OF d))
        RETURNING id
    ), {_DELETE_ATTEMPTS}
    SELECT count(*) FROM endpoint"""

DELETE_DELIVERIES_OF_OWNER = f"""
    WITH gone AS (
        DELETE FROM webhook_deliveries WHERE ctid = ANY (ARRAY (
            SELECT d.ctid FROM webhook_endpoints AS e JOIN webhook_deliveries AS d
                ON d.endpoint_id = e.id
            WHERE e.channel = $1 AND e.owner_id = $2 LIMIT $3 FOR UPDATE OF d))
        RETURNING id
    ), {_DELETE_ATTEMPTS}
    SELECT count(*) FROM gone"""
DELETE_ENDPOINTS_OF_OWNER = """
    WITH gone AS (
        DELETE FROM webhook_endpoints WHERE channel = $1 AND owner_id = $2 RETURNING id
    ), account AS (
        UPDATE credit_accounts SET low_credits = NULL
        WHERE channel = $1 AND owner_id = $2 AND low_credits IS NOT NULL
    )
    SELECT count(*) FROM gone"""

DELIVERIES = f"""
    SELECT {DELIVERY} FROM webhook_deliveries AS d
    WHERE d.endpoint_id = $1 AND ($2::text IS NULL OR d.status = $2)
        AND (d.created_at, d.id) < ($3, $4)
    ORDER BY d.created_at DESC, d.id DESC LIMIT $5"""

# By an index of their own: they may be few among many.
DELIVERIES_FAILED = f"""
    SELECT {DELIVERY} FROM webhook_deliveries AS d
    WHERE d.endpoint_id = $1 AND d.status = $2 AND d.status IN ('failed', 'expired')
        AND (d.created_at, d.id) < ($3, $4)
    ORDER BY d.created_at DESC, d.id DESC LIMIT $5"""

DELIVERY_OF_OWNER = f"""
    SELECT {DELIVERY} FROM webhook_deliveries AS d
        JOIN webhook_endpoints AS e ON e.id = d.endpoint_id
    WHERE d.id = $1 AND e.channel = $2 AND e.owner_id = $3"""

ATTEMPTS = f"""
    SELECT a.* FROM unnest($1::uuid[]) AS wanted (id) CROSS JOIN LATERAL (
        SELECT delivery_id, at, http_status, error, duration_ms, response
        FROM webhook_attempts WHERE delivery_id = wanted.id
        ORDER BY number DESC LIMIT {MAX_ATTEMPTS_SHOWN}) AS a"""

ADD_TEST = f"""
    INSERT INTO webhook_deliveries AS d (id, endpoint_id, event)
    SELECT $1, id, 'webhook.test' FROM webhook_endpoints
    WHERE id = $2 AND channel = $3 AND owner_id = $4
    RETURNING {DELIVERY}"""

_RETRIED = """
    status = 'pending', status_changed_at = now(), next_attempt_at = now(), failed_attempts = 0"""
RETRY = f"""
    UPDATE webhook_deliveries AS d SET {_RETRIED}
    FROM webhook_endpoints AS e
    WHERE d.id = $1 AND e.id = d.endpoint_id AND e.channel = $2 AND e.owner_id = $3
    RETURNING {DELIVERY}"""
RETRY_FAILED = f"""
    WITH retried AS (
        UPDATE webhook_deliveries SET {_RETRIED}
        WHERE ctid = ANY (ARRAY (
            SELECT ctid FROM webhook_deliveries
            WHERE endpoint_id = $1 AND created_at >= $2 AND status IN ('failed', 'expired')
            ORDER BY created_at, id LIMIT $3 FOR UPDATE))
        RETURNING id
    )
    SELECT count(*) FROM retried"""

EXPIRE = """
    WITH expired AS (
        UPDATE webhook_deliveries
        SET status = 'expired', status_changed_at = now(), next_attempt_at = NULL
        WHERE ctid = ANY (ARRAY (
            SELECT ctid FROM webhook_deliveries
            WHERE status_changed_at <= now() - $1::interval AND status = 'pending'
            ORDER BY status_changed_at LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING id
    )
    SELECT count(*) FROM expired"""
PURGE = f"""
    WITH gone AS (
        DELETE FROM webhook_deliveries WHERE ctid = ANY (ARRAY (
            SELECT ctid FROM webhook_deliveries
            WHERE status_changed_at <= now() - $1::interval AND next_attempt_at IS NULL
            ORDER BY status_changed_at LIMIT $2 FOR UPDATE SKIP LOCKED))
        RETURNING id
    ), {_DELETE_ATTEMPTS}
    SELECT count(*) FROM gone"""

THRESHOLD = "SELECT low_credits FROM credit_accounts WHERE channel = $1 AND owner_id = $2"
SET_THRESHOLD = """
    INSERT INTO credit_accounts AS account (channel, owner_id, balance, low_credits)
    VALUES ($1, $2, 0, $3)
    ON CONFLICT (channel, owner_id) DO UPDATE SET low_credits = excluded.low_credits"""

SESSIONS = f"SELECT {SELECTED} FROM generation_sessions AS s WHERE s.id = ANY ($1::uuid[])"

# The endpoints that have pending deliveries, in the order of their ids: one look into the index for
# each, whatever its backlog.
_WAITING = """
    waiting (endpoint_id) AS (
        (SELECT endpoint_id FROM webhook_deliveries
            WHERE next_attempt_at IS NOT NULL AND endpoint_id > {after}
            ORDER BY endpoint_id, next_attempt_at LIMIT 1)
        UNION ALL
        SELECT (
            SELECT d.endpoint_id FROM webhook_deliveries AS d
            WHERE d.next_attempt_at IS NOT NULL AND d.endpoint_id > waiting.endpoint_id
            ORDER BY d.endpoint_id, d.next_attempt_at LIMIT 1)
        FROM waiting WHERE waiting.endpoint_id IS NOT NULL
    )"""

PURGE_ORPHANS = f"""
    WITH RECURSIVE {_WAITING.format(after="'00000000-0000-0000-0000-000000000000'")}, orphan AS (
        SELECT endpoint_id FROM waiting WHERE endpoint_id IS NOT NULL AND NOT EXISTS (
            SELECT FROM webhook_endpoints AS e WHERE e.id = waiting.endpoint_id OFFSET 0)
    ), gone AS (
        DELETE FROM webhook_deliveries WHERE ctid = ANY (ARRAY (
            SELECT d.ctid FROM orphan CROSS JOIN LATERAL (
                SELECT ctid FROM webhook_deliveries AS of_orphan
                WHERE of_orphan.endpoint_id = orphan.endpoint_id
                    AND of_orphan.next_attempt_at IS NOT NULL
                ORDER BY of_orphan.next_attempt_at LIMIT $1 FOR UPDATE SKIP LOCKED) AS d
            LIMIT $1))
        RETURNING id
    ), {_DELETE_ATTEMPTS}
    SELECT count(*) FROM gone"""

# One delivery more than a turn has says whether more are due. The orders force the index of due
# deliveries, and no condition names the status: by any other index, a look would read a backlog.
CLAIM = f"""
    WITH RECURSIVE {_WAITING.format(after="$3")}, free AS MATERIALIZED (
        SELECT e.id FROM waiting JOIN webhook_endpoints AS e ON e.id = waiting.endpoint_id
        WHERE (e.disabled_reason IS NULL OR e.disabled_reason = 'failing')
            AND coalesce(e.paused_until, '-infinity') <= now()
            AND coalesce(e.leased_until, '-infinity') <= now()
            AND (
                SELECT d.next_attempt_at FROM webhook_deliveries AS d
                WHERE d.endpoint_id = e.id AND d.next_attempt_at IS NOT NULL
                ORDER BY d.next_attempt_at LIMIT 1) <= now()
        LIMIT $1 FOR NO KEY UPDATE OF e SKIP LOCKED
    ), turn AS (
        UPDATE webhook_endpoints AS e SET turn = turn + 1, leased_until = now() + $2::interval
        FROM free WHERE e.id = free.id
        RETURNING {ENDPOINT}, e.turn, e.window_size
    )
    SELECT turn.*, due.* FROM turn CROSS JOIN LATERAL (
        SELECT d.id AS delivery_id, d.event, d.session_id, d.created_at AS event_at,
            d.failed_attempts, now() - d.status_changed_at AS age
        FROM webhook_deliveries AS d
        WHERE d.endpoint_id = turn.id AND d.next_attempt_at <= now()
        ORDER BY d.next_attempt_at
        LIMIT CASE WHEN turn.paused_until IS NULL THEN least(turn.window_size, $4) ELSE 1 END + 1
    ) AS due
    ORDER BY turn.id"""

SETTLE = """
    WITH result AS (
        SELECT * FROM unnest($1::uuid[], $2::bigint[], $3::smallint[], $4::integer[],
            $5::interval[], $6::text[], $7::boolean[])
        AS result (endpoint_id, turn, window_size, failures, paused_for, disable, enable)
    ), held AS MATERIALIZED (
        SELECT id FROM webhook_endpoints AS e JOIN result ON e.id = endpoint_id
        WHERE e.turn = result.turn ORDER BY id FOR NO KEY UPDATE OF e
    ), ended AS (
        UPDATE webhook_endpoints AS e
        SET leased_until = NULL, window_size = result.window_size, failures = result.failures,
            failing_since = CASE WHEN result.failures > 0 THEN coalesce(e.failing_since, now()) END,
            paused_until = now() + result.paused_for,
            disabled_at = CASE WHEN result.disable IS NOT NULL THEN coalesce(e.disabled_at, now())
                WHEN result.enable AND e.disabled_reason = 'failing' THEN NULL
                ELSE e.disabled_at END,
            disabled_reason = CASE
                WHEN result.disable IS NOT NULL AND e.disabled_reason IS DISTINCT FROM 'owner'
                    THEN result.disable
                WHEN result.enable AND e.disabled_reason = 'failing' THEN NULL
                ELSE e.disabled_reason END
        FROM result JOIN held ON held.id = result.endpoint_id
        WHERE e.id = held.id
        RETURNING e.id
    ), outcome AS (
        SELECT * FROM unnest($8::uuid[], $9::uuid[], $10::text[], $11::interval[],
            $12::timestamptz[], $13::smallint[], $14::text[], $15::integer[], $16::text[])
        AS outcome (endpoint_id, delivery_id, status, again_after, at, http_status, error,
            duration_ms, response)
    ), locked AS MATERIALIZED (
        SELECT id, status FROM webhook_deliveries
        WHERE id = ANY ($9::uuid[]) AND (SELECT count(*) FROM held) >= 0
        ORDER BY id FOR NO KEY UPDATE
    ), decided AS (
        SELECT outcome.*, locked.status = 'pending' AND (outcome.status = 'delivered'
            OR endpoint_id = ANY (ARRAY (SELECT id FROM held))) AS counts
        FROM outcome JOIN locked ON locked.id = delivery_id
    ), changed AS (
        UPDATE webhook_deliveries AS d
        SET attempts = d.attempts + 1,
            failed_attempts = d.failed_attempts + (counts AND decided.status = 'pending')::int,
            status = CASE WHEN counts THEN decided.status ELSE d.status END,
            status_changed_at = CASE WHEN counts AND decided.status <> 'pending' THEN now()
                ELSE d.status_changed_at END,
            next_attempt_at = CASE WHEN NOT counts THEN d.next_attempt_at
                WHEN decided.status = 'pending' THEN now() + decided.again_after END
        FROM decided WHERE d.id = decided.delivery_id
        RETURNING d.id, d.attempts
    ), attempt AS (
        INSERT INTO webhook_attempts
            (delivery_id, number, at, http_status, error, duration_ms, response)
        SELECT changed.id, changed.attempts, at, http_status, error, duration_ms, response
        FROM changed JOIN decided ON decided.delivery_id = changed.id
    )
    SELECT id FROM ended"""
