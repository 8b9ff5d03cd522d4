"""Client of the wearon API, synchronous (`Wearon`) and for asyncio (`AsyncWearon`)."""

from wearon_client.aio import AsyncWearon
from wearon_client.client import Wearon
from wearon_client.errors import (
    ApiError,
    ConnectionFailed,
    InvalidWebhook,
    WaitTimeout,
    WearonError,
)
from wearon_client.models import (
    Accessory,
    BatchItem,
    BatchResult,
    ErrorBody,
    NewGeneration,
    Session,
    SessionPage,
    Submitted,
    WebhookEvent,
    is_final,
)
from wearon_client.retries import Retries
from wearon_client.webhooks import verify_webhook

__all__ = [
    "Accessory",
    "ApiError",
    "AsyncWearon",
    "BatchItem",
    "BatchResult",
    "ConnectionFailed",
    "ErrorBody",
    "InvalidWebhook",
    "NewGeneration",
    "Retries",
    "Session",
    "SessionPage",
    "Submitted",
    "WaitTimeout",
    "Wearon",
    "WearonError",
    "WebhookEvent",
    "is_final",
    "verify_webhook",
]
