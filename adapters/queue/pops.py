"""Pops that wait at the same time share one blocking command, and what comes in together."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context

from domain.errors import Unavailable

Take = Callable[[int], Awaitable[Sequence[bytes]]]
"""Takes up to so many messages that are there now."""

Await = Callable[[float], Awaitable[bytes | None]]
"""Waits up to so many seconds for the next message."""

PutBack = Callable[[Sequence[bytes]], Awaitable[None]]
"""Puts messages back before all others; the last one of them is taken next."""

TURNS_TO_BEGIN = 2


class SharedPops:
    """Hands messages to those that wait for one, first come, first served. Never takes more than
    there are waiting: what arrives for one that has been cancelled goes to another, or back."""

    def __init__(self, *, take: Take, await_next: Await, put_back: PutBack) -> None:
        self._take = take
        self._await_next = await_next
        self._put_back = put_back
        self._waiting: deque[tuple[float, asyncio.Future[bytes | None]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._were_enough = False
        """Whether the last take brought one for each: then there is no need to wait for one first,
        which would part it from those that come with it."""

    async def pop(self, timeout_seconds: float) -> bytes | None:
        """The next message; None once ``timeout_seconds`` are over, or those of another that waits:
        all of one process are meant to wait equally long. Raises what the commands raise."""
        loop = asyncio.get_running_loop()
        message: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append((loop.time() + timeout_seconds, message))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), context=Context())
        return await message

    async def _run(self) -> None:
        try:
            more = self._were_enough
            while self._live():
                more = await (self._take_more() if more else self._await_one())
        except Exception as error:  # noqa: BLE001 - whatever it is, they would wait for ever
            for message in self._live():
                message.set_exception(error)
        finally:
            self._runner = None

    async def _await_one(self) -> bool:
        """Wait for a message as long as all may; returns whether one came."""
        patience = min(deadline for deadline, _ in self._waiting)
        seconds = max(0.01, patience - asyncio.get_running_loop().time())
        found = await self._await_next(seconds)
        if found is not None:
            await self._hand_out([found])
            # Whoever has it begins with it before more is asked for: sending a command takes as
            # long as all else until the claim is sent, which is what these turns of the loop do.
            for _ in range(TURNS_TO_BEGIN):
                await asyncio.sleep(0)
            return True
        for message in self._live():
            message.set_result(None)
        return False

    async def _take_more(self) -> bool:
        """Take a message for each that still waits; returns whether there may be more."""
        wanted = len(self._live())
        found = await self._take(wanted)
        self._were_enough = len(found) == wanted
        await self._hand_out(found)
        return self._were_enough

    async def _hand_out(self, found: Sequence[bytes]) -> None:
        live = self._live()
        for message, raw in zip(live, found, strict=False):
            message.set_result(raw)
        if len(found) > len(live):
            with suppress(Unavailable):  # Then the queue lost them, and recovery pushes them again.
                await self._put_back(found[len(live) :][::-1])

    def _live(self) -> list[asyncio.Future[bytes | None]]:
        """The messages that are still waited for."""
        self._waiting = deque(item for item in self._waiting if not item[1].done())
        return [message for _, message in self._waiting]
