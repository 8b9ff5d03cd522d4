"""Recovery: whatever was lost or killed, every session reaches its end, and nothing is paid for
twice or worked on without need."""

import asyncio
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import UUID

import pytest

from adapters.queue.payload import decode
from domain.credits import LedgerKind
from domain.errors import (
    DatabaseUnavailable,
    QueueUnavailable,
    StorageUnavailable,
    TryAgain,
    Unavailable,
)
from domain.generation import WorkPolicy
from domain.recovery import RecoveryPolicy, RecoveryReport
from domain.sessions import GenerationSession, SessionStatus
from domain.tasks import GenerationTask
from domain.uploads import upload_folder
from tests.support.clock import START
from tests.support.examples import FAILURE, LEASE, OTHER, STORED_PICTURE, USER
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
        await service.repo.release(session_id, attempt=number, delay=timedelta(0))
    return await service.claimed(session_id)


async def kept(service: Service) -> GenerationSession:
    """A completed session with its picture in the image storage."""
    session = await service.claimed((await service.submitted()).session.id)
    picture = await service.storage.save(session.object_prefix, A_PICTURE)
    await service.repo.complete(session.id, attempt=session.attempt, picture=picture)
    return await service.session(session.id)


async def dead(service: Service, *, attempt: int = 1) -> GenerationSession:
    """A session whose worker died in its attempt number ``attempt``."""
    session = await claimed_again(service, (await service.submitted()).session.id, attempt)
    service.clock.advance(LEASE + SECOND)
    return session


async def test_a_quiet_system_is_left_alone(service: Service) -> None:
    """A session that waits, one that is worked on and one that is done need nothing."""
    _, worked_on, done = await service.backlog(3)
    await service.repo.claim(worked_on, lease=timedelta(days=1))
    attempt = await service.repo.claim(done, lease=LEASE)
    assert attempt is not None
    await service.repo.complete(done, attempt=attempt.attempt, picture=STORED_PICTURE)
    before = await service.sessions(), list(service.queue.messages)
    service.clock.advance(POLICY.queue_ttl - 10 * SECOND)

    assert await service.recover() == NOTHING

    assert (await service.sessions(), list(service.queue.messages)) == before


async def test_a_flushed_queue_is_filled_again_in_its_old_order(service: Service) -> None:
    """The queue lost everything: all sessions are pushed again, in batches of bounded size, and
    the oldest is popped first."""
    ids = await service.backlog(10)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    report = await service.recover(SMALL)

    assert report == RecoveryReport(pushed_again=10)
    assert order(service) == ids
    assert service.queue.pushed_next == [4, 4, 2]


async def test_a_task_that_is_pushed_again_says_what_the_first_one_said(service: Service) -> None:
    """It is a new task for the same session, and as old as the session."""
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
    """What is more than one run may do is left to the next ones, and the order comes out right:
    the newest are pushed first, so what is left is older than all in the queue."""
    ids = await service.backlog(SMALL.batch * SMALL.max_batches + 5)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    first = await service.recover(SMALL)
    left = order(service)
    second = await service.recover(SMALL)

    assert (first.pushed_again, second.pushed_again) == (12, 5)
    assert left == ids[5:]
    assert order(service) == ids


async def test_new_tasks_stay_behind_what_is_pushed_again(service: Service) -> None:
    """Sessions submitted after the loss, and before recovery ran, wait for their turn."""
    lost = await service.backlog(6)
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)
    new = await service.backlog(2)

    await service.recover(SMALL)

    assert order(service) == lost + new


async def test_nothing_is_pushed_twice_while_a_backlog_waits(service: Service) -> None:
    """The queue holds what it was given and no worker takes it: recovery sees that from the
    oldest task and leaves it alone, however long it takes."""
    ids = await service.backlog(5)

    for _ in range(10):
        service.clock.advance(POLICY.requeue_after + SECOND)
        assert await service.recover() == NOTHING

    assert order(service) == ids


async def test_a_recovered_backlog_is_not_pushed_twice_either(service: Service) -> None:
    """The rule holds for tasks that recovery itself pushed, in several batches."""
    ids = await service.backlog(10)
    service.queue.messages.clear()

    for _ in range(10):
        service.clock.advance(POLICY.requeue_after + SECOND)
        await service.recover(SMALL)

    assert order(service) == ids


