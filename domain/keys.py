"""Operators' use cases for keys: API keys of stores, and service keys."""

from collections.abc import Callable, Collection
from dataclasses import dataclass, field
from datetime import datetime
from typing import Generic, TypeVar
from uuid import UUID

from domain.account_ports import ServiceKey, ServiceKeyRepoPort
from domain.callers import Scope
from domain.credits import Owner
from domain.errors import InvalidInput, NotFound
from domain.labels import MAX_LABEL_LENGTH, MAX_NAME_LENGTH, checked_label, checked_reference
from domain.operators import Operator
from domain.ports import ApiKey, ApiKeyRepoPort
from domain.stores import Stores

PREFIX_LENGTH = len("wk_1a2b3c")
"""The characters of a key by which people recognise it afterwards: too few to guess the rest."""

K = TypeVar("K")


@dataclass(frozen=True, slots=True, kw_only=True)
class IssuedKey(Generic[K]):
    """A key. ``secret`` is the key itself, which is not stored: None if an earlier call issued the
    key."""

    secret: str | None = field(repr=False)
    key: K


class ApiKeyIssuer:
    """Creates and revokes stores' API keys. ``hash_secret`` is applied before a key is stored."""

    def __init__(
        self,
        *,
        api_keys: ApiKeyRepoPort,
        stores: Stores,
        new_secret: Callable[[], str],
        hash_secret: Callable[[str], str],
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._api_keys = api_keys
        self._stores = stores
        self._new_secret = new_secret
        self._hash_secret = hash_secret
        self._new_id = new_id
        self._clock = clock

    async def issue(
        self,
        store: Owner,
        *,
        label: str,
        idempotency_key: str | None = None,
        by: Operator | None = None,
    ) -> IssuedKey[ApiKey]:
        """A new key for ``store``, or the record of the key that the same ``idempotency_key`` made
        before. Raises ``UnknownStore``, ``InvalidInput`` and ``IdempotencyKeyReused``."""
        if idempotency_key is not None:
            checked_reference("Idempotency-Key", idempotency_key)
        await self._stores.get(store.id)
        secret = self._new_secret()
        new = self._key(secret, store, label)
        key = await self._api_keys.add(new, idempotency_key=idempotency_key, by=by)
        return IssuedKey(secret=secret if key.id == new.id else None, key=key)

    async def register(self, secret: str, store: Owner, *, label: str) -> bool:
        """Store a key that exists already. False if it is stored and valid. Raises
        ``UnknownStore``."""
        await self._stores.get(store.id)
        if await self._api_keys.caller_of(self._hash_secret(secret)) is not None:
            return False
        await self._api_keys.add(self._key(secret, store, label))
        return True

    async def all(self, store: Owner) -> list[ApiKey]:
        """The store's keys, newest first. Raises ``UnknownStore``."""
        await self._stores.get(store.id)
        return await self._api_keys.all(store)

    async def revoke(self, key_id: UUID, *, by: Operator) -> ApiKey:
        """The key, revoked now or before. Raises ``NotFound``."""
        await self._api_keys.revoke(key_id, by=by)
        key = await self._api_keys.get(key_id)
        if key is None:
            raise NotFound("No such key")
        return key

    def _key(self, secret: str, owner: Owner, label: str) -> ApiKey:
        return ApiKey(
            id=self._new_id(),
            owner=owner,
            key_sha256=self._hash_secret(secret),
            prefix=secret[:PREFIX_LENGTH],
            label=checked_label("label", label, max_length=MAX_NAME_LENGTH, may_be_empty=True),
            created_at=self._clock(),
        )


class ServiceKeyIssuer:
    """Creates and revokes service keys."""

    def __init__(
        self,
        *,
        service_keys: ServiceKeyRepoPort,
        new_secret: Callable[[], str],
        hash_secret: Callable[[str], str],
        new_id: Callable[[], UUID],
        clock: Callable[[], datetime],
    ) -> None:
        self._service_keys = service_keys
        self._new_secret = new_secret
        self._hash_secret = hash_secret
        self._new_id = new_id
        self._clock = clock

    async def issue(
        self, *, label: str, scopes: Collection[Scope], by: Operator
    ) -> IssuedKey[ServiceKey]:
        """A new key. Its label names the service in the audit log. Raises ``InvalidInput``."""
        if not scopes:
            raise InvalidInput("scopes", "must have at least one scope")
        secret = self._new_secret()
        key = ServiceKey(
            id=self._new_id(),
            key_sha256=self._hash_secret(secret),
            prefix=secret[:PREFIX_LENGTH],
            label=checked_label("label", label, max_length=MAX_LABEL_LENGTH),
            scopes=frozenset(scopes),
            created_at=self._clock(),
        )
        await self._service_keys.add(key, by=by)
        return IssuedKey(secret=secret, key=key)

    async def all(self, *, limit: int) -> list[ServiceKey]:
        """Newest first, including revoked keys."""
        return await self._service_keys.all(limit=limit)

    async def revoke(self, key_id: UUID, *, by: Operator) -> bool:
        """False if the key is unknown or already revoked."""
        return await self._service_keys.revoke(key_id, by=by)
