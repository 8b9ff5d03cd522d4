"""API keys in this process's memory."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime
from uuid import UUID

from domain.callers import Caller
from domain.credits import Owner
from domain.ports import ApiKey, ApiKeyRepoPort


class InMemoryApiKeyRepo(ApiKeyRepoPort):
    """Lost at exit."""

    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        self._keys: dict[UUID, ApiKey] = {}
        self._clock = clock

    async def caller_of(self, key_sha256: str) -> Caller | None:
        for key in self._keys.values():
            if key.key_sha256 == key_sha256 and key.revoked_at is None:
                return Caller(owner=key.owner)
        return None

    async def add(self, key: ApiKey) -> None:
        self._keys[key.id] = key

    async def all(self, owner: Owner | None) -> list[ApiKey]:
        keys = [key for key in self._keys.values() if owner in {None, key.owner}]
        return sorted(keys, key=lambda key: (key.created_at, key.id), reverse=True)

    async def revoke(self, key_id: UUID) -> bool:
        key = self._keys.get(key_id)
        if key is None or key.revoked_at is not None:
            return False
        self._keys[key_id] = replace(key, revoked_at=self._clock())
        return True
