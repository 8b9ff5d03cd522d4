"""SessionRepoPort.create_many and undo_many: many sessions of one owner in one statement, each with
an outcome of its own. And TaskQueuePort.push_many."""

import asyncio
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

import pytest

from domain.credits import LedgerKind
from domain.errors import (
    IdempotencyKeyReused,
    InsufficientCredits,
    RateLimited,
    Suspended,
    TooManyActive,
    WearonError,
)
from domain.plans import AccountLimits, Plan, PlanRates
from domain.ports import Receipt
from domain.sessions import ErrorCode, Failure, GenerationSession, SessionStatus
from domain.tasks import GenerationTask
from tests.contracts.backends import Backend, QueueBackend
from tests.support.examples import (
    BAG,
    HAT,
    MANY,
    OTHER,
    OUTFIT_URL,
    STORE,
    USER,
    a_session,
    a_task,
)

pytestmark = pytest.mark.anyio

NOT_PUSHED = Failure(code=ErrorCode.QUEUE_UNAVAILABLE, message="not now")


def some(count: int, **changes: Any) -> list[GenerationSession]:
    return [a_session(**{"owner": STORE} | changes) for _ in range(count)]


def kinds(outcomes: Sequence[Receipt | WearonError | None]) -> list[type]:
    return [type(outcome) for outcome in outcomes]


async def all_of(backend: Backend) -> list[GenerationSession]:
    return await backend.reads.history(STORE, status=None, limit=1_000, after=None)


async def test_each_session_is_created_and_debited(backend: Backend) -> None:
    """In order, with the balance as it was after each, and as ``create`` stores them."""
    await backend.credits.grant(STORE, 5, note="test")
    asked = [
        *some(2),
        a_session(owner=STORE, outfit_image_url=OUTFIT_URL, accessories=(HAT, BAG)),
        a_session(owner=STORE, idempotency_key="k", prompt="In the rain", age_verified=True),
    ]

    outcomes = await backend.sessions.create_many(asked, max_active=MANY)

    receipts = [outcome for outcome in outcomes if isinstance(outcome, Receipt)]
    assert [receipt.session.id for receipt in receipts] == [session.id for session in asked]
    assert [receipt.credits_remaining for receipt in receipts] == [4, 3, 2, 1]
    for receipt, session in zip(receipts, asked, strict=True):
        stored = await backend.get(session.id)
        assert receipt.session == stored
        assert (stored.input, stored.idempotency_key) == (session.input, session.idempotency_key)
        assert (stored.status, stored.confirmed) == (SessionStatus.QUEUED, False)
        assert await backend.money_of(session.id, STORE) == [LedgerKind.DEBIT]
    assert await backend.balance(STORE) == 1
    assert await backend.credits.audit(limit=10) == []


async def test_refused_sessions_do_not_affect_the_others(backend: Backend) -> None:
    """The credits last for the first two; of the third nothing remains."""
    await backend.credits.grant(STORE, 2, note="test")

    outcomes = await backend.sessions.create_many(some(4), max_active=MANY)

    assert kinds(outcomes) == [Receipt, Receipt, InsufficientCredits, InsufficientCredits]
    assert len(await all_of(backend)) == 2
    assert await backend.balance(STORE) == 0


async def test_limit_on_unfinished_sessions_counts_each(backend: Backend) -> None:
    await backend.credits.grant(STORE, 9, note="test")
    await backend.sessions.create(some(1)[0], max_active=3)

    outcomes = await backend.sessions.create_many(some(4), max_active=3)

    assert kinds(outcomes) == [Receipt, Receipt, TooManyActive, TooManyActive]
    assert await backend.balance(STORE) == 6


async def test_rates_count_each_and_are_on_the_last_receipt(backend: Backend) -> None:
    await backend.credits.grant(STORE, 9, note="test")
    rates = PlanRates(submissions_per_minute=3, submissions_per_hour=None)
    repo = backend.limited(AccountLimits(rates={Plan.DEFAULT: rates}))

    outcomes = await repo.create_many(some(5), max_active=MANY)

    assert kinds(outcomes) == [Receipt, Receipt, Receipt, RateLimited, RateLimited]
    last, refusal = outcomes[2], outcomes[-1]
    assert isinstance(last, Receipt)
    assert [rate.remaining for rate in last.rates] == [0]
    assert isinstance(refusal, RateLimited)
    assert (refusal.retry_after_seconds > 0, [one.remaining for one in refusal.rates]) == (
        True,
        [0],
    )


async def test_suspended_owner(backend: Backend) -> None:
    await backend.credits.grant(STORE, 9, note="test")
    await backend.set_account(STORE, suspended=True)

    assert kinds(await backend.sessions.create_many(some(2), max_active=MANY)) == [Suspended] * 2
    assert await all_of(backend) == []


