"""The daily budget: what is spent counts once it is known, and each day begins anew."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal
from uuid import UUID

import pytest

from domain.budget import Budget
from tests.support.clock import FakeClock

MIDNIGHT = datetime(2026, 1, 2, tzinfo=UTC)
"""The end of the day of START, at whose noon the clock stands."""
ONE, OTHER = UUID(int=1), UUID(int=2)


def usd(amount: str) -> Decimal:
    return Decimal(amount)


@pytest.fixture
def clock() -> FakeClock:
    return FakeClock()


@pytest.fixture
def budget(clock: FakeClock) -> Budget:
    return Budget(usd("50"), clock=clock.now)


def told(budget: Budget, spent: str) -> None:
    """The database's answer arrives at once."""
    budget.asking()
    budget.answered(usd(spent))


@pytest.mark.parametrize(
    ("spent", "until"), [("0", None), ("49.999999", None), ("50", MIDNIGHT), ("51", MIDNIGHT)]
)
def test_budget_is_spent_until_midnight(budget: Budget, spent: str, until: datetime | None) -> None:
    """As soon as the day's sum reaches it."""
    told(budget, spent)

    assert budget.spent_until == until


def test_cause_names_budget_and_day(budget: Budget) -> None:
    """In dollars and cents, for operators."""
    assert str(budget.cause) == "provider budget of $50.00 for 2026-01-01 is spent"


def test_own_pictures_count_as_soon_as_they_are_made(budget: Budget) -> None:
    """Before the database knows of them."""
    told(budget, "49.90")
    budget.made(ONE, usd("0.04"))
    after_one = budget.spent_until

    budget.made(OTHER, usd("0.06"))

    assert (after_one, budget.spent_until) == (None, MIDNIGHT)


def test_picture_counts_until_a_later_sum_has_it(budget: Budget) -> None:
    """A sum that was asked for before the end of its attempt does not have it."""
    told(budget, "49.95")
    budget.made(ONE, usd("0.05"))
    told(budget, "49.95")
    while_in_flight = budget.spent_until
    budget.asking()
    budget.ended(ONE)
    budget.answered(usd("49.95"))
    asked_too_early = budget.spent_until
    budget.asking()
    on_its_way = budget.spent_until

    budget.answered(usd("49.95"))

    assert (while_in_flight, asked_too_early, on_its_way) == (MIDNIGHT, MIDNIGHT, MIDNIGHT)
    assert budget.spent_until is None


def test_sum_that_never_arrives_changes_nothing(budget: Budget) -> None:
    """The last one stands, and own pictures go on counting."""
    told(budget, "49.90")
    for session_id in (ONE, OTHER):
        budget.made(session_id, usd("0.05"))
        budget.ended(session_id)
        budget.asking()

    assert budget.spent_until == MIDNIGHT


def test_unknown_cost_counts_as_nothing(budget: Budget) -> None:
    """Nothing else is known of it."""
    told(budget, "49.99")
    budget.made(ONE, None)
    budget.ended(ONE)
    budget.ended(OTHER)

    assert budget.spent_until is None


def test_day_begins_with_nothing_spent(budget: Budget, clock: FakeClock) -> None:
    """At midnight (UTC), whatever was spent before; and the cause names the new day."""
    told(budget, "60")
    budget.made(ONE, usd("1"))
    budget.ended(ONE)
    clock.advance(timedelta(hours=12))

    assert budget.spent_until is None
    assert "2026-01-02" in str(budget.cause)


def test_picture_in_flight_at_midnight_counts_on_the_day_of_its_end(
    budget: Budget, clock: FakeClock
) -> None:
    """So does the database count it."""
    budget.made(ONE, usd("50"))
    clock.advance(timedelta(hours=12))
    in_flight = budget.spent_until
    budget.ended(ONE)

    assert in_flight == budget.spent_until == MIDNIGHT + timedelta(days=1)


def test_sum_of_yesterday_does_not_count(budget: Budget, clock: FakeClock) -> None:
    """It was asked for before midnight and arrives after."""
    budget.asking()
    clock.advance(timedelta(hours=12))
    budget.answered(usd("60"))

    assert budget.spent_until is None


def test_day_is_that_of_utc() -> None:
    """Whatever the clock's time zone is."""
    early = datetime(2026, 1, 2, 1, tzinfo=timezone(timedelta(hours=2)))
    budget = Budget(usd("1"), clock=lambda: early)
    told(budget, "1")

    assert budget.spent_until == MIDNIGHT
