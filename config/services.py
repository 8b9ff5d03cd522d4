"""The types of services that combine several ports. They choose and build nothing."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from adapters.postgres.migrate import Schema
from domain.account_ports import (
    AccountRepoPort,
    AuditLogPort,
    ServiceKeyRepoPort,
    StoreRepoPort,
)
from domain.changes import ChangeFeedPort, ChangePublisherPort, WatchReadPort
from domain.client_tokens import ClientTokenRepoPort
from domain.console_ports import OperatorRepoPort
from domain.erasure import ErasureRepoPort
from domain.operator_ports import (
    BookCheckRepoPort,
    OperatorReadPort,
    PauseRepoPort,
    WorkerRepoPort,
)
from domain.picture_ports import (
    PictureStoragePort,
    SignedReadPort,
    UploadSinkPort,
    UploadStoragePort,
)
from domain.ports import (
    ApiKeyRepoPort,
    AttemptRepoPort,
    CreditRepoPort,
    DeadLetterPort,
    QueueProbePort,
    RecoveryRepoPort,
    SessionReadPort,
    SessionRepoPort,
    TaskQueuePort,
)
from domain.webhook_ports import (
    CreditAlertPort,
    DeliveryRepoPort,
    EndpointRepoPort,
    OutboxPort,
)


class Queue(TaskQueuePort, QueueProbePort, DeadLetterPort, Protocol):
    """Tasks, whether the queue takes them, and dead letters."""


class Changes(ChangePublisherPort, ChangeFeedPort, Protocol):
    """Changes of sessions, both ways."""


class Sessions(SessionRepoPort, AttemptRepoPort, RecoveryRepoPort, SessionReadPort, Protocol):
    """Everything that is done with sessions in the database."""


class Accounts(CreditRepoPort, AccountRepoPort, Protocol):
    """Accounts with their credits and what they allow."""


class WebhookRepo(EndpointRepoPort, DeliveryRepoPort, CreditAlertPort, OutboxPort, Protocol):
    """Everything that is kept of webhooks."""


class Storage(PictureStoragePort, UploadStoragePort, Protocol):
    """Generated and uploaded pictures."""


@runtime_checkable
class ServedStorage(Storage, SignedReadPort, UploadSinkPort, Protocol):
    """Storage whose signed links lead to our API."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Repositories:
    """The repositories on one database, and its schema if it has one."""

    sessions: Sessions
    accounts: Accounts
    api_keys: ApiKeyRepoPort
    client_tokens: ClientTokenRepoPort
    stores: StoreRepoPort
    service_keys: ServiceKeyRepoPort
    audit_log: AuditLogPort
    operators: OperatorRepoPort
    erasure: ErasureRepoPort
    watched: WatchReadPort
    webhooks: WebhookRepo
    operator_reads: OperatorReadPort
    workers: WorkerRepoPort
    pauses: PauseRepoPort
    book_checks: BookCheckRepoPort
    schema: Schema | None = None


class Closable(Protocol):
    """A service that holds connections or processes."""

    async def close(self) -> None: ...
