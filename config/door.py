"""Builds what lets callers in."""

from collections.abc import Callable
from datetime import datetime

from adapters.auth.api_keys import API_KEY_PREFIX, StoreKeys
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.client_tokens import CLIENT_TOKEN_PREFIX, ShopperTokens
from adapters.auth.user_tokens import UserTokens
from config import policies
from config.settings import Settings
from domain.client_tokens import ClientTokenRepoPort
from domain.ports import ApiKeyRepoPort


def authenticator(
    settings: Settings,
    *,
    api_keys: ApiKeyRepoPort,
    client_tokens: ClientTokenRepoPort,
    clock: Callable[[], datetime],
) -> BearerAuthenticator:
    return BearerAuthenticator(
        keys={
            API_KEY_PREFIX: StoreKeys(api_keys),
            CLIENT_TOKEN_PREFIX: ShopperTokens(client_tokens, clock=clock),
        },
        users=UserTokens(policies.jwt(settings)),
        cache_seconds=settings.auth_cache_seconds,
    )
