"""The worker: it takes no more tasks than it has slots, loses none when it stops or when something
is unavailable, and stops when one of its parts fails."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import AsyncIterator, Iterator, MutableMapping
from contextlib import asynccontextmanager
from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest
from structlog.contextvars import merge_contextvars
from structlog.testing import capture_logs

from adapters.limits.memory import InMemoryStartLimit, Pace
from domain.credits import LedgerKind
from domain.dispatch import Dispatcher
from domain.errors import ClaimFailed, ProviderMisconfigured, Refused, TryAgain
from domain.sessions import SessionStatus
from domain.tasks import GenerationTask, UnreadableTask
from domain.traces import trace_id_of
from entrypoints.worker import (
    OneShotWorker,
    Worker,
    WorkerLimits,
    process,
    run_until_signalled,
)
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import LEASE, a_task
from tests.support.faults import FlakyTaskQueue
from tests.support.service import Service, seeded_random

POP_SECONDS = 1.0
DRAIN_SECONDS = 25.0
RECOVERY_SECONDS = 2.0

pytestmark = pytest.mark.anyio

Logs = list[MutableMapping[str, Any]]


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def service() -> Service:
    return Service()


@pytest.fixture
def logs() -> Iterator[Logs]:
    with capture_logs(processors=[merge_contextvars]) as captured:
        yield captured


class CountedLimit(InMemoryStartLimit):
    """``burst`` starts at once, then one every ``every_seconds``; counts its calls."""

    def __init__(self, *, burst: int, every_seconds: int = 3_600) -> None:
        pace = Pace(burst=burst, interval_us=every_seconds * 1_000_000)
        super().__init__(pace, clock=loop_time)
        self.asked = 0
        self.taken = 0
        self.given_back = 0

    async def wait(self, permits: int) -> float:
        self.asked += 1
        return await super().wait(permits)

    async def take(self) -> float:
        wait = await super().take()
        self.taken += wait == 0
        return wait

    async def give_back(self) -> None:
        self.given_back += 1
        await super().give_back()


def a_worker(
    service: Service,
    *,
    concurrency: int = 2,
    recovery: bool = False,
    once: bool = False,
    limit: CountedLimit | None = None,
    dispatcher: Dispatcher | None = None,
) -> Worker:
    kind = OneShotWorker if once else Worker
    return kind(
        queue=service.queue,
        generation=service.generation(),
        recovery=service.recovery() if recovery else None,
        limits=WorkerLimits(
            concurrency=concurrency,
            pop_seconds=POP_SECONDS,
            drain_seconds=DRAIN_SECONDS,
            recovery_seconds=RECOVERY_SECONDS,
        ),
        random=seeded_random(),
        start_limit=limit,
        dispatcher=dispatcher,
    )


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator["asyncio.Task[bool]"]:
    """Run the worker during the block; at its end stop it and wait for it."""
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0.1)
    yield task
    worker.stop()
    await task


async def in_status(service: Service, status: SessionStatus) -> list[UUID]:
    """The sessions in this status, oldest first."""
    return [item.id for item in reversed(await service.sessions()) if item.status is status]


async def completed(service: Service, count: int) -> float:
    """Wait until ``count`` sessions are completed. Returns the time."""
    async with asyncio.timeout(1000):
        while len(await in_status(service, SessionStatus.COMPLETED)) < count:  # noqa: ASYNC110 - costs no time on a virtual loop
            await asyncio.sleep(0.01)
    return loop_time()


def waiting(service: Service) -> list[UUID]:
    """The sessions in the queue, the next one first."""
    return [task.session_id for task in service.waiting()]


def events(logs: Logs, name: str) -> Logs:
    return [entry for entry in logs if entry["event"] == name]


async def test_slots_work_concurrently(service: Service) -> None:
    """Seven tasks of ten seconds in three slots take thirty seconds. A busy slot takes no task off
    the queue, so that another worker can have it."""
    await service.backlog(7)
    service.generator.seconds = 10

    async with running(a_worker(service, concurrency=3)):
        begun = await in_status(service, SessionStatus.PROCESSING)
        popped, left = service.queue.faults.calls.count("pop"), len(waiting(service))
        finished_at = await completed(service, 7)

    assert (len(begun), popped, left) == (3, 3, 4)
    assert finished_at == pytest.approx(30, abs=0.1)


async def test_free_slots_bound_the_tasks_taken(service: Service) -> None:
    """Of five tasks, two slots hold two and the queue three, however long they take. A slot that
    becomes free takes one more, except while the worker drains."""
    ids = await service.backlog(5)
    service.generator.seconds = 20
    left = []

    async with running(a_worker(service)) as working:
        await asyncio.sleep(15)
        left.append(waiting(service))
        await asyncio.sleep(10)
        left.append(waiting(service))
    left.append(waiting(service))

    assert left == [ids[2:], ids[4:], ids[4:]]
    assert await working
    assert await in_status(service, SessionStatus.COMPLETED) == ids[:4]


async def test_stopping_worker_finishes_its_tasks(service: Service, logs: Logs) -> None:
    """It takes nothing new, waits for tasks in flight, and ends as soon as they are done."""
    ids = await service.backlog(4)
    service.generator.seconds = 10

    async with running(a_worker(service)) as task:
        pass

    assert task.done()
    assert loop_time() == pytest.approx(10, abs=0.1)
    assert await in_status(service, SessionStatus.COMPLETED) == ids[:2]
    assert await in_status(service, SessionStatus.QUEUED) == waiting(service) == ids[2:]
    assert events(logs, "worker_stopped")[0]["cancelled"] == 0


async def test_tasks_are_given_back_after_the_grace_period(service: Service, logs: Logs) -> None:
    """Their work is cancelled, and they are the next ones in the queue."""
    ids = await service.backlog(4)
    service.generator.seconds = 100

    async with running(a_worker(service)):
        pass

    assert loop_time() == pytest.approx(DRAIN_SECONDS, abs=0.2)
    assert await in_status(service, SessionStatus.QUEUED) == ids
    assert set(waiting(service)[:2]) == set(ids[:2])
    assert waiting(service)[2:] == ids[2:]
    assert events(logs, "worker_stopped")[0]["cancelled"] == 2


async def test_second_stop_gives_tasks_back_at_once(service: Service, logs: Logs) -> None:
    """All tasks are in the queue again, also those of a pop in flight; and that is no failure."""
    ids = await service.backlog(1)
    service.generator.seconds = 100
    worker = a_worker(service)
    working = asyncio.create_task(worker.run())
    await asyncio.sleep(1)
    service.queue.faults.slow["pop"] = POP_SECONDS / 2
    await asyncio.sleep(POP_SECONDS)
    ids += await service.backlog(1)
    await asyncio.sleep(0.1)
    assert waiting(service) == []
    stopped_at = loop_time()

    worker.stop()
    worker.stop()

    assert await working
    assert loop_time() - stopped_at < POP_SECONDS
    assert await in_status(service, SessionStatus.QUEUED) == ids
    assert set(waiting(service)) == set(ids)
    assert [(await service.session(session_id)).attempt for session_id in ids] == [1, 0]
    assert events(logs, "worker_stopped")[0]["cancelled"] == 1


@pytest.mark.parametrize("arrives_after_stop", [False, True])
async def test_pop_in_flight_at_the_stop_loses_nothing(
    service: Service, *, arrives_after_stop: bool
) -> None:
    """Its task has left the queue already, or arrives before the pop times out: in either case it
    is worked on."""
    service.queue.faults.slow["pop"] = POP_SECONDS / 2
    worker = a_worker(service, concurrency=1)
    if not arrives_after_stop:
        await service.backlog(1)

    working = asyncio.create_task(worker.run())
    await asyncio.sleep(0.1)
    worker.stop()
    if arrives_after_stop:
        await service.backlog(1)
    await working

    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1


async def test_idle_worker_stops_when_its_pops_time_out(service: Service) -> None:
    """No sooner, because a pop is never cancelled; and no later."""
    async with running(a_worker(service, recovery=True)):
        pass

    assert loop_time() == pytest.approx(POP_SECONDS, abs=0.01)


async def test_stop_ends_a_pause(service: Service) -> None:
    """A slot's backoff and recovery's interval do not delay the stop."""
    service.queue.faults.away.add("pop")
    worker = a_worker(service, recovery=True)

    async with running(worker):
        await asyncio.sleep(60)
        stopped_at = loop_time()

    assert loop_time() == stopped_at


@pytest.mark.parametrize("fault", ["away", "broken"])
async def test_queue_outage_is_waited_for(service: Service, logs: Logs, fault: str) -> None:
    """Every slot tries again after waits that are random, grow and have a cap, and goes on by
    itself. An unexpected error ends no slot either."""
    getattr(service.queue.faults, fault).add("pop")
    async with running(a_worker(service, concurrency=4)):
        await asyncio.sleep(600)
        asked = service.queue.faults.calls.count("pop")
        waits = [entry["seconds"] for entry in events(logs, "worker_waiting")]
        service.queue.faults.away.clear()
        service.queue.faults.broken.clear()
        back_at = loop_time()
        await service.backlog(4)
        service.generator.seconds = 10

        assert await completed(service, 4) - back_at < 5.0 + 10.1

    assert 4 * 600 / 5 < asked < 4 * 600
    assert max(waits[:4]) < 0.5
    assert 4.5 < max(waits) <= 5.0
    assert len(set(waits)) > len(waits) / 2
    assert bool(events(logs, "slot_crashed")) == (fault == "broken")


async def test_success_resets_the_backoff(service: Service, logs: Logs) -> None:
    """The next outage begins with short waits again."""
    async with running(a_worker(service, concurrency=1)):
        service.queue.faults.away.add("pop")
        await asyncio.sleep(60)
        service.queue.faults.away.clear()
        await asyncio.sleep(10)
        before = len(events(logs, "worker_waiting"))
        service.queue.faults.away.add("pop")
        await asyncio.sleep(10)

    assert events(logs, "worker_waiting")[before]["seconds"] < 0.5


@pytest.mark.parametrize("fault", ["away", "broken"])
async def test_failed_claims_lose_no_task(service: Service, logs: Logs, fault: str) -> None:
    """The database is unavailable, or rejects every claim, for example for a missing privilege. The
    tasks go back, and all are in the queue when that is over."""
    ids = await service.backlog(5)
    getattr(service.repo.faults, fault).add("claim")
    async with running(a_worker(service)):
        await asyncio.sleep(120)
        assert set(waiting(service)) == set(ids)
        asked = service.repo.faults.calls.count("claim")
        service.repo.faults.away.clear()
        service.repo.faults.broken.clear()
        back_at = loop_time()

        assert await completed(service, 5) - back_at < 5.1

    assert 2 * 120 / 5 < asked < 2 * 120
    assert len(events(logs, "slot_crashed")) == (asked if fault == "broken" else 0)
    assert not events(logs, "task_crashed")


async def test_unreadable_message_is_buried(service: Service, logs: Logs) -> None:
    """It becomes a dead letter, is logged, and does not delay other tasks."""
    await service.backlog(1)
    service.queue.messages.extendleft([b"{", b"[]"])
    await service.backlog(1)
    service.generator.seconds = 10

    async with running(a_worker(service, concurrency=1)):
        finished_at = await completed(service, 2)

    assert [message.raw for message in service.queue.buried] == [b"{", b"[]"]
    assert finished_at == pytest.approx(20, abs=0.1)
    refusals = events(logs, "task_unreadable")
    assert [entry["reason"] for entry in refusals] == [m.reason for m in service.queue.buried]


async def test_message_of_a_newer_version_is_refunded(service: Service, logs: Logs) -> None:
    """The session that it names fails with its refund."""
    (session_id,) = await service.backlog(1)
    raw = service.queue.messages.pop().replace(b'"version":1', b'"version":2')
    service.queue.messages.append(raw)

    async with running(a_worker(service)):
        pass

    assert await in_status(service, SessionStatus.FAILED) == [session_id]
    assert service.money_of(session_id) == [LedgerKind.DEBIT, LedgerKind.REFUND]
    (refusal,) = events(logs, "task_unreadable")
    assert (refusal["session_id"], refusal["log_level"]) == (str(session_id), "error")


@pytest.mark.parametrize("seam", ["queue", "database"])
async def test_burial_is_repeated_until_it_succeeds(service: Service, seam: str) -> None:
    """The message is no longer in the queue, so the slot tries until the queue and the database
    answer."""
    (session_id,) = await service.backlog(1)
    raw = service.queue.messages.pop().replace(b'"version":1', b'"version":2')
    service.queue.messages.append(raw)
    if seam == "queue":
        service.queue.faults.away = {"bury", "push_next"}
    else:
        service.repo.faults.away = {"fail_queued"}
    async with running(a_worker(service)):
        await asyncio.sleep(60)
        assert service.queue.buried == []
        service.queue.faults.away.clear()
        service.repo.faults.away.clear()
        await asyncio.sleep(5)

    assert [message.raw for message in service.queue.buried] == [raw]
    assert service.money_of(session_id) == [LedgerKind.DEBIT, LedgerKind.REFUND]


async def test_burial_does_not_delay_the_stop(service: Service, logs: Logs) -> None:
    """A stop ends the tries; the log has named the lost message and the reason."""
    service.queue.messages.append(b"{")
    service.queue.faults.away.add("bury")

    async with running(a_worker(service)):
        await asyncio.sleep(60)
        stopped_at = loop_time()

    assert loop_time() <= stopped_at + POP_SECONDS
    assert len(events(logs, "task_unreadable")) == 1


async def test_crashed_task_does_not_end_its_slot(service: Service, logs: Logs) -> None:
    """The error is logged with the task's ids, and the slot takes the next task; later lines do not
    carry those ids."""
    crashed, done = await service.backlog(2)
    service.generator.outcomes = [RuntimeError("a bug")]

    async with running(a_worker(service, concurrency=1)):
        await completed(service, 1)
        service.queue.faults.away.add("pop")
        await asyncio.sleep(2 * POP_SECONDS)

    assert await in_status(service, SessionStatus.FAILED) == [crashed]
    assert await in_status(service, SessionStatus.COMPLETED) == [done]
    (entry,) = events(logs, "task_crashed")
    assert entry["log_level"] == "error"
    assert (entry["session_id"], entry["request_id"]) == (str(crashed), "req_1")
    assert entry["trace_id"] == trace_id_of("req_1")
    assert [
        (entry["session_id"], entry["outcome"], entry.get("code"))
        for entry in events(logs, "task_done")
    ] == [(str(crashed), "failed", "GENERATION_FAILED"), (str(done), "completed", None)]
    waiting_lines = events(logs, "worker_waiting")
    assert waiting_lines
    assert not {"session_id", "request_id", "trace_id"}.intersection(*waiting_lines)


async def test_open_circuit_takes_no_tasks(service: Service, logs: Logs) -> None:
    """Four slots, an hour of a wrong key: single tasks probe the provider, less and less often, and
    each opening is logged once. No task is taken in between, none is lost, and all are done soon
    after the key is fixed."""
    ids = await service.backlog(20)
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")] * 1000
    async with running(a_worker(service, concurrency=4)):
        await asyncio.sleep(3600)
        asked = len(service.generator.requests)
        taken = service.queue.faults.calls.count("pop")
        assert set(waiting(service)) == set(ids)
        assert await in_status(service, SessionStatus.QUEUED) == ids
        service.generator.outcomes.clear()
        fixed_at = loop_time()

        assert await completed(service, 20) - fixed_at < 300 + 2

    opened = events(logs, "circuit_opened")
    assert (opened[0]["cause"], opened[0]["log_level"]) == ("provider HTTP 401", "error")
    assert [entry["seconds"] for entry in opened[:8]] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert 15 < len(opened) < 25
    assert asked == len(opened) + 3  # The other slots' first tasks began at the same instant.
    assert taken < asked + 10
    assert len(events(logs, "circuit_closed")) == 1
    assert not events(logs, "task_crashed")


async def test_pop_in_flight_when_the_circuit_opens_begins_nothing(service: Service) -> None:
    """Its task goes back to the front of the queue without a claim, as its attempt shows."""
    service.queue.faults.slow["pop"] = 0.5
    service.generator.seconds = 0.1
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")] * 1000
    async with running(a_worker(service, concurrency=2)):
        (first,) = await service.backlog(1)
        await asyncio.sleep(0.55)
        (second,) = await service.backlog(1)
        await asyncio.sleep(3)

        attempts = [(await service.session(session_id)).attempt for session_id in (first, second)]
        assert attempts == [1, 0]
        assert set(waiting(service)) == {first, second}


async def test_open_circuit_does_not_delay_the_stop(service: Service) -> None:
    """The slots' pauses end at once."""
    await service.backlog(1)
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")]

    async with running(a_worker(service)):
        await asyncio.sleep(2.5)
        stopped_at = loop_time()

    assert loop_time() == stopped_at


