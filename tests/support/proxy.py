"""A way to a server on which what is sent can get stuck, be late, or be lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


def no_delay(_: bytes) -> float:
    return 0.0


@dataclass(slots=True)
class _Link:
    """A connection. Once ``lost``, nothing comes back on it; to ``cut`` it as well ends it as soon
    as there is a reply to lose."""

    lost: bool = False
    cut: bool = False


class Proxy:
    """A TCP port in front of a unix socket. While ``requests`` or ``replies`` is cleared, what
    goes in that direction waits; ``delay`` says for how many seconds each piece of data is late."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._links: set[asyncio.Task[None]] = set()
        self._to_lose: tuple[bytes, bool] | None = None
        self._lost = 0
        self.port = 0
        self.delay: Callable[[bytes], float] = no_delay
        self.requests, self.replies = asyncio.Event(), asyncio.Event()
        self.requests.set()
        self.replies.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        await self.listen()
        try:
            yield self
        finally:
            await self.refuse()

    async def listen(self) -> None:
        """Take connections; always on the same port."""
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """End every connection, and let nobody connect until ``listen``."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """End every connection that there is."""
        links = list(self._links)
        for link in links:
            link.cancel()
        await asyncio.gather(*links, return_exceptions=True)

    def lose_replies(self, to: bytes, *, cut: bool) -> None:
        """From now on let each request that contains ``to`` arrive, and nothing more come back to
        who sent it: silence, or with ``cut`` the end of the connection."""
        self._to_lose = (to, cut)

    def lose_nothing(self) -> int:
        """Take ``lose_replies`` back. How many connections lost a reply."""
        lost, self._to_lose, self._lost = self._lost, None, 0
        return lost

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._links.add(task)
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
            try:
                link = _Link()
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._pass_requests(link, reader, up_writer))
                    directions.create_task(self._pass_replies(link, up_reader, writer))
            finally:
                up_writer.close()
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._links.discard(task)
            writer.close()

    async def _pass_requests(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            await self._on_its_way(data, self.requests)
            if self._to_lose is not None and self._to_lose[0] in data:
                link.lost, link.cut = True, self._to_lose[1]
                self._lost += 1
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _pass_replies(
        self, link: _Link, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            await self._on_its_way(data, self.replies)
            if link.cut:
                raise ConnectionAbortedError
            if not link.lost:
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _on_its_way(self, data: bytes, way: asyncio.Event) -> None:
        if seconds := self.delay(data):
            await asyncio.sleep(seconds)
        await way.wait()
