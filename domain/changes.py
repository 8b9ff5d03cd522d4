"""Changes of sessions, from the processes that commit them to those whose clients wait for them.

What is published is a hint: that a session has changed, never how. Its reader reads the session.
So a hint may be lost, late or repeated, and an external consumer need not publish any.
"""

from collections.abc import AsyncGenerator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Final, Protocol
from uuid import UUID

from domain.credits import Owner
from domain.sessions import GenerationSession

NEVER_READ: Final = -1
"""Below every revision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Change:
    """The hint that a session has a new state."""

    session_id: UUID
    owner: Owner


class ChangePublisherPort(Protocol):
    """Tells other processes of committed changes."""

    def publish(self, session: GenerationSession) -> None:
        """Publish that ``session`` has changed, soon, and without waiting for it. Never raises: a
        change may be lost, and is published at most once."""


class ChangeFeedPort(Protocol):
    """Hears of the changes that any process publishes."""

    def listen(self) -> AsyncGenerator[Sequence[Change], None]:
        """The changes that are published from the first item on, which is empty. Changes may be
        lost, repeated or late. Raises ``QueueUnavailable`` once it hears nothing more; then begin
        anew, and read what is watched: changes were lost."""


class WatchReadPort(Protocol):
    """Reading the sessions that clients wait for, many in one call. Raises
    ``DatabaseUnavailable``."""

    async def newer(self, known: Sequence[tuple[UUID, int]]) -> list[GenerationSession]:
        """Of these sessions, those that have a revision above the given one, as they are now. A
        session whose row cannot be read is left out."""

    async def recent(
        self, since: Mapping[tuple[Owner, str | None], datetime], *, limit: int
    ) -> list[tuple[UUID, Owner]]:
        """The unfinished sessions of each of these owners, or of its shopper, and those created
        after the given time: of each status, the newest ``limit``."""


class NoChanges(ChangePublisherPort):
    """Publishes nothing: for a process without Redis, and for tests of other things."""

    def publish(self, session: GenerationSession) -> None: ...


NO_CHANGES: Final = NoChanges()
