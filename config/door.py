"""Builds what lets callers in, and the accounts, stores and keys that operators manage."""

from collections.abc import Callable
from datetime import datetime, timedelta
from uuid import UUID

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.audit_log.postgres import PostgresAuditLog
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
from adapters.auth.client_tokens import CLIENT_TOKEN_PREFIX, ShopperTokens
from adapters.auth.jwks_client import JwksClient
from adapters.auth.memory import InMemoryApiKeyRepo, InMemoryServiceKeyRepo
from adapters.auth.postgres import PostgresApiKeyRepo, PostgresServiceKeyRepo
from adapters.auth.store_origins import store_origins
from adapters.auth.user_keys import UserKeys
from adapters.auth.user_tokens import UserTokens
from adapters.book_checks.memory import InMemoryBookCheckRepo
from adapters.book_checks.postgres import PostgresBookCheckRepo
from adapters.client_tokens.memory import InMemoryClientTokenRepo
from adapters.client_tokens.postgres import PostgresClientTokenRepo
from adapters.coalescing import BatchLimits
from adapters.credits.memory import InMemoryCreditRepo
from adapters.credits.postgres import PostgresCreditRepo
from adapters.erasure.memory import InMemoryErasureRepo
from adapters.erasure.postgres import PostgresErasureRepo
from adapters.operations.memory import InMemoryOperatorReads
from adapters.operations.postgres import PostgresOperatorReads
from adapters.operators.memory import InMemoryOperatorRepo
from adapters.operators.postgres import PostgresOperatorRepo
from adapters.pauses.memory import InMemoryPauseRepo
from adapters.pauses.postgres import PostgresPauseRepo
from adapters.postgres.database import Database
from adapters.postgres.migrate import Schema, all_migrations
from adapters.sessions.memory import InMemorySessionRepo
from adapters.sessions.postgres import PostgresSessionRepo
from adapters.sessions.watched_memory import InMemoryWatchReads
from adapters.sessions.watched_postgres import PostgresWatchReads
from adapters.stores.memory import InMemoryStoreRepo
from adapters.stores.postgres import PostgresStoreRepo
from adapters.webhooks.memory import InMemoryWebhookRepo
from adapters.webhooks.postgres import PostgresWebhookRepo
from adapters.workers.memory import InMemoryWorkerRepo
from adapters.workers.postgres import PostgresWorkerRepo
from config import origins, policies
from config.closing import Opened, closing
from config.metrics import count_ended
from config.options import Environment
from config.services import Repositories
from config.settings import Settings
from domain.account_ports import ServiceKeyRepoPort
from domain.client_tokens import ClientTokenRepoPort
from domain.keys import ApiKeyIssuer, ServiceKeyIssuer
from domain.plans import AccountLimits
from domain.ports import ApiKeyRepoPort
from domain.stores import Stores

Clock = Callable[[], datetime]


def postgres_repositories(
    database: Database,
    *,
    background: Database,
    operators: Database,
    batches: BatchLimits,
    limits: AccountLimits,
    settled_within: timedelta,
    clock: Clock,
) -> Repositories:
    """``background`` and ``operators`` have connections of their own."""
    sessions = PostgresSessionRepo(
        database, batches=batches, background=background, limits=limits, count_ended=count_ended
    )
    return Repositories(
        sessions=sessions,
        accounts=PostgresCreditRepo(database),
        api_keys=PostgresApiKeyRepo(database, batches=batches),
        client_tokens=PostgresClientTokenRepo(database, background=background, batches=batches),
        stores=PostgresStoreRepo(database),
        service_keys=PostgresServiceKeyRepo(database),
        audit_log=PostgresAuditLog(database),
        operators=PostgresOperatorRepo(database),
        erasure=PostgresErasureRepo(database),
        watched=PostgresWatchReads(database),
        webhooks=PostgresWebhookRepo(database, background=background),
        operator_reads=PostgresOperatorReads(operators, settled_within=settled_within),
        workers=PostgresWorkerRepo(background, clock=clock, settled_within=settled_within),
        pauses=PostgresPauseRepo(database, background=background),
        book_checks=PostgresBookCheckRepo(background),
        schema=Schema(database, all_migrations()),
    )


def memory_repositories(limits: AccountLimits, *, clock: Clock) -> Repositories:
    log = InMemoryAuditLog(clock=clock)
    accounts = InMemoryCreditRepo(clock=clock, log=log)
    stores = InMemoryStoreRepo(accounts=accounts, clock=clock, log=log)
    sessions = InMemorySessionRepo(
        accounts=accounts, clock=clock, limits=limits, count_ended=count_ended
    )
    webhooks = InMemoryWebhookRepo(clock=clock, find_session=sessions.find)
    pauses = InMemoryPauseRepo(log=log, clock=clock)
    workers = InMemoryWorkerRepo(
        clock=clock, pauses=pauses.pauses, spent_since=sessions.spent_since
    )
    checks = InMemoryBookCheckRepo(clock=clock)
    sessions.ended, accounts.changed = webhooks.session_ended, webhooks.balance_changed
    return Repositories(
        sessions=sessions,
        webhooks=webhooks,
        workers=workers,
        book_checks=checks,
        erasure=InMemoryErasureRepo(sessions),
        watched=InMemoryWatchReads(sessions),
        accounts=accounts,
        api_keys=InMemoryApiKeyRepo(clock=clock, stores=stores, log=log),
        client_tokens=InMemoryClientTokenRepo(
            clock=clock,
            origins_of=stores.origins_of,
            budgets=sessions.budgets,
            may_refund=sessions.may_refund,
        ),
        stores=stores,
        service_keys=InMemoryServiceKeyRepo(clock=clock, log=log),
        audit_log=log,
        operator_reads=InMemoryOperatorReads(
            sessions=sessions,
            accounts=accounts,
            clock=clock,
            workers=workers.states.values,
            pauses=pauses.pauses.values,
            books=lambda: checks.latest,
        ),
        pauses=pauses,
        operators=InMemoryOperatorRepo(clock=clock, log=log),
    )


def authenticator(
    settings: Settings,
    *,
    api_keys: ApiKeyRepoPort,
    client_tokens: ClientTokenRepoPort,
    service_keys: ServiceKeyRepoPort,
    user_keys: UserKeys | None,
    clock: Clock,
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
        keys={
            API_KEY_PREFIX: StoreKeys(api_keys, origins=pages.own),
            CLIENT_TOKEN_PREFIX: ShopperTokens(client_tokens, clock=clock),
            SERVICE_KEY_PREFIX: ServiceKeys(service_keys),
        },
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
