"""Submitting many requests at once: each one's outcome is that of ``submit``."""

import asyncio
from collections.abc import Sequence
from dataclasses import replace
from typing import Any
from uuid import uuid4

import pytest

from domain.age import AgeVerification
from domain.callers import Caller, Shopper
from domain.credits import LedgerKind
from domain.errors import (
    AgeVerificationRequired,
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InsufficientCredits,
    Overloaded,
    QueueUnavailable,
    TokenUsedUp,
    Unauthenticated,
    Unconfirmed,
)
from domain.ports import Receipt
from domain.recovery import RecoveryPolicy
from domain.requests import TryOnRequest
from domain.sessions import SessionStatus
from domain.signup import SignupPolicy
from domain.submission import SubmissionPolicy
from domain.tasks import GenerationTask
from tests.support.clock import loop_time
from tests.support.examples import MANY, STORE, USER, a_request
from tests.support.service import Service

pytestmark = pytest.mark.anyio

POLICY = SubmissionPolicy(max_active=MANY, max_waiting=MANY)
UNAVAILABLE = "Generation service temporarily unavailable"


def requests(*keys: str | None, **changes: Any) -> list[TryOnRequest]:
    """One request for each key."""
    return [a_request(STORE, idempotency_key=key, **changes) for key in keys]


def kinds(outcomes: Sequence[Receipt | Exception]) -> list[type]:
    return [type(outcome) for outcome in outcomes]


async def settle(service: Service) -> None:
    """Let recovery settle all that was never pushed."""
    service.repo.faults.clear()
    service.queue.faults.clear()
    service.queue.messages.clear()
    await service.submission.confirm_pushed()
    service.clock.advance(RecoveryPolicy().requeue_after)
    await service.recover()


async def check_books(service: Service) -> None:
    """The balance is what the ledger says, and no failed session is charged."""
    entries = service.accounts.entries
    assert service.balance(STORE) == sum(entry.amount for entry in entries)
    for session in await service.sessions():
        is_failed = session.status is SessionStatus.FAILED
        paid = [LedgerKind.DEBIT, LedgerKind.REFUND] if is_failed else [LedgerKind.DEBIT]
        assert service.money_of(session.id) == paid


async def test_one_statement_and_one_push(service: Service) -> None:
    """For all: charged, recorded and pushed in the order of the requests."""
    await service.accounts.grant(STORE, 5, note="test")

    outcomes = await service.submission.submit_many(requests(None, "a", None))

    assert kinds(outcomes) == [Receipt] * 3
    receipts = [one for one in outcomes if isinstance(one, Receipt)]
    assert [task.session_id for task in service.waiting()] == [one.session.id for one in receipts]
    assert [one.credits_remaining for one in receipts] == [4, 3, 2]
    assert service.repo.faults.calls == ["create_many"]
    assert service.queue.faults.calls == ["push_many"]
    assert await service.submission.confirm_pushed() == 3
    await check_books(service)


async def test_no_request_at_all(service: Service) -> None:
    assert await service.submission.submit_many([]) == []


async def test_refusals_are_per_request(service: Service) -> None:
    """One credit, three requests; and one of them does not say the age."""
    service.limit(replace(POLICY, age_b2b=AgeVerification.REQUIRED))
    await service.accounts.grant(STORE, 1, note="test")
    asked = [
        *requests(None),
        *requests("a", age_verified=True),
        *requests("b", age_verified=True),
    ]

    outcomes = await service.submission.submit_many(asked)

    assert kinds(outcomes) == [AgeVerificationRequired, Receipt, InsufficientCredits]
    assert len(service.waiting()) == 1
    await check_books(service)


async def test_all_requests_are_refused_before_the_database(service: Service) -> None:
    service.limit(replace(POLICY, age_b2b=AgeVerification.REQUIRED))

    outcomes = await service.submission.submit_many(requests(None, "a"))

    assert kinds(outcomes) == [AgeVerificationRequired] * 2
    assert service.repo.faults.calls == []


