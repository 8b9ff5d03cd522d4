"""SessionRepoPort.create and find_replay: one key and one input make one session and one debit. The
number of an owner's unfinished sessions is limited."""

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
    USER,
    a_session,
    picture_of,
)

pytestmark = pytest.mark.anyio

KEY = "order-4711"
LONG = timedelta(hours=1)
NEVER_QUEUED = Failure(code=ErrorCode.QUEUE_UNAVAILABLE, message="not now")


def a_copy(**changes: Any) -> GenerationSession:
    """The same key and input again, with its own session id and correlation id."""
    wanted = {
        "idempotency_key": KEY,
        "outfit_image_url": OUTFIT_URL,
        "accessories": (HAT, BAG),
        "request_id": "req_2",
    }
    return a_session(**wanted | changes)


async def first(backend: Backend, **changes: Any) -> GenerationSession:
    """The session with the key. Its owner has one more credit than it cost."""
    await backend.credits.grant(changes.get("owner", USER), 2, note="test")
    receipt = await backend.sessions.create(a_copy(**changes), max_active=MANY)
    assert not receipt.replayed
    return receipt.session


async def nothing(_: Backend, __: GenerationSession) -> None:
    """The session stays queued."""


async def claim(backend: Backend, session: GenerationSession) -> None:
    await backend.claim(session.id)


async def complete(backend: Backend, session: GenerationSession) -> None:
    await backend.claim(session.id)
    assert await backend.attempts.complete(session.id, attempt=1, picture=picture_of(session.id))


async def fail(backend: Backend, session: GenerationSession) -> None:
    await backend.claim(session.id)
    assert await backend.attempts.fail(session.id, FAILURE, attempt=1)


@pytest.mark.parametrize("fate", [nothing, claim, complete, fail])
async def test_replay_returns_the_current_state_of_the_session(
    backend: Backend, fate: Callable[[Backend, GenerationSession], Awaitable[None]]
) -> None:
    """Whatever its state, and whatever id the copy has. The ledger does not change."""
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
async def test_hundred_concurrent_copies_create_one_session(backend: Backend, balance: int) -> None:
    """One session, one debit and 99 replays, even if the balance covers just one."""
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
async def test_concurrent_copies_while_the_first_is_undone(backend: Backend, balance: int) -> None:
    """The queue is down, so the request that creates the session undoes it at once, while copies
    wait for the same account. None waits forever, none gets InsufficientCredits, and every credit
    is refunded."""
    await backend.credits.grant(USER, balance, note="test")

    async def submit() -> Receipt:
        receipt = await backend.sessions.create(a_copy(), max_active=1)
        if not receipt.replayed:
            undone = receipt.session.id
            assert await backend.sessions.fail_queued(undone, NEVER_QUEUED, undo=True)
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
async def test_key_belongs_to_its_input(backend: Backend, other: str) -> None:
    """Another input under the same key is refused. Nothing is charged or created."""
    session = await first(backend)
    ledger = await backend.ledger()

    with pytest.raises(IdempotencyKeyReused):
        await backend.sessions.create(a_copy(**OTHERS[other]), max_active=MANY)

    assert await backend.ledger() == ledger
    assert await backend.get(session.id) == session
    assert (await backend.reads.stats(USER)).total == 1


async def test_two_inputs_under_one_key(backend: Backend) -> None:
    """Concurrent copies of both: one of them has its session, and all copies of the other are
    refused."""
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


async def test_key_belongs_to_its_owner(backend: Backend) -> None:
    """The same key of two owners is two keys, also for the same id on two channels."""
    owners = [USER, OTHER, Owner(channel=Channel.B2B, id=USER.id)]

    sessions = [await first(backend, owner=owner) for owner in owners]

    assert len({session.id for session in sessions}) == 3
    assert [await backend.balance(owner) for owner in owners] == [1, 1, 1]


