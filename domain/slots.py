"""Where a worker works on one session, as the core sees it."""

from datetime import timedelta
from typing import Protocol

from domain.causes import Cause
from domain.sessions import Fault, GenerationSession, Usage


class Slot(Protocol):
    """Where a session is worked on: its turn at the provider's limit, and who is told what goes
    wrong. Only ``take_start`` may raise."""

    def has_inputs(self, session: GenerationSession) -> None:
        """Nothing more is fetched for the session from hosts of its owner's choice."""

    def needs_no_start(self, session: GenerationSession) -> None:
        """The session needs no permit of the provider's limit, at least not soon."""

    async def take_start(self, session: GenerationSession, *, at_most: timedelta) -> None:
        """Take a permit of the provider's limit. Raises ``NotStarted`` if there is none for
        ``at_most``, or when the process stops."""

    def waited(self, session: GenerationSession) -> float:
        """How many seconds the session has waited for a permit. They are no part of its work."""

    def picture_made(self, session: GenerationSession, usage: Usage | None) -> None:
        """The provider has made the session's picture, which is to be paid for whatever becomes of
        the attempt."""

    def attempt_failed(self, session: GenerationSession, fault: Fault) -> None:
        """The attempt failed; the session goes on or ends without a picture."""

    def session_failed(self, session: GenerationSession, code: str) -> None:
        """The session failed with this ``error_code``, as the database has confirmed."""

    def picture_held(self, session: GenerationSession, cause: Cause) -> None:
        """The storage does not take the picture, which is kept in memory for some time."""


class _FreeSlot(Slot):
    """Without a limit, and without anybody to tell."""

    def has_inputs(self, session: GenerationSession) -> None: ...
    def needs_no_start(self, session: GenerationSession) -> None: ...
    async def take_start(self, session: GenerationSession, *, at_most: timedelta) -> None: ...
    def waited(self, session: GenerationSession) -> float:  # noqa: ARG002
        return 0.0

    def picture_made(self, session: GenerationSession, usage: Usage | None) -> None: ...
    def attempt_failed(self, session: GenerationSession, fault: Fault) -> None: ...
    def session_failed(self, session: GenerationSession, code: str) -> None: ...
    def picture_held(self, session: GenerationSession, cause: Cause) -> None: ...


FREE_SLOT = _FreeSlot()
