"""What a process closes at its end."""

from contextlib import AsyncExitStack
from typing import TYPE_CHECKING, TypeAlias, TypeVar

from config.services import Closable

if TYPE_CHECKING:
    from config.container import Container

R = TypeVar("R", bound=Closable)

Opened: TypeAlias = AsyncExitStack[bool | None]


def closing(opened: Opened, resource: R) -> R:
    """Have ``close`` close ``resource``."""
    opened.push_async_callback(resource.close)
    return resource


async def close(container: "Container") -> None:
    """Close the services that were built; call once, at the end of the process."""
    await container.opened().aclose()
