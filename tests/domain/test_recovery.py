"""Recovery: whatever was lost or killed, every session reaches a final status, and nothing is paid
for or worked on twice."""

import asyncio
from dataclasses import fields, replace
from datetime import timedelta
from typing import Any
from urllib.parse import quote
from uuid import UUID, uuid4

import pytest

from adapters.queue.payload import decode
from domain.credits import Channel, LedgerKind, Owner
from domain.errors import (
    DatabaseUnavailable,
    QueueUnavailable,
    StorageUnavailable,
)
from domain.generation import WorkPolicy
from domain.recovery import RecoveryPolicy, RecoveryReport
from domain.sessions import GenerationSession, SessionStatus
from domain.tasks import GenerationTask
from domain.uploads import upload_folder
from tests.contracts.operating import a_worker_state
from tests.support.clock import START
from tests.support.examples import (
    EXTREMES,
    FAILURE,
    FAULT,
    LEASE,
    OTHER,
    STORE,
    STORED_PICTURE,
    USER,
    with_created_at,
)
from tests.support.images import A_PICTURE
from tests.support.service import Service

POLICY = RecoveryPolicy()
SMALL = RecoveryPolicy(batch=4, max_batches=3)
NOTHING = RecoveryReport()
SECOND = timedelta(seconds=1)
CHARGED = [LedgerKind.DEBIT]
REFUNDED = [LedgerKind.DEBIT, LedgerKind.REFUND]

pytestmark = pytest.mark.anyio


def order(service: Service) -> list[UUID]:
    """The sessions in the queue, the next one first."""
    return [task.session_id for task in service.waiting()]


async def failed_with(service: Service, session_id: UUID) -> str | None:
    """The error code of a session that has failed, else None."""
    session = await service.session(session_id)
    return session.failure.code if session.failure else None


async def claimed_again(service: Service, session_id: UUID, attempt: int) -> GenerationSession:
    """The session in its attempt number ``attempt``, those before it given back."""
    for number in range(1, attempt):
        await service.claimed(session_id)
        await service.repo.release(session_id, attempt=number, delay=timedelta(0), fault=FAULT)
    return await service.claimed(session_id)


async def completed(service: Service) -> GenerationSession:
    """A completed session with its picture in the storage."""
    session = await service.claimed((await service.submitted()).session.id)
    picture = await service.storage.save(session.object_prefix, A_PICTURE)
    await service.repo.complete(session.id, attempt=session.attempt, picture=picture)
    return await service.session(session.id)


async def dead(service: Service, *, attempt: int = 1) -> GenerationSession:
    """A session whose worker died in its attempt number ``attempt``."""
    session = await claimed_again(service, (await service.submitted()).session.id, attempt)
    service.clock.advance(LEASE + SECOND)
    return session


async def test_healthy_sessions_are_left_alone(service: Service) -> None:
    """A queued, a processing and a completed session need nothing."""
    _, processing, done = await service.backlog(3)
    await service.repo.claim(processing, lease=timedelta(days=1))
    attempt = await service.repo.claim(done, lease=LEASE)
    assert attempt is not None
    await service.repo.complete(done, attempt=attempt.attempt, picture=STORED_PICTURE)
    before = await service.sessions(), list(service.queue.messages)
    service.clock.advance(POLICY.queue_ttl - 10 * SECOND)

    assert await service.recover() == NOTHING

    assert (await service.sessions(), list(service.queue.messages)) == before


async def test_flushed_queue_is_refilled_in_its_order(service: Service) -> None:
    """The queue lost everything: all sessions are pushed again, in bounded batches, and the oldest
    is popped first."""
    ids = await service.backlog(10)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    report = await service.recover(SMALL)

    assert report == RecoveryReport(pushed_again=10)
    assert order(service) == ids
    assert service.queue.pushed_next == [4, 4, 2]


async def test_task_pushed_again_equals_the_first_one(service: Service) -> None:
    """Except for its id; its ``created_at`` is the session's."""
    await service.backlog(1)
    (first,) = service.waiting()
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    await service.recover()

    (second,) = service.waiting()
    assert second.task_id != first.task_id
    assert second == GenerationTask.of(
        await service.session(first.session_id), task_id=second.task_id
    )


async def test_one_run_pushes_a_bounded_number(service: Service) -> None:
    """The next runs push the rest, in the correct order: the newest sessions are pushed first, so
    those that are left are older than all in the queue."""
    ids = await service.backlog(SMALL.batch * SMALL.max_batches + 5)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    first = await service.recover(SMALL)
    left = order(service)
    second = await service.recover(SMALL)

    assert (first.pushed_again, second.pushed_again) == (12, 5)
    assert left == ids[5:]
    assert order(service) == ids


async def test_new_tasks_stay_behind_recovered_tasks(service: Service) -> None:
    """Sessions submitted between the loss and the recovery wait for their turn."""
    lost = await service.backlog(6)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)
    new = await service.backlog(2)

    await service.recover(SMALL)

    assert order(service) == lost + new


