"""Credit accounts and their ledger in PostgreSQL. Debits are written by the statements of
``adapters/sessions/creation.py``, refunds by those of ``adapters/sessions/statements.py``."""

import asyncpg

from adapters.postgres.database import READS_ALL, Database
from domain.account_ports import AccountRepoPort
from domain.credits import (
    Booked,
    Channel,
    CreditAccount,
    Discrepancy,
    LedgerEntry,
    LedgerKind,
    Owner,
)
from domain.errors import Conflict, IdempotencyKeyReused
from domain.operators import Operator
from domain.plans import Plan
from domain.ports import CreditRepoPort

_ACCOUNT = """
    SELECT balance, total_granted, total_debited, total_refunded, total_adjusted, plan,
        suspended_at IS NOT NULL AS suspended
    FROM credit_accounts WHERE channel = $1 AND owner_id = $2"""

_LEDGER = """
    SELECT id, channel, owner_id, kind, amount, session_id, note, created_at, reference
    FROM credit_ledger
    WHERE channel = $1 AND owner_id = $2 AND id < coalesce($3::bigint, 9223372036854775807)
    ORDER BY id DESC LIMIT $4"""

_BY_REFERENCE = """
    SELECT id, channel, owner_id, kind, amount, session_id, note, created_at, reference
    FROM credit_ledger WHERE reference = $1"""

# A reference that is in use fails the whole statement, after waiting for the transaction that
# writes it: then nothing was booked, and the earlier entry can be read.
_GRANT = """
    WITH account AS (
        INSERT INTO credit_accounts AS account (channel, owner_id, balance, total_granted)
        VALUES ($1::text, $2::text, $3::bigint, $3)
        ON CONFLICT (channel, owner_id) DO UPDATE
        SET balance = account.balance + $3, total_granted = account.total_granted + $3
        RETURNING balance, total_granted, total_debited, total_refunded, total_adjusted, plan,
            suspended_at IS NOT NULL AS suspended
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, note, reference)
        SELECT $1, $2, 'grant', $3, $4, $5 FROM account
        RETURNING id, channel, owner_id, kind, amount, session_id, note, created_at, reference
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $6::text, 'credits.grant', channel || ':' || owner_id, $7::text,
            jsonb_build_object('entry_id', id, 'amount', amount, 'reference', reference,
                'note', note)
        FROM entry WHERE $6 IS NOT NULL
    )
    SELECT * FROM account, entry"""

_ADJUST = """
    WITH account AS (
        UPDATE credit_accounts
        SET balance = balance - $3::bigint, total_adjusted = total_adjusted - $3
        WHERE channel = $1 AND owner_id = $2 AND balance >= $3
        RETURNING balance, total_granted, total_debited, total_refunded, total_adjusted, plan,
            suspended_at IS NOT NULL AS suspended
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, note, reference)
        SELECT $1, $2, 'adjustment', -$3, $4, $5 FROM account
        RETURNING id, channel, owner_id, kind, amount, session_id, note, created_at, reference
    ), action AS (
        INSERT INTO operator_actions (actor, action, subject, reason, details)
        SELECT $6::text, 'credits.adjust', channel || ':' || owner_id, $7::text,
            jsonb_build_object('entry_id', id, 'amount', amount, 'reference', reference,
                'note', note)
        FROM entry
    )
    SELECT * FROM account, entry"""

# The next three return no row, and write nothing, where there is nothing to change.
_SET_PLAN = """
    WITH account AS (
        INSERT INTO credit_accounts AS account (channel, owner_id, balance, plan)
        VALUES ($1, $2, 0, $3)
        ON CONFLICT (channel, owner_id) DO UPDATE SET plan = excluded.plan
        WHERE account.plan <> excluded.plan
        RETURNING channel, owner_id, plan
    )
    INSERT INTO operator_actions (actor, action, subject, reason, details)
    SELECT $4, 'owner.plan', channel || ':' || owner_id, $5, jsonb_build_object('plan', plan)
    FROM account"""

_SUSPEND = """
    WITH account AS (
        INSERT INTO credit_accounts AS account (channel, owner_id, balance, suspended_at)
        VALUES ($1, $2, 0, now())
        ON CONFLICT (channel, owner_id) DO UPDATE SET suspended_at = now()
        WHERE account.suspended_at IS NULL
        RETURNING channel, owner_id
    )
    INSERT INTO operator_actions (actor, action, subject, reason)
    SELECT $3, 'owner.suspend', channel || ':' || owner_id, $4 FROM account"""

