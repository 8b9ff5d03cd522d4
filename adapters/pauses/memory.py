"""Pauses in this process's memory."""

from collections.abc import Callable, Sequence
from datetime import datetime

from adapters.audit_log.memory import InMemoryAuditLog
from domain.operator_ports import Pause, PauseRepoPort, Switch
from domain.operators import Operator


class InMemoryPauseRepo(PauseRepoPort):
    """Lost at exit. ``pauses`` is what is paused."""

    def __init__(self, *, log: InMemoryAuditLog, clock: Callable[[], datetime]) -> None:
        self.pauses: dict[Switch, Pause] = {}
        self._log = log
        self._clock = clock

    async def pause(self, switch: Switch, *, by: Operator) -> bool:
        if switch in self.pauses:
            return False
        self.pauses[switch] = Pause(
            switch=switch, since=self._clock(), actor=by.actor, reason=by.reason or ""
        )
        self._log.record(by, "switch.pause", switch)
        return True

    async def resume(self, switch: Switch, *, by: Operator) -> bool:
        pause = self.pauses.pop(switch, None)
        if pause is None:
            return False
        self._log.record(
            by,
            "switch.resume",
            switch,
            paused_by=pause.actor,
            paused_because=pause.reason,
            paused_seconds=int((self._clock() - pause.since).total_seconds()),
        )
        return True

    async def paused(self) -> Sequence[Pause]:
        return [self.pauses[switch] for switch in sorted(self.pauses)]
