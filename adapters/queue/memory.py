"""The task queue in this process's memory."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from datetime import datetime
from uuid import UUID, uuid4

from adapters.queue.payload import MAX_DEAD, MAX_LETTER_BYTES, decode, encode
from domain.ports import DeadLetterPort, QueueProbePort, TaskQueuePort
from domain.tasks import DeadLetter, GenerationTask, UnreadableTask


class InMemoryTaskQueue(TaskQueuePort, QueueProbePort, DeadLetterPort):
    """Lost at exit. Keeps the bytes that Redis would keep: ``messages[-1]`` is popped next."""

    def __init__(self, *, clock: Callable[[], datetime], max_dead: int = MAX_DEAD) -> None:
        self._clock = clock
        self.messages: deque[bytes] = deque()
        self.letters: deque[DeadLetter] = deque(maxlen=max_dead)
        self._buried_once: deque[UUID] = deque(maxlen=max_dead)
        self._arrived = asyncio.Event()

    async def push(self, task: GenerationTask) -> None:
        self.messages.appendleft(encode(task))
        self._arrived.set()

    async def push_many(self, tasks: Sequence[GenerationTask]) -> None:
        self.messages.extendleft(map(encode, tasks))
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

    async def check_writes(self) -> None:
        """Memory takes them until the process ends."""

    async def bury(
        self, message: GenerationTask | UnreadableTask, *, reason: str, once: bool = False
    ) -> None:
        if once and message.session_id is not None:
            if message.session_id in self._buried_once:
                return
            self._buried_once.append(message.session_id)
        raw = message.raw if isinstance(message, UnreadableTask) else encode(message)
        self.letters.append(
            DeadLetter(
                id=uuid4(),
                raw=raw[:MAX_LETTER_BYTES],
                reason=reason,
                session_id=message.session_id,
                buried_at=self._clock(),
                size=len(raw),
            )
        )

    async def dead(self, *, limit: int) -> list[DeadLetter]:
        return list(reversed(self.letters))[:limit]

    async def get(self, letter_id: UUID) -> DeadLetter | None:
        return next((letter for letter in self.letters if letter.id == letter_id), None)

    async def count(self) -> int:
        return len(self.letters)

    async def requeue(self, letter_id: UUID) -> bool:
        letter = await self.get(letter_id)
        if letter is None or letter.is_truncated:
            return False
        self.letters.remove(letter)
        if letter.session_id is not None and letter.session_id in self._buried_once:
            self._buried_once.remove(letter.session_id)
        self.messages.appendleft(letter.raw)
        self._arrived.set()
        return True

    async def discard(self, letter_id: UUID) -> bool:
        letter = await self.get(letter_id)
        if letter is None:
            return False
        self.letters.remove(letter)
        return True
