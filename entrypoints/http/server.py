"""The API processes: uvicorn with our connections in front of the application."""

import asyncio
import os
import resource
import signal
import sys
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager, suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TypeAlias

import structlog
from litestar import Litestar
from litestar.types import ASGIApp
from msgspec.structs import replace as replace_fields
from uvicorn.config import STARTUP_FAILURE
from uvicorn.server import Server
from uvicorn.supervisors import multiprocess

from config.cells import OWN_CELLS, shared_folder
from config.closing import close
from config.container import Container
from config.loading import load_settings
from config.logging import (
    access_line,
    buffer_access_logs,
    configure_logging,
    flush_logs,
)
from config.processes import end_with_parent
from config.services import Repositories
from config.settings import Settings, SettingsError
from domain.credits import Channel, Owner
from domain.errors import Unavailable
from domain.ports import QueueProbePort
from domain.submission import Submission
from domain.throttle import Throttle
from entrypoints.gc_tuning import freeze_startup_objects
from entrypoints.http.admin import Administration
from entrypoints.http.app import Lifespan, Services, create_app
from entrypoints.http.checks import CheckedLately
from entrypoints.http.connections import (
    SURPLUS,
    UNRESPONSIVE_SECONDS,
    ConnectionConfig,
    ConnectionLimits,
)
from entrypoints.http.door import Authenticator, Door
from entrypoints.http.intake import Intake
from entrypoints.http.playground import Playground
from entrypoints.http.public import Check
from entrypoints.http.request_info import merge_request_info
from entrypoints.metrics import Role, serving_metrics, show_known

SERVICE_NAME = "wearon-api"
"""Of these processes in traces."""

HOUSEKEEPING_SECONDS = 1.0
"""How often pushed tasks are confirmed and the queue is measured. The settings refuse a
``requeue_after_seconds`` that is too short for it."""

CLOSE_SECONDS = 5
"""How long a process may take to close its own connections, once its requests have ended."""

OWN_DESCRIPTORS = 128
"""Descriptors for everything that is not a client's connection."""

RESERVED = SURPLUS + OWN_DESCRIPTORS
"""Descriptors that are not for the connections of clients that are served."""

FEWEST_CONNECTIONS = 64

Application: TypeAlias = Callable[[], ASGIApp]
"""Builds the ASGI application of a process. Picklable, because each API process calls it."""

log = structlog.get_logger(__name__)


