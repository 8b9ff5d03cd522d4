"""The arithmetic: from the samples of all rounds to findings, and whether these meet their aims."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil
from statistics import linear_regression, median
from typing import Any

Sample = Mapping[str, Any]
"""The figures that one slot measured in one round, by name; a name ends in its unit."""

Round = Mapping[str, Sample]
"""One sample of each slot, by name."""


def percentile(values: Sequence[float], percent: float) -> float:
    """The smallest value that is not exceeded by ``percent`` of the values (nearest rank)."""
    ordered = sorted(values)
    return ordered[max(0, ceil(len(ordered) * percent / 100) - 1)]


def slope(points: Sequence[tuple[float, float]]) -> float:
    """The growth of y per unit of x, by least squares."""
    return linear_regression(*zip(*points, strict=True)).slope


@dataclass(frozen=True, slots=True, kw_only=True)
class Aim:
    """A lower or upper bound on a figure."""

    bound: float
    is_lower: bool

    def is_met_by(self, value: float) -> bool:
        return value >= self.bound if self.is_lower else value <= self.bound

    def fraction_reached_by(self, value: float) -> float:
        """1 or more if the aim is met."""
        if self.is_lower:
            return value / self.bound
        return self.bound / value if value > 0 else float("inf")

    def __str__(self) -> str:
        return f"{'>=' if self.is_lower else '<='} {self.bound:g}"


def at_least(bound: float) -> Aim:
    return Aim(bound=bound, is_lower=True)


def at_most(bound: float) -> Aim:
    return Aim(bound=bound, is_lower=False)


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A figure computed from the samples of some ``slots``.

    ``of`` computes it for one round; its median over the rounds counts. If a round has too few
    values, ``pooled`` computes it from all rounds at once.
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
    """The result of a row; ``values`` has the figure of each round."""

    name: str
    title: str
    aim: Aim
    value: float
    values: Sequence[float]

    @property
    def is_met(self) -> bool:
        return self.aim.is_met_by(self.value)
