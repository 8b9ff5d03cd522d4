"""Builds what lets callers in, and the accounts, stores and keys that operators manage."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.auth.api_keys import (
    API_KEY_PREFIX,
    SERVICE_KEY_PREFIX,
    ServiceKeys,
    StoreKeys,
    key_sha256,
    new_api_key,
    new_service_key,
)
from adapters.auth.bearer import BearerAuthenticator
from adapters.auth.memory import InMemoryApiKeyRepo, InMemoryServiceKeyRepo
from adapters.auth.user_tokens import UserTokens
from adapters.credits.memory import InMemoryCreditRepo
from adapters.sessions.memory import InMemorySessionRepo
from adapters.stores.memory import InMemoryStoreRepo
from config import policies
from config.services import Repositories
from config.settings import Settings
from domain.account_ports import ServiceKeyRepoPort
from domain.keys import ApiKeyIssuer, ServiceKeyIssuer
from domain.ports import ApiKeyRepoPort
from domain.stores import Stores

Clock = Callable[[], datetime]


def memory_repositories(*, clock: Clock) -> Repositories:
    log = InMemoryAuditLog(clock=clock)
    accounts = InMemoryCreditRepo(clock=clock, log=log)
    stores = InMemoryStoreRepo(accounts=accounts, clock=clock, log=log)
    return Repositories(
        sessions=InMemorySessionRepo(accounts=accounts, clock=clock),
        accounts=accounts,
        api_keys=InMemoryApiKeyRepo(clock=clock, stores=stores, log=log),
        stores=stores,
        service_keys=InMemoryServiceKeyRepo(clock=clock, log=log),
        audit_log=log,
    )


def authenticator(
    settings: Settings, *, api_keys: ApiKeyRepoPort, service_keys: ServiceKeyRepoPort
) -> BearerAuthenticator:
    return BearerAuthenticator(
        keys={API_KEY_PREFIX: StoreKeys(api_keys), SERVICE_KEY_PREFIX: ServiceKeys(service_keys)},
        users=UserTokens(policies.jwt(settings)),
        cache_seconds=settings.auth_cache_seconds,
    )


def key_issuer(
    *, api_keys: ApiKeyRepoPort, stores: Stores, new_id: Callable[[], UUID], clock: Clock
) -> ApiKeyIssuer:
    return ApiKeyIssuer(
        api_keys=api_keys,
        stores=stores,
        new_secret=new_api_key,
        hash_secret=key_sha256,
        new_id=new_id,
        clock=clock,
    )


def service_key_issuer(
    *, service_keys: ServiceKeyRepoPort, new_id: Callable[[], UUID], clock: Clock
) -> ServiceKeyIssuer:
    return ServiceKeyIssuer(
        service_keys=service_keys,
        new_secret=new_service_key,
        hash_secret=key_sha256,
        new_id=new_id,
        clock=clock,
    )
