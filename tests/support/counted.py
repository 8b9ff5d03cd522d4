"""What this process counts during a test."""

from config.cells import OWN_CELLS


class Counted:
    """What is counted from here on."""

    def __init__(self) -> None:
        self._before = OWN_CELLS.totals()

    def __call__(self, name: str) -> dict[tuple[str, ...], float]:
        """How much each series of a counter has grown, if it has."""
        return {
            labels: grown
            for (metric, labels), values in OWN_CELLS.totals().items()
            if metric == name
            and (grown := values[0] - self._before.get((metric, labels), [0.0])[0])
        }
