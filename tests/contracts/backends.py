"""One handle per adapter, with what tests need beyond the ports: external programs that use the
same database or queue, and the passing of time."""

import asyncio
import time
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Collection
from dataclasses import astuple, replace
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import asyncpg
from redis.asyncio import Redis

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.audit_log.postgres import PostgresAuditLog
from adapters.auth.memory import InMemoryApiKeyRepo, InMemoryServiceKeyRepo
from adapters.auth.postgres import PostgresApiKeyRepo, PostgresServiceKeyRepo
from adapters.client_tokens.memory import InMemoryClientTokenRepo
from adapters.client_tokens.postgres import PostgresClientTokenRepo
from adapters.credits.memory import InMemoryCreditRepo
from adapters.credits.postgres import PostgresCreditRepo
from adapters.erasure.memory import InMemoryErasureRepo
from adapters.erasure.postgres import PostgresErasureRepo
from adapters.limits.memory import InMemoryStartLimit, Pace
from adapters.limits.redis import RedisStartLimit
from adapters.operations.memory import InMemoryOperatorReads
from adapters.operations.postgres import PostgresOperatorReads
from adapters.operators.memory import InMemoryOperatorRepo
from adapters.operators.postgres import PostgresOperatorRepo
from adapters.pauses.memory import InMemoryPauseRepo
from adapters.pauses.postgres import PostgresPauseRepo
from adapters.postgres.database import Database
from adapters.queue.memory import InMemoryTaskQueue
from adapters.queue.payload import MAX_DEAD
from adapters.queue.redis import TASKS_KEY, RedisTaskQueue
from adapters.sessions.columns import COLUMNS
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.sessions.watched_memory import InMemoryWatchReads
from adapters.sessions.watched_postgres import PostgresWatchReads
from adapters.stores.memory import InMemoryStoreRepo
from adapters.stores.postgres import PostgresStoreRepo
from adapters.webhooks.memory import InMemoryWebhookRepo
from adapters.webhooks.postgres import PostgresWebhookRepo
from config.services import WebhookRepo
from domain.account_ports import (
    AccountRepoPort,
    AuditLogPort,
    ServiceKeyRepoPort,
    StoreRepoPort,
)
from domain.changes import WatchReadPort
from domain.client_tokens import ClientTokenRepoPort
from domain.console_ports import OperatorRepoPort
from domain.credits import LedgerEntry, LedgerKind, Owner
from domain.erasure import ErasureRepoPort
from domain.errors import IllegalTransition
from domain.operator_ports import BookCheck, OperatorReadPort, Pause, PauseRepoPort, WorkerState
from domain.operators import OperatorAction
from domain.picture_ports import StartLimitPort
from domain.plans import AccountLimits, Plan, TokenBudget
from domain.ports import (
    ApiKeyRepoPort,
    AttemptRepoPort,
    CreditRepoPort,
    DeadLetterPort,
    QueueProbePort,
    Receipt,
    RecoveryRepoPort,
    SessionReadPort,
    SessionRepoPort,
    TaskQueuePort,
)
from domain.sessions import ErrorCode, Failure, Fault, GenerationSession, SessionStatus
from domain.tasks import UnreadableTask
from tests.support.clock import FakeClock
from tests.support.examples import FAILURE, FAULT, LEASE, MANY, USER, a_session, picture_of

SETTLED_WITHIN = timedelta(hours=2)