_RESUME = """
    WITH account AS (
        UPDATE credit_accounts SET suspended_at = NULL
        WHERE channel = $1 AND owner_id = $2 AND suspended_at IS NOT NULL
        RETURNING channel, owner_id
    )
    INSERT INTO operator_actions (actor, action, subject, reason)
    SELECT $3, 'owner.resume', channel || ':' || owner_id, $4 FROM account"""

_SIGNUPS = """
    SELECT grants FROM signup_days WHERE day = (now() AT TIME ZONE 'UTC')::date"""

AUDIT_SECONDS = 300.0
"""The audit reads the whole ledger while an operator waits."""

# Reads one snapshot. A session that an external consumer failed is reported until recovery has
# refunded it.
_AUDIT = """
    WITH ledger AS (
        SELECT channel, owner_id, sum(amount)::bigint AS balance,
            coalesce(sum(amount) FILTER (WHERE kind = 'grant'), 0)::bigint AS granted,
            coalesce(-sum(amount) FILTER (WHERE kind = 'debit'), 0)::bigint AS debited,
            coalesce(sum(amount) FILTER (WHERE kind = 'refund'), 0)::bigint AS refunded,
            coalesce(sum(amount) FILTER (WHERE kind = 'adjustment'), 0)::bigint AS adjusted,
            count(*) FILTER (WHERE kind = 'debit') AS debits,
            count(*) FILTER (WHERE kind = 'refund') AS refunds
        FROM credit_ledger GROUP BY channel, owner_id
    ), books AS (
        SELECT session.id, session.status,
            count(*) FILTER (WHERE kind = 'debit') AS debits,
            count(*) FILTER (WHERE kind = 'refund') AS refunds,
            coalesce(sum(amount), 0) AS net,
            count(*) FILTER (WHERE (entry.channel, entry.owner_id)
                <> (session.channel, session.owner_id)) > 0 AS other_account,
            session.status = 'completed' AND object_key IS NULL AND erased_at IS NULL
                AND coalesce(generated_image_url, '') = '' AS no_picture
        FROM generation_sessions AS session
            LEFT JOIN credit_ledger AS entry ON entry.session_id = session.id
        GROUP BY session.id
    )
    SELECT channel || ':' || owner_id AS subject,
        format('balance %s, but its ledger adds up to %s', account.balance,
            coalesce(ledger.balance, 0)) AS problem
    FROM credit_accounts AS account LEFT JOIN ledger USING (channel, owner_id)
    WHERE (account.balance, total_granted, total_debited, total_refunded, total_adjusted)
        IS DISTINCT FROM (coalesce(ledger.balance, 0), coalesce(granted, 0), coalesce(debited, 0),
            coalesce(refunded, 0), coalesce(adjusted, 0))
    UNION ALL
    SELECT channel || ':' || owner_id,
        format('counts %s session(s), %s refunded, but its ledger has %s debit(s) and %s refund(s)',
            sessions_created, sessions_refunded, coalesce(debits, 0), coalesce(refunds, 0))
    FROM credit_accounts AS account LEFT JOIN ledger USING (channel, owner_id)
    WHERE (sessions_created, sessions_refunded) <> (coalesce(debits, 0), coalesce(refunds, 0))
    UNION ALL
    SELECT 'session ' || id, format('is %s with %s debit(s) and %s refund(s), net %s%s%s',
        status, debits, refunds, net,
        CASE WHEN other_account THEN ', on another account' ELSE '' END,
        CASE WHEN no_picture THEN ', without a picture' ELSE '' END)
    FROM books
    WHERE debits <> 1 OR other_account OR no_picture
        OR CASE status WHEN 'failed' THEN refunds <> 1 OR net <> 0 ELSE refunds <> 0 END
    UNION ALL
    SELECT 'session ' || entry.session_id, format('does not exist, but has %s debit(s) and %s'
        ' refund(s), net %s', count(*) FILTER (WHERE kind = 'debit'),
        count(*) FILTER (WHERE kind = 'refund'), sum(amount))
    FROM credit_ledger AS entry
        LEFT JOIN generation_sessions AS session ON session.id = entry.session_id
    WHERE entry.session_id IS NOT NULL AND session.id IS NULL
    GROUP BY entry.session_id
    UNION ALL
    SELECT 'client token ' || token.id, format('counts %s picture(s), but has %s session(s) without'
        ' a refund', used, coalesce(sessions, 0))
    FROM client_tokens AS token LEFT JOIN (
        SELECT client_token_id, count(*) AS sessions FROM generation_sessions
        WHERE client_token_id IS NOT NULL AND NOT refunded GROUP BY 1
    ) AS paid ON paid.client_token_id = token.id
    WHERE used <> coalesce(sessions, 0)
    LIMIT $1"""


