"""A worker hears of cancellations while it works, also after a break, and stops without waiting."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from typing import Any
from uuid import UUID

import pytest

from adapters.changes.memory import InMemoryChanges
from domain.changes import Change
from domain.errors import QueueUnavailable
from domain.sessions import CANCELLED
from entrypoints.worker import Worker, WorkerLimits
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import LEASE, USER
from tests.support.service import Service, seeded_random

pytestmark = pytest.mark.anyio

A_THIRD = LEASE.total_seconds() / 3


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Cancels(InMemoryChanges):
    """Breaks as often as it is to."""

    def __init__(self, breaks: int) -> None:
        super().__init__()
        self._breaks = breaks

    async def listen(self) -> AsyncGenerator[Sequence[Change], None]:
        async with aclosing(super().listen()) as heard:
            async for changes in heard:
                if self._breaks:
                    self._breaks -= 1
                    raise QueueUnavailable("Redis is away")
                yield changes


async def cancelled_while_it_works(service: Service, cancels: Cancels) -> tuple[UUID, float]:
    """A session of a running worker that is cancelled, and how long the worker took to stop the
    work and itself."""
    service.submission._announce_cancel = cancels.publish
    service.generator.seconds = 170
    session_id = (await service.submitted()).session.id
    worker = Worker(
        queue=service.queue,
        generation=service.generation(),
        recovery=None,
        limits=WorkerLimits(
            concurrency=1, pop_seconds=1.0, drain_seconds=100.0, recovery_seconds=2.0
        ),
        random=seeded_random(),
        cancels=cancels,
    )
    running = asyncio.create_task(worker.run())
    await asyncio.sleep(1)
    async with aclosing(service.changes.listen()) as changed:
        await anext(changed)
        await service.submission.cancel(session_id, USER)
        began = loop_time()
        while not (await service.session(session_id)).status.is_final:
            await anext(changed)
    seconds = loop_time() - began
    worker.stop()
    await running
    assert loop_time() - began < seconds + 2
    return session_id, seconds


@pytest.mark.parametrize("breaks", [0, 2])
async def test_worker_stops_a_cancelled_session_at_once(breaks: int) -> None:
    """Without waiting for the next renewal."""
    service = Service()
    session_id, seconds = await cancelled_while_it_works(service, Cancels(breaks))

    assert (await service.session(session_id)).failure == CANCELLED
    assert seconds < 0.1


async def test_worker_that_hears_nothing_learns_by_its_renewal() -> None:
    service = Service()
    _, seconds = await cancelled_while_it_works(service, Cancels(breaks=1_000_000))

    assert 0.1 < seconds <= A_THIRD
