"""Working on a session: however an attempt ends, the session and its credit are right, and the
session can go on."""

import asyncio
import gc
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import suppress
from datetime import timedelta
from random import Random
from uuid import UUID, uuid4
from weakref import ref

import pytest

from domain.credits import LedgerKind
from domain.errors import (
    ClaimFailed,
    DatabaseUnavailable,
    ProviderMisconfigured,
    QueueUnavailable,
    Refused,
    Superseded,
    TryAgain,
)
from domain.generation import Outcome, WorkPolicy
from domain.picture_ports import Generated, Picture, PictureGeneratorPort, PictureRequest, RecordJob
from domain.recovery import RecoveryPolicy
from domain.sessions import ErrorCode, Failure, GenerationSession, SessionStatus
from domain.tasks import UnreadableTask
from tests.support.clock import loop_time
from tests.support.examples import (
    BAG,
    FAILURE,
    HAT,
    LEASE,
    MODEL_URL,
    OUTFIT_URL,
    STORE,
    STORED_PICTURE,
    USAGE,
    a_task,
)
from tests.support.images import A_PICTURE, FakePictureFetcher
from tests.support.service import INPUTS, Service, seeded_random

POLICY = WorkPolicy()
REQUEUE_AFTER = RecoveryPolicy().requeue_after
SECOND = timedelta(seconds=1)
CHARGED = [LedgerKind.DEBIT]
REFUNDED = [LedgerKind.DEBIT, LedgerKind.REFUND]
GENERIC = Failure(
    code="GENERATION_FAILED",
    message="The picture could not be made; the credit was refunded",
)

pytestmark = pytest.mark.anyio


@pytest.fixture(autouse=True)
async def _no_task_is_left_running(service: Service) -> AsyncIterator[None]:
    """After every test: no forgotten asyncio task, and correct books."""
    before = len(asyncio.all_tasks())
    yield
    assert len(asyncio.all_tasks()) == before
    assert await service.accounts.audit(limit=10) == []


class LongestWait(Random):
    """Draws the upper end of every range, as nearly as possible."""

    def random(self) -> float:
        return 1.0 - 2.0**-53


async def queued(service: Service) -> UUID:
    return (await service.submitted()).session.id


async def failure_of(service: Service, session_id: UUID) -> Failure | None:
    """Why the session failed, with its refund; None if it has not failed and is charged."""
    session = await service.session(session_id)
    assert (session.status is SessionStatus.FAILED) == (session.failure is not None)
    assert service.money_of(session_id) == (REFUNDED if session.failure else CHARGED)
    return session.failure


async def is_pushed_again_at(service: Service, session_id: UUID, delay: timedelta) -> bool:
    """Whether recovery pushes the session again once ``delay`` has passed, and not before."""
    service.clock.advance(delay - timedelta(milliseconds=1))
    early = await service.recover()
    service.clock.advance(timedelta(milliseconds=1))
    await service.recover()
    return not early.total and [task.session_id for task in service.waiting()] == [session_id]


async def settled_after_faults(service: Service, session_id: UUID) -> GenerationSession:
    """End all faults, and let recovery and a worker settle the session."""
    for faults in (service.repo.faults, service.queue.faults):
        faults.away.clear()
        faults.deaf.clear()
    for _ in range(POLICY.max_attempts + 1):
        service.clock.advance(LEASE + REQUEUE_AFTER)
        await service.recover()
        while service.waiting():
            await service.work()
    return await service.session(session_id)


async def cancelled(running: "asyncio.Task[Outcome]") -> None:
    """Cancel it, and check that the cancellation is raised."""
    running.cancel()
    with pytest.raises(asyncio.CancelledError):
        await running


