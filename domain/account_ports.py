"""The interfaces for what operators change: accounts, stores and service keys, and the audit log.

Each change is in the audit log with the same commit, and a call that changes nothing is not.
``tests/contracts`` checks every sentence here against every adapter.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Protocol
from uuid import UUID

from domain.callers import Scope, Service
from domain.credits import Channel, CreditAccount, Owner
from domain.operators import Operator, OperatorAction
from domain.plans import Plan

MAX_ORIGINS = 100


class AccountRepoPort(Protocol):
    """What an owner's account allows. Creates the account if there is none. Raises
    ``DatabaseUnavailable``."""

    async def set_plan(self, owner: Owner, plan: Plan, *, by: Operator) -> CreditAccount:
        """The account with ``plan``."""

    async def suspend(self, owner: Owner, *, by: Operator) -> CreditAccount:
        """The account, suspended."""

    async def resume(self, owner: Owner, *, by: Operator) -> CreditAccount:
        """The account, no longer suspended. Creates none: an owner without an account is not."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Store:
    """A store: who may create keys and hold credits as a ``b2b`` owner. ``origins`` are the web
    pages of its shop, sorted; ``plan`` is that of its account."""

    id: str
    name: str
    origins: tuple[str, ...] = ()
    plan: Plan = Plan.DEFAULT
    created_at: datetime

    @property
    def owner(self) -> Owner:
        return Owner(channel=Channel.B2B, id=self.id)


@dataclass(frozen=True, slots=True, kw_only=True)
class StoreChange:
    """What to change of a store; None leaves a field as it is. ``origins`` replaces all of them,
    before those to add are added and those to remove are removed."""

    name: str | None = None
    plan: Plan | None = None
    origins: Sequence[str] | None = None
    add_origins: Sequence[str] = ()
    remove_origins: Sequence[str] = ()

    def origins_after(self, current: Sequence[str]) -> tuple[str, ...]:
        """The origins of the store after the change."""
        kept = {*(current if self.origins is None else self.origins), *self.add_origins}
        return tuple(sorted(kept - {*self.remove_origins}))


class StoreRepoPort(Protocol):
    """Stores, each with its credit account. No store is ever deleted. Raises
    ``DatabaseUnavailable``."""

    async def create(self, store: Store, *, by: Operator | None = None) -> Store | None:
        """Add a store and its account. The database sets ``created_at``. None, and nothing changes,
        if there is a store with its id. An account that exists already gets the store's plan."""

    async def get(self, store_id: str) -> Store | None:
        """The store; None if there is no such store."""

    async def all(self, *, limit: int) -> list[Store]:
        """Stores, ordered by id."""

    async def change(self, store_id: str, change: StoreChange, *, by: Operator) -> Store | None:
        """The store after ``change``; None if there is no such store. Concurrent changes of other
        fields or origins are kept. Raises ``InvalidInput``, and changes nothing, if the store would
        have more than ``MAX_ORIGINS``."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ServiceKey:
    """A service key. Only its SHA-256 (hex) is kept, and its first characters."""

    id: UUID
    key_sha256: str = field(repr=False)
    label: str
    scopes: frozenset[Scope]
    created_at: datetime
    prefix: str | None = None
    revoked_at: datetime | None = None


class ServiceKeyRepoPort(Protocol):
    """Service keys. Raises ``DatabaseUnavailable``."""

    async def service_of(self, key_sha256: str) -> Service | None:
        """The service that the key stands for; None if the key is unknown or revoked."""

    async def add(self, key: ServiceKey, *, by: Operator) -> None:
        """Add a new key."""

    async def all(self, *, limit: int) -> list[ServiceKey]:
        """Newest first, including revoked keys."""

    async def revoke(self, key_id: UUID, *, by: Operator) -> bool:
        """False if the key is unknown or already revoked."""


class AuditLogPort(Protocol):
    """What operators and their services changed. Written by the changes themselves, append-only.
    Raises ``DatabaseUnavailable``."""

    async def actions(
        self,
        *,
        subject: str | None,
        limit: int,
        before_id: int | None = None,
        actor: str | None = None,
    ) -> list[OperatorAction]:
        """Newest first, only those on ``subject`` and by ``actor`` if they are given, and older
        than ``before_id``."""

    async def begin(
        self, by: Operator, action: str, subject: str, *, action_id: UUID, **details: object
    ) -> bool:
        """Add an entry for a change that is about to be made. False, and nothing is added, if there
        is an entry with this ``action_id``: of many concurrent calls, one returns True."""

    async def add(self, by: Operator, action: str, subject: str, **details: object) -> None:
        """Add an entry for a change that takes many transactions, before the first one, or that
        usually no operator makes. All other changes write their own entries, each in its own
        transaction."""
