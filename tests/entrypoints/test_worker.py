"""The worker: it holds what it can work on and no more, loses nothing when it stops or when
something is away, and never goes on with less than it was started with."""

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
from domain.errors import ClaimFailed, ProviderMisconfigured, Refused, TryAgain
from domain.sessions import SessionStatus
from domain.tasks import GenerationTask, UnreadableTask
from entrypoints import worker as worker_module
from entrypoints.worker import Worker, WorkerLimits, run_until_signalled
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
    """``burst`` starts at once and then one every ``every_seconds``."""

    def __init__(self, *, burst: int, every_seconds: int = 3_600) -> None:
        pace = Pace(burst=burst, interval_us=every_seconds * 1_000_000)
        super().__init__(pace, clock=loop_time)
        self.asked = 0
        self.taken = 0
        self.given_back = 0

    async def take(self) -> float:
        self.asked += 1
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
) -> Worker:
    return Worker(
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
        once=once,
        limit=limit,
    )


@asynccontextmanager
async def running(worker: Worker) -> AsyncIterator["asyncio.Task[bool]"]:
    """The worker at work; at the end of the block it is stopped and comes to rest."""
    task = asyncio.create_task(worker.run())
    await asyncio.sleep(0.1)
    yield task
    worker.stop()
    await task


async def in_status(service: Service, status: SessionStatus) -> list[UUID]:
    """The sessions in this status, oldest first."""
    return [item.id for item in reversed(await service.sessions()) if item.status is status]


async def completed(service: Service, count: int) -> float:
    """Wait until ``count`` sessions are completed; returns when that was."""
    async with asyncio.timeout(1000):
        while len(await in_status(service, SessionStatus.COMPLETED)) < count:  # noqa: ASYNC110 - looking costs no time here
            await asyncio.sleep(0.01)
    return loop_time()


def waiting(service: Service) -> list[UUID]:
    """The sessions in the queue, the next one first."""
    return [task.session_id for task in service.waiting()]


def events(logs: Logs, name: str) -> Logs:
    return [entry for entry in logs if entry["event"] == name]


async def test_all_tasks_are_done_by_as_many_slots_as_there_are(service: Service) -> None:
    """Seven tasks of ten seconds in three slots take thirty seconds; a slot that is not free
    takes none off the queue, so another worker can have it."""
    await service.backlog(7)
    service.generator.seconds = 10

    async with running(a_worker(service, concurrency=3)):
        begun = await in_status(service, SessionStatus.PROCESSING)
        popped, left = service.queue.faults.calls.count("pop"), len(waiting(service))
        finished_at = await completed(service, 7)

    assert (len(begun), popped, left) == (3, 3, 4)
    assert finished_at == pytest.approx(30, abs=0.1)


async def test_no_more_is_taken_than_there_are_free_slots(service: Service) -> None:
    """Of five tasks two slots hold two and the queue three, however long it takes; one that gets
    free takes one more; and while the worker drains, none does."""
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


async def test_a_worker_that_stops_finishes_what_it_has(service: Service, logs: Logs) -> None:
    """It takes nothing new, waits for what is in flight, and is gone as soon as that is done."""
    ids = await service.backlog(4)
    service.generator.seconds = 10

    async with running(a_worker(service)) as task:
        pass

    assert task.done()
    assert loop_time() == pytest.approx(10, abs=0.1)
    assert await in_status(service, SessionStatus.COMPLETED) == ids[:2]
    assert await in_status(service, SessionStatus.QUEUED) == waiting(service) == ids[2:]
    assert events(logs, "worker_stopped")[0]["cancelled"] == 0


