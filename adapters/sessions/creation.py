"""The SQL that creates sessions: debits their owners within all limits, and inserts them.

``statements.py`` has all other SQL on ``generation_sessions``, and its rules hold here as well: one
statement, guards in the write itself, locks in one order (accounts, client tokens, shoppers).

A limit is monotonic: within a batch, a later call of the same owner, or token, is refused by every
limit that refused an earlier one. So ``place``, the number of a call among those of its owner that
may still be created, is also the number of sessions that its owner has if it is created.
"""

from adapters.sessions.columns import INSERTED
from domain.plans import HOUR, MINUTE, SUBMISSIONS_PER_PICTURE, Plan

# The arguments of all CREATE statements: the calls' own, then those of LIMITS, which hold for all.
ASKED = {
    "channel": "text",
    "owner_id": "text",
    "idempotency_key": "text",
    "max_active": "bigint",
    **{column.name: column.wire_type for column in INSERTED},
}
OF_SHOPPERS = {"shopper_id": "text", "client_token_id": "uuid"}
LIMITS = {
    "cost": "bigint",
    "per_minute": "bigint[]",
    "per_hour": "bigint[]",
    "refunds_per_hour": "bigint",
}
"""The limits per plan are arrays in the order of ``Plan``; NULL is no limit."""
LIMITS_OF_SHOPPERS = {"shopper_refunds_per_hour": "bigint", "max_active_of_token": "bigint"}
SIGNUP = {
    "owner_id": "text",
    "idempotency_key": "text",
    **{column.name: column.wire_type for column in INSERTED},
    "cost": "bigint",
    "per_minute": "bigint",
    "per_hour": "bigint",
    "signup_credits": "bigint",
    "signups_per_day": "bigint",
}
"""The arguments of SIGN_UP. The rates are those of the default plan."""

_INSERTED = ", ".join(column.name for column in INSERTED)
_INSERTED_VALUES = ", ".join(f"{column.name}::{column.type}" for column in INSERTED)
_PLANS = f"ARRAY[{', '.join(repr(plan.value) for plan in Plan)}]"


def _arguments(*groups: dict[str, str]) -> dict[str, str]:
    """The place and type of each argument."""
    names = [(name, type_) for group in groups for name, type_ in group.items()]
    return {name: f"${place}::{type_}" for place, (name, type_) in enumerate(names, 1)}


def _recent_refunds(limit: str) -> str:
    """Whether the refunds of the last sixty minutes, as ``RefundWindow`` estimates them, have
    reached ``limit``. ``refunds_hour`` is NULL before the first, and GREATEST ignores NULLs."""
    hours = "date_part('epoch', now() - refunds_hour) / 3600"
    return f"""coalesce(refunds_now * least(1, greatest(0, 2 - {hours}))
            + refunds_before * least(1, greatest(0, 1 - {hours})) >= {limit}, false)"""


def _backlog(unused_at: str) -> str:
    """In how many seconds a rate will be unused. GREATEST ignores the NULL of an unused one."""
    return f"greatest(date_part('epoch', {unused_at} - now()), 0)"


def _room(limit: str, backlog: str, seconds: float) -> str:
    """How many calls a rate allows, as ``Rate.room`` has it; NULL without a limit."""
    return f"least({limit}, floor(({seconds} - {backlog}) * {limit} / {seconds} + 0.01))"


def _unused_at(column: str, limit: str, calls: str, period: str) -> str:
    """When a rate is unused again after ``calls`` more; NULL without a limit."""
    return f"greatest({column}, now()) + {calls} * (interval '{period}' / {limit}::float8)"


_MINUTE, _HOUR = MINUTE.total_seconds(), HOUR.total_seconds()


