"""What generators that ask a provider over HTTP have in common."""

import re
from collections.abc import Mapping
from datetime import datetime
from email.utils import parsedate_to_datetime

from aiohttp import ClientResponse, ClientSession, ClientTimeout, DummyCookieJar, TCPConnector
from yarl import URL

from domain.errors import Refused, TryAgain
from domain.sessions import ErrorCode

MAX_ERROR_BYTES = 65_536
PASSING = frozenset({408, 409, 425, 429})
"""Statuses below 500 that another try may not meet."""

_VERSION = re.compile(r"v[0-9]+[a-z0-9]*")
_SECONDS = re.compile(r"[0-9]{1,9}")


def api_root(base_url: str) -> URL:
    """Where an API's paths begin. Base URLs come as ``https://host``, ``https://host/v1`` and
    ``https://host/api/v4/openai``: one without any version gets ``v1``."""
    base = URL(base_url.rstrip("/"))
    has_version = any(_VERSION.fullmatch(part) for part in base.parts)
    return base if has_version else base / "v1"


def provider_session(api_key: str, *, connect_seconds: float) -> ClientSession:
    """Connections that carry our key, and nothing of the environment or of earlier answers."""
    return ClientSession(
        # As many as there are slots in the worker: whoever waits here wastes its time.
        connector=TCPConnector(limit=0),
        timeout=ClientTimeout(total=None, sock_connect=connect_seconds),
        cookie_jar=DummyCookieJar(),
        headers={
            "Authorization": f"Bearer {api_key}",
            "User-Agent": "wearon",
            "Accept": "application/json",
            "Accept-Encoding": "identity",
        },
        trust_env=False,
    )


async def read(response: ClientResponse, limit: int) -> bytes:
    """The body, or its beginning where it is longer than ``limit`` bytes."""
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > limit:
            break
    return bytes(data)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """How long we are asked to wait, in seconds or until a date; 0 where nothing is asked."""
    asked = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(asked):
        return float(asked)
    try:
        return max(0.0, (parsedate_to_datetime(asked) - now).total_seconds())
    except (ValueError, TypeError):  # not a date, or one without its zone
        return 0.0


def try_again(seconds: float = 0.0) -> TryAgain:
    return TryAgain(
        "The picture could not be made this time; the credit is back", retry_after_seconds=seconds
    )


def not_safe() -> Refused:
    return Refused(
        "The pictures or the prompt did not pass the safety check; the credit is back",
        code=ErrorCode.MODERATION_BLOCKED,
    )


def unusable_picture() -> Refused:
    return Refused(
        "A picture could not be used to make a new one; the credit is back",
        code=ErrorCode.INVALID_IMAGE,
    )
