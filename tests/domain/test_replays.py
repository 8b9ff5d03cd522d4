"""A key that was once answered 202 is never freed: replays wait until the first request stands."""

import asyncio
from contextlib import suppress
from random import Random
from uuid import UUID

import pytest

from domain.credits import LedgerKind
from domain.errors import DatabaseUnavailable, QueueUnavailable, Unconfirmed, WearonError
from domain.recovery import RecoveryPolicy
from domain.sessions import SessionStatus
from domain.submission import Submission, SubmissionPolicy
from tests.support.clock import loop_time
from tests.support.examples import LEASE, MANY, USER, a_request
from tests.support.service import Service

POLICY = SubmissionPolicy(max_active=MANY, max_waiting=MANY)
DEADLINE_SECONDS = POLICY.deadline.total_seconds()
MAX_READS = 10
HANGS_SECONDS = 1.0
TRANSIENT_SECONDS = 0.1


def another_process(service: Service) -> Submission:
    """The submission of another API process on the same database and queue."""
    return service.submission_with(POLICY)


async def abandoned(service: Service) -> UUID:
    """A session whose submitter never learnt that it had charged, and answered 503."""
    await service.accounts.grant(USER, 2, note="test")
    service.repo.faults.deaf.add("create")
    with pytest.raises(DatabaseUnavailable):
        await service.submission.submit(a_request(idempotency_key="k"))
    service.repo.faults.clear()
    (session,) = await service.sessions()
    return session.id


@pytest.mark.anyio
async def test_replay_in_the_same_process_is_answered_at_once(service: Service) -> None:
    """The push succeeded and is not confirmed in the database yet: no wait, no read."""
    first = await service.submitted(confirmed=False, idempotency_key="k")
    began = loop_time()

    replay = await service.submission.submit(a_request(idempotency_key="k"))

    assert (replay.replayed, replay.session.id) == (True, first.session.id)
    assert loop_time() == began
    assert "find_replay" not in service.repo.faults.calls


@pytest.mark.anyio
async def test_replay_in_another_process_waits_for_the_confirmation(service: Service) -> None:
    """The first request was answered 202; its process confirms within a second."""
    first = await service.submitted(confirmed=False, idempotency_key="k")
    waiting = asyncio.create_task(
        another_process(service).submit(a_request(idempotency_key="k")),
    )
    await asyncio.sleep(1)
    assert not waiting.done()
    await service.submission.confirm_pushed()
    began = loop_time()

    replay = await waiting

    assert (replay.replayed, replay.session.id) == (True, first.session.id)
    assert loop_time() - began < 0.5
    assert service.repo.faults.calls.count("find_replay") <= MAX_READS


@pytest.mark.anyio
async def test_replay_is_answered_once_a_worker_has_the_session(service: Service) -> None:
    """A claim says that the push succeeded, whoever is to confirm it."""
    first = await service.submitted(confirmed=False, idempotency_key="k")
    await service.claimed(first.session.id)

    replay = await another_process(service).submit(a_request(idempotency_key="k"))

    assert replay.session.status is SessionStatus.PROCESSING


@pytest.mark.anyio
@pytest.mark.parametrize("full", [False, True])
async def test_replay_of_an_unconfirmed_session_is_refused_at_its_deadline(
    service: Service, *, full: bool
) -> None:
    """409, in time, with a bounded number of reads and without a push of its own; also while the
    queue is full."""
    session_id = await abandoned(service)
    submission = service.submission_with(SubmissionPolicy(max_active=MANY, max_waiting=0))
    if not full:
        submission = another_process(service)
    began = loop_time()

    with pytest.raises(Unconfirmed):
        await submission.submit(a_request(idempotency_key="k"))

    assert DEADLINE_SECONDS - 0.1 < loop_time() - began <= DEADLINE_SECONDS
    assert service.repo.faults.calls.count("find_replay") <= MAX_READS
    assert service.waiting() == []
    assert service.money_of(session_id) == [LedgerKind.DEBIT]


@pytest.mark.anyio
async def test_replay_waits_through_a_database_that_is_down(service: Service) -> None:
    """A 503 would say that nothing stays charged, which is not known."""
    await abandoned(service)
    service.repo.faults.away.add("find_replay")

    with pytest.raises(Unconfirmed):
        await service.submission.submit(a_request(idempotency_key="k"))


@pytest.mark.anyio
async def test_recovery_keeps_the_key(service: Service) -> None:
    """The submitter died between the charge and the push. Recovery refunds the session, and a
    replay is answered with it: one session and one debit per key, however often."""
    session_id = await abandoned(service)
    service.clock.advance(RecoveryPolicy().requeue_after)
    assert (await service.recover()).never_pushed == 1

    replay = await service.submission.submit(a_request(idempotency_key="k"))

    assert (replay.replayed, replay.session.id) == (True, session_id)
    assert replay.session.failure is not None
    assert replay.session.failure.code == "QUEUE_UNAVAILABLE"
    assert service.money_of(session_id) == [LedgerKind.DEBIT, LedgerKind.REFUND]
    assert len(await service.sessions()) == 1