def _account(argument: dict[str, str]) -> str:
    """The columns of a locked account, and what its plan and its past allow."""
    return f"""channel, owner_id, balance, unfinished_at_most, plan, has_webhooks,
            suspended_at IS NOT NULL AS suspended,
            total_granted = 0 AND sessions_created = 0 AS unfunded,
            ({argument["per_minute"]})[array_position({_PLANS}, plan)] AS minute_limit,
            ({argument["per_hour"]})[array_position({_PLANS}, plan)] AS hour_limit,
            {_backlog("minute_unused_at")} AS minute_backlog,
            {_backlog("hour_unused_at")} AS hour_backlog,
            {_recent_refunds(argument["refunds_per_hour"])} AS refunded_too_often"""


_ROOM = f"""least({_room("minute_limit", "minute_backlog", _MINUTE)},
                {_room("hour_limit", "hour_backlog", _HOUR)}) AS room"""
_COUNTED = "greatest(0, least(place, room))"
_RATES = f"""plan, minute_backlog + coalesce({_COUNTED} * 60.0 / minute_limit, 0) AS minute,
        hour_backlog + coalesce({_COUNTED} * 3600.0 / hour_limit, 0) AS hour"""
"""The plan, and in how many seconds its rates will be unused."""


def _debited_rates(calls: str) -> str:
    return f"""
            minute_unused_at = {_unused_at("minute_unused_at", "minute_limit", calls, "1 minute")},
            hour_unused_at = {_unused_at("hour_unused_at", "hour_limit", calls, "1 hour")}"""


_TOKENS = """
    token AS MATERIALIZED (
        SELECT token.id, pictures, used, submissions, token.shopper_id, token.store_id,
            expires_at > now() AND revoked_at IS NULL AS valid
        FROM (SELECT DISTINCT client_token_id FROM asked JOIN account USING (channel, owner_id))
                AS wanted
            JOIN client_tokens AS token ON token.id = wanted.client_token_id
        ORDER BY token.id FOR NO KEY UPDATE OF token
    ), shopper AS MATERIALIZED (
        SELECT store_id, shopper_id, refunds_hour, refunds_now, refunds_before
        FROM (SELECT DISTINCT store_id, shopper_id FROM token) AS of_token
            JOIN shoppers AS shopper USING (store_id, shopper_id)
        ORDER BY 1, 2 FOR NO KEY UPDATE OF shopper
    ), held_token AS MATERIALIZED (
        SELECT token.*, {refunded_too_often} AS refunded_too_often,
            count_unfinished_of_token(token.id, {max_active}) AS unfinished
        FROM token JOIN shopper USING (store_id, shopper_id)
    ), of_token AS (
        SELECT checked.*, row_number() OVER (PARTITION BY client_token_id, refusal IS NULL
            ORDER BY number) AS place_of_token
        FROM of_owner AS checked
    ), checked AS (
        SELECT of_token.*, least(pictures - used, {per_picture} * pictures - submissions)
                - place_of_token AS pictures_left,
            coalesce(refusal, CASE
                WHEN valid IS NOT TRUE OR held_token.shopper_id <> of_token.shopper_id
                    OR store_id <> owner_id OR channel <> 'b2b' THEN 'token_invalid'
                WHEN refunded_too_often THEN 'shopper_refunded_too_often'
                WHEN used + place_of_token > pictures
                    OR submissions + place_of_token > {per_picture} * pictures
                    THEN 'token_used_up'
                WHEN held_token.unfinished + place_of_token > {max_active}
                    THEN 'too_many_active' END) AS refusal_of_either
        FROM of_token LEFT JOIN held_token ON held_token.id = client_token_id
    ), """

_DEBITED_TOKENS = """
    ), token_debit AS (
        UPDATE client_tokens AS token
        SET used = used + made.sessions, submissions = submissions + made.sessions
        FROM (SELECT client_token_id, count(*) AS sessions FROM created GROUP BY 1) AS made
        WHERE token.id = made.client_token_id"""


