"""The kinds of metrics that a process counts by itself: counters and histograms.

Their names and labels are declared in ``metrics``. Counting never waits and never fails.
"""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum

from config.cells import OWN_CELLS, Cells, Totals


class Kind(StrEnum):
    """A metric's type, as Prometheus names it."""

    COUNTER = "counter"
    GAUGE = "gauge"
    HISTOGRAM = "histogram"


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """What the page of metrics says of a metric, and its documentation."""

    name: str
    kind: Kind
    help: str
    labels: tuple[str, ...] = ()


class Counter:
    """A number that only grows, for each combination of labels. Values of labels come from a small
    closed set: never an owner, a session or a path."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        known: Sequence[tuple[str, ...]] = (),
        cells: Cells = OWN_CELLS,
    ) -> None:
        """``known`` combinations are shown as 0 before anything is counted, because Prometheus
        sees no increase in a series that is new."""
        self.metric = Metric(name=name, kind=Kind.COUNTER, help=text, labels=tuple(labels))
        self._known = known
        self._cells = cells
        self._places: dict[tuple[object, ...], int] = {}

    def inc(self, *labels: object, by: float = 1.0) -> None:
        """Count ``by`` more."""
        place = self._places.get(labels)
        if place is None:
            place = self._add(labels)
        self._cells.values[place] += by

    def show_known(self) -> None:
        """Show the known combinations from now on."""
        for labels in self._known:
            self.inc(*labels, by=0.0)

    def value(self, *labels: object) -> float:
        """What this process has counted."""
        place = self._places.get(labels)
        return 0.0 if place is None else self._cells.values[place]

    def _add(self, labels: tuple[object, ...]) -> int:
        place = self._cells.add(self.metric.name, tuple(map(str, labels)))
        self._places[labels] = place
        return place


class Histogram:
    """How many values were at most each of ``bounds``, and their sum."""

    def __init__(
        self,
        name: str,
        text: str,
        labels: Sequence[str] = (),
        *,
        bounds: Sequence[float],
        cells: Cells = OWN_CELLS,
    ) -> None:
        self.metric = Metric(name=name, kind=Kind.HISTOGRAM, help=text, labels=tuple(labels))
        self.bounds = tuple(bounds)
        self._cells = cells
        self._places: dict[tuple[object, ...], int] = {}

    def observe(self, value: float, *labels: object) -> None:
        """Count ``value``."""
        place = self._places.get(labels)
        if place is None:
            place = self._add(labels)
        values, bounds = self._cells.values, self.bounds
        values[place + bisect_left(bounds, value)] += 1.0
        values[place + len(bounds) + 1] += value

    def _add(self, labels: tuple[object, ...]) -> int:
        # A cell for each bound, one for what is above all of them, one for the sum.
        width = len(self.bounds) + 2
        place = self._cells.add(self.metric.name, tuple(map(str, labels)), width=width)
        self._places[labels] = place
        return place


def of_metric(totals: Totals, metric: Metric) -> dict[tuple[str, ...], list[float]]:
    """The series of ``metric`` among ``totals``, by their labels."""
    return {labels: values for (name, labels), values in totals.items() if name == metric.name}