async def test_waiting_backlog_is_not_pushed_again(service: Service) -> None:
    """The queue is complete and no worker pops: recovery sees that from the oldest task, however
    long the backlog waits."""
    ids = await service.backlog(5)

    for _ in range(10):
        service.clock.advance(POLICY.requeue_after + SECOND)
        assert await service.recover() == NOTHING

    assert order(service) == ids


async def test_recovered_backlog_is_not_pushed_again(service: Service) -> None:
    """The rule also holds for tasks that recovery itself pushed, in several batches."""
    ids = await service.backlog(10)
    service.queue.messages.clear()

    for _ in range(10):
        service.clock.advance(POLICY.requeue_after + SECOND)
        await service.recover(SMALL)

    assert order(service) == ids


async def test_tasks_lost_at_the_front_are_pushed_before_the_rest(service: Service) -> None:
    """A worker popped three and died before its claims: they are older than all in the queue."""
    ids = await service.backlog(6)
    for _ in range(3):
        await service.queue.pop(timeout_seconds=0)
    service.clock.advance(POLICY.requeue_after)

    report = await service.recover()

    assert report.pushed_again == 3
    assert order(service) == ids


async def test_task_lost_in_the_middle_is_pushed_when_it_would_be_next(service: Service) -> None:
    """While older tasks wait, nothing shows that it is lost."""
    first, lost, last = await service.backlog(3)
    del service.queue.messages[1]
    service.clock.advance(POLICY.requeue_after)

    assert await service.recover() == NOTHING
    await service.claimed(first)
    report = await service.recover()

    assert report.pushed_again == 1
    assert order(service) == [lost, last]


async def test_session_is_pushed_again_after_requeue_after(service: Service) -> None:
    """Not earlier, since its task may still be on its way; and the same time passes before the
    next push."""
    (lost,) = await service.backlog(1, apart=timedelta(0))
    service.queue.messages.clear()

    service.clock.advance(POLICY.requeue_after - SECOND)
    assert await service.recover() == NOTHING
    service.clock.advance(SECOND)
    assert (await service.recover()).pushed_again == 1
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after - SECOND)
    assert await service.recover() == NOTHING
    service.clock.advance(SECOND)
    assert (await service.recover()).pushed_again == 1

    assert order(service) == [lost]


async def test_unreadable_oldest_task_pauses_the_pushes(service: Service) -> None:
    """It has no age. Once a worker has buried it, recovery continues."""
    ids = await service.backlog(2)
    service.queue.messages.clear()
    service.queue.messages.append(b"not JSON")
    service.clock.advance(POLICY.requeue_after)

    assert await service.recover() == NOTHING
    service.queue.messages.clear()
    report = await service.recover()

    assert report.pushed_again == 2
    assert order(service) == ids


@pytest.mark.parametrize("created_at", EXTREMES)
async def test_impossible_age_of_the_oldest_task_pauses_the_pushes(
    service: Service, created_at: str
) -> None:
    """No session of ours has it: it makes nothing look lost, and no step fails. Once a worker has
    popped it, recovery continues."""
    ids = await service.backlog(2)
    waiting = list(service.queue.messages)
    service.queue.messages.append(with_created_at(created_at))
    service.clock.advance(POLICY.requeue_after)

    assert await service.recover() == NOTHING
    await service.queue.pop(timeout_seconds=0)

    assert list(service.queue.messages) == waiting
    service.queue.messages.clear()
    assert (await service.recover()).pushed_again == 2
    assert order(service) == ids


async def test_unconfirmed_session_is_failed_and_refunded(service: Service) -> None:
    """Its caller was told 503 or got no answer, so no picture may be made."""
    unconfirmed = (await service.submitted(USER, confirmed=False)).session.id
    service.clock.advance(SECOND)
    sent = (await service.submitted(OTHER, confirmed=False)).session.id
    await service.repo.confirm([sent])
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    report = await service.recover()

    assert (report.never_pushed, report.pushed_again) == (1, 1)
    assert await failed_with(service, unconfirmed) == "QUEUE_UNAVAILABLE"
    assert service.money_of(unconfirmed) == REFUNDED
    assert service.money_of(sent) == CHARGED
    assert order(service) == [sent]


async def test_unconfirmed_session_in_the_queue_is_left_to_a_worker(service: Service) -> None:
    """The process that pushed it died before the confirmation, and its task is in the queue."""
    await service.submitted(confirmed=False)
    service.clock.advance(2 * POLICY.requeue_after)

    assert await service.recover() == NOTHING

    assert len(service.waiting()) == 1


async def test_expired_lease_with_attempts_left_is_released(service: Service) -> None:
    """The worker died: the session is released and pushed in the same run, and the next claim
    has the next attempt number."""
    session = await dead(service, attempt=POLICY.max_attempts - 1)

    report = await service.recover()

    assert (report.released, report.pushed_again, report.exhausted) == (1, 1, 0)
    assert order(service) == [session.id]
    assert (await service.claimed(session.id)).attempt == POLICY.max_attempts
    assert service.money_of(session.id) == CHARGED


