"""What a call asks its client to do. A call is a generator of steps (a flow): it decides, and the
synchronous and the asynchronous client perform the same steps, each in its way."""

import json
from collections.abc import Callable, Generator, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any, TypeVar

from wearon_client.errors import ApiError, ConnectionFailed, WearonError
from wearon_client.models import Session
from wearon_client.retries import Retries, is_retried, retry_after_seconds


@dataclass(frozen=True, slots=True, kw_only=True)
class Request:
    """Send a request: the answer is a `Reply`, or `Lost`. ``url`` may be relative to the API's.
    With ``streams`` the body of a 200 is left open, for `Read`: ``timeout_seconds`` bounds each
    silence, and ``lasting_seconds`` the whole."""

    method: str
    url: str
    headers: Mapping[str, str]
    body: bytes | None = None
    authorized: bool = True
    streams: bool = False
    timeout_seconds: float = 30.0
    lasting_seconds: float = float("inf")


@dataclass(frozen=True, slots=True)
class Read:
    """Read more of the open stream: the answer is bytes, or None once it ended, broke, was silent
    for too long or has lasted as long as it may."""


@dataclass(frozen=True, slots=True)
class Opened:
    """Tell the caller that the stream is open."""


@dataclass(frozen=True, slots=True)
class Sleep:
    """Wait."""

    seconds: float


@dataclass(frozen=True, slots=True)
class Deliver:
    """Tell the caller of a new state."""

    session: Session


@dataclass(frozen=True, slots=True)
class Reply:
    """A complete response, or the head of a stream. Names of headers are in lower case."""

    status: int
    headers: Mapping[str, str]
    body: bytes = b""

    @property
    def is_enveloped(self) -> bool:
        """Whether this is an answer of the API: not that of a proxy, and not half of one."""
        try:
            return "data" in json.loads(self.body)
        except (ValueError, TypeError):
            return False

    @property
    def data(self) -> Any:
        """The envelope's data."""
        return json.loads(self.body)["data"]


@dataclass(frozen=True, slots=True)
class Lost:
    """No response, or only a part of one."""

    cause: BaseException | str


T = TypeVar("T")
Step = Request | Read | Opened | Sleep | Deliver
Flow = Generator[Step, Any, T]


class Tries:
    """Counts the tries of one call against its limits."""

    def __init__(
        self, retries: Retries, clock: Callable[[], float], end: float = float("inf")
    ) -> None:
        self._retries, self._clock, self._end = retries, clock, end
        self.reset()

    def reset(self) -> None:
        """Begin again, after a success of a call that goes on."""
        self._retried = 0
        self._until = self._clock() + self._retries.total_seconds

    @property
    def left_seconds(self) -> float:
        return min(self._until, self._end) - self._clock()

    def delay_after(self, reply: Reply | Lost, least_seconds: float | None = None) -> float:
        """Seconds to wait before the next try. Raises the failure if there is none."""
        failure = failure_of(reply)
        after = least_seconds
        if isinstance(failure, ApiError):
            after = failure.retry_after_seconds
            if not is_retried(failure.status, failure.code, after):
                raise failure
        delay = self._retries.delay(self._retried, after)
        self._retried += 1
        if self._retried >= self._retries.attempts or delay >= self.left_seconds:
            raise failure
        return delay


def failure_of(reply: Reply | Lost) -> WearonError:
    """The error that a response stands for."""
    if isinstance(reply, Lost):
        failure = ConnectionFailed(str(reply.cause) or type(reply.cause).__name__)
        failure.__cause__ = reply.cause if isinstance(reply.cause, BaseException) else None
        return failure
    code, message = _code_and_message(reply)
    return ApiError(
        status=reply.status,
        code=code,
        message=message,
        request_id=reply.headers.get("x-request-id"),
        retry_after_seconds=retry_after_seconds(
            reply.headers.get("retry-after"), datetime.now(UTC)
        ),
    )


def _code_and_message(reply: Reply) -> tuple[str, str]:
    """Those of the envelope. A proxy or a storage may answer without one."""
    try:
        error = json.loads(reply.body)["error"]
        return str(error["code"]), str(error["message"])
    except (ValueError, TypeError, KeyError):
        return "UNKNOWN", "a response without an envelope"