class Backend(ABC):
    """A database, or its substitute in memory."""

    sessions: SessionRepoPort
    attempts: AttemptRepoPort
    recovery: RecoveryRepoPort
    reads: SessionReadPort
    credits: CreditRepoPort
    api_keys: ApiKeyRepoPort
    accounts: AccountRepoPort
    stores: StoreRepoPort
    service_keys: ServiceKeyRepoPort
    audit_log: AuditLogPort
    operators: OperatorRepoPort
    erasure: ErasureRepoPort
    client_tokens: ClientTokenRepoPort
    watched: WatchReadPort
    webhooks: WebhookRepo
    operator_reads: OperatorReadPort
    pauses: PauseRepoPort
    ended: Counter[tuple[str, str]]
    """What the adapter counted of sessions that it ended: by status and code."""

    def count_ended(self, status: SessionStatus, code: str, number: int) -> None:
        self.ended[status.value, code] += number

    @abstractmethod
    def now(self) -> datetime:
        """The time on the database's clock."""

    @abstractmethod
    async def name_origins(self, store: Owner, origins: Collection[str]) -> None:
        """Create a store with these origins, or give it others."""

    @abstractmethod
    async def external_write(self, session_id: UUID, **columns: Any) -> None:
        """Write a session's row as an external consumer does, without knowing any rule.

        Raises IllegalTransition where the database refuses it.
        """

    @abstractmethod
    async def external_write_input(self, session_id: UUID, name: str, value: object) -> None:
        """Write one field of a session's input by SQL. Raises IllegalTransition where the database
        refuses it."""

    @abstractmethod
    def limited(self, limits: AccountLimits) -> SessionRepoPort:
        """The same database through an adapter with these limits."""

    @abstractmethod
    async def set_account(
        self, owner: Owner, *, plan: Plan = Plan.DEFAULT, suspended: bool = False
    ) -> None:
        """Give an account its plan, or suspend it. Creates the account if there is none."""

    @abstractmethod
    async def add_token(self, token_id: UUID, budget: TokenBudget) -> None:
        """Add a client token, its shopper and its store."""

    @abstractmethod
    async def budget_of(self, token_id: UUID) -> TokenBudget:
        """What a client token has left."""

    @abstractmethod
    async def advance(self, by: timedelta) -> None:
        """Let time pass. This may change the times of a session, so read it again afterwards."""

    @abstractmethod
    async def align(self) -> None:
        """Give all sessions the same ``created_at``."""

    @abstractmethod
    async def change_balance(self, owner: Owner, amount: int) -> None:
        """Change a balance without a ledger entry."""

    @abstractmethod
    async def delete_entry(self, session_id: UUID, kind: LedgerKind) -> None:
        """Delete a ledger entry, which the database refuses otherwise. The balance stays."""

    @abstractmethod
    async def add_entry(
        self, owner: Owner, kind: LedgerKind, amount: int, session_id: UUID
    ) -> None:
        """Add a ledger entry that the database refuses otherwise. The balance stays."""

    @abstractmethod
    async def put_worker(self, state: WorkerState) -> None:
        """Keep what a worker reported at ``seen_at``."""

    @abstractmethod
    async def put_pause(self, pause: Pause) -> None:
        """Keep a pause as it is."""

    @abstractmethod
    async def put_check(self, check: BookCheck) -> None:
        """Keep the result of a check of the books."""

    async def created(self, owner: Owner = USER, **changes: Any) -> Receipt:
        """A new session, paid for with a credit granted for it."""
        await self.credits.grant(owner, 1, note="test")
        return await self.sessions.create(a_session(owner=owner, **changes), max_active=MANY)

    async def queued(self, owner: Owner = USER) -> UUID:
        return (await self.created(owner)).session.id

    async def queued_in_turn(
        self, count: int, *, interval: timedelta = timedelta(minutes=1)
    ) -> list[UUID]:
        """The ids of sessions created ``interval`` apart, oldest first."""
        ids = []
        for _ in range(count):
            ids.append(await self.queued())
            await self.advance(interval)
        return ids

    async def claimed(
        self, owner: Owner = USER, *, attempt: int = 1, lease: timedelta = LEASE
    ) -> GenerationSession:
        """A session in attempt number ``attempt``."""
        session_id = await self.queued(owner)
        for number in range(1, attempt):
            await self.claim(session_id)
            await self.attempts.release(session_id, attempt=number, delay=timedelta(0), fault=FAULT)
        return await self.claim(session_id, lease=lease)

    async def claim(self, session_id: UUID, *, lease: timedelta = LEASE) -> GenerationSession:
        session = await self.attempts.claim(session_id, lease=lease)
        assert session is not None
        return session

    async def finished(self, status: SessionStatus) -> GenerationSession:
        """A session that our own code brought to its final status."""
        session = await self.claimed()
        if status is SessionStatus.COMPLETED:
            assert await self.attempts.complete(
                session.id, attempt=1, picture=picture_of(session.id)
            )
        else:
            assert await self.attempts.fail(session.id, FAILURE, attempt=1)
        return await self.get(session.id)

    async def debited(self, owner: Owner) -> UUID:
        """A session that takes a credit of the account."""
        session = a_session(owner=owner)
        return (await self.sessions.create(session, max_active=MANY)).session.id

    async def finished_of(self, owner: Owner) -> UUID:
        """A completed session of the owner."""
        session = await self.claimed(owner)
        picture = picture_of(session.id, owner)
        assert await self.attempts.complete(session.id, attempt=1, picture=picture)
        return session.id

    async def released(self, fault: Fault | None) -> GenerationSession:
        """A session whose first attempt ended with this fault."""
        session = await self.claimed()
        assert await self.attempts.release(session.id, attempt=1, delay=timedelta(0), fault=fault)
        return await self.get(session.id)

    async def set_externally(self, status: str, owner: Owner = USER) -> UUID:
        """A session to which an external consumer gave ``status``."""
        session_id = await self.queued(owner)
        await self.external_write(session_id, status=status)
        return session_id

    async def in_every_status(self) -> dict[str, UUID]:
        """One session in each state in which recovery leaves it alone for now."""
        released = await self.claimed()
        await self.attempts.release(released.id, attempt=1, delay=timedelta(days=1))
        return {
            "queued": await self.queued(),
            "released": released.id,
            "processing": (await self.claimed()).id,
            "processing externally": await self.set_externally("processing"),
            "completed": (await self.finished(SessionStatus.COMPLETED)).id,
            "completed externally": await self.set_externally("completed"),
            "failed": (await self.finished(SessionStatus.FAILED)).id,
        }

    async def get(self, session_id: UUID) -> GenerationSession:
        return await self.reads.get(session_id, None)

    async def ledger(self, owner: Owner = USER) -> list[LedgerEntry]:
        """The whole ledger, oldest first."""
        return (await self.credits.ledger(owner, limit=10_000, before_id=None))[::-1]

    async def money_of(self, session_id: UUID, owner: Owner = USER) -> list[str]:
        """The kinds of a session's ledger entries, oldest first: ``["debit", "refund"]``."""
        return [entry.kind for entry in await self.ledger(owner) if entry.session_id == session_id]

    async def actions(self, subject: object = None) -> list[OperatorAction]:
        """The audit log, oldest first."""
        wanted = None if subject is None else str(subject)
        return (await self.audit_log.actions(subject=wanted, limit=10_000))[::-1]

    async def balance(self, owner: Owner = USER) -> int:
        return (await self.credits.account(owner)).balance


