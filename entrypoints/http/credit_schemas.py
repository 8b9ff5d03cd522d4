"""The JSON of credits: the account and its ledger."""

from typing import Annotated, Self
from uuid import UUID

from msgspec import Meta, Struct

from domain.credits import Channel, CreditAccount, LedgerEntry, LedgerKind
from entrypoints.http.schemas import CreatedAt, NextCursor


class Credits(Struct, frozen=True, kw_only=True):
    """Your account. `balance` is granted minus debited plus refunded plus adjusted."""

    channel: Channel
    owner_id: Annotated[str, Meta(description="Your store or user id.")]
    balance: int
    total_granted: int
    total_debited: int
    total_refunded: int
    total_adjusted: Annotated[
        int, Meta(description="0 or negative: mistaken grants that were taken back.")
    ]

    @classmethod
    def of(cls, account: CreditAccount) -> Self:
        return cls(
            channel=account.owner.channel,
            owner_id=account.owner.id,
            balance=account.balance,
            total_granted=account.total_granted,
            total_debited=account.total_debited,
            total_refunded=account.total_refunded,
            total_adjusted=account.total_adjusted,
        )


class CreditsEnvelope(Struct, frozen=True, kw_only=True):
    """Response with your account."""

    data: Credits
    error: None


class LedgerItem(Struct, frozen=True, kw_only=True):
    """One change of your balance."""

    id: int
    kind: LedgerKind
    amount: Annotated[
        int, Meta(description="Signed: debits and adjustments are negative.", examples=[-1])
    ]
    session_id: Annotated[UUID | None, Meta(description="Null except for debits and refunds.")]
    note: Annotated[str | None, Meta(description="Null except for grants and adjustments.")]
    created_at: CreatedAt

    @classmethod
    def of(cls, entry: LedgerEntry) -> Self:
        return cls(
            id=entry.id,
            kind=entry.kind,
            amount=entry.amount,
            session_id=entry.session_id,
            note=entry.note,
            created_at=entry.created_at,
        )


class LedgerPage(Struct, frozen=True, kw_only=True):
    """One page of your ledger, newest first."""

    items: list[LedgerItem]
    next_cursor: NextCursor


class LedgerPageEnvelope(Struct, frozen=True, kw_only=True):
    """Response with a page of ledger entries."""

    data: LedgerPage
    error: None