class PostgresCreditRepo(CreditRepoPort, AccountRepoPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def account(self, owner: Owner) -> CreditAccount:
        row = await self._database.fetch_row(_ACCOUNT, owner.channel, owner.id)
        return CreditAccount(owner=owner) if row is None else account_of(owner, row)

    async def ledger(self, owner: Owner, *, limit: int, before_id: int | None) -> list[LedgerEntry]:
        rows = await self._database.fetch(_LEDGER, owner.channel, owner.id, before_id, limit)
        return [entry_of(row) for row in rows]

    async def grant(
        self,
        owner: Owner,
        amount: int,
        *,
        note: str,
        reference: str | None = None,
        by: Operator | None = None,
    ) -> Booked:
        booked = await self._book(_GRANT, owner, amount, note=note, reference=reference, by=by)
        return booked or await self._replay(owner, LedgerKind.GRANT, amount, reference)

    async def adjust(
        self, owner: Owner, amount: int, *, note: str, reference: str | None, by: Operator
    ) -> Booked:
        booked = await self._book(_ADJUST, owner, amount, note=note, reference=reference, by=by)
        return booked or await self._replay(owner, LedgerKind.ADJUSTMENT, -amount, reference)

    async def _book(
        self,
        sql: str,
        owner: Owner,
        amount: int,
        *,
        note: str,
        reference: str | None,
        by: Operator | None,
    ) -> Booked | None:
        """None, and nothing is booked, if the reference is in use or the balance too small."""
        actor, reason = (None, None) if by is None else (by.actor, by.reason)
        arguments = (owner.channel, owner.id, amount, note, reference, actor, reason)
        try:
            row = await self._database.fetch_row(sql, *arguments)
        except asyncpg.UniqueViolationError:
            return None
        return None if row is None else Booked(account=account_of(owner, row), entry=entry_of(row))

    async def _replay(
        self, owner: Owner, kind: LedgerKind, amount: int, reference: str | None
    ) -> Booked:
        """The result of an earlier call with the reference. Raises ``IdempotencyKeyReused`` if it
        was another one, and ``Conflict`` if there was none."""
        row = None
        if reference is not None:
            row = await self._database.fetch_row(_BY_REFERENCE, reference)
        account = await self.account(owner)
        if row is None:
            raise Conflict(f"Only {account.balance} credit(s) are left; nothing was taken")
        entry = entry_of(row)
        if (entry.owner, entry.kind, entry.amount) != (owner, kind, amount):
            raise IdempotencyKeyReused(f"The reference {reference} belongs to another entry")
        return Booked(account=account, entry=entry, replayed=True)

    async def set_plan(self, owner: Owner, plan: Plan, *, by: Operator) -> CreditAccount:
        await self._database.fetch(_SET_PLAN, owner.channel, owner.id, plan, by.actor, by.reason)
        return await self.account(owner)

    async def suspend(self, owner: Owner, *, by: Operator) -> CreditAccount:
        await self._database.fetch(_SUSPEND, owner.channel, owner.id, by.actor, by.reason)
        return await self.account(owner)

    async def resume(self, owner: Owner, *, by: Operator) -> CreditAccount:
        await self._database.fetch(_RESUME, owner.channel, owner.id, by.actor, by.reason)
        return await self.account(owner)

    async def signups_today(self) -> int:
        signups: int | None = await self._database.fetch_value(_SIGNUPS)
        return signups or 0

    async def audit(self, *, limit: int) -> list[Discrepancy]:
        async with self._database.transaction() as connection:
            await connection.execute(READS_ALL)
            rows = await connection.fetch(_AUDIT, limit, timeout=AUDIT_SECONDS)
        return [Discrepancy(subject=row["subject"], problem=row["problem"]) for row in rows]


def account_of(owner: Owner, row: asyncpg.Record) -> CreditAccount:
    return CreditAccount(
        owner=owner,
        balance=row["balance"],
        total_granted=row["total_granted"],
        total_debited=row["total_debited"],
        total_refunded=row["total_refunded"],
        total_adjusted=row["total_adjusted"],
        plan=Plan(row["plan"]),
        suspended=row["suspended"],
    )


def entry_of(row: asyncpg.Record) -> LedgerEntry:
    return LedgerEntry(
        id=row["id"],
        owner=Owner(channel=Channel(row["channel"]), id=row["owner_id"]),
        kind=LedgerKind(row["kind"]),
        amount=row["amount"],
        session_id=row["session_id"],
        note=row["note"],
        created_at=row["created_at"],
        reference=row["reference"],
    )
