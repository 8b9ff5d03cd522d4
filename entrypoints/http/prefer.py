"""``Prefer: wait=N`` (RFC 7240): the client would rather wait for the end than ask again."""

import re
from typing import Annotated, Final, TypeAlias

from litestar.params import HeaderParameter
from litestar.types import Receive

from domain.callers import Caller
from domain.errors import Overloaded, TooManyStreams
from domain.sessions import GenerationSession
from domain.watching import Watching, final_state
from entrypoints.http.disconnects import ended_by_disconnect
from entrypoints.http.request_info import RawHeaders

MAX_WAIT_SECONDS: Final = 60
"""A longer wait is cut to this; then a client asks again."""

_WAIT = re.compile(r"wait=\"?([0-9]{1,9})\"?")

Prefer: TypeAlias = Annotated[
    str | None,
    HeaderParameter(
        name="Prefer",
        description=f"`wait=N`: answer once the session is final, after N seconds at the latest"
        f" (1 to {MAX_WAIT_SECONDS}). `Preference-Applied` says that the answer has waited.",
    ),
]


def wait_seconds(headers: RawHeaders) -> int:
    """How long the client would wait; 0 if it would not. As the RFC has it, what is malformed is
    ignored, and of several preferences the first one counts."""
    for name, value in headers:
        if name == b"prefer":
            for preference in value.decode("latin-1").lower().split(","):
                found = _WAIT.fullmatch(preference.partition(";")[0].strip())
                if found:
                    return min(int(found[1]), MAX_WAIT_SECONDS)
    return 0


def applied(seconds: int) -> tuple[bytes, bytes]:
    """The header that says so."""
    return b"preference-applied", b"wait=%d" % seconds


class Waits:
    """Requests that wait for the end of a session."""

    def __init__(self, watching: Watching) -> None:
        self._watching = watching

    async def final(
        self, session: GenerationSession, caller: Caller, *, seconds: int, receive: Receive
    ) -> tuple[GenerationSession | None, bool]:
        """``session``, which was read just now, once it is final, or None after ``seconds``; and
        whether the request has waited: with too many waiting clients it is answered at once."""
        if session.status.is_final:
            return session, True
        try:
            with self._watching.watch_on(caller, session) as watch:
                async with ended_by_disconnect(receive, watch):
                    return await final_state(watch, seconds=seconds), True
        except (TooManyStreams, Overloaded):
            return None, False
