"""Builds what lets callers in."""

from adapters.auth.api_keys import API_KEY_PREFIX, StoreKeys
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.user_tokens import UserTokens
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
