"""Which tests run one after the other, and which of them first, where several processes run them.

A file is a unit: its tests share the servers and deployments that it starts. All of the system
tests are one, for they share a deployment, and so are those in a browser. The simulation is cut
into its tests, because each of them computes for long and starts nothing.

Long units that mostly wait come first, so that the processors are busy beside them until the end,
and the small ones that only compute fill what is left.
"""

from xdist.scheduler import LoadScopeScheduling  # type: ignore[import-untyped]

FIRST = (
    "tests/chaos/",
    "tests/system/",
    "tests/docs/test_commands.py",
    "tests/browser/",
    "tests/soak/",
    "tests/bench/",
)
LAST = ("tests/simulation/",)
SHARED = ("tests/system/", "tests/browser/")
"""Folders whose tests are one unit."""


def rank(nodeid: str) -> int:
    """Tests with a lower one are begun before all with a higher one."""
    for number, folder in enumerate(FIRST):
        if nodeid.startswith(folder):
            return number
    return len(FIRST) + nodeid.startswith(LAST)


def unit_of(nodeid: str) -> str:
    """The name of what the test is run with, in order and by one process."""
    for folder in SHARED:
        if nodeid.startswith(folder):
            return folder
    return nodeid if nodeid.startswith(LAST) else nodeid.partition("::")[0]


class UnitScheduling(LoadScopeScheduling):  # type: ignore[misc]
    """Hands out unit by unit, in the order of the collection."""

    def _split_scope(self, nodeid: str) -> str:
        return unit_of(nodeid)