class MemoryBackend(Backend):
    def __init__(self) -> None:
        self._clock = FakeClock()
        log = InMemoryAuditLog(clock=self._clock.now)
        self._accounts = InMemoryCreditRepo(clock=self._clock.now, log=log)
        self.ended = Counter()
        self._repo = InMemorySessionRepo(
            accounts=self._accounts, clock=self._clock.now, count_ended=self.count_ended
        )
        self.sessions = self.attempts = self.recovery = self.reads = self._repo
        self.credits = self.accounts = self._accounts
        stores = InMemoryStoreRepo(accounts=self._accounts, log=log, clock=self._clock.now)
        self.stores = stores
        self.api_keys = InMemoryApiKeyRepo(clock=self._clock.now, stores=stores, log=log)
        self.service_keys = InMemoryServiceKeyRepo(clock=self._clock.now, log=log)
        self.audit_log = log
        self.pauses = InMemoryPauseRepo(log=log, clock=self._clock.now)
        self.operators = InMemoryOperatorRepo(clock=self._clock.now, log=log)
        self.erasure = InMemoryErasureRepo(self._repo)
        self.watched = InMemoryWatchReads(self._repo)
        hooks = InMemoryWebhookRepo(clock=self._clock.now, find_session=self._repo.find)
        self._repo.ended, self._accounts.changed = hooks.session_ended, hooks.balance_changed
        self.webhooks = hooks
        self._origins: dict[str, Collection[str]] = {}
        self.client_tokens = InMemoryClientTokenRepo(
            clock=self._clock.now,
            origins_of=lambda store_id: self._origins.get(store_id, ()),
            budgets=self._repo.budgets,
            may_refund=self._repo.may_refund,
        )
        self._workers: list[WorkerState] = []
        self._pauses: list[Pause] = []
        self._check: BookCheck | None = None
        self.operator_reads = InMemoryOperatorReads(
            sessions=self._repo,
            accounts=self._accounts,
            clock=self._clock.now,
            workers=lambda: self._workers,
            pauses=lambda: self._pauses,
            books=lambda: self._check,
        )

    async def put_worker(self, state: WorkerState) -> None:
        self._workers.append(state)

    async def put_pause(self, pause: Pause) -> None:
        self._pauses.append(pause)

    async def put_check(self, check: BookCheck) -> None:
        self._check = check

    def now(self) -> datetime:
        return self._clock.now()

    async def name_origins(self, store: Owner, origins: Collection[str]) -> None:
        self._origins[store.id] = origins

    async def external_write(self, session_id: UUID, **columns: Any) -> None:
        if "error_message" in columns:
            columns["failure"] = Failure(
                code=ErrorCode.GENERATION_FAILED, message=columns.pop("error_message")
            )
        if "status" in columns:
            columns["status"] = SessionStatus(columns["status"])
        self._repo.overwrite(session_id, **columns)

    async def external_write_input(self, session_id: UUID, name: str, value: object) -> None:
        session = await self.get(session_id)
        changes: dict[str, Any] = {name: value}
        self._repo.overwrite(session_id, input=replace(session.input, **changes))

    def limited(self, limits: AccountLimits) -> SessionRepoPort:
        self._repo._limits._limits = limits
        return self._repo

    async def set_account(
        self, owner: Owner, *, plan: Plan = Plan.DEFAULT, suspended: bool = False
    ) -> None:
        self._accounts._accounts[owner] = replace(
            self._accounts.balance_of(owner), plan=plan, suspended=suspended
        )

    async def add_token(self, token_id: UUID, budget: TokenBudget) -> None:
        expires_at = budget.expires_at - datetime.now(UTC) + self._clock.now()
        self._repo.budgets[token_id] = replace(budget, expires_at=expires_at)

    async def budget_of(self, token_id: UUID) -> TokenBudget:
        return self._repo.budgets[token_id]

    async def advance(self, by: timedelta) -> None:
        self._clock.advance(by)

    async def align(self) -> None:
        """Time stands still here, so they are equal unless a test advanced it."""
        sessions = await self.reads.history(None, status=None, limit=10_000, after=None)
        assert len({session.created_at for session in sessions}) == 1

    async def change_balance(self, owner: Owner, amount: int) -> None:
        account = self._accounts.balance_of(owner)
        self._accounts._accounts[owner] = replace(
            account, balance=account.balance + amount, total_granted=account.total_granted + amount
        )

    async def delete_entry(self, session_id: UUID, kind: LedgerKind) -> None:
        entries = self._accounts.entries
        (entry,) = (e for e in entries if (e.session_id, e.kind) == (session_id, kind))
        entries.remove(entry)

    async def add_entry(
        self, owner: Owner, kind: LedgerKind, amount: int, session_id: UUID
    ) -> None:
        entry = LedgerEntry(
            id=len(self._accounts.entries) + 1,
            owner=owner,
            kind=kind,
            amount=amount,
            session_id=session_id,
            note=None,
            created_at=self._clock.now(),
        )
        self._accounts.entries.append(entry)