async def test_start_limit_bounds_the_tasks_taken(service: Service) -> None:
    """One start for four slots: one task is done, the others stay in the queue, where other workers
    can have them. One slot asks for all, and no more often than it could pop."""
    ids = await service.backlog(3)
    limit = CountedLimit(burst=1)

    async with running(a_worker(service, concurrency=4, limit=limit)):
        await asyncio.sleep(60)

        assert await in_status(service, SessionStatus.COMPLETED) == ids[:1]
        assert waiting(service) == ids[1:]
        assert service.queue.faults.calls.count("pop") == 1

    assert limit.asked <= 60 / POP_SECONDS + 3


async def test_two_workers_share_one_start_limit(service: Service) -> None:
    """Two starts at once and one every ten seconds, however many slots are free."""
    await service.backlog(6)
    limit = CountedLimit(burst=2, every_seconds=10)

    async with (
        running(a_worker(service, concurrency=4, limit=limit)),
        running(a_worker(service, concurrency=4, limit=limit)),
    ):
        await completed(service, 2)
        times = [await completed(service, count) for count in range(3, 7)]

    assert times == pytest.approx([10, 20, 30, 40], abs=POP_SECONDS + 0.1)


async def empty_queue(_: Service) -> None:
    """Every pop times out."""


async def unreadable_messages(service: Service) -> None:
    service.queue.messages.extendleft([b"{"] * 3)


