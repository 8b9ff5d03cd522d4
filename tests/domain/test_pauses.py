"""Pauses: a reason has to be given, and is kept without the spaces around it."""

import pytest

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.pauses.memory import InMemoryPauseRepo
from domain.errors import InvalidInput
from domain.operator_ports import Switch
from domain.operators import Operator
from domain.pauses import Pauses
from tests.support.clock import START

pytestmark = pytest.mark.anyio


@pytest.fixture
def pauses() -> Pauses:
    log = InMemoryAuditLog(clock=lambda: START)
    return Pauses(pauses=InMemoryPauseRepo(log=log, clock=lambda: START))


async def test_pause_requires_a_reason(pauses: Pauses) -> None:
    """Operators who find the service paused have to be told why."""
    with pytest.raises(InvalidInput, match=r"^reason: must not be empty$"):
        await pauses.pause(Switch.INTAKE, by=Operator(actor="cli:alice"))

    assert list(await pauses.paused()) == []


async def test_resume_needs_no_reason(pauses: Pauses) -> None:
    """The first call resumes, the second finds nothing to resume."""
    await pauses.pause(Switch.INTAKE, by=Operator(actor="cli:alice", reason="x"))

    resumed = [await pauses.resume(Switch.INTAKE, by=Operator(actor="cli:alice")) for _ in range(2)]

    assert resumed == [True, False]


@pytest.mark.parametrize(
    ("reason", "problem"),
    [("", "must not be empty"), (" ", "must not be empty"), ("x" * 501, "has more than 500"),
     ("a\nb", "contains a character")],
)  # fmt: skip
def test_reason_of_an_operator(reason: str, problem: str) -> None:
    """1 to 500 printable characters."""
    with pytest.raises(InvalidInput, match=rf"^reason: {problem}"):
        Operator(actor="cli:alice", reason=reason)


def test_spaces_around_are_dropped() -> None:
    """So a text that is short enough without them also fits into the database."""
    operator = Operator(actor=f" {'a' * 200} ", reason=f" {'x' * 500}\t")

    assert operator == Operator(actor="a" * 200, reason="x" * 500)