async def test_owner_has_many_keys(backend: Backend) -> None:
    """Keys that differ, even only in case, are different requests."""
    await backend.credits.grant(USER, 3, note="test")

    receipts = [
        await backend.sessions.create(a_session(idempotency_key=key), max_active=MANY)
        for key in ("k", "K", "k" * 255)
    ]

    assert [receipt.replayed for receipt in receipts] == [False] * 3
    assert await backend.balance() == 0


async def test_request_without_a_key_is_no_replay(backend: Backend) -> None:
    """Each one is a new session."""
    await backend.credits.grant(USER, 3, note="test")

    receipts = await asyncio.gather(
        *(backend.sessions.create(a_copy(idempotency_key=None), max_active=MANY) for _ in range(3))
    )

    assert [receipt.replayed for receipt in receipts] == [False] * 3
    assert await backend.balance() == 0


async def test_undone_session_gives_its_key_back(backend: Backend) -> None:
    """The caller was answered 503, and refunded. The next request is a new one and may have another
    input."""
    session = await first(backend)
    assert await backend.sessions.fail_queued(session.id, NEVER_QUEUED, undo=True)

    receipt = await backend.sessions.create(a_copy(outfit_image_url=None), max_active=MANY)

    assert not receipt.replayed
    assert await backend.money_of(session.id) == ["debit", "refund"]
    assert await backend.money_of(receipt.session.id) == ["debit"]


async def confirm(backend: Backend, session: GenerationSession) -> None:
    assert await backend.sessions.confirm([session.id]) == 1


async def claim_and_release(backend: Backend, session: GenerationSession) -> None:
    assert await backend.attempts.claim(session.id, lease=LONG)
    assert await backend.attempts.release(session.id, attempt=1, delay=timedelta(0))


@pytest.mark.parametrize("fate", [confirm, claim_and_release, claim, complete, fail])
async def test_undo_comes_too_late(
    backend: Backend, fate: Callable[[Backend, GenerationSession], Awaitable[None]]
) -> None:
    """A replay may have been answered 202 as soon as the session was confirmed, also if it is
    queued again since: nothing changes, and the key stays taken."""
    session = await first(backend)
    await fate(backend, session)
    before = await backend.get(session.id)

    assert not await backend.sessions.fail_queued(session.id, NEVER_QUEUED, undo=True)

    assert await backend.get(session.id) == before
    replay = await backend.sessions.create(a_copy(), max_active=MANY)
    assert (replay.replayed, replay.session) == (True, before)


@pytest.mark.parametrize("code", ErrorCode)
async def test_failed_session_keeps_its_key(backend: Backend, code: ErrorCode) -> None:
    """Only the undo frees it. A replay returns the failed session, and is not charged."""
    session = await first(backend)
    failure = Failure(code=code, message="no")
    assert await backend.sessions.fail_queued(session.id, failure)

    receipt = await backend.sessions.create(a_copy(), max_active=MANY)

    assert (receipt.replayed, receipt.session.failure) == (True, failure)
    assert await backend.balance() == 2


async def test_expired_session_keeps_its_key(backend: Backend) -> None:
    """Recovery failed it in a batch."""
    session = await first(backend)
    expired = Failure(code=ErrorCode.EXPIRED, message="The request waited too long")
    await backend.advance(2 * LONG)
    assert await backend.recovery.fail_expired(expired, older_than=LONG, limit=10) == 1

    receipt = await backend.sessions.create(a_copy(), max_active=MANY)

    assert (receipt.replayed, receipt.session.id) == (True, session.id)


async def test_limit_of_unfinished_sessions(backend: Backend) -> None:
    """Queued and processing sessions count. One more is refused before a credit is taken."""
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
async def test_concurrent_creations_keep_the_limit(backend: Backend, max_active: int) -> None:
    """No more than the limit are created."""
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
async def test_final_sessions_do_not_count_towards_the_limit(
    backend: Backend, fate: Callable[[Backend, GenerationSession], Awaitable[None]]
) -> None:
    """However many there are."""
    for _ in range(3):
        await fate(backend, (await backend.created()).session)
    await backend.credits.grant(USER, 1, note="test")

    receipt = await backend.sessions.create(a_session(), max_active=1)

    assert not receipt.replayed
    assert (await backend.reads.stats(USER)).active == 1