async def test_tasks_lost_at_the_front_are_pushed_before_the_rest(service: Service) -> None:
    """A consumer popped three and died before it claimed: they are older than all that wait."""
    ids = await service.backlog(6)
    for _ in range(3):
        await service.queue.pop(timeout_seconds=0)
    service.clock.advance(POLICY.requeue_after)

    report = await service.recover()

    assert report.pushed_again == 3
    assert order(service) == ids


async def test_a_task_lost_in_the_middle_is_pushed_when_its_turn_has_come(service: Service) -> None:
    """Where older tasks wait it cannot be told from those that wait; later it can."""
    first, lost, last = await service.backlog(3)
    del service.queue.messages[1]
    service.clock.advance(POLICY.requeue_after)

    assert await service.recover() == NOTHING
    await service.claimed(first)
    report = await service.recover()

    assert report.pushed_again == 1
    assert order(service) == [lost, last]


async def test_a_session_is_not_pushed_again_too_early(service: Service) -> None:
    """Its task may be on its way still; and a task that is pushed again gets the same time."""
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


async def test_an_unreadable_oldest_task_tells_no_age(service: Service) -> None:
    """Nothing is pushed around it; once a consumer has buried it, recovery goes on."""
    ids = await service.backlog(2)
    service.queue.messages.clear()
    service.queue.messages.append(b"not JSON")
    service.clock.advance(POLICY.requeue_after)

    assert await service.recover() == NOTHING
    service.queue.messages.clear()
    report = await service.recover()

    assert report.pushed_again == 2
    assert order(service) == ids


async def test_what_was_never_confirmed_is_failed_and_refunded(service: Service) -> None:
    """Whoever submitted it was told 503 or nothing, so it must not be made into a picture."""
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


async def test_an_unconfirmed_session_in_the_queue_is_left_to_its_worker(service: Service) -> None:
    """The process that pushed it died before it could confirm, and the task waits: it counts."""
    await service.submitted(confirmed=False)
    service.clock.advance(2 * POLICY.requeue_after)

    assert await service.recover() == NOTHING

    assert len(service.waiting()) == 1


async def test_a_dead_lease_with_attempts_left_goes_back_to_the_queue(service: Service) -> None:
    """The worker died: the session is released and pushed in the same run, and the next claim
    has the next number."""
    session = await dead(service, attempt=POLICY.max_attempts - 1)

    report = await service.recover()

    assert (report.released, report.pushed_again, report.spent) == (1, 1, 0)
    assert order(service) == [session.id]
    assert (await service.claimed(session.id)).attempt == POLICY.max_attempts
    assert service.money_of(session.id) == CHARGED


async def test_a_dead_lease_without_attempts_left_fails(service: Service) -> None:
    """A session that kills its workers is not tried for ever; the credit comes back."""
    session = await dead(service, attempt=POLICY.max_attempts)

    report = await service.recover()

    assert (report.spent, report.released) == (1, 0)
    assert await failed_with(service, session.id) == "GENERATION_FAILED"
    assert service.money_of(session.id) == REFUNDED
    assert order(service) == []


async def test_a_worker_whose_lease_was_taken_away_can_write_nothing(service: Service) -> None:
    """It was slow, not dead: its attempt is over all the same."""
    stale = await dead(service)

    await service.recover()

    assert not await service.repo.renew(stale.id, attempt=stale.attempt, lease=LEASE)
    assert not await service.repo.complete(stale.id, attempt=stale.attempt, picture=STORED_PICTURE)
    assert (await service.session(stale.id)).status is SessionStatus.QUEUED


async def test_a_renewed_lease_is_alive_whatever_the_age(service: Service) -> None:
    """Long work is no dead work, and the time to live is for those that wait."""
    session = await service.claimed((await service.submitted()).session.id)
    for _ in range(10):
        service.clock.advance(POLICY.queue_ttl)
        await service.repo.renew(session.id, attempt=session.attempt, lease=LEASE)

        assert await service.recover() == NOTHING

    assert (await service.session(session.id)).status is SessionStatus.PROCESSING


