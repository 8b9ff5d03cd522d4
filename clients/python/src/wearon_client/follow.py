"""Which states of the followed sessions are new, and where their streams are."""

import json
from collections.abc import Iterable
from urllib.parse import quote, urlencode

from wearon_client.models import Session, is_final
from wearon_client.sse import Event

GENERATIONS = "/api/v1/generations"
EVENTS = "/api/v1/events"


def path_of(session_id: str) -> str:
    return f"{GENERATIONS}/{quote(session_id, safe='')}"


class Follower:
    """Follows sessions until each is final. Streams repeat states after a reconnect, and an old
    stream may still deliver: a state counts only if its revision is above the newest one."""

    def __init__(self, session_ids: Iterable[str]) -> None:
        self.pending = list(dict.fromkeys(session_ids))
        self.states: dict[str, Session] = {}
        self._revisions: dict[str, int] = {}

    @property
    def is_done(self) -> bool:
        return not self.pending

    def resumes_at(self) -> tuple[str, int | None]:
        """The URL, and the revision to resume after: one session's stream has revisions to resume
        by, and that of several sessions begins with their current states."""
        if len(self.pending) == 1:
            (session_id,) = self.pending
            return f"{path_of(session_id)}/events", self._revisions.get(session_id)
        return f"{EVENTS}?{urlencode({'ids': ','.join(self.pending)})}", None

    def newer(self, event: Event) -> Session | None:
        """The session of an event if it is news; None for old states, other events and other
        sessions. Raises ValueError for a state that cannot be read."""
        if (state := _state_of(event)) is None:
            return None
        session_id, revision, session = state
        if session_id not in self.pending or revision <= self._revisions.get(session_id, -1):
            return None
        self._revisions[session_id], self.states[session_id] = revision, session
        if is_final(session):
            self.pending.remove(session_id)
        return session


class Everything:
    """Follows all sessions of the caller, without an end. Such a stream does not resume."""

    is_done = False

    def resumes_at(self) -> tuple[str, int | None]:
        return EVENTS, None

    def newer(self, event: Event) -> Session | None:
        """Every state: a stream tells each one once. Raises as `Follower.newer` does."""
        state = _state_of(event)
        return None if state is None else state[2]


def _state_of(event: Event) -> tuple[str, int, Session] | None:
    """The session's id, its revision and its state, if that is what the event tells."""
    if event.type != "generation" or not (event.id and event.id.isascii()):
        return None
    if not event.id.isdigit():
        return None
    session: Session = json.loads(event.data)
    return session["session_id"], int(event.id[:18]), session
