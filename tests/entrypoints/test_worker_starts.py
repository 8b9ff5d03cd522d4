"""The provider's limit: a permit is taken for a session whose inputs are there, and for no other.
On virtual time, so that minutes at a low rate cost nothing."""

import asyncio
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from adapters.limits.memory import InMemoryStartLimit, Pace
from domain.credits import Owner
from domain.errors import InputUnavailable, Refused
from domain.generation import WorkPolicy
from domain.picture_ports import Picture, PictureFetcherPort
from domain.sessions import SessionStatus
from entrypoints.worker import Worker, WorkerLimits
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import OTHER, STORE, USER, a_task
from tests.support.images import A_PICTURE
from tests.support.service import Service, seeded_random

pytestmark = pytest.mark.anyio

RATES = [5, 20, 60, 300]
"""Per minute."""


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def service() -> Service:
    return Service()


class Limit(InMemoryStartLimit):
    """Records when each permit was taken."""

    def __init__(self, per_minute: int) -> None:
        super().__init__(Pace.of(per_minute), clock=loop_time)
        self.taken_at: list[float] = []

    async def take(self) -> float:
        wait = await super().take()
        if wait == 0:
            self.taken_at.append(loop_time())
        return wait


class Inputs(PictureFetcherPort):
    """Take the given seconds by owner, or end with an error."""

    def __init__(self, given: dict[Owner, float | Exception]) -> None:
        self.given = given
        self.fetched = 0

    async def fetch(self, urls: Sequence[str], owner: Owner) -> tuple[Picture, ...]:
        self.fetched += 1
        outcome = self.given.get(owner, 0.0)
        if isinstance(outcome, Exception):
            raise outcome
        await asyncio.sleep(outcome)
        return (A_PICTURE,) * len(urls)


@asynccontextmanager
async def running(
    service: Service, limit: Limit, *, concurrency: int = 4, policy: WorkPolicy | None = None
) -> AsyncIterator[Worker]:
    worker = Worker(
        queue=service.queue,
        generation=service.generation(policy),
        recovery=service.recovery(),
        limits=WorkerLimits(
            concurrency=concurrency, pop_seconds=1, drain_seconds=25, recovery_seconds=2
        ),
        random=seeded_random(),
        start_limit=limit,
    )
    task = asyncio.create_task(worker.run())
    yield worker
    worker.stop()
    await task


async def ended(service: Service, session_id: UUID) -> float:
    """Wait until the session has ended. Returns the time."""
    async with asyncio.timeout(3_600):
        while not (await service.session(session_id)).status.is_final:  # noqa: ASYNC110 - costs no time on a virtual loop
            await asyncio.sleep(0.1)
    return loop_time()


@pytest.mark.parametrize("per_minute", RATES)
async def test_ghosts_hold_up_no_newcomer(service: Service, per_minute: int) -> None:
    """Tasks whose sessions have expired or were cancelled take no permit, so however many there
    are, a slot goes through them as fast as it can pop."""
    ghost = a_task()
    for _ in range(2_000):
        await service.queue.push(ghost)
    newcomer = (await service.submitted()).session.id
    limit = Limit(per_minute)

    async with running(service, limit):
        waited = await ended(service, newcomer)

    assert waited < 1
    assert len(limit.taken_at) == 1


async def test_all_slots_go_through_a_long_row_of_ghosts(service: Service) -> None:
    """Each pop and claim takes a while: together they are faster. At its end the usual rule holds
    again."""
    service.queue.faults.slow["pop"] = 0.01
    ghost = a_task()
    for _ in range(2_000):
        await service.queue.push(ghost)
    ids = [(await service.submitted()).session.id for _ in range(10)]
    limit = Limit(60)

    async with running(service, limit):
        waited = await ended(service, ids[0])
        await asyncio.sleep(3)
        claimed = [item.status for item in await service.sessions()]

    assert waited < 2_000 * 0.01 / 4 + 1.5
    assert claimed.count(SessionStatus.PROCESSING) <= 4


@pytest.mark.parametrize("per_minute", RATES)
@pytest.mark.parametrize("fault", [Refused("no link"), InputUnavailable("503")], ids=repr)
async def test_junk_sessions_take_no_permit(
    service: Service, per_minute: int, fault: Exception
) -> None:
    """Their inputs never arrive. The next session of another owner has the whole limit."""
    service.fetcher = Inputs({USER: fault})  # type: ignore[assignment]
    for _ in range(50):
        await service.submitted(USER)
    other = (await service.submitted(STORE)).session.id
    limit = Limit(per_minute)

    async with running(service, limit):
        waited = await ended(service, other)

    assert waited < 3
    assert len(limit.taken_at) == 1