async def test_task_becomes_a_picture(service: Service) -> None:
    """The inputs are fetched in the contract's order and passed to the generator with the prompt.
    Its picture is saved under the session's prefix, and the session is completed."""
    session = (
        await service.submitted(
            STORE, outfit_image_url=OUTFIT_URL, accessories=(HAT, BAG), prompt="In the rain"
        )
    ).session

    assert await service.work() is Outcome.COMPLETED

    after = await service.session(session.id)
    (request,) = service.generator.requests
    assert service.fetcher.fetched == [MODEL_URL, OUTFIT_URL, HAT.url, BAG.url]
    assert request.images == tuple(INPUTS[url] for url in service.fetcher.fetched)
    assert (request.session_id, request.prompt) == (session.id, "In the rain")
    assert (after.status, after.attempt) == (SessionStatus.COMPLETED, 1)
    assert after.picture is not None
    assert after.picture.object_key == f"{session.object_prefix}.jpg"
    assert await service.picture(after.picture.object_key) == A_PICTURE
    assert service.money_of(session.id) == CHARGED


async def test_picture_is_saved_before_completion(service: Service) -> None:
    """The database is unavailable at the end: the picture is saved, and the next attempt completes
    the session with it, without calling the generator again."""
    session = (await service.submitted()).session
    service.repo.faults.away.add("complete")

    assert await service.work() is Outcome.UNSETTLED

    kept = await service.storage.find(session.object_prefix)
    assert kept is not None
    assert (await service.session(session.id)).status is SessionStatus.PROCESSING
    after = await settled_after_faults(service, session.id)
    assert (after.status, after.attempt, after.picture) == (SessionStatus.COMPLETED, 2, kept)
    assert (len(service.fetcher.fetched), len(service.generator.requests)) == (1, 1)


async def test_usage_is_stored_with_the_picture(service: Service) -> None:
    """The session has the generator's tokens and their cost. The usage of an attempt that died
    after saving its picture is unknown, and none is made up."""
    known, lost = await service.backlog(2)
    service.generator.usage = USAGE
    await service.work()
    service.repo.faults.away.add("complete")
    await service.work()

    after = await settled_after_faults(service, lost)

    assert (await service.session(known)).usage == USAGE
    assert (after.status, after.usage) == (SessionStatus.COMPLETED, None)
    assert len(service.generator.requests) == 2


async def test_task_of_unknown_session_is_buried_once(service: Service) -> None:
    """It is another producer's, or was lost with a database: nothing begins, and it becomes a dead
    letter, however often it comes."""
    task = a_task()
    for _ in range(3):
        await service.queue.push(task)
        assert await service.work() is Outcome.SKIPPED

    (letter,) = service.queue.buried
    assert service.fetcher.fetched == []
    assert letter.session_id == task.session_id
    assert "not in the database" in letter.reason


async def test_postponed_task_of_unknown_session_is_buried(service: Service) -> None:
    """Its owner's share of the slots was taken when it came."""
    task = a_task()

    await service.generation().postpone(task, timedelta(seconds=2))

    assert [letter.session_id for letter in service.queue.buried] == [task.session_id]


@pytest.mark.parametrize(
    ("fault", "error"), [("is_known", DatabaseUnavailable), ("bury", QueueUnavailable)]
)
async def test_task_of_unknown_session_is_not_lost(
    service: Service, fault: str, error: type[Exception]
) -> None:
    """Without an answer of the database or the queue it is back in the queue."""
    task = a_task()
    await service.queue.push(task)
    for faults in (service.repo.faults, service.queue.faults):
        faults.away.add(fault)

    with pytest.raises(error):
        await service.work()

    assert service.waiting() == [task]
    assert service.queue.buried == []


@pytest.mark.parametrize("state", ["processing", "completed", "failed"])
async def test_duplicate_task_is_skipped(service: Service, state: str) -> None:
    """A task whose session is processing or final changes nothing, and nothing begins."""
    session = await service.claimed(await queued(service))
    if state == "completed":
        await service.repo.complete(session.id, attempt=1, picture=STORED_PICTURE)
    elif state == "failed":
        await service.repo.fail(session.id, FAILURE, attempt=1)
    before = await service.session(session.id), service.balance()
    await service.queue.push(a_task(session_id=session.id))

    assert await service.work() is Outcome.SKIPPED

    assert service.fetcher.fetched == []
    assert service.queue.buried == []
    assert (await service.session(session.id), service.balance()) == before