async def test_another_consumers_work_has_a_bound_in_place_of_a_lease(service: Service) -> None:
    """It only wrote ``processing``: it is left alone until the bound has passed, each time
    spends an attempt, and the last one ends in a refund."""
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

    assert (report.spent, report.released) == (1, 0)
    assert service.money_of(session_id) == REFUNDED


async def test_work_of_another_consumer_proves_the_push(service: Service) -> None:
    """A session that somebody popped did reach the queue, so after its consumer died it is tried
    again, also where its submitter never came to confirm it."""
    session_id = (await service.submitted(confirmed=False)).session.id
    await service.queue.pop(timeout_seconds=0)
    service.repo.overwrite(session_id, status=SessionStatus.PROCESSING)
    service.clock.advance(POLICY.external_timeout + SECOND)

    report = await service.recover()

    assert (report.released, report.pushed_again, report.never_pushed) == (1, 1, 0)
    assert order(service) == [session_id]


async def test_another_consumers_failure_is_refunded_once(service: Service) -> None:
    """It wrote ``failed`` and knows nothing of credits; what it wrote stays."""
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(session_id, status=SessionStatus.FAILED)
    before = await service.session(session_id)

    assert (await service.recover()).refunded == 1
    assert (await service.recover()).refunded == 0

    assert await service.session(session_id) == before
    assert service.money_of(session_id) == REFUNDED
    assert service.balance() == 1


async def test_another_consumers_picture_is_not_refunded(service: Service) -> None:
    """A completed session never is, whoever completed it."""
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(
        session_id, status=SessionStatus.COMPLETED, generated_image_url="https://elsewhere.example/"
    )
    service.clock.advance(2 * POLICY.queue_ttl)

    assert await service.recover() == NOTHING

    assert service.money_of(session_id) == CHARGED


async def test_a_session_that_waited_too_long_expires(service: Service) -> None:
    """EXPIRED with its refund; its task is a ghost. A younger one goes on waiting."""
    old, young = await service.backlog(2, apart=2 * SECOND)
    service.clock.advance(POLICY.queue_ttl - 3 * SECOND)

    report = await service.recover()

    assert report.expired == 1
    assert await failed_with(service, old) == "EXPIRED"
    assert service.money_of(old) == REFUNDED
    assert await service.repo.claim(old, lease=LEASE) is None
    assert (await service.session(young)).status is SessionStatus.QUEUED


async def test_a_session_waits_out_its_backoff(service: Service) -> None:
    """A release with a delay keeps it out of the queue for just so long, however old it is."""
    session = await service.claimed((await service.submitted()).session.id)
    service.clock.advance(POLICY.requeue_after)
    await service.repo.release(session.id, attempt=session.attempt, delay=20 * SECOND)

    service.clock.advance(19 * SECOND)
    assert await service.recover() == NOTHING
    service.clock.advance(SECOND)
    assert (await service.recover()).pushed_again == 1

    assert order(service) == [session.id]


async def test_without_the_queue_the_rest_is_still_done(service: Service) -> None:
    """Refunds, expiry and leases need the store only; then the queue's error is raised."""
    refused, spent, expired = await service.backlog(3, apart=timedelta(0))
    service.repo.overwrite(refused, status=SessionStatus.FAILED)
    await claimed_again(service, spent, POLICY.max_attempts)
    service.clock.advance(POLICY.queue_ttl + SECOND)
    young, released = await service.backlog(2, apart=POLICY.requeue_after)
    await service.claimed(released)
    service.clock.advance(LEASE + SECOND)
    service.queue.faults.away.add("oldest")

    with pytest.raises(QueueUnavailable):
        await service.recover()

    assert service.money_of(refused) == REFUNDED
    assert await failed_with(service, spent) == "GENERATION_FAILED"
    assert await failed_with(service, expired) == "EXPIRED"
    assert (await service.session(released)).status is SessionStatus.QUEUED
    assert (await service.session(young)).status is SessionStatus.QUEUED