async def test_expired_lease_of_the_last_attempt_fails_the_session(service: Service) -> None:
    """A session that kills its workers is not retried forever; it is refunded."""
    session = await dead(service, attempt=POLICY.max_attempts)

    report = await service.recover()

    assert (report.exhausted, report.released) == (1, 0)
    assert await failed_with(service, session.id) == "GENERATION_FAILED"
    assert service.money_of(session.id) == REFUNDED
    assert order(service) == []


async def test_worker_with_a_released_lease_cannot_write(service: Service) -> None:
    """It was slow, not dead: its attempt is over all the same."""
    stale = await dead(service)

    await service.recover()

    assert not await service.repo.renew(stale.id, attempt=stale.attempt, lease=LEASE)
    assert not await service.repo.complete(stale.id, attempt=stale.attempt, picture=STORED_PICTURE)
    assert (await service.session(stale.id)).status is SessionStatus.QUEUED


async def test_renewed_lease_is_alive_at_any_age(service: Service) -> None:
    """Long work is not dead work, and the time to live applies to queued sessions only."""
    session = await service.claimed((await service.submitted()).session.id)
    for _ in range(10):
        service.clock.advance(POLICY.queue_ttl)
        await service.repo.renew(session.id, attempt=session.attempt, lease=LEASE)

        assert await service.recover() == NOTHING

    assert (await service.session(session.id)).status is SessionStatus.PROCESSING


async def test_external_consumer_has_a_timeout_instead_of_a_lease(service: Service) -> None:
    """It only wrote ``processing``. Each time its timeout passes, an attempt is used up, and after
    the last one the session is refunded."""
    session_id = (await service.submitted()).session.id
    for attempt in range(1, POLICY.max_attempts):
        await service.queue.pop(timeout_seconds=0)
        service.repo.overwrite(session_id, status=SessionStatus.PROCESSING)
        service.clock.advance(POLICY.external_timeout)
        assert await service.recover() == NOTHING
        service.clock.advance(SECOND)
        assert (await service.recover()).released == 1
        assert (await service.session(session_id)).attempt == attempt
        assert order(service) == [session_id]
    service.repo.overwrite(session_id, status=SessionStatus.PROCESSING)
    service.clock.advance(POLICY.external_timeout + SECOND)

    report = await service.recover()

    assert (report.exhausted, report.released) == (1, 0)
    assert service.money_of(session_id) == REFUNDED


async def test_work_of_an_external_consumer_proves_the_push(service: Service) -> None:
    """Its task did reach the queue. So the session is retried after the consumer died, even if its
    push was never confirmed."""
    session_id = (await service.submitted(confirmed=False)).session.id
    await service.queue.pop(timeout_seconds=0)
    service.repo.overwrite(session_id, status=SessionStatus.PROCESSING)
    service.clock.advance(POLICY.external_timeout + SECOND)

    report = await service.recover()

    assert (report.released, report.pushed_again, report.never_pushed) == (1, 1, 0)
    assert order(service) == [session_id]


async def test_failure_by_an_external_consumer_is_refunded_once(service: Service) -> None:
    """It wrote ``failed`` and knows nothing of credits; its row stays as written."""
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(session_id, status=SessionStatus.FAILED)
    before = await service.session(session_id)

    assert (await service.recover()).refunded == 1
    assert (await service.recover()).refunded == 0

    assert await service.session(session_id) == before
    assert service.money_of(session_id) == REFUNDED
    assert service.balance() == 1


async def test_picture_of_an_external_consumer_is_not_refunded(service: Service) -> None:
    """A completed session never is."""
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(
        session_id, status=SessionStatus.COMPLETED, generated_image_url="https://elsewhere.example/"
    )
    service.clock.advance(2 * POLICY.queue_ttl)

    assert await service.recover() == NOTHING

    assert service.money_of(session_id) == CHARGED


async def test_session_expires_after_its_time_to_live(service: Service) -> None:
    """It fails as EXPIRED with its refund, and cannot be claimed. A younger one keeps waiting."""
    old, young = await service.backlog(2, apart=2 * SECOND)
    service.clock.advance(POLICY.queue_ttl - 3 * SECOND)

    report = await service.recover()

    assert report.expired == 1
    assert await failed_with(service, old) == "EXPIRED"
    assert service.money_of(old) == REFUNDED
    assert await service.repo.claim(old, lease=LEASE) is None
    assert (await service.session(young)).status is SessionStatus.QUEUED


async def test_released_session_waits_for_its_backoff(service: Service) -> None:
    """It is pushed again after the delay, and not before, however old it is."""
    session = await service.claimed((await service.submitted()).session.id)
    service.clock.advance(POLICY.requeue_after)
    await service.repo.release(session.id, attempt=session.attempt, delay=20 * SECOND)

    service.clock.advance(19 * SECOND)
    assert await service.recover() == NOTHING
    service.clock.advance(SECOND)
    assert (await service.recover()).pushed_again == 1

    assert order(service) == [session.id]


