"""Owners take turns."""

import asyncio

import pytest

from adapters.images.turns import Turns

pytestmark = pytest.mark.anyio


async def test_owners_take_turns() -> None:
    """However many of one owner wait before the others, and in their order within an owner."""
    turns, done = Turns(1), []

    async def work(name: str) -> None:
        async with turns.place(name[0]):
            await asyncio.sleep(0)
            done.append(name)

    await asyncio.gather(*map(work, ["a1", "a2", "a3", "a4", "b1", "b2", "c1"]))

    assert done == ["a1", "a2", "b1", "c1", "a3", "b2", "a4"]


async def test_places_are_bounded() -> None:
    """And all are used, time after time."""
    turns = Turns(3)
    running, most = 0, 0

    async def work(number: int) -> None:
        nonlocal running, most
        async with turns.place(number % 4):
            running += 1
            most = max(most, running)
            await asyncio.sleep(0)
            running -= 1

    for _ in range(2):
        await asyncio.gather(*map(work, range(40)))

    assert (most, running, turns.waiting, turns._free) == (3, 0, 0, 3)


@pytest.mark.parametrize("granted", [False, True])
async def test_cancelled_wait_loses_no_place(*, granted: bool) -> None:
    """Whether the place had arrived already or not."""
    turns = Turns(1)
    holding, release = asyncio.Event(), asyncio.Event()

    async def hold() -> None:
        async with turns.place("a"):
            holding.set()
            await release.wait()

    async def wait() -> None:
        async with turns.place("b"):
            pass

    first = asyncio.create_task(hold())
    await holding.wait()
    waiting = asyncio.create_task(wait())
    await asyncio.sleep(0)
    release.set()
    if granted:
        await first
    waiting.cancel()
    await asyncio.gather(first, waiting, return_exceptions=True)

    async with asyncio.timeout(1), turns.place("c"):
        assert turns.waiting == 0
    assert turns._free == 1