async def test_one_of_concurrent_duplicates_is_worked_on(service: Service) -> None:
    """The others find the session claimed."""
    session_id = await queued(service)
    (task,) = service.waiting()

    outcomes = await asyncio.gather(*(service.generation().run(task) for _ in range(10)))

    assert sorted(outcomes) == [Outcome.COMPLETED] + [Outcome.SKIPPED] * 9
    assert len(service.generator.requests) == 1
    assert service.money_of(session_id) == CHARGED


@pytest.mark.parametrize("attempt", range(1, 6))
async def test_transient_failure_is_retried_after_a_backoff(service: Service, attempt: int) -> None:
    """The session is released; the longest wait doubles with each attempt, up to a cap."""
    policy = WorkPolicy(max_attempts=9, backoff_base=3 * SECOND, backoff_cap=20 * SECOND)
    session_id = await queued(service)
    for number in range(1, attempt):
        await service.claimed(session_id)
        await service.repo.release(session_id, attempt=number, delay=timedelta(0))
        await service.recover()
    service.generator.outcomes = [TryAgain("Busy")]

    assert await service.work(service.generation(policy, LongestWait())) is Outcome.RELEASED

    longest = [3, 6, 12, 20, 20][attempt - 1] * SECOND
    assert await is_pushed_again_at(service, session_id, longest)
    assert await failure_of(service, session_id) is None


@pytest.mark.parametrize("attempt", [1, 2, 5, 33, 1_000_000])
async def test_backoff_has_full_jitter(attempt: int) -> None:
    """Waits are spread over the whole range and stay within it, whatever the settings."""
    policy = WorkPolicy(backoff_base=timedelta(days=1), backoff_cap=timedelta(days=20))
    ceiling = min(20, 2 ** min(attempt - 1, 10)) * timedelta(days=1)
    random = seeded_random()

    waits = [policy.backoff(attempt, 0.0, random) for _ in range(1000)]

    assert timedelta(0) <= min(waits) < 0.01 * ceiling
    assert 0.99 * ceiling < max(waits) <= ceiling
    assert 0.45 * ceiling < sum(waits, timedelta(0)) / len(waits) < 0.55 * ceiling


async def test_retry_after_is_respected(service: Service) -> None:
    """The wait is not shorter than the provider's Retry-After."""
    session_id = await queued(service)
    service.generator.outcomes = [TryAgain("Busy", retry_after_seconds=40.0)]

    assert await service.work() is Outcome.RELEASED

    assert await is_pushed_again_at(service, session_id, timedelta(seconds=40))


@pytest.mark.parametrize(
    ("retry_after", "wait"),
    [(-1.0, SECOND), (0.5, SECOND), (2.0, 2 * SECOND), (float("inf"), timedelta(hours=1))],
)
async def test_retry_after_is_bounded(retry_after: float, wait: timedelta) -> None:
    """It makes a wait longer, up to an hour, and never shorter."""
    assert POLICY.backoff(1, retry_after, LongestWait()) == wait


async def test_attempts_are_bounded(service: Service) -> None:
    """The last attempt fails the session with its refund and the error's code and message."""
    session_id = await queued(service)
    fault = TryAgain("A picture's server did not deliver it", code=ErrorCode.IMAGE_UNREACHABLE)
    service.fetcher.pictures[MODEL_URL] = fault

    outcomes = []
    for _ in range(POLICY.max_attempts):
        outcomes.append(await service.work())
        service.clock.advance(POLICY.backoff_cap)
        await service.recover()

    assert outcomes == [Outcome.RELEASED, Outcome.RELEASED, Outcome.FAILED]
    assert service.waiting() == []
    assert await failure_of(service, session_id) == Failure(
        code="IMAGE_UNREACHABLE", message="A picture's server did not deliver it"
    )


async def test_refused_request_fails_at_once(service: Service) -> None:
    """No second attempt: it fails with its refund and the refusal's code and message."""
    session_id = await queued(service)
    service.generator.outcomes = [Refused("Not this one", code=ErrorCode.MODERATION_BLOCKED)]

    assert await service.work() is Outcome.FAILED

    assert await failure_of(service, session_id) == Failure(
        code="MODERATION_BLOCKED", message="Not this one"
    )