_TRUNCATE = """
    TRUNCATE credit_accounts, credit_ledger, generation_sessions, api_keys, attempt_faults, stores,
        shoppers, client_tokens, service_keys, operator_actions, signup_days, webhook_endpoints,
        webhook_deliveries, webhook_attempts, workers, pauses, operators"""
_FORGET_CHECK = """
    UPDATE book_checks SET due_at = now(), claimed_until = NULL, checked_at = NULL, took_ms = NULL,
        discrepancies = NULL, first = NULL"""
_PUT_WORKER = """
    INSERT INTO workers (id, host, pid, version, started_at, slots, busy, draining, throttled_until,
        limit_is_local, circuit_until, circuit_cause, done, failed, seen_at)
    VALUES ($1, $2, $3, $4, $5, $6, $7, $8, $9, $10, $11, $12, $13, $14, $15)"""
_PUT_PAUSE = "INSERT INTO pauses (switch, since, actor, reason) VALUES ($1, $2, $3, $4)"
_PUT_CHECK = """
    UPDATE book_checks SET checked_at = $1, took_ms = $2, discrepancies = $3, first = $4"""
_NAME_ORIGINS = """
    INSERT INTO stores (id, name, origins) VALUES ($1, $1, $2)
    ON CONFLICT (id) DO UPDATE SET origins = EXCLUDED.origins"""