async def test_queue_outage_does_not_stop_the_database_steps(service: Service) -> None:
    """Refunds, expiry and leases need only the database; then the queue's error is raised."""
    unrefunded, exhausted, expired = await service.backlog(3, apart=timedelta(0))
    service.repo.overwrite(unrefunded, status=SessionStatus.FAILED)
    await claimed_again(service, exhausted, POLICY.max_attempts)
    service.clock.advance(POLICY.queue_ttl + SECOND)
    young, released = await service.backlog(2, apart=POLICY.requeue_after)
    await service.claimed(released)
    service.clock.advance(LEASE + SECOND)
    service.queue.faults.away.add("oldest")

    with pytest.raises(QueueUnavailable):
        await service.recover()

    assert service.money_of(unrefunded) == REFUNDED
    assert await failed_with(service, exhausted) == "GENERATION_FAILED"
    assert await failed_with(service, expired) == "EXPIRED"
    assert (await service.session(released)).status is SessionStatus.QUEUED
    assert (await service.session(young)).status is SessionStatus.QUEUED


@pytest.mark.parametrize("fault", ["away", "deaf"])
async def test_failed_push_is_repeated(service: Service, fault: str) -> None:
    """Its sessions are due again after the same time, unless their tasks are in the queue."""
    ids = await service.backlog(3)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)
    getattr(service.queue.faults, fault).add("push_next")
    with pytest.raises(QueueUnavailable):
        await service.recover()
    getattr(service.queue.faults, fault).clear()

    service.clock.advance(POLICY.requeue_after)
    await service.recover()

    assert order(service) == ids


@pytest.mark.parametrize("fault", ["away", "broken"])
@pytest.mark.parametrize(
    ("step", "error"),
    [
        ("refund_missing", DatabaseUnavailable),
        ("fail_dead_leases", DatabaseUnavailable),
        ("release_dead_leases", DatabaseUnavailable),
        ("fail_expired", DatabaseUnavailable),
        ("bury", QueueUnavailable),
        ("claim_overdue", DatabaseUnavailable),
        ("claim_expired_images", DatabaseUnavailable),
    ],
)
async def test_failed_step_does_not_stop_the_others(
    service: Service, step: str, error: type[Exception], fault: str
) -> None:
    """A locked row, a call that fails, or an error that nobody expects costs a run that step only.
    It is raised at the end, and the next run does that step too."""
    recovery = service.recovery()
    old = await completed(service)
    service.clock.advance(POLICY.picture_lifetime)
    unrefunded, exhausted, expired = await service.backlog(3, apart=timedelta(0))
    service.repo.overwrite(unrefunded, status=SessionStatus.FAILED)
    await claimed_again(service, exhausted, POLICY.max_attempts)
    service.clock.advance(POLICY.queue_ttl + SECOND)
    lost, released = await service.backlog(2, apart=POLICY.requeue_after)
    await service.repo.claim(released, lease=LEASE)
    service.queue.messages.clear()
    service.clock.advance(LEASE + SECOND)
    getattr(service.repo.faults, fault).add(step)
    getattr(service.queue.faults, fault).add(step)

    async def missing() -> set[str]:
        done = {
            "refund_missing": service.money_of(unrefunded) == REFUNDED,
            "fail_dead_leases": service.money_of(exhausted) == REFUNDED,
            "release_dead_leases": (await service.session(released)).status is SessionStatus.QUEUED,
            "fail_expired": service.money_of(expired) == REFUNDED,
            "bury": len(await service.queue.dead(limit=10)) == 1,
            "claim_overdue": lost in order(service),
            "claim_expired_images": await service.storage.find(old.object_prefix) is None,
        }
        return {name for name, is_done in done.items() if not is_done}

    with pytest.raises(error if fault == "away" else RuntimeError):
        await recovery.run_once()
    left = await missing()
    service.repo.faults.clear()
    service.queue.faults.clear()
    await recovery.run_once()

    nothing_to_bury = {"bury"} if step == "fail_dead_leases" else set()
    # A task that cannot be written is not tried again: it would keep the others back.
    never_buried = {"bury"} if (step, fault) == ("bury", "broken") else set()
    assert left == {step} | nothing_to_bury
    assert await missing() == never_buried


async def test_first_of_several_failures_is_raised(service: Service) -> None:
    """The database and the queue are both unavailable."""
    service.repo.faults.away.add("fail_expired")
    service.queue.faults.away.add("oldest")

    with pytest.raises(DatabaseUnavailable):
        await service.recover()

    assert "oldest" in service.queue.faults.calls


async def test_bug_is_raised_before_an_unavailable_dependency(service: Service) -> None:
    """The queue may be unavailable for long; a bug that is only found then stays unseen."""
    service.queue.faults.away.add("oldest")
    service.repo.faults.broken.add("claim_expired_images")

    with pytest.raises(RuntimeError):
        await service.recover()


