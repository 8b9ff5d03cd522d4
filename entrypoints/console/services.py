"""What the console's pages are made from, built by the composition root or by a test."""

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import Protocol
from uuid import UUID

from domain.account_ports import AuditLogPort, StoreRepoPort
from domain.accounts import Owners
from domain.console_access import ConsoleAccess
from domain.console_actions import ConsoleActions
from domain.console_ports import Role
from domain.finding import Finder
from domain.operations import DeadLetters
from domain.operator_ports import OperatorReadPort
from domain.picture_ports import PictureStoragePort
from domain.ports import (
    ApiKeyRepoPort,
    CreditRepoPort,
    DeadLetterPort,
    SessionReadPort,
    TaskQueuePort,
)
from domain.status import Report
from domain.views import SessionViews

ROLES: Mapping[str, Role] = {
    "show": Role.OPERATOR,
    "grant": Role.OPERATOR,
    "cancel": Role.OPERATOR,
    "again": Role.OPERATOR,
    "requeue": Role.OPERATOR,
    "discard": Role.OPERATOR,
    "pause": Role.OPERATOR,
    "resume": Role.OPERATOR,
    "take-back": Role.ADMIN,
    "create-key": Role.ADMIN,
    "revoke-key": Role.ADMIN,
    "verify": Role.VIEWER,
}
"""What can be done beyond reading, and from which role on."""


class Queue(TaskQueuePort, DeadLetterPort, Protocol):
    """Tasks and dead letters."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """What the pages are read from."""

    report: Callable[[], Awaitable[Report]]
    reads: OperatorReadPort
    sessions: SessionReadPort
    queue: Queue
    letters: DeadLetters
    credits: CreditRepoPort
    owners: Owners
    stores: StoreRepoPort
    api_keys: ApiKeyRepoPort
    audit_log: AuditLogPort
    views: SessionViews
    finder: Finder
    storage: PictureStoragePort
    upload_key: Callable[[str], str | None]
    """The key of an upload in our storage, by its link; None for a link to another host."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Setup:
    """How this console was started. ``picture_origin`` is where the storage's links lead."""

    environment: str
    version: str
    read_only: bool = False
    user_header: str | None = None
    picture_origin: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Services:
    """All of it."""

    access: ConsoleAccess
    actions: ConsoleActions
    reading: Reading
    setup: Setup
    clock: Callable[[], datetime]
    new_id: Callable[[], UUID]
