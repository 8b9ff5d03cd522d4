"""What the service looks like now: all that is known of it, and what is wrong.

Each part is read on its own and in a bounded time. A part that fails is an alarm, and the others
are shown all the same.
"""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

from domain.alarms import Alarm, Measured, alarms, must_act
from domain.errors import Unavailable
from domain.operator_ports import Snapshot
from domain.ports import DeadLetterPort, QueueProbePort, TaskQueuePort
from domain.tasks import GenerationTask

PART_SECONDS = 2.0
"""How long each part may take."""

T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What was measured, and the alarms that follow from that."""

    measured: Measured
    alarms: list[Alarm]

    @property
    def must_act(self) -> bool:
        """Whether a person must act now."""
        return must_act(self.alarms)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Queue:
    """What the queue told; None where it told nothing."""

    waiting: int | None = None
    oldest_at: datetime | None = None
    letters: int | None = None
    newest_reason: str | None = None


class Status:
    """Reads the service's state for operators. ``database_at`` and ``queue_at`` name the
    servers, without passwords."""

    def __init__(
        self,
        *,
        read_snapshot: Callable[[], Awaitable[Snapshot]],
        queue: TaskQueuePort,
        letters: DeadLetterPort,
        probe: QueueProbePort,
        max_waiting: int,
        clock: Callable[[], datetime],
        database_at: str = "the database",
        queue_at: str = "Redis",
        part_seconds: float = PART_SECONDS,
    ) -> None:
        self._read_snapshot = read_snapshot
        self._queue = queue
        self._letters = letters
        self._probe = probe
        self._max_waiting = max_waiting
        self._clock = clock
        self._database_at = database_at
        self._queue_at = queue_at
        self._part_seconds = part_seconds

    async def read(self) -> Report:
        """All parts at once. Never raises ``Unavailable``."""
        (snapshot, no_database), (queue, no_queue), (_, no_writes) = await asyncio.gather(
            self._part(self._read_snapshot, f"No answer from {self._database_at}"),
            self._part(self._read_queue, f"No answer from {self._queue_at}"),
            self._part(self._probe.check_writes, f"Writes fail at {self._queue_at}"),
        )
        queue = queue or _Queue()
        measured = Measured(
            at=snapshot.at if snapshot else self._clock(),
            snapshot=snapshot,
            waiting=queue.waiting,
            oldest_task_at=queue.oldest_at,
            dead_letters=queue.letters,
            newest_reason=queue.newest_reason,
            database_problem=no_database,
            queue_problem=no_queue,
            write_problem=no_writes,
            max_waiting=self._max_waiting,
        )
        return Report(measured=measured, alarms=alarms(measured))

    async def _read_queue(self) -> _Queue:
        oldest = await self._queue.oldest()
        letters = await self._letters.count()
        newest = await self._letters.dead(limit=1) if letters else []
        return _Queue(
            waiting=await self._queue.depth(),
            oldest_at=oldest.created_at if isinstance(oldest, GenerationTask) else None,
            letters=letters,
            newest_reason=newest[0].reason if newest else None,
        )

    async def _part(
        self, read: Callable[[], Awaitable[T]], failure: str
    ) -> tuple[T | None, str | None]:
        """What was read, or else the problem."""
        try:
            async with asyncio.timeout(self._part_seconds):
                return await read(), None
        except Unavailable as error:
            return None, f"{failure}: {error.cause.detail.rstrip('.')}"
        except TimeoutError:
            return None, f"{failure}: nothing within {self._part_seconds:g} s"
