"""Secrets of webhook endpoints, as Standard Webhooks writes them."""

import base64
import secrets

PREFIX = "whsec_"
_BYTES = 32


def new_webhook_secret() -> str:
    """``whsec_`` and 32 random bytes in base64."""
    return PREFIX + base64.b64encode(secrets.token_bytes(_BYTES)).decode()
