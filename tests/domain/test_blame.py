"""Whose fault it is that an attempt failed, what that costs the session, and what is recorded."""

import asyncio
from datetime import timedelta
from uuid import UUID

import pytest

from domain.causes import MAX_DETAIL, Cause, CauseKind
from domain.errors import (
    InputUnavailable,
    ProviderMisconfigured,
    ProviderUnavailable,
    Refused,
    StorageUnavailable,
    TryAgain,
    WorkerExhausted,
)
from domain.generation import Outcome, WorkPolicy
from domain.recovery import RecoveryPolicy
from domain.sessions import SessionStatus
from tests.support.clock import loop_time
from tests.support.examples import MODEL_URL
from tests.support.service import Service

POLICY = WorkPolicy()
SECOND, MINUTE = timedelta(seconds=1), timedelta(minutes=1)

pytestmark = pytest.mark.anyio

FULL = StorageUnavailable("full", cause=Cause(CauseKind.STORAGE, "no space left on device"))
BUSY = ProviderUnavailable("busy", cause=Cause(CauseKind.PROVIDER, "500 server_error"))


async def causes_of(service: Service, session_id: UUID) -> list[str]:
    return [fault.cause for fault in await service.repo.attempt_faults(session_id)]


async def status_of(service: Service, session_id: UUID) -> tuple[SessionStatus, str | None]:
    session = await service.session(session_id)
    return session.status, session.failure.code if session.failure else None


async def attempt_later(service: Service, wait: timedelta) -> Outcome:
    """The outcome of the session's next attempt, after this time."""
    service.clock.advance(wait)
    await service.recover()
    return await service.work()


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (BUSY, "provider 500 server_error"),
        (ProviderMisconfigured(detail="401 invalid_api_key"), "provider 401 invalid_api_key"),
        (FULL, "storage no space left on device"),
        (WorkerExhausted("too many open files"), "worker too many open files"),
        (Refused("A picture is damaged"), "input A picture is damaged"),
        (InputUnavailable("x", cause=Cause(CauseKind.INPUT, "404 host=a.b")), "input 404 host=a.b"),
        (TryAgain("x", cause=Cause(CauseKind.TIMEOUT, "180 s")), "timeout 180 s"),
        (RuntimeError("our key is sk-1"), "bug RuntimeError"),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
async def test_failed_attempt_is_recorded_with_its_cause(
    service: Service, error: Exception, cause: str
) -> None:
    """Whether it ends the session or not."""
    session_id = (await service.submitted()).session.id
    service.generator.outcomes = [error]

    await asyncio.gather(service.work(), return_exceptions=True)

    (fault,) = await service.repo.attempt_faults(session_id)
    assert (fault.attempt, fault.cause, fault.worker) == (1, cause, "worker-1:7")


async def test_success_records_nothing(service: Service) -> None:
    """The happy path writes no row."""
    session_id = (await service.submitted()).session.id

    assert await service.work() is Outcome.COMPLETED

    assert await causes_of(service, session_id) == []


def test_cause_is_bounded_and_safe() -> None:
    """One line, without what a URL keeps secret."""
    url = "postgresql://user:p@ss@db.example/wearon?password=hunter2#x"

    cause = Cause(CauseKind.DATABASE, f"cannot reach\n\x1b[31m {url} " + "x" * 10_000)

    assert str(cause).startswith("database cannot reach [31m postgresql://db.example/wearon xxx")
    assert len(cause.detail) == MAX_DETAIL
    assert cause.detail.isprintable()


@pytest.mark.parametrize("error", [FULL, WorkerExhausted("x"), ProviderMisconfigured(detail="401")])
async def test_our_faults_spend_no_attempt(service: Service, error: Exception) -> None:
    """However often: the session stays queued, at the front."""
    session_id = (await service.submitted()).session.id
    tries = 4 * POLICY.max_attempts
    service.generator.outcomes = [error] * tries

    for _ in range(tries):
        with pytest.raises(type(error)):
            await service.work()

    assert await service.work() is Outcome.COMPLETED
    session = await service.session(session_id)
    assert (session.attempt, session.attempts_spent) == (tries + 1, 1)


async def test_full_storage_is_found_out_before_anything_is_paid_for(service: Service) -> None:
    """The generator is not called."""
    session_id = (await service.submitted()).session.id
    service.storage.faults.away.add("check")

    with pytest.raises(StorageUnavailable):
        await service.work()

    assert service.generator.requests == []
    assert await status_of(service, session_id) == (SessionStatus.QUEUED, None)


async def test_paid_picture_is_held_until_there_is_room(service: Service) -> None:
    """Far longer than an attempt and its lease: it is stored, and was paid for once."""
    session_id = (await service.submitted()).session.id
    service.storage.faults.away.add("save")
    working = asyncio.create_task(service.work())
    await asyncio.sleep((POLICY.storage_patience - 10 * SECOND).total_seconds())
    await service.recover()
    service.storage.faults.clear()

    assert await working is Outcome.COMPLETED

    assert len(service.generator.requests) == 1
    assert (await service.session(session_id)).attempt == 1


