"""When a process that ends sessions looks for what is due to their owners' endpoints.

It does not know which owners have endpoints. It learns them from what it delivers, so that the
sessions of all others cost it next to nothing.
"""

import asyncio
from collections import OrderedDict
from collections.abc import Callable

from domain.credits import Owner

SPACING_SECONDS = 0.05
"""Between two looks: sessions that end together share one."""
BLIND_SPACING_SECONDS = 1.0
"""Between two looks for owners to whom nothing was delivered lately."""
MAX_SERVED = 10_000
"""Owners that are remembered. The one that was served least recently is forgotten first."""


class Hints:
    """Calls ``look`` soon after a session has ended. A hint is no promise: what none is given for,
    or what a spacing drops, is found by the poll."""

    def __init__(self, look: Callable[[], None]) -> None:
        self._look = look
        self._served: OrderedDict[Owner, None] = OrderedDict()
        self._looked_at = float("-inf")
        self._blind_again_at = float("-inf")
        self._timer: asyncio.TimerHandle | None = None

    def looks(self) -> None:
        """A look begins, whatever it is for."""
        self._looked_at = asyncio.get_running_loop().time()

    def served(self, owner: Owner) -> None:
        """Something was due to ``owner``."""
        self._served[owner] = None
        self._served.move_to_end(owner)
        if len(self._served) > MAX_SERVED:
            self._served.popitem(last=False)

    def ended(self, owner: Owner) -> None:
        """A session of ``owner`` has ended, and that is committed."""
        if self._timer is not None:
            return
        loop = asyncio.get_running_loop()
        if owner not in self._served:
            if loop.time() < self._blind_again_at:
                return
            self._blind_again_at = loop.time() + BLIND_SPACING_SECONDS
        self._timer = loop.call_at(self._looked_at + SPACING_SECONDS, self._due)

    def _due(self) -> None:
        self._timer = None
        self._look()