async def test_misconfigured_provider_fails_no_session(service: Service) -> None:
    """The session goes back to the front of the queue and stays charged, however often that
    happens. The error is raised, so that the worker's circuit opens."""
    first, second = await service.backlog(2)
    rejection = ProviderMisconfigured(detail="401")
    service.generator.outcomes = [rejection] * (POLICY.max_attempts + 2)

    for _ in range(POLICY.max_attempts + 2):
        with pytest.raises(ProviderMisconfigured):
            await service.work()

    assert [task.session_id for task in service.waiting()] == [first, second]
    assert (await service.session(first)).status is SessionStatus.QUEUED
    assert await failure_of(service, first) is None
    assert await service.work() is Outcome.COMPLETED


async def test_session_expires_while_the_provider_is_misconfigured(service: Service) -> None:
    """The key is never fixed: the session fails after its time to live, with its refund."""
    session_id = await queued(service)
    service.generator.outcomes = [ProviderMisconfigured(detail="401")]
    with pytest.raises(ProviderMisconfigured):
        await service.work()

    service.clock.advance(RecoveryPolicy().queue_ttl + SECOND)
    await service.recover()

    failure = await failure_of(service, session_id)
    assert failure is not None
    assert failure.code == "EXPIRED"


@pytest.mark.parametrize(
    "error",
    [
        RuntimeError("secret of the upstream"),
        TimeoutError("raised by the generator, not by our bound"),
        asyncio.CancelledError("raised by the generator, not by a caller"),
    ],
)
async def test_unexpected_error_fails_the_session(service: Service, error: BaseException) -> None:
    """With its refund and a generic message. The error itself is raised, for the log."""
    session_id = await queued(service)
    service.generator.outcomes = [error]

    with pytest.raises(Exception, match=r"secret|not by our bound|cancelled itself"):
        await service.work()

    assert await failure_of(service, session_id) == GENERIC


async def test_unexpected_error_is_raised_without_the_database(service: Service) -> None:
    """The database's failure does not hide the error, and recovery takes over."""
    session_id = await queued(service)
    service.generator.outcomes = [RuntimeError("a bug")]
    service.repo.faults.away.add("fail")

    with pytest.raises(RuntimeError, match="a bug"):
        await service.work()

    assert (await settled_after_faults(service, session_id)).status is SessionStatus.COMPLETED


async def test_bug_in_renewal_fails_the_session(service: Service) -> None:
    """Work whose lease cannot be renewed is stopped, and the error is raised."""
    session_id = await queued(service)
    service.generator.seconds = 100
    service.repo.faults.broken.add("renew")

    with pytest.raises(RuntimeError, match="renew"):
        await service.work()

    assert loop_time() < LEASE.total_seconds()
    assert await failure_of(service, session_id) == GENERIC


async def test_attempt_has_a_timeout(service: Service) -> None:
    """After that it is stopped and retried; the last attempt fails the session with a message."""
    session_id = await queued(service)
    service.generator.seconds = 3600
    started_at = loop_time()

    assert await service.work() is Outcome.RELEASED

    assert loop_time() - started_at == POLICY.attempt_timeout.total_seconds()
    after = await settled_after_faults(service, session_id)
    assert after.failure == Failure(
        code="GENERATION_FAILED", message="Making the picture took too long"
    )
    assert service.money_of(session_id) == REFUNDED


async def test_attempt_timeout_may_be_shorter_than_a_lease(service: Service) -> None:
    """The attempt is stopped at its timeout, not at the first renewal of the lease."""
    await service.submitted()
    service.generator.seconds = 3600
    generation = service.generation(WorkPolicy(attempt_timeout=LEASE / 10))
    started_at = loop_time()

    assert await service.work(generation) is Outcome.RELEASED

    assert loop_time() - started_at == LEASE.total_seconds() / 10