def _create(locking: str = "", *, for_shoppers: bool = False) -> str:
    """Creates the sessions of a batch, as far as each account and each client token allows, in the
    order of the batch.

    The lock on the account keeps every other creation for its owner out. So ``key_is_taken`` and
    the functions that count, which see what was committed before they run, stay right until the
    commit. No other creation reaches the unique index of the keys, where it would wait for a
    transaction that is giving the key back.
    """
    of_shoppers = OF_SHOPPERS if for_shoppers else {}
    limits = LIMITS | (LIMITS_OF_SHOPPERS if for_shoppers else {})
    argument = _arguments(ASKED, of_shoppers, limits)

    asked = ASKED | of_shoppers
    arrays = ", ".join(
        f"${place}::text::{type_}[]" for place, type_ in enumerate(asked.values(), 1)
    )
    cost, columns_of_shoppers, tokens, token_debit = argument["cost"], "", "", ""
    refusal, pictures_left, checked = "refusal", "NULL::bigint", "checked"
    if for_shoppers:
        columns_of_shoppers = ", " + ", ".join(OF_SHOPPERS)
        tokens = _TOKENS.format(
            refunded_too_often=_recent_refunds(argument["shopper_refunds_per_hour"]),
            max_active=argument["max_active_of_token"],
            per_picture=SUBMISSIONS_PER_PICTURE,
        )
        token_debit = _DEBITED_TOKENS
        refusal, pictures_left, checked = "refusal_of_either", "pictures_left", "of_owner"
    return f"""
    WITH asked AS (
        SELECT * FROM unnest({arrays}) WITH ORDINALITY AS asked ({", ".join(asked)}, number)
    ), account AS MATERIALIZED (
        SELECT {_account(argument)}, asked, least_active, max_active
        FROM (SELECT channel, owner_id, count(*) AS asked, min(max_active) AS least_active,
                    max(max_active) AS max_active
                FROM asked GROUP BY 1, 2) AS owner
            JOIN credit_accounts AS account USING (channel, owner_id)
        ORDER BY 1, 2 FOR NO KEY UPDATE OF account {locking}
    ), held AS MATERIALIZED (
        SELECT channel, owner_id, balance, plan, has_webhooks, suspended, unfunded,
            refunded_too_often, minute_limit, hour_limit, minute_backlog, hour_backlog, {_ROOM},
            CASE WHEN unfinished_at_most + asked <= least_active THEN unfinished_at_most
                ELSE least(unfinished_at_most, count_unfinished(channel, owner_id, max_active))
                END AS unfinished
        FROM account
    ), {checked} AS (
        SELECT number, id, channel, owner_id, max_active{columns_of_shoppers},
            balance, unfinished, unfunded, plan, has_webhooks, room, minute_limit, hour_limit,
            minute_backlog, hour_backlog, CASE
            WHEN held.owner_id IS NULL THEN 'no_account'
            WHEN idempotency_key IS NOT NULL AND (
                row_number() OVER (PARTITION BY channel, owner_id, idempotency_key
                    ORDER BY number) > 1
                OR key_is_taken(held.channel, held.owner_id, idempotency_key)) THEN 'key_is_taken'
            WHEN suspended THEN 'suspended'
            WHEN refunded_too_often THEN 'refunded_too_often'
            WHEN unfinished >= max_active THEN 'too_many_active' END AS refusal
        FROM asked LEFT JOIN held USING (channel, owner_id)
    ), {tokens}placed AS (
        SELECT *, row_number() OVER (PARTITION BY channel, owner_id, {refusal} IS NULL
            ORDER BY number) AS place
        FROM checked
    ), decided AS MATERIALIZED (
        SELECT *, CASE
            WHEN {refusal} IS NOT NULL THEN {refusal}
            WHEN unfinished + place > max_active THEN 'too_many_active'
            WHEN place > room THEN 'rate_limited'
            WHEN place * {cost} > balance
                THEN CASE WHEN unfunded THEN 'unfunded' ELSE 'too_little_balance' END
            ELSE 'created' END AS outcome, clock_timestamp() AS created_at
        FROM placed
    ), created AS (
        SELECT number, id, channel, owner_id, unfinished, minute_limit, hour_limit, created_at,
            has_webhooks{columns_of_shoppers}
        FROM decided WHERE outcome = 'created' ORDER BY number
    ), debit AS (
        UPDATE credit_accounts AS account
        SET balance = account.balance - made.sessions * {cost},
            total_debited = total_debited + made.sessions * {cost},
            sessions_created = sessions_created + made.sessions,
            unfinished_at_most = unfinished + made.sessions,{_debited_rates("made.sessions")}
        FROM (SELECT channel, owner_id, count(*) AS sessions, min(unfinished) AS unfinished,
                    min(minute_limit) AS minute_limit, min(hour_limit) AS hour_limit
                FROM created GROUP BY 1, 2) AS made
        WHERE account.channel = made.channel AND account.owner_id = made.owner_id{token_debit}
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        SELECT channel, owner_id, 'debit', -{cost}, id FROM created
    ), session AS (
        INSERT INTO generation_sessions (channel, store_id, user_id, idempotency_key, created_at,
            has_webhooks, {_INSERTED}{columns_of_shoppers})
        SELECT channel, CASE channel WHEN 'b2b' THEN owner_id END,
            CASE channel WHEN 'b2c' THEN owner_id END, idempotency_key, created_at,
            has_webhooks, {_INSERTED_VALUES}{columns_of_shoppers}
        FROM (SELECT number, created_at, has_webhooks FROM created) AS made
            JOIN asked USING (number)
    )
    SELECT outcome, balance - place * {cost} AS balance, created_at, {_RATES},
        {pictures_left} AS pictures_left
    FROM decided ORDER BY number"""


