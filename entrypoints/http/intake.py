"""Follows operators' pauses of the intake, for the submissions of one API process."""

from collections.abc import Awaitable, Callable, Sequence

import structlog

from domain.operator_ports import Pause, Switch
from domain.submission import Submission

TURNS = 2
"""The pauses are read at every second turn of the housekeeping, which comes once a second."""

log = structlog.get_logger(__name__)


class Intake:
    """Tells ``submission`` whether the intake is paused, as last read by ``read_pauses``."""

    def __init__(
        self, *, read_pauses: Callable[[], Awaitable[Sequence[Pause]]], submission: Submission
    ) -> None:
        self._read_pauses = read_pauses
        self._submission = submission
        self._turn = 0

    async def follow_pauses(self) -> None:
        """Read the pauses, at every ``TURNS``th call. Raises ``DatabaseUnavailable``; then the last
        known state stands."""
        self._turn += 1
        if self._turn % TURNS == 1:
            found = await self._read_pauses()
            self._apply(next((each for each in found if each.switch is Switch.INTAKE), None))

    def _apply(self, pause: Pause | None) -> None:
        was_paused, self._submission.is_paused = self._submission.is_paused, pause is not None
        if pause is not None and not was_paused:
            log.warning("intake_paused", actor=pause.actor, reason=pause.reason)
        elif pause is None and was_paused:
            log.info("intake_resumed")
