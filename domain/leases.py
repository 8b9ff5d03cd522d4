"""Work under a lease: the lease is renewed while the work runs, and the work ends with it."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from contextlib import suppress
from datetime import timedelta
from typing import Any, TypeVar

from domain.causes import Cause, CauseKind
from domain.errors import DatabaseUnavailable, TryAgain, Unavailable, WorkFailed

T = TypeVar("T")

STOP_SECONDS = 5.0
"""How long to wait for cancelled work to stop before it is left behind."""


class Hint:
    """Lets the lease be renewed at once, because there may be news of its session. Costs nothing
    until it is given; for the thread of the event loop."""

    def __init__(self) -> None:
        self.given = asyncio.get_running_loop().create_future()

    def give(self) -> None:
        if not self.given.done():
            self.given.set_result(None)

    def take(self) -> None:
        """Wait for the next one from now on."""
        if self.given.done():
            self.given = asyncio.get_running_loop().create_future()


async def run_under_lease(
    work: Callable[[], Awaitable[T]],
    *,
    renew: Callable[[], Awaitable[bool]],
    lease: timedelta,
    attempt_timeout: timedelta,
    waited: Callable[[], float] = lambda: 0.0,
    hint: Hint | None = None,
) -> T | None:
    """What ``work`` returns, or None if the lease was lost meanwhile. Raises what ``work`` raises.

    The lease is new when this is called. ``renew`` extends it by ``lease``, three times in its life
    and at each ``hint``. It is lost if ``renew`` returns False, or if ``renew`` raised
    ``DatabaseUnavailable`` for a whole lease. Any other error of ``renew`` stops the work, unless
    that has ended, and is raised.

    Raises ``TryAgain`` after ``attempt_timeout``, not counting the seconds that the work has
    ``waited`` for its turn. That bound is enforced here, around the work, so that it also holds for
    work that ignores cancellation.
    """
    lease_seconds = lease.total_seconds()
    attempt_seconds = attempt_timeout.total_seconds()
    first_seconds = min(lease_seconds / 3, attempt_seconds)
    began = asyncio.get_running_loop().time()
    valid_until = began + lease_seconds
    hint = hint or Hint()
    working = asyncio.create_task(_result_or_failure(work))
    keeping: asyncio.Task[None] | None = None
    try:
        # Work that ends before the first renewal is due needs no second task.
        await _wait_for_any((working, hint.given), first_seconds)
        if not working.done():
            keeping = asyncio.create_task(_keep_lease(renew, lease_seconds, valid_until, hint))
            await _wait_for_first((working, keeping), lambda: began + attempt_seconds + waited())
        if working.cancelled():
            raise RuntimeError("The work cancelled itself")
        if working.done():
            return _unwrap(working.result())
        if keeping is not None and keeping.done():
            return keeping.result()
        cause = Cause(CauseKind.TIMEOUT, f"attempt took longer than {attempt_seconds:g} s")
        raise TryAgain("Making the picture took too long", cause=cause)
    finally:
        await _stop(working, keeping)
        # An error's traceback holds this frame: through these it would hold the error.
        del working, keeping


async def _wait_for_any(
    futures: Iterable[asyncio.Future[Any]], seconds: float
) -> set[asyncio.Future[Any]]:
    done, _ = await asyncio.wait(futures, timeout=seconds, return_when=asyncio.FIRST_COMPLETED)
    return done


async def _wait_for_first(
    tasks: tuple[asyncio.Task[T | WorkFailed], asyncio.Task[None]], ends_at: Callable[[], float]
) -> None:
    """Until one of ``tasks`` is done, or until ``ends_at``, which may move into the future."""
    loop = asyncio.get_running_loop()
    while (left := ends_at() - loop.time()) > 0:
        if await _wait_for_any(tasks, left):
            return


async def _keep_lease(
    renew: Callable[[], Awaitable[bool]], lease_seconds: float, valid_until: float, hint: Hint
) -> None:
    """Renew the lease now, three times in its life and at each hint. Return once it is or may be
    lost."""
    loop = asyncio.get_running_loop()
    while True:
        hint.take()
        asked_at = loop.time()
        with suppress(DatabaseUnavailable):
            if not await renew():
                return
            valid_until = asked_at + lease_seconds
        if loop.time() >= valid_until:
            return
        await _wait_for_any((hint.given,), lease_seconds / 3)


async def _result_or_failure(
    work: Callable[[], Awaitable[T]],
) -> T | WorkFailed | Unavailable:
    """An expected failure is returned without its traceback, whose frames hold pictures.

    That traceback would be part of a reference cycle (failure, timers, this task, failure), which
    only the garbage collector ends, and that runs seldom.
    """
    try:
        return await work()
    except (WorkFailed, Unavailable) as failure:
        failure.__cause__ = failure.__context__ = None
        return failure.with_traceback(None)


def _unwrap(result: T | WorkFailed | Unavailable) -> T:
    try:
        if isinstance(result, WorkFailed | Unavailable):
            raise result
        return result
    finally:
        del result  # As in run_under_lease.


async def _stop(*tasks: asyncio.Task[object] | None) -> None:
    begun = [task for task in tasks if task is not None]
    for task in begun:
        task.cancel()
        task.add_done_callback(_retrieve_exception)
    if not all(task.done() for task in begun):
        await asyncio.wait(begun, timeout=STOP_SECONDS)


def _retrieve_exception(task: asyncio.Task[object]) -> None:
    """asyncio logs an exception that is never retrieved, and a stopped task's is not needed."""
    if not task.cancelled():
        task.exception()