async def test_taken_keys_are_left_to_create(backend: Backend) -> None:
    """None for the key of an earlier session, and for the second of two with one key. Nothing is
    done for them, and ``create`` decides."""
    await backend.credits.grant(STORE, 9, note="test")
    earlier = a_session(owner=STORE, idempotency_key="earlier")
    await backend.sessions.create(earlier, max_active=MANY)
    again, first, second = (
        a_session(owner=STORE, idempotency_key="earlier"),
        a_session(owner=STORE, idempotency_key="twice"),
        a_session(owner=STORE, idempotency_key="twice", prompt="another"),
    )

    outcomes = await backend.sessions.create_many([again, first, second, *some(1)], max_active=MANY)

    assert kinds(outcomes) == [type(None), Receipt, type(None), Receipt]
    assert await backend.balance(STORE) == 6
    replay = await backend.sessions.create(again, max_active=MANY)
    assert (replay.replayed, replay.session.id) == (True, earlier.id)
    with pytest.raises(IdempotencyKeyReused):
        await backend.sessions.create(second, max_active=MANY)


async def test_new_user_is_left_to_create(backend: Backend) -> None:
    """Who may get sign-up credits. Without these, the balance is too low."""
    outcomes = await backend.sessions.create_many(
        some(2, owner=USER), max_active=MANY, signup_credits=3
    )
    assert outcomes == [None, None]
    assert await backend.reads.history(USER, status=None, limit=9, after=None) == []

    refused = await backend.sessions.create_many(some(2, owner=USER), max_active=MANY)
    assert kinds(refused) == [InsufficientCredits] * 2


async def test_user_without_credits_is_refused(backend: Backend) -> None:
    """Who had some is not new."""
    await backend.credits.grant(USER, 1, note="test")

    outcomes = await backend.sessions.create_many(
        some(2, owner=USER), max_active=MANY, signup_credits=3
    )

    assert kinds(outcomes) == [Receipt, InsufficientCredits]


async def test_concurrent_batches_of_one_owner(backend: Backend) -> None:
    """Together they never take more than the balance, and one key has one session."""
    await backend.credits.grant(STORE, 25, note="test")
    batches = [[a_session(owner=STORE, idempotency_key=f"k{n}") for n in range(10)]] * 2
    batches += [some(10) for _ in range(3)]
    batches[1] = [a_session(owner=STORE, idempotency_key=f"k{n}") for n in range(10)]

    outcomes = await asyncio.gather(
        *(backend.sessions.create_many(batch, max_active=MANY) for batch in batches)
    )

    receipts = [one for batch in outcomes for one in batch if isinstance(one, Receipt)]
    assert len(receipts) == len(await all_of(backend)) == 25
    keys = [one.session.idempotency_key for one in receipts if one.session.idempotency_key]
    assert len(keys) == len(set(keys))
    assert await backend.balance(STORE) == 0
    assert await backend.credits.audit(limit=10) == []


async def test_batches_of_several_owners_at_once(backend: Backend) -> None:
    """Each gets its own outcomes."""
    await backend.credits.grant(STORE, 1, note="test")
    await backend.credits.grant(USER, 2, note="test")
    owners = [STORE, USER, OTHER]

    outcomes = await asyncio.gather(
        *(backend.sessions.create_many(some(2, owner=owner), max_active=MANY) for owner in owners)
    )

    assert [kinds(batch) for batch in outcomes] == [
        [Receipt, InsufficientCredits],
        [Receipt, Receipt],
        [InsufficientCredits, InsufficientCredits],
    ]
    for owner, batch in zip(owners, outcomes, strict=True):
        made = [one.session for one in batch if isinstance(one, Receipt)]
        assert all(session.owner == owner for session in made)


async def test_undo_fails_refunds_and_frees_the_keys(backend: Backend) -> None:
    """Of those that are queued and not confirmed; the others stay."""
    await backend.credits.grant(STORE, 9, note="test")
    asked = [a_session(owner=STORE, idempotency_key=f"k{n}") for n in range(4)]
    await backend.sessions.create_many(asked, max_active=MANY)
    fresh, claimed, confirmed, other = [session.id for session in asked]
    await backend.claim(claimed)
    await backend.sessions.confirm([confirmed])

    undone = await backend.sessions.undo_many([fresh, claimed, confirmed, uuid4()], NOT_PUSHED)

    assert set(undone) == {fresh}
    states = {session.id: session.status for session in await all_of(backend)}
    assert states[fresh] is SessionStatus.FAILED
    assert states[claimed] is SessionStatus.PROCESSING
    assert (states[confirmed], states[other]) == (SessionStatus.QUEUED, SessionStatus.QUEUED)
    assert (await backend.get(fresh)).idempotency_key is None
    assert (await backend.get(confirmed)).idempotency_key == "k2"
    assert await backend.balance(STORE) == 6
    assert await backend.money_of(fresh, STORE) == [LedgerKind.DEBIT, LedgerKind.REFUND]
    assert await backend.sessions.undo_many([fresh], NOT_PUSHED) in (set(), [])
    assert await backend.credits.audit(limit=10) == []


async def test_pushed_together_and_popped_in_order(queue_backend: QueueBackend) -> None:
    """Behind those that were there before; no task at all is no call."""
    queue = queue_backend.queue
    tasks: list[GenerationTask] = [a_task() for _ in range(4)]
    await queue.push(tasks[0])

    await queue.push_many([])
    await queue.push_many(tasks[1:])

    assert await queue.depth() == 4
    assert [await queue.pop(timeout_seconds=0) for _ in tasks] == tasks
