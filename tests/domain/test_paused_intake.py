"""While an operator has paused the intake, nothing new is accepted or charged; the rest goes on."""

import pytest

from domain.errors import IntakePaused
from domain.ports import Receipt
from domain.sessions import SessionStatus
from tests.domain.test_batch_submission import requests
from tests.support.examples import STORE, USER, a_request
from tests.support.service import Service

pytestmark = pytest.mark.anyio

KEY = "order-4711"


async def test_new_request_is_refused_and_costs_nothing(service: Service) -> None:
    """It reaches neither the database nor the queue."""
    await service.accounts.grant(USER, 3, note="test")
    service.submission.is_paused = True
    service.repo.faults.calls.clear()

    with pytest.raises(IntakePaused, match=r"^Paused by the operator; try again later$"):
        await service.submission.submit(a_request())

    assert service.balance() == 3
    assert service.waiting() == []
    assert "create" not in service.repo.faults.calls


async def test_new_request_with_a_key_leaves_the_key_free(service: Service) -> None:
    """Once the intake is resumed, the repetition is the first request."""
    await service.accounts.grant(USER, 3, note="test")
    service.submission.is_paused = True
    with pytest.raises(IntakePaused):
        await service.submission.submit(a_request(idempotency_key=KEY))
    service.submission.is_paused = False

    receipt = await service.submission.submit(a_request(idempotency_key=KEY))

    assert not receipt.replayed
    assert service.balance() == 2


async def test_replay_is_answered(service: Service) -> None:
    """Its session was accepted before the pause."""
    first = await service.submitted(idempotency_key=KEY)
    service.submission.is_paused = True

    again = await service.submission.submit(a_request(idempotency_key=KEY))

    assert (again.replayed, again.session.id) == (True, first.session.id)


async def test_batch_is_answered_item_by_item(service: Service) -> None:
    """A replay is answered, the other items are refused."""
    await service.accounts.grant(STORE, 5, note="test")
    await service.submission.submit_many(requests("a"))
    await service.submission.confirm_pushed()
    service.submission.is_paused = True

    outcomes = await service.submission.submit_many(requests("a", "b", None))

    assert [type(each) for each in outcomes] == [Receipt, IntakePaused, IntakePaused]
    assert service.balance(STORE) == 4


async def test_cancelling_goes_on(service: Service) -> None:
    """The credit comes back as at any time."""
    session = (await service.submitted()).session
    service.submission.is_paused = True

    cancelled = await service.submission.cancel(session.id, USER)

    assert cancelled.status is SessionStatus.FAILED
    assert service.balance() == 1
