"""Verification of webhooks (Standard Webhooks, standardwebhooks.com): an HMAC-SHA256 over
``id.timestamp.body``."""

import base64
import binascii
import hashlib
import hmac
import json
import time
from collections.abc import Iterable, Mapping
from typing import cast

from wearon_client.errors import InvalidWebhook
from wearon_client.models import WebhookEvent

TOLERANCE_SECONDS = 300
_PREFIX = "whsec_"


def verify_webhook(
    body: bytes | str,
    headers: Mapping[str, str],
    secret: str | Iterable[str],
    *,
    tolerance_seconds: float = TOLERANCE_SECONDS,
    now: float | None = None,
) -> WebhookEvent:
    """The event of a webhook, if one of its signatures is made with one of the secrets
    (``whsec_...``) and its time is within the tolerance of ``now`` (Unix seconds). ``body`` is the
    body as it was received, not parsed and written again. Raises InvalidWebhook."""
    raw = body.encode() if isinstance(body, str) else body
    sent = {name.lower(): value for name, value in headers.items()}
    message_id, timestamp = _header(sent, "webhook-id"), _header(sent, "webhook-timestamp")
    _check_time(timestamp, time.time() if now is None else now, tolerance_seconds)
    signed = b".".join((message_id.encode(), timestamp.encode(), raw))
    secrets = (secret,) if isinstance(secret, str) else tuple(secret)
    if not _is_signed(signed, _header(sent, "webhook-signature"), secrets):
        raise InvalidWebhook("no signature matches")
    return _event(raw)


def _header(headers: Mapping[str, str], name: str) -> str:
    if not (value := headers.get(name, "")):
        raise InvalidWebhook(f"the header {name} is missing")
    return value


def _check_time(timestamp: str, now: float, tolerance_seconds: float) -> None:
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) <= 12):
        raise InvalidWebhook("webhook-timestamp is no number of seconds")
    if abs(now - int(timestamp)) > tolerance_seconds:
        raise InvalidWebhook("webhook-timestamp is too far from now")


def _is_signed(signed: bytes, signatures: str, secrets: Iterable[str]) -> bool:
    expected = [hmac.digest(_key(secret), signed, hashlib.sha256) for secret in secrets]
    given = [_decoded(text[3:]) for text in signatures.split(" ") if text.startswith("v1,")]
    return any(hmac.compare_digest(one, other) for one in given for other in expected)


def _decoded(text: str) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (binascii.Error, ValueError):
        return b""


def _key(secret: str) -> bytes:
    try:
        key = base64.b64decode(secret.removeprefix(_PREFIX), validate=True)
    except (binascii.Error, ValueError):
        key = b""
    if not key:
        raise ValueError("a webhook's secret is `whsec_` and base64")
    return key


def _event(raw: bytes) -> WebhookEvent:
    try:
        event = json.loads(raw)
    except ValueError as error:
        raise InvalidWebhook("the body is no JSON") from error
    if not (isinstance(event, dict) and isinstance(event.get("type"), str)):
        raise InvalidWebhook("the body is no event")
    return cast("WebhookEvent", event)