async def test_session_that_cannot_be_refunded_is_named_and_passed_over(service: Service) -> None:
    """More of them than a batch: the first run moves all others, and names each once until it is
    tried again. What is repaired then is refunded."""
    ids = await service.backlog(6, apart=timedelta(0))
    for session_id in ids[:5]:
        service.repo.overwrite(session_id, status=SessionStatus.FAILED)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)
    service.repo.unsound.update(ids[:4])
    recovery = service.recovery(SMALL)

    first = await recovery.run_once()
    named = recovery.take_blocked()
    second = await recovery.run_once()
    service.repo.unsound.clear()
    service.clock.advance(SMALL.blocked_again_after)
    repaired = await recovery.run_once()

    assert (first.blocked, first.refunded, first.pushed_again) == (4, 1, 1)
    assert [(session.id, session.owner) for session in named] == [
        (id_, str(USER)) for id_ in ids[:4]
    ]
    assert (second, recovery.take_blocked()) == (NOTHING, [])
    assert repaired.refunded == 4


async def test_unconfirmed_session_that_cannot_be_refunded_stops_no_push(service: Service) -> None:
    """It is failed one by one, beside the tasks that were lost."""
    refused = (await service.submitted(confirmed=False)).session.id
    service.submission._unconfirmed.clear()
    (lost,) = await service.backlog(1)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)
    service.repo.unsound.add(refused)
    recovery = service.recovery()

    report = await recovery.run_once()

    assert (report.blocked, report.never_pushed, order(service)) == (1, 0, [lost])
    assert [session.problem for session in recovery.take_blocked()] == ["IllegalTransition"]


@pytest.mark.parametrize("step", ["refund_missing", "fail_expired", "claim_overdue", "fail_queued"])
async def test_database_outage_is_raised(service: Service, step: str) -> None:
    """And the next run does what this one could not."""
    session_id = (await service.submitted(confirmed=False)).session.id
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)
    service.repo.faults.away.add(step)
    with pytest.raises(DatabaseUnavailable):
        await service.recover()
    service.repo.faults.away.clear()

    service.clock.advance(POLICY.requeue_after)
    await service.recover()

    assert service.money_of(session_id) == REFUNDED


async def test_one_run_refunds_in_bounded_batches(service: Service) -> None:
    """Each step repeats until it moves less than a whole batch, up to a number of batches."""
    limit = SMALL.batch * SMALL.max_batches
    for session_id in await service.backlog(limit + 1):
        service.repo.overwrite(session_id, status=SessionStatus.FAILED)

    first = await service.recover(SMALL)
    second = await service.recover(SMALL)

    assert (first.refunded, second.refunded) == (limit, 1)
    assert service.repo.faults.calls.count("refund_missing") == SMALL.max_batches + 1
    assert service.balance() == limit + 1


async def test_concurrent_runs_move_each_session_once(service: Service) -> None:
    """One push or one refund each."""
    lost = await service.backlog(20)
    service.queue.messages.clear()
    unrefunded = await service.backlog(10)
    for session_id in unrefunded:
        service.repo.overwrite(session_id, status=SessionStatus.FAILED)
    unsent = [(await service.submitted(confirmed=False)).session.id for _ in range(10)]
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    reports = await asyncio.gather(*(service.recover(SMALL) for _ in range(10)))

    assert sum(report.pushed_again for report in reports) == len(lost)
    assert sum(report.refunded for report in reports) == len(unrefunded)
    assert sum(report.never_pushed for report in reports) == len(unsent)
    assert sorted(order(service)) == sorted(lost)
    assert all(service.money_of(session_id) == REFUNDED for session_id in unrefunded + unsent)


@pytest.mark.parametrize("attempts", [1, 3])
async def test_task_that_killed_its_workers_is_buried(service: Service, attempts: int) -> None:
    """Its session fails with its refund, and its task becomes one dead letter whose reason names
    the attempts."""
    policy = RecoveryPolicy(max_attempts=attempts)
    session = await dead(service, attempt=attempts)
    recovery = service.recovery(policy)

    exhausted = [(await recovery.run_once()).exhausted for _ in range(3)]

    (letter,) = await service.queue.dead(limit=10)
    assert exhausted == [1, 0, 0]
    assert service.money_of(session.id) == REFUNDED
    assert letter.reason == f"{attempts} attempts ended without a sign of life"
    assert letter.session_id == session.id
    task = decode(letter.raw)
    assert isinstance(task, GenerationTask)
    assert task == GenerationTask.of(session, task_id=task.task_id)


async def test_other_tasks_are_not_buried(service: Service) -> None:
    """Neither those with attempts left nor those whose session failed for another reason."""
    waiting, failed, expired = await service.backlog(3, apart=timedelta(0))
    await service.claimed(waiting)
    service.repo.overwrite(failed, status=SessionStatus.FAILED)
    service.clock.advance(POLICY.queue_ttl + SECOND)

    await service.recover()

    assert await failed_with(service, expired) == "EXPIRED"
    assert await service.queue.dead(limit=10) == []


