"""When a process looks for the deliveries of sessions that end in it."""

import asyncio
from typing import Any

import pytest

from domain.credits import Channel, Owner
from domain.hints import BLIND_SPACING_SECONDS, MAX_SERVED, SPACING_SECONDS, Hints
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import STORE, USER

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class Looks:
    """When a look was asked for, in seconds since the beginning. Each is made at once."""

    def __init__(self) -> None:
        self.began = loop_time()
        self.at: list[float] = []
        self.hints = Hints(self._look)

    def _look(self) -> None:
        self.at.append(round(loop_time() - self.began, 3))
        self.hints.looks()

    async def end_for(self, owner: Owner, seconds: float) -> None:
        """A session of ``owner`` ends each millisecond."""
        while loop_time() < self.began + seconds:
            self.hints.ended(owner)
            await asyncio.sleep(0.001)


async def test_first_end_is_looked_for_at_once() -> None:
    """Also of an owner to whom no delivery was due before: a look has to find out."""
    looks = Looks()

    looks.hints.ended(USER)
    await asyncio.sleep(0.001)

    assert looks.at == [0]


async def test_owner_without_deliveries_causes_few_looks() -> None:
    """No more than the idle poll."""
    looks = Looks()

    await looks.end_for(USER, 3.5 * BLIND_SPACING_SECONDS)

    assert looks.at == pytest.approx([0, 1, 2, 3], abs=0.01)


async def test_sessions_that_end_together_share_a_look() -> None:
    """The spacing counts from any look before, and the last end is not forgotten."""
    looks = Looks()
    looks.hints.served(STORE)
    looks.hints.looks()

    await looks.end_for(STORE, 3.5 * SPACING_SECONDS)
    await asyncio.sleep(SPACING_SECONDS)

    assert looks.at == pytest.approx([0.05, 0.1, 0.15, 0.2], abs=0.004)


async def test_owner_without_deliveries_does_not_delay_another() -> None:
    """One who was served is looked for within the spacing."""
    looks = Looks()
    looks.hints.served(STORE)
    looks.hints.ended(USER)
    await asyncio.sleep(2 * SPACING_SECONDS)

    looks.hints.ended(USER)
    looks.hints.ended(STORE)
    await asyncio.sleep(SPACING_SECONDS)

    assert looks.at == [0, 2 * SPACING_SECONDS]


async def test_least_recently_served_owner_is_forgotten() -> None:
    """A bounded number is remembered."""
    looks = Looks()
    looks.hints.served(USER)
    looks.hints.served(STORE)
    for number in range(MAX_SERVED - 2):
        looks.hints.served(Owner(channel=Channel.B2B, id=f"other-{number}"))
    looks.hints.served(USER)
    looks.hints.served(Owner(channel=Channel.B2B, id="one-too-many"))
    await looks.end_for(STORE, 0.3)
    await looks.end_for(USER, 0.34)

    assert looks.at == pytest.approx([0, 0.3], abs=0.01)
