"""Builds what operators ask: the status, and the search for whatever they were given."""

from collections.abc import Awaitable, Callable
from datetime import datetime
from urllib.parse import parse_qs, urlsplit

from adapters.auth.api_keys import key_sha256
from config.services import Queue, Repositories
from config.settings import Settings
from domain.finding import Finder
from domain.operations import Overview
from domain.status import Status


def server_at(url: str | None, *, name: str) -> str:
    """The host and port of a URL, or its socket, without user, password and other parameters;
    ``name`` without a URL."""
    parts = urlsplit(url or "")
    place = (
        parts.netloc.rpartition("@")[2]
        or ",".join(parse_qs(parts.query).get("host", []))
        or (parts.path if parts.scheme == "unix" else "")
    )
    return f"{name} at {place}" if place else name


def status(
    settings: Settings,
    *,
    overview: Overview,
    queue: Queue,
    clock: Callable[[], datetime],
) -> Status:
    return Status(
        read_snapshot=overview.snapshot,
        queue=queue,
        letters=queue,
        check_writes=write_check(queue),
        max_waiting=settings.max_waiting,
        clock=clock,
        database_at=server_at(settings.database_url, name="PostgreSQL"),
        queue_at=server_at(settings.redis_url, name="Redis"),
    )


def write_check(queue: Queue) -> Callable[[], Awaitable[None]] | None:
    """Tries whether the queue accepts writes, if its adapter can."""
    check: Callable[[], Awaitable[None]] | None = getattr(queue, "check_writes", None)
    return check


def finder(repositories: Repositories) -> Finder:
    return Finder(
        reads=repositories.operator_reads,
        accounts=repositories.accounts,
        stores=repositories.stores,
        api_keys=repositories.api_keys,
        client_tokens=repositories.client_tokens,
        service_keys=repositories.service_keys,
        hash_secret=key_sha256,
    )
