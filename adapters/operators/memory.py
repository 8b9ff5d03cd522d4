"""The console's operators in this process's memory."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from datetime import datetime, timedelta

from adapters.audit_log.memory import InMemoryAuditLog
from domain.console_ports import ConsoleOperator, OperatorRepoPort, Role
from domain.operators import Operator


class InMemoryOperatorRepo(OperatorRepoPort):
    """Lost at exit."""

    def __init__(self, *, clock: Callable[[], datetime], log: InMemoryAuditLog) -> None:
        self._operators: dict[str, ConsoleOperator] = {}
        self._links: dict[str, tuple[str, datetime]] = {}
        """The link of each operator who has one, by name, and when it expires."""
        self._clock = clock
        self._log = log

    async def invite(
        self, name: str, role: Role, *, link_sha256: str, lifetime: timedelta, by: Operator
    ) -> ConsoleOperator:
        earlier = self._operators.get(name)
        invited = ConsoleOperator(
            name=name,
            role=role,
            epoch=1 if earlier is None else earlier.epoch + 1,
            made_at=self._clock() if earlier is None else earlier.made_at,
        )
        self._operators[name] = invited
        self._links[name] = (link_sha256, self._clock() + lifetime)
        self._log.record(by, "operator.invite", f"operator:{name}", role=role)
        return invited

    async def get(self, name: str) -> ConsoleOperator | None:
        return self._operators.get(name)

    async def all(self, *, limit: int) -> Sequence[ConsoleOperator]:
        return [self._operators[name] for name in sorted(self._operators)][:limit]

    async def by_link(self, link_sha256: str) -> ConsoleOperator | None:
        for name, (known, expires_at) in self._links.items():
            if known == link_sha256 and expires_at > self._clock():
                return self._operators[name]
        return None

    async def set_password(self, link_sha256: str, password_hash: str) -> ConsoleOperator | None:
        operator = await self.by_link(link_sha256)
        if operator is None:
            return None
        changed = replace(operator, password_hash=password_hash, epoch=operator.epoch + 1)
        self._operators[operator.name] = changed
        del self._links[operator.name]
        by = Operator(actor=f"console:{operator.name}")
        self._log.record(by, "operator.password", f"operator:{operator.name}")
        return changed

    async def revoke(self, name: str, *, by: Operator) -> bool:
        operator = self._operators.get(name)
        if operator is None or operator.revoked_at is not None:
            return False
        self._operators[name] = replace(
            operator, revoked_at=self._clock(), epoch=operator.epoch + 1, password_hash=None
        )
        self._links.pop(name, None)
        self._log.record(by, "operator.revoke", f"operator:{name}")
        return True
