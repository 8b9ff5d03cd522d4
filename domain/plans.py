"""What an account is allowed: its plan, and the rates of the plan."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import datetime, timedelta
from enum import StrEnum
from typing import NamedTuple

MINUTE = timedelta(minutes=1)
HOUR = timedelta(hours=1)
SUBMISSIONS_PER_PICTURE = 3
"""A client token allows this many submissions for each of its pictures."""

_ROUNDING = 0.01
"""The share of a call by which clocks and rounding may let one in early."""


class Plan(StrEnum):
    """An account's plan. The settings have its rates."""

    DEFAULT = "default"
    STARTER = "starter"
    GROWTH = "growth"
    SCALE = "scale"
    ENTERPRISE = "enterprise"


class RateUse(NamedTuple):
    """How much of a rate is used: ``limit`` calls per ``period_seconds``, of which ``remaining``
    are left. An unused rate returns after ``reset_seconds``.

    A tuple, which is made in half the time: every accepted request has two."""

    name: str
    limit: int
    period_seconds: int
    remaining: int
    reset_seconds: int

    @property
    def retry_seconds(self) -> int:
        """When the next call is allowed; 0 for at once."""
        if self.remaining > 0:
            return 0
        interval = self.period_seconds / self.limit
        return max(1, math.ceil(self.reset_seconds - self.period_seconds + interval))


@dataclass(frozen=True, slots=True, kw_only=True)
class Rate:
    """``limit`` calls per ``period``, by the generic cell rate algorithm (GCRA).

    Its whole state is one time, at which the rate will be unused again. Each call moves that time
    on by ``interval``. The rate allows a burst of ``limit`` calls, and then one per interval.
    """

    name: str
    limit: int
    period: timedelta

    @property
    def interval(self) -> timedelta:
        return self.period / self.limit

    @property
    def seconds(self) -> int:
        return self.period.days * 86_400 + self.period.seconds

    def room(self, unused_at: datetime | None, now: datetime) -> int:
        """How many calls are allowed now."""
        backlog = max(unused_at - now, timedelta(0)) if unused_at else timedelta(0)
        return max(
            0, min(self.limit, math.floor((self.period - backlog) / self.interval + _ROUNDING))
        )

    def used(self, unused_at: datetime | None, now: datetime, *, calls: int = 1) -> datetime:
        """When the rate is unused again after ``calls`` more calls."""
        return max(unused_at or now, now) + calls * self.interval

    def use(self, backlog_seconds: float) -> RateUse:
        """The state of a rate that is unused again after ``backlog_seconds``, 0 or more."""
        seconds, limit = self.seconds, self.limit
        free_seconds = seconds - backlog_seconds
        remaining = int(free_seconds * limit / seconds + _ROUNDING) if free_seconds > 0 else 0
        return RateUse(self.name, limit, seconds, remaining, math.ceil(backlog_seconds))


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanRates:
    """The rates of a plan, per minute and per hour; None for no limit."""

    submissions_per_minute: int | None = None
    submissions_per_hour: int | None = None

    @property
    def minute(self) -> Rate | None:
        return _rate("minute", self.submissions_per_minute, MINUTE)

    @property
    def hour(self) -> Rate | None:
        return _rate("hour", self.submissions_per_hour, HOUR)

    @property
    def all(self) -> Sequence[Rate]:
        """The rates that have a limit."""
        return [rate for rate in (self.minute, self.hour) if rate is not None]


def _rate(name: str, limit: int | None, period: timedelta) -> Rate | None:
    return None if limit is None else Rate(name=name, limit=limit, period=period)


@dataclass(frozen=True, slots=True, kw_only=True)
class RefundWindow:
    """The refunds that count against an owner or a shopper: those of the hour that began at
    ``hour``, and those of the hour before it. Together they estimate the last sixty minutes, as if
    the earlier hour's had been evenly spread."""

    hour: datetime
    current: int
    earlier: int = 0

    @classmethod
    def empty(cls, now: datetime) -> "RefundWindow":
        return cls(hour=_hour_of(now), current=0)

    def added(self, now: datetime, refunds: int = 1) -> "RefundWindow":
        """The window after ``refunds`` more."""
        at = self._at(now)
        return RefundWindow(hour=at.hour, current=at.current + refunds, earlier=at.earlier)

    def estimate(self, now: datetime) -> float:
        """The number of refunds in the last sixty minutes."""
        at = self._at(now)
        return at.current + at.earlier * (1 - (now - at.hour) / HOUR)

    def retry_seconds(self, limit: int, now: datetime) -> int:
        """When the estimate falls below ``limit``."""
        at = self._at(now)
        if at.current >= limit:  # This hour's alone are too many until the next one has begun.
            falls_at = at.hour + HOUR + HOUR * (1 - limit / at.current)
        else:
            falls_at = at.hour + HOUR * (1 - (limit - at.current) / max(1, at.earlier))
        return max(1, math.floor((falls_at - now).total_seconds()) + 1)

    def _at(self, now: datetime) -> "RefundWindow":
        hour = _hour_of(now)
        if hour == self.hour:
            return self
        earlier = self.current if hour == self.hour + HOUR else 0
        return RefundWindow(hour=hour, current=0, earlier=earlier)


def _hour_of(now: datetime) -> datetime:
    return now.replace(minute=0, second=0, microsecond=0)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenBudget:
    """What a shopper's client token allows. ``used`` counts its pictures, which a refund gives
    back; ``submissions`` shrinks only when a creation is undone, so that refunds cannot be looped.
    """

    store_id: str
    shopper_id: str
    pictures: int
    expires_at: datetime
    revoked_at: datetime | None = None
    used: int = 0
    submissions: int = 0

    def is_valid(self, now: datetime) -> bool:
        return now < self.expires_at and self.revoked_at is None

    @property
    def remaining(self) -> int:
        """How many pictures may still be requested."""
        submissions_left = SUBMISSIONS_PER_PICTURE * self.pictures - self.submissions
        return min(self.pictures - self.used, submissions_left)

    @property
    def is_used_up(self) -> bool:
        return self.remaining <= 0

    def debited(self) -> "TokenBudget":
        """After one more submission."""
        return replace(self, used=self.used + 1, submissions=self.submissions + 1)

    def refunded(self, *, undone: bool) -> "TokenBudget":
        """After a refund. What was ``undone`` was no submission."""
        return replace(self, used=self.used - 1, submissions=self.submissions - undone)


@dataclass(frozen=True, slots=True, kw_only=True)
class AccountLimits:
    """What the debit checks, beside the balance; None for no limit.

    - ``rates``: the submissions of each plan. A plan that is missing has no limit.
    - ``refunds_per_hour``: the sessions of one owner that end through the caller's own fault and
      are refunded; ``shopper_refunds_per_hour``: those of one shopper.
    - ``max_active_of_token``: the unfinished sessions of one client token.
    - ``signups_per_day``: the users who get sign-up credits on one day (UTC).
    """

    rates: Mapping[Plan, PlanRates] = field(default_factory=dict)
    refunds_per_hour: int | None = None
    shopper_refunds_per_hour: int | None = None
    max_active_of_token: int = 5
    signups_per_day: int = 1_000

    def rates_of(self, plan: Plan) -> PlanRates:
        return self.rates.get(plan, UNLIMITED)


UNLIMITED = PlanRates()
NO_LIMITS = AccountLimits()