async def test_repeated_keys_in_one_batch(service: Service) -> None:
    """One session: the others are its replays, or asked for another input."""
    await service.accounts.grant(STORE, 5, note="test")
    asked = [*requests("a", "a", None), *requests("a", prompt="Another")]

    first, again, other, reused = await service.submission.submit_many(asked)

    assert isinstance(first, Receipt)
    assert isinstance(again, Receipt)
    assert (first.replayed, again.replayed) == (False, True)
    assert again.session.id == first.session.id
    assert isinstance(other, Receipt)
    assert isinstance(reused, IdempotencyKeyReused)
    assert len(service.waiting()) == 2
    assert service.balance(STORE) == 3


async def test_repeated_batch_is_charged_once(service: Service) -> None:
    await service.accounts.grant(STORE, 9, note="test")
    first = await service.submission.submit_many(requests("a", "b", "c"))
    await service.submission.confirm_pushed()

    again = await service.submission.submit_many(requests("a", "b", "c", "d"))

    assert kinds(again) == [Receipt] * 4
    receipts = [one for one in [*first, *again] if isinstance(one, Receipt)]
    assert [one.replayed for one in receipts] == [False] * 3 + [True] * 3 + [False]
    assert [one.session.id for one in receipts[:3]] == [one.session.id for one in receipts[3:6]]
    assert service.balance(STORE) == 5
    assert len(service.waiting()) == 4


async def test_concurrent_batches_with_the_same_keys(service: Service) -> None:
    """One of each key is created; the replays wait until it stands."""
    await service.accounts.grant(STORE, 9, note="test")
    service.queue.faults.slow["push_many"] = 0.5

    both = await asyncio.gather(
        *(service.submission.submit_many(requests("a", "b")) for _ in range(2))
    )

    receipts = [one for outcomes in both for one in outcomes if isinstance(one, Receipt)]
    assert len(receipts) == 4
    assert sorted(one.replayed for one in receipts) == [False, False, True, True]
    assert len({one.session.id for one in receipts}) == 2
    assert service.balance(STORE) == 7


async def test_refused_push_undoes_all(service: Service) -> None:
    """503 for each, with the contract's message; the keys are free again."""
    await service.accounts.grant(STORE, 5, note="test")
    service.queue.faults.away.add("push_many")

    outcomes = await service.submission.submit_many(requests(None, "a"))

    assert kinds(outcomes) == [QueueUnavailable] * 2
    assert {str(one) for one in outcomes} == {UNAVAILABLE}
    assert service.repo.faults.calls == ["create_many", "undo_many"]
    assert {one.status for one in await service.sessions()} == {SessionStatus.FAILED}
    assert service.balance(STORE) == 5
    await check_books(service)
    service.queue.faults.clear()
    assert kinds(await service.submission.submit_many(requests("a"))) == [Receipt]


async def test_push_without_a_reply(service: Service) -> None:
    """What a worker claimed before the undo is answered with its receipt; the rest is undone."""
    await service.accounts.grant(STORE, 5, note="test")
    push_many = service.queue.push_many

    async def one_is_claimed(tasks: Sequence[GenerationTask]) -> None:
        await push_many(tasks)
        await service.claimed(tasks[1].session_id)
        raise QueueUnavailable("no reply")

    service.queue.push_many = one_is_claimed  # type: ignore[method-assign]

    outcomes = await service.submission.submit_many(requests("a", "b", None))

    assert kinds(outcomes) == [QueueUnavailable, Receipt, QueueUnavailable]
    assert service.balance(STORE) == 4
    await check_books(service)


@pytest.mark.parametrize("refused", [False, True])
async def test_failed_undo(service: Service, *, refused: bool) -> None:
    """The database does not answer the undo either. A refused push was certainly without effect:
    503. Otherwise a request with a key is to be repeated, and one without is accepted."""
    await service.accounts.grant(STORE, 5, note="test")
    (service.queue.faults.away if refused else service.queue.faults.deaf).add("push_many")
    service.repo.faults.away.add("undo_many")

    outcomes = await service.submission.submit_many(requests("a", None))

    expected = [QueueUnavailable] * 2 if refused else [Unconfirmed, Receipt]
    assert kinds(outcomes) == expected
    await settle(service)
    assert service.balance(STORE) == 5
    await check_books(service)


