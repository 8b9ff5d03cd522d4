"""Builds what manages and sends webhooks. What imports aiohttp is loaded only when it is used, so
that an API starts faster."""

from collections.abc import Callable
from datetime import datetime
from random import Random
from uuid import UUID

from adapters.webhooks.secrets import new_webhook_secret
from config import policies
from config.closing import Opened, closing
from config.services import WebhookRepo
from config.settings import Settings
from config.tracing import HttpCalls
from domain.account_ports import AuditLogPort
from domain.dispatch import Dispatcher, DispatchEvents, DispatchPolicy, Payloads
from domain.ports import CreditRepoPort
from domain.views import SessionView, SessionViews
from domain.webhook_ports import WebhookSenderPort
from domain.webhooks import WebhookPolicy, Webhooks

Clock = Callable[[], datetime]

DISPATCH_POLICY = DispatchPolicy()


def sender(
    settings: Settings, *, opened: Opened, clock: Clock, calls: HttpCalls = list
) -> WebhookSenderPort:
    """``calls`` builds what watches the sender's calls."""
    from adapters.webhooks.sender import HttpWebhookSender

    made = HttpWebhookSender(
        clock=clock, allow_loopback=settings.fetch_allow_loopback, watched_by=calls()
    )
    return closing(opened, made)


def webhooks(
    settings: Settings,
    *,
    repo: WebhookRepo,
    sender: Callable[[], WebhookSenderPort],
    audit_log: AuditLogPort,
    new_id: Callable[[], UUID],
    clock: Clock,
) -> Webhooks:
    """``sender`` is built when the first address is checked."""

    async def check_address(url: str) -> None:
        await sender().check(url)

    return Webhooks(
        endpoints=repo,
        deliveries=repo,
        alerts=repo,
        audit_log=audit_log,
        check_address=check_address,
        new_secret=new_webhook_secret,
        new_id=new_id,
        clock=clock,
        policy=WebhookPolicy(),
        links=policies.links(settings, is_own=lambda _: False),
    )


def dispatcher(
    *,
    repo: WebhookRepo,
    sender: WebhookSenderPort,
    views: SessionViews,
    accounts: CreditRepoPort,
    random: Random,
    clock: Clock,
    session_data: Callable[[SessionView], bytes],
    events: DispatchEvents,
    policy: DispatchPolicy = DISPATCH_POLICY,
) -> Dispatcher:
    """``session_data`` and ``events`` belong to the process that dispatches."""
    return Dispatcher(
        outbox=repo,
        sender=sender,
        payloads=Payloads(
            session_data=session_data, view_of=views.view_of, accounts=accounts, alerts=repo
        ),
        events=events,
        policy=policy,
        random=random,
        clock=clock,
    )
