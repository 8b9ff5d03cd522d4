"""Credit accounts and ledger in this process's memory."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from domain.credits import CreditAccount, Discrepancy, LedgerEntry, LedgerKind, Owner
from domain.ports import CreditRepoPort


class InMemoryCreditRepo(CreditRepoPort):
    """Gone at exit. ``entries`` is the whole ledger, oldest first."""

    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        self.entries: list[LedgerEntry] = []
        self._accounts: dict[Owner, CreditAccount] = {}
        self._refunded: set[UUID] = set()
        self._clock = clock

    async def account(self, owner: Owner) -> CreditAccount:
        return self.balance_of(owner)

    async def ledger(self, owner: Owner, *, limit: int, before_id: int | None) -> list[LedgerEntry]:
        entries = [
            entry
            for entry in reversed(self.entries)
            if entry.owner == owner and (before_id is None or entry.id < before_id)
        ]
        return entries[:limit]

    async def grant(self, owner: Owner, amount: int, *, note: str) -> CreditAccount:
        self._record(owner, LedgerKind.GRANT, amount, note=note)
        return self.balance_of(owner)

    async def audit(self, *, limit: int) -> list[Discrepancy]:
        """Balances only: the sessions' half needs the sessions, which are not here."""
        found = [
            Discrepancy(
                subject=str(owner), problem=f"balance {account.balance} is not its ledger's"
            )
            for owner, account in self._accounts.items()
            if account != self._recomputed(owner)
        ]
        return found[:limit]

    def balance_of(self, owner: Owner) -> CreditAccount:
        return self._accounts.get(owner) or CreditAccount(owner=owner)

    def debit(self, owner: Owner, cost: int, session_id: UUID) -> CreditAccount:
        """Take ``cost`` for a session. Raises InsufficientCredits."""
        self.balance_of(owner).require(cost)
        self._record(owner, LedgerKind.DEBIT, -cost, session_id=session_id)
        return self.balance_of(owner)

    def refund(self, owner: Owner, cost: int, session_id: UUID) -> bool:
        """Give ``cost`` back for a session; False if that was done before."""
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
    ) -> None:
        entry = LedgerEntry(
            id=len(self.entries) + 1,
            owner=owner,
            kind=kind,
            amount=amount,
            session_id=session_id,
            note=note,
            created_at=self._clock(),
        )
        self.entries.append(entry)
        self._accounts[owner] = self.balance_of(owner).with_entry(entry)

    def _recomputed(self, owner: Owner) -> CreditAccount:
        account = CreditAccount(owner=owner)
        for entry in self.entries:
            if entry.owner == owner:
                account = account.with_entry(entry)
        return account
