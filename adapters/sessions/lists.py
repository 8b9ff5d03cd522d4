"""The SQL of lists of sessions for operators, newest first by id. ``history`` without an owner is
one of them.

``$1`` and ``$2`` bound the ids, ``$3`` the number of sessions. A list finds ids by the smallest
index that has them, and then reads their rows by the primary key. A rare status is never looked for
in the primary key, which would read every other session.

``OFFSET 0`` keeps conditions on the id out of a subquery: they would attract the primary key.
"""

from adapters.sessions.rows import SELECTED
from domain.sessions import SessionStatus

MAX_CODES = 100
"""How many different codes of failures are looked at. Our own are few; an external consumer may
write any."""


def failed_codes(guard: str = "true") -> str:
    """The different codes of all failures, as a recursive part ``codes`` of a WITH: each step looks
    up the next one in the index."""
    return f"""codes (code, place) AS (
        (SELECT error_code, 1 FROM generation_sessions
            WHERE status = 'failed' AND {guard} ORDER BY error_code LIMIT 1)
        UNION ALL
        SELECT (SELECT error_code FROM generation_sessions
            WHERE status = 'failed' AND error_code > codes.code ORDER BY error_code LIMIT 1),
            place + 1
        FROM codes WHERE code IS NOT NULL AND place < {MAX_CODES}
    )"""


def _rows_of(ids: str) -> str:
    return f"""
    SELECT {SELECTED} FROM generation_sessions AS s
    WHERE s.id = ANY (ARRAY ({ids})) ORDER BY s.id DESC"""


_ASKED = "id >= $1 AND id < $2"
_NEWEST = "ORDER BY id DESC LIMIT $3"


def _in_small_index(status: SessionStatus) -> str:
    """Sessions in a status that has an index of its own, which is small."""
    return f"""
        (SELECT id FROM (
            SELECT id FROM generation_sessions WHERE status = '{status}' OFFSET 0) AS {status}
        WHERE '{status}' = ANY ($4::text[]) AND {_ASKED} {_NEWEST})"""


OF_ALL = f"""
    SELECT {SELECTED} FROM generation_sessions AS s
    WHERE s.id >= $1 AND s.id < $2 ORDER BY s.id DESC LIMIT $3"""

# $4 are the statuses.
OF_STATUSES = f"""
    WITH RECURSIVE {failed_codes("'failed' = ANY ($4::text[])")}, found AS (
        {_in_small_index(SessionStatus.QUEUED)}
        UNION ALL {_in_small_index(SessionStatus.PROCESSING)}
        UNION ALL
        (SELECT id FROM generation_sessions
        WHERE 'completed' = ANY ($4::text[]) AND status = 'completed' AND {_ASKED} {_NEWEST})
        UNION ALL
        (SELECT failed.id FROM codes CROSS JOIN LATERAL (
            SELECT id FROM generation_sessions
            WHERE status = 'failed' AND error_code = codes.code AND {_ASKED} {_NEWEST}) AS failed
        ORDER BY failed.id DESC LIMIT $3)
    ){_rows_of(f"SELECT id FROM found {_NEWEST}")}"""

# $4 is the code.
OF_CODE = f"""
    SELECT {SELECTED} FROM generation_sessions AS s
    WHERE s.status = 'failed' AND s.error_code = $4 AND s.id >= $1 AND s.id < $2
    ORDER BY s.id DESC LIMIT $3"""

_OF_OWNER = """channel = $4 AND owner_id = $5 AND status = wanted.status
                AND created_at < $8"""

# $6 are the statuses; the sessions were created from $7 until before $8, and failed with $9 unless
# that is NULL. The index is in the order of creation on the database's clock, ids are in that of
# the clocks of the processes that made them. $10 is the most by which these differ. So the first
# step counts off as many sessions as asked for; all that could have a larger id than the last one
# of them were created at most twice that earlier.
OF_OWNER = f"""{
    _rows_of(f'''
        SELECT newest.id
        FROM unnest($6::text[]) AS wanted (status) CROSS JOIN LATERAL (
            SELECT min(created_at) - 2 * $10::interval AS at FROM (
                SELECT created_at FROM (
                    SELECT id, created_at FROM generation_sessions
                    WHERE {_OF_OWNER} AND created_at >= $7
                        AND ($9::text IS NULL OR error_code = $9)
                    ORDER BY created_at DESC OFFSET 0) AS of_owner
                WHERE {_ASKED} ORDER BY created_at DESC LIMIT $3) AS page
        ) AS oldest CROSS JOIN LATERAL (
            SELECT id FROM (
                SELECT id FROM generation_sessions
                WHERE {_OF_OWNER} AND created_at >= greatest($7, oldest.at)
                    AND ($9::text IS NULL OR error_code = $9) OFFSET 0) AS of_owner
            WHERE {_ASKED} {_NEWEST}
        ) AS newest
        ORDER BY newest.id DESC LIMIT $3''')
}"""

# $4 is the request id; the owner's channel and id and the code do not matter if they are NULL.
OF_REQUEST = f"""
    SELECT {SELECTED} FROM generation_sessions AS s
    WHERE s.id >= $1 AND s.id < $2 AND s.request_id = $4 AND s.status = ANY ($5::text[])
        AND ($6::text IS NULL OR (s.channel = $6 AND s.owner_id = $7))
        AND ($8::text IS NULL OR (s.status = 'failed' AND s.error_code = $8))
    ORDER BY s.id DESC LIMIT $3"""
