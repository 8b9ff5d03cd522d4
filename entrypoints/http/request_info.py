"""What is known about the request being answered, for its log lines."""

import random
import re
import time
from collections.abc import Iterable
from contextvars import ContextVar
from typing import NotRequired, TypeAlias, TypedDict
from uuid import UUID

from structlog.typing import EventDict

from domain.traces import accepted, trace_id_of

RawHeaders: TypeAlias = Iterable[tuple[bytes, bytes]]

_OF_CALLERS = frozenset({b"x-request-id", b"traceparent"})
_REQUEST_ID = re.compile(rb"[A-Za-z0-9._-]{1,128}")


class RequestInfo(TypedDict):
    """What log lines say of a request. ``traceparent`` is the caller's, if it gave a valid one."""

    request_id: str
    trace_id: str
    traceparent: NotRequired[str]
    owner: NotRequired[str]
    session_id: NotRequired[UUID]
    """The session that the request created."""


REQUEST_INFO: ContextVar[RequestInfo | None] = ContextVar("request_info", default=None)
"""Set once per request; later findings are added to the dictionary itself."""


def new_info(headers: RawHeaders) -> RequestInfo:
    """The ids of a request: the caller's where they are well formed, else new ones."""
    for name, _ in headers:
        if name in _OF_CALLERS:
            return _info_of(headers)
    request_id = new_request_id()
    return {"request_id": request_id, "trace_id": "00000000" + request_id[4:]}


def _info_of(headers: RawHeaders) -> RequestInfo:
    traceparents = [value for name, value in headers if name == b"traceparent"]
    request_id = request_id_of(headers)
    if len(traceparents) == 1 and (given := accepted(traceparents[0].decode("latin-1"))):
        trace_id = trace_id_of(request_id, given)
        return {"request_id": request_id, "trace_id": trace_id, "traceparent": given}
    return {"request_id": request_id, "trace_id": trace_id_of(request_id)}


def merge_request_info(_: object, __: str, event: EventDict) -> EventDict:
    """Add the current request to a log event: a structlog processor."""
    info = REQUEST_INFO.get()
    return {**{name: str(value) for name, value in info.items()}, **event} if info else event


def request_id_of(headers: RawHeaders) -> str:
    """The caller's request id if it is well formed, else a new one."""
    for name, value in headers:
        if name == b"x-request-id" and _REQUEST_ID.fullmatch(value):
            return value.decode()
    return new_request_id()


def new_request_id() -> str:
    """``req_`` and 24 hexadecimal digits: the time in milliseconds, so that an operator's search
    knows when the session was created, and as many random digits."""
    return f"req_{time.time_ns() // 1_000_000:012x}{random.getrandbits(48):012x}"
