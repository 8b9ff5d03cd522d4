"""SessionRepoPort.create: the same key with the same request makes one session and one debit, and
an owner has a bounded number of unfinished sessions."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.credits import Channel, Owner
from domain.errors import IdempotencyKeyReused, InsufficientCredits, TooManyActive
from domain.ports import Receipt
from domain.sessions import ErrorCode, Failure, GenerationSession
from tests.contracts.backends import Backend
from tests.support.examples import (
    BAG,
    FAILURE,
    HAT,
    MANY,
    MODEL_URL,
    OTHER,
    OUTFIT_URL,
    STORED_PICTURE,
    USER,
    a_session,
)

pytestmark = pytest.mark.anyio

KEY = "order-4711"
LONG = timedelta(hours=1)
NEVER_QUEUED = Failure(code=ErrorCode.QUEUE_UNAVAILABLE, message="not now")


def a_copy(**changes: Any) -> GenerationSession:
    """The same request once more: another session and correlation id, the same key."""
    wanted = {
        "idempotency_key": KEY,
        "outfit_image_url": OUTFIT_URL,
        "accessories": (HAT, BAG),
        "request_id": "req_2",
    }
    return a_session(**wanted | changes)


async def first(backend: Backend, **changes: Any) -> GenerationSession:
    """The session that has the key; its owner has one more credit than it cost."""
    await backend.credits.grant(changes.get("owner", USER), 2, note="test")
    receipt = await backend.sessions.create(a_copy(**changes), max_active=MANY)
    assert not receipt.replayed
    return receipt.session


async def nothing(_: Backend, __: GenerationSession) -> None:
    """The session stays as it was created."""


async def claim(backend: Backend, session: GenerationSession) -> None:
    await backend.claim(session.id)


async def complete(backend: Backend, session: GenerationSession) -> None:
    await backend.claim(session.id)
    assert await backend.attempts.complete(session.id, attempt=1, picture=STORED_PICTURE)


async def fail(backend: Backend, session: GenerationSession) -> None:
    await backend.claim(session.id)
    assert await backend.attempts.fail(session.id, FAILURE, attempt=1)


@pytest.mark.parametrize("fate", [nothing, claim, complete, fail])
async def test_a_repeated_request_gets_its_session_as_it_is_now(
    backend: Backend, fate: Callable[[Backend, GenerationSession], Awaitable[None]]
) -> None:
    """Whatever became of it, and whatever id the copy brought; the money stays as it is."""
    session = await first(backend)
    await fate(backend, session)
    ledger = await backend.ledger()

    receipt = await backend.sessions.create(a_copy(), max_active=MANY)

    assert receipt == Receipt(
        session=await backend.get(session.id),
        credits_remaining=await backend.balance(),
        replayed=True,
    )
    assert receipt.session.id == session.id
    assert await backend.ledger() == ledger


@pytest.mark.parametrize("balance", [1, 200])
async def test_a_hundred_copies_at_once_are_one(backend: Backend, balance: int) -> None:
    """One session, one debit, 99 replays of it; also where the balance covers just one."""
    await backend.credits.grant(USER, balance, note="test")

    receipts = await asyncio.gather(
        *(backend.sessions.create(a_copy(), max_active=MANY) for _ in range(100))
    )

    assert sorted(receipt.replayed for receipt in receipts) == [False] + [True] * 99
    assert len({receipt.session.id for receipt in receipts}) == 1
    assert {receipt.credits_remaining for receipt in receipts} == {balance - 1}
    assert await backend.money_of(receipts[0].session.id) == ["debit"]
    assert (await backend.reads.stats(USER)).total == 1


@pytest.mark.parametrize("balance", [1, 200])
async def test_copies_that_meet_the_undoing_of_the_first(backend: Backend, balance: int) -> None:
    """The queue is away, so whoever creates the session undoes it at once, while copies wait for
    the same account. None waits for ever, none is told that the credits do not suffice, and all
    money comes back."""
    await backend.credits.grant(USER, balance, note="test")

    async def submit() -> Receipt:
        receipt = await backend.sessions.create(a_copy(), max_active=1)
        if not receipt.replayed:
            assert await backend.sessions.fail_queued(receipt.session.id, NEVER_QUEUED)
        return receipt

    receipts = await asyncio.gather(*(submit() for _ in range(100)))

    made = [receipt.session.id for receipt in receipts if not receipt.replayed]
    assert {receipt.session.id for receipt in receipts} == set(made)
    assert len(set(made)) == len(made)
    assert await backend.balance() == balance
    assert await backend.credits.audit(limit=10) == []


OTHERS: dict[str, dict[str, Any]] = {
    "another model": {"model_image_url": "https://pictures.example/another.jpg"},
    "another outfit": {"outfit_image_url": MODEL_URL},
    "no outfit": {"outfit_image_url": None},
    "the outfit as an accessory": {
        "outfit_image_url": None,
        "accessories": (replace(HAT, url=OUTFIT_URL), HAT, BAG),
    },
    "an accessory less": {"accessories": (HAT,)},
    "accessories in another order": {"accessories": (BAG, HAT)},
    "an accessory of another type": {"accessories": (replace(HAT, type="cap"), BAG)},
    "an accessory's other picture": {"accessories": (replace(HAT, url=BAG.url), BAG)},
    "another prompt": {"prompt": "In the rain"},
}


@pytest.mark.parametrize("other", OTHERS)
async def test_a_key_belongs_to_what_was_asked_for(backend: Backend, other: str) -> None:
    """Something else under the same key is refused, and nothing is charged or made."""
    session = await first(backend)
    ledger = await backend.ledger()

    with pytest.raises(IdempotencyKeyReused):
        await backend.sessions.create(a_copy(**OTHERS[other]), max_active=MANY)

    assert await backend.ledger() == ledger
    assert await backend.get(session.id) == session
    assert (await backend.reads.stats(USER)).total == 1


async def test_of_two_requests_under_one_key_one_wins(backend: Backend) -> None:
    """Copies of both at once: one kind has its session, the other is refused in every copy."""
    await backend.credits.grant(USER, 200, note="test")
    requests: list[dict[str, Any]] = [{}, OTHERS["another prompt"]] * 50

    results = await asyncio.gather(
        *(backend.sessions.create(a_copy(**changes), max_active=MANY) for changes in requests),
        return_exceptions=True,
    )

    kinds = {tuple(map(type, results[index::2])) for index in (0, 1)}
    assert kinds == {(Receipt,) * 50, (IdempotencyKeyReused,) * 50}
    receipts = [result for result in results if isinstance(result, Receipt)]
    assert [receipt.replayed for receipt in receipts].count(False) == 1
    assert await backend.balance() == 199


async def test_a_key_is_its_owners(backend: Backend) -> None:
    """Two owners, also of the same id on two channels, know nothing of each other's keys."""
    owners = [USER, OTHER, Owner(channel=Channel.B2B, id=USER.id)]

    sessions = [await first(backend, owner=owner) for owner in owners]

    assert len({session.id for session in sessions}) == 3
    assert [await backend.balance(owner) for owner in owners] == [1, 1, 1]


