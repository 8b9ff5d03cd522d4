"""Owners, accounts and the sum of a ledger."""

from functools import reduce
from uuid import uuid4

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.credits import Channel, CreditAccount, LedgerEntry, LedgerKind, Owner
from domain.errors import InsufficientCredits, InvalidInput
from tests.support.clock import START
from tests.support.examples import USER


def an_entry(kind: LedgerKind, amount: int) -> LedgerEntry:
    return LedgerEntry(
        id=1,
        owner=USER,
        kind=kind,
        amount=amount,
        session_id=None if kind is LedgerKind.GRANT else uuid4(),
        note=None,
        created_at=START,
    )


GRANTS = st.builds(an_entry, st.just(LedgerKind.GRANT), st.integers(1, 10**9))
DEBITS = st.builds(an_entry, st.just(LedgerKind.DEBIT), st.integers(-10, -1))
REFUNDS = st.builds(an_entry, st.just(LedgerKind.REFUND), st.integers(1, 10))


@pytest.mark.parametrize(
    ("kind", "amount", "expected"),
    [
        (LedgerKind.GRANT, 5, CreditAccount(owner=USER, balance=5, total_granted=5)),
        (LedgerKind.DEBIT, -2, CreditAccount(owner=USER, balance=-2, total_debited=2)),
        (LedgerKind.REFUND, 1, CreditAccount(owner=USER, balance=1, total_refunded=1)),
    ],
)
def test_entry_changes_the_balance_and_its_total(
    kind: LedgerKind, amount: int, expected: CreditAccount
) -> None:
    """Amounts are signed; totals are positive."""
    account = CreditAccount(owner=USER).with_entry(an_entry(kind, amount))

    assert account == expected


@given(st.lists(GRANTS | DEBITS | REFUNDS))
def test_balance_is_the_sum_of_its_ledger(entries: list[LedgerEntry]) -> None:
    """For any entries: balance = sum of entries = granted - debited + refunded."""
    account = reduce(CreditAccount.with_entry, entries, CreditAccount(owner=USER))

    assert account.balance == sum(entry.amount for entry in entries)
    assert account.balance == (
        account.total_granted - account.total_debited + account.total_refunded
    )


@pytest.mark.parametrize("balance", [1, 2])
def test_balance_that_covers_the_cost_is_sufficient(balance: int) -> None:
    """The last credit can be spent."""
    account = CreditAccount(owner=USER, balance=balance)

    account.require(1)

    assert account.balance == balance


def test_balance_below_the_cost_is_insufficient() -> None:
    """The error has the cost."""
    with pytest.raises(InsufficientCredits) as refusal:
        CreditAccount(owner=USER, balance=2).require(3)

    assert refusal.value.required == 3
    assert refusal.value.code == "INSUFFICIENT_CREDITS"


@pytest.mark.parametrize("owner_id", ["a", "7", "shop.example:eu-1_x", "x" * 128])
def test_valid_owner_id(owner_id: str) -> None:
    """1 to 128 letters, digits and . _ : - are allowed."""
    assert str(Owner(channel=Channel.B2B, id=owner_id)) == f"b2b:{owner_id}"


@pytest.mark.parametrize(
    "owner_id",
    ["", "x" * 129, "..", "../up", "a/b", "a b", "a\n", "\x00", "-a", ".a", "ä", "a%2f"],
)
def test_invalid_owner_id(owner_id: str) -> None:
    """An id becomes part of object keys and log lines, so it has no special characters."""
    with pytest.raises(InvalidInput) as refusal:
        Owner(channel=Channel.B2C, id=owner_id)

    assert refusal.value.field == "owner_id"


def test_same_id_on_two_channels_is_two_owners() -> None:
    """A store and a user never share an account."""
    assert Owner(channel=Channel.B2B, id="same") != Owner(channel=Channel.B2C, id="same")
