"""Owners, their credit accounts and the ledger that explains every balance."""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Self, assert_never
from uuid import UUID

from domain.errors import InsufficientCredits, InvalidInput, Suspended
from domain.plans import Plan

GENERATION_COST = 1
"""Credits that one generation costs."""

MAX_GRANT = 1_000_000_000
"""The largest single grant: far below the database's limit, and small enough to catch a typo."""

_OWNER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""An owner's id becomes part of object keys and log lines, so it has no special characters."""


class Channel(StrEnum):
    """The kind of customer: a store (``b2b``) or a user (``b2c``)."""

    B2B = "b2b"
    B2C = "b2c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """The store (``b2b``) or user (``b2c``) that pays for a session and may see it."""

    channel: Channel
    id: str

    def __post_init__(self) -> None:
        if not _OWNER_ID.fullmatch(self.id):
            raise InvalidInput(
                "owner_id",
                "must be 1 to 128 of A-Z a-z 0-9 . _ : - and begin with one of A-Z a-z 0-9",
            )

    def __str__(self) -> str:
        return f"{self.channel}:{self.id}"


class LedgerKind(StrEnum):
    """The reason why a balance changed."""

    GRANT = "grant"
    DEBIT = "debit"
    REFUND = "refund"
    ADJUSTMENT = "adjustment"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One change of a balance. The ledger is append-only.

    ``amount`` is in signed credits: positive for a grant or a refund, negative for a debit or an
    adjustment, which takes a mistaken grant back. ``session_id`` is set for debits and refunds,
    ``note`` and perhaps ``reference``, the operator's own key of the entry, for the others.
    """

    id: int
    owner: Owner
    kind: LedgerKind
    amount: int
    session_id: UUID | None
    note: str | None
    created_at: datetime
    reference: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditAccount:
    """An owner's credits: the balance and the totals that explain it. ``total_adjusted`` is 0 or
    negative. A ``suspended`` owner can read, but not use, what it has."""

    owner: Owner
    balance: int = 0
    total_granted: int = 0
    total_debited: int = 0
    total_refunded: int = 0
    total_adjusted: int = 0
    plan: Plan = Plan.DEFAULT
    suspended: bool = False

    @property
    def is_unfunded(self) -> bool:
        """Whether the account has no ledger entry."""
        return self.total_granted == 0 and self.total_debited == 0

    def with_entry(self, entry: LedgerEntry) -> Self:
        """The account after ``entry``. The balance is the sum of the ledger."""
        match entry.kind:
            case LedgerKind.GRANT:
                totals = replace(self, total_granted=self.total_granted + entry.amount)
            case LedgerKind.DEBIT:
                totals = replace(self, total_debited=self.total_debited - entry.amount)
            case LedgerKind.REFUND:
                totals = replace(self, total_refunded=self.total_refunded + entry.amount)
            case LedgerKind.ADJUSTMENT:
                totals = replace(self, total_adjusted=self.total_adjusted + entry.amount)
            case _:
                assert_never(entry.kind)
        return replace(totals, balance=self.balance + entry.amount)

    def require(self, cost: int) -> None:
        """Raise InsufficientCredits unless the balance covers ``cost``."""
        if self.balance < cost:
            raise InsufficientCredits(required=cost)

    def require_active(self) -> None:
        """Raise Suspended for a suspended owner."""
        if self.suspended:
            raise Suspended("The account is suspended")


@dataclass(frozen=True, slots=True, kw_only=True)
class Booked:
    """The result of a grant or an adjustment: its ledger entry, and the account as it is now.
    ``replayed`` means that an earlier call with the same reference made the entry."""

    account: CreditAccount
    entry: LedgerEntry
    replayed: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """An error found by an audit of the books. ``subject`` names the account or the session."""

    subject: str
    problem: str
