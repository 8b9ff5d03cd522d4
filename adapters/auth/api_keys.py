"""API keys of stores: how they look, and whose they are."""

import hashlib
import re
import secrets
from dataclasses import replace

from adapters.auth.bearer import Verified
from domain.errors import InvalidApiKey
from domain.ports import ApiKeyRepoPort

API_KEY_PREFIX = "wk_"
_API_KEY = re.compile(r"wk_[0-9a-f]{32}")


def new_api_key() -> str:
    """A new API key: ``wk_`` and 32 hex digits (128 random bits)."""
    return API_KEY_PREFIX + secrets.token_hex(16)


def key_sha256(api_key: str) -> str:
    """The stored form of an API key. A plain hash is enough because the key is long and random."""
    return hashlib.sha256(api_key.encode()).hexdigest()


class StoreKeys:
    """Verifies stores' API keys, which may be used from the stores' own origins, and from
    ``origins``, which are ours."""

    def __init__(self, keys: ApiKeyRepoPort, *, origins: frozenset[str] = frozenset()) -> None:
        self._keys = keys
        self._origins = origins

    async def __call__(self, api_key: str) -> Verified:
        """Raises ``InvalidApiKey`` and ``DatabaseUnavailable``."""
        caller = None
        if _API_KEY.fullmatch(api_key):
            caller = await self._keys.caller_of(key_sha256(api_key))
        if caller is None:
            raise InvalidApiKey("The API key is not valid")
        return Verified(replace(caller, origins=caller.origins | self._origins))