CREATE_SKIP_LOCKED = _create("SKIP LOCKED")
CREATE_WAIT = _create()
CREATE_FOR_SHOPPERS_SKIP_LOCKED = _create("SKIP LOCKED", for_shoppers=True)
CREATE_FOR_SHOPPERS_WAIT = _create(for_shoppers=True)


def _create_one(locking: str = "") -> str:
    """The same for a batch of one, without the parts that only a larger batch needs: they would be
    a fifth of the work. Returns no row if there is no account, or if it was locked and skipped."""
    argument = _arguments(ASKED, LIMITS)
    cost, key = argument["cost"], argument["idempotency_key"]
    inserted = ", ".join(f"{argument[column.name]}::{column.type}" for column in INSERTED)
    return f"""
    WITH account AS MATERIALIZED (
        SELECT {_account(argument)}
        FROM credit_accounts
        WHERE channel = {argument["channel"]} AND owner_id = {argument["owner_id"]}
        FOR NO KEY UPDATE {locking}
    ), held AS MATERIALIZED (
        SELECT *, 1 AS place, {_ROOM},
            CASE WHEN unfinished_at_most < {argument["max_active"]} THEN unfinished_at_most
                ELSE least(unfinished_at_most,
                    count_unfinished(channel, owner_id, {argument["max_active"]}))
                END AS unfinished
        FROM account
    ), decided AS MATERIALIZED (
        SELECT *, CASE
            WHEN {key} IS NOT NULL AND key_is_taken(channel, owner_id, {key}) THEN 'key_is_taken'
            WHEN suspended THEN 'suspended'
            WHEN refunded_too_often THEN 'refunded_too_often'
            WHEN unfinished >= {argument["max_active"]} THEN 'too_many_active'
            WHEN room < 1 THEN 'rate_limited'
            WHEN {cost} > balance
                THEN CASE WHEN unfunded THEN 'unfunded' ELSE 'too_little_balance' END
            ELSE 'created' END AS outcome, clock_timestamp() AS created_at
        FROM held
    ), debit AS (
        UPDATE credit_accounts AS account
        SET balance = account.balance - {cost}, total_debited = total_debited + {cost},
            sessions_created = sessions_created + 1,
            unfinished_at_most = unfinished + 1,{_debited_rates("1")}
        FROM decided
        WHERE account.channel = decided.channel AND account.owner_id = decided.owner_id
            AND outcome = 'created'
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
        SELECT channel, owner_id, 'debit', -{cost}, {argument["id"]}
        FROM decided WHERE outcome = 'created'
    ), session AS (
        INSERT INTO generation_sessions (channel, store_id, user_id, idempotency_key, created_at,
            has_webhooks, {_INSERTED})
        SELECT channel, CASE channel WHEN 'b2b' THEN owner_id END,
            CASE channel WHEN 'b2c' THEN owner_id END, {key}, created_at, has_webhooks, {inserted}
        FROM decided WHERE outcome = 'created'
    )
    SELECT outcome, balance - {cost} AS balance, created_at, {_RATES},
        NULL::bigint AS pictures_left
    FROM decided"""


