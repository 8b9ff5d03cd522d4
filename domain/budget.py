"""The daily budget for the provider, as one worker knows it."""

from collections.abc import Callable
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from uuid import UUID

from domain.causes import Cause, CauseKind

_NOTHING = Decimal(0)


class Budget:
    """A bound on what the pictures of one day (UTC) cost, by the estimates.

    Every few seconds the database tells what all workers' completed pictures of the day have cost.
    In between, the worker adds what its own have cost: from the moment that the provider has made
    one until a sum is asked for after the end of its attempt, which then has it. So a picture that
    ends while a sum is on its way counts twice for some seconds, and none is missed. What other
    workers' pictures cost is known only with the next sum: so much more may be spent, beside what
    is in flight.
    """

    def __init__(self, usd: Decimal, *, clock: Callable[[], datetime]) -> None:
        self._usd = usd
        self._clock = clock
        self._day = self._today()
        self._in_flight: dict[UUID, Decimal] = {}
        self._ended = self._ended_before = self._reported = _NOTHING
        self._asked_on = self._day

    def made(self, session_id: UUID, cost_usd: Decimal | None) -> None:
        """The provider made a picture for this session. None stands for an unknown cost, which
        counts as nothing."""
        self._in_flight[session_id] = cost_usd or _NOTHING

    def ended(self, session_id: UUID) -> None:
        """The session's attempt has ended, whatever came of it."""
        self._begin_day()
        self._ended += self._in_flight.pop(session_id, _NOTHING)

    def asking(self) -> None:
        """The database is now asked for its sum."""
        self._begin_day()
        self._asked_on = self._day
        self._ended_before += self._ended
        self._ended = _NOTHING

    def answered(self, spent_today_usd: Decimal) -> None:
        """The sum that was asked for last, by the database."""
        self._begin_day()
        if self._asked_on == self._day:
            self._reported, self._ended_before = spent_today_usd, _NOTHING

    @property
    def spent_until(self) -> datetime | None:
        """The end of the day if its budget is spent; None if more may be begun."""
        self._begin_day()
        own = self._ended_before + self._ended + sum(self._in_flight.values(), _NOTHING)
        if self._reported + own < self._usd:
            return None
        return datetime.combine(self._day + timedelta(days=1), time(), UTC)

    @property
    def wait(self) -> timedelta | None:
        """How long nothing more may be begun; None if the budget is not spent."""
        until = self.spent_until
        return None if until is None else until - self._clock()

    @property
    def cause(self) -> Cause:
        """Why nothing more is begun, once the budget is spent."""
        return Cause(CauseKind.PROVIDER, f"budget of ${self._usd:.2f} for {self._day} is spent")

    def _begin_day(self) -> None:
        """What was spent on an earlier day does not count; what is in flight ends on this one."""
        if (today := self._today()) != self._day:
            self._day = today
            self._ended = self._ended_before = self._reported = _NOTHING

    def _today(self) -> date:
        return self._clock().astimezone(UTC).date()
