"""Confirming pushes, and cancelling queued sessions."""

from collections.abc import Sequence
from uuid import UUID, uuid4

import pytest

from domain.credits import LedgerKind
from domain.errors import Conflict, DatabaseUnavailable, NotFound, QueueUnavailable
from domain.sessions import GenerationSession, SessionStatus
from domain.submission import CONFIRM_BATCH
from tests.support.examples import LEASE, OTHER, USER, a_request
from tests.support.service import Service


@pytest.mark.anyio
async def test_confirm_records_each_push_once(service: Service) -> None:
    """A call records the pushes since the last call; the next one has nothing to do."""
    receipt = await service.submitted(confirmed=False)
    assert not (await service.session(receipt.session.id)).confirmed

    assert await service.submission.confirm_pushed() == 1
    assert await service.submission.confirm_pushed() == 0

    assert (await service.session(receipt.session.id)).confirmed
    assert service.repo.faults.calls.count("confirm") == 1


@pytest.mark.anyio
async def test_confirm_runs_in_bounded_batches(
    service: Service, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For any number of pushes, no statement exceeds a batch, and no session is left out."""
    sizes = []
    confirm = service.repo.confirm

    async def measured(session_ids: Sequence[UUID]) -> int:
        sizes.append(len(session_ids))
        return await confirm(session_ids)

    monkeypatch.setattr(service.repo, "confirm", measured)
    await service.accounts.grant(USER, 2 * CONFIRM_BATCH + 1, note="test")
    for _ in range(2 * CONFIRM_BATCH + 1):
        await service.submission.submit(a_request())

    assert await service.submission.confirm_pushed() == 2 * CONFIRM_BATCH + 1

    assert sizes == [CONFIRM_BATCH, CONFIRM_BATCH, 1]
    assert all(session.confirmed for session in await service.sessions())


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["away", "deaf"])
async def test_confirm_survives_a_database_that_is_down(service: Service, fault: str) -> None:
    """A later call confirms the earlier and the newer sessions."""
    first = await service.submitted(confirmed=False)
    getattr(service.repo.faults, fault).add("confirm")

    with pytest.raises(DatabaseUnavailable):
        await service.submission.confirm_pushed()

    getattr(service.repo.faults, fault).clear()
    second = await service.submitted()
    assert (await service.session(first.session.id)).confirmed
    assert (await service.session(second.session.id)).confirmed


@pytest.mark.anyio
async def test_undone_submission_is_never_confirmed(service: Service) -> None:
    """Only a push that is known to have worked is confirmed."""
    await service.accounts.grant(USER, 1, note="test")
    service.queue.faults.deaf.add("push")
    with pytest.raises(QueueUnavailable):
        await service.submission.submit(a_request())

    assert await service.submission.confirm_pushed() == 0

    assert "confirm" not in service.repo.faults.calls


@pytest.mark.anyio
async def test_cancel_of_a_queued_session(service: Service) -> None:
    """It fails with CANCELLED and is refunded. Its task can no longer be claimed."""
    receipt = await service.submitted()

    cancelled = await service.submission.cancel(receipt.session.id, USER)

    assert cancelled == await service.session(receipt.session.id)
    assert cancelled.status is SessionStatus.FAILED
    assert cancelled.failure is not None
    assert cancelled.failure.code == "CANCELLED"
    assert service.balance() == 1
    assert await service.repo.claim(cancelled.id, lease=LEASE) is None


@pytest.mark.anyio
async def test_cancel_of_a_processing_session_records_the_request(service: Service) -> None:
    """It is still processed, and not refunded yet. Repeating it is safe."""
    receipt = await service.submitted()
    claimed = await service.claimed(receipt.session.id)

    requested = await service.submission.cancel(claimed.id, USER)
    again = await service.submission.cancel(claimed.id, USER)

    assert requested == again == await service.session(claimed.id)
    assert requested.status is SessionStatus.PROCESSING
    assert requested.cancel_requested_at is not None
    assert service.money_of(claimed.id) == [LedgerKind.DEBIT]


@pytest.mark.anyio
async def test_only_a_request_to_a_worker_is_announced(service: Service) -> None:
    """Once it is recorded: not for a session that failed at once, nor if nothing was recorded."""
    announced: list[GenerationSession] = []
    service.submission._announce_cancel = announced.append
    queued = (await service.submitted()).session.id
    await service.submission.cancel(queued, USER)
    claimed = await service.claimed((await service.submitted()).session.id)
    service.repo.faults.away.add("cancel")
    with pytest.raises(DatabaseUnavailable):
        await service.submission.cancel(claimed.id, USER)
    assert announced == []
    service.repo.faults.away.clear()

    requested = await service.submission.cancel(claimed.id, USER)

    assert announced == [requested]


@pytest.mark.anyio
async def test_second_cancel_is_a_conflict(service: Service) -> None:
    """There is one refund."""
    receipt = await service.submitted()
    await service.submission.cancel(receipt.session.id, USER)

    with pytest.raises(Conflict):
        await service.submission.cancel(receipt.session.id, USER)

    assert service.money_of(receipt.session.id) == [LedgerKind.DEBIT, LedgerKind.REFUND]


@pytest.mark.anyio
async def test_cancel_of_another_owners_session_is_not_found(service: Service) -> None:
    """The error is that of an unknown id, and the session does not change."""
    receipt = await service.submitted(USER)

    with pytest.raises(NotFound) as anothers:
        await service.submission.cancel(receipt.session.id, OTHER)
    with pytest.raises(NotFound) as unknown:
        await service.submission.cancel(uuid4(), OTHER)

    assert str(anothers.value) == str(unknown.value)
    assert (await service.session(receipt.session.id)).status is SessionStatus.QUEUED
