"""Mutants that no test can catch because they change nothing, each with the reason."""

from dataclasses import dataclass

from tests.sql_mutants.mutants import Mutant


@dataclass(frozen=True, slots=True, kw_only=True)
class Equivalent:
    """Matches a mutant that contains ``now``, made from a text that contains ``within`` but not
    ``now``. White space does not matter."""

    now: str
    within: str = ""
    reason: str

    def covers(self, mutant: Mutant) -> bool:
        before, after = _flat(mutant.before), _flat(mutant.after)
        now = _flat(self.now)
        return now in after and now not in before and _flat(self.within) in before


def _flat(text: str) -> str:
    return " ".join(text.split())


_NOTHING_EQUALS_NULL = "nothing equals NULL, and a search for it ends before the index is read"
_WAITS_FOR_ONE = "a statement that waits for a locked session or account is about that one only"
_LOCKED_PAYERS = (
    "the accounts of exactly these charges were locked, and ON CONFLICT skips a refund's copies"
)
_ONE_BY_ONE = "SELECT id, channel, owner_id FROM generation_sessions"
_LATER_ONES = (
    "they are ordered by this time, so those that are not due come last, and each is checked again"
    " when it is moved"
)

_BY_HASH = "of the rows found, each caller is picked by its hash"
_NO_SIGN_UP = "only users sign up, so an unfunded store's shopper is refused for its balance"
_SHORTCUT = "counting gives the same number as the counter that spares it"
_OF_SHOPPERS = "held_token AS MATERIALIZED"

EQUIVALENTS = (
    Equivalent(now="(key.key_sha256 = ANY($1::text[]) OR true)", reason=_BY_HASH),
    Equivalent(now="(token.token_sha256 = ANY ($1::text[]) OR true)", reason=_BY_HASH),
    Equivalent(now="(total_granted = 0 OR true)", within=_OF_SHOPPERS, reason=_NO_SIGN_UP),
    Equivalent(now="(sessions_created = 0 OR true)", within=_OF_SHOPPERS, reason=_NO_SIGN_UP),
    Equivalent(now="(unfunded AND false)", within=_OF_SHOPPERS, reason=_NO_SIGN_UP),
    Equivalent(
        now="(unfinished_at_most + asked <= least_active AND false)",
        within=_OF_SHOPPERS,
        reason=_SHORTCUT,
    ),
    Equivalent(now="($3 IS NOT NULL OR true) AND EXISTS", reason=_NOTHING_EQUALS_NULL),
    Equivalent(
        now="FROM locked JOIN asked ON true", within="FOR NO KEY UPDATE )", reason=_WAITS_FOR_ONE
    ),
    Equivalent(
        now="FROM locked JOIN asked USING (attempt)",
        within="FOR NO KEY UPDATE )",
        reason=_WAITS_FOR_ONE,
    ),
    Equivalent(
        now="asked LEFT JOIN held USING (channel)",
        within="FOR NO KEY UPDATE OF account )",
        reason=_WAITS_FOR_ONE,
    ),
    Equivalent(
        now="asked LEFT JOIN held USING (owner_id)",
        within="FOR NO KEY UPDATE OF account )",
        reason=_WAITS_FOR_ONE,
    ),
    Equivalent(
        now="(created_at < now() - $1::interval OR true)", within=_ONE_BY_ONE, reason=_LATER_ONES
    ),
    Equivalent(
        now="(status_changed_at < now() - $1::interval OR true) AND coalesce(delete_again_at",
        within=_ONE_BY_ONE,
        reason=_LATER_ONES,
    ),
    Equivalent(now="FROM charged JOIN payer USING (channel)", reason=_LOCKED_PAYERS),
    Equivalent(now="FROM charged JOIN payer USING (owner_id)", reason=_LOCKED_PAYERS),
)
