"""Rates and windows of refunds, as the in-memory database and the headers compute them. The
contract suite compares the database with them."""

from datetime import UTC, datetime, timedelta

import pytest

from domain.plans import HOUR, MINUTE, PlanRates, Rate, RefundWindow, TokenBudget

NOW = datetime(2026, 1, 1, 12, 30, tzinfo=UTC)


@pytest.mark.parametrize("limit", [1, 2, 3, 7, 60, 61, 997, 5_000])
def test_burst_is_exact(limit: int) -> None:
    """However the interval is rounded, a burst has exactly ``limit`` calls."""
    rate = Rate(name="minute", limit=limit, period=MINUTE)

    used = rate.used(None, NOW, calls=limit)

    assert rate.room(None, NOW) == limit
    assert rate.room(used, NOW) == 0
    assert rate.room(used, used) == limit


@pytest.mark.parametrize("limit", [1, 3, 7, 60, 997])
def test_long_run_is_exact(limit: int) -> None:
    """A caller that always tries gets a burst, and then ``limit`` calls in each period."""
    rate = Rate(name="minute", limit=limit, period=MINUTE)
    unused_at, calls = None, 0
    for millisecond in range(0, 120_000, 60_000 // (limit * 10) or 1):
        now = NOW + timedelta(milliseconds=millisecond)
        if rate.room(unused_at, now):
            unused_at, calls = rate.used(unused_at, now), calls + 1

    assert 3 * limit - 1 <= calls <= 3 * limit


def test_use_of_a_rate() -> None:
    """What a caller is told: what is left, and when the next call and all calls are possible."""
    rate = Rate(name="minute", limit=6, period=MINUTE)

    uses = [rate.use(seconds) for seconds in (0, 0.5, 30, 51, 60, 75)]

    assert [use.remaining for use in uses] == [6, 5, 3, 0, 0, 0]
    assert [use.reset_seconds for use in uses] == [0, 1, 30, 51, 60, 75]
    assert [use.retry_seconds for use in uses] == [0, 0, 0, 1, 10, 25]


def test_plan_without_numbers_has_no_rates() -> None:
    """Each number is optional."""
    assert PlanRates().all == []
    assert [rate.name for rate in PlanRates(submissions_per_hour=1).all] == ["hour"]


def test_refunds_fade_within_two_hours() -> None:
    """Those of the hour before count in proportion to what is left of its sixty minutes."""
    window = RefundWindow.empty(NOW).added(NOW, 8)

    at = [NOW + timedelta(minutes=minutes) for minutes in (0, 29, 30, 60, 75, 90, 150)]

    assert [window.estimate(one) for one in at] == [8, 8, 8, 4, 2, 0, 0]


@pytest.mark.parametrize("limit", [1, 2, 5, 8])
@pytest.mark.parametrize("minutes", [0, 10, 40])
def test_retry_time_of_refunds(limit: int, minutes: int) -> None:
    """At that time a session is allowed, and not a few seconds before."""
    now = NOW + timedelta(minutes=minutes)
    window = RefundWindow.empty(NOW).added(NOW, 8).added(now, 4)
    assert window.estimate(now) >= limit

    then = now + timedelta(seconds=window.retry_seconds(limit, now))

    assert window.estimate(then) < limit
    assert window.estimate(then - timedelta(seconds=3)) >= limit


def test_window_is_of_whole_hours() -> None:
    """Refunds of different hours are kept apart, older ones are forgotten."""
    window = RefundWindow.empty(NOW).added(NOW).added(NOW + HOUR, 2)

    later = window.added(NOW + 3 * HOUR)

    assert (window.current, window.earlier) == (2, 1)
    assert (later.current, later.earlier) == (1, 0)


def test_token_budget() -> None:
    """A refund gives the picture back, and never the submission; an undo gives both back."""
    budget = TokenBudget(store_id="s", shopper_id="p", pictures=1, expires_at=NOW + MINUTE)

    debited = budget.debited()
    refunded = debited.refunded(undone=False)

    assert debited.is_used_up
    assert not refunded.is_used_up
    assert refunded.debited().refunded(undone=False).debited().refunded(undone=False).is_used_up
    assert debited.refunded(undone=True) == budget
    assert [budget.is_valid(at) for at in (NOW, NOW + MINUTE)] == [True, False]
