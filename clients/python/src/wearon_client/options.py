"""What both clients are made with."""

from collections.abc import Callable
from dataclasses import dataclass
from urllib.parse import urljoin

from wearon_client.steps import Request

IDLE_SECONDS = 60.0
"""Silence after which a stream is given up. The service sends a ping every 45 seconds."""
WAIT_SECONDS = 600.0
FOLLOW_SECONDS = 3600.0
MAX_RESPONSE_BYTES = 32 * 2**20

Token = str | Callable[[], str]


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """The API, and the caller's credential or what returns the current one."""

    base_url: str
    token: Token

    def url(self, request: Request) -> str:
        return urljoin(self.base_url, request.url)

    def headers(self, request: Request) -> dict[str, str]:
        headers = {"User-Agent": "wearon-client-python", **request.headers}
        if request.authorized:
            token = self.token if isinstance(self.token, str) else self.token()
            headers["Authorization"] = f"Bearer {token}"
        return headers