CREATE_ONE_SKIP_LOCKED = _create_one("SKIP LOCKED")
CREATE_ONE_WAIT = _create_one()


def _sign_up() -> str:
    """Creates the first session of a user without any ledger entry: grants the sign-up credits,
    within the day's cap, and debits the first session. Returns one row, with the account's balance:
    NULL if the day's cap is reached, or if the account got an entry meanwhile, and then it is no
    longer new."""
    argument = _arguments(SIGNUP)
    cost, credits_ = argument["cost"], argument["signup_credits"]
    inserted = ", ".join(f"{argument[column.name]}::{column.type}" for column in INSERTED)
    rates = [
        f"now() + interval '{period}' / {argument[name]}::float8"
        for name, period in (("per_minute", "1 minute"), ("per_hour", "1 hour"))
    ]
    return f"""
    WITH day AS (
        INSERT INTO signup_days AS today (day, grants)
        SELECT (now() AT TIME ZONE 'UTC')::date, 1
        WHERE {argument["signups_per_day"]} > 0 AND is_new_user({argument["owner_id"]})
        ON CONFLICT (day) DO UPDATE SET grants = today.grants + 1
        WHERE today.grants < {argument["signups_per_day"]}
            AND is_new_user({argument["owner_id"]})
        RETURNING true
    ), account AS (
        INSERT INTO credit_accounts AS account (channel, owner_id, balance, total_granted,
            total_debited, sessions_created, unfinished_at_most, minute_unused_at, hour_unused_at)
        SELECT 'b2c', {argument["owner_id"]}, {credits_} - {cost}, {credits_},
            {cost}, 1, 1, {", ".join(rates)}
        FROM day
        ON CONFLICT (channel, owner_id) DO UPDATE
        SET balance = EXCLUDED.balance, total_granted = EXCLUDED.total_granted,
            total_debited = EXCLUDED.total_debited, sessions_created = 1, unfinished_at_most = 1,
            minute_unused_at = EXCLUDED.minute_unused_at, hour_unused_at = EXCLUDED.hour_unused_at
        WHERE account.total_granted = 0 AND account.sessions_created = 0
            AND account.suspended_at IS NULL
        RETURNING channel, owner_id, balance, has_webhooks
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id, note)
        SELECT channel, owner_id, kind, amount, session_id, note
        FROM account CROSS JOIN (VALUES
            (1, 'grant', {credits_}, NULL::uuid, 'sign-up credits'),
            (2, 'debit', -{cost}, {argument["id"]}, NULL)
        ) AS entry (number, kind, amount, session_id, note) ORDER BY number
    ), session AS (
        INSERT INTO generation_sessions (channel, store_id, user_id, idempotency_key, has_webhooks,
            {_INSERTED})
        SELECT channel, NULL, owner_id, {argument["idempotency_key"]}, has_webhooks, {inserted}
        FROM account
        RETURNING created_at
    )
    SELECT is_new_user({argument["owner_id"]}) AS is_new, balance, created_at
    FROM (SELECT) AS always LEFT JOIN account ON true LEFT JOIN session ON true"""


SIGN_UP = _sign_up()

REFUNDS_OF_OWNER = """
    SELECT refunds_hour, refunds_now, refunds_before, now()
    FROM (SELECT) AS always LEFT JOIN credit_accounts ON channel = $1 AND owner_id = $2"""
REFUNDS_OF_SHOPPER = """
    SELECT refunds_hour, refunds_now, refunds_before, now()
    FROM (SELECT) AS always LEFT JOIN shoppers ON store_id = $1 AND shopper_id = $2"""
"""One row. The hour is NULL if the account or the shopper is no longer there, or is there anew."""