async def unknown_sessions(service: Service) -> None:
    for _ in range(3):
        await service.queue.push(a_task())


async def queue_outage(service: Service) -> None:
    await service.backlog(3)
    service.queue.faults.away.add("pop")


async def database_outage(service: Service) -> None:
    await service.backlog(3)
    service.repo.faults.away.add("claim")


async def broken_pop(service: Service) -> None:
    await service.backlog(3)
    service.queue.faults.broken.add("pop")


@pytest.mark.parametrize(
    "prepare",
    [
        empty_queue,
        unreadable_messages,
        unknown_sessions,
        queue_outage,
        database_outage,
        broken_pop,
    ],
)
async def test_what_begins_no_picture_takes_no_start(service: Service, prepare: Any) -> None:
    """All starts are free, and each slot asks for one about once a second."""
    await prepare(service)
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        await asyncio.sleep(60)

    assert service.generator.requests == []
    assert (limit.taken, limit.given_back) == (0, 0)
    assert 10 < limit.asked < 2 * 60 / POP_SECONDS + 10
    assert [await limit.take() for _ in range(2)] == [0, 0]


async def test_no_start_is_taken_when_the_circuit_opens_during_the_pop(service: Service) -> None:
    """The popped task goes back to the queue, so no picture is begun."""
    service.queue.faults.slow["pop"] = 0.5
    service.generator.seconds = 0.1
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")] * 1000
    limit = CountedLimit(burst=2)
    async with running(a_worker(service, limit=limit)):
        await service.backlog(1)
        await asyncio.sleep(0.55)
        await service.backlog(1)
        await asyncio.sleep(3)

    assert len(service.generator.requests) == 1
    assert limit.taken - limit.given_back == 1


