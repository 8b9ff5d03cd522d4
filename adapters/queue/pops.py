"""Batching of pops: waiting pops share one blocking command, and one RPOP for further messages."""

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from contextvars import Context

from domain.errors import Unavailable

Take = Callable[[int], Awaitable[Sequence[bytes]]]
"""RPOP: takes up to this many messages, without waiting."""

Await = Callable[[float], Awaitable[bytes | None]]
"""BRPOP: waits up to this many seconds for the next message."""

PutBack = Callable[[Sequence[bytes]], Awaitable[None]]
"""Returns messages to the head of the queue; the last one of them is taken next."""

TURNS_TO_BEGIN = 2


class SharedPops:
    """Hands messages to waiting pops, first come, first served. Never takes more messages than
    there are waiting pops: the message of a cancelled pop goes to another pop, or back."""

    def __init__(self, *, take: Take, await_next: Await, put_back: PutBack) -> None:
        self._take = take
        self._await_next = await_next
        self._put_back = put_back
        self._waiting: deque[tuple[float, asyncio.Future[bytes | None]]] = deque()
        self._runner: asyncio.Task[None] | None = None
        self._last_take_was_full = False
        """The last RPOP filled the whole batch, so skip BRPOP and try to take another batch."""

    async def pop(self, timeout_seconds: float) -> bytes | None:
        """The next message; None after ``timeout_seconds``, or after the shorter timeout of another
        waiting pop: all pops of a process should use the same. Raises the commands' errors."""
        loop = asyncio.get_running_loop()
        message: asyncio.Future[bytes | None] = loop.create_future()
        self._waiting.append((loop.time() + timeout_seconds, message))
        if self._runner is None:
            self._runner = asyncio.create_task(self._run(), context=Context())
        return await message

    async def _run(self) -> None:
        try:
            more = self._last_take_was_full
            while self._live():
                more = await (self._take_more() if more else self._await_one())
        except Exception as error:  # noqa: BLE001 - without it, the waiting pops would hang
            for message in self._live():
                message.set_exception(error)
        finally:
            self._runner = None

    async def _await_one(self) -> bool:
        """Wait for a message until the first pop times out; returns whether one came."""
        patience = min(deadline for deadline, _ in self._waiting)
        seconds = max(0.01, patience - asyncio.get_running_loop().time())
        found = await self._await_next(seconds)
        if found is not None:
            await self._hand_out([found])
            # Let the pop's caller send its claim before we ask for more: sending a command takes
            # as long as everything that comes before the claim.
            for _ in range(TURNS_TO_BEGIN):
                await asyncio.sleep(0)
            return True
        for message in self._live():
            message.set_result(None)
        return False

    async def _take_more(self) -> bool:
        """Take a message for each waiting pop; returns whether there may be more."""
        wanted = len(self._live())
        found = await self._take(wanted)
        self._last_take_was_full = len(found) == wanted
        await self._hand_out(found)
        return self._last_take_was_full

    async def _hand_out(self, found: Sequence[bytes]) -> None:
        live = self._live()
        for message, raw in zip(live, found, strict=False):
            message.set_result(raw)
        if len(found) > len(live):
            with suppress(Unavailable):  # The messages are lost then; recovery pushes them again.
                await self._put_back(found[len(live) :][::-1])

    def _live(self) -> list[asyncio.Future[bytes | None]]:
        """The pops that still wait."""
        self._waiting = deque(item for item in self._waiting if not item[1].done())
        return [message for _, message in self._waiting]