async def test_an_owner_has_many_keys(backend: Backend) -> None:
    """Keys that differ, if only in case, are different requests."""
    await backend.credits.grant(USER, 3, note="test")

    receipts = [
        await backend.sessions.create(a_session(idempotency_key=key), max_active=MANY)
        for key in ("k", "K", "k" * 255)
    ]

    assert [receipt.replayed for receipt in receipts] == [False] * 3
    assert await backend.balance() == 0


async def test_without_a_key_nothing_is_a_repetition(backend: Backend) -> None:
    """Each request is its own, however alike."""
    await backend.credits.grant(USER, 3, note="test")

    receipts = await asyncio.gather(
        *(backend.sessions.create(a_copy(idempotency_key=None), max_active=MANY) for _ in range(3))
    )

    assert [receipt.replayed for receipt in receipts] == [False] * 3
    assert await backend.balance() == 0


async def test_what_was_never_queued_gives_its_key_back(backend: Backend) -> None:
    """Its caller was told 503 and has the credit back: the repetition is a new request, which may
    also be another one."""
    session = await first(backend)
    assert await backend.sessions.fail_queued(session.id, NEVER_QUEUED)

    receipt = await backend.sessions.create(a_copy(outfit_image_url=None), max_active=MANY)

    assert not receipt.replayed
    assert await backend.money_of(session.id) == ["debit", "refund"]
    assert await backend.money_of(receipt.session.id) == ["debit"]


@pytest.mark.parametrize(
    "code", [code for code in ErrorCode if code is not ErrorCode.QUEUE_UNAVAILABLE]
)
async def test_what_failed_otherwise_keeps_its_key(backend: Backend, code: ErrorCode) -> None:
    """The caller was told 202: a repetition is told how that ended, and is not charged."""
    session = await first(backend)
    failure = Failure(code=code, message="no")
    assert await backend.sessions.fail_queued(session.id, failure)

    receipt = await backend.sessions.create(a_copy(), max_active=MANY)

    assert (receipt.replayed, receipt.session.failure) == (True, failure)
    assert await backend.balance() == 2


async def test_what_expired_keeps_its_key(backend: Backend) -> None:
    """Also where recovery failed it, in a batch."""
    session = await first(backend)
    expired = Failure(code=ErrorCode.EXPIRED, message="The request waited too long")
    await backend.advance(2 * LONG)
    assert await backend.recovery.fail_expired(expired, older_than=LONG, limit=10) == 1

    receipt = await backend.sessions.create(a_copy(), max_active=MANY)

    assert (receipt.replayed, receipt.session.id) == (True, session.id)


