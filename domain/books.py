"""Checking the books again and again: every balance against the ledger, and every session's debit
and refund."""

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from domain.credits import Discrepancy
from domain.errors import DatabaseUnavailable
from domain.operator_ports import MAX_DISCREPANCIES, BookCheck, BookCheckRepoPort

Audit = Callable[[int], Awaitable[list[Discrepancy]]]
"""``CreditRepoPort.audit`` with this limit."""

_MAX_FIRST_LENGTH = 500
_UNSET = datetime.fromtimestamp(0, UTC)
_GIVE_BACK_SECONDS = 1.0


@dataclass(frozen=True, slots=True, kw_only=True)
class BookPolicy:
    """How often the books are checked, by all processes together.

    An audit reads the whole ledger, so the next one follows after ``idle_factor`` times as long as
    this one took, or after ``shortest_pause`` if that is longer. What it finds wrong is looked at
    again after ``confirm_after``, which must be longer than recovery needs to refund a session that
    an external consumer failed. ``lease`` must be longer than two audits may take.
    """

    shortest_pause: timedelta = timedelta(seconds=20)
    idle_factor: int = 100
    confirm_after: timedelta = timedelta(seconds=5)
    lease: timedelta = timedelta(minutes=15)

    def pause(self, took: timedelta) -> timedelta:
        """From the end of a check to the next one."""
        return max(self.shortest_pause, self.idle_factor * took)


class BookChecks:
    """Checks the books when they are due, in one of all processes. Raises
    ``DatabaseUnavailable``."""

    def __init__(
        self, *, audit: Audit, checks: BookCheckRepoPort, policy: BookPolicy | None = None
    ) -> None:
        self._audit = audit
        self._checks = checks
        self._policy = policy or BookPolicy()

    async def run_once(self) -> BookCheck | None:
        """Check the books if that is due, and record the result; None if it is not due. A check
        that fails, or that is cancelled, leaves the earlier result."""
        if not await self._checks.claim(lease=self._policy.lease):
            return None
        began = _now()
        try:
            found, took = await self._confirmed()
            check = _check(found, took)
        except asyncio.CancelledError:
            await self._give_back()
            raise
        except Exception:
            await self._checks.postpone(again_after=self._policy.pause(_now() - began))
            raise
        await self._checks.record(check, again_after=self._policy.pause(took))
        return check

    async def verify(self, *, limit: int) -> list[Discrepancy]:
        """Audit the books now, and record the result if this process may."""
        began = _now()
        found = await self._audit(max(limit, MAX_DISCREPANCIES))
        took = _now() - began
        with suppress(DatabaseUnavailable):  # A role that only reads may audit too.
            await self._checks.record(_check(found, took), again_after=self._policy.pause(took))
        return found[:limit]

    async def _confirmed(self) -> tuple[Sequence[Discrepancy], timedelta]:
        """What is wrong, and was a moment ago; and how long the audits took."""
        began = _now()
        found = await self._audit(MAX_DISCREPANCIES)
        took = _now() - began
        if not found:
            return found, took
        await asyncio.sleep(self._policy.confirm_after.total_seconds())
        began = _now()
        again = await self._audit(MAX_DISCREPANCIES)
        took += _now() - began
        if len(found) == len(again) == MAX_DISCREPANCIES:
            return again, took  # Not all are in both, so they cannot be compared.
        return [each for each in again if each in found], took

    async def _give_back(self) -> None:
        """Let another process check the books at once."""
        with suppress(DatabaseUnavailable, TimeoutError):
            async with asyncio.timeout(_GIVE_BACK_SECONDS):
                await self._checks.postpone(again_after=timedelta(0))


def _check(found: Sequence[Discrepancy], took: timedelta) -> BookCheck:
    first = f"{found[0].subject}: {found[0].problem}"[:_MAX_FIRST_LENGTH] if found else None
    count = min(len(found), MAX_DISCREPANCIES)
    return BookCheck(at=_UNSET, took=took, discrepancies=count, first=first)


def _now() -> timedelta:
    """The event loop's time."""
    return timedelta(seconds=asyncio.get_running_loop().time())