async def test_work_that_ignores_cancellation_is_left_behind(service: Service) -> None:
    """It delays neither the session nor the worker, and its later error is not logged."""
    session_id = await queued(service)
    service.generator.seconds, service.generator.stubborn = 3600, True
    service.generator.outcomes = [RuntimeError("too late")]
    started_at = loop_time()

    assert await service.work() is Outcome.RELEASED

    took = loop_time() - started_at
    assert took < POLICY.attempt_timeout.total_seconds() + LEASE.total_seconds() / 2
    assert (await service.session(session_id)).status is SessionStatus.QUEUED
    await asyncio.sleep(3600)


async def test_lease_is_renewed_during_the_work(service: Service) -> None:
    """Work may take many leases: recovery beside it sees a live worker."""
    session_id = await queued(service)
    service.generator.seconds = 5 * LEASE.total_seconds()

    async with asyncio.TaskGroup() as group:
        working = group.create_task(service.work())
        while not working.done():
            assert (await service.recover()).total == 0
            await asyncio.sleep(1)

    after = await service.session(session_id)
    assert (working.result(), after.status) == (Outcome.COMPLETED, SessionStatus.COMPLETED)
    assert after.attempt == 1


async def test_short_database_outage_does_not_stop_the_work(service: Service) -> None:
    """One renewal fails and the next one, within the same lease, succeeds."""
    await service.submitted()
    service.generator.seconds = 2 * LEASE.total_seconds()
    service.repo.faults.away.add("renew")
    working = asyncio.create_task(service.work())
    await asyncio.sleep(LEASE.total_seconds() / 2)

    service.repo.faults.away.clear()

    assert await working is Outcome.COMPLETED


async def test_expired_lease_stops_the_work(service: Service) -> None:
    """The database was unavailable for a whole lease, so another worker may have the session: this
    one stops and writes nothing, and recovery takes over."""
    session_id = await queued(service)
    service.generator.seconds = 100
    service.repo.faults.away.add("renew")
    started_at = loop_time()

    assert await service.work() is Outcome.OVERTAKEN

    assert loop_time() - started_at == LEASE.total_seconds()
    assert (await service.session(session_id)).status is SessionStatus.PROCESSING
    service.generator.seconds = 0
    after = await settled_after_faults(service, session_id)
    assert (after.status, after.attempt) == (SessionStatus.COMPLETED, 2)


async def test_lost_lease_stops_the_work_of_the_stale_attempt(service: Service) -> None:
    """A slow worker that was taken for dead notices at its next renewal; the newer attempt's
    result stays."""
    session_id = await queued(service)
    service.generator.seconds = 100
    slow = asyncio.create_task(service.work())
    await asyncio.sleep(1)
    service.generator.seconds = 0
    service.clock.advance(LEASE)
    await service.recover()

    assert await service.work() is Outcome.COMPLETED
    newer = await service.session(session_id)
    assert await slow is Outcome.OVERTAKEN

    assert loop_time() < LEASE.total_seconds()
    assert newer.attempt == 2
    assert await service.session(session_id) == newer
    assert service.money_of(session_id) == CHARGED


@pytest.mark.parametrize(
    "outcome", [A_PICTURE, TryAgain("Busy"), Refused("Not this one"), RuntimeError("a bug")]
)
async def test_stale_attempt_changes_nothing(service: Service, outcome: Exception) -> None:
    """However its work ends, in the instant in which it learns of its lost lease and while the
    newer attempt still works: neither the status nor the ledger changes."""
    session_id = await queued(service)
    service.generator.outcomes = [outcome]
    service.generator.seconds = LEASE.total_seconds() / 3
    slow = asyncio.create_task(service.work())
    await asyncio.sleep(1)
    service.clock.advance(LEASE)
    await service.recover()
    newer = await service.claimed(session_id)

    with suppress(RuntimeError):
        assert await slow is Outcome.OVERTAKEN

    assert await service.session(session_id) == newer
    assert service.money_of(session_id) == CHARGED


@pytest.mark.parametrize("queue_away", [False, True])
async def test_database_outage_at_the_claim_loses_no_task(
    service: Service, *, queue_away: bool
) -> None:
    """The task is the next one in the queue again, and the outage is raised. If the queue is
    unavailable too, recovery pushes the session once both are back."""
    session_id = await queued(service)
    await service.submitted()
    service.repo.faults.away.add("claim")
    if queue_away:
        service.queue.faults.away.add("push_next")

    with pytest.raises(DatabaseUnavailable):
        await service.work()

    assert (service.waiting()[0].session_id == session_id) is not queue_away
    assert (await settled_after_faults(service, session_id)).status is SessionStatus.COMPLETED