def serve_http(settings: Settings, build: Application | None = None) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight and return.

    Raises ``SettingsError`` for settings that are missing, before any process starts, and
    ``SystemExit`` if the application does not start.
    """
    configure_logging(settings)
    services_of(Container(settings=settings, service_name=SERVICE_NAME))
    with _shared_folder(settings) as folder, serving_metrics(settings, Role.API, folder=folder):
        config = ConnectionConfig(
            build or partial(app, folder),
            limits=_limits(settings),
            host=settings.host,
            port=settings.port,
            processes=settings.api_workers,
            stop_seconds=settings.http_stop_seconds,
        )
        if settings.api_workers == 1:
            _serve_here(config)
        else:
            _ApiProcesses(config, [config.bind_socket()]).run_all()


@contextmanager
def _shared_folder(settings: Settings) -> Iterator[Path | None]:
    """Where several API processes share what they count, if that is asked for."""
    if not settings.metrics_port or settings.api_workers == 1:
        yield None
        return
    with shared_folder() as folder:
        yield folder


def _serve_here(config: ConnectionConfig) -> None:
    server = Server(config)
    # uvicorn raises the signal again after its stop. With its handler in place that changes
    # nothing, and the exit status is 0.
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, server.handle_exit)
    server.run()


class _ApiProcess(multiprocess.Process):
    """A process whose parent never waits for its answer. uvicorn's parent does, also for one that
    died when it was asked, and meanwhile replaces no process and sees no signal."""

    _asked_at: float | None = None

    def is_alive(self, timeout: float = UNRESPONSIVE_SECONDS) -> bool:
        """Whether it runs, and was not silent for ``timeout`` since it was asked."""
        if not self.process.is_alive():
            return False
        if self._asked_at is None:
            self._asked_at = time.monotonic()
            self.parent_conn.send(b"ping")
        if self.parent_conn.poll():
            self.parent_conn.recv()
            self._asked_at = None
            return True
        return time.monotonic() - self._asked_at < timeout


class _ApiProcesses(multiprocess.Multiprocess):
    """Several processes that accept connections from one socket. The parent replaces those that
    die, and stops them all."""

    config: ConnectionConfig

    def init_processes(self) -> None:
        # uvicorn has no other way to give it the class.
        multiprocess.Process = _ApiProcess  # type: ignore[misc]
        super().init_processes()

    def run_all(self) -> None:
        """Until a signal. Raises ``SystemExit`` if the application does not start."""
        self.run()
        if any(process.exitcode == STARTUP_FAILURE for process in self.processes):
            sys.exit(STARTUP_FAILURE)

    def join_all(self) -> None:
        """Kill the processes that do not stop within their bound."""
        deadline = time.monotonic() + self.config.stop_seconds + CLOSE_SECONDS
        for process in self.processes:
            process.process.join(max(0.0, deadline - time.monotonic()))
            if process.exitcode is None:
                process.kill()
        super().join_all()


def _limits(settings: Settings) -> ConnectionLimits:
    """The settings' limits, with no more connections than there are descriptors for. Raises
    ``SettingsError`` if those are too few to serve."""
    limits = ConnectionLimits(
        connections=settings.http_max_connections,
        headers=settings.http_max_headers,
        header_bytes=settings.http_max_header_bytes,
        header_seconds=settings.http_header_seconds,
        idle_seconds=settings.http_idle_seconds,
        write_seconds=settings.http_write_seconds,
    )
    descriptors = _raise_descriptor_limit(limits.connections + RESERVED)
    possible = descriptors - RESERVED
    if possible < min(limits.connections, FEWEST_CONNECTIONS):
        raise SettingsError(
            f"The API may open only {descriptors} files (ulimit -n); it needs at least "
            f"{FEWEST_CONNECTIONS + RESERVED}"
        )
    if possible < limits.connections:
        log.warning("few_descriptors", descriptors=descriptors, connections=possible)
    return replace(limits, connections=min(limits.connections, possible))


def _raise_descriptor_limit(wanted: int) -> int:
    """Raise the soft limit as far as the hard one allows, and return how many of ``wanted``
    descriptors there are. API processes inherit the limit."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft == resource.RLIM_INFINITY or soft >= wanted:
        return wanted
    possible = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    resource.setrlimit(resource.RLIMIT_NOFILE, (possible, hard))
    return possible


def _descriptors() -> int:
    """How many files this process may open."""
    soft, _ = resource.getrlimit(resource.RLIMIT_NOFILE)
    return sys.maxsize if soft == resource.RLIM_INFINITY else soft


def app(counted_in: Path | None = None) -> Litestar:
    """The application of one API process, which shares what it counts in a folder."""
    end_with_parent()
    settings = load_settings(os.environ)
    configure_logging(settings, merge_request_info)
    buffer_access_logs()
    if counted_in is not None:
        try:
            OWN_CELLS.share(counted_in)
        except OSError as error:
            log.warning("metrics_not_shared", cause=error.strerror)
    show_known(Role.API)
    # The streams take a share of the connections that are possible here.
    possible = min(settings.http_max_connections, _descriptors() - RESERVED)
    settings = replace_fields(settings, http_max_connections=max(1, possible))
    api = application(Container(settings=settings, service_name=SERVICE_NAME))
    freeze_startup_objects()
    return api