async def test_what_takes_too_long_to_finish_is_given_back(service: Service, logs: Logs) -> None:
    """After the grace time the work is stopped, and its tasks are the next ones in the queue."""
    ids = await service.backlog(4)
    service.generator.seconds = 100

    async with running(a_worker(service)):
        pass

    assert loop_time() == pytest.approx(DRAIN_SECONDS, abs=0.2)
    assert await in_status(service, SessionStatus.QUEUED) == ids
    assert set(waiting(service)[:2]) == set(ids[:2])
    assert waiting(service)[2:] == ids[2:]
    assert events(logs, "worker_stopped")[0]["cancelled"] == 2


async def test_a_second_stop_gives_back_what_is_in_hand(service: Service, logs: Logs) -> None:
    """Whoever cannot wait for the grace time has all tasks in the queue again at once, those that
    a pop under way brings too; and that is no failure."""
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
async def test_a_pop_under_way_at_the_stop_loses_nothing(
    service: Service, *, arrives_after_stop: bool
) -> None:
    """Its task has left the queue and is on its way, or comes before the pop has run out: in
    either case it is worked on."""
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


async def test_an_idle_worker_stops_when_its_pops_have_run_out(service: Service) -> None:
    """No sooner, for a pop is never cancelled; and no later."""
    async with running(a_worker(service, recovery=True)):
        pass

    assert loop_time() == pytest.approx(POP_SECONDS, abs=0.01)


async def test_a_pause_ends_at_the_stop(service: Service) -> None:
    """Who waits for the queue to come back, or for recovery's next turn, holds nothing up."""
    service.queue.faults.away.add("pop")
    worker = a_worker(service, recovery=True)

    async with running(worker):
        await asyncio.sleep(60)
        stopped_at = loop_time()

    assert loop_time() == stopped_at


@pytest.mark.parametrize("fault", ["away", "broken"])
async def test_a_queue_that_is_away_is_waited_for(service: Service, logs: Logs, fault: str) -> None:
    """Every slot asks again and again, with waits that are random, grow and have a bound; then it
    goes on by itself. An error that nobody expects ends no slot either."""
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


async def test_a_success_ends_the_backing_off(service: Service, logs: Logs) -> None:
    """After an outage the next one begins with short waits again."""
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
async def test_a_store_that_allows_no_claim_costs_no_task(
    service: Service, logs: Logs, fault: str
) -> None:
    """It is away, or says what nobody expects, such as that we lack a privilege. Every claim fails
    and its task goes back: they all wait in the queue when that is over."""
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


async def test_a_message_that_nobody_can_read_is_buried(service: Service, logs: Logs) -> None:
    """It is kept, it is logged, and it takes no time from the others."""
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


async def test_a_message_of_a_newer_version_costs_its_session_nothing(
    service: Service, logs: Logs
) -> None:
    """The session that it names fails and gets its credit back."""
    (session_id,) = await service.backlog(1)
    raw = service.queue.messages.pop().replace(b'"version":1', b'"version":2')
    service.queue.messages.append(raw)

    async with running(a_worker(service)):
        pass

    assert await in_status(service, SessionStatus.FAILED) == [session_id]
    assert service.money_of(session_id) == [LedgerKind.DEBIT, LedgerKind.REFUND]
    (refusal,) = events(logs, "task_unreadable")
    assert (refusal["session_id"], refusal["log_level"]) == (str(session_id), "error")


@pytest.mark.parametrize("seam", ["queue", "store"])
async def test_a_message_that_cannot_be_buried_yet_is_kept_in_hand(
    service: Service, seam: str
) -> None:
    """It is no longer in the queue, so whoever has it tries until queue and store answer."""
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


async def test_a_message_that_cannot_be_buried_does_not_hold_up_the_stop(
    service: Service, logs: Logs
) -> None:
    """Stopping ends the tries; the log has said what was lost and why."""
    service.queue.messages.append(b"{")
    service.queue.faults.away.add("bury")

    async with running(a_worker(service)):
        await asyncio.sleep(60)
        stopped_at = loop_time()

    assert loop_time() <= stopped_at + POP_SECONDS
    assert len(events(logs, "task_unreadable")) == 1