@pytest.mark.parametrize(
    "outcome",
    [
        None,
        Refused("no"),
        TryAgain("later"),
        ProviderMisconfigured(detail="HTTP 401"),
        RuntimeError("a bug"),
    ],
    ids=lambda outcome: type(outcome).__name__,
)
async def test_start_is_used_however_the_picture_ends(
    service: Service, outcome: Exception | None
) -> None:
    """The provider was called, and its calls are limited."""
    await service.backlog(1)
    service.generator.outcomes = [outcome] if outcome else []
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        pass

    assert len(service.generator.requests) == limit.taken - limit.given_back == 1


async def test_start_is_used_by_overtaken_work(service: Service) -> None:
    """The lease was lost during the work: nothing is written, but the provider was called."""
    await service.backlog(1)
    service.generator.seconds = 100
    service.repo.faults.away.add("renew")
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        await asyncio.sleep(60)

    assert len(service.generator.requests) == limit.taken - limit.given_back == 1


async def test_start_is_used_by_cancelled_work(service: Service) -> None:
    """The grace period ended during the work."""
    await service.backlog(1)
    service.generator.seconds = 100
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        pass

    assert len(service.generator.requests) == limit.taken - limit.given_back == 1


async def test_start_given_back_by_another_worker_is_found(service: Service) -> None:
    """Whatever wait the limit returned, a worker asks again about as often as it would pop."""
    limit = CountedLimit(burst=1)
    await limit.take()
    await service.backlog(1)

    async with running(a_worker(service, limit=limit)):
        await asyncio.sleep(60)
        await limit.give_back()
        back_at = loop_time()

        assert await completed(service, 1) - back_at < POP_SECONDS + 0.1


