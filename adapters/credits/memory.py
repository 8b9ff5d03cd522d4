"""Credit accounts and their ledger in this process's memory, for tests."""

from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from datetime import date, datetime
from uuid import UUID

from domain.credits import CreditAccount, Discrepancy, LedgerEntry, LedgerKind, Owner
from domain.ports import CreditRepoPort
from domain.sessions import GenerationSession, SessionStatus


class InMemoryCreditRepo(CreditRepoPort):
    """``entries`` is the whole ledger, oldest first. ``sessions`` returns all sessions, for the
    audit; the session repository sets it."""

    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        self.entries: list[LedgerEntry] = []
        self.sessions: Callable[[], Sequence[GenerationSession]] = tuple
        self._accounts: dict[Owner, CreditAccount] = {}
        self._refunded: set[UUID] = set()
        self._signups: Counter[date] = Counter()
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
        return self.grant_at_once(owner, amount, note=note)

    async def audit(self, *, limit: int) -> list[Discrepancy]:
        balances = [
            Discrepancy(
                subject=str(owner), problem=f"balance {account.balance} is not its ledger's"
            )
            for owner, account in self._accounts.items()
            if account != self._recomputed(owner)
        ]
        booked: defaultdict[UUID | None, list[LedgerEntry]] = defaultdict(list)
        for entry in self.entries:
            booked[entry.session_id].append(entry)
        sessions = [
            Discrepancy(
                subject=f"session {session.id}",
                problem=f"is {session.status}, its picture {_picture(session)}: {entries}",
            )
            for session in self.sessions()
            if not _is_right(session, entries := booked[session.id])
        ]
        existing = {None, *(session.id for session in self.sessions())}
        missing = [
            Discrepancy(subject=f"session {id_}", problem=f"does not exist: {booked[id_]}")
            for id_ in booked.keys() - existing
        ]
        return [*balances, *sessions, *missing][:limit]

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


def _is_right(session: GenerationSession, entries: list[LedgerEntry]) -> bool:
    """Whether the owner was debited once, a failed session was refunded in full, and a completed
    one has a picture."""
    failed = session.status is SessionStatus.FAILED
    kinds = [LedgerKind.DEBIT, LedgerKind.REFUND] if failed else [LedgerKind.DEBIT]
    return (
        [entry.kind for entry in entries] == kinds
        and all(entry.owner == session.owner for entry in entries)
        and (not failed or sum(entry.amount for entry in entries) == 0)
        and (session.status is not SessionStatus.COMPLETED or _picture(session) is not None)
    )


def _picture(session: GenerationSession) -> str | None:
    """Its place in the storage, or its link. Kept after the picture's deletion."""
    return session.picture.object_key if session.picture else session.generated_image_url