@pytest.mark.parametrize("fault", ["away", "deaf"])
async def test_a_push_that_fails_is_made_up_for(service: Service, fault: str) -> None:
    """Sessions that were about to be pushed come up again after the same time; a task that did
    arrive is seen in the queue."""
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
async def test_a_step_that_fails_keeps_no_other_from_being_done(
    service: Service, step: str, error: type[Exception]
) -> None:
    """A row that somebody holds for long, or a call that fails, costs a run that step only; its
    error is raised at the end, and the next run makes up for it."""
    recovery = service.recovery()
    old = await kept(service)
    service.clock.advance(POLICY.picture_lifetime)
    refused, spent, expired = await service.backlog(3, apart=timedelta(0))
    service.repo.overwrite(refused, status=SessionStatus.FAILED)
    await claimed_again(service, spent, POLICY.max_attempts)
    service.clock.advance(POLICY.queue_ttl + SECOND)
    lost, released = await service.backlog(2, apart=POLICY.requeue_after)
    await service.repo.claim(released, lease=LEASE)
    service.queue.messages.clear()
    service.clock.advance(LEASE + SECOND)
    service.repo.faults.away.add(step)
    service.queue.faults.away.add(step)

    async def not_done() -> set[str]:
        done = {
            "refund_missing": service.money_of(refused) == REFUNDED,
            "fail_dead_leases": service.money_of(spent) == REFUNDED,
            "release_dead_leases": (await service.session(released)).status is SessionStatus.QUEUED,
            "fail_expired": service.money_of(expired) == REFUNDED,
            "bury": len(await service.queue.dead(limit=10)) == 1,
            "claim_overdue": lost in order(service),
            "claim_expired_images": await service.storage.find(old.object_prefix) is None,
        }
        return {name for name, is_done in done.items() if not is_done}

    with pytest.raises(error):
        await recovery.run_once()
    left = await not_done()
    service.repo.faults.away.clear()
    service.queue.faults.away.clear()
    await recovery.run_once()

    nothing_to_bury = {"bury"} if step == "fail_dead_leases" else set()
    assert left == {step} | nothing_to_bury
    assert await not_done() == set()


async def test_of_several_failures_the_first_is_raised(service: Service) -> None:
    """Store and queue are both away; what is told is what went wrong first."""
    service.repo.faults.away.add("fail_expired")
    service.queue.faults.away.add("oldest")

    with pytest.raises(DatabaseUnavailable):
        await service.recover()

    assert "oldest" in service.queue.faults.calls


@pytest.mark.parametrize("step", ["refund_missing", "fail_expired", "claim_overdue", "fail_queued"])
async def test_a_store_that_is_down_is_told(service: Service, step: str) -> None:
    """The error is raised, and the next run does what this one could not."""
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
    """Each step repeats until it did less than a whole batch, or as often as a run may."""
    limit = SMALL.batch * SMALL.max_batches
    for session_id in await service.backlog(limit + 1):
        service.repo.overwrite(session_id, status=SessionStatus.FAILED)

    first = await service.recover(SMALL)
    second = await service.recover(SMALL)

    assert (first.refunded, second.refunded) == (limit, 1)
    assert service.repo.faults.calls.count("refund_missing") == SMALL.max_batches + 1
    assert service.balance() == limit + 1


async def test_many_recoveries_at_once_do_all_of_it_once(service: Service) -> None:
    """Each session is moved by one of them: one push, one refund."""
    lost = await service.backlog(20)
    service.queue.messages.clear()
    refused = await service.backlog(10)
    for session_id in refused:
        service.repo.overwrite(session_id, status=SessionStatus.FAILED)
    unsent = [(await service.submitted(confirmed=False)).session.id for _ in range(10)]
    service.queue.messages.clear()
    service.clock.advance(POLICY.requeue_after)

    reports = await asyncio.gather(*(service.recover(SMALL) for _ in range(10)))

    assert sum(report.pushed_again for report in reports) == len(lost)
    assert sum(report.refunded for report in reports) == len(refused)
    assert sum(report.never_pushed for report in reports) == len(unsent)
    assert sorted(order(service)) == sorted(lost)
    assert all(service.money_of(session_id) == REFUNDED for session_id in refused + unsent)


