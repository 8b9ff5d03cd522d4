"""Client tokens of shoppers: how they look, and whom they stand for."""

import re
import secrets
from collections.abc import Callable
from datetime import datetime

from adapters.auth.api_keys import key_sha256
from adapters.auth.bearer import Verified
from domain.callers import Caller, Shopper
from domain.client_tokens import ClientTokenRepoPort
from domain.errors import Unauthenticated

CLIENT_TOKEN_PREFIX = "wc_"  # noqa: S105 - how every token begins
_CLIENT_TOKEN = re.compile(r"wc_[0-9a-f]{32}")


def new_client_token() -> str:
    """A new client token: ``wc_`` and 32 hex digits (128 random bits)."""
    return CLIENT_TOKEN_PREFIX + secrets.token_hex(16)


class ShopperTokens:
    """Verifies client tokens."""

    def __init__(self, tokens: ClientTokenRepoPort, *, clock: Callable[[], datetime]) -> None:
        self._tokens = tokens
        self._clock = clock

    async def __call__(self, client_token: str) -> Verified:
        """Raises ``Unauthenticated`` and ``DatabaseUnavailable``."""
        token = None
        if _CLIENT_TOKEN.fullmatch(client_token):
            token = await self._tokens.find(key_sha256(client_token))
        if token is None:
            raise Unauthenticated("The client token is not valid")
        if not token.is_live(self._clock()):
            raise Unauthenticated("The client token has expired")
        caller = Caller(
            owner=token.store,
            shopper=Shopper(id=token.shopper_id, token_id=token.id),
            origins=frozenset({token.origin}),
        )
        expires_at = token.expires_at
        return Verified(caller, lambda: self._clock() < expires_at)