async def test_slow_inputs_hold_up_no_other_at_a_low_rate(service: Service) -> None:
    """Only sessions that will need a permit soon count: one whose host is slow does not keep the
    next one in the queue."""
    service.fetcher = inputs = Inputs({USER: 300.0, OTHER: 300.0})  # type: ignore[assignment]
    await service.submitted(USER)
    await service.submitted(OTHER)
    newcomer = (await service.submitted(STORE)).session.id

    async with running(service, Limit(3)):
        waited = await ended(service, newcomer)

    assert waited < 8
    assert inputs.fetched >= 3


async def test_limit_is_used_in_full(service: Service) -> None:
    """Although inputs take longer than the pace of the limit: they are fetched in parallel."""
    service.fetcher = Inputs({USER: 1.5})  # type: ignore[assignment]
    ids = [(await service.submitted(USER)).session.id for _ in range(100)]
    limit = Limit(60)

    async with running(service, limit, concurrency=8):
        ended_at = [await ended(service, session_id) for session_id in ids][-1]

    pace = Pace.of(60)
    assert ended_at < (100 - pace.burst) * pace.interval_us / 1e6 + 5


async def test_few_sessions_wait_for_a_permit(service: Service) -> None:
    """A session is claimed only shortly before there is a permit for it; the others stay in the
    queue, where another worker can have them."""
    for _ in range(10):
        await service.submitted()
    limit = Limit(5)
    claimed = []

    async with running(service, limit):
        for _ in range(100):
            await asyncio.sleep(0.7)
            sessions = await service.sessions()
            claimed.append(sum(item.status is SessionStatus.PROCESSING for item in sessions))

    assert max(claimed) == 1
    assert sum(claimed) < 100 * 0.2


async def test_wait_for_a_permit_is_no_part_of_the_attempt(service: Service) -> None:
    """The provider's call gets its whole time."""
    limit = Limit(3)
    policy = WorkPolicy(
        attempt_timeout=timedelta(seconds=20), start_wait=timedelta(minutes=5), max_attempts=1
    )
    session = (await service.submitted()).session.id
    async with running(service, limit, policy=policy):
        await ended(service, session)
        service.generator.seconds = 15
        (late,) = [(await service.submitted()).session.id]
        await asyncio.sleep(58.5)  # It is claimed when a permit is near, and others take that.
        limit._full_at_us += 3 * limit._pace.interval_us
        await ended(service, late)

    assert (await service.session(late)).status is SessionStatus.COMPLETED


async def test_session_goes_back_when_it_waits_too_long(service: Service) -> None:
    """Other workers took every permit: it is given back, and made once there is one."""

    class Contended(Limit):
        """Always promises a permit, and has none before ``free_at``."""

        free_at = 200.0

        async def wait(self, permits: int) -> float:  # noqa: ARG002
            return 0.0

        async def take(self) -> float:
            return await super().take() if loop_time() >= self.free_at else 5.0

    session = (await service.submitted()).session.id

    async with running(service, Contended(60)):
        ended_at = await ended(service, session)

    assert (await service.session(session)).status is SessionStatus.COMPLETED
    assert service.repo.faults.calls.count("release") == 3
    assert ended_at == pytest.approx(200, abs=6)


async def test_waiting_session_goes_back_at_a_stop(service: Service) -> None:
    """At once: it is the next one in the queue."""

    class Never(Limit):
        async def wait(self, permits: int) -> float:  # noqa: ARG002
            return 0.0

        async def take(self) -> float:
            return 5.0

    session = (await service.submitted()).session.id

    async with running(service, Never(60)):
        await asyncio.sleep(10)
        stopped_at = loop_time()

    assert loop_time() - stopped_at <= 1
    assert [task.session_id for task in service.waiting()] == [session]
    assert (await service.session(session)).status is SessionStatus.QUEUED


async def test_permit_that_arrives_with_the_stop_is_given_back(service: Service) -> None:
    """Nothing new begins then."""
    limit = SlowLimit(60)
    await service.submitted()

    async with running(service, limit):
        await asyncio.sleep(2)

    assert service.generator.requests == []
    assert (len(limit.taken_at), limit.returned) == (1, 1)


class SlowLimit(Limit):
    """Answers after five seconds."""

    returned = 0

    async def take(self) -> float:
        await asyncio.sleep(5)
        return await super().take()

    async def give_back(self) -> None:
        self.returned += 1
        await super().give_back()


async def test_resumed_job_takes_no_permit(service: Service) -> None:
    """It was paid for by an earlier attempt."""
    session = (await service.submitted()).session
    await service.claimed(session.id)
    await service.repo.record_job(session.id, attempt=1, job="fake:1")
    await service.repo.release(session.id, attempt=1, delay=timedelta(0))
    service.generator.finished.add("fake:1")
    limit = Limit(5)

    async with running(service, limit):
        await ended(service, session.id)

    assert limit.taken_at == []
    assert (await service.session(session.id)).status is SessionStatus.COMPLETED