@pytest.mark.parametrize("attempts", [1, 3])
async def test_what_killed_all_its_workers_is_buried(service: Service, attempts: int) -> None:
    """Failed with its refund, and its task is kept for whoever finds out why, once, with a reason
    that names the attempts."""
    policy = RecoveryPolicy(max_attempts=attempts)
    session = await dead(service, attempt=attempts)
    recovery = service.recovery(policy)

    spent = [(await recovery.run_once()).spent for _ in range(3)]

    (letter,) = await service.queue.dead(limit=10)
    assert spent == [1, 0, 0]
    assert service.money_of(session.id) == REFUNDED
    assert letter.reason == f"{attempts} attempts ended without a sign of life"
    assert letter.session_id == session.id
    task = decode(letter.raw)
    assert isinstance(task, GenerationTask)
    assert task == GenerationTask.of(session, task_id=task.task_id)


async def test_what_did_not_kill_all_its_workers_is_not_buried(service: Service) -> None:
    """Neither what has attempts left nor what failed in another way."""
    waiting, refused, expired = await service.backlog(3, apart=timedelta(0))
    await service.claimed(waiting)
    service.repo.overwrite(refused, status=SessionStatus.FAILED)
    service.clock.advance(POLICY.queue_ttl + SECOND)

    await service.recover()

    assert await failed_with(service, expired) == "EXPIRED"
    assert await service.queue.dead(limit=10) == []


async def test_what_could_not_be_buried_is_buried_later(service: Service) -> None:
    """The queue is away: the refund does not wait for it, and once it is back each task is buried
    once, in the order in which they were failed."""
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


async def test_a_burial_without_a_reply_is_repeated(service: Service) -> None:
    """Twice in the dead list is better than not at all."""
    recovery = service.recovery()
    session = await dead(service, attempt=POLICY.max_attempts)
    service.queue.faults.deaf.add("bury")
    with pytest.raises(QueueUnavailable):
        await recovery.run_once()
    service.queue.faults.deaf.clear()

    for _ in range(2):
        await recovery.run_once()

    assert [letter.session_id for letter in service.queue.letters] == [session.id] * 2


async def test_what_waits_to_be_buried_has_a_bound(service: Service) -> None:
    """While the queue is away no more is kept in mind than one run can fail, the newest."""
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


async def test_an_old_session_whose_worker_died_is_not_tried_again(service: Service) -> None:
    """It is past its time to live: the run that takes it from its dead worker also fails it, and
    nobody can claim it in between."""
    (old,) = await service.backlog(1, apart=POLICY.queue_ttl)
    await service.claimed(old)
    service.clock.advance(LEASE + SECOND)

    report = await service.recover()

    assert (report.released, report.expired, report.pushed_again) == (1, 1, 0)
    assert await failed_with(service, old) == "EXPIRED"
    assert service.money_of(old) == REFUNDED
    assert order(service) == []


WORK = WorkPolicy(attempt_timeout=timedelta(minutes=3), lease=timedelta(seconds=30))


@pytest.mark.parametrize(
    ("changes", "interval", "bound"),
    [
        # Foreign work is the longest: 1 h + 10 s, then 3 * (15 min + 10 s).
        ({}, 10, timedelta(hours=1, minutes=45, seconds=40)),
        # Our own work is: 1 h + 10 s, then 3 * (3 min + 30 s + 10 s).
        ({"external_timeout": 60 * SECOND}, 10, timedelta(hours=1, minutes=11, seconds=10)),
        # One attempt: 1 min + 1 s, then 15 min + 1 s.
        ({"queue_ttl": 60 * SECOND, "max_attempts": 1}, 1, timedelta(minutes=16, seconds=2)),
    ],
)
def test_the_bound_of_settling(changes: dict[str, Any], interval: int, bound: timedelta) -> None:
    """The time to live and a run, then each attempt at its longest and a run."""
    policy = RecoveryPolicy(**changes)

    assert policy.settle_bound(WORK, interval=interval * SECOND) == bound