async def test_burial_waits_for_the_queue(service: Service) -> None:
    """The refund does not. Once the queue is back, each task is buried once, in the order in which
    the sessions failed."""
    recovery = service.recovery()
    service.queue.faults.away.add("bury")
    sessions = []
    for _ in range(3):
        sessions.append(await dead(service, attempt=POLICY.max_attempts))
        with pytest.raises(QueueUnavailable):
            await recovery.run_once()
        assert service.money_of(sessions[-1].id) == REFUNDED
    service.queue.faults.away.clear()

    for _ in range(2):
        await recovery.run_once()

    assert [letter.session_id for letter in service.queue.letters] == [item.id for item in sessions]


async def test_burial_with_a_lost_reply_is_repeated(service: Service) -> None:
    """Two dead letters are better than none."""
    recovery = service.recovery()
    session = await dead(service, attempt=POLICY.max_attempts)
    service.queue.faults.deaf.add("bury")
    with pytest.raises(QueueUnavailable):
        await recovery.run_once()
    service.queue.faults.deaf.clear()

    for _ in range(2):
        await recovery.run_once()

    assert [letter.session_id for letter in service.queue.letters] == [session.id] * 2


async def test_waiting_burials_are_bounded(service: Service) -> None:
    """While the queue is unavailable, the newest are remembered, as many as one run can fail."""
    recovery = service.recovery(SMALL)
    service.queue.faults.away.add("bury")
    limit = SMALL.batch * SMALL.max_batches
    sessions = []
    for _ in range(limit + 2):
        sessions.append((await dead(service, attempt=SMALL.max_attempts)).id)
        with pytest.raises(QueueUnavailable):
            await recovery.run_once()
    service.queue.faults.away.clear()

    await recovery.run_once()

    assert [letter.session_id for letter in service.queue.letters] == sessions[2:]
    assert all(service.money_of(session_id) == REFUNDED for session_id in sessions)


async def test_session_past_its_time_to_live_is_not_retried(service: Service) -> None:
    """The run that releases it from its dead worker also fails it, and does not push it."""
    (old,) = await service.backlog(1, apart=POLICY.queue_ttl)
    await service.claimed(old)
    service.clock.advance(LEASE + SECOND)

    report = await service.recover()

    assert (report.released, report.expired, report.pushed_again) == (1, 1, 0)
    assert await failed_with(service, old) == "EXPIRED"
    assert service.money_of(old) == REFUNDED
    assert order(service) == []


WORK = WorkPolicy(
    attempt_timeout=timedelta(minutes=3),
    start_wait=timedelta(minutes=1),
    storage_patience=timedelta(minutes=2),
    lease=timedelta(seconds=30),
)


@pytest.mark.parametrize(
    ("changes", "interval", "bound"),
    [
        # An external consumer's work is the longest: 1 h + 10 s, then 4 * (15 min + 10 s).
        ({}, 10, timedelta(hours=2, minutes=0, seconds=50)),
        # A worker's attempt is: 1 h + 10 s, then 4 * (3 min + 1 min + 2 min + 30 s + 10 s).
        ({"external_timeout": 60 * SECOND}, 10, timedelta(hours=1, minutes=26, seconds=50)),
        # One attempt to spend: 1 min + 1 s, then 2 * (15 min + 1 s).
        ({"queue_ttl": 60 * SECOND, "max_attempts": 1}, 1, timedelta(minutes=31, seconds=3)),
    ],
)
def test_settle_bound(changes: dict[str, Any], interval: int, bound: timedelta) -> None:
    """The time to live and an interval, then each attempt at its longest and an interval: those
    that may be spent, and one that is given back."""
    policy = RecoveryPolicy(**changes)

    assert policy.settle_bound(WORK, interval=interval * SECOND) == bound


async def test_settle_bound_is_kept_and_nearly_reached(service: Service) -> None:
    """The worst case: each attempt begins just before the run that would have failed the session,
    and ends just after a run."""
    interval, moment = 10 * SECOND, timedelta(milliseconds=1)
    policy = RecoveryPolicy(
        queue_ttl=60 * SECOND, external_timeout=31 * SECOND, max_attempts=3, batch=1
    )
    work = WorkPolicy(
        attempt_timeout=4 * SECOND,
        start_wait=6 * SECOND,
        storage_patience=5 * SECOND,
        lease=10 * SECOND,
    )
    recovery = service.recovery(policy)
    session = (await service.submitted()).session

    async def runs(count: int) -> None:
        """Make ``count`` runs, and stop the clock just before the next one."""
        for _ in range(count):
            service.clock.advance(moment)
            await recovery.run_once()
            service.clock.advance(interval - moment)

    service.clock.advance(interval - moment)
    await runs(6)
    for attempt in range(policy.max_attempts + 1):
        service.repo.overwrite(session.id, status=SessionStatus.PROCESSING)
        await runs(3)
        if attempt < policy.max_attempts:
            service.clock.advance(moment)
            await recovery.run_once()
            service.repo.overwrite(session.id, status=SessionStatus.QUEUED)
            service.clock.advance(interval - moment)
    await runs(1)
    assert (await service.session(session.id)).status is SessionStatus.PROCESSING
    await runs(1)

    settled = await service.session(session.id)
    assert settled.completed_at is not None
    took = settled.completed_at - session.created_at
    bound = policy.settle_bound(work, interval=interval)
    assert bound - 4 * SECOND <= took <= bound