# The database's clock is real, so every time that a rule reads is moved into the past instead.
_ADVANCE = """
    UPDATE generation_sessions
    SET created_at = created_at - $1::interval,
        status_changed_at = status_changed_at - $1::interval,
        push_again_at = push_again_at - $1::interval,
        delete_again_at = delete_again_at - $1::interval,
        lease_expires_at = lease_expires_at - $1::interval,
        started_at = started_at - $1::interval,
        completed_at = completed_at - $1::interval"""
_ADVANCE_FAULTS = "UPDATE attempt_faults SET at = at - $1::interval"
_ADVANCE_ACCOUNTS = """
    UPDATE credit_accounts
    SET minute_unused_at = minute_unused_at - $1::interval,
        hour_unused_at = hour_unused_at - $1::interval,
        refunds_hour = refunds_hour - $1::interval"""
_ADVANCE_SHOPPERS = """
    UPDATE shoppers
    SET seen_at = seen_at - $1::interval, refunds_hour = refunds_hour - $1::interval"""
_ADVANCE_TOKENS = """
    UPDATE client_tokens
    SET created_at = created_at - $1::interval, expires_at = expires_at - $1::interval,
        revoked_at = revoked_at - $1::interval"""
_ADVANCE_DAYS = "UPDATE signup_days SET day = (day - $1::interval)::date"
_ADVANCE_ENDPOINTS = """
    UPDATE webhook_endpoints
    SET previous_secret_until = previous_secret_until - $1::interval,
        created_at = created_at - $1::interval, failing_since = failing_since - $1::interval,
        paused_until = paused_until - $1::interval, leased_until = leased_until - $1::interval"""
_ADVANCE_DELIVERIES = """
    UPDATE webhook_deliveries
    SET created_at = created_at - $1::interval,
        status_changed_at = status_changed_at - $1::interval,
        next_attempt_at = next_attempt_at - $1::interval"""
_ADVANCE_OPERATORS = """
    UPDATE operators SET link_expires_at = link_expires_at - $1::interval"""
_SET_ACCOUNT = """
    INSERT INTO credit_accounts (channel, owner_id, balance, plan, suspended_at)
    VALUES ($1, $2, 0, $3, CASE WHEN $4::boolean THEN now() END)
    ON CONFLICT (channel, owner_id) DO UPDATE
    SET plan = EXCLUDED.plan, suspended_at = EXCLUDED.suspended_at"""
_ADD_TOKEN = """
    WITH store AS (
        INSERT INTO stores (id, name) VALUES ($2, 'test') ON CONFLICT DO NOTHING
    ), shopper AS (
        INSERT INTO shoppers (store_id, shopper_id) VALUES ($2, $3) ON CONFLICT DO NOTHING
    )
    INSERT INTO client_tokens (id, store_id, shopper_id, token_sha256, origin, pictures, used,
        submissions, created_at, expires_at, revoked_at)
    VALUES ($1::uuid, $2, $3, encode(sha256($1::text::bytea), 'hex'), 'https://shop.example', $4,
        $5, $6, $7::timestamptz - interval '30 minutes', $7, $8)"""
_BUDGET = """
    SELECT store_id, shopper_id, pictures, expires_at, revoked_at, used, submissions
    FROM client_tokens WHERE id = $1"""
_ALIGN = """
    UPDATE generation_sessions
    SET created_at = (SELECT max(created_at) FROM generation_sessions)"""
_CHANGE_BALANCE = """
    UPDATE credit_accounts SET balance = balance + $3, total_granted = total_granted + $3
    WHERE channel = $1 AND owner_id = $2"""
_DELETE_ENTRY = "DELETE FROM credit_ledger WHERE session_id = $1 AND kind = $2"
_ADD_ENTRY = """
    INSERT INTO credit_ledger (channel, owner_id, kind, amount, session_id)
    VALUES ($1, $2, $3, $4, $5)"""


