"""The task queue in this process's memory."""

import asyncio
from collections import deque
from collections.abc import Sequence

from adapters.queue.payload import decode, encode
from domain.ports import TaskQueuePort
from domain.tasks import GenerationTask, UnreadableTask


class InMemoryTaskQueue(TaskQueuePort):
    """Gone at exit. Keeps the same bytes that Redis would: ``messages[-1]`` is popped next."""

    def __init__(self) -> None:
        self.messages: deque[bytes] = deque()
        self.dead: list[UnreadableTask] = []
        self._arrived = asyncio.Event()

    async def push(self, task: GenerationTask) -> None:
        self.messages.appendleft(encode(task))
        self._arrived.set()

    async def push_next(self, tasks: Sequence[GenerationTask]) -> None:
        self.messages.extend(encode(task) for task in tasks)
        self._arrived.set()

    async def pop(self, *, timeout_seconds: float) -> GenerationTask | UnreadableTask | None:
        try:
            async with asyncio.timeout(timeout_seconds):
                while not self.messages:
                    self._arrived.clear()
                    await self._arrived.wait()
        except TimeoutError:
            return None
        return decode(self.messages.pop())

    async def oldest(self) -> GenerationTask | UnreadableTask | None:
        return decode(self.messages[-1]) if self.messages else None

    async def depth(self) -> int:
        return len(self.messages)

    async def bury(self, message: UnreadableTask) -> None:
        self.dead.append(message)