async def test_an_owner_may_have_so_many_unfinished_sessions(backend: Backend) -> None:
    """Those that wait and those that are worked on count; one more is refused before a credit is
    taken."""
    await backend.queued()
    await backend.claimed()
    await backend.credits.grant(USER, 1, note="test")
    ledger = await backend.ledger()

    with pytest.raises(TooManyActive):
        await backend.sessions.create(a_session(), max_active=2)

    assert await backend.ledger() == ledger
    assert (await backend.reads.stats(USER)).total == 2
    receipt = await backend.sessions.create(a_session(), max_active=3)
    assert not receipt.replayed


@pytest.mark.parametrize("max_active", [1, 3])
async def test_those_that_arrive_at_once_count_each_other(
    backend: Backend, max_active: int
) -> None:
    """However many there are, no more than the limit are created."""
    await backend.credits.grant(USER, 20, note="test")

    outcomes = await asyncio.gather(
        *(backend.sessions.create(a_session(), max_active=max_active) for _ in range(20)),
        return_exceptions=True,
    )

    assert [type(outcome) for outcome in outcomes].count(Receipt) == max_active
    assert (await backend.reads.stats(USER)).active == max_active
    refusals = [outcome for outcome in outcomes if not isinstance(outcome, Receipt)]
    assert {type(refusal) for refusal in refusals} == {TooManyActive}


@pytest.mark.parametrize("fate", [complete, fail])
async def test_what_is_finished_does_not_count(
    backend: Backend, fate: Callable[[Backend, GenerationSession], Awaitable[None]]
) -> None:
    """However many there are."""
    for _ in range(3):
        await fate(backend, (await backend.created()).session)
    await backend.credits.grant(USER, 1, note="test")

    receipt = await backend.sessions.create(a_session(), max_active=1)

    assert not receipt.replayed
    assert (await backend.reads.stats(USER)).active == 1


async def test_what_others_have_does_not_count(backend: Backend) -> None:
    """Not another owner's, and not those of the same id on the other channel."""
    for owner in (OTHER, Owner(channel=Channel.B2B, id=USER.id)):
        await backend.queued(owner)
    await backend.credits.grant(USER, 1, note="test")

    receipt = await backend.sessions.create(a_session(), max_active=1)

    assert (await backend.get(receipt.session.id)).owner == USER


async def test_who_has_too_many_and_no_credits_is_told_to_wait(backend: Backend) -> None:
    """Credits come back when sessions fail, so buying some would help less than waiting."""
    await backend.queued()

    with pytest.raises(TooManyActive):
        await backend.sessions.create(a_session(), max_active=1)


async def test_a_repetition_is_never_refused_for_want_of_anything(backend: Backend) -> None:
    """It takes no credit and no place: neither an empty account nor a full one matters."""
    session = (await backend.created(idempotency_key=KEY)).session

    receipt = await backend.sessions.create(a_session(idempotency_key=KEY), max_active=1)

    assert (receipt.replayed, receipt.session.id, receipt.credits_remaining) == (
        True,
        session.id,
        0,
    )


@pytest.mark.parametrize(("max_active", "error"), [(MANY, InsufficientCredits), (0, TooManyActive)])
async def test_a_refused_request_does_not_take_its_key(
    backend: Backend, max_active: int, error: type[Exception]
) -> None:
    """Who could not pay or had to wait may send the same request again."""
    with pytest.raises(error):
        await backend.sessions.create(a_copy(), max_active=max_active)

    session = await first(backend)

    assert await backend.money_of(session.id) == ["debit"]


async def test_repetition_is_answered_from_its_own_account(backend: Backend) -> None:
    """The same key of the same id on the other channel, and of another owner on the same one, is
    another session of another balance."""
    namesake, other = Owner(channel=Channel.B2B, id=USER.id), OTHER
    sessions = {owner: a_session(owner=owner, idempotency_key="k") for owner in (namesake, other)}
    sessions[USER] = a_session(owner=USER, idempotency_key="k")
    for number, (owner, session) in enumerate(sessions.items(), 2):
        await backend.credits.grant(owner, number, note="test")
        await backend.sessions.create(session, max_active=MANY)

    receipts = {
        owner: await backend.sessions.create(replace(session, id=uuid4()), max_active=MANY)
        for owner, session in sessions.items()
    }

    assert {
        owner: (receipt.replayed, receipt.session.id, receipt.credits_remaining)
        for owner, receipt in receipts.items()
    } == {
        owner: (True, session.id, number)
        for number, (owner, session) in enumerate(sessions.items(), 1)
    }
