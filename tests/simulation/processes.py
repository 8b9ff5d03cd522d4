"""Processes, whose calls over the network fail and which may die or freeze at any of them."""

import asyncio
from collections.abc import Awaitable, Callable, Coroutine
from typing import Any, TypeVar

from domain.errors import (
    DatabaseUnavailable,
    QueueUnavailable,
    StorageUnavailable,
    WearonError,
)
from tests.simulation.fates import Fate
from tests.simulation.world import TIMEOUT_SECONDS, Killed, Violation, World
from tests.support.faults import over_network

FREEZE_SECONDS = 20.0
NEVER_REPEATED = {"create", "create_many", "fail_queued", "undo_many"}
"""No client repeats these by itself, and their replies decide what a caller is answered."""
T = TypeVar("T")


class Process:
    """A process, which may die at any of its calls."""

    def __init__(self, world: World, name: str) -> None:
        self.world = world
        self.name = name
        self.alive = True
        self._running = asyncio.Event()
        self._running.set()
        self._tasks: dict[asyncio.Task[Any], None] = {}
        """In the order in which they began: a seed replays exactly on every machine."""

    def run(self, work: Coroutine[Any, Any, T]) -> asyncio.Task[T]:
        task = asyncio.create_task(work)
        self._tasks[task] = None
        task.add_done_callback(self._ended)
        return task

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._tasks.pop(task)
        error = None if task.cancelled() else task.exception()
        if error is not None and not isinstance(error, Killed | Violation | WearonError):
            self.world.repo.breaches.append(f"{self.name} crashed: {error!r}")

    def has_died(self) -> bool:
        return not self.alive

    def kill(self) -> None:
        """End at once. What its tasks still do has no effect."""
        self.alive = False
        for task in self._tasks:
            task.cancel()

    def freeze(self, seconds: float = FREEZE_SECONDS) -> None:
        self._running.clear()
        asyncio.get_running_loop().call_later(seconds, self._running.set)

    def connect(self, adapter: T, error: Callable[[str, bool], Exception]) -> T:
        """``adapter`` over a network that fails with ``error(call, certainly without effect)``."""
        return over_network(adapter, lambda name, effect: self.call(name, effect, error))

    async def call(
        self, name: str, effect: Callable[[], Awaitable[T]], error: Callable[[str, bool], Exception]
    ) -> T:
        await self.proceed()
        if name == "check":  # The storage's answer is remembered, so nearly none needs the network.
            return await effect()
        number = self.world.calls
        self.world.calls += 1
        fate = self.world.fates.next(f"{self.name} {name}")
        if fate is not Fate.DONE:
            self.world.faults[fate] += 1
        await asyncio.sleep(self.world.fates.pause())
        await self.proceed()
        await self._meet(fate, name, effect, error)
        try:
            result = await self.world.suffer(number, effect)
        finally:
            await self.world.check()
        if fate is Fate.DIE_AFTER:
            self._die()
        if fate is Fate.NO_REPLY:
            await asyncio.sleep(TIMEOUT_SECONDS)
            raise error(name, False)
        if fate is Fate.FALSE_ERROR:
            raise error(name, False)
        await asyncio.sleep(self.world.fates.pause())
        await self.proceed()
        return result

    async def _meet(
        self,
        fate: Fate,
        name: str,
        effect: Callable[[], Awaitable[T]],
        error: Callable[[str, bool], Exception],
    ) -> None:
        """What a fate does before or instead of the call's effect."""
        match fate:
            case Fate.REFUSED:
                raise error(name, True)
            case Fate.UNREACHED:
                await asyncio.sleep(TIMEOUT_SECONDS)
                raise error(name, False)
            case Fate.LATE:
                await asyncio.sleep(TIMEOUT_SECONDS)
                self.world.happen_later(effect)
                raise error(name, False)
            case Fate.DIE_BEFORE:
                self._die()
            case Fate.TWICE if name not in NEVER_REPEATED:
                await effect()
            case Fate.FREEZE:
                self.freeze()
                await self.proceed()

    def _die(self) -> None:
        self.kill()
        raise Killed(self.name)

    async def proceed(self) -> None:
        """Wait while frozen. Raises Killed if dead."""
        await self._running.wait()
        if not self.alive:
            raise Killed(self.name)


def database_error(call: str, _: bool) -> Exception:
    return DatabaseUnavailable(call)


def queue_error(call: str, refused: bool) -> Exception:
    return QueueUnavailable(call, refused=refused)


def storage_error(call: str, _: bool) -> Exception:
    return StorageUnavailable(call)
