"""How a call over the network ends, and what happens to the process that makes it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from random import Random
from typing import Protocol


class Fate(StrEnum):
    """How one call to the database, the queue or the storage ends."""

    DONE = "done"
    REFUSED = "refused"
    """It has no effect, and the caller learns that."""
    UNREACHED = "unreached"
    """It has no effect, and the caller waits for its timeout."""
    NO_REPLY = "no reply"
    """It has its effect, and the caller waits for its timeout."""
    FALSE_ERROR = "false error"
    """It has its effect, and the caller gets an error reply, as from a proxy that passed it on."""
    LATE = "late"
    """The caller waits for its timeout, and then the call has its effect."""
    TWICE = "twice"
    """It has its effect twice, and the caller gets the second reply."""
    DIE_BEFORE = "die before"
    """The process is killed before the call has its effect."""
    DIE_AFTER = "die after"
    """The process is killed after the call has had its effect."""
    FREEZE = "freeze"
    """The process stops for a long time, and then goes on as if nothing had happened."""


FAULTS: list[Fate] = [fate for fate in Fate if fate is not Fate.DONE]
SAME_WITHOUT_EFFECT = {
    Fate.TWICE: Fate.DONE,
    Fate.NO_REPLY: Fate.UNREACHED,
    Fate.DIE_AFTER: Fate.DIE_BEFORE,
    Fate.FALSE_ERROR: Fate.REFUSED,
}
"""If a call has no effect, the first makes exactly the same run as the second."""


class Fates(Protocol):
    def next(self, call: str) -> Fate:
        """The fate of the next call."""

    def pause(self) -> float:
        """The network's delay of the next message, in seconds."""


@dataclass(slots=True)
class RandomFates:
    """Calls fail with a ``probability`` until ``calm`` is set."""

    random: Random
    probability: float
    calm: bool = False

    def next(self, call: str) -> Fate:  # noqa: ARG002 - the protocol's name
        if self.calm or self.random.random() >= self.probability:
            return Fate.DONE
        return self.random.choice(FAULTS)

    def pause(self) -> float:
        return self.random.choice((0.0, 0.001, 0.01, 0.1)) * self.random.random()


@dataclass(slots=True)
class PlannedFates:
    """The calls with the numbers in ``plan`` have these fates; all others succeed."""

    plan: Mapping[int, Fate]
    calls: list[str] = field(default_factory=list)

    def next(self, call: str) -> Fate:
        self.calls.append(call)
        return self.plan.get(len(self.calls) - 1, Fate.DONE)

    def pause(self) -> float:
        return 0.001


@dataclass(slots=True)
class FixedFates:
    """All calls of this name have this fate; all others succeed."""

    name: str
    fate: Fate

    def next(self, call: str) -> Fate:
        return self.fate if call == self.name else Fate.DONE

    def pause(self) -> float:
        return 0.001


@dataclass(slots=True)
class NamedFates:
    """The first call of each name in ``plan`` has this fate; all others succeed."""

    plan: dict[str, Fate]

    def next(self, call: str) -> Fate:
        return self.plan.pop(call, Fate.DONE)

    def pause(self) -> float:
        return 0.001
