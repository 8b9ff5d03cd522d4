"""The check of the books beside a worker's slots, in one of all workers at a time."""

import asyncio
from random import Random

import structlog

from domain.books import BookChecks
from domain.errors import Unavailable
from domain.operator_ports import BookCheck
from entrypoints.worker.stop import Stop

log = structlog.get_logger(__name__)

LOOK_SECONDS = 4.0
"""About how often each worker looks whether a check is due."""


class CheckLoop:
    """Until a stop, which ends a check in the middle: it may take minutes."""

    def __init__(self, books: BookChecks, *, random: Random, stop: Stop) -> None:
        self._books = books
        self._random = random
        self._stop = stop

    async def run(self) -> bool:
        checking = asyncio.create_task(self._run(), name="checks")
        stopping = asyncio.create_task(self._stop.begun())
        try:
            await asyncio.wait((checking, stopping), return_when=asyncio.FIRST_COMPLETED)
        finally:
            for task in (checking, stopping):
                task.cancel()
            await asyncio.wait((checking, stopping))
        return True

    async def _run(self) -> None:
        while True:
            await asyncio.sleep(LOOK_SECONDS * self._random.uniform(0.8, 1.2))
            try:
                check = await self._books.run_once()
            except Unavailable as error:
                log.warning("books_unchecked", cause=str(error.cause))
            except Exception:
                log.exception("books_check_crashed")
            else:
                if check is not None:
                    _log(check)


def _log(check: BookCheck) -> None:
    seconds = round(check.took.total_seconds(), 3)
    if check.discrepancies:
        log.error(
            "books_wrong", discrepancies=check.discrepancies, first=check.first, seconds=seconds
        )
    else:
        log.info("books_checked", seconds=seconds)
