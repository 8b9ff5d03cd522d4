"""What is known about the request being answered, for its log lines."""

from contextvars import ContextVar
from typing import NotRequired, TypedDict
from uuid import UUID

from structlog.typing import EventDict


class RequestInfo(TypedDict):
    request_id: str
    owner: NotRequired[str]
    session_id: NotRequired[UUID]
    """The session that the request created."""


REQUEST_INFO: ContextVar[RequestInfo | None] = ContextVar("request_info", default=None)
"""Set once per request; later findings are added to the dictionary itself."""


def merge_request_info(_: object, __: str, event: EventDict) -> EventDict:
    """Add the current request to a log event: a structlog processor."""
    info = REQUEST_INFO.get()
    return {**{name: str(value) for name, value in info.items()}, **event} if info else event
