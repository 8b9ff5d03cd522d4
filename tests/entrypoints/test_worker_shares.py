"""One owner's slow hosts hold up nobody else: the inputs of one owner take a share of the slots."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any

import pytest

from domain.credits import Owner
from domain.errors import InputUnavailable
from domain.picture_ports import Generated, Picture, PictureFetcherPort, RecordJob
from domain.sessions import SessionStatus
from entrypoints.worker import OneShotWorker, Worker, WorkerLimits
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import STORE, USER
from tests.support.images import A_PICTURE, FakePictureGenerator
from tests.support.service import Service, seeded_random

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def service() -> Service:
    return Service()


class Hosts(PictureFetcherPort):
    """The inputs of an owner in ``seconds`` take that long, and then ``fail`` or arrive."""

    def __init__(self, seconds: dict[Owner, float], *, fail: bool = False) -> None:
        self.seconds = seconds
        self.fail = fail
        self.begun: dict[Owner, int] = {}
        self._running: dict[Owner, int] = {}
        self.most: dict[Owner, int] = {}

    async def fetch(self, urls: Sequence[str], owner: Owner) -> tuple[Picture, ...]:
        self.begun[owner] = self.begun.get(owner, 0) + 1
        self._running[owner] = self._running.get(owner, 0) + 1
        self.most[owner] = max(self.most.get(owner, 0), self._running[owner])
        try:
            await asyncio.sleep(self.seconds.get(owner, 0))
        finally:
            self._running[owner] -= 1
        if self.fail and owner in self.seconds:
            raise InputUnavailable("A picture's server did not deliver it")
        return (A_PICTURE,) * len(urls)


@asynccontextmanager
async def running(service: Service, hosts: Hosts, *, concurrency: int = 4) -> AsyncIterator[Worker]:
    service.fetcher = hosts  # type: ignore[assignment]
    worker = Worker(
        queue=service.queue,
        generation=service.generation(),
        recovery=service.recovery(),
        limits=WorkerLimits(
            concurrency=concurrency, pop_seconds=1, drain_seconds=25, recovery_seconds=2
        ),
        random=seeded_random(),
    )
    task = asyncio.create_task(worker.run())
    yield worker
    worker.stop()
    worker.stop()
    await task


async def submitted(service: Service, owner: Owner, count: int = 1) -> None:
    for _ in range(count):
        await service.submitted(owner)
        service.clock.advance(timedelta(milliseconds=1))


async def ended(service: Service, owner: Owner, count: int = 1) -> float:
    """Wait until ``count`` sessions of ``owner`` have ended. Returns the time."""
    async with asyncio.timeout(5_000):
        while True:
            sessions = await service.sessions()
            if sum(item.owner == owner and item.status.is_final for item in sessions) >= count:
                return loop_time()
            await asyncio.sleep(0.1)


@pytest.mark.parametrize("count", [8, 200])
async def test_slow_hosts_of_one_owner_hold_up_nobody(service: Service, count: int) -> None:
    """However many sessions wait before it, and although all of them are retried, the session of
    another owner waits for a few seconds."""
    hosts = Hosts({USER: 30.0}, fail=True)
    await submitted(service, USER, count)
    async with running(service, hosts):
        await asyncio.sleep(2)
        await submitted(service, STORE)

        waited = await ended(service, STORE) - 2

        assert waited < 5
        assert hosts.most[USER] == 2


async def test_postponed_sessions_are_made(service: Service) -> None:
    """They use no attempt and come back one after another; nothing spins meanwhile."""
    hosts = Hosts({USER: 10.0})
    await submitted(service, USER, 20)
    async with running(service, hosts):
        ended_at = await ended(service, USER, 20)

    sessions = await service.sessions()
    assert {item.status for item in sessions} == {SessionStatus.COMPLETED}
    assert {item.attempt for item in sessions} == {1}
    assert (hosts.begun[USER], hosts.most[USER]) == (20, 2)
    assert ended_at < 20 * 10 / 2 * 1.5
    assert service.queue.faults.calls.count("pop") < 20 * 25


async def test_quick_hosts_are_not_postponed(service: Service) -> None:
    """A slot waits a moment for its owner's share instead, so that order and speed stay."""
    hosts = Hosts({USER: 0.5})
    await submitted(service, USER, 40)
    async with running(service, hosts):
        ended_at = await ended(service, USER, 40)

    assert service.repo.faults.calls.count("postpone") == 0
    assert ended_at == pytest.approx(40 * 0.5 / 2, abs=1)


async def test_making_pictures_takes_no_share(service: Service) -> None:
    """An owner whose inputs are there may use every slot."""
    service.generator.seconds = 20
    await submitted(service, USER, 4)
    async with running(service, Hosts({USER: 0.1})):
        await asyncio.sleep(1)

        assert len(service.generator.requests) == 4


class SlowJobs(FakePictureGenerator):
    """Waits long for jobs of earlier attempts."""

    async def resume(self, job: str, record: RecordJob) -> Generated | None:
        await super().resume(job, record)
        await asyncio.sleep(60)
        return None


async def test_resumed_job_takes_no_share(service: Service) -> None:
    """It needs no inputs, so an owner may resume jobs in every slot."""
    service.generator = jobs = SlowJobs()
    await submitted(service, USER, 4)
    for session in await service.sessions():
        await service.claimed(session.id)
        await service.repo.record_job(session.id, attempt=1, job=f"fake:{session.id}")
        await service.repo.release(session.id, attempt=1, delay=timedelta(0))
    async with running(service, Hosts({})):
        await asyncio.sleep(10)

        assert len(jobs.resumed) == 4


async def test_one_shot_worker_postpones_nothing(service: Service) -> None:
    """Nobody would come back for it."""
    service.fetcher = Hosts({USER: 10.0})  # type: ignore[assignment]
    await submitted(service, USER, 8)
    worker = OneShotWorker(
        queue=service.queue,
        generation=service.generation(),
        recovery=None,
        limits=WorkerLimits(concurrency=4, pop_seconds=1, drain_seconds=25, recovery_seconds=2),
        random=seeded_random(),
    )

    assert await worker.run()

    assert {item.status for item in await service.sessions()} == {SessionStatus.COMPLETED}


async def test_task_goes_back_if_it_cannot_be_postponed(service: Service) -> None:
    """The database does not answer: the task is in the queue again."""
    service.repo.faults.away.add("postpone")
    await submitted(service, USER, 6)
    async with running(service, Hosts({USER: 300.0})):
        await asyncio.sleep(30)
        assert len(service.waiting()) >= 3
        service.repo.faults.away.clear()

    assert {item.status for item in await service.sessions()} == {SessionStatus.QUEUED}