async def test_the_bound_of_settling_is_kept_and_nearly_reached(service: Service) -> None:
    """The worst that can be: each attempt begins just before the run that would have failed the
    session, and is given up too late for the next run to see that."""
    interval, moment = 10 * SECOND, timedelta(milliseconds=1)
    policy = RecoveryPolicy(
        queue_ttl=60 * SECOND, external_timeout=31 * SECOND, max_attempts=3, batch=1
    )
    work = WorkPolicy(attempt_timeout=10 * SECOND, lease=10 * SECOND)
    recovery = service.recovery(policy)
    session = (await service.submitted()).session

    async def runs(count: int) -> None:
        """Let time pass until just before a run, ``count`` runs later."""
        for _ in range(count):
            service.clock.advance(moment)
            await recovery.run_once()
            service.clock.advance(interval - moment)

    service.clock.advance(interval - moment)
    await runs(6)
    for attempt in range(policy.max_attempts):
        service.repo.overwrite(session.id, status=SessionStatus.PROCESSING)
        await runs(3)
        if attempt < policy.max_attempts - 1:
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
    """Somebody uploads ``count`` pictures now."""
    folder = upload_folder(USER, service.clock.now().date())
    for number in range(count):
        await service.storage.keep_upload(f"{folder}/{number}.jpg", b"")


async def uploads(service: Service) -> int:
    """How many there are of somebody's on the day on which everything begins."""
    return await service.storage.count_uploads(upload_folder(USER, START.date()), limit=10_000)


async def test_uploads_are_deleted_after_their_lifetime(service: Service) -> None:
    """Counted from when each was stored, by any worker; a lifetime may be shorter than a day."""
    policy = RecoveryPolicy(keep_uploads=timedelta(hours=6))
    await upload(service)
    service.clock.advance(timedelta(hours=6))

    too_early = await service.recover(policy)
    service.clock.advance(SECOND)
    report = await service.recover(policy)

    assert (too_early.uploads_deleted, report.uploads_deleted) == (0, 1)
    assert await uploads(service) == 0


async def test_uploads_are_looked_for_now_and_then(service: Service) -> None:
    """Once an hour, however often recovery runs, for each look is paid for in a cloud."""
    recovery = service.recovery()
    await recovery.run_once()
    await upload(service)
    service.clock.advance(timedelta(minutes=59))
    service.storage.delete_uploads_before = looked = Looks(service)  # type: ignore[method-assign]

    await recovery.run_once()
    assert looked.count == 0
    service.clock.advance(timedelta(minutes=1))
    await recovery.run_once()
    await recovery.run_once()
    assert looked.count == 1


class Looks:
    """Counts how often old uploads are looked for; finds none, or is ``away``."""

    def __init__(self, service: Service) -> None:
        self.service = service
        self.count = 0
        self.away = False

    async def __call__(self, moment: datetime, *, limit: int) -> int:
        assert moment < self.service.clock.now()
        assert limit > 0
        self.count += 1
        if self.away:
            raise TryAgain("away")
        return 0


async def test_many_old_uploads_are_deleted_in_batches(service: Service) -> None:
    """One in each run, one run after the other, until all are gone."""
    await upload(service, 2_500)
    service.clock.advance(timedelta(days=4))
    recovery = service.recovery()

    deleted = [(await recovery.run_once()).uploads_deleted for _ in range(4)]

    assert deleted == [1_000, 1_000, 500, 0]


async def test_a_storage_that_is_away_holds_no_session_up(service: Service) -> None:
    """It is said, after everything else is done, and left alone for an hour."""
    recovery = service.recovery()
    (lost,) = await service.backlog(1)
    service.queue.messages.clear()
    service.clock.advance(timedelta(minutes=1))
    service.storage.delete_uploads_before = looked = Looks(service)  # type: ignore[method-assign]
    looked.away = True

    with pytest.raises(Unavailable):
        await recovery.run_once()

    assert order(service) == [lost]
    assert (await recovery.run_once()).uploads_deleted == 0
    assert looked.count == 1


async def test_a_report_adds_up() -> None:
    """The total counts every kind of move."""
    report = RecoveryReport(
        refunded=1, expired=10, released=100, spent=1000, pushed_again=10_000, never_pushed=100_000,
        uploads_deleted=1_000_000,
    )  # fmt: skip

    assert report.total == 1_111_111