class PostgresBackend(Backend):
    """``owner``, if it is another connection, does what the service's own role may not: it empties
    tables, moves times, and writes what the guards refuse."""

    def __init__(self, database: Database, *, owner: Database | None = None) -> None:
        self._database, self._used = owner or database, database
        self.ended = Counter()
        repo = self._repo = PostgresSessionRepo(database, count_ended=self.count_ended)
        self.sessions = self.attempts = self.recovery = self.reads = repo
        self.credits = self.accounts = PostgresCreditRepo(database)
        self.api_keys = PostgresApiKeyRepo(database)
        self.stores = PostgresStoreRepo(database)
        self.service_keys = PostgresServiceKeyRepo(database)
        self.audit_log = PostgresAuditLog(database)
        self.operators = PostgresOperatorRepo(database)
        self.erasure = PostgresErasureRepo(database)
        self.watched = PostgresWatchReads(database)
        self.client_tokens = PostgresClientTokenRepo(database)
        self.webhooks = PostgresWebhookRepo(database)
        self.operator_reads = PostgresOperatorReads(database, settled_within=SETTLED_WITHIN)
        self.pauses = PostgresPauseRepo(database)

    async def put_worker(self, state: WorkerState) -> None:
        await self._database.fetch(_PUT_WORKER, *astuple(state))

    async def put_pause(self, pause: Pause) -> None:
        await self._database.fetch(_PUT_PAUSE, *astuple(pause))

    async def put_check(self, check: BookCheck) -> None:
        took_ms = round(check.took.total_seconds() * 1000)
        values = (check.at, took_ms, check.discrepancies, check.first)
        await self._database.fetch(_PUT_CHECK, *values)

    def now(self) -> datetime:
        return datetime.now(UTC)

    async def name_origins(self, store: Owner, origins: Collection[str]) -> None:
        await self._database.fetch(_NAME_ORIGINS, store.id, list(origins))

    async def empty(self) -> None:
        await self._database.fetch(_TRUNCATE)
        await self._database.fetch(_FORGET_CHECK)

    async def external_write(self, session_id: UUID, **columns: Any) -> None:
        assignments = ", ".join(f"{name} = ${index}" for index, name in enumerate(columns, 2))
        sql = f"UPDATE generation_sessions SET {assignments} WHERE id = $1 RETURNING id"  # noqa: S608
        try:
            assert await self._database.fetch(sql, session_id, *columns.values())
        except asyncpg.RestrictViolationError as error:
            raise IllegalTransition(str(error)) from error

    async def external_write_input(self, session_id: UUID, name: str, value: object) -> None:
        (column,) = [column for column in COLUMNS if column.path == f"input.{name}"]
        encoded = value if column.encode is None else column.encode(value)
        await self.external_write(session_id, **{column.name: encoded})

    def limited(self, limits: AccountLimits) -> SessionRepoPort:
        return PostgresSessionRepo(self._used, limits=limits)

    async def set_account(
        self, owner: Owner, *, plan: Plan = Plan.DEFAULT, suspended: bool = False
    ) -> None:
        await self._database.fetch(_SET_ACCOUNT, owner.channel, owner.id, plan, suspended)

    async def add_token(self, token_id: UUID, budget: TokenBudget) -> None:
        await self._database.fetch(
            _ADD_TOKEN,
            token_id,
            budget.store_id,
            budget.shopper_id,
            budget.pictures,
            budget.used,
            budget.submissions,
            budget.expires_at,
            budget.revoked_at,
        )

    async def budget_of(self, token_id: UUID) -> TokenBudget:
        row = await self._database.fetch_row(_BUDGET, token_id)
        assert row is not None
        return TokenBudget(**row)

    async def advance(self, by: timedelta) -> None:
        for statement in (
            _ADVANCE,
            _ADVANCE_FAULTS,
            _ADVANCE_ACCOUNTS,
            _ADVANCE_SHOPPERS,
            _ADVANCE_TOKENS,
            _ADVANCE_DAYS,
            _ADVANCE_ENDPOINTS,
            _ADVANCE_DELIVERIES,
            _ADVANCE_OPERATORS,
        ):
            await self._rewrite(statement, by)

    async def align(self) -> None:
        await self._rewrite(_ALIGN)

    async def change_balance(self, owner: Owner, amount: int) -> None:
        await self._database.fetch(_CHANGE_BALANCE, owner.channel, owner.id, amount)

    async def delete_entry(self, session_id: UUID, kind: LedgerKind) -> None:
        await self._rewrite(_DELETE_ENTRY, session_id, kind)

    async def add_entry(
        self, owner: Owner, kind: LedgerKind, amount: int, session_id: UUID
    ) -> None:
        await self._rewrite(_ADD_ENTRY, owner.channel, owner.id, kind, amount, session_id)

    async def _rewrite(self, sql: str, *arguments: object) -> None:
        """Run a statement that the triggers refuse otherwise."""
        async with self._database.transaction() as connection:
            await connection.execute("SET LOCAL session_replication_role = replica")
            await connection.execute(sql, *arguments)


