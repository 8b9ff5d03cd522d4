"""The console's process: its services and its HTTP server."""

import os
import signal
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from importlib.metadata import version
from urllib.parse import urlsplit

from litestar import Litestar
from uvicorn.server import Server

from config import console
from config.closing import close
from config.container import Container
from config.loading import load_settings
from config.logging import configure_logging
from config.settings import Settings
from domain.picture_ports import PictureStoragePort
from entrypoints.console.app import create_app
from entrypoints.console.services import Reading, Services, Setup
from entrypoints.http.connections import ConnectionConfig, ConnectionLimits
from entrypoints.http.request_info import new_request_id
from entrypoints.metrics import Role, serving_metrics

MAX_CONNECTIONS = 200
"""People with a few tabs each."""
STOP_SECONDS = 5


def serve_console(settings: Settings) -> None:
    """Serve until SIGTERM or SIGINT, then finish the requests in flight and return. Raises
    ``SettingsError`` before anything starts, and ``SystemExit`` if the application does not
    start."""
    settings.require("console_secret")
    config = ConnectionConfig(
        application,
        limits=_limits(settings),
        host=settings.console_host,
        port=settings.console_port,
        processes=1,
        stop_seconds=STOP_SECONDS,
    )
    server = Server(config)
    for signum in (signal.SIGTERM, signal.SIGINT):
        signal.signal(signum, server.handle_exit)
    with serving_metrics(settings, Role.CONSOLE):
        server.run()


def _limits(settings: Settings) -> ConnectionLimits:
    return ConnectionLimits(
        connections=MAX_CONNECTIONS,
        headers=settings.http_max_headers,
        header_bytes=settings.http_max_header_bytes,
        header_seconds=settings.http_header_seconds,
        idle_seconds=settings.http_idle_seconds,
        write_seconds=settings.http_write_seconds,
    )


def application() -> Litestar:
    """The application, on services that are closed at its end."""
    settings = load_settings(os.environ)
    configure_logging(settings)
    container = Container(settings=settings)

    @asynccontextmanager
    async def connected(_: Litestar) -> AsyncIterator[None]:
        try:
            yield
        finally:
            await close(container)

    return create_app(services_of(container), lifespan=[connected])


def services_of(container: Container) -> Services:
    """Raises ``SettingsError`` without the console's secret."""
    settings = container.settings()
    return Services(
        access=console.access(container),
        actions=console.actions(container, new_request_id=new_request_id),
        reading=_reading(container),
        setup=Setup(
            environment=settings.environment,
            version=version("wearon"),
            read_only=settings.console_read_only,
            user_header=settings.console_user_header,
            picture_origin=_picture_origin(container.storage()),
        ),
        clock=container.clock(),
        new_id=container.new_id(),
    )


def _reading(container: Container) -> Reading:
    repositories = container.repositories()
    return Reading(
        report=container.status().read,
        reads=container.operator_reads(),
        sessions=container.sessions(),
        queue=container.queue(),
        letters=container.dead_letters(),
        credits=container.accounts(),
        owners=container.owners(),
        stores=repositories.stores,
        api_keys=container.api_keys(),
        audit_log=container.audit_log(),
        views=container.views(),
        finder=container.finder(),
        storage=container.storage(),
        upload_key=console.key_of_upload(container),
    )


def _picture_origin(storage: PictureStoragePort) -> str:
    """Where the storage's links lead. Signing one needs no connection."""
    parts = urlsplit(storage.url("any"))
    return f"{parts.scheme}://{parts.netloc}"