async def test_start_limit_does_not_delay_the_stop(service: Service) -> None:
    """Whether a slot waits for the time to ask again, or for its turn to ask."""
    await service.backlog(2)
    limit = CountedLimit(burst=1)

    async with running(a_worker(service, concurrency=4, limit=limit)):
        await asyncio.sleep(2.5)
        asked, stopped_at = limit.asked, loop_time()

    assert (loop_time(), limit.asked) == (stopped_at, asked)


async def test_recovery_runs_beside_the_work(service: Service, logs: Logs) -> None:
    """At its interval, plus or minus a fifth, also while all slots are busy."""
    await service.backlog(2)
    service.generator.seconds = 100

    async with running(a_worker(service, recovery=True)):
        await asyncio.sleep(60)
        runs = service.repo.faults.calls.count("refund_missing")
        (lost,) = await service.backlog(1)
        service.queue.messages.clear()
        await completed(service, 3)

    assert 60 / RECOVERY_SECONDS / 1.2 <= runs <= 60 / RECOVERY_SECONDS / 0.8 + 1
    assert lost in await in_status(service, SessionStatus.COMPLETED)
    assert [entry["pushed_again"] for entry in events(logs, "recovered")] == [1]


@pytest.mark.parametrize("fault", ["away", "broken"])
async def test_recovery_survives_failures(service: Service, logs: Logs, fault: str) -> None:
    """The database is unavailable, or there is a bug: that is logged, and the next run follows."""
    (lost,) = await service.backlog(1)
    service.queue.messages.clear()
    getattr(service.repo.faults, fault).add("refund_missing")

    async with running(a_worker(service, recovery=True)):
        await asyncio.sleep(60)
        runs = service.repo.faults.calls.count("refund_missing")
        getattr(service.repo.faults, fault).clear()
        await completed(service, 1)

    expected = "recovery_postponed" if fault == "away" else "recovery_crashed"
    assert len(events(logs, expected)) == runs > 60 / RECOVERY_SECONDS / 1.2
    assert await in_status(service, SessionStatus.COMPLETED) == [lost]