async def test_rejected_claim_loses_no_task(service: Service) -> None:
    """For example for a missing privilege: the task is the next one in the queue again, and the
    error tells the worker that the next claim would fail too."""
    session_id = await queued(service)
    await service.submitted()
    service.repo.faults.broken.add("claim")

    with pytest.raises(ClaimFailed) as raised:
        await service.work()

    assert isinstance(raised.value.__cause__, RuntimeError)
    assert service.waiting()[0].session_id == session_id
    service.repo.faults.broken.clear()
    assert (await settled_after_faults(service, session_id)).status is SessionStatus.COMPLETED


async def test_claim_with_a_lost_reply_is_recovered_after_its_lease(service: Service) -> None:
    """The session is claimed and no worker knows: its task is skipped until the lease expires."""
    session_id = await queued(service)
    service.repo.faults.deaf.add("claim")
    with pytest.raises(DatabaseUnavailable):
        await service.work()
    service.repo.faults.deaf.clear()

    assert await service.work() is Outcome.SKIPPED
    assert (await service.recover()).total == 0

    after = await settled_after_faults(service, session_id)
    assert (after.status, after.attempt) == (SessionStatus.COMPLETED, 2)
    assert service.money_of(session_id) == CHARGED


@pytest.mark.parametrize(
    ("method", "outcome", "end"),
    [
        ("complete", A_PICTURE, SessionStatus.COMPLETED),
        ("fail", Refused("Not this one"), SessionStatus.FAILED),
        ("release", TryAgain("Busy"), SessionStatus.COMPLETED),
    ],
)
async def test_lost_reply_changes_nothing(
    service: Service, method: str, outcome: Exception, end: SessionStatus
) -> None:
    """The write counts: a final session stays as it is and is refunded once or never, a released
    one is retried."""
    session_id = await queued(service)
    service.generator.outcomes = [outcome]
    service.repo.faults.deaf.add(method)

    assert await service.work() is Outcome.UNSETTLED

    written = await service.session(session_id)
    after = await settled_after_faults(service, session_id)
    assert after.status is end
    assert after == written or not written.status.is_final
    assert service.money_of(session_id) == (REFUNDED if end is SessionStatus.FAILED else CHARGED)


@pytest.mark.parametrize(
    ("method", "outcome"), [("fail", Refused("Not this one")), ("release", TryAgain("Busy"))]
)
async def test_unsettled_session_is_retried(
    service: Service, method: str, outcome: Exception
) -> None:
    """The database is unavailable at the end: the session stays in this attempt until its lease
    expires."""
    session_id = await queued(service)
    service.generator.outcomes = [outcome, outcome]
    service.repo.faults.away.add(method)

    assert await service.work() is Outcome.UNSETTLED

    assert (await service.session(session_id)).status is SessionStatus.PROCESSING
    after = await settled_after_faults(service, session_id)
    assert after.status.is_final
    assert after.attempt > 1


async def test_cancelled_work_is_given_back(service: Service) -> None:
    """The session is the next one in the queue, without recovery."""
    session_id = await queued(service)
    await service.submitted()
    service.generator.seconds = 100
    working = asyncio.create_task(service.work())
    await asyncio.sleep(1)

    await cancelled(working)

    session = await service.session(session_id)
    assert (session.status, session.attempt) == (SessionStatus.QUEUED, 1)
    assert service.waiting()[0].session_id == session_id
    service.generator.seconds = 0
    assert await service.work() is Outcome.COMPLETED
    assert (await service.session(session_id)).attempt == 2
    assert service.money_of(session_id) == CHARGED