@pytest.mark.anyio
async def test_double_click_while_the_queue_is_down(service: Service) -> None:
    """The first request is undone, and the second one neither adopts it nor gets a 503. Then the
    key is free: the third one is charged."""
    await service.accounts.grant(USER, 2, note="test")
    service.queue.faults.slow["push"] = HANGS_SECONDS
    service.queue.faults.deaf.add("push")
    apis = [service.submission, another_process(service)]
    service.clock.advance(RecoveryPolicy().requeue_after)

    answers = await asyncio.gather(
        *(api.submit(a_request(idempotency_key="k")) for api in apis), return_exceptions=True
    )

    assert [type(answer) for answer in answers] == [QueueUnavailable, Unconfirmed]
    service.queue.faults.clear()
    third = await service.submission.submit(a_request(idempotency_key="k"))
    assert not third.replayed
    assert service.balance() == 1


@pytest.mark.anyio
async def test_undo_comes_too_late_for_a_released_session(service: Service) -> None:
    """A worker claimed the session and released it while its submitter waited for the push. A
    replay was answered 202 in between, so the undo leaves the key alone."""
    await service.accounts.grant(USER, 2, note="test")
    service.queue.faults.slow["push"] = HANGS_SECONDS
    service.queue.faults.deaf.add("push")
    submitting = asyncio.create_task(service.submission.submit(a_request(idempotency_key="k")))
    await asyncio.sleep(HANGS_SECONDS / 2)
    (session,) = await service.sessions()
    await service.repo.claim(session.id, lease=LEASE)
    replay = await another_process(service).submit(a_request(idempotency_key="k"))
    await service.repo.release(session.id, attempt=1, delay=RecoveryPolicy().requeue_after)

    first = await submitting

    assert first.session.id == replay.session.id
    assert (await service.session(session.id)).idempotency_key == "k"
    assert service.money_of(session.id) == [LedgerKind.DEBIT]


@pytest.mark.anyio
async def test_key_that_the_undo_may_have_freed_is_not_accepted(service: Service) -> None:
    """Neither the push nor the undo was answered. A 202 would promise the key for good, and a 503
    the refund: the caller is told to ask again."""
    await service.accounts.grant(USER, 2, note="test")
    service.queue.faults.deaf.add("push")
    service.repo.faults.deaf.add("fail_queued")

    with pytest.raises(Unconfirmed):
        await service.submission.submit(a_request(idempotency_key="k"))

    service.queue.faults.clear()
    service.repo.faults.clear()
    assert not (await service.submission.submit(a_request(idempotency_key="k"))).replayed
    assert service.balance() == 1


class Storm:
    """Two API processes on a queue that fails half of the time."""

    def __init__(self, service: Service, random: Random) -> None:
        self._service = service
        self._random = random
        self._apis = [service.submission, another_process(service)]
        self.accepted: dict[str, set[UUID]] = {}
        """The sessions that the 202s of each key named."""

    async def click(self, key: str) -> None:
        await asyncio.sleep(self._random.random() * TRANSIENT_SECONDS)
        request = a_request(idempotency_key=key)
        with suppress(QueueUnavailable, Unconfirmed):
            receipt = await self._random.choice(self._apis).submit(request)
            self.accepted.setdefault(key, set()).add(receipt.session.id)

    async def break_the_queue(self) -> None:
        faults = self._service.queue.faults
        while True:
            broken = self._random.choice((faults.away, faults.deaf, set()))
            broken.add("push")
            faults.slow["push"] = self._random.random() * TRANSIENT_SECONDS
            await asyncio.sleep(self._random.random() * TRANSIENT_SECONDS)
            faults.clear()
            for api in self._apis:
                await api.measure_queue()

    async def confirm(self) -> None:
        while True:
            await asyncio.sleep(1)
            for api in self._apis:
                await api.confirm_pushed()


@pytest.mark.anyio
async def test_storm_of_double_clicks(service: Service) -> None:
    """However often each request is sent, at once and later: all 202s of a key name one session,
    which keeps the key, and each key is paid for once."""
    random = Random(14)
    storm = Storm(service, random)
    keys = [f"order-{number}" for number in range(200)]
    await service.accounts.grant(USER, 10 * len(keys), note="test")
    duties = [asyncio.create_task(storm.break_the_queue()), asyncio.create_task(storm.confirm())]

    for key in keys:
        for copies in (random.choice((2, 2, 3)), random.choice((0, 1, 2))):
            await asyncio.gather(*(storm.click(key) for _ in range(copies)))
    for duty in duties:
        duty.cancel()
    service.queue.faults.clear()
    for key in keys:
        await storm.click(key)

    sessions = {session.id: session for session in await service.sessions()}
    charged = {id_ for id_ in sessions if service.money_of(id_) == [LedgerKind.DEBIT]}
    assert {key: len(ids) for key, ids in storm.accepted.items()} == dict.fromkeys(keys, 1)
    assert {sessions[id_].idempotency_key for id_ in charged} == set(keys)
    assert charged == set().union(*storm.accepted.values())
    assert service.balance() == 9 * len(keys)


@pytest.mark.anyio
async def test_unexpected_error_of_a_push_is_undone(service: Service) -> None:
    """Whatever the adapter raises: the credit comes back, and the error is reported as it is."""
    await service.accounts.grant(USER, 1, note="test")
    service.queue.faults.broken.add("push")

    with pytest.raises(RuntimeError) as bug:
        await service.submission.submit(a_request())

    assert not isinstance(bug.value, WearonError)
    (session,) = await service.sessions()
    assert service.money_of(session.id) == [LedgerKind.DEBIT, LedgerKind.REFUND]