async def test_blocked_session_is_logged(service: Service, logs: Logs) -> None:
    """By its id and owner, at error level, also if another step fails in the same run."""
    (session_id,) = await service.backlog(1)
    service.repo.overwrite(session_id, status=SessionStatus.FAILED)

    service.queue.faults.away.add("oldest")
    service.repo.unsound.add(session_id)

    async with running(a_worker(service, recovery=True)):
        await asyncio.sleep(60)

    (entry,) = events(logs, "session_blocked")
    assert (entry["log_level"], entry["session_id"], entry["owner"], entry["problem"]) == (
        "error",
        session_id,
        str((await service.session(session_id)).owner),
        "its account is full",
    )


async def test_worker_without_recovery(service: Service) -> None:
    """It recovers nothing, and works all the same."""
    await service.backlog(1)

    async with running(a_worker(service)):
        await asyncio.sleep(60)

    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1
    assert "refund_missing" not in service.repo.faults.calls


class SelfCancellingQueue(FlakyTaskQueue):
    """A pop from the empty queue cancels itself."""

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        message = await super().pop(timeout_seconds=timeout_seconds)
        if message is None:
            raise asyncio.CancelledError
        return message


async def test_lost_slot_stops_the_worker(service: Service, logs: Logs) -> None:
    """Whatever ends a slot ends the process with an error, so that its supervisor starts a complete
    one. The other slots finish their tasks first, and everything is closed."""
    await service.backlog(1)
    (task,) = service.waiting()
    service.queue = SelfCancellingQueue(clock=service.clock.now)
    await service.queue.push(task)
    service.generator.seconds = 10
    closed_at = []

    async def close() -> None:
        closed_at.append(loop_time())

    with pytest.raises(RuntimeError, match="slot-2"):
        await run_until_signalled(a_worker(service), close)

    assert closed_at == [10.0]
    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1
    assert len(events(logs, "worker_stopped")) == 1