async def upload(service: Service, count: int = 1) -> None:
    """Upload ``count`` pictures of one user now."""
    folder = upload_folder(USER, service.clock.now().date())
    for number in range(count):
        await service.storage.keep_upload(f"{folder}/{number}.jpg", b"")


async def uploads(service: Service) -> int:
    """How many of the user's uploads of the first day there are."""
    return await service.storage.count_uploads(upload_folder(USER, START.date()), limit=10_000)


async def test_uploads_are_deleted_after_their_lifetime(service: Service) -> None:
    """Counted from when each was stored, by any worker; a lifetime may be shorter than a day."""
    policy = RecoveryPolicy(upload_lifetime=timedelta(hours=6))
    await upload(service)
    service.clock.advance(timedelta(hours=6))

    too_early = await service.recover(policy)
    service.clock.advance(SECOND)
    report = await service.recover(policy)

    assert (too_early.uploads_deleted, report.uploads_deleted) == (0, 1)
    assert await uploads(service) == 0


async def test_old_uploads_are_searched_for_once_an_hour(service: Service) -> None:
    """However often recovery runs: in a cloud each search is paid for."""
    recovery = service.recovery()
    await recovery.run_once()
    await upload(service)
    service.clock.advance(timedelta(minutes=59))

    await recovery.run_once()
    assert searches(service) == 1
    service.clock.advance(timedelta(minutes=1))
    await recovery.run_once()
    await recovery.run_once()
    assert searches(service) == 2


def searches(service: Service) -> int:
    """How often old uploads were searched for."""
    return service.storage.faults.calls.count("delete_uploads_before")


async def test_many_old_uploads_are_deleted_in_batches(service: Service) -> None:
    """One batch in each run until all are deleted."""
    await upload(service, 2_500)
    service.clock.advance(timedelta(days=4))
    recovery = service.recovery()

    deleted = [(await recovery.run_once()).uploads_deleted for _ in range(4)]

    assert deleted == [1_000, 1_000, 500, 0]


async def test_unavailable_upload_storage_delays_no_session(service: Service) -> None:
    """The error is raised after everything else is done, and the search is repeated an hour
    later."""
    recovery = service.recovery()
    (lost,) = await service.backlog(1)
    service.queue.messages.clear()
    service.clock.advance(timedelta(minutes=1))
    service.storage.faults.away.add("delete_uploads_before")

    with pytest.raises(StorageUnavailable):
        await recovery.run_once()

    assert order(service) == [lost]
    assert (await recovery.run_once()).uploads_deleted == 0
    assert searches(service) == 1


def test_report_total_counts_every_field() -> None:
    """A forgotten field would leave a run unlogged."""
    numbers = {field.name: 10**digit for digit, field in enumerate(fields(RecoveryReport))}

    assert RecoveryReport(**numbers).total == 1_111_111_111_111


async def test_old_picture_is_deleted(service: Service) -> None:
    """Once its lifetime has passed since the end of its session, and not before. The session says
    so, keeps everything else, and stays charged."""
    young = await completed(service)
    service.clock.advance(POLICY.picture_lifetime)

    assert await service.recover() == NOTHING
    service.clock.advance(SECOND)
    assert await service.recover() == RecoveryReport(pictures_deleted=1)
    assert await service.recover() == NOTHING

    old = await service.session(young.id)
    assert await service.storage.find(old.object_prefix) is None
    assert old == replace(young, image_deleted_at=service.clock.now())
    assert (young.image_expired, old.image_expired) == (False, True)
    assert service.money_of(old.id) == CHARGED


async def test_picture_of_a_failed_session_is_deleted(service: Service) -> None:
    """Its worker saved the picture and died, so the session failed without one. The saved picture
    is deleted, and the session does not count as one whose picture has expired."""
    session = await service.claimed((await service.submitted()).session.id)
    await service.storage.save(session.object_prefix, A_PICTURE)
    await service.repo.fail(session.id, FAILURE, attempt=session.attempt)
    service.clock.advance(POLICY.picture_lifetime + SECOND)

    assert await service.recover() == RecoveryReport(pictures_deleted=1)

    assert await service.storage.find(session.object_prefix) is None
    assert not (await service.session(session.id)).image_expired


async def test_picture_that_an_external_consumer_outran_is_deleted(service: Service) -> None:
    """Our attempt saved one; then the consumer completed the session. Its own link, which leads
    elsewhere, stays."""
    session = await service.claimed((await service.submitted()).session.id)
    await service.storage.save(session.object_prefix, A_PICTURE)
    link = "https://elsewhere.example/picture.png"
    service.repo.overwrite(session.id, status=SessionStatus.COMPLETED, generated_image_url=link)
    service.clock.advance(2 * POLICY.picture_lifetime)

    assert await service.recover() == RecoveryReport(pictures_deleted=1)

    assert await service.storage.find(session.object_prefix) is None
    session = await service.session(session.id)
    assert (session.image_expired, session.generated_image_url) == (False, link)
    assert await service.recover() == NOTHING


