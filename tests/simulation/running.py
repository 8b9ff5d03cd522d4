"""How a run is made on virtual time, and when it is settled."""

import asyncio
from collections.abc import Coroutine
from datetime import timedelta
from typing import Any, TypeVar

from domain.credits import Channel, Owner
from tests.simulation.actors import (
    INTERVAL_SECONDS,
    RECOVERY,
    WORK,
)
from tests.simulation.world import Killed, Violation, World
from tests.support.clock import VirtualTimeLoop

T = TypeVar("T")
HOT = Owner(channel=Channel.B2B, id="hot")
BOUND_SECONDS = RECOVERY.settle_bound(
    WORK, interval=timedelta(seconds=INTERVAL_SECONDS)
).total_seconds()


def run(scenario: Coroutine[Any, Any, T]) -> T:
    """What a scenario returns, on virtual time."""
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        runner.get_loop().set_exception_handler(_unexpected)
        return runner.run(scenario)


def _unexpected(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
    """Report unhandled errors, except in the tasks of killed processes, and what is recorded."""
    if not isinstance(context.get("exception"), Killed | Violation):
        loop.default_exception_handler(context)


async def settle(world: World) -> float:
    """Wait until every session is final, and refunded if it failed. Returns the seconds."""
    loop = asyncio.get_running_loop()
    began = loop.time()
    while any(not session.status.is_final for session in await world.sessions()) or (
        world.external_failures and not await all_refunded(world)
    ):
        if world.violations:
            raise world.violations[0]
        if loop.time() - began > BOUND_SECONDS:
            stuck = [item for item in await world.sessions() if not item.status.is_final]
            raise Violation(f"not settled after {BOUND_SECONDS} s: {stuck}")
        await asyncio.sleep(0.5)
    return loop.time() - began


async def all_refunded(world: World) -> bool:
    """Whether every failed session is refunded."""
    refunded = {entry.session_id for entry in world.accounts.entries if entry.kind == "refund"}
    failed = {item.id for item in await world.sessions() if item.status == "failed"}
    return failed <= refunded
