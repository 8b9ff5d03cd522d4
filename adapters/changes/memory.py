"""Changes of sessions within one process."""

import asyncio
from collections.abc import AsyncGenerator, Sequence

from domain.changes import Change, ChangeFeedPort, ChangePublisherPort
from domain.sessions import GenerationSession

MAX_UNHEARD = 10_000
"""The changes that wait for one listener. Further ones are lost."""


class InMemoryChanges(ChangePublisherPort, ChangeFeedPort):
    def __init__(self) -> None:
        self._listeners: dict[asyncio.Queue[Change], None] = {}

    def publish(self, session: GenerationSession) -> None:
        change = Change(session_id=session.id, owner=session.owner)
        for heard in self._listeners:
            if not heard.full():
                heard.put_nowait(change)

    async def listen(self) -> AsyncGenerator[Sequence[Change], None]:
        heard: asyncio.Queue[Change] = asyncio.Queue(MAX_UNHEARD)
        self._listeners[heard] = None
        try:
            yield ()
            while True:
                yield [await heard.get()]
        finally:
            self._listeners.pop(heard)