def application(container: Container, *lifespan: Lifespan) -> Litestar:
    """The application on the services of ``container``. Each ``lifespan`` runs inside its own."""

    @asynccontextmanager
    async def connected(_: Litestar) -> AsyncIterator[None]:
        await _check_schema(container.repositories())
        intake = Intake(read_pauses=container.pauses().paused, submission=container.submission())
        with suppress(Unavailable):  # A process that starts meanwhile accepts nothing either.
            await intake.follow_pauses()
        background = [asyncio.create_task(_run_housekeeping(container.submission(), intake))]
        if (keys := container.user_keys()) is not None:
            background.append(asyncio.create_task(keys.run()))
        try:
            yield
        finally:
            for task in background:
                task.cancel()
            await asyncio.gather(*background, return_exceptions=True)
            await container.watching().close()
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
        https_only=settings.public_url.startswith("https:"),
        traced=container.parts().app,
    )


async def _check_schema(repositories: Repositories) -> None:
    """Say in the log why the API will not become ready."""
    try:
        if repositories.schema is not None:
            await repositories.schema.check()
    except Unavailable as error:
        log.warning("not_ready", cause=type(error).__name__, reason=str(error))


def services_of(container: Container) -> Services:
    """Raises ``SettingsError`` for a setting that the API requires."""
    readiness = readiness_checks(container.repositories(), container.queue())
    if (keys := container.user_keys()) is not None:
        readiness["user_keys"] = keys.check
    return Services(
        submission=container.submission(),
        views=container.views(),
        watching=container.watching(),
        sessions=container.sessions(),
        credits=container.accounts(),
        accounts=container.callers_accounts(),
        door=_door(container.settings(), container.authenticate()),
        readiness=readiness,
        uploads=container.uploads(),
        erasure=container.erasure(),
        client_tokens=container.client_tokens(),
        webhooks=container.webhooks(),
        files=container.files(),
        receiver=container.receiver(),
        samples=container.samples(),
        playground=_playground(container),
        clock=container.clock(),
        administration=Administration(
            grants=container.grants(),
            owners=container.owners(),
            stores=container.stores(),
            keys=container.key_issuer(),
        ),
    )


def _playground(container: Container) -> Playground | None:
    settings = container.settings()
    if not settings.serves_playground:
        return None
    return Playground(
        samples_url=f"{settings.public_url}/samples" if settings.serves_samples else None,
        picture_origins=container.picture_origins(),
    )


def _door(settings: Settings, authenticate: Authenticator) -> Door:
    return Door(
        authenticate=authenticate,
        strangers=Throttle(
            settings.strangers_per_minute or None,
            name="requests without a valid credential",
            clock=time.monotonic,
        ),
        reads=Throttle(settings.reads_per_minute or None, name="reads", clock=time.monotonic),
        trusted_proxies=settings.trusted_proxies,
    )


def readiness_checks(repositories: Repositories, queue: QueueProbePort) -> dict[str, Check]:
    """A check of each dependency that every API has, by name."""

    async def check_database() -> None:
        if repositories.schema is not None:
            await repositories.schema.check()
        await repositories.accounts.account(Owner(channel=Channel.B2C, id="readiness"))

    check_queue = CheckedLately(queue.check_writes, clock=time.monotonic)
    return {"database": check_database, "queue": check_queue.check}


async def _run_housekeeping(submission: Submission, intake: Intake) -> None:
    """Repeat the work that submissions leave to be done in batches, and follow the operators'
    pauses."""
    duties = (submission.confirm_pushed, submission.measure_queue, intake.follow_pauses)
    while True:
        flush_logs()
        for duty in duties:  # Replays wait for the first one.
            try:
                await duty()
            except Unavailable as error:
                log.warning("duty_postponed", duty=duty.__name__, cause=str(error.cause))
            except Exception:
                log.exception("duty_crashed", duty=duty.__name__)
        await asyncio.sleep(HOUSEKEEPING_SECONDS)