async def test_a_task_that_crashes_does_not_end_its_slot(service: Service, logs: Logs) -> None:
    """The error is logged with what it belongs to, and the slot takes the next task; what is logged
    after that belongs to none."""
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
    assert [entry["session_id"] for entry in events(logs, "task_done")] == [str(done)]
    waiting_lines = events(logs, "worker_waiting")
    assert waiting_lines
    assert not any("session_id" in entry or "request_id" in entry for entry in waiting_lines)


async def test_a_generator_that_turns_all_away_is_left_alone(service: Service, logs: Logs) -> None:
    """Four slots, an hour of a wrong key: it is asked a few times, by one task at a time and less
    and less often, and each opening is logged once. No task is taken in between, none is lost,
    and all are done soon after the key is right."""
    ids = await service.backlog(20)
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")] * 1000
    async with running(a_worker(service, concurrency=4)):
        await asyncio.sleep(3600)
        asked = len(service.generator.requests)
        taken = service.queue.faults.calls.count("pop")
        assert set(waiting(service)) == set(ids)
        assert await in_status(service, SessionStatus.QUEUED) == ids
        service.generator.outcomes.clear()
        mended_at = loop_time()

        assert await completed(service, 20) - mended_at < 300 + 2

    opened = events(logs, "circuit_opened")
    assert (opened[0]["cause"], opened[0]["log_level"]) == ("HTTP 401", "error")
    assert [entry["seconds"] for entry in opened[:8]] == [5, 10, 20, 40, 80, 160, 300, 300]
    assert 15 < len(opened) < 25
    assert asked == len(opened) + 3  # the other slots' first tasks, begun at the same instant
    assert taken < asked + 10
    assert len(events(logs, "circuit_closed")) == 1
    assert not events(logs, "task_crashed")


async def test_a_pop_under_way_when_the_circuit_opens_takes_nothing(service: Service) -> None:
    """Its task goes back to the front before anything of it is begun, as the session shows."""
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


async def test_a_worker_that_may_begin_nothing_stops_at_once(service: Service) -> None:
    """An open circuit holds no stop up."""
    await service.backlog(1)
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")]

    async with running(a_worker(service)):
        await asyncio.sleep(2.5)
        stopped_at = loop_time()

    assert loop_time() == stopped_at


async def test_what_may_not_be_started_is_not_taken(service: Service) -> None:
    """One permit for four slots: one task is done, the others wait where other workers can have
    them. One slot asks for all, and not more often than it could pop."""
    ids = await service.backlog(3)
    limit = CountedLimit(burst=1)

    async with running(a_worker(service, concurrency=4, limit=limit)):
        await asyncio.sleep(60)

        assert await in_status(service, SessionStatus.COMPLETED) == ids[:1]
        assert waiting(service) == ids[1:]
        assert service.queue.faults.calls.count("pop") == 1

    assert limit.asked <= 60 / POP_SECONDS + 3


async def test_two_workers_start_at_the_pace_of_one_limit(service: Service) -> None:
    """Two at once and one every ten seconds, however many slots would be free."""
    await service.backlog(6)
    limit = CountedLimit(burst=2, every_seconds=10)

    async with (
        running(a_worker(service, concurrency=4, limit=limit)),
        running(a_worker(service, concurrency=4, limit=limit)),
    ):
        await completed(service, 2)
        times = [await completed(service, count) for count in range(3, 7)]

    assert times == pytest.approx([10, 20, 30, 40], abs=POP_SECONDS + 0.1)


async def nothing_comes(_: Service) -> None:
    """The pop comes back empty."""


async def unreadable(service: Service) -> None:
    service.queue.messages.extendleft([b"{"] * 3)


async def of_no_session(service: Service) -> None:
    for _ in range(3):
        await service.queue.push(a_task())


async def queue_is_away(service: Service) -> None:
    await service.backlog(3)
    service.queue.faults.away.add("pop")


