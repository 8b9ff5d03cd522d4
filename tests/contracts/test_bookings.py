"""CreditRepoPort: a reference books once, and an adjustment never takes more than there is."""

import asyncio
from collections import Counter
from collections.abc import Callable, Coroutine
from typing import Any

import pytest

from domain.credits import Booked, CreditAccount, LedgerKind, Owner
from domain.errors import Conflict, IdempotencyKeyReused
from tests.contracts.backends import Backend
from tests.support.examples import OPERATOR, OTHER, USER

pytestmark = pytest.mark.anyio

Book = Callable[[Backend, Owner, int, str | None], Coroutine[Any, Any, Booked]]


async def grant(backend: Backend, owner: Owner, amount: int, reference: str | None) -> Booked:
    return await backend.credits.grant(owner, amount, note="n", reference=reference, by=OPERATOR)


async def adjust(backend: Backend, owner: Owner, amount: int, reference: str | None) -> Booked:
    return await backend.credits.adjust(owner, amount, note="n", reference=reference, by=OPERATOR)


SIGNS: dict[Book, int] = {grant: 1, adjust: -1}
both = pytest.mark.parametrize("book", SIGNS)


async def books_are_right(backend: Backend) -> bool:
    return await backend.credits.audit(limit=10) == []


@both
async def test_reference_books_once(backend: Backend, book: Book) -> None:
    """The repetition has the same entry, and the account as it is now."""
    await backend.credits.grant(USER, 10, note="test")
    first = await book(backend, USER, 3, "invoice-1")
    await backend.credits.grant(USER, 5, note="test")
    again = await book(backend, USER, 3, "invoice-1")

    assert (first.replayed, again.replayed) == (False, True)
    assert first.entry == again.entry
    assert (first.entry.amount, first.entry.reference) == (3 * SIGNS[book], "invoice-1")
    assert first.account.balance == 10 + 3 * SIGNS[book]
    assert again.account == await backend.credits.account(USER)
    assert again.account.balance == 15 + 3 * SIGNS[book]
    assert len(await backend.ledger()) == 3
    assert len(await backend.actions()) == 1
    assert await books_are_right(backend)


@both
async def test_concurrent_calls_with_one_reference_book_once(backend: Backend, book: Book) -> None:
    """Also where the first takes all credits: the others are its repetitions, not too late."""
    await backend.credits.grant(USER, 3, note="test")

    booked = await asyncio.gather(*(book(backend, USER, 3, "invoice-1") for _ in range(20)))

    assert Counter(one.replayed for one in booked) == {False: 1, True: 19}
    assert len({one.entry.id for one in booked}) == 1
    assert await backend.balance() == 3 + 3 * SIGNS[book]
    assert len(await backend.actions()) == 1
    assert await books_are_right(backend)


@both
async def test_concurrent_calls_with_one_reference_for_two_owners(
    backend: Backend, book: Book
) -> None:
    """One owner gets it, and calls for the other are refused; nothing of them stays."""
    for owner in (USER, OTHER):
        await backend.credits.grant(owner, 100, note="test")

    results = await asyncio.gather(
        *(book(backend, owner, 3, "invoice-1") for owner in (USER, OTHER) * 10),
        return_exceptions=True,
    )

    refused = [result for result in results if isinstance(result, IdempotencyKeyReused)]
    booked = [result for result in results if isinstance(result, Booked)]
    assert (len(refused), len(booked)) == (10, 10)
    assert Counter(one.replayed for one in booked) == {False: 1, True: 9}
    assert await backend.balance(USER) + await backend.balance(OTHER) == 200 + 3 * SIGNS[book]
    assert await books_are_right(backend)


@pytest.mark.parametrize(
    ("book", "owner", "amount"),
    [(grant, OTHER, 3), (grant, USER, 4), (adjust, USER, 3)],
    ids=["another owner", "another amount", "another kind"],
)
async def test_reference_of_another_entry(
    backend: Backend, book: Book, owner: Owner, amount: int
) -> None:
    """Refused, and nothing is booked: no account, no entry, nothing in the audit log."""
    await grant(backend, USER, 3, "invoice-1")

    with pytest.raises(IdempotencyKeyReused, match="invoice-1"):
        await book(backend, owner, amount, "invoice-1")

    assert await backend.balance(USER) == 3
    assert await backend.credits.account(OTHER) == CreditAccount(owner=OTHER)
    assert len(await backend.ledger()) == len(await backend.actions()) == 1


async def test_entries_without_a_reference_are_all_booked(backend: Backend) -> None:
    """None is no reference."""
    for _ in range(2):
        await grant(backend, USER, 3, None)
        await adjust(backend, USER, 1, None)

    assert await backend.balance() == 4
    assert await books_are_right(backend)


async def test_adjustment(backend: Backend) -> None:
    """Its amount is negative, its total too, and the books stay right."""
    await backend.queued()
    await backend.credits.grant(USER, 10, note="test")

    booked = await adjust(backend, USER, 10, None)

    assert booked.account == CreditAccount(
        owner=USER, total_granted=11, total_debited=1, total_adjusted=-10
    )
    assert (booked.entry.kind, booked.entry.amount) == (LedgerKind.ADJUSTMENT, -10)
    assert (booked.entry.note, booked.entry.session_id) == ("n", None)
    assert (await backend.ledger())[-1] == booked.entry
    assert await books_are_right(backend)


@pytest.mark.parametrize("balance", [0, 2])
async def test_adjustment_takes_all_or_nothing(backend: Backend, balance: int) -> None:
    """With too few credits, or no account, nothing changes; the reference stays free."""
    if balance:
        await backend.credits.grant(USER, balance, note="test")

    with pytest.raises(Conflict, match=rf"^Only {balance} credit\(s\) are left"):
        await adjust(backend, USER, 3, "invoice-1")

    assert await backend.balance() == balance
    assert await backend.actions() == []
    await backend.credits.grant(USER, 3 - balance, note="test")
    assert not (await adjust(backend, USER, 3, "invoice-1")).replayed


async def test_concurrent_adjustments_take_no_more_than_there_is(backend: Backend) -> None:
    """Of ten that want 3 of 10, three succeed."""
    await backend.credits.grant(USER, 10, note="test")

    results = await asyncio.gather(
        *(adjust(backend, USER, 3, f"invoice-{number}") for number in range(10)),
        return_exceptions=True,
    )

    assert Counter(type(result) for result in results) == {Booked: 3, Conflict: 7}
    assert await backend.balance() == 1
    assert len(await backend.actions()) == 3
    assert await books_are_right(backend)


async def test_bookings_are_in_the_audit_log(backend: Backend) -> None:
    """Who, why, how much; a grant that no operator makes is not."""
    await backend.credits.grant(USER, 5, note="test")
    granted = await grant(backend, USER, 3, "invoice-1")
    adjusted = await adjust(backend, USER, 2, None)

    actions = await backend.actions(USER)

    assert [(action.action, action.actor, action.reason) for action in actions] == [
        ("credits.grant", OPERATOR.actor, OPERATOR.reason),
        ("credits.adjust", OPERATOR.actor, OPERATOR.reason),
    ]
    assert [action.details for action in actions] == [
        {"entry_id": granted.entry.id, "amount": 3, "reference": "invoice-1", "note": "n"},
        {"entry_id": adjusted.entry.id, "amount": -2, "reference": None, "note": "n"},
    ]
