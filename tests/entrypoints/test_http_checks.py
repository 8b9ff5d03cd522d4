"""The readiness probe's check of the queue, which is made once for all who ask."""

import asyncio

import pytest

from domain.causes import Cause, CauseKind
from domain.errors import QueueUnavailable
from entrypoints.http.checks import LATELY_SECONDS, CheckedLately

pytestmark = pytest.mark.anyio

CAUSE = Cause(CauseKind.QUEUE, "OOM command not allowed")


class Server:
    def __init__(self) -> None:
        self.seconds = 100.0
        self.asked = 0
        self.cause: Cause | None = None
        self.check = CheckedLately(self._answer, clock=lambda: self.seconds).check

    async def _answer(self) -> None:
        self.asked += 1
        await asyncio.sleep(0)
        if self.cause is not None:
            raise QueueUnavailable("no", refused=True, cause=self.cause)


async def test_check_is_shared() -> None:
    """By those who ask at once, and by those who ask soon after."""
    server = Server()
    await asyncio.gather(*(server.check() for _ in range(10)))
    server.seconds += LATELY_SECONDS - 0.01
    await server.check()

    assert server.asked == 1


async def test_failure_is_shared_with_its_cause() -> None:
    server = Server()
    server.cause = CAUSE
    ended = await asyncio.gather(*(server.check() for _ in range(3)), return_exceptions=True)

    causes = [error.cause for error in ended if isinstance(error, QueueUnavailable)]
    assert causes == [CAUSE] * 3
    assert server.asked == 1


async def test_change_is_noticed_after_a_moment() -> None:
    """Both ways."""
    server = Server()
    await server.check()
    server.cause = CAUSE
    server.seconds += LATELY_SECONDS
    with pytest.raises(QueueUnavailable):
        await server.check()
    server.cause = None
    server.seconds += LATELY_SECONDS

    await server.check()


async def test_interrupted_check_is_made_again() -> None:
    """By the next who asks."""
    server = Server()
    asking = asyncio.create_task(server.check())
    await asyncio.sleep(0)
    asking.cancel()
    await asyncio.wait((asking,))
    server.cause = CAUSE

    with pytest.raises(QueueUnavailable):
        await server.check()
    assert server.asked == 2