async def store_is_away(service: Service) -> None:
    await service.backlog(3)
    service.repo.faults.away.add("claim")


async def pop_is_broken(service: Service) -> None:
    await service.backlog(3)
    service.queue.faults.broken.add("pop")


@pytest.mark.parametrize(
    "prepare",
    [nothing_comes, unreadable, of_no_session, queue_is_away, store_is_away, pop_is_broken],
)
async def test_a_permit_that_begins_nothing_is_given_back(service: Service, prepare: Any) -> None:
    """To the last one, and no more often than it was taken: about once a second by each slot."""
    await prepare(service)
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        await asyncio.sleep(60)

    assert service.generator.requests == []
    assert 10 < limit.given_back == limit.taken < 2 * 60 / POP_SECONDS + 10
    assert limit._full_at_us <= limit._now_us()


async def test_a_permit_of_a_pop_that_came_too_late_is_given_back(service: Service) -> None:
    """The circuit opened while it was under way, so its task is begun by nobody."""
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
async def test_a_permit_is_used_up_however_the_picture_ends(
    service: Service, outcome: Exception | None
) -> None:
    """The provider was asked, and that is what is limited."""
    await service.backlog(1)
    service.generator.outcomes = [outcome] if outcome else []
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        pass

    assert len(service.generator.requests) == limit.taken - limit.given_back == 1


async def test_a_permit_is_used_up_by_work_that_was_overtaken(service: Service) -> None:
    """The lease was lost in mid-work: nothing is written, but the provider was asked."""
    await service.backlog(1)
    service.generator.seconds = 100
    service.repo.faults.away.add("renew")
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        await asyncio.sleep(60)

    assert len(service.generator.requests) == limit.taken - limit.given_back == 1


async def test_a_permit_is_used_up_by_work_that_is_cut_off(service: Service) -> None:
    """By the end of the grace time."""
    await service.backlog(1)
    service.generator.seconds = 100
    limit = CountedLimit(burst=2)

    async with running(a_worker(service, limit=limit)):
        pass

    assert len(service.generator.requests) == limit.taken - limit.given_back == 1


async def test_a_permit_that_others_give_back_is_found(service: Service) -> None:
    """However long the wait was said to be, a worker asks again about as often as it would pop."""
    limit = CountedLimit(burst=1)
    await limit.take()
    await service.backlog(1)

    async with running(a_worker(service, limit=limit)):
        await asyncio.sleep(60)
        await limit.give_back()
        back_at = loop_time()

        assert await completed(service, 1) - back_at < POP_SECONDS + 0.1


async def test_a_worker_without_a_permit_stops_at_once(service: Service) -> None:
    """Whether a slot waits for the time to ask again, or for its turn to ask."""
    await service.backlog(2)
    limit = CountedLimit(burst=1)

    async with running(a_worker(service, concurrency=4, limit=limit)):
        await asyncio.sleep(2.5)
        asked, stopped_at = limit.asked, loop_time()

    assert (loop_time(), limit.asked) == (stopped_at, asked)


async def test_recovery_runs_beside_the_work(service: Service, logs: Logs) -> None:
    """At its interval, give or take a fifth, also while all slots are busy."""
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
async def test_recovery_survives_what_goes_wrong(service: Service, logs: Logs, fault: str) -> None:
    """The store is away, or there is a bug: that is logged, and the next run comes in time."""
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


async def test_a_worker_can_leave_recovery_to_others(service: Service) -> None:
    """Without it, nothing is recovered, and the work is done all the same."""
    await service.backlog(1)

    async with running(a_worker(service)):
        await asyncio.sleep(60)

    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1
    assert "refund_missing" not in service.repo.faults.calls


class CancelsItself(FlakyTaskQueue):
    """A pop that finds nothing ends as if somebody had cancelled it."""

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        message = await super().pop(timeout_seconds=timeout_seconds)
        if message is None:
            raise asyncio.CancelledError
        return message


