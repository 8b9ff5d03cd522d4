"""The status: its parts are read apart from each other."""

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from adapters.queue.memory import InMemoryTaskQueue
from domain.causes import Cause, CauseKind
from domain.errors import DatabaseUnavailable, QueueUnavailable
from domain.operator_ports import Snapshot
from domain.status import Report, Status
from tests.support.clock import START
from tests.support.examples import a_task

SNAPSHOT = Snapshot(at=START, processing=3)


async def snapshot() -> Snapshot:
    return SNAPSHOT


def fails(error: Exception) -> Callable[[], Awaitable[Any]]:
    async def fail() -> None:
        raise error

    return fail


async def hangs() -> Any:
    await asyncio.Event().wait()


class SilentQueue(InMemoryTaskQueue):
    """It does not answer."""

    async def depth(self) -> int:
        raise QueueUnavailable("down", cause=Cause(CauseKind.QUEUE, "connection refused"))


class Broken(InMemoryTaskQueue):
    """Answers reads; ``check`` is what its writes do."""

    def __init__(self, check: Callable[[], Awaitable[Any]]) -> None:
        super().__init__(clock=lambda: START)
        self._check = check

    async def check_writes(self) -> None:
        await self._check()


def read(**changes: Any) -> Report:
    queue = changes.pop("queue", None) or InMemoryTaskQueue(clock=lambda: START)
    parts: dict[str, Any] = {
        "read_snapshot": snapshot, "queue": queue, "letters": queue, "probe": queue,
        "max_waiting": 100, "clock": lambda: START, "database_at": "db:5432",
        "queue_at": "redis:6379",
    }  # fmt: skip
    return asyncio.run(Status(**parts | changes).read())


def test_all_parts_are_read() -> None:
    """Database and queue, without an alarm."""
    queue = InMemoryTaskQueue(clock=lambda: START)
    asyncio.run(queue.push(a_task()))

    report = read(queue=queue)

    measured = report.measured
    assert (measured.snapshot, measured.waiting, measured.dead_letters) == (SNAPSHOT, 1, 0)
    assert measured.oldest_task_at == START
    assert (report.alarms, report.must_act) == ([], False)


def test_newest_dead_letter_is_read() -> None:
    """Its reason is part of the alarm."""
    queue = InMemoryTaskQueue(clock=lambda: START)
    asyncio.run(queue.bury(a_task(), reason="older"))
    asyncio.run(queue.bury(a_task(), reason="newer"))

    report = read(queue=queue)

    assert [alarm.sentence for alarm in report.alarms] == ["2 dead letters, the newest: newer."]


def test_database_that_fails_hides_no_queue() -> None:
    """The alarm names the server and the error."""
    cause = Cause(CauseKind.DATABASE, "connection refused")

    report = read(read_snapshot=fails(DatabaseUnavailable("down", cause=cause)))

    assert [(alarm.code, alarm.sentence) for alarm in report.alarms] == [
        ("DATABASE_UNAVAILABLE", "No answer from db:5432: connection refused.")
    ]
    assert (report.measured.at, report.measured.waiting) == (START, 0)
    assert report.must_act


def test_queue_that_fails_hides_no_snapshot() -> None:
    """The same the other way round."""
    report = read(queue=SilentQueue(clock=lambda: START))

    assert [alarm.sentence for alarm in report.alarms] == [
        "No answer from redis:6379: connection refused."
    ]
    assert report.measured.snapshot == SNAPSHOT
    assert report.measured.waiting is None


def test_rejected_write_is_an_alarm() -> None:
    """Although reading works."""
    oom = QueueUnavailable("refused", cause=Cause(CauseKind.QUEUE, "OOM command not allowed"))

    report = read(queue=Broken(fails(oom)))

    assert [(alarm.code, alarm.sentence) for alarm in report.alarms] == [
        ("REDIS_REJECTS_WRITES", "Writes fail at redis:6379: OOM command not allowed.")
    ]


def test_part_that_hangs_is_given_up() -> None:
    """Each after its own time, so that one cannot keep the others from being shown."""
    report = read(read_snapshot=hangs, queue=Broken(hangs), part_seconds=0.01)

    assert [alarm.sentence for alarm in report.alarms] == [
        "No answer from db:5432: nothing within 0.01 s.",
        "Writes fail at redis:6379: nothing within 0.01 s.",
    ]
    assert report.measured.waiting == 0
