"""Shared by the generators that call a provider over HTTP."""

import re
from collections.abc import Mapping, Sequence
from datetime import datetime
from email.utils import parsedate_to_datetime

from aiohttp import (
    ClientConnectorCertificateError,
    ClientConnectorError,
    ClientResponse,
    ClientSession,
    ClientTimeout,
    DummyCookieJar,
    TCPConnector,
    TraceConfig,
)
from yarl import URL

from adapters.causes import SHORTAGES, detail_of
from domain.causes import Cause, CauseKind
from domain.errors import ProviderUnavailable, Refused, TryAgain, WorkerExhausted
from domain.sessions import ErrorCode

TRANSIENT_STATUSES = frozenset({408, 409, 425, 429})
"""Statuses below 500 that may not recur: another attempt makes sense."""

_MAX_ERROR_BYTES = 65_536
_NOT_MADE = "The picture could not be made this time; the credit was refunded"
_VERSION = re.compile(r"v[0-9]+[a-z0-9]*")
_SECONDS = re.compile(r"[0-9]{1,9}")


def api_root(base_url: str) -> URL:
    """The URL that an API's paths are relative to. Base URLs come as ``https://host``,
    ``https://host/v1`` and ``https://host/api/v4/openai``: one without a version gets ``v1``."""
    base = URL(base_url.rstrip("/"))
    has_version = any(_VERSION.fullmatch(part) for part in base.parts)
    return base if has_version else base / "v1"


class ProviderClient:
    """The connections to one provider. They carry our key, and nothing from the environment (such
    as proxies) or from earlier responses (such as cookies). ``watched_by`` hears of its calls."""

    def __init__(
        self, api_key: str, *, connect_seconds: float, watched_by: Sequence[TraceConfig] = ()
    ) -> None:
        self._api_key = api_key
        self._watched_by = list(watched_by)
        self._connect_seconds = connect_seconds
        self._session: ClientSession | None = None

    @property
    def session(self) -> ClientSession:
        """Opened at its first use, because aiohttp needs a running event loop for that."""
        if self._session is None:
            self._session = ClientSession(
                # No limit: the worker's slots limit the calls, and waiting here would waste one.
                connector=TCPConnector(limit=0),
                timeout=ClientTimeout(total=None, sock_connect=self._connect_seconds),
                cookie_jar=DummyCookieJar(),
                headers={
                    "Authorization": f"Bearer {self._api_key}",
                    "User-Agent": "wearon",
                    "Accept": "application/json",
                    "Accept-Encoding": "identity",
                },
                trust_env=False,
                trace_configs=self._watched_by,
            )
        return self._session

    async def close(self) -> None:
        if self._session is not None:
            await self._session.close()


async def read_body(response: ClientResponse, *, max_bytes: int) -> bytes:
    """The body of a response; of an error only the beginning.

    Raises ``RuntimeError`` for a successful response of more than ``max_bytes``: another attempt
    would get one of the same size, and pay for it too.
    """
    is_error = response.status >= 300
    limit = _MAX_ERROR_BYTES if is_error else max_bytes
    data = bytearray()
    async for chunk in response.content.iter_any():
        data += chunk
        if len(data) > limit:
            if is_error:
                break
            raise RuntimeError(f"The provider's response exceeds {max_bytes} bytes")
    return bytes(data)


def retry_after_seconds(headers: Mapping[str, str], now: datetime) -> float:
    """The value of ``Retry-After``, given in seconds or as a date; 0 if absent or invalid."""
    value = headers.get("Retry-After", "").strip()
    if _SECONDS.fullmatch(value):
        return float(value)
    try:
        return max(0.0, (parsedate_to_datetime(value) - now).total_seconds())
    except (ValueError, TypeError):  # Not a date, or a date without a time zone.
        return 0.0


def busy_or_broken(detail: str, retry_after_seconds: float = 0.0) -> ProviderUnavailable:
    """``detail`` is the status and, if known, a name for the error."""
    return ProviderUnavailable(
        _NOT_MADE, retry_after_seconds=retry_after_seconds, cause=_provider(detail)
    )


def unreachable(error: BaseException) -> ProviderUnavailable | WorkerExhausted:
    """The error for a call that failed on the network, or that took too long."""
    return shortage(error) or busy_or_broken(network_detail(error))


def shortage(error: BaseException) -> WorkerExhausted | None:
    """The error if a call failed because this process lacks descriptors or memory, else None."""
    below = error.os_error if isinstance(error, ClientConnectorError) else error
    if isinstance(below, OSError) and below.errno in SHORTAGES:
        cause = Cause(CauseKind.WORKER, detail_of(below))
        return WorkerExhausted("The worker lacks a resource", cause=cause)
    return None


def no_picture(detail: str) -> TryAgain:
    """The error for an answer, or a job, that has no usable picture. It may be paid for, and the
    request may be the reason, so it is not repeated for long."""
    return TryAgain(_NOT_MADE, cause=_provider(detail))


def failed_safety_check(detail: str = "safety check") -> Refused:
    return Refused(
        "The pictures or the prompt did not pass the safety check; the credit was refunded",
        code=ErrorCode.MODERATION_BLOCKED,
        cause=_provider(detail),
    )


def unusable_picture(detail: str) -> Refused:
    return Refused(
        "A picture cannot be used to make a new one; the credit was refunded",
        code=ErrorCode.INVALID_IMAGE,
        cause=_provider(detail),
    )


def _provider(detail: str) -> Cause:
    return Cause(CauseKind.PROVIDER, detail)


def network_detail(error: BaseException) -> str:
    """Of aiohttp's errors the one below says more."""
    if isinstance(error, ClientConnectorCertificateError):
        return detail_of(error.certificate_error)
    if isinstance(error, ClientConnectorError):
        return detail_of(error.os_error)
    return detail_of(error)


def rejected_request(detail: str) -> RuntimeError:
    """The provider says that our request is wrong: a bug in this code."""
    return RuntimeError(f"The provider rejected the request as invalid: {detail}")
