"""The guards of a session's row in the database, rendered from the table of columns.

There are three: the CHECK ``session_is_sound`` and the triggers ``session_stays_what_was_paid`` and
``session_is_erased_as_a_whole``.
Migrations are plain SQL files that never change once applied. So after a change of the columns or
of RULES, append the output of ``python -m adapters.sessions.guards`` to the new migration. A test
compares the migrated database with it.
"""

import re
import sys
from collections.abc import Mapping, Sequence
from textwrap import fill

from adapters.sessions.columns import COLUMNS, ERASED, IMMUTABLE, Column

_FINAL = "status IN ('completed', 'failed')"

RULES: Mapping[str, str] = {
    "its status is one of the four": "status IN ('queued', 'processing', 'completed', 'failed')",
    "its owner matches its channel": (
        "(channel = 'b2b' AND store_id IS NOT NULL AND user_id IS NULL)"
        "\n            OR (channel = 'b2c' AND user_id IS NOT NULL AND store_id IS NULL)"
    ),
    "its idempotency key has 1 to 255 characters": "length(idempotency_key) BETWEEN 1 AND 255",
    "its provider job has 1 to 200 characters": "length(provider_job) BETWEEN 1 AND 200",
    "its provider has 1 to 50 characters": "length(provider) BETWEEN 1 AND 50",
    "it has a lease only while it is processing": (
        "lease_expires_at IS NULL OR status = 'processing'"
    ),
    "it is not queued once its cancellation was requested": (
        "cancel_requested_at IS NULL OR status <> 'queued'"
    ),
    "it has a completed_at exactly if it is final": f"(completed_at IS NOT NULL) = ({_FINAL})",
    "it has an error code if it failed": "status <> 'failed' OR error_code IS NOT NULL",
    "its picture has both a key and a media type": "(object_key IS NULL) = (media_type IS NULL)",
    "its picture has the key of this session": (
        "object_key = CASE channel"
        "\n            WHEN 'b2b' THEN 'stores/' || store_id || '/generated/' || id"
        "\n            ELSE 'generated/' || user_id || '/' || id END || CASE media_type"
        "\n            WHEN 'image/jpeg' THEN '.jpg' WHEN 'image/png' THEN '.png'"
        "\n            WHEN 'image/webp' THEN '.webp' ELSE '' END"
    ),
    "it has a picture only if it completed": "object_key IS NULL OR status = 'completed'",
    "it is refunded only if it failed": "NOT refunded OR status = 'failed'",
    "its images are deleted only if it is final": f"image_deleted_at IS NULL OR {_FINAL}",
    "its usage is not negative": (
        "input_tokens >= 0 AND output_tokens >= 0 AND estimated_cost_usd >= 0"
    ),
    "its age is verified or not recorded": "age_verified",
    "it is erased only if it is final": f"erased_at IS NULL OR {_FINAL}",
}
"""The rules of a row, by the name that an error shows. As in a CHECK, a rule that is NULL holds."""


def session_guards(rules: Mapping[str, str] = RULES) -> str:
    """The SQL that replaces all guards.

    All rules are one function, because PostgreSQL parses the text of every CHECK anew for every
    statement that writes the table, but parses a function once per connection. NOT VALID skips the
    rows that exist: they were written under the same rules, and reading them all would lock the
    table for long. The search_path is pinned, so that no writer's own operators decide.
    """
    words = set(re.findall(r"\w+", " ".join(rules.values())))
    used = [column for column in COLUMNS if column.name in words | {"id"}]
    parameters = _wrapped([f"{column.name} {column.type}" for column in used])
    arguments = _wrapped([column.name for column in used])
    broken = "\n".join(
        f"        WHEN NOT ({rule})\n            THEN '{name}'" for name, rule in rules.items()
    )
    immutable = _wrapped([column.name for column in IMMUTABLE])
    changed = "\n        OR ".join(map(_is_changed, IMMUTABLE))
    left = "\n            OR ".join(
        f"NEW.{column.name} IS DISTINCT FROM {column.erased}" for column in ERASED
    )
    return f"""\
ALTER TABLE generation_sessions DROP CONSTRAINT session_is_sound;
DROP FUNCTION session_is_sound;
CREATE FUNCTION session_is_sound(
{parameters}
) RETURNS boolean LANGUAGE plpgsql IMMUTABLE PARALLEL SAFE
SET search_path = pg_catalog, pg_temp AS $$
DECLARE
    broken_rule text := CASE
{broken}
    END;
BEGIN
    IF broken_rule IS NULL THEN
        RETURN true;
    END IF;
    RAISE EXCEPTION 'session % breaks the rule: %', id, broken_rule USING
        ERRCODE = 'check_violation', TABLE = 'generation_sessions', CONSTRAINT = 'session_is_sound';
END $$;
ALTER TABLE generation_sessions ADD CONSTRAINT session_is_sound CHECK (session_is_sound(
{arguments}
)) NOT VALID;

DROP TRIGGER session_stays_what_was_paid ON generation_sessions;
CREATE TRIGGER session_stays_what_was_paid BEFORE UPDATE OF
{immutable}
ON generation_sessions FOR EACH ROW
    WHEN (
        {changed})
    EXECUTE FUNCTION refuse('who paid, when and for what cannot be changed');

DROP TRIGGER IF EXISTS session_is_erased_as_a_whole ON generation_sessions;
CREATE TRIGGER session_is_erased_as_a_whole BEFORE UPDATE OF erased_at
ON generation_sessions FOR EACH ROW
    WHEN (NEW.erased_at IS DISTINCT FROM OLD.erased_at AND (
            OLD.erased_at IS NOT NULL OR NOT (OLD.{_FINAL})
            OR {left}))
    EXECUTE FUNCTION refuse('only a final session is erased, as a whole and once');
"""


def _is_changed(column: Column) -> str:
    """Erasure may change a column to its erased value, but never back."""
    change = f"NEW.{column.name} IS DISTINCT FROM OLD.{column.name}"
    if column.erased is None:
        return change
    kept = f"NEW.{column.name} IS DISTINCT FROM {column.erased}"
    return f"({change}\n            AND (NEW.erased_at IS NULL OR {kept}))"


def _wrapped(names: Sequence[str]) -> str:
    return fill(", ".join(names), width=100, initial_indent="    ", subsequent_indent="    ")


if __name__ == "__main__":
    sys.stdout.write(session_guards())
