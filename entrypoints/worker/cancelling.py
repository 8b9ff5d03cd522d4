"""Hears at once of sessions that are to be cancelled. Without it, a worker learns of them when it
renews their leases."""

import asyncio
from collections.abc import Callable
from contextlib import aclosing, suppress
from random import Random
from uuid import UUID

from domain.changes import ChangeFeedPort
from domain.errors import QueueUnavailable
from entrypoints.worker.stop import Stop

FIRST_PAUSE_SECONDS = 0.2
LONGEST_PAUSE_SECONDS = 5.0


class CancelLoop:
    """Tells ``check_now`` of each session that ``feed`` names, until a stop."""

    def __init__(
        self,
        feed: ChangeFeedPort,
        *,
        check_now: Callable[[UUID], None],
        random: Random,
        stop: Stop,
    ) -> None:
        self._feed = feed
        self._check_now = check_now
        self._random = random
        self._stop = stop

    async def run(self) -> bool:
        tasks = [asyncio.create_task(work) for work in (self._listen(), self._stop.begun())]
        try:
            ended, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in ended:
                task.result()
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
        return True

    async def _listen(self) -> None:
        pause = FIRST_PAUSE_SECONDS
        while True:
            with suppress(QueueUnavailable):  # Renewals tell, until it hears again.
                async with aclosing(self._feed.listen()) as heard:
                    async for changes in heard:
                        pause = FIRST_PAUSE_SECONDS
                        for change in changes:
                            self._check_now(change.session_id)
            await asyncio.sleep(self._random.uniform(pause / 2, pause))
            pause = min(2 * pause, LONGEST_PAUSE_SECONDS)
