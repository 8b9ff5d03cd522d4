"""Which answers are tried again, and when."""

import random
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime

RETRIED_STATUSES = frozenset({429, 503})


@dataclass(frozen=True, slots=True, kw_only=True)
class Retries:
    """Limits of the tries of one call. The wait before the n-th retry is drawn from 0 to
    ``base_seconds * 2**n``, at most ``max_seconds`` (backoff with full jitter), after the
    ``Retry-After`` of the response. No try begins later than ``total_seconds`` after the first."""

    attempts: int = 6
    total_seconds: float = 120.0
    base_seconds: float = 0.5
    max_seconds: float = 20.0
    draw: Callable[[float, float], float] = random.uniform

    def delay(self, retry: int, retry_after_seconds: float | None) -> float:
        """Seconds to wait before a retry, counted from 0."""
        most = min(self.max_seconds, self.base_seconds * 2.0 ** min(retry, 30))
        return (retry_after_seconds or 0.0) + self.draw(0.0, most)


def retry_after_seconds(value: str | None, now: datetime) -> float | None:
    """The header ``Retry-After``, seconds or an HTTP date (RFC 9110, section 10.2.3), as seconds
    from now; None if it is missing or neither."""
    text = (value or "").strip()
    if text.isascii() and text.isdigit():
        return float(text[:9])
    try:
        date = parsedate_to_datetime(text)
    except (ValueError, TypeError):
        return None
    return max(0.0, (date.replace(tzinfo=date.tzinfo or UTC) - now).total_seconds())


def is_retried(status: int, code: str, after_seconds: float | None) -> bool:
    """Whether a later try can succeed: too many requests, an outage, or a repetition whose first
    request is not settled yet."""
    unsettled = status == 409 and code == "CONFLICT" and after_seconds is not None
    return status in RETRIED_STATUSES or unsettled
