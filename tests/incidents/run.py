"""Provokes incidents one after the other, and measures how soon their causes are named."""

import shutil
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

from tests.incidents.console import Console
from tests.incidents.night import Night
from tests.incidents.table import INCIDENTS, Incident, Sighting, may_mount
from tests.system.deployment import Deployment

NAMED_SECONDS = 35.0
"""What operators are promised."""
GIVEN_UP_SECONDS = 120.0
COLUMNS = (
    "incident",
    "named after s",
    "in console after s",
    "calm after s",
    "exit",
    "/health/ready",
    "sentence",
)
T = TypeVar("T")


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What was seen of an incident. A time is None if it was given up."""

    incident: Incident
    named_after: float | None = None
    shown_after: float | None = None
    """Of the console, which is looked at once a command has named the cause."""
    calm_after: float | None = None
    sighting: Sighting | None = None
    ready: str = ""
    skipped: str = ""

    @property
    def is_good(self) -> bool:
        """Named in time, and forgotten in time."""
        if self.skipped:
            return True
        return (
            _is_within(NAMED_SECONDS, self.named_after)
            and (self.incident.code is None or _is_within(NAMED_SECONDS, self.shown_after))
            and _is_within(self.incident.calm_seconds, self.calm_after)
        )

    def cells(self) -> tuple[str, ...]:
        if self.skipped:
            return (self.incident.name, *"-----", f"skipped: {self.skipped}")
        return (
            self.incident.name,
            _seconds(self.named_after),
            "-" if self.incident.code is None else _seconds(self.shown_after),
            _seconds(self.calm_after),
            str(self.sighting.exit_code) if self.sighting else "-",
            self.ready,
            self.sighting.sentence if self.sighting else "NOT NAMED",
        )


def run(names: list[str], say: Callable[[str], None]) -> bool:
    """The incidents whose names have one of ``names``, or all. Whether all went well."""
    wanted = [name.lower() for name in names] or [""]
    chosen = [each for each in INCIDENTS if any(name in each.name.lower() for name in wanted)]
    say(" | ".join(COLUMNS))
    outcomes = []
    with a_deployment() as deployment, Console.started(deployment) as console:
        for incident in chosen:
            outcomes.append(outcome_of(incident, deployment, console))
            say(" | ".join(outcomes[-1].cells()))
    missed = [each.incident.name for each in outcomes if not each.is_good]
    say(f"{len(outcomes)} incidents, missed: {', '.join(missed) or 'none'}")
    return bool(outcomes) and not missed


def outcome_of(incident: Incident, deployment: Deployment, console: Console) -> Outcome:
    """In a night of its own, which begins without an alarm."""
    if incident.needs_mount and not may_mount(deployment.folder):
        return Outcome(incident=incident, skipped="this machine lets us mount nothing")
    with Night.begun(deployment, **incident.settings) as night:
        began = time.monotonic()
        with incident.provoke(night):
            sighting, named_after = measured(lambda: incident.look(night), began)
            shown_after = seconds_until_shown(incident, console, began)
            ready = night.ready()
        _, calm_after = measured(night.is_calm, time.monotonic())
    return Outcome(
        incident=incident,
        named_after=named_after,
        shown_after=shown_after,
        calm_after=calm_after,
        sighting=sighting,
        ready=ready,
    )


def seconds_until_shown(incident: Incident, console: Console, began: float) -> float | None:
    code = incident.code
    if code is None:
        return None
    _, seconds = measured(lambda: console.shows(code), began)
    return seconds


def measured(look: Callable[[], T | None], began: float) -> tuple[T | None, float | None]:
    """The first true result of ``look``, and the seconds from ``began`` to it; None for both if
    there is none in time."""
    while time.monotonic() - began < GIVEN_UP_SECONDS:
        if seen := look():
            return seen, time.monotonic() - began
        time.sleep(0.1)  # Between two looks, each of which is a process.
    return None, None


@contextmanager
def a_deployment() -> Iterator[Deployment]:
    # Servers that we start as root run as a user who may not enter a folder of ours.
    folder = Path(tempfile.mkdtemp(prefix="wearon-incidents-"))
    folder.chmod(0o755)
    deployment = Deployment(folder)
    try:
        deployment.open()
        yield deployment
    finally:
        deployment.close()
        shutil.rmtree(folder)


def _is_within(bound: float, seconds: float | None) -> bool:
    return seconds is not None and seconds <= bound


def _seconds(value: float | None) -> str:
    return f"> {GIVEN_UP_SECONDS:.0f}" if value is None else f"{value:.1f}"
