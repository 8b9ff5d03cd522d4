"""A way to a server on which what is sent can get stuck."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path

HOST = "127.0.0.1"


class Proxy:
    """A TCP port in front of a unix socket. While ``requests`` or ``replies`` is cleared, what
    goes in that direction waits."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._links: set[asyncio.Task[None]] = set()
        self.port = 0
        self.requests, self.replies = asyncio.Event(), asyncio.Event()
        self.requests.set()
        self.replies.set()

    @asynccontextmanager
    async def running(self) -> AsyncIterator["Proxy"]:
        server = await asyncio.start_server(self._serve, HOST, 0)
        self.port = server.sockets[0].getsockname()[1]
        try:
            yield self
        finally:
            server.close()
            await self.cut()

    async def cut(self) -> None:
        """End every connection that there is."""
        for link in self._links:
            link.cancel()
        await asyncio.gather(*self._links, return_exceptions=True)
        self._links.clear()

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        link = asyncio.current_task()
        assert link is not None
        self._links.add(link)
        up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
        try:
            async with asyncio.TaskGroup() as directions:
                directions.create_task(_pass_on(reader, up_writer, self.requests))
                directions.create_task(_pass_on(up_reader, writer, self.replies))
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            writer.close()
            up_writer.close()


async def _pass_on(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, way: asyncio.Event
) -> None:
    while data := await reader.read(65_536):
        await way.wait()
        writer.write(data)
        await writer.drain()
    writer.close()
