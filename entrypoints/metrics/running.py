"""Serves the metrics of a process, or of all API processes of a host."""

import os
from collections.abc import Awaitable, Callable, Iterator
from contextlib import ExitStack, contextmanager
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING

from config.cells import OWN_CELLS, SharedCells
from config.closing import close
from config.container import Container
from config.metrics import OF_API, OF_WORKER
from config.settings import Settings

if TYPE_CHECKING:
    from entrypoints.metrics.page import Page
    from entrypoints.metrics.reading import Read, ServiceReader
    from entrypoints.metrics.server import MetricsServer


class Role(StrEnum):
    """What a process is."""

    API = "api"
    WORKER = "worker"
    CONSOLE = "console"

    @property
    def shows_service(self) -> bool:
        """Whether its page has the state of the service. A worker's has not: the state is wanted
        most when all workers are dead, and a large fleet would read it once per worker."""
        return self is not Role.WORKER


@contextmanager
def serving_metrics(
    settings: Settings, role: Role, *, folder: Path | None = None
) -> "Iterator[MetricsServer | None]":
    """Serve ``/metrics`` during the block, if ``metrics_port`` is set: what this process counts or,
    with ``folder``, the processes that share their cells there. Raises ``SettingsError``."""
    if not settings.metrics_port:
        yield None
        return
    from entrypoints.metrics.reading import ServiceReader
    from entrypoints.metrics.server import MetricsServer

    with ExitStack() as stack:
        reader = None
        if role.shows_service:
            reader = ServiceReader(lambda: _connect(settings))
            stack.callback(reader.close)
        server = MetricsServer(
            settings.metrics_host, settings.metrics_port, _page(role, folder, reader).text
        )
        stack.callback(server.close)
        if reader is not None:
            reader.start()
        server.start()
        yield server


def show_known(role: Role) -> None:
    """Show the counters of ``role`` from the start, at 0."""
    for counter in OF_WORKER if role is Role.WORKER else OF_API:
        counter.show_known()


def _page(role: Role, folder: Path | None, reader: "ServiceReader | None") -> "Page":
    from entrypoints.metrics.page import Page

    shared = None if folder is None else SharedCells(folder)
    return Page(
        role=role.value,
        version=version("wearon"),
        totals=OWN_CELLS.totals if shared is None else shared.totals,
        process_ids=_this_process if shared is None else shared.process_ids,
        report=None if reader is None else reader.read,
    )


def _this_process() -> list[int]:
    return [os.getpid()]


def _connect(settings: Settings) -> "tuple[Read, Callable[[], Awaitable[None]]]":
    container = Container(settings=settings)
    return container.status().read, lambda: close(container)
