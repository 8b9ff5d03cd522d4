"""The arithmetic: from the samples of all rounds to what was found, and whether that is the aim."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import linear_regression, median
from typing import Any

Sample = Mapping[str, Any]
"""What one slot measured in one round, by name; a name ends in its unit."""

Round = Mapping[str, Sample]
"""One turn of all slots, by name."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that at least ``percent`` of all are not above (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """By how much y grows as x grows by one, by least squares."""
    return linear_regression(*zip(*points, strict=True)).slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A bound on a figure."""

    bound: float
    is_least: bool

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.is_least else value <= self.bound

    def reached_by(self, value: float) -> float:
        """How much of the aim that is: 1 or more where it is met."""
        if self.is_least:
            return value / self.bound
        return self.bound / value if value > 0 else float("inf")

    def __str__(self) -> str:
        return f"{'>=' if self.is_least else '<='} {self.bound:g}"


def at_least(bound: float) -> Aim:
    return Aim(bound=bound, is_least=True)


def at_most(bound: float) -> Aim:
    return Aim(bound=bound, is_least=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure of one round, and the slots that it is made of.

    ``pooled`` makes it of all rounds at once, where one round has too few values for it; without
    it the median of the rounds counts.
    """

    name: str
    title: str
    aim: Aim
    slots: tuple[str, ...]
    of: Callable[[Round], float]
    pooled: Callable[[Sequence[Round]], float] | None = None

    def judge(self, rounds: Sequence[Round]) -> "Finding":
        values = [self.of(round_) for round_ in rounds]
        return Finding(
            name=self.name,
            title=self.title,
            aim=self.aim,
            value=median(values) if self.pooled is None else self.pooled(rounds),
            values=values,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """What was found of a row; ``values`` are those of its rounds."""

    name: str
    title: str
    aim: Aim
    value: float
    values: Sequence[float]

    @property
    def is_met(self) -> bool:
        return self.aim.is_met_by(self.value)
