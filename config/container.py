"""The composition root. With the other modules that it builds with, all that chooses adapters.

Each provider is a function of the container, so mypy checks every wiring as an ordinary call.
Building a service opens no connection; connections open on first use.
"""

from collections.abc import Callable
from contextlib import AbstractContextManager
from datetime import UTC, datetime
from functools import partial
from random import Random
from typing import TYPE_CHECKING, TypeVar, assert_never
from uuid import UUID

from dependency_injector import containers, providers
from uuid_utils.compat import uuid7

from adapters.auth.api_keys import key_sha256, new_api_key
from adapters.auth.client_tokens import new_client_token
from adapters.auth.user_tokens import mint_user_token
from adapters.images.headers import inspect_head
from adapters.images.inputs import is_own, upload_key
from adapters.images.samples import draw_sample
from adapters.postgres.migrate import all_migrations, migrate
from adapters.postgres.roles import RoleNames
from adapters.queue.memory import InMemoryTaskQueue
from config import door, live, operating, options, pictures, policies, tracing, webhooks
from config.closing import Opened, closing
from config.processes import worker_name
from config.services import Queue, Repositories, ServedStorage
from config.settings import Settings
from domain.accounts import CreditGrants, Owners
from domain.client_tokens import ClientTokens
from domain.erasure import Erasure
from domain.operations import DeadLetters, Overview
from domain.pauses import Pauses
from domain.recovery import Recovery
from domain.signup import CallerAccounts
from domain.stores import Stores
from domain.submission import Submission
from domain.uploads import UploadReceiver, Uploads
from domain.views import SessionViews

T = TypeVar("T")
_container: providers.Self[object] = providers.Self()


def service(build: "Callable[[Container], T]") -> providers.Singleton[T]:
    """A provider that calls ``build`` with its container, once."""
    return providers.Singleton(build, _container)


def replace(provider: providers.Provider[T], adapter: T) -> AbstractContextManager[object]:
    """Put ``adapter`` behind a port, before the services that use it are built. As a context
    manager, undo that at the end."""
    return provider.override(providers.Object(adapter))


