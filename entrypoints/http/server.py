"""The API process: granian in front, and the application in each of its workers."""

import asyncio
import os
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager, suppress

import structlog
from granian.constants import HTTPModes, Interfaces, Loops, RuntimeModes
from granian.server import Server as Granian
from litestar import Litestar

from config.container import Container, close
from config.loading import load_settings
from config.logging import (
    GRANIAN_LOGGING,
    access_line,
    buffer_access_logs,
    configure_logging,
    flush_logs,
)
from config.processes import end_with_parent
from config.settings import Settings
from domain.credits import Channel, Owner
from domain.errors import Unavailable
from domain.ports import CreditRepoPort, TaskQueuePort
from domain.submission import Submission
from entrypoints.gc_tuning import freeze_startup_objects
from entrypoints.http.app import Lifespan, Services, create_app
from entrypoints.http.public import Check
from entrypoints.http.request_info import merge_request_info

HOUSEKEEPING_SECONDS = 1.0
"""How often pushed tasks are confirmed and the queue is measured. The settings refuse a
``requeue_after_seconds`` that is too short for it."""

STOP_SECONDS = 20
"""How long a worker may take to finish its requests. Every request fits, except a slow upload, of
which nothing is kept and which can be repeated. Without this limit, granian waits forever for a
worker that was told to stop while it was starting."""

log = structlog.get_logger(__name__)


def serve_http(settings: Settings, *, target: str = "entrypoints.http.server:app") -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight.

    Raises ``SettingsError`` for settings that are missing, before any worker starts.
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
    """The application of one granian worker."""
    end_with_parent()
    settings = load_settings(os.environ)
    configure_logging(settings, merge_request_info)
    buffer_access_logs()
    api = application(Container(settings=settings))
    freeze_startup_objects()
    return api


def application(container: Container, *lifespan: Lifespan) -> Litestar:
    """The application on the services of ``container``. Each ``lifespan`` runs inside its own."""

    @asynccontextmanager
    async def connected(_: Litestar) -> AsyncIterator[None]:
        housekeeping = asyncio.create_task(_run_housekeeping(container.submission()))
        try:
            yield
        finally:
            housekeeping.cancel()
            await asyncio.gather(housekeeping, return_exceptions=True)
            with suppress(Unavailable):  # Recovery treats unconfirmed tasks as never pushed.
                await container.submission().confirm_pushed()
            await close(container)
            flush_logs()

    settings = container.settings()
    return create_app(
        services_of(container),
        lifespan=[connected, *lifespan],
        access_line=access_line(settings),
        max_body_bytes=settings.max_body_bytes,
        max_upload_bytes=settings.fetch_max_bytes,
    )


def services_of(container: Container) -> Services:
    """Raises ``SettingsError`` for a setting that the API requires."""
    return Services(
        submission=container.submission(),
        views=container.views(),
        sessions=container.sessions(),
        credits=container.accounts(),
        authenticate=container.authenticate(),
        readiness=readiness_checks(container.accounts(), container.queue()),
        uploads=container.uploads(),
        files=container.files(),
        receiver=container.receiver(),
        samples=container.samples(),
        clock=container.clock(),
    )


def readiness_checks(accounts: CreditRepoPort, queue: TaskQueuePort) -> Mapping[str, Check]:
    """A check of each dependency of the API, by name."""

    async def check_database() -> None:
        await accounts.account(Owner(channel=Channel.B2C, id="readiness"))

    async def check_queue() -> None:
        await queue.depth()

    return {"database": check_database, "queue": check_queue}


async def _run_housekeeping(submission: Submission) -> None:
    """Repeat the work that submissions leave to be done in batches."""
    while True:
        flush_logs()
        for duty in (submission.measure_queue, submission.confirm_pushed):
            try:
                await duty()
            except Unavailable as error:
                log.warning("duty_postponed", duty=duty.__name__, cause=str(error.cause))
            except Exception:
                log.exception("duty_crashed", duty=duty.__name__)
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