async def test_hold_of_a_picture_is_bounded(service: Service) -> None:
    """Then the session is given back, unspent, with the storage's cause."""
    session_id = (await service.submitted()).session.id
    service.storage.faults.away.add("save")
    began = loop_time()

    with pytest.raises(StorageUnavailable):
        await service.work()

    held = timedelta(seconds=loop_time() - began)
    assert POLICY.storage_patience <= held <= POLICY.storage_patience + 10 * SECOND
    assert await status_of(service, session_id) == (SessionStatus.QUEUED, None)
    assert await causes_of(service, session_id) == ["storage save: refused"]


async def test_held_picture_is_dropped_with_its_lease(service: Service) -> None:
    """Another attempt has the session."""
    session_id = (await service.submitted()).session.id
    service.storage.faults.away.add("save")
    working = asyncio.create_task(service.work())
    await asyncio.sleep(60)
    await service.repo.release(session_id, attempt=1, delay=timedelta(0))

    assert await working is Outcome.OVERTAKEN


async def test_blip_of_the_provider_fails_no_session(service: Service) -> None:
    """Many attempts within the provider's patience, and none is spent."""
    session_id = (await service.submitted()).session.id
    service.generator.outcomes = [BUSY] * 9

    outcomes = [await attempt_later(service, wait) for wait in (0 * MINUTE, *[MINUTE] * 9)]

    assert outcomes == [Outcome.RELEASED] * 9 + [Outcome.COMPLETED]
    session = await service.session(session_id)
    assert (session.attempt, session.attempts_spent) == (10, 1)


async def test_long_trouble_of_the_provider_fails_the_session(service: Service) -> None:
    """After its patience, with the refund and the error's message."""
    session_id = (await service.submitted()).session.id
    service.generator.outcomes = [BUSY] * 100

    outcomes = [await service.work()]
    while outcomes[-1] is Outcome.RELEASED:
        outcomes.append(await attempt_later(service, MINUTE))

    assert outcomes == [Outcome.RELEASED] * 10 + [Outcome.FAILED]
    assert await status_of(service, session_id) == (SessionStatus.FAILED, "GENERATION_FAILED")
    assert service.balance() == 1


async def test_two_blips_with_a_long_wait_between_fail_no_session(service: Service) -> None:
    """The session waited in the queue meanwhile: nobody knows that the trouble lasted."""
    await service.submitted()
    service.generator.outcomes = [BUSY] * 2

    long = 2 * POLICY.provider_patience
    outcomes = [await attempt_later(service, wait) for wait in (0 * MINUTE, long, long)]

    assert outcomes == [Outcome.RELEASED, Outcome.RELEASED, Outcome.COMPLETED]


async def test_callers_host_gets_one_more_attempt(service: Service) -> None:
    """Not more, whatever the number of attempts of other kinds."""
    session_id = (await service.submitted()).session.id
    service.fetcher.pictures[MODEL_URL] = InputUnavailable("The server did not deliver it")

    outcomes = [await service.work(), await attempt_later(service, MINUTE)]

    assert outcomes == [Outcome.RELEASED, Outcome.FAILED]
    assert await status_of(service, session_id) == (SessionStatus.FAILED, "IMAGE_UNREACHABLE")


async def test_second_try_of_a_callers_host_queues_behind_the_others(service: Service) -> None:
    """It waits as long again as it has waited, and not beyond its life."""
    session_id = (await service.submitted()).session.id
    service.fetcher.pictures[MODEL_URL] = InputUnavailable("The server did not deliver it")
    service.clock.advance(20 * MINUTE)
    await service.work()

    service.clock.advance(20 * MINUTE - SECOND)
    await service.recover()
    early = service.waiting()
    service.clock.advance(SECOND)
    await service.recover()

    assert early == []
    assert [task.session_id for task in service.waiting()] == [session_id]


async def test_second_try_begins_before_the_session_expires(service: Service) -> None:
    """A session that waited for most of its life gets its second try in the middle of the rest."""
    await service.submitted()
    service.fetcher.pictures[MODEL_URL] = InputUnavailable("The server did not deliver it")
    service.clock.advance(50 * MINUTE)
    await service.work()

    assert await attempt_later(service, 5 * MINUTE) is Outcome.FAILED


@pytest.mark.parametrize("error", [FULL, BUSY, InputUnavailable("x"), TryAgain("x")])
async def test_attempt_that_begins_after_the_time_to_live_is_the_last(
    service: Service, error: Exception
) -> None:
    """Else an unspent one could be repeated without end, if no run of recovery comes in between."""
    session_id = (await service.submitted()).session.id
    service.clock.advance(POLICY.queue_ttl)
    service.generator.outcomes = [error]

    await asyncio.gather(service.work(), return_exceptions=True)

    assert await status_of(service, session_id) == (SessionStatus.FAILED, "EXPIRED")
    assert service.balance() == 1


async def test_session_expires_while_the_storage_is_full(service: Service) -> None:
    """Unspent attempts do not keep it for ever."""
    session_id = (await service.submitted()).session.id
    service.storage.faults.away.add("check")
    for _ in range(20):
        with pytest.raises(StorageUnavailable):
            await service.work()
        service.clock.advance(RecoveryPolicy().queue_ttl / 20)

    service.clock.advance(SECOND)
    await service.recover()

    assert await status_of(service, session_id) == (SessionStatus.FAILED, "EXPIRED")
