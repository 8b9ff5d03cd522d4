"""Operators' use case for pauses: what is switched off for a time, and by whom."""

from collections.abc import Sequence
from dataclasses import replace

from domain.labels import MAX_NOTE_LENGTH, checked_label
from domain.operator_ports import Pause, PauseRepoPort, Switch
from domain.operators import Operator


class Pauses:
    """Pauses and resumes the intake and the workers. Raises ``DatabaseUnavailable``."""

    def __init__(self, *, pauses: PauseRepoPort) -> None:
        self._pauses = pauses

    async def pause(self, switch: Switch, *, by: Operator) -> bool:
        """False if it is paused already: the first reason stays. Raises ``InvalidInput`` without a
        reason, which operators read when they ask why nothing happens."""
        reason = checked_label("reason", by.reason or "", max_length=MAX_NOTE_LENGTH)
        return await self._pauses.pause(switch, by=replace(by, reason=reason))

    async def resume(self, switch: Switch, *, by: Operator) -> bool:
        """False if it is not paused."""
        return await self._pauses.resume(switch, by=by)

    async def paused(self) -> Sequence[Pause]:
        """All that is paused."""
        return await self._pauses.paused()
