"""Trace Context: the id that ties a request to its task, its provider's call and its webhooks.

The header and its rules are those of the W3C, https://www.w3.org/TR/trace-context/, level 1.
"""

import re
from hashlib import blake2b
from uuid import UUID

_TRACEPARENT = re.compile(
    r"([0-9a-f]{2})-([0-9a-f]{32})-([0-9a-f]{16})-([0-9a-f]{2})(-.*)?", re.ASCII
)
_OUR_REQUEST_ID = re.compile(r"req_[0-9a-f]{24}")
MAX_LENGTH = 100
"""Of a header that is looked at: one of a later version may have more fields."""


def accepted(header: str) -> str | None:
    """The ``traceparent`` to pass on: the caller's, as one of version 00; None if it is invalid,
    and then a new trace begins."""
    found = _TRACEPARENT.fullmatch(header) if len(header) <= MAX_LENGTH else None
    if found is None:
        return None
    version, trace_id, parent_id, flags, rest = found.groups()
    if version == "ff" or (version == "00" and rest) or {"0"} in (set(trace_id), set(parent_id)):
        return None
    return f"00-{trace_id}-{parent_id}-{flags}"


def trace_id_of(request_id: str, traceparent: str | None = None) -> str:
    """The trace of a request: the caller's, or else one that follows from the request's id. That of
    our own ids ends with their digits."""
    if traceparent is not None:
        return traceparent[3:35]
    if _OUR_REQUEST_ID.fullmatch(request_id):
        return "00000000" + request_id[4:]
    return blake2b(request_id.encode(), digest_size=16).hexdigest()


def traceparent_of(session_id: UUID, request_id: str, traceparent: str | None) -> str:
    """What a session's task, provider call and webhooks carry: always the same, so that it need not
    be stored unless the caller gave one. A trace that began here is marked as not recorded."""
    if traceparent is not None:
        return traceparent
    return f"00-{trace_id_of(request_id)}-{session_id.hex[16:]}-00"