async def test_signal_stops_the_worker(service: Service) -> None:
    """``run_until_signalled`` returns once the tasks are done and everything is closed."""
    await service.backlog(1)
    closed = asyncio.Event()

    async def close() -> None:
        closed.set()

    service.generator.seconds = 10
    task = asyncio.create_task(run_until_signalled(a_worker(service), close))
    await asyncio.sleep(1)
    os.kill(os.getpid(), signal.SIGTERM)
    await task

    assert closed.is_set()
    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1


async def once(service: Service, *, recovery: bool = True) -> bool:
    """What a one-shot worker returns."""
    async with asyncio.timeout(1000):
        return await a_worker(service, recovery=recovery, once=True).run()


async def test_one_shot_worker_empties_the_queue(service: Service, logs: Logs) -> None:
    """It ends when the last task is done, however long that takes. A task that the queue had lost
    is done too, because recovery runs first; it runs once."""
    (lost,) = await service.backlog(1, apart=timedelta(minutes=1))
    service.queue.messages.clear()
    await service.backlog(4)
    service.generator.seconds = 2 * DRAIN_SECONDS

    assert await once(service)

    assert loop_time() == pytest.approx(3 * 2 * DRAIN_SECONDS)
    assert len(await in_status(service, SessionStatus.COMPLETED)) == 5
    assert lost in await in_status(service, SessionStatus.COMPLETED)
    assert service.repo.faults.calls.count("refund_missing") == 1
    assert not events(logs, "worker_draining")


async def test_one_shot_worker_ends_at_once_with_an_empty_queue(service: Service) -> None:
    """Without recovery, a lost task is left to workers that run it."""
    await service.backlog(1)
    service.queue.messages.clear()

    assert await once(service, recovery=False)

    assert loop_time() == 0
    assert len(await in_status(service, SessionStatus.QUEUED)) == 1


async def test_one_shot_worker_does_not_wait_for_another_attempt(service: Service) -> None:
    """The next run makes it, after its backoff."""
    await service.backlog(1)
    service.generator.outcomes = [TryAgain("busy", retry_after_seconds=60)]

    assert await once(service)
    assert loop_time() == 0
    service.clock.advance(timedelta(seconds=61))
    assert await once(service)

    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1


@pytest.mark.parametrize("seam", ["pop", "claim", "complete", "recovery", "bury"])
async def test_outage_ends_a_one_shot_worker(service: Service, logs: Logs, seam: str) -> None:
    """It does everything that it can, and returns that work may be left; the next run does the
    rest."""
    await service.backlog(3)
    if seam == "bury":
        service.queue.messages.append(b"{")
    faults = service.queue.faults if seam in {"pop", "bury"} else service.repo.faults
    faults.away.add("refund_missing" if seam == "recovery" else seam)

    assert not await once(service)

    assert loop_time() < 10
    completed = len(await in_status(service, SessionStatus.COMPLETED))
    assert completed == (3 if seam in {"recovery", "bury"} else 0)
    assert len(events(logs, "work_left")) == {"pop": 2, "claim": 2, "bury": 1}.get(seam, 0)
    faults.away.clear()
    service.clock.advance(2 * LEASE)
    assert await once(service)
    assert len(await in_status(service, SessionStatus.COMPLETED)) == 3