class Container(containers.DeclarativeContainer):
    """The services of one process, each built on first use."""

    if TYPE_CHECKING:  # DeclarativeContainer accepts any argument and any name of a provider

        def __init__(self, *, settings: Settings, service_name: str = ...) -> None: ...
        def __getattr__(self, name: str) -> None: ...  # type: ignore[override]

    __self__ = _container
    settings = providers.Dependency(instance_of=Settings)
    clock: providers.Object[Callable[[], datetime]] = providers.Object(lambda: datetime.now(UTC))
    new_id: providers.Object[Callable[[], UUID]] = providers.Object(uuid7)
    random = providers.Singleton(Random)
    opened = providers.Singleton(Opened)
    service_name: providers.Object[str] = providers.Object("wearon")

    # fmt: off
    parts = service(lambda self: tracing.parts(
        self.settings(), opened=self.opened(), service_name=self.service_name()
    ))
    database = service(lambda self: closing(
        self.opened(), self.parts().database(**policies.database(self.settings()))
    ))
    reserve = service(lambda self: closing(
        self.opened(), self.parts().database(**policies.reserve(self.settings()))
    ))
    operator_database = service(lambda self: closing(
        self.opened(), self.parts().database(**policies.operator_reads(self.settings()))
    ))
    migrate = service(lambda self: partial(
        migrate, self.database(), all_migrations(), roles=RoleNames(self.settings().database_roles)
    ))
    # fmt: on

    @service
    def repositories(self) -> Repositories:
        limits = policies.account_limits(self.settings())
        match self.settings().database:
            case options.Database.POSTGRES:
                return door.postgres_repositories(
                    self.database(),
                    background=self.reserve(),
                    operators=self.operator_database(),
                    batches=policies.batches(self.settings(), self.parts().batches),
                    limits=limits,
                    settled_within=policies.settled_within(self.settings()),
                    clock=self.clock(),
                )
            case options.Database.MEMORY:
                return door.memory_repositories(limits, clock=self.clock())
            case unknown:
                assert_never(unknown)

    sessions = service(lambda self: self.repositories().sessions)
    accounts = service(lambda self: self.repositories().accounts)
    api_keys = service(lambda self: self.repositories().api_keys)
    client_token_repo = service(lambda self: self.repositories().client_tokens)
    service_keys = service(lambda self: self.repositories().service_keys)
    audit_log = service(lambda self: self.repositories().audit_log)
    webhook_repo = service(lambda self: self.repositories().webhooks)
    operator_reads = service(lambda self: self.repositories().operator_reads)
    overview = service(lambda self: Overview(reads=self.operator_reads(), clock=self.clock()))

    @service
    def queue(self) -> Queue:
        settings, clock = self.settings(), self.clock()
        match settings.queue:
            case options.Queue.REDIS:
                made = self.parts().queue(**policies.redis_queue(settings), clock=clock)
                return closing(self.opened(), made)
            case options.Queue.MEMORY:
                return InMemoryTaskQueue(clock=clock)
            case unknown:
                assert_never(unknown)

    changes = service(lambda self: live.changes(self.settings(), opened=self.opened()))
    cancels = service(lambda self: live.cancels(self.settings(), opened=self.opened()))
    signer = service(lambda self: policies.url_signer(self.settings(), self.clock()))

    storage = service(lambda self: pictures.storage(self.settings(), signer=self.signer))
    files = service(lambda self: s if isinstance(s := self.storage(), ServedStorage) else None)

    # fmt: off
    fetcher = service(lambda self: pictures.fetcher(
        self.settings(), storage=self.storage(), opened=self.opened()
    ))
    generator = service(lambda self: pictures.generator(
        self.settings(), opened=self.opened(), clock=self.clock(), random=self.random(),
        calls=self.parts().provider_calls,
    ))
    budget = service(lambda self: policies.budget(self.settings(), self.clock()))
    start_limit = service(lambda self: pictures.start_limit(self.settings(), opened=self.opened()))
    samples = service(lambda self: draw_sample if self.settings().serves_samples else None)
    picture_origins = service(lambda self: policies.picture_origins(self.settings()))
    user_token = service(lambda self: partial(mint_user_token, rules=policies.jwt(self.settings())))
    new_api_key = providers.Callable(new_api_key)
    page_origins = service(lambda self: partial(door.page_origins, self.settings(), self.database))
    user_keys = service(lambda self: door.user_keys(self.settings(), opened=self.opened()))
    authenticate = service(lambda self: door.authenticator(
        self.settings(), api_keys=self.api_keys(), client_tokens=self.client_token_repo(),
        service_keys=self.service_keys(),
        user_keys=self.user_keys(), clock=self.clock(),
    ))
    submission = service(lambda self: Submission(
        sessions=self.sessions(), reads=self.sessions(), queue=self.queue(), clock=self.clock(),
        policy=policies.submission(self.settings()),
        links=policies.links(self.settings(), is_own=lambda url: is_own(url, self.storage())),
        changes=self.changes(), announce_cancel=self.cancels().publish, new_id=self.new_id(),
    ))
    callers_accounts = service(lambda self: CallerAccounts(
        accounts=self.accounts(), policy=policies.signup(self.settings())
    ))
    uploads = service(lambda self: Uploads(
        storage=self.storage(), accounts=self.callers_accounts(), tokens=self.client_token_repo(),
        policy=policies.uploads(self.settings()), new_id=self.new_id(), clock=self.clock(),
    ))
    receiver = service(lambda self: None if (storage := self.files()) is None else UploadReceiver(
        sink=storage, check_quota=self.uploads().check_quota, inspect=inspect_head,
    ))
    views = service(lambda self: SessionViews(reads=self.sessions(), storage=self.storage()))
    watching = service(lambda self: live.watching(
        self.settings(), reads=self.repositories().watched, feed=self.changes(),
        random=self.random(), clock=self.clock(),
    ))
    generation = service(lambda self: self.parts().generation(
        sessions=self.sessions(), reads=self.sessions(), attempts=self.sessions(),
        queue=self.queue(), fetcher=self.fetcher(), generator=self.generator(),
        storage=self.storage(), policy=policies.work(self.settings()), random=self.random(),
        new_id=self.new_id(), worker=worker_name(), changes=self.changes(),
    ))
    recovery = service(lambda self: Recovery(
        sessions=self.sessions(), recovery_repo=self.sessions(), queue=self.queue(),
        storage=self.storage(), uploads=self.storage(), tokens=self.client_token_repo(),
        webhooks=self.webhook_repo(), workers=self.repositories().workers,
        policy=policies.recovery(self.settings()), new_id=self.new_id(), clock=self.clock(),
    ))
    books = service(lambda self: operating.books(
        self.settings(), repositories=self.repositories(), opened=self.opened()
    ))
    erasure = service(lambda self: Erasure(
        repo=self.repositories().erasure, sessions=self.sessions(), reads=self.sessions(),
        letters=self.queue(), storage=self.storage(), uploads=self.storage(),
        webhooks=self.webhook_repo(), upload_key=lambda url: upload_key(url, self.storage()),
    ))
    stores = service(lambda self: Stores(stores=self.repositories().stores, clock=self.clock()))
    pauses = service(lambda self: Pauses(pauses=self.repositories().pauses))
    owners = service(lambda self: Owners(
        accounts=self.accounts(), credit_repo=self.accounts(), stores=self.stores(),
    ))
    grants = service(lambda self: CreditGrants(accounts=self.accounts(), owners=self.owners()))
    key_issuer = service(lambda self: door.key_issuer(
        api_keys=self.api_keys(), stores=self.stores(), new_id=self.new_id(), clock=self.clock(),
    ))
    service_key_issuer = service(lambda self: door.service_key_issuer(
        service_keys=self.service_keys(), new_id=self.new_id(), clock=self.clock(),
    ))
    client_tokens = service(lambda self: ClientTokens(
        tokens=self.client_token_repo(), accounts=self.accounts(), reads=self.sessions(),
        new_secret=new_client_token, hash_secret=key_sha256, new_id=self.new_id(),
        clock=self.clock(),
    ))
    webhook_sender = service(lambda self: webhooks.sender(
        self.settings(), opened=self.opened(), clock=self.clock(),
        calls=self.parts().webhook_calls,
    ))
    webhooks = service(lambda self: webhooks.webhooks(
        self.settings(), repo=self.webhook_repo(), sender=self.webhook_sender,
        audit_log=self.audit_log(), new_id=self.new_id(), clock=self.clock(),
    ))
    new_dispatcher = service(lambda self: partial(
        webhooks.dispatcher, repo=self.webhook_repo(), sender=self.webhook_sender(),
        views=self.views(), accounts=self.accounts(), random=self.random(), clock=self.clock(),
    ))
    status = service(lambda self: operating.status(
        self.settings(), overview=self.overview(), queue=self.queue(), clock=self.clock(),
    ))
    finder = service(lambda self: operating.finder(self.repositories()))
    dead_letters = service(lambda self: DeadLetters(
        letters=self.queue(), read_session=lambda session_id: self.sessions().get(session_id, None),
    ))
    # fmt: on
