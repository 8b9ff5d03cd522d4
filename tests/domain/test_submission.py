"""Submitting: one debit, one session, one task, and a truthful answer about all three."""

import pytest

from domain.credits import LedgerKind
from domain.errors import (
    DatabaseUnavailable,
    IdempotencyKeyReused,
    InsufficientCredits,
    Overloaded,
    QueueUnavailable,
    TooManyActive,
)
from domain.recovery import RecoveryPolicy
from domain.sessions import DEFAULT_PROMPT, SessionStatus
from domain.submission import SubmissionPolicy
from domain.tasks import GenerationTask
from tests.support.clock import loop_time
from tests.support.examples import (
    BAG,
    HAT,
    LEASE,
    MODEL_URL,
    OTHER,
    OUTFIT_URL,
    STORE,
    STORED_PICTURE,
    USER,
    a_request,
)
from tests.support.service import Service

UNAVAILABLE = "Generation service temporarily unavailable"


@pytest.mark.anyio
async def test_submission_charges_records_and_pushes(service: Service) -> None:
    """One credit is debited, a queued session exists, and its task waits."""
    await service.accounts.grant(STORE, 3, note="test")
    request = a_request(
        STORE, outfit_image_url=OUTFIT_URL, accessories=(HAT, BAG), prompt="In the rain"
    )

    receipt = await service.submission.submit(request)

    session = await service.repo.get(receipt.session.id, STORE)
    (task,) = service.waiting()
    assert receipt.session == session
    assert receipt.credits_remaining == service.balance(STORE) == 2
    assert session.status is SessionStatus.QUEUED
    assert session.input.image_urls == (MODEL_URL, OUTFIT_URL, HAT.url, BAG.url)
    assert (session.input.prompt, session.request_id) == ("In the rain", request.request_id)
    assert task == GenerationTask.of(session, task_id=task.task_id)
    assert service.money_of(session.id) == [LedgerKind.DEBIT]


@pytest.mark.anyio
async def test_request_without_a_key_is_no_replay(service: Service) -> None:
    """The same request twice makes two sessions, two tasks and two debits. The correlation id is
    never a key for credits."""
    await service.accounts.grant(USER, 2, note="test")

    first = await service.submission.submit(a_request())
    second = await service.submission.submit(a_request())

    assert first.session.id != second.session.id
    assert len({task.task_id for task in service.waiting()}) == 2
    assert service.balance() == 0


@pytest.mark.anyio
async def test_default_prompt(service: Service) -> None:
    """A request without a prompt has the default prompt, in the session and in the task."""
    receipt = await service.submitted()

    assert receipt.session.input.prompt == DEFAULT_PROMPT
    assert service.waiting()[0].prompt == DEFAULT_PROMPT


@pytest.mark.anyio
async def test_insufficient_credits_change_nothing(service: Service) -> None:
    """There is no session, no ledger entry and no task."""
    with pytest.raises(InsufficientCredits):
        await service.submission.submit(a_request())

    assert await service.sessions() == []
    assert service.accounts.entries == []
    assert service.waiting() == []


@pytest.mark.anyio
async def test_failed_push_is_undone(service: Service) -> None:
    """The queue is down: 503 with the contract's message, the session fails and is refunded."""
    await service.accounts.grant(USER, 1, note="test")
    service.queue.faults.away.add("push")

    with pytest.raises(QueueUnavailable) as refusal:
        await service.submission.submit(a_request())

    (session,) = await service.sessions()
    assert str(refusal.value) == UNAVAILABLE
    assert session.status is SessionStatus.FAILED
    assert session.failure is not None
    assert (session.failure.code, session.failure.message) == ("QUEUE_UNAVAILABLE", UNAVAILABLE)
    assert service.money_of(session.id) == [LedgerKind.DEBIT, LedgerKind.REFUND]
    assert service.balance() == 1


@pytest.mark.anyio
async def test_push_without_a_reply_leaves_a_task_without_a_claim(service: Service) -> None:
    """The task may be in the queue although the session was refunded. Its claim finds a final
    session, so there is no free picture."""
    await service.accounts.grant(USER, 1, note="test")
    service.queue.faults.deaf.add("push")

    with pytest.raises(QueueUnavailable):
        await service.submission.submit(a_request())

    (task,) = service.waiting()
    assert await service.repo.claim(task.session_id, lease=LEASE) is None
    assert service.balance() == 1


