"""Builds what lets callers in."""

from collections.abc import Callable
from datetime import datetime

from adapters.auth.api_keys import API_KEY_PREFIX, StoreKeys
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.jwks_client import JwksClient
from adapters.auth.user_keys import UserKeys
from adapters.auth.user_tokens import UserTokens
from config import policies
from config.closing import Opened, closing
from config.options import Environment
from config.settings import Settings
from domain.ports import ApiKeyRepoPort


def authenticator(
    settings: Settings,
    *,
    api_keys: ApiKeyRepoPort,
    user_keys: UserKeys | None,
    clock: Callable[[], datetime],
) -> BearerAuthenticator:
    users = UserTokens(
        policies.jwt(settings),
        keys=user_keys,
        exact=settings.environment is Environment.DEVELOPMENT,
        clock=clock,
    )
    return BearerAuthenticator(
        keys={API_KEY_PREFIX: StoreKeys(api_keys)},
        users=users,
        cache_seconds=settings.auth_cache_seconds,
    )


def user_keys(settings: Settings, *, opened: Opened) -> UserKeys | None:
    """The keys of the identity provider, if one is configured."""
    if settings.jwt_jwks_url is None:
        return None
    # The settings allow http in development only, and only on this machine.
    allow_http = settings.environment is Environment.DEVELOPMENT
    client = JwksClient(settings.jwt_jwks_url, allow_http=allow_http)
    return closing(opened, UserKeys(client, policies.user_keys(settings)))
