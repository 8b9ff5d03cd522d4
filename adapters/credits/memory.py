"""Credit accounts and their ledger in this process's memory, for tests."""

from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from datetime import date, datetime
from typing import Protocol
from uuid import UUID

from adapters.audit_log.memory import InMemoryAuditLog
from domain.account_ports import AccountRepoPort
from domain.credits import Booked, CreditAccount, Discrepancy, LedgerEntry, LedgerKind, Owner
from domain.errors import Conflict, IdempotencyKeyReused
from domain.operators import Operator
from domain.plans import Plan, TokenBudget
from domain.ports import CreditRepoPort
from domain.sessions import GenerationSession, SessionStatus


class BalanceChanged(Protocol):
    """Called after each change of a balance."""

    def __call__(self, owner: Owner, *, before: int, after: int) -> None: ...


def _ignore(owner: Owner, *, before: int, after: int) -> None:
    pass


class InMemoryCreditRepo(CreditRepoPort, AccountRepoPort):
    """``entries`` is the whole ledger, oldest first. ``sessions`` and ``budgets`` return all
    sessions and client tokens, for the audit; the session repository sets them."""

    def __init__(
        self, *, clock: Callable[[], datetime], log: InMemoryAuditLog | None = None
    ) -> None:
        self.entries: list[LedgerEntry] = []
        self.sessions: Callable[[], Sequence[GenerationSession]] = tuple
        self.budgets: Callable[[], Mapping[UUID, TokenBudget]] = dict
        self.changed: BalanceChanged = _ignore
        self._accounts: dict[Owner, CreditAccount] = {}
        self._refunded: set[UUID] = set()
        self._signups: Counter[date] = Counter()
        self._clock = clock
        self._log = log or InMemoryAuditLog(clock=clock)

    async def account(self, owner: Owner) -> CreditAccount:
        return self.balance_of(owner)

    def all_accounts(self) -> list[CreditAccount]:
        """For operators."""
        return list(self._accounts.values())

    async def ledger(self, owner: Owner, *, limit: int, before_id: int | None) -> list[LedgerEntry]:
        entries = [
            entry
            for entry in reversed(self.entries)
            if entry.owner == owner and (before_id is None or entry.id < before_id)
        ]
        return entries[:limit]

    async def grant(
        self,
        owner: Owner,
        amount: int,
        *,
        note: str,
        reference: str | None = None,
        by: Operator | None = None,
    ) -> Booked:
        if earlier := self._earlier(owner, LedgerKind.GRANT, amount, reference):
            return earlier
        entry = self._record(owner, LedgerKind.GRANT, amount, note=note, reference=reference)
        self._log_entry(by, "credits.grant", entry)
        return Booked(account=self.balance_of(owner), entry=entry)

    async def adjust(
        self, owner: Owner, amount: int, *, note: str, reference: str | None, by: Operator
    ) -> Booked:
        if earlier := self._earlier(owner, LedgerKind.ADJUSTMENT, -amount, reference):
            return earlier
        balance = self.balance_of(owner).balance
        if balance < amount:
            raise Conflict(f"Only {balance} credit(s) are left; nothing was taken")
        entry = self._record(owner, LedgerKind.ADJUSTMENT, -amount, note=note, reference=reference)
        self._log_entry(by, "credits.adjust", entry)
        return Booked(account=self.balance_of(owner), entry=entry)

    def _earlier(
        self, owner: Owner, kind: LedgerKind, amount: int, reference: str | None
    ) -> Booked | None:
        """The result of an earlier call with the reference."""
        found = [entry for entry in self.entries if reference and entry.reference == reference]
        if not found:
            return None
        if (found[0].owner, found[0].kind, found[0].amount) != (owner, kind, amount):
            raise IdempotencyKeyReused(f"The reference {reference} belongs to another entry")
        return Booked(account=self.balance_of(owner), entry=found[0], replayed=True)

    def _log_entry(self, by: Operator | None, action: str, entry: LedgerEntry) -> None:
        self._log.record(
            by,
            action,
            entry.owner,
            entry_id=entry.id,
            amount=entry.amount,
            reference=entry.reference,
            note=entry.note,
        )

    async def set_plan(self, owner: Owner, plan: Plan, *, by: Operator) -> CreditAccount:
        if owner not in self._accounts or self._accounts[owner].plan is not plan:
            self.put_plan(owner, plan)
            self._log.record(by, "owner.plan", owner, plan=plan)
        return self.balance_of(owner)

    def put_plan(self, owner: Owner, plan: Plan) -> None:
        """Set the plan for a change that is recorded elsewhere."""
        self._accounts[owner] = replace(self.balance_of(owner), plan=plan)

    async def suspend(self, owner: Owner, *, by: Operator) -> CreditAccount:
        return self._set_suspended(owner, "owner.suspend", by, suspended=True)

    async def resume(self, owner: Owner, *, by: Operator) -> CreditAccount:
        return self._set_suspended(owner, "owner.resume", by, suspended=False)

    def _set_suspended(
        self, owner: Owner, action: str, by: Operator, *, suspended: bool
    ) -> CreditAccount:
        if self.balance_of(owner).suspended != suspended:
            self._accounts[owner] = replace(self.balance_of(owner), suspended=suspended)
            self._log.record(by, action, owner)
        return self.balance_of(owner)

    async def audit(self, *, limit: int) -> list[Discrepancy]:
        balances = [
            Discrepancy(
                subject=str(owner), problem=f"balance {account.balance} is not its ledger's"
            )
            for owner, account in self._accounts.items()
            if account != self._recomputed(account)
        ]
        booked: defaultdict[UUID | None, list[LedgerEntry]] = defaultdict(list)
        for entry in self.entries:
            booked[entry.session_id].append(entry)
        sessions = [
            Discrepancy(
                subject=f"session {session.id}",
                problem=f"is {session.status}, had a picture {_had_picture(session)}: {entries}",
            )
            for session in self.sessions()
            if not _is_right(session, entries := booked[session.id])
        ]
        counts = [
            Discrepancy(subject=f"client token {id_}", problem=f"counts {budget.used} picture(s)")
            for id_, budget in self.budgets().items()
            if budget.used != self._paid_with(id_)
        ]
        existing = {None, *(session.id for session in self.sessions())}
        missing = [
            Discrepancy(subject=f"session {id_}", problem=f"does not exist: {booked[id_]}")
            for id_ in booked.keys() - existing
        ]
        return [*balances, *sessions, *missing, *counts][:limit]

    def _paid_with(self, token_id: UUID) -> int:
        """The sessions of a client token that were not refunded."""
        shoppers = [(one.shopper, one.id) for one in self.sessions()]
        return sum(
            shopper is not None and shopper.token_id == token_id and id_ not in self._refunded
            for shopper, id_ in shoppers
        )

    def balance_of(self, owner: Owner) -> CreditAccount:
        return self._accounts.get(owner) or CreditAccount(owner=owner)

    async def signups_today(self) -> int:
        return self._signups[self._clock().date()]

    def count_signup(self, *, per_day: int) -> bool:
        """Count one more sign-up grant of this day (UTC), unless ``per_day`` were made."""
        day = self._clock().date()
        is_open = self._signups[day] < per_day
        self._signups[day] += is_open
        return is_open

    def grant_at_once(self, owner: Owner, amount: int, *, note: str) -> CreditAccount:
        self._record(owner, LedgerKind.GRANT, amount, note=note)
        return self.balance_of(owner)

    def debit(self, owner: Owner, cost: int, session_id: UUID) -> CreditAccount:
        """Debit ``cost`` for a session. Raises InsufficientCredits."""
        self.balance_of(owner).require(cost)
        self._record(owner, LedgerKind.DEBIT, -cost, session_id=session_id)
        return self.balance_of(owner)

    def refund(self, owner: Owner, cost: int, session_id: UUID) -> bool:
        """Refund ``cost`` for a session; False if it was refunded before."""
        if session_id in self._refunded:
            return False
        self._refunded.add(session_id)
        self._record(owner, LedgerKind.REFUND, cost, session_id=session_id)
        return True

    def _record(
        self,
        owner: Owner,
        kind: LedgerKind,
        amount: int,
        *,
        session_id: UUID | None = None,
        note: str | None = None,
        reference: str | None = None,
    ) -> LedgerEntry:
        entry = LedgerEntry(
            id=len(self.entries) + 1,
            owner=owner,
            kind=kind,
            amount=amount,
            session_id=session_id,
            note=note,
            created_at=self._clock(),
            reference=reference,
        )
        self.entries.append(entry)
        before = self.balance_of(owner)
        self._accounts[owner] = before.with_entry(entry)
        self.changed(owner, before=before.balance, after=before.balance + amount)
        return entry

    def _recomputed(self, held: CreditAccount) -> CreditAccount:
        """The account as the ledger has it."""
        account = CreditAccount(owner=held.owner, plan=held.plan, suspended=held.suspended)
        for entry in self.entries:
            if entry.owner == held.owner:
                account = account.with_entry(entry)
        return account


def _is_right(session: GenerationSession, entries: list[LedgerEntry]) -> bool:
    """Whether the owner was debited once, a failed session was refunded in full, and a completed
    one has a picture."""
    failed = session.status is SessionStatus.FAILED
    kinds = [LedgerKind.DEBIT, LedgerKind.REFUND] if failed else [LedgerKind.DEBIT]
    return (
        [entry.kind for entry in entries] == kinds
        and all(entry.owner == session.owner for entry in entries)
        and (not failed or sum(entry.amount for entry in entries) == 0)
        and (session.status is not SessionStatus.COMPLETED or _had_picture(session))
    )


def _had_picture(session: GenerationSession) -> bool:
    """Its place in the storage or its link is kept after the picture's deletion. Only an erased
    session has lost its link."""
    link = session.generated_image_url
    return session.picture is not None or bool(link) or session.erased_at is not None
