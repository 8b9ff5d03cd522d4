"""The audit log in this process's memory, for tests."""

from collections.abc import Callable
from datetime import datetime
from uuid import UUID

from domain.account_ports import AuditLogPort
from domain.operators import Operator, OperatorAction


class InMemoryAuditLog(AuditLogPort):
    """``entries`` is the whole log, oldest first."""

    def __init__(self, *, clock: Callable[[], datetime]) -> None:
        self.entries: list[OperatorAction] = []
        self._begun: set[UUID] = set()
        self._clock = clock

    async def actions(
        self,
        *,
        subject: str | None,
        limit: int,
        before_id: int | None = None,
        actor: str | None = None,
    ) -> list[OperatorAction]:
        found = [
            entry
            for entry in reversed(self.entries)
            if subject in {None, entry.subject}
            and actor in {None, entry.actor}
            and (before_id is None or entry.id < before_id)
        ]
        return found[:limit]

    async def begin(
        self, by: Operator, action: str, subject: str, *, action_id: UUID, **details: object
    ) -> bool:
        if action_id in self._begun:
            return False
        self._begun.add(action_id)
        self.record(by, action, subject, **details)
        return True

    async def add(self, by: Operator, action: str, subject: str, **details: object) -> None:
        self.record(by, action, subject, **details)

    def record(self, by: Operator | None, action: str, subject: object, **details: object) -> None:
        """Add an entry, unless no operator makes the change."""
        if by is None:
            return
        entry = OperatorAction(
            id=len(self.entries) + 1,
            at=self._clock(),
            actor=by.actor,
            action=action,
            subject=str(subject),
            reason=by.reason,
            details=details,
        )
        self.entries.append(entry)