@pytest.mark.parametrize("fault", ["away", "deaf"])
@pytest.mark.parametrize("method", ["release", "push_next"])
async def test_failed_give_back_is_recovered(service: Service, method: str, fault: str) -> None:
    """The database or the queue does not answer a stopping worker: the session waits for recovery,
    and nothing is lost."""
    session_id = await queued(service)
    service.generator.seconds = 100
    working = asyncio.create_task(service.work())
    await asyncio.sleep(1)
    for faults in (service.repo.faults, service.queue.faults):
        getattr(faults, fault).add(method)

    await cancelled(working)

    service.generator.seconds = 0
    after = await settled_after_faults(service, session_id)
    assert (after.status, after.attempt) == (SessionStatus.COMPLETED, 2)
    assert service.money_of(session_id) == CHARGED


@pytest.mark.parametrize(
    ("method", "outcome"),
    [("complete", A_PICTURE), ("fail", Refused("Not this one")), ("release", TryAgain("Busy"))],
)
async def test_cancellation_while_settling_changes_nothing(
    service: Service, method: str, outcome: Exception
) -> None:
    """The write stands, giving back changes nothing, and there is no second refund."""
    session_id = await queued(service)
    service.generator.outcomes = [outcome]
    service.repo.faults.slow[method] = 5
    working = asyncio.create_task(service.work())
    await asyncio.sleep(1)
    written = await service.session(session_id)

    await cancelled(working)

    assert await service.session(session_id) == written
    assert written.status is not SessionStatus.PROCESSING
    assert service.waiting() == []
    assert (await settled_after_faults(service, session_id)).status.is_final


async def test_claim_cancelled_before_its_effect_gives_its_task_back(service: Service) -> None:
    """It never reached the database: the session is still queued, and so is its task."""
    session_id = await queued(service)
    (task,) = service.waiting()
    service.queue.messages.clear()
    working = asyncio.create_task(service.generation().run(task))
    await asyncio.sleep(0)

    await cancelled(working)

    assert (await service.session(session_id)).status is SessionStatus.QUEUED
    assert service.waiting() == [task]
    assert await service.work() is Outcome.COMPLETED


@pytest.mark.parametrize("queue_away", [False, True])
async def test_claim_cancelled_after_its_effect_is_recovered(
    service: Service, *, queue_away: bool
) -> None:
    """It did reach the database: the session is claimed without a worker until its lease expires,
    and then recovery gives it to another worker."""
    session_id = await queued(service)
    service.repo.faults.slow["claim"] = 5
    working = asyncio.create_task(service.work())
    await asyncio.sleep(1)
    if queue_away:
        service.queue.faults.away.add("push_next")

    await cancelled(working)

    service.repo.faults.slow.clear()
    assert (await service.session(session_id)).status is SessionStatus.PROCESSING
    service.clock.advance(LEASE - 2 * SECOND)
    assert (await service.recover()).released == 0
    after = await settled_after_faults(service, session_id)
    assert (after.status, after.attempt) == (SessionStatus.COMPLETED, 2)
    assert service.money_of(session_id) == CHARGED


Fate = Callable[[PictureRequest], Awaitable[None]]


class Bug(Exception):
    pass


class Traced(Picture):
    """Allows weak references, unlike its parent."""


class HeldPictures(FakePictureFetcher, PictureGeneratorPort):
    """Fetches traced pictures, and meets its ``fate`` while it holds them."""

    def __init__(self, fate: Fate) -> None:
        super().__init__({})
        self._fate = fate
        self.held: list[ref[Traced] | ref[Exception]] = []

    async def fetch_one(self, url: str) -> Picture:  # noqa: ARG002
        picture = Traced(data=b"x", media_type="image/jpeg")
        self.held.append(ref(picture))
        return picture

    async def generate(self, request: PictureRequest, record: RecordJob) -> Generated:  # noqa: ARG002
        try:
            await self._fate(request)
        except Exception as error:
            self.held.append(ref(error))
            raise
        return Generated(picture=request.images[0])


def raises(make: Callable[[], Exception]) -> Fate:
    async def fate(_: PictureRequest) -> None:
        raise make()

    return fate


async def times_out(_: PictureRequest) -> None:
    """Like a provider's call with a timeout of its own."""
    try:
        async with asyncio.timeout(1):
            await asyncio.Event().wait()
    except TimeoutError as error:
        raise TryAgain("The provider is slow") from error


