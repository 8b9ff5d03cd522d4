"""Builds what lets callers in."""

from collections.abc import Callable
from datetime import datetime

from adapters.auth.api_keys import API_KEY_PREFIX, StoreKeys
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.jwks_client import JwksClient
from adapters.auth.store_origins import store_origins
from adapters.auth.user_keys import UserKeys
from adapters.auth.user_tokens import UserTokens
from adapters.postgres.database import Database
from config import origins, policies
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
    pages = origins.pages(settings)
    users = UserTokens(
        policies.jwt(settings),
        keys=user_keys,
        origins=pages.users,
        any_origin=pages.any_for_users,
        exact=settings.environment is Environment.DEVELOPMENT,
        clock=clock,
    )
    return BearerAuthenticator(
        keys={API_KEY_PREFIX: StoreKeys(api_keys, origins=pages.own)},
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


async def page_origins(settings: Settings, database: Callable[[], Database]) -> list[str]:
    """The origins of all web pages that may use the service, or just ``*``."""
    pages = origins.pages(settings)
    if pages.any_for_users:
        return ["*"]
    return sorted({*pages.own, *pages.users, *await store_origins(database())})
