"""PauseRepoPort: each switch is paused and resumed once, with an entry of the audit log."""

import asyncio
from collections.abc import Awaitable, Callable
from datetime import timedelta
from pathlib import Path

import pytest

from adapters.pauses.postgres import PostgresPauseRepo
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.errors import DatabaseUnavailable
from domain.operator_ports import Pause, PauseRepoPort, Switch
from domain.operators import Operator
from tests.contracts.backends import Backend

pytestmark = pytest.mark.anyio

ALICE = Operator(actor="cli:alice", reason="the provider is down")
BOB = Operator(actor="cli:bob", reason="an update")


async def test_nothing_is_paused_at_first(backend: Backend) -> None:
    """A service that is new takes requests and tasks."""
    assert list(await backend.pauses.paused()) == []


@pytest.mark.parametrize("switch", Switch)
async def test_pause_says_what_since_when_by_whom_and_why(backend: Backend, switch: Switch) -> None:
    """And the same is in the audit log."""
    before = backend.now()

    paused = await backend.pauses.pause(switch, by=ALICE)

    (pause,) = await backend.pauses.paused()
    assert paused
    assert pause == Pause(
        switch=switch, since=pause.since, actor="cli:alice", reason="the provider is down"
    )
    assert timedelta(0) <= pause.since - before < timedelta(minutes=1)
    (action,) = await backend.actions(switch)
    assert (action.action, action.actor, action.reason, action.details) == (
        "switch.pause", "cli:alice", "the provider is down", {}
    )  # fmt: skip


async def test_first_pause_stays(backend: Backend) -> None:
    """A second pause returns False, changes nothing and is not in the audit log."""
    await backend.pauses.pause(Switch.WORKERS, by=ALICE)

    again = await backend.pauses.pause(Switch.WORKERS, by=BOB)

    (pause,) = await backend.pauses.paused()
    assert not again
    assert pause.actor == "cli:alice"
    assert len(await backend.actions()) == 1


async def test_switches_are_apart(backend: Backend) -> None:
    """All that is paused is listed, and one is resumed without the other."""
    await backend.pauses.pause(Switch.WORKERS, by=ALICE)
    await backend.pauses.pause(Switch.INTAKE, by=BOB)
    both = await backend.pauses.paused()

    resumed = await backend.pauses.resume(Switch.INTAKE, by=ALICE)

    assert resumed
    assert {pause.switch for pause in both} == set(Switch)
    assert [pause.switch for pause in await backend.pauses.paused()] == [Switch.WORKERS]


async def test_resuming_tells_what_the_pause_was(backend: Backend) -> None:
    """The audit log keeps whose pause ended, its reason and its length in seconds."""
    await backend.pauses.pause(Switch.INTAKE, by=ALICE)

    await backend.pauses.resume(Switch.INTAKE, by=Operator(actor="cli:bob"))

    _, action = await backend.actions(Switch.INTAKE)
    assert (action.action, action.actor, action.reason) == ("switch.resume", "cli:bob", None)
    seconds = action.details["paused_seconds"]
    assert action.details == {
        "paused_by": "cli:alice",
        "paused_because": "the provider is down",
        "paused_seconds": seconds,
    }
    assert isinstance(seconds, int)
    assert 0 <= seconds < 60


async def test_nothing_to_resume(backend: Backend) -> None:
    """False, without an entry in the audit log, also the second time."""
    await backend.pauses.pause(Switch.INTAKE, by=ALICE)
    await backend.pauses.resume(Switch.INTAKE, by=ALICE)

    again = await backend.pauses.resume(Switch.INTAKE, by=ALICE)
    other = await backend.pauses.resume(Switch.WORKERS, by=ALICE)

    assert (again, other) == (False, False)
    assert len(await backend.actions()) == 2


async def test_concurrent_changes_happen_once(backend: Backend) -> None:
    """Of many calls one pauses, and one resumes."""
    operators = [Operator(actor=f"cli:{number}", reason="x") for number in range(20)]
    paused = await asyncio.gather(
        *(backend.pauses.pause(Switch.INTAKE, by=operator) for operator in operators)
    )
    resumed = await asyncio.gather(
        *(backend.pauses.resume(Switch.INTAKE, by=operator) for operator in operators)
    )

    assert (paused.count(True), resumed.count(True)) == (1, 1)
    assert len(await backend.actions()) == 2


CALLS: dict[str, Callable[[PauseRepoPort], Awaitable[object]]] = {
    "pause": lambda repo: repo.pause(Switch.INTAKE, by=ALICE),
    "resume": lambda repo: repo.resume(Switch.INTAKE, by=ALICE),
    "paused": lambda repo: repo.paused(),
}


@pytest.mark.parametrize("method", CALLS)
async def test_database_that_is_down_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method raises DatabaseUnavailable."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresPauseRepo(database))

    await database.close()


def test_every_method_is_called_without_a_server() -> None:
    """A new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(PauseRepoPort) if not name.startswith("_")}