async def fails_in_a_task(_: PictureRequest) -> None:
    """Like a call that is shielded from its caller's cancellation."""

    async def fail() -> None:
        raise TryAgain("The provider is busy")

    call = asyncio.create_task(fail())
    await asyncio.shield(call)


async def never_ends(_: PictureRequest) -> None:
    await asyncio.Event().wait()


FATES: dict[str, Fate] = {
    "busy": raises(lambda: TryAgain("busy")),
    "unusable": raises(lambda: Refused("unusable")),
    "misconfigured": raises(lambda: ProviderMisconfigured(detail="no key")),
    "database away": raises(lambda: DatabaseUnavailable("away")),
    "superseded": raises(lambda: Superseded("over")),
    "a bug": raises(lambda: Bug("a bug")),
    "times out": times_out,
    "fails in a task": fails_in_a_task,
    "never ends": never_ends,
}


@pytest.mark.parametrize("fate", FATES.values(), ids=FATES)
async def test_failure_leaves_no_reference_cycle(service: Service, fate: Fate) -> None:
    """Neither the error nor the pictures in its traceback's frames wait for the garbage collector:
    it counts objects, and these are few and large."""
    service.fetcher = pictures = HeldPictures(fate)
    generation = service.generation(generator=pictures)
    gc.disable()
    try:
        for _ in range(2):
            await queued(service)
            with suppress(ProviderMisconfigured, Bug):
                await service.work(generation)
            await asyncio.sleep(0)  # The callbacks of stopped tasks run now.

        assert len(pictures.held) >= 2
        assert [held() for held in pictures.held] == [None] * len(pictures.held)
    finally:
        gc.enable()


def unreadable(session_id: UUID | None) -> UnreadableTask:
    return UnreadableTask(raw=b"{", reason="not JSON", session_id=session_id)


async def test_unreadable_message_is_buried_and_its_session_refunded(service: Service) -> None:
    """The dead letter has its text and the reason, and the session that it names fails."""
    session_id = await queued(service)
    message = unreadable(session_id)

    assert await service.generation().refuse(message)

    assert service.queue.buried == [message]
    assert await failure_of(service, session_id) == Failure(
        code="INVALID_TASK",
        message="The request could not be read; the credit was refunded",
    )


@pytest.mark.parametrize("session_id", [None, uuid4()])
async def test_unreadable_message_without_a_session_is_buried(
    service: Service, session_id: UUID | None
) -> None:
    """It names no session, or an unknown one: there is nothing to fail."""
    message = unreadable(session_id)

    assert not await service.generation().refuse(message)

    assert service.queue.buried == [message]
    assert service.accounts.entries == []


@pytest.mark.parametrize("state", ["processing", "completed", "failed"])
async def test_unreadable_message_fails_queued_sessions_only(service: Service, state: str) -> None:
    """A processing or final session stays as it is, and is not refunded again."""
    session = await service.claimed(await queued(service))
    if state == "completed":
        await service.repo.complete(session.id, attempt=1, picture=STORED_PICTURE)
    elif state == "failed":
        await service.repo.fail(session.id, FAILURE, attempt=1)
    before = await service.session(session.id), service.balance()

    assert not await service.generation().refuse(unreadable(session.id))

    assert (await service.session(session.id), service.balance()) == before
    assert len(service.queue.buried) == 1


@pytest.mark.parametrize(
    ("method", "error"), [("bury", QueueUnavailable), ("fail_queued", DatabaseUnavailable)]
)
async def test_refusal_can_be_repeated(
    service: Service, method: str, error: type[Exception]
) -> None:
    """The queue or the database is unavailable: that is raised, and after another call the session
    is refunded once and the message buried once."""
    session_id = await queued(service)
    message = unreadable(session_id)
    faults = service.queue.faults if method == "bury" else service.repo.faults
    faults.away.add(method)
    with pytest.raises(error):
        await service.generation().refuse(message)
    faults.away.clear()

    await service.generation().refuse(message)

    assert service.queue.buried == [message]
    assert await failure_of(service, session_id) is not None