@pytest.mark.parametrize("seam", ["database", "queue", "undo"])
async def test_deadline(service: Service, seam: str) -> None:
    """Whatever hangs, each request gets a true answer in time."""
    await service.accounts.grant(STORE, 5, note="test")
    if seam == "database":
        service.repo.faults.slow["create_many"] = 60
    else:
        service.queue.faults.slow["push_many"] = 60
    if seam == "undo":
        service.repo.faults.slow["undo_many"] = 60
    began = loop_time()

    outcomes = await service.submission.submit_many(requests("a", None))

    expected = {
        "database": [DatabaseUnavailable] * 2,
        "queue": [QueueUnavailable] * 2,
        "undo": [Unconfirmed, Receipt],
    }[seam]
    assert kinds(outcomes) == expected
    assert loop_time() - began <= (POLICY.deadline + POLICY.undo_deadline).total_seconds()
    await settle(service)
    assert service.balance(STORE) == 5
    await check_books(service)


@pytest.mark.parametrize("fault", ["away", "deaf"])
async def test_database_does_not_answer(service: Service, fault: str) -> None:
    """503 for each; recovery undoes what took effect."""
    await service.accounts.grant(STORE, 5, note="test")
    getattr(service.repo.faults, fault).add("create_many")

    outcomes = await service.submission.submit_many(requests("a", None))

    assert kinds(outcomes) == [DatabaseUnavailable] * 2
    assert service.waiting() == []
    await settle(service)
    assert service.balance(STORE) == 5
    await check_books(service)


async def test_unexpected_error_of_the_push(service: Service) -> None:
    """A bug is each request's own error, and costs nothing."""
    await service.accounts.grant(STORE, 5, note="test")
    service.queue.faults.broken.add("push_many")

    outcomes = await service.submission.submit_many(requests("a", None))

    assert kinds(outcomes) == [RuntimeError] * 2
    assert service.balance(STORE) == 5


async def test_full_queue(service: Service) -> None:
    """Replays are answered, everything else is refused."""
    await service.accounts.grant(STORE, 5, note="test")
    await service.submission.submit_many(requests("a"))
    await service.submission.confirm_pushed()
    service.limit(replace(POLICY, max_waiting=1))
    await service.submission.measure_queue()

    outcomes = await service.submission.submit_many(requests("a", "b", None))

    assert kinds(outcomes) == [Receipt, Overloaded, Overloaded]
    assert service.balance(STORE) == 4


async def test_failing_queue_takes_no_credit(service: Service) -> None:
    """After two failed pushes only replays are answered, until the queue answers again."""
    await service.accounts.grant(STORE, 9, note="test")
    await service.submission.submit_many(requests("a"))
    await service.submission.confirm_pushed()
    service.queue.faults.away |= {"push_many", "push", "depth"}
    for _ in range(2):
        await service.submission.submit_many(requests("x", "y"))
    service.repo.faults.calls.clear()

    outcomes = await service.submission.submit_many(requests("a", "b", None))

    assert kinds(outcomes) == [Receipt, QueueUnavailable, QueueUnavailable]
    assert "create_many" not in service.repo.faults.calls
    assert "create" not in service.repo.faults.calls
    service.queue.faults.clear()
    await service.submission.measure_queue()
    assert kinds(await service.submission.submit_many(requests("b", None))) == [Receipt] * 2


async def test_new_user_gets_sign_up_credits(service: Service) -> None:
    """Once, for the first request; the others use what remains of them."""
    service.limit(replace(POLICY, signup=SignupPolicy(credits=2)))

    outcomes = await service.submission.submit_many([a_request(USER) for _ in range(3)])

    assert sorted(map(str, kinds(outcomes))) == sorted(
        map(str, [Receipt, Receipt, InsufficientCredits])
    )
    assert service.balance(USER) == 0
    assert len(service.waiting()) == 2
    grants = [entry for entry in service.accounts.entries if entry.kind is LedgerKind.GRANT]
    assert [entry.amount for entry in grants] == [2]


async def test_shopper_is_charged_like_in_single_requests(service: Service) -> None:
    """An unknown client token creates nothing."""
    await service.accounts.grant(STORE, 5, note="test")
    single = a_request(STORE)
    caller = Caller(owner=STORE, shopper=Shopper(id="anna", token_id=uuid4()))

    outcomes = await service.submission.submit_many([replace(single, caller=caller)] * 2)

    assert all(isinstance(one, Unauthenticated | TokenUsedUp) for one in outcomes)
    assert await service.sessions() == []
