"""What ends a stream: its client leaves, or the server stops."""

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from litestar.types import Receive

from domain.watches import Watch

DRAIN = "drain"
"""The name, in the application's state, of the function that ends all streams."""


@asynccontextmanager
async def ended_by_disconnect(receive: Receive, watch: Watch) -> AsyncIterator[None]:
    """End ``watch`` as soon as its client has left."""
    leaving = asyncio.create_task(_end_at_disconnect(receive, watch))
    try:
        yield
    finally:
        leaving.cancel()


async def _end_at_disconnect(receive: Receive, watch: Watch) -> None:
    while (await receive())["type"] != "http.disconnect":
        pass
    watch.end()