async def test_a_worker_that_loses_a_slot_does_not_go_on(service: Service, logs: Logs) -> None:
    """Whatever can end a slot ends the process, and loudly, so that somebody starts a whole one;
    what the other slots have in hand is finished first, and all is closed."""
    await service.backlog(1)
    (task,) = service.waiting()
    service.queue = CancelsItself(clock=service.clock.now)
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


async def test_a_signal_stops_the_worker(service: Service) -> None:
    """SIGTERM is a stop: ``run_until_signalled`` returns when all is done and closed."""
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
    """What a worker says that does what waits and then ends."""
    async with asyncio.timeout(1000):
        return await a_worker(service, recovery=recovery, once=True).run()


async def test_a_worker_may_work_off_what_waits_and_end(service: Service, logs: Logs) -> None:
    """It ends when the last task is done, however long that takes, and waits for nothing: also a
    task that the queue had lost is done, since recovery runs first, and only once."""
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


async def test_nothing_to_do_takes_no_time(service: Service) -> None:
    """An empty queue is all taken; what is lost is left to who runs recovery."""
    await service.backlog(1)
    service.queue.messages.clear()

    assert await once(service, recovery=False)

    assert loop_time() == 0
    assert len(await in_status(service, SessionStatus.QUEUED)) == 1


async def test_another_attempt_is_left_to_the_next_run(service: Service) -> None:
    """Its turn comes later, and nothing is waited for."""
    await service.backlog(1)
    service.generator.outcomes = [TryAgain("busy", retry_after_seconds=60)]

    assert await once(service)
    assert loop_time() == 0
    service.clock.advance(timedelta(seconds=61))
    assert await once(service)

    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1


@pytest.mark.parametrize("seam", ["pop", "claim", "complete", "recovery", "bury"])
async def test_what_is_away_ends_the_only_run(service: Service, logs: Logs, seam: str) -> None:
    """Work may be left, so that it is not all done: but what can be done is, and the rest is there
    for the next run."""
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


async def test_a_generator_that_turns_all_away_ends_the_only_run(service: Service) -> None:
    """After one look; nobody is harmed."""
    ids = await service.backlog(3)
    service.generator.outcomes = [ProviderMisconfigured(detail="HTTP 401")] * 1000

    assert not await once(service)

    assert loop_time() == 0
    assert await in_status(service, SessionStatus.QUEUED) == ids
    assert set(waiting(service)) == set(ids)


async def test_an_error_that_nobody_expects_ends_the_only_run(service: Service, logs: Logs) -> None:
    """Loudly, with the task in the queue; what other slots have in hand is finished."""
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


async def test_recovery_that_crashes_does_not_end_the_only_run(
    service: Service, logs: Logs
) -> None:
    """The tasks that are there are done all the same, but that is not all."""
    await service.backlog(1)
    service.repo.faults.broken.add("refund_missing")

    assert not await once(service)

    assert len(await in_status(service, SessionStatus.COMPLETED)) == 1
    assert len(events(logs, "recovery_crashed")) == 1


@pytest.mark.parametrize("busy", ["slot", "recovery"])
async def test_the_only_run_stops_when_told(service: Service, busy: str) -> None:
    """As any worker does: what is not done in the grace time is given back, and that is as told,
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


def test_a_worker_of_its_own_is_set_up_for_long() -> None:
    """What stays is left alone by the garbage collector, and lines wait for others."""
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


async def test_lines_of_tasks_wait_for_a_second(monkeypatch: pytest.MonkeyPatch) -> None:
    """While the worker goes on; what it returns is returned."""
    written: list[float] = []
    began = loop_time()
    monkeypatch.setattr(worker_module, "flush_logs", lambda: written.append(loop_time() - began))

    async def work() -> bool:
        await asyncio.sleep(3.5)
        return False

    assert await worker_module._writing_lines(work()) is False
    await asyncio.sleep(5)

    assert written == [1, 2, 3]
