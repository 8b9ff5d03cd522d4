"""``wearon costs``."""

from datetime import UTC, datetime, timedelta, timezone
from decimal import Decimal

import pytest

from adapters.embedded.postgres import EmbeddedPostgres
from domain.credits import Channel, Owner
from entrypoints.cli.costs import last_days
from tests.support.cli import Shop, new_shop, wearon
from tests.support.examples import STORE, USAGE, USER

OTHER_STORE = Owner(channel=Channel.B2B, id="store-2")
COST = USAGE.estimated_cost_usd or Decimal(0)


@pytest.fixture
def shop(postgres: EmbeddedPostgres) -> Shop:
    return new_shop(postgres.url())


def test_costs_of_the_last_days(shop: Shop) -> None:
    """By day unless something else is asked for, with a total; by owner and by provider too. The
    sums do not depend on whether midnight came meanwhile."""
    for owner in (STORE, STORE, USER):
        shop.completed(owner=owner)
    shop.failed()
    by_day = shop.json("costs")
    by_owner = shop.json("costs", "--by", "owner", "--days", 2)
    by_provider = shop.json("costs", "--by", "provider", "--days", 2)

    assert sum(row["pictures"] for row in by_day) == 3
    assert sum(Decimal(row["estimated_cost_usd"]) for row in by_day) == 3 * COST
    assert [(row["key"], row["pictures"]) for row in by_owner] == [
        (str(STORE), 2), (str(USER), 1)
    ]  # fmt: skip
    assert by_provider == [
        {
            "key": "openai",
            "pictures": 3,
            "unpriced": 0,
            "input_tokens": 3 * 1_923,
            "output_tokens": 3 * 6_240,
            "estimated_cost_usd": str(3 * COST),
        }
    ]


def test_costs_of_one_owner(shop: Shop) -> None:
    """Another owner's pictures do not count."""
    shop.completed(owner=STORE)
    shop.completed(owner=USER)

    (row,) = shop.json("costs", "--by", "owner", "--store", STORE.id)
    nothing = shop.json("costs", "--store", OTHER_STORE.id)

    assert (row["key"], row["pictures"]) == (str(STORE), 1)
    assert nothing == []


def test_table(shop: Shop) -> None:
    """With a line for all."""
    shop.completed(owner=STORE)

    head, row, total = shop.run("costs", "--by", "owner").stdout.splitlines()

    assert head.split() == ["OWNER", "PICTURES", "UNPRICED", "INPUT", "TOKENS", "OUTPUT", "TOKENS",
                            "USD"]  # fmt: skip
    assert row.split() == [str(STORE), "1", "0", "1923", "6240", "0.215064"]
    assert total == "1 picture(s), $0.22"


def test_unknown_owner_is_named(shop: Shop) -> None:
    """Most likely a mistyped id."""
    result = shop.run("costs", "--store", "store-l")

    assert result.exit_code == 1
    assert "No store has the id store-l" in result.stderr


@pytest.mark.parametrize(
    "arguments", [("--days", 0), ("--days", 367), ("--by", "hour"), ("--store", "s", "--user", "u")]
)
def test_invalid_command_line(arguments: tuple[object, ...]) -> None:
    assert wearon("costs", *arguments).exit_code == 2


def test_today_is_the_last_day() -> None:
    """In UTC, whatever the clock's time zone is."""
    late = datetime(2026, 11, 29, 1, tzinfo=timezone(timedelta(hours=2)))

    assert last_days(1, now=late) == (
        datetime(2026, 11, 28, tzinfo=UTC), datetime(2026, 11, 29, tzinfo=UTC)
    )  # fmt: skip
    assert last_days(30, now=late)[0] == datetime(2026, 10, 30, tzinfo=UTC)
