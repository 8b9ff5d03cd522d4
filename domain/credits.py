"""Owners, their credit accounts and the ledger that explains every balance."""

import re
from dataclasses import dataclass, replace
from datetime import datetime
from enum import StrEnum
from typing import Self, assert_never
from uuid import UUID

from domain.errors import InsufficientCredits, InvalidInput

GENERATION_COST = 1
"""Credits that one generation costs."""

MAX_GRANT = 1_000_000_000
"""Largest single grant; far from the store's integer limit, near enough to catch a slip."""

_OWNER_ID = re.compile(r"[A-Za-z0-9][A-Za-z0-9._:-]{0,127}")
"""An owner's id is part of object keys and log lines, so it holds nothing that could escape."""


class Channel(StrEnum):
    """Through which door a request came: a store's (``b2b``) or a user's (``b2c``)."""

    B2B = "b2b"
    B2C = "b2c"


@dataclass(frozen=True, slots=True, kw_only=True)
class Owner:
    """Who pays for a session and may see it: a store (``b2b``) or a user (``b2c``)."""

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
    """Why a balance changed."""

    GRANT = "grant"
    DEBIT = "debit"
    REFUND = "refund"


@dataclass(frozen=True, slots=True, kw_only=True)
class LedgerEntry:
    """One change of a balance. Entries are only ever added.

    ``amount`` is signed credits: positive for a grant or a refund, negative for a debit.
    ``session_id`` is set for debits and refunds, ``note`` for grants.
    """

    id: int
    owner: Owner
    kind: LedgerKind
    amount: int
    session_id: UUID | None
    note: str | None
    created_at: datetime


@dataclass(frozen=True, slots=True, kw_only=True)
class CreditAccount:
    """An owner's credits: what was granted, spent and given back, and what is left."""

    owner: Owner
    balance: int = 0
    total_granted: int = 0
    total_debited: int = 0
    total_refunded: int = 0

    def with_entry(self, entry: LedgerEntry) -> Self:
        """The account after ``entry``: a balance is what its ledger adds up to."""
        match entry.kind:
            case LedgerKind.GRANT:
                totals = replace(self, total_granted=self.total_granted + entry.amount)
            case LedgerKind.DEBIT:
                totals = replace(self, total_debited=self.total_debited - entry.amount)
            case LedgerKind.REFUND:
                totals = replace(self, total_refunded=self.total_refunded + entry.amount)
            case _:
                assert_never(entry.kind)
        return replace(totals, balance=self.balance + entry.amount)

    def require(self, cost: int) -> None:
        """Raise InsufficientCredits unless the balance covers ``cost``."""
        if self.balance < cost:
            raise InsufficientCredits(required=cost)


@dataclass(frozen=True, slots=True, kw_only=True)
class Discrepancy:
    """Something that an audit of the books found wrong: where (an account or a session), what."""

    subject: str
    problem: str
