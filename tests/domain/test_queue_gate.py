"""While the queue is known to fail, no credit is taken for a push."""

import asyncio

import pytest

from domain.errors import InsufficientCredits, Overloaded, QueueUnavailable
from domain.submission import UNAVAILABLE_MESSAGE, SubmissionPolicy
from tests.support.clock import loop_time
from tests.support.examples import OTHER, USER, a_request
from tests.support.service import Service


@pytest.fixture(autouse=True)
async def _credits(service: Service) -> None:
    await service.accounts.grant(USER, 20, note="test")


async def measured_as_down(service: Service) -> None:
    service.queue.faults.away |= {"push", "depth"}
    with pytest.raises(QueueUnavailable):
        await service.submission.measure_queue()


@pytest.mark.anyio
async def test_queue_that_does_not_answer_takes_no_credit(service: Service) -> None:
    """503 with the contract's message, and neither a session nor a ledger entry."""
    await measured_as_down(service)
    before = len(service.accounts.entries)

    for _ in range(3):
        with pytest.raises(QueueUnavailable, match=UNAVAILABLE_MESSAGE):
            await service.submission.submit(a_request(idempotency_key="k"))

    assert await service.sessions() == []
    assert len(service.accounts.entries) == before
    assert "push" not in service.queue.faults.calls


@pytest.mark.anyio
async def test_replays_are_answered_all_the_same(service: Service) -> None:
    """They need no push."""
    first = await service.submission.submit(a_request(idempotency_key="k"))
    await measured_as_down(service)

    replay = await service.submission.submit(a_request(idempotency_key="k"))

    assert (replay.replayed, replay.session.id) == (True, first.session.id)


@pytest.mark.anyio
async def test_queue_is_used_again_once_it_can_be_measured(service: Service) -> None:
    """The next request tries, and its success lets all others in."""
    await measured_as_down(service)
    service.queue.faults.clear()
    await service.submission.measure_queue()

    await service.submission.submit(a_request())
    await asyncio.gather(*(service.submission.submit(a_request()) for _ in range(5)))

    assert len(service.waiting()) == 6


@pytest.mark.anyio
async def test_queue_is_used_again_as_soon_as_it_is_back(service: Service) -> None:
    """The next request measures the queue itself, instead of waiting for the next second."""
    await measured_as_down(service)
    service.queue.faults.clear()

    await service.submission.submit(a_request())

    assert len(service.waiting()) == 1


@pytest.mark.anyio
async def test_silent_queue_keeps_one_request_waiting(service: Service) -> None:
    """For half a second; all others are refused at once."""
    await measured_as_down(service)
    service.queue.faults.clear()
    service.queue.faults.slow["depth"] = 60
    ended: list[float] = []

    async def refused() -> None:
        with pytest.raises(QueueUnavailable, match=UNAVAILABLE_MESSAGE):
            await service.submission.submit(a_request())
        ended.append(loop_time() - began)

    began = loop_time()
    await asyncio.gather(*(refused() for _ in range(5)))

    assert [round(seconds, 1) for seconds in ended] == [0, 0, 0, 0, 0.5]
    assert await service.sessions() == []


@pytest.mark.anyio
async def test_one_lost_connection_refuses_nobody(service: Service) -> None:
    """The push after a failed one succeeds."""
    service.queue.faults.away.add("push")
    with pytest.raises(QueueUnavailable):
        await service.submission.submit(a_request())
    service.queue.faults.clear()

    await service.submission.submit(a_request())
    await service.submission.submit(a_request())

    assert len(service.waiting()) == 2


@pytest.mark.anyio
@pytest.mark.parametrize("fault", ["broken", "slow"])
async def test_other_failures_close_nothing(service: Service, fault: str) -> None:
    """A bug that one caller's requests meet, and a deadline that the database has used up, say
    nothing about the queue."""
    if fault == "broken":
        service.queue.faults.broken.add("push")
    else:
        service.queue.faults.slow["push"] = 60
    for _ in range(3):
        with pytest.raises((RuntimeError, QueueUnavailable)):
            await service.submission.submit(a_request())
    service.queue.faults.clear()
    service.queue.messages.clear()

    await service.submission.submit(a_request())

    assert len(service.waiting()) == 1


@pytest.mark.anyio
async def test_two_failed_pushes_take_no_more_credits(service: Service) -> None:
    """Redis answers a measurement also while it rejects every push, so one request per measurement
    tries, and all others are refused before their debit."""
    service.queue.faults.away.add("push")
    for _ in range(10):
        with pytest.raises(QueueUnavailable):
            await service.submission.submit(a_request())
    assert len(await service.sessions()) == 2

    await service.submission.measure_queue()
    for _ in range(10):
        with pytest.raises(QueueUnavailable):
            await service.submission.submit(a_request())

    assert len(await service.sessions()) == 3
    assert service.balance() == 20


@pytest.mark.anyio
async def test_request_that_pushes_nothing_uses_up_no_try(service: Service) -> None:
    """A caller without credits keeps nobody out."""
    await measured_as_down(service)
    service.queue.faults.clear()
    await service.submission.measure_queue()

    with pytest.raises(InsufficientCredits):
        await service.submission.submit(a_request(OTHER))

    await service.submission.submit(a_request())


@pytest.mark.anyio
async def test_full_queue_that_stops_answering(service: Service) -> None:
    """Its length is unknown then, so it is refused as unavailable, and open once it is back and
    empty."""
    submission = service.submission_with(SubmissionPolicy(max_waiting=1))
    await submission.submit(a_request())
    await submission.measure_queue()
    with pytest.raises(Overloaded):
        await submission.submit(a_request())
    service.queue.faults.away.add("depth")
    with pytest.raises(QueueUnavailable):
        await submission.measure_queue()

    with pytest.raises(QueueUnavailable):
        await submission.submit(a_request())

    service.queue.messages.clear()
    service.queue.faults.clear()
    await submission.measure_queue()
    await submission.submit(a_request())