class QueueBackend(ABC):
    """A queue, as other producers and consumers see it."""

    queue: TaskQueuePort
    probe: QueueProbePort
    letters: DeadLetterPort

    @abstractmethod
    async def send(self, raw: bytes) -> None:
        """Add a message at the end of the queue, as an external producer does."""

    @abstractmethod
    async def messages(self) -> list[bytes]:
        """The messages in the queue, the next one first."""

    @abstractmethod
    def keeping(self, max_dead: int) -> "QueueBackend":
        """The same queue through an adapter that keeps up to ``max_dead`` dead letters."""

    async def dead(self) -> list[UnreadableTask]:
        """The dead letters, newest first, as the messages that were buried."""
        return [
            UnreadableTask(raw=letter.raw, reason=letter.reason, session_id=letter.session_id)
            for letter in await self.letters.dead(limit=100)
        ]


class MemoryQueueBackend(QueueBackend):
    def __init__(self, max_dead: int = MAX_DEAD) -> None:
        self._queue = InMemoryTaskQueue(clock=lambda: datetime.now(UTC), max_dead=max_dead)
        self.queue = self.probe = self.letters = self._queue

    async def send(self, raw: bytes) -> None:
        self._queue.messages.appendleft(raw)

    async def messages(self) -> list[bytes]:
        return list(reversed(self._queue.messages))

    def keeping(self, max_dead: int) -> QueueBackend:
        assert not self._queue.messages
        return MemoryQueueBackend(max_dead)


class RedisQueueBackend(QueueBackend):
    def __init__(self, *, client: Redis, max_dead: int = MAX_DEAD) -> None:
        self._client = client
        self.queue = self.probe = self.letters = RedisTaskQueue(
            client=client,
            timeout_seconds=2,
            clock=lambda: datetime.now(UTC),
            max_dead=max_dead,
        )

    async def send(self, raw: bytes) -> None:
        await self._client.lpush(TASKS_KEY, raw)

    async def messages(self) -> list[bytes]:
        items = await self._client.lrange(TASKS_KEY, 0, -1)
        return [item for item in reversed(items) if isinstance(item, bytes)]

    def keeping(self, max_dead: int) -> QueueBackend:
        return RedisQueueBackend(client=self._client, max_dead=max_dead)


class LimitBackend(ABC):
    """A limit on started work."""

    @abstractmethod
    def sharer(self, pace: Pace) -> StartLimitPort:
        """One of the processes that share the limit."""

    @abstractmethod
    async def wait(self, seconds: float) -> None:
        """Let the time pass, or a little more."""

    @abstractmethod
    def now(self) -> float:
        """Seconds on a clock as fast as the limit's."""


class MemoryLimitBackend(LimitBackend):
    def __init__(self) -> None:
        self._now = 1_000.0
        self._limit: StartLimitPort | None = None

    def sharer(self, pace: Pace) -> StartLimitPort:
        self._limit = self._limit or InMemoryStartLimit(pace, clock=lambda: self._now)
        return self._limit

    async def wait(self, seconds: float) -> None:
        self._now += seconds + 0.001

    def now(self) -> float:
        return self._now


class RedisLimitBackend(LimitBackend):
    def __init__(self, client: Redis) -> None:
        self._client = client

    def sharer(self, pace: Pace) -> StartLimitPort:
        return RedisStartLimit(
            pace,
            client=self._client,
            share=InMemoryStartLimit(_NONE, clock=lambda: 0.0),
            timeout_seconds=2,
        )

    async def wait(self, seconds: float) -> None:
        await asyncio.sleep(seconds + 0.001)

    def now(self) -> float:
        return time.monotonic()


_NONE = Pace(burst=0, interval_us=1)
"""A fallback that permits nothing, so that no test passes because of it."""