async def test_open_circuit_ends_a_one_shot_worker(service: Service) -> None:
    """After one call; no session fails."""
    ids = await service.backlog(3)
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")] * 1000

    assert not await once(service)

    assert loop_time() == 0
    assert await in_status(service, SessionStatus.QUEUED) == ids
    assert set(waiting(service)) == set(ids)


async def test_unexpected_error_ends_a_one_shot_worker(service: Service, logs: Logs) -> None:
    """It is logged and raised; the task is in the queue, and earlier tasks are done."""
    ids = await service.backlog(2)
    service.generator.seconds = 10
    worker = a_worker(service, once=True, concurrency=1)
    working = asyncio.create_task(worker.run())
    await asyncio.sleep(1)
    service.repo.faults.broken.add("claim")

    with pytest.raises(ClaimFailed):
        await working

    assert len(events(logs, "slot_crashed")) == 1
    assert await in_status(service, SessionStatus.COMPLETED) == ids[:1]
    assert waiting(service) == ids[1:]


async def test_recovery_crash_does_not_end_a_one_shot_worker(service: Service, logs: Logs) -> None:
    """The tasks in the queue are done all the same, and it returns that work may be left."""
    await service.backlog(1)
    service.repo.faults.broken.add("refund_missing")

    assert not await once(service)

    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1
    assert len(events(logs, "recovery_crashed")) == 1


@pytest.mark.parametrize("busy", ["slot", "recovery"])
async def test_one_shot_worker_can_be_stopped(service: Service, busy: str) -> None:
    """Like any worker: tasks in flight are given back after the grace period. That is a success,
    whatever else could not be done."""
    ids = await service.backlog(3)
    service.generator.seconds = 100
    if busy == "recovery":
        service.repo.faults.slow["refund_missing"] = 100
    else:
        service.repo.faults.away.add("refund_missing")
    worker = a_worker(service, once=True, recovery=True)
    working = asyncio.create_task(worker.run())
    await asyncio.sleep(1)

    worker.stop()

    assert await working
    assert loop_time() == pytest.approx(1 + DRAIN_SECONDS)
    assert await in_status(service, SessionStatus.QUEUED) == ids
    assert set(waiting(service)) == set(ids)


@pytest.mark.processes
def test_worker_process_freezes_startup_objects_and_buffers_logs() -> None:
    """``run_on`` has the process to itself, so it may set both for the whole process."""
    code = (
        "import gc, sys\n"
        "from config.container import Container\n"
        "from config.logging import configure_logging\n"
        "from config.loading import load_settings\n"
        "from entrypoints.worker import run_on\n"
        "settings = load_settings({\n"
        "    'WEARON_ENVIRONMENT': 'development', 'WEARON_SIGNING_SECRET': 'x' * 32,\n"
        "    'WEARON_DATABASE': 'memory', 'WEARON_QUEUE': 'memory', 'WEARON_STORAGE': 'memory'})\n"
        "configure_logging(settings)\n"
        "run_on(Container(settings=settings), concurrency=1, recovery=False, once=True)\n"
        "print(gc.get_freeze_count() > 10_000)\n"
        "print(sys.stderr.line_buffering or sys.stderr.write_through)\n"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.split() == ["True", "False"]


async def test_log_lines_are_flushed_every_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the worker runs; its result is returned."""
    written: list[float] = []
    began = loop_time()
    monkeypatch.setattr(process, "flush_logs", lambda: written.append(loop_time() - began))

    async def work() -> bool:
        await asyncio.sleep(3.5)
        return False

    assert await process.flushing_logs(work()) is False
    await asyncio.sleep(5)

    assert written == [1, 2, 3]