@pytest.mark.anyio
async def test_claim_before_the_undo_wins(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The push took effect and a worker claimed the session before the undo: answer the receipt."""
    await service.accounts.grant(USER, 1, note="test")
    push = service.queue.push

    async def claimed_before_the_reply_is_lost(task: GenerationTask) -> None:
        await push(task)
        await service.claimed(task.session_id)
        raise QueueUnavailable("no reply")

    monkeypatch.setattr(service.queue, "push", claimed_before_the_reply_is_lost)

    receipt = await service.submission.submit(a_request())

    session = await service.session(receipt.session.id)
    assert session.status is SessionStatus.PROCESSING
    assert service.money_of(session.id) == [LedgerKind.DEBIT]


@pytest.mark.anyio
async def test_failed_undo_leaves_the_refund_to_recovery(service: Service) -> None:
    """The queue certainly refused the task, so 503 is true: recovery never pushes an unconfirmed
    session, it refunds it."""
    await service.accounts.grant(USER, 1, note="test")
    service.queue.faults.away.add("push")
    service.repo.faults.away.add("fail_queued")

    with pytest.raises(QueueUnavailable, match=UNAVAILABLE):
        await service.submission.submit(a_request())

    service.repo.faults.away.clear()
    await service.submission.confirm_pushed()
    service.clock.advance(RecoveryPolicy().requeue_after)
    report = await service.recover()
    (session,) = await service.sessions()
    assert (report.never_pushed, report.pushed_again) == (1, 0)
    assert session.failure is not None
    assert session.failure.code == "QUEUE_UNAVAILABLE"
    assert service.money_of(session.id) == [LedgerKind.DEBIT, LedgerKind.REFUND]
    assert service.waiting() == []


@pytest.mark.anyio
@pytest.mark.parametrize("claimed", [False, True])
async def test_unknown_push_and_failed_undo_answer_the_receipt(
    service: Service, *, claimed: bool
) -> None:
    """The push may have worked, and the database cannot say whether a worker has the session. 503
    could become false; "it will reach a final status" is true."""
    await service.accounts.grant(USER, 1, note="test")
    service.queue.faults.deaf.add("push")
    service.repo.faults.away.add("fail_queued")

    receipt = await service.submission.submit(a_request())

    service.repo.faults.away.clear()
    if claimed:
        session = await service.claimed(receipt.session.id)
        assert await service.repo.complete(session.id, attempt=1, picture=STORED_PICTURE)
    else:
        service.queue.messages.clear()
        service.clock.advance(RecoveryPolicy().requeue_after)
        assert (await service.recover()).never_pushed == 1
    assert (await service.session(receipt.session.id)).status.is_final
    assert service.balance() == (0 if claimed else 1)


@pytest.mark.anyio
@pytest.mark.parametrize("seam", ["database", "queue", "undo"])
async def test_submission_has_a_deadline(service: Service, seam: str) -> None:
    """Whatever hangs, the caller gets a true answer in time."""
    await service.accounts.grant(USER, 1, note="test")
    if seam == "database":
        service.repo.faults.slow["create"] = 60
    else:
        service.queue.faults.slow["push"] = 60
    if seam == "undo":
        service.repo.faults.slow["fail_queued"] = 60
    expected = {"database": DatabaseUnavailable, "queue": QueueUnavailable, "undo": None}[seam]
    began = loop_time()

    if expected is None:
        await service.submission.submit(a_request())
    else:
        with pytest.raises(expected):
            await service.submission.submit(a_request())

    policy = SubmissionPolicy()
    assert loop_time() - began <= (policy.deadline + policy.undo_deadline).total_seconds()
    service.queue.messages.clear()
    service.clock.advance(RecoveryPolicy().requeue_after)
    await service.recover()
    assert service.balance() == 1


@pytest.mark.anyio
async def test_replay_is_not_charged(service: Service) -> None:
    """The same key and the same input: the same session, one debit, one task."""
    await service.accounts.grant(USER, 2, note="test")

    first = await service.submission.submit(a_request(idempotency_key="k"))
    second = await service.submission.submit(a_request(idempotency_key="k", request_id="req_2"))

    assert (first.replayed, second.replayed) == (False, True)
    assert second.session == await service.session(first.session.id)
    assert second.credits_remaining == service.balance() == 1
    assert len(service.waiting()) == 1


@pytest.mark.anyio
async def test_key_belongs_to_its_input(service: Service) -> None:
    """The same key with another input is refused, and not charged."""
    await service.accounts.grant(USER, 2, note="test")
    await service.submission.submit(a_request(idempotency_key="k"))

    with pytest.raises(IdempotencyKeyReused):
        await service.submission.submit(a_request(idempotency_key="k", outfit_image_url=OUTFIT_URL))

    assert service.balance() == 1


@pytest.mark.anyio
async def test_key_is_free_again_after_a_503(service: Service) -> None:
    """The first request was undone. The second one is a new session, and is charged."""
    await service.accounts.grant(USER, 1, note="test")
    service.queue.faults.away.add("push")
    with pytest.raises(QueueUnavailable):
        await service.submission.submit(a_request(idempotency_key="k"))
    service.queue.faults.away.clear()

    receipt = await service.submission.submit(a_request(idempotency_key="k"))

    assert not receipt.replayed
    assert service.balance() == 0


@pytest.mark.anyio
async def test_full_queue_refuses_requests(service: Service) -> None:
    """Nothing is charged, until the queue is shorter."""
    await service.accounts.grant(USER, 3, note="test")
    submission = service.submission_with(SubmissionPolicy(max_waiting=1))
    await submission.submit(a_request())
    assert await submission.measure_queue() == 1

    with pytest.raises(Overloaded):
        await submission.submit(a_request())

    assert service.balance() == 2
    service.queue.messages.clear()
    await submission.measure_queue()
    await submission.submit(a_request())


@pytest.mark.anyio
async def test_full_queue_still_answers_replays(service: Service) -> None:
    """A request with a new key is refused, and one with another input under the old key as well."""
    await service.accounts.grant(USER, 3, note="test")
    submission = service.submission_with(SubmissionPolicy(max_waiting=1))
    first = await submission.submit(a_request(idempotency_key="k"))
    await submission.measure_queue()

    again = await submission.submit(a_request(idempotency_key="k"))
    with pytest.raises(Overloaded):
        await submission.submit(a_request(idempotency_key="new"))
    with pytest.raises(IdempotencyKeyReused):
        await submission.submit(a_request(idempotency_key="k", outfit_image_url=OUTFIT_URL))

    assert again.replayed
    assert again.session.id == first.session.id
    assert service.balance() == 2


@pytest.mark.anyio
async def test_limit_of_unfinished_sessions(service: Service) -> None:
    """One more is refused before a credit is taken. Other owners are not affected."""
    await service.accounts.grant(USER, 2, note="test")
    await service.accounts.grant(OTHER, 1, note="test")
    submission = service.submission_with(SubmissionPolicy(max_active=1))
    await submission.submit(a_request())

    with pytest.raises(TooManyActive):
        await submission.submit(a_request())

    assert service.balance() == 1
    await submission.submit(a_request(OTHER))


@pytest.mark.anyio
async def test_database_that_is_down(service: Service) -> None:
    """Without a session, no task is pushed."""
    await service.accounts.grant(USER, 1, note="test")
    service.repo.faults.away.add("create")

    with pytest.raises(DatabaseUnavailable):
        await service.submission.submit(a_request())

    assert service.waiting() == []
    assert service.balance() == 1


@pytest.mark.anyio
async def test_charge_without_a_reply_is_refunded_by_recovery(service: Service) -> None:
    """The database took the credit and its reply was lost: the caller was answered 503."""
    await service.accounts.grant(USER, 1, note="test")
    service.repo.faults.deaf.add("create")

    with pytest.raises(DatabaseUnavailable):
        await service.submission.submit(a_request())

    service.clock.advance(RecoveryPolicy().requeue_after)
    assert (await service.recover()).never_pushed == 1
    assert service.balance() == 1
