"""The operators of the console, and the interface that keeps them."""

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from enum import StrEnum
from typing import Protocol

from domain.errors import InvalidInput
from domain.operators import Operator

DEVELOPER = "developer"
"""The operator of ``wearon dev``, who needs no row in the database."""

_NAME = re.compile(r"[a-z0-9][a-z0-9._@-]{0,63}")


class Role(StrEnum):
    """What an operator may do: a viewer reads, an operator also acts, and an admin also does what
    is hard to undo. Each role includes those before it."""

    VIEWER = "viewer"
    OPERATOR = "operator"
    ADMIN = "admin"

    def includes(self, other: "Role") -> bool:
        ranks = list(Role)
        return ranks.index(self) >= ranks.index(other)


def checked_operator_name(name: str) -> str:
    """Raises ``InvalidInput`` unless an operator can have this name."""
    if not _NAME.fullmatch(name):
        raise InvalidInput(
            "name", "must be 1 to 64 of a-z 0-9 . _ @ - and begin with one of a-z 0-9"
        )
    if name == DEVELOPER:
        raise InvalidInput("name", "is reserved for development")
    return name


@dataclass(frozen=True, slots=True, kw_only=True)
class ConsoleOperator:
    """A person who may sign in to the console. ``epoch`` increases with each change of the role,
    the password or the revocation: it ends the sign-ins of before. Without ``password_hash``, the
    password is still to be set through the one-time link."""

    name: str
    role: Role
    epoch: int
    made_at: datetime
    revoked_at: datetime | None = None
    password_hash: str | None = field(default=None, repr=False)


class OperatorRepoPort(Protocol):
    """The console's operators. Each change is in the audit log with the same commit, with the
    subject ``operator:NAME``. Times are the database's. Raises ``DatabaseUnavailable``."""

    async def invite(
        self, name: str, role: Role, *, link_sha256: str, lifetime: timedelta, by: Operator
    ) -> ConsoleOperator:
        """Add an operator, who sets the password through the link. An operator who exists gets this
        role and this link instead; its password and its revocation are gone, and its epoch is the
        next one."""

    async def get(self, name: str) -> ConsoleOperator | None:
        """The operator, also if revoked; None if there is none."""

    async def all(self, *, limit: int) -> Sequence[ConsoleOperator]:
        """Ordered by name, including revoked operators."""

    async def by_link(self, link_sha256: str) -> ConsoleOperator | None:
        """The operator whose link this is; None if the link is unknown, used or expired, or its
        operator is revoked."""

    async def set_password(self, link_sha256: str, password_hash: str) -> ConsoleOperator | None:
        """Use the link: the operator has this password and the next epoch. None, and nothing
        changes, where ``by_link`` returns None. Of many concurrent calls, one uses the link. The
        audit log names ``console:NAME`` as the actor."""

    async def revoke(self, name: str, *, by: Operator) -> bool:
        """The operator can sign in no more, the epoch is the next one, and an unused link is gone.
        False, and nothing changes, if there is no such operator or it is revoked already."""
