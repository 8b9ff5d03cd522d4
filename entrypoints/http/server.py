"""The API process: granian in front, and in each of its workers the application."""

import asyncio
import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, suppress

import structlog
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes
from granian.server import Server as Granian
from litestar import Litestar

from config.container import Container, close
from config.logging import (
    GRANIAN_LOGGING,
    access_line,
    buffer_access_logs,
    configure_logging,
    flush_logs,
)
from config.servers import die_with_parent
from config.settings import Settings, load_settings
from domain.errors import Unavailable
from domain.submission import Submission
from entrypoints.gc_tuning import freeze_startup_objects
from entrypoints.http.app import Lifespan, Services, create_app
from entrypoints.http.request_info import merge_request_info

TEND_SECONDS = 1.0
"""How often pushed tasks are confirmed, and the queue measured; the settings refuse a
``push_again_seconds`` that is too short for it."""

STOP_SECONDS = 20
"""How long a worker may take to finish its requests: more than one may last, except a slow upload,
of which nothing is kept then and which can be sent again. Without it granian waits for ever for a
worker that was still starting when it was told to stop."""

log = structlog.get_logger(__name__)


def serve_http(settings: Settings, *, target: str = "entrypoints.http.server:app") -> None:
    """Serve until SIGTERM or SIGINT; requests in flight are finished first.

    Settings that the workers need and that are missing are reported here, before they start.
    """
    configure_logging(settings)
    services_of(Container(settings=settings))
    Granian(
        target=target,
        factory=True,
        interface=Interfaces.ASGI,
        address=settings.host,
        port=settings.port,
        workers=settings.api_workers,
        loop=Loops.uvloop,
        runtime_mode=RuntimeModes.st,
        http=HTTPModes.http1,
        websockets=False,
        workers_kill_timeout=STOP_SECONDS,
        log_dictconfig=GRANIAN_LOGGING,
    ).serve()


def app() -> Litestar:
    """What each of granian's workers runs."""
    # Granian's main process, killed, would leave its workers serving.
    die_with_parent(signal.SIGTERM, os.getppid())
    settings = load_settings(os.environ)
    configure_logging(settings, merge_request_info)
    buffer_access_logs()
    made = application(Container(settings=settings))
    freeze_startup_objects()
    return made


def application(container: Container, *lifespan: Lifespan) -> Litestar:
    """The application on its adapters; further ``lifespan``s run inside the usual one."""

    @asynccontextmanager
    async def connected(_: Litestar) -> AsyncIterator[None]:
        tending = asyncio.create_task(_tend(container.submission()))
        try:
            yield
        finally:
            tending.cancel()
            await asyncio.gather(tending, return_exceptions=True)
            with suppress(Unavailable):  # Recovery treats what stays unconfirmed as never pushed.
                await container.submission().confirm_pushed()
            await close(container)
            flush_logs()

    settings: Settings = container.settings()
    return create_app(
        services_of(container),
        lifespan=[connected, *lifespan],
        access_line=access_line(settings),
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.fetch_max_bytes,
    )


def services_of(container: Container) -> Services:
    """Raises ``SettingsError`` where something that the API needs is not set."""
    return Services(
        submission=container.submission(),
        views=container.views(),
        sessions=container.sessions(),
        credits=container.accounts(),
        authenticate=container.authenticate(),
        readiness=container.readiness(),
        uploads=container.uploads(),
        files=container.files(),
        receiver=container.receiver(),
        samples=container.samples(),
        clock=container.clock(),
    )


async def _tend(submission: Submission) -> None:
    """What a submission leaves to be done for many at once."""
    while True:
        flush_logs()
        for duty in (submission.measure_queue, submission.confirm_pushed):
            try:
                await duty()
            except Unavailable as error:
                log.warning("duty_postponed", duty=duty.__name__, cause=type(error).__name__)
            except Exception:
                log.exception("duty_crashed", duty=duty.__name__)
        await asyncio.sleep(TEND_SECONDS)
