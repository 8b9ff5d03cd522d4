"""Operators' use cases: the state of the service, and dead letters."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import datetime, timedelta
from uuid import UUID

from domain.errors import Conflict, NotFound, TruncatedLetter
from domain.operator_ports import OperatorReadPort, Snapshot
from domain.ports import DeadLetterPort
from domain.sessions import GenerationSession
from domain.tasks import DeadLetter

ReadSession = Callable[[UUID], Awaitable[GenerationSession]]
"""Any owner's session. Raises ``NotFound`` and ``DatabaseUnavailable``."""

FRESH = timedelta(seconds=2)
"""How long a snapshot serves all callers of a process."""
FRESH_AT_MOST = timedelta(seconds=10)
_SHARE_OF_TIME = 10


class Overview:
    """The state of the service. However many ask, one read is in flight, and its result serves all
    for two seconds; for ten times as long as it took if that is longer, up to ten seconds, so that
    a large database does little else than its work."""

    def __init__(self, *, reads: OperatorReadPort, clock: Callable[[], datetime]) -> None:
        self._reads = reads
        self._clock = clock
        self._latest: Snapshot | None = None
        self._read_at = clock()
        self._fresh_for = FRESH
        self._reading: asyncio.Task[Snapshot] | None = None

    async def snapshot(self) -> Snapshot:
        """At most ``FRESH_AT_MOST`` old. Raises ``DatabaseUnavailable``."""
        if self._latest is not None and self._is_fresh():
            return self._latest
        if self._reading is None:
            self._reading = asyncio.create_task(self._read())
            self._reading.add_done_callback(self._ended)
        # A caller that gives up does not end the read of the others.
        return await asyncio.shield(self._reading)

    def _is_fresh(self) -> bool:
        """Not if the clock was set back."""
        return timedelta(0) <= self._clock() - self._read_at < self._fresh_for

    async def _read(self) -> Snapshot:
        began_at = self._clock()
        self._latest = await self._reads.snapshot()
        self._read_at = self._clock()
        took = self._read_at - began_at
        self._fresh_for = min(max(FRESH, _SHARE_OF_TIME * took), FRESH_AT_MOST)
        return self._latest

    def _ended(self, reading: "asyncio.Task[Snapshot]") -> None:
        self._reading = None
        if not reading.cancelled():
            reading.exception()  # Its callers may all have given up.


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
