"""A network proxy in front of a server: its data can get stuck, be delayed, or be lost."""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from dataclasses import dataclass
from pathlib import Path

HOST = "127.0.0.1"


def no_delay(_: bytes) -> float:
    return 0.0


@dataclass(slots=True)
class _Connection:
    """With ``loses_replies`` no reply gets through; with ``is_cut`` the first lost reply closes the
    connection. ``to_replace`` counts the next replies that are replaced."""

    loses_replies: bool = False
    is_cut: bool = False
    to_replace: int = 0


class Proxy:
    """A TCP port in front of a unix socket. While the event ``requests`` or ``replies`` is cleared,
    data in that direction waits. ``delay`` returns the seconds by which a piece of data is late."""

    def __init__(self, upstream: Path) -> None:
        self._upstream = upstream
        self._server: asyncio.Server | None = None
        self._connections: set[asyncio.Task[None]] = set()
        self._loss: tuple[bytes, bool] | None = None
        self._lost_count = 0
        self._replacement: tuple[bytes, bytes] | None = None
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
        """Accept connections, always on the same port."""
        self._server = await asyncio.start_server(self._serve, HOST, self.port)
        self.port = self._server.sockets[0].getsockname()[1]

    async def refuse(self) -> None:
        """Close every connection, and accept none until ``listen``."""
        if self._server is not None:
            self._server.close()
            self._server = None
        await self.cut()

    async def cut(self) -> None:
        """Close every connection."""
        connections = list(self._connections)
        for connection in connections:
            connection.cancel()
        await asyncio.gather(*connections, return_exceptions=True)

    def lose_replies(self, to: bytes, *, cut: bool) -> None:
        """From now on, forward each request that contains ``to``, but no further reply on its
        connection: silence, or with ``cut`` a closed connection."""
        self._loss = (to, cut)

    def replace_replies(self, to: bytes, reply: bytes) -> None:
        """From now on, forward each request that contains ``to``, and answer it with ``reply``: as
        a proxy does that loses track of a request after passing it on."""
        self._replacement = (to, reply)

    def lose_nothing(self) -> int:
        """Undo ``lose_replies`` and ``replace_replies``. Returns the number of connections that
        lost replies, and of replies that were replaced."""
        lost, self._loss, self._lost_count = self._lost_count, None, 0
        self._replacement = None
        return lost

    async def _serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = asyncio.current_task()
        assert task is not None
        self._connections.add(task)
        try:
            up_reader, up_writer = await asyncio.open_unix_connection(self._upstream)
            try:
                connection = _Connection()
                async with asyncio.TaskGroup() as directions:
                    directions.create_task(self._forward_requests(connection, reader, up_writer))
                    directions.create_task(self._forward_replies(connection, up_reader, writer))
            finally:
                up_writer.close()
        except* (OSError, asyncio.CancelledError):
            pass
        finally:
            self._connections.discard(task)
            writer.close()

    async def _forward_requests(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            await self._wait(data, self.requests)
            if self._loss is not None and self._loss[0] in data:
                connection.loses_replies, connection.is_cut = True, self._loss[1]
                self._lost_count += 1
            if self._replacement is not None and self._replacement[0] in data:
                connection.to_replace += 1
                self._lost_count += 1
            writer.write(data)
            await writer.drain()
        writer.close()

    async def _forward_replies(
        self, connection: _Connection, reader: asyncio.StreamReader, writer: asyncio.StreamWriter
    ) -> None:
        while data := await reader.read(65_536):
            await self._wait(data, self.replies)
            if connection.is_cut:
                raise ConnectionAbortedError
            if connection.to_replace and self._replacement is not None:
                connection.to_replace -= 1
                data = self._replacement[1]
            if not connection.loses_replies:
                writer.write(data)
                await writer.drain()
        writer.close()

    async def _wait(self, data: bytes, gate: asyncio.Event) -> None:
        if seconds := self.delay(data):
            await asyncio.sleep(seconds)
        await gate.wait()
