"""Builds what lets callers in."""

from collections.abc import Callable

from adapters.auth.api_keys import API_KEY_PREFIX, StoreKeys
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.store_origins import store_origins
from adapters.auth.user_tokens import UserTokens
from adapters.postgres.database import Database
from config import origins, policies
from config.settings import Settings
from domain.ports import ApiKeyRepoPort


def authenticator(settings: Settings, *, api_keys: ApiKeyRepoPort) -> BearerAuthenticator:
    pages = origins.pages(settings)
    return BearerAuthenticator(
        keys={API_KEY_PREFIX: StoreKeys(api_keys, origins=pages.own)},
        users=UserTokens(
            policies.jwt(settings), origins=pages.users, any_origin=pages.any_for_users
        ),
        cache_seconds=settings.auth_cache_seconds,
    )


async def page_origins(settings: Settings, database: Callable[[], Database]) -> list[str]:
    """The origins of all web pages that may use the service, or just ``*``."""
    pages = origins.pages(settings)
    if pages.any_for_users:
        return ["*"]
    return sorted({*pages.own, *pages.users, *await store_origins(database())})