async def test_an_old_picture_is_deleted(service: Service) -> None:
    """Once its lifetime has passed since its session ended, and not before; the session says so,
    keeps everything else, and costs what it did."""
    young = await kept(service)
    service.clock.advance(POLICY.picture_lifetime)

    assert await service.recover() == NOTHING
    service.clock.advance(SECOND)
    assert await service.recover() == RecoveryReport(swept=1)
    assert await service.recover() == NOTHING

    old = await service.session(young.id)
    assert await service.storage.find(old.object_prefix) is None
    assert old == replace(young, image_deleted_at=service.clock.now())
    assert (young.image_expired, old.image_expired) == (False, True)
    assert service.money_of(old.id) == CHARGED


async def test_what_a_failed_attempt_left_is_deleted(service: Service) -> None:
    """Its worker kept the picture and died, so the session failed without one: there is something
    to delete, and no picture of a session that could have expired."""
    session = await service.claimed((await service.submitted()).session.id)
    await service.storage.save(session.object_prefix, A_PICTURE)
    await service.repo.fail(session.id, FAILURE, attempt=session.attempt)
    service.clock.advance(POLICY.picture_lifetime + SECOND)

    assert await service.recover() == RecoveryReport(swept=1)

    assert await service.storage.find(session.object_prefix) is None
    assert not (await service.session(session.id)).image_expired


async def test_another_consumers_picture_is_not_ours_to_delete(service: Service) -> None:
    """Not even where it happens to lie in our storage, at the place of the session."""
    session_id = (await service.submitted()).session.id
    service.repo.overwrite(
        session_id, status=SessionStatus.COMPLETED, generated_image_url="https://elsewhere.example/"
    )
    session = await service.session(session_id)
    await service.storage.save(session.object_prefix, A_PICTURE)
    service.clock.advance(2 * POLICY.picture_lifetime)

    assert await service.recover() == NOTHING

    assert await service.storage.find(session.object_prefix) is not None
    assert not (await service.session(session_id)).image_expired


async def test_a_picture_that_cannot_be_deleted_stops_no_other(service: Service) -> None:
    """It is told of, comes up again later, and is not taken for deleted before it is."""
    stubborn, other = await kept(service), await kept(service)
    service.storage.refused.add(stubborn.object_prefix)
    service.clock.advance(POLICY.picture_lifetime + SECOND)

    with pytest.raises(StorageUnavailable):
        await service.recover()
    assert (await service.session(other.id)).image_expired
    assert not (await service.session(stubborn.id)).image_expired
    assert await service.recover() == NOTHING
    service.storage.refused.clear()
    service.clock.advance(POLICY.delete_again_after)

    assert await service.recover() == RecoveryReport(swept=1)
    assert await service.storage.find(stubborn.object_prefix) is None


async def test_a_storage_that_hangs_holds_a_run_up_for_a_moment(service: Service) -> None:
    """All pictures of a run share one bound, for sessions may be waiting for the next run."""
    for _ in range(5):
        await kept(service)
    service.storage.seconds = 3_600
    service.clock.advance(POLICY.picture_lifetime + SECOND)
    began = service.clock.now()

    with pytest.raises(StorageUnavailable):
        await service.recover()

    assert service.clock.now() - began == POLICY.deletion_timeout


@pytest.mark.parametrize("fault", ["away", "deaf"])
async def test_a_deletion_that_was_not_noted_is_repeated(service: Service, fault: str) -> None:
    """Whoever deleted the picture could not say so, or was killed: the next one finds nothing to
    delete, and notes it."""
    session = await kept(service)
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
    """The rest is left to the next runs, also those of other processes at the same time."""
    for _ in range(7):
        await kept(service)
    service.clock.advance(POLICY.picture_lifetime + SECOND)
    policy = RecoveryPolicy(deletions=3)

    first = await service.recover(policy)
    at_once = await asyncio.gather(*(service.recover(policy) for _ in range(4)))

    assert first.swept == 3
    assert sorted(report.swept for report in at_once) == [0, 0, 1, 3]
