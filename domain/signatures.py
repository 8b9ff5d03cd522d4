"""Messages of webhooks and their signatures, as Standard Webhooks defines them
(https://www.standardwebhooks.com)."""

import base64
import hashlib
import hmac
from collections.abc import Sequence
from datetime import datetime
from uuid import UUID

from domain.endpoints import WebhookEvent

SECRET_PREFIX = "whsec_"  # noqa: S105 - no secret


def message(event: WebhookEvent, at: datetime, data: bytes) -> bytes:
    """The body of the message of an ``event`` that happened ``at``; ``data`` is JSON."""
    time = at.isoformat().replace("+00:00", "Z")
    return b'{"type":"%s","timestamp":"%s","data":%s}' % (event.encode(), time.encode(), data)


def signed_headers(
    body: bytes, *, delivery_id: UUID, at: datetime, secrets: Sequence[str]
) -> dict[str, str]:
    """The headers of a message that is sent at ``at``: its id, its time, and a signature with each
    of the ``secrets``, separated by spaces."""
    id_, timestamp = str(delivery_id), str(int(at.timestamp()))
    signed = f"{id_}.{timestamp}.".encode() + body
    return {
        "webhook-id": id_,
        "webhook-timestamp": timestamp,
        "webhook-signature": " ".join(_signature(secret, signed) for secret in secrets),
    }


def _signature(secret: str, signed: bytes) -> str:
    key = base64.b64decode(secret.removeprefix(SECRET_PREFIX))
    return "v1," + base64.b64encode(hmac.digest(key, signed, hashlib.sha256)).decode()