@pytest.mark.parametrize("owner", [USER, STORE, Owner(channel=Channel.B2B, id="a:b")])
@pytest.mark.parametrize("taken", [False, True])
async def test_picture_that_an_external_consumer_keeps_in_our_storage_is_deleted(
    service: Service, owner: Owner, *, taken: bool
) -> None:
    """It has the session's key, in our storage: its link, plain or encoded, goes too."""
    session_id = (await service.submitted(owner)).session.id
    if taken:
        service.repo.overwrite(session_id, status=SessionStatus.PROCESSING)
    session = await service.session(session_id)
    await service.storage.save(session.object_prefix, A_PICTURE)
    link = f"https://cdn.example/bucket/{quote(session.object_prefix)}.png?signature=1"
    service.repo.overwrite(session_id, status=SessionStatus.COMPLETED, generated_image_url=link)
    before = await service.session(session_id)
    service.clock.advance(2 * POLICY.picture_lifetime)

    assert (await service.recover()).pictures_deleted == 1

    assert await service.storage.find(session.object_prefix) is None
    assert not before.image_expired
    assert (await service.session(session_id)).image_expired


async def test_bug_of_one_deletion_does_not_stop_the_others(service: Service) -> None:
    """The others are deleted and marked; then it is raised."""
    broken, sound = [await completed(service) for _ in range(2)]
    service.clock.advance(POLICY.picture_lifetime + SECOND)
    service.storage.faults.broken.add(f"delete {broken.object_prefix}")

    with pytest.raises(RuntimeError):
        await service.recover()

    assert (await service.session(sound.id)).image_expired
    assert not (await service.session(broken.id)).image_expired


async def test_failed_deletion_does_not_stop_the_others(service: Service) -> None:
    """It is raised, repeated later, and not marked as deleted before it is."""
    failing, other = await completed(service), await completed(service)
    service.storage.faults.away.add(f"delete {failing.object_prefix}")
    service.clock.advance(POLICY.picture_lifetime + SECOND)

    with pytest.raises(StorageUnavailable):
        await service.recover()
    assert (await service.session(other.id)).image_expired
    assert not (await service.session(failing.id)).image_expired
    assert await service.recover() == NOTHING
    service.storage.faults.clear()
    service.clock.advance(POLICY.delete_again_after)

    assert await service.recover() == RecoveryReport(pictures_deleted=1)
    assert await service.storage.find(failing.object_prefix) is None


async def test_hanging_storage_delays_a_run_by_one_timeout(service: Service) -> None:
    """All deletions of a run share it, because sessions may be waiting for the next run."""
    for _ in range(5):
        await completed(service)
    service.storage.faults.slow["delete"] = 3_600
    service.clock.advance(POLICY.picture_lifetime + SECOND)
    began = service.clock.now()

    with pytest.raises(StorageUnavailable):
        await service.recover()

    assert service.clock.now() - began == POLICY.deletion_timeout


@pytest.mark.parametrize("fault", ["away", "deaf"])
async def test_unmarked_deletion_is_repeated(service: Service, fault: str) -> None:
    """The worker could not mark the session, or was killed: a later run finds nothing to delete,
    and marks it."""
    session = await completed(service)
    service.clock.advance(POLICY.picture_lifetime + SECOND)
    getattr(service.repo.faults, fault).add("mark_images_deleted")
    with pytest.raises(DatabaseUnavailable):
        await service.recover()
    getattr(service.repo.faults, fault).clear()

    service.clock.advance(POLICY.delete_again_after)
    await service.recover()

    assert (await service.session(session.id)).image_expired
    assert await service.storage.find(session.object_prefix) is None


async def test_one_run_deletes_a_bounded_number(service: Service) -> None:
    """The next runs, concurrent ones of other processes too, delete the rest."""
    for _ in range(7):
        await completed(service)
    service.clock.advance(POLICY.picture_lifetime + SECOND)
    policy = RecoveryPolicy(deletions=3)

    first = await service.recover(policy)
    concurrent = await asyncio.gather(*(service.recover(policy) for _ in range(4)))

    assert first.pictures_deleted == 3
    assert sorted(report.pictures_deleted for report in concurrent) == [0, 0, 1, 3]


async def test_dead_workers_are_forgotten_after_a_day(service: Service) -> None:
    """Most runs do not search."""
    await service.workers.report(a_worker_state(uuid4()))
    recovery = service.recovery()
    runs = [await recovery.run_once()]
    for wait in (timedelta(days=1), 2 * SECOND, timedelta(minutes=5)):
        service.clock.advance(wait)
        runs.append(await recovery.run_once())

    assert [run.workers_forgotten for run in runs] == [0, 0, 0, 1]
    assert service.workers.states == {}
