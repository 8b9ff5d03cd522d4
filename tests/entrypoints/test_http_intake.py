"""An API process follows the operators' pauses of the intake."""

from collections.abc import Sequence

import pytest

from domain.errors import DatabaseUnavailable
from domain.operator_ports import Pause, Switch
from entrypoints.http.intake import TURNS, Intake
from tests.support.clock import START
from tests.support.service import Service

pytestmark = pytest.mark.anyio


class Pauses:
    """What is paused, and how often that was read."""

    def __init__(self) -> None:
        self.paused: list[Pause] = []
        self.is_away = False
        self.reads = 0

    def pause(self, switch: Switch) -> None:
        self.paused.append(Pause(switch=switch, since=START, actor="cli:alice", reason="x"))

    async def read(self) -> Sequence[Pause]:
        self.reads += 1
        if self.is_away:
            raise DatabaseUnavailable("away")
        return self.paused


@pytest.fixture
async def service() -> Service:
    return Service()


@pytest.fixture
def pauses() -> Pauses:
    return Pauses()


@pytest.fixture
def intake(service: Service, pauses: Pauses) -> Intake:
    return Intake(read_pauses=pauses.read, submission=service.submission)


async def turn(intake: Intake) -> None:
    """Until the pauses have been read once more."""
    for _ in range(TURNS):
        await intake.follow_pauses()


async def test_pause_and_resume_are_followed(
    service: Service, intake: Intake, pauses: Pauses
) -> None:
    """At the first call of a process too."""
    pauses.pause(Switch.INTAKE)
    await intake.follow_pauses()
    paused = service.submission.is_paused
    pauses.paused.clear()

    await turn(intake)

    assert (paused, service.submission.is_paused) == (True, False)


async def test_other_switches_do_not_matter(
    service: Service, intake: Intake, pauses: Pauses
) -> None:
    """Requests are accepted while the workers are paused."""
    pauses.pause(Switch.WORKERS)

    await turn(intake)

    assert not service.submission.is_paused


@pytest.mark.parametrize("was_paused", [True, False])
async def test_last_known_state_stands(
    service: Service, intake: Intake, pauses: Pauses, *, was_paused: bool
) -> None:
    """While the database does not answer."""
    if was_paused:
        pauses.pause(Switch.INTAKE)
    await intake.follow_pauses()
    pauses.is_away = True

    for _ in range(TURNS - 1):
        await intake.follow_pauses()
    with pytest.raises(DatabaseUnavailable):
        await intake.follow_pauses()

    assert service.submission.is_paused is was_paused


async def test_pauses_are_read_at_every_other_turn(intake: Intake, pauses: Pauses) -> None:
    """One statement in two seconds for each API process."""
    for _ in range(10):
        await intake.follow_pauses()

    assert pauses.reads == 5
