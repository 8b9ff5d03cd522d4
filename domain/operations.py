"""Operators' use cases for dead letters."""

from collections.abc import Awaitable, Callable
from uuid import UUID

from domain.errors import Conflict, NotFound, TruncatedLetter
from domain.ports import DeadLetterPort
from domain.sessions import GenerationSession
from domain.tasks import DeadLetter

ReadSession = Callable[[UUID], Awaitable[GenerationSession]]
"""Any owner's session. Raises ``NotFound`` and ``DatabaseUnavailable``."""


class DeadLetters:
    """Reads, requeues and discards single dead letters. Raises ``NotFound`` for an unknown one."""

    def __init__(self, *, letters: DeadLetterPort, read_session: ReadSession) -> None:
        self._letters = letters
        self._read_session = read_session

    async def get(self, letter_id: UUID) -> DeadLetter:
        letter = await self._letters.get(letter_id)
        if letter is None:
            raise _no_such_letter()
        return letter

    async def requeue(self, letter_id: UUID) -> None:
        """Move the letter back to the queue, behind all tasks. Raises ``TruncatedLetter``, and
        ``Conflict`` if its session has a final status: a worker would find nothing to do."""
        letter = await self.get(letter_id)
        if letter.is_truncated:
            raise TruncatedLetter(
                f"Of letter {letter_id} only the first {len(letter.raw):,} of {letter.size:,} bytes"
                " were kept, so it cannot be requeued; discard it"
            )
        if letter.session_id is not None:
            await self._require_open(letter.session_id)
        if not await self._letters.requeue(letter_id):
            raise _no_such_letter()

    async def discard(self, letter_id: UUID) -> None:
        """Delete the letter."""
        if not await self._letters.discard(letter_id):
            raise _no_such_letter()

    async def _require_open(self, session_id: UUID) -> None:
        try:
            session = await self._read_session(session_id)
        except NotFound:
            return  # A worker will find out, and report it.
        if session.status.is_final:
            raise Conflict(
                f"Session {session_id} is already {session.status}: a worker would find nothing to"
                " do; discard the letter instead"
            )


def _no_such_letter() -> NotFound:
    return NotFound("No such dead letter; it may have been requeued or discarded already")
