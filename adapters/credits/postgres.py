"""Credit accounts and their ledger in PostgreSQL. Debits and refunds are written by the statements
of the session's transitions: see ``adapters/sessions/statements.py``."""

import asyncpg

from adapters.postgres.database import READS_ALL, Database
from domain.credits import Channel, CreditAccount, Discrepancy, LedgerEntry, LedgerKind, Owner
from domain.plans import Plan
from domain.ports import CreditRepoPort

_ACCOUNT = """
    SELECT balance, total_granted, total_debited, total_refunded, plan,
        suspended_at IS NOT NULL AS suspended
    FROM credit_accounts WHERE channel = $1 AND owner_id = $2"""

_LEDGER = """
    SELECT id, channel, owner_id, kind, amount, session_id, note, created_at
    FROM credit_ledger
    WHERE channel = $1 AND owner_id = $2 AND id < coalesce($3::bigint, 9223372036854775807)
    ORDER BY id DESC LIMIT $4"""

_GRANT = """
    WITH account AS (
        INSERT INTO credit_accounts AS account (channel, owner_id, balance, total_granted)
        VALUES ($1, $2, $3, $3)
        ON CONFLICT (channel, owner_id) DO UPDATE
        SET balance = account.balance + $3, total_granted = account.total_granted + $3
        RETURNING balance, total_granted, total_debited, total_refunded
    ), entry AS (
        INSERT INTO credit_ledger (channel, owner_id, kind, amount, note)
        SELECT $1, $2, 'grant', $3, $4 FROM account
    )
    SELECT * FROM account"""

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
            session.status = 'completed' AND object_key IS NULL
                AND coalesce(generated_image_url, '') = '' AS no_picture
        FROM generation_sessions AS session
            LEFT JOIN credit_ledger AS entry ON entry.session_id = session.id
        GROUP BY session.id
    )
    SELECT channel || ':' || owner_id AS subject,
        format('balance %s, but its ledger adds up to %s', account.balance,
            coalesce(ledger.balance, 0)) AS problem
    FROM credit_accounts AS account LEFT JOIN ledger USING (channel, owner_id)
    WHERE (account.balance, total_granted, total_debited, total_refunded) IS DISTINCT FROM
        (coalesce(ledger.balance, 0), coalesce(granted, 0), coalesce(debited, 0),
            coalesce(refunded, 0))
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
    LIMIT $1"""


class PostgresCreditRepo(CreditRepoPort):
    def __init__(self, database: Database) -> None:
        self._database = database

    async def account(self, owner: Owner) -> CreditAccount:
        row = await self._database.fetch_row(_ACCOUNT, owner.channel, owner.id)
        if row is None:
            return CreditAccount(owner=owner)
        return CreditAccount(owner=owner, **{**row, "plan": Plan(row["plan"])})

    async def ledger(self, owner: Owner, *, limit: int, before_id: int | None) -> list[LedgerEntry]:
        rows = await self._database.fetch(_LEDGER, owner.channel, owner.id, before_id, limit)
        return [_entry(row) for row in rows]

    async def grant(self, owner: Owner, amount: int, *, note: str) -> CreditAccount:
        row = await self._database.fetch_row(_GRANT, owner.channel, owner.id, amount, note)
        assert row is not None  # noqa: S101 - the upsert returns its row
        return CreditAccount(owner=owner, **row)

    async def signups_today(self) -> int:
        signups: int | None = await self._database.fetch_value(_SIGNUPS)
        return signups or 0

    async def audit(self, *, limit: int) -> list[Discrepancy]:
        async with self._database.transaction() as connection:
            await connection.execute(READS_ALL)
            rows = await connection.fetch(_AUDIT, limit, timeout=AUDIT_SECONDS)
        return [Discrepancy(subject=row["subject"], problem=row["problem"]) for row in rows]


def _entry(row: asyncpg.Record) -> LedgerEntry:
    return LedgerEntry(
        id=row["id"],
        owner=Owner(channel=Channel(row["channel"]), id=row["owner_id"]),
        kind=LedgerKind(row["kind"]),
        amount=row["amount"],
        session_id=row["session_id"],
        note=row["note"],
        created_at=row["created_at"],
    )
