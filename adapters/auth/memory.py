"""API keys and service keys in this process's memory."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.stores.memory import InMemoryStoreRepo
from domain.account_ports import ServiceKey, ServiceKeyRepoPort
from domain.callers import Caller, Service
from domain.credits import Channel, Owner
from domain.errors import IdempotencyKeyReused
from domain.operators import Operator
from domain.ports import MAX_KEYS, ApiKey, ApiKeyRepoPort


class InMemoryApiKeyRepo(ApiKeyRepoPort):
    """Lost at exit. ``stores`` keeps the origins; without it, stores have none."""

    def __init__(
        self,
        *,
        clock: Callable[[], datetime],
        stores: InMemoryStoreRepo | None = None,
        log: InMemoryAuditLog | None = None,
    ) -> None:
        self._keys: dict[UUID, ApiKey] = {}
        self._by_idempotency_key: dict[str, UUID] = {}
        self._clock = clock
        self._stores = stores
        self._log = log or InMemoryAuditLog(clock=clock)

    async def caller_of(self, key_sha256: str) -> Caller | None:
        for key in self._keys.values():
            if key.key_sha256 == key_sha256 and key.revoked_at is None:
                return Caller(owner=key.owner, origins=self._origins_of(key.owner))
        return None

    def _origins_of(self, owner: Owner) -> frozenset[str]:
        if self._stores is None or owner.channel is not Channel.B2B:
            return frozenset()
        return self._stores.origins_of(owner.id)

    async def add(
        self, key: ApiKey, *, idempotency_key: str | None = None, by: Operator | None = None
    ) -> ApiKey:
        if idempotency_key is not None:
            earlier = self._by_idempotency_key.setdefault(idempotency_key, key.id)
            if earlier != key.id:
                return _replayed(self._keys[earlier], key)
        self._keys[key.id] = key
        self._log.record(
            by, "key.create", key.owner, key_id=str(key.id), prefix=key.prefix, label=key.label
        )
        return key

    async def get(self, key_id: UUID) -> ApiKey | None:
        return self._keys.get(key_id)

    async def all(self, owner: Owner | None, *, limit: int = MAX_KEYS) -> list[ApiKey]:
        keys = [key for key in self._keys.values() if owner in {None, key.owner}]
        return sorted(keys, key=lambda key: (key.created_at, key.id), reverse=True)[:limit]

    async def revoke(self, key_id: UUID, *, by: Operator | None = None) -> bool:
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return False
        self._keys[key_id] = replace(key, revoked_at=self._clock())
        self._log.record(
            by, "key.revoke", key.owner, key_id=str(key.id), prefix=key.prefix, label=key.label
        )
        return True


def _replayed(earlier: ApiKey, asked: ApiKey) -> ApiKey:
    if (earlier.owner, earlier.label) != (asked.owner, asked.label):
        raise IdempotencyKeyReused("This Idempotency-Key belongs to another key")
    return earlier


class InMemoryServiceKeyRepo(ServiceKeyRepoPort):
    """Lost at exit."""

    def __init__(self, *, clock: Callable[[], datetime], log: InMemoryAuditLog) -> None:
        self._keys: dict[UUID, ServiceKey] = {}
        self._clock = clock
        self._log = log

    async def service_of(self, key_sha256: str) -> Service | None:
        for key in self._keys.values():
            if key.key_sha256 == key_sha256 and key.revoked_at is None:
                return Service(key_id=key.id, label=key.label, scopes=key.scopes)
        return None

    async def add(self, key: ServiceKey, *, by: Operator) -> None:
        self._keys[key.id] = key
        self._record(by, "service.create", key)

    async def all(self, *, limit: int) -> list[ServiceKey]:
        keys = self._keys.values()
        return sorted(keys, key=lambda key: (key.created_at, key.id), reverse=True)[:limit]

    async def revoke(self, key_id: UUID, *, by: Operator) -> bool:
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return False
        self._keys[key_id] = replace(key, revoked_at=self._clock())
        self._record(by, "service.revoke", key)
        return True

    def _record(self, by: Operator, action: str, key: ServiceKey) -> None:
        subject, scopes = f"service:{key.label}", sorted(key.scopes)
        self._log.record(by, action, subject, key_id=str(key.id), prefix=key.prefix, scopes=scopes)
