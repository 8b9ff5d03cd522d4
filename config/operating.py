"""Builds what operators ask, and what watches the service for them."""

from collections.abc import Callable
from datetime import datetime
from typing import assert_never
from urllib.parse import parse_qs, urlsplit

from adapters.auth.api_keys import key_sha256
from adapters.credits.postgres import PostgresCreditRepo
from adapters.postgres.database import Database
from config import options, policies
from config.closing import Opened, closing
from config.services import Queue, Repositories
from config.settings import Settings
from domain.books import BookChecks
from domain.finding import Finder
from domain.operations import Overview
from domain.ports import CreditRepoPort
from domain.status import Status


def books(settings: Settings, *, repositories: Repositories, opened: Opened) -> BookChecks:
    auditor = _auditor(settings, repositories, opened)
    return BookChecks(
        audit=lambda limit: auditor.audit(limit=limit),
        checks=repositories.book_checks,
        policy=policies.books(settings),
    )


def _auditor(settings: Settings, repositories: Repositories, opened: Opened) -> CreditRepoPort:
    """On a connection of its own, because an audit may take minutes."""
    match settings.database:
        case options.Database.POSTGRES:
            return PostgresCreditRepo(closing(opened, Database(**policies.audits(settings))))
        case options.Database.MEMORY:
            return repositories.accounts
        case unknown:
            assert_never(unknown)


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
        probe=queue,
        max_waiting=settings.max_waiting,
        clock=clock,
        database_at=server_at(settings.database_url, name="PostgreSQL"),
        queue_at=server_at(settings.redis_url, name="Redis"),
    )


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