async def test_other_owners_sessions_do_not_count_towards_the_limit(backend: Backend) -> None:
    """Nor those of the same id on the other channel."""
    for owner in (OTHER, Owner(channel=Channel.B2B, id=USER.id)):
        await backend.queued(owner)
    await backend.credits.grant(USER, 1, note="test")

    receipt = await backend.sessions.create(a_session(), max_active=1)

    assert (await backend.get(receipt.session.id)).owner == USER


async def test_limit_is_checked_before_the_balance(backend: Backend) -> None:
    """Credits may come back when sessions fail, so waiting helps more than buying."""
    await backend.queued()

    with pytest.raises(TooManyActive):
        await backend.sessions.create(a_session(), max_active=1)


async def test_replay_needs_no_credit_and_no_place(backend: Backend) -> None:
    """Neither an empty account nor the limit of unfinished sessions matters."""
    session = (await backend.created(idempotency_key=KEY)).session

    receipt = await backend.sessions.create(a_session(idempotency_key=KEY), max_active=1)

    assert (receipt.replayed, receipt.session.id, receipt.credits_remaining) == (
        True,
        session.id,
        0,
    )


@pytest.mark.parametrize(("max_active", "error"), [(MANY, InsufficientCredits), (1, TooManyActive)])
async def test_refused_request_does_not_take_its_key(
    backend: Backend, max_active: int, error: type[Exception]
) -> None:
    """The same request may be sent again later."""
    await backend.queued()
    with pytest.raises(error):
        await backend.sessions.create(a_copy(), max_active=max_active)

    session = await first(backend)

    assert await backend.money_of(session.id) == ["debit"]


@pytest.mark.parametrize("fate", [nothing, claim, complete, fail])
async def test_find_replay_returns_the_current_state_of_the_session(
    backend: Backend, fate: Callable[[Backend, GenerationSession], Awaitable[None]]
) -> None:
    """The same receipt as from ``create``, and nothing changes."""
    session = await first(backend)
    await fate(backend, session)
    before = (await backend.ledger(), await backend.reads.stats(USER))

    receipt = await backend.sessions.find_replay(a_copy())

    assert receipt == await backend.sessions.create(a_copy(), max_active=MANY)
    assert receipt == Receipt(
        session=await backend.get(session.id),
        credits_remaining=await backend.balance(),
        replayed=True,
    )
    assert (await backend.ledger(), await backend.reads.stats(USER)) == before


@pytest.mark.parametrize(
    "new",
    [
        {"idempotency_key": None},
        {"idempotency_key": "another"},
        {"owner": OTHER},
        {"owner": Owner(channel=Channel.B2B, id=USER.id)},
    ],
)
async def test_find_replay_finds_nothing_for_a_new_request(
    backend: Backend, new: dict[str, Any]
) -> None:
    """Without a key, with a key of its own, or with another owner's key; and creates nothing."""
    await first(backend)

    assert await backend.sessions.find_replay(a_copy(**new)) is None

    assert (await backend.reads.stats(USER)).total == 1
    assert await backend.balance() == 1


async def test_find_replay_finds_nothing_once_the_key_was_given_back(backend: Backend) -> None:
    """The first request was answered 503, so the next one under this key is a new request."""
    session = await first(backend)
    assert await backend.sessions.fail_queued(session.id, NEVER_QUEUED, undo=True)

    assert await backend.sessions.find_replay(a_copy()) is None


@pytest.mark.parametrize("other", OTHERS)
async def test_find_replay_refuses_another_input(backend: Backend, other: str) -> None:
    """Like ``create``."""
    await first(backend)

    with pytest.raises(IdempotencyKeyReused):
        await backend.sessions.find_replay(a_copy(**OTHERS[other]))


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
