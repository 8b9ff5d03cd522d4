"""Many waits on one timer: each has the same bound as with a timer of its own."""

import asyncio
from collections.abc import Callable, Coroutine
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from domain.deadlines import SharedTimeout
from tests.support.clock import VirtualTimeLoop, loop_time

SECONDS = 4.0

Bound = Callable[[], AbstractAsyncContextManager[object]]


def own_timer() -> AbstractAsyncContextManager[object]:
    return asyncio.timeout(SECONDS)


def shared_timer() -> Bound:
    timeout = SharedTimeout(SECONDS)

    @asynccontextmanager
    async def bound() -> Any:
        with timeout.running():
            yield

    return bound


def run(main: Coroutine[Any, Any, Any]) -> Any:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main)


# Times in quarters are exact as floats, and equal times are drawn often.
moments = st.integers(min_value=0, max_value=40).map(lambda quarters: quarters / 4)
waits = st.lists(
    st.fixed_dictionaries(
        {
            "begins": moments,
            "lasts": st.lists(moments, max_size=3),
            "ends": st.sampled_from(["well", "TimeoutError", "ValueError", "swallows", "nested"]),
            "cancelled": st.none() | moments,
        }
    ),
    max_size=8,
)


async def ends(bound: Bound, plans: list[dict[str, Any]]) -> list[tuple[str, float, int]]:
    """How each wait ended, when, and how many cancellations its task was left with."""
    tasks = [asyncio.create_task(_end(bound, plan)) for plan in plans]
    loop = asyncio.get_running_loop()
    for task, plan in zip(tasks, plans, strict=True):
        # At a time of its own: of two events at the same time, either may come first.
        if plan["cancelled"] is not None:
            loop.call_later(plan["cancelled"] + 0.125, task.cancel)
    ended = await asyncio.gather(*tasks, return_exceptions=True)
    return [("cancelled", 0.0, 0) if isinstance(end, BaseException) else end for end in ended]


async def _end(bound: Bound, plan: dict[str, Any]) -> tuple[str, float, int]:
    await asyncio.sleep(plan["begins"])
    task = asyncio.current_task()
    assert task is not None
    how = "well"
    try:
        async with bound():
            if plan["ends"] == "nested":
                await asyncio.sleep(0.5)
                async with bound():
                    await _wait("well", plan["lasts"])
            else:
                await _wait(plan["ends"], plan["lasts"])
    except (TimeoutError, ValueError, asyncio.CancelledError) as error:
        how = f"{type(error).__name__}{error.args}"
    return how, loop_time(), task.cancelling()


async def _wait(ends: str, lasts: list[float]) -> None:
    try:
        for seconds in lasts:
            await asyncio.sleep(seconds)
    except asyncio.CancelledError:
        if ends != "swallows":
            raise
        await asyncio.sleep(1)
    if ends == "TimeoutError":
        raise TimeoutError("its own")
    if ends == "ValueError":
        raise ValueError


@given(waits)
def test_shared_timer_equals_own_timer(plans: list[dict[str, Any]]) -> None:
    """Whatever begins, ends, fails, nests or is cancelled: each wait ends in the same way, at the
    same time and with as many cancellations left as with ``asyncio.timeout``."""
    assert run(ends(shared_timer(), plans)) == run(ends(own_timer, plans))


def test_wait_ends_at_its_deadline() -> None:
    """Long waits end at their deadlines; a shorter wait between them ends well."""

    async def main() -> None:
        timeout = SharedTimeout(SECONDS)
        ended: dict[float, tuple[str, float]] = {}

        async def wait(begins: float, lasts: float) -> None:
            await asyncio.sleep(begins)
            try:
                with timeout.running():
                    await asyncio.sleep(lasts)
                ended[begins] = ("well", loop_time())
            except TimeoutError:
                ended[begins] = ("late", loop_time())

        await asyncio.gather(wait(0, 3.5), wait(1, 100), wait(2, 1), wait(3, 100), wait(20, 100))

        assert ended == {
            0: ("well", 3.5),
            1: ("late", 5.0),
            2: ("well", 3.0),
            3: ("late", 7.0),
            20: ("late", 24.0),
        }

    run(main())


def test_cancellation_from_outside_is_not_swallowed() -> None:
    """Not even at the same time as the deadline."""

    async def main() -> None:
        timeout = SharedTimeout(SECONDS)

        async def wait() -> None:
            with timeout.running():
                await asyncio.sleep(100)

        early, at_once = asyncio.create_task(wait()), asyncio.create_task(wait())
        loop = asyncio.get_running_loop()
        loop.call_later(1, early.cancel)
        loop.call_at(loop.time() + SECONDS, at_once.cancel)
        await asyncio.wait([early, at_once])

        assert early.cancelled()
        assert at_once.cancelled()

    run(main())


def test_earlier_cancellation_does_not_hide_the_deadline() -> None:
    """A task that survived a cancellation gets a TimeoutError at the deadline like any other."""

    async def main() -> None:
        task = asyncio.current_task()
        assert task is not None
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.sleep(1)

        with pytest.raises(TimeoutError), SharedTimeout(SECONDS).running():
            await asyncio.sleep(100)
        assert task.cancelling() == 1
        task.uncancel()

    run(main())


def test_timeout_works_on_the_next_event_loop() -> None:
    """A loop that was closed during a wait leaves nothing behind for the next loop."""
    timeout = SharedTimeout(SECONDS)

    async def left_waiting() -> None:
        async def wait() -> None:
            with timeout.running():
                await asyncio.sleep(100)

        task = asyncio.create_task(wait())
        await asyncio.sleep(1)
        assert not task.done()

    async def main() -> None:
        with pytest.raises(TimeoutError), timeout.running():
            await asyncio.sleep(100)
        assert loop_time() == SECONDS

    run(left_waiting())
    run(main())


def test_ended_waits_are_released() -> None:
    """During one long wait, only the waits that began after it are held in memory; none is held
    once all have ended, and no timer is set any more."""

    async def main() -> None:
        timeout = SharedTimeout(SECONDS)

        async def long() -> None:
            with pytest.raises(TimeoutError), timeout.running():
                await asyncio.sleep(100)

        most = 0
        for _ in range(3):
            task = asyncio.create_task(long())
            while not task.done():
                with timeout.running():
                    await asyncio.sleep(0.25)
                most = max(most, timeout.waits_held)
        assert most <= SECONDS / 0.25 + 2

        await asyncio.sleep(SECONDS)
        assert timeout.waits_held == 0
        before = timers_set()
        await asyncio.sleep(10 * SECONDS)
        assert timers_set() == before + 1

    run(main())


def timers_set() -> int:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualTimeLoop)
    return loop.timers_set


def test_many_waits_share_one_timer() -> None:
    """A thousand short waits set one timer, and only the last wait is held in memory."""

    async def main() -> None:
        timeout = SharedTimeout(SECONDS)
        before = timers_set()
        for _ in range(1_000):
            with timeout.running():
                pass
        assert timers_set() == before + 1
        assert timeout.waits_held == 1

    run(main())


def test_only_a_task_can_wait() -> None:
    """Outside of a task nothing could be cancelled at the deadline."""
    with pytest.raises(RuntimeError):
        SharedTimeout(SECONDS).running().__enter__()
