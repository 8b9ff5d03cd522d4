"""Sessions as their owners see them."""

from dataclasses import dataclass
from uuid import UUID

from domain.credits import Owner
from domain.picture_ports import PictureStoragePort
from domain.ports import SessionReadPort
from domain.sessions import GenerationSession, SessionStatus

MAX_QUEUE_POSITION = 100
"""Positions past this one are unknown: a read counts the sessions ahead, and counting a thousand
would cost more than the rest of the read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session with the values that are computed on reading.

    ``picture_url`` is signed and expires. ``queue_position`` is 1 for the next session in the
    queue; None unless ``queued``, and past MAX_QUEUE_POSITION.
    """

    session: GenerationSession
    picture_url: str | None
    queue_position: int | None = None


class SessionViews:
    """Reads sessions and adds the computed values."""

    def __init__(self, *, reads: SessionReadPort, storage: PictureStoragePort) -> None:
        self._reads = reads
        self._storage = storage

    async def get(
        self, session_id: UUID, owner: Owner, *, shopper_id: str | None = None
    ) -> SessionView:
        """Raises ``NotFound``, also for another owner's or another shopper's session."""
        session = await self._reads.get(session_id, owner, shopper_id=shopper_id)
        return SessionView(
            session=session,
            picture_url=self._picture_url(session),
            queue_position=await self._queue_position(session),
        )

    def view_of(self, session: GenerationSession) -> SessionView:
        """For lists: without a position, because each position costs a query."""
        return SessionView(session=session, picture_url=self._picture_url(session))

    def _picture_url(self, session: GenerationSession) -> str | None:
        if session.status is not SessionStatus.COMPLETED:
            return None  # An external consumer may have written a link, then failed the session.
        if session.image_expired:
            return None
        if session.picture is None:
            return session.generated_image_url
        return self._storage.url(session.picture.object_key)

    async def _queue_position(self, session: GenerationSession) -> int | None:
        if session.status is not SessionStatus.QUEUED:
            return None
        before = await self._reads.queued_before(session, limit=MAX_QUEUE_POSITION)
        return before + 1 if before < MAX_QUEUE_POSITION else None
