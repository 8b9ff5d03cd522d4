"""What an owner may see of its sessions."""

from dataclasses import dataclass
from uuid import UUID

from domain.credits import Owner
from domain.ports import PictureStoragePort, SessionReadPort
from domain.sessions import GenerationSession, SessionStatus

MAX_QUEUE_POSITION = 100
"""Each place before a session's is counted when it is read, so that it is the exact one, and a
thousand would cost more than all else about it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SessionView:
    """A session with what is made when it is read.

    ``picture_url`` is signed and expires. ``queue_position`` is 1 for the next session to be
    taken; None unless ``queued``, and where more than MAX_QUEUE_POSITION wait before it.
    """

    session: GenerationSession
    picture_url: str | None
    queue_position: int | None = None


class SessionViews:
    """Reads that add something to what the store holds."""

    def __init__(self, *, reads: SessionReadPort, storage: PictureStoragePort) -> None:
        self._reads = reads
        self._storage = storage

    async def get(self, session_id: UUID, owner: Owner) -> SessionView:
        """Raises ``NotFound``, also for what is another's."""
        session = await self._reads.get(session_id, owner)
        return SessionView(
            session=session,
            picture_url=self._picture_url(session),
            queue_position=await self._queue_position(session),
        )

    def view_of(self, session: GenerationSession) -> SessionView:
        """For listings: a position for each row would cost a query for each row."""
        return SessionView(session=session, picture_url=self._picture_url(session))

    def _picture_url(self, session: GenerationSession) -> str | None:
        if session.status is not SessionStatus.COMPLETED:
            return None  # A consumer that is not ours may have left a link to what was refunded.
        if session.picture is None:
            return session.generated_image_url
        if session.image_expired:
            return None
        return self._storage.url(session.picture.object_key)

    async def _queue_position(self, session: GenerationSession) -> int | None:
        if session.status is not SessionStatus.QUEUED:
            return None
        before = await self._reads.queued_before(session, limit=MAX_QUEUE_POSITION)
        return before + 1 if before < MAX_QUEUE_POSITION else None
