"""Which states of the followed sessions are new."""

import json
from collections.abc import Iterable

from wearon_client.models import Session, is_final
from wearon_client.sse import Event


class Follower:
    """Follows sessions until each is final. Streams repeat states after a reconnect, and an old
    stream may still deliver: a state counts only if its revision is above the newest one."""

    def __init__(self, session_ids: Iterable[str]) -> None:
        self.pending = list(dict.fromkeys(session_ids))
        self.states: dict[str, Session] = {}
        self._revisions: dict[str, int] = {}

    @property
    def is_single(self) -> bool:
        """Whether one session is left."""
        return len(self.pending) == 1

    def revision(self, session_id: str) -> int | None:
        """The newest revision that is known."""
        return self._revisions.get(session_id)

    def newer(self, event: Event) -> Session | None:
        """The session of an event if it is news; None for old states, other events and other
        sessions. Raises ValueError for a state that cannot be read."""
        if event.type != "generation" or not (event.id and event.id.isascii()):
            return None
        if not event.id.isdigit():
            return None
        session: Session = json.loads(event.data)
        session_id, revision = session["session_id"], int(event.id[:18])
        if session_id not in self.pending or revision <= self._revisions.get(session_id, -1):
            return None
        self._revisions[session_id], self.states[session_id] = revision, session
        if is_final(session):
            self.pending.remove(session_id)
        return session
