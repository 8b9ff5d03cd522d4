"""What pictures have cost at the provider."""

from datetime import UTC, datetime, time, timedelta
from typing import TYPE_CHECKING

import rich_click as click

from domain.credits import Owner
from domain.operator_ports import CostKey, CostRow
from entrypoints.cli.output import MAX_LISTED, json_option, print_json, print_table, run
from entrypoints.cli.owner_options import check_known, one_owner, store_option, user_option

if TYPE_CHECKING:
    from config.container import Container

MAX_DAYS = 366

_HEADS = {CostKey.DAY: "DAY (UTC)", CostKey.OWNER: "OWNER", CostKey.PROVIDER: "PROVIDER"}


@click.command("costs")
@click.option(
    "--by",
    type=click.Choice([key.value for key in CostKey]),
    default=CostKey.DAY.value,
    show_default=True,
    help="What the costs are summed by.",
)
@click.option(
    "--days",
    type=click.IntRange(1, MAX_DAYS),
    default=7,
    show_default=True,
    help="How many days (UTC), of which today is the last.",
)
@user_option
@store_option
@json_option
def show_costs(
    by: str, days: int, user: Owner | None, store: Owner | None, *, as_json: bool
) -> None:
    """Show what completed pictures took at the provider: tokens, and dollars by the estimates.

    Days are listed newest first, owners and providers by their costs, at most 1,000. UNPRICED
    pictures have no estimate. The provider of older pictures, and of those of external consumers,
    is unknown.
    """
    key, owner = CostKey(by), one_owner(user, store)

    async def read(container: "Container") -> list[CostRow]:
        await check_known(container, owner)
        since, until = last_days(days, now=container.clock()())
        return await container.operator_reads().costs(
            key, since=since, until=until, owner=owner, limit=MAX_LISTED
        )

    rows = run(read)
    if as_json:
        print_json(rows)
        return
    print_table(
        (_HEADS[key], "PICTURES", "UNPRICED", "INPUT TOKENS", "OUTPUT TOKENS", "USD"),
        [_cells(row) for row in rows],
    )
    if len(rows) < MAX_LISTED:
        total = sum(row.estimated_cost_usd for row in rows)
        pictures = sum(row.pictures for row in rows)
        click.echo(f"{pictures:,} picture(s), ${total:,.2f}")


def last_days(days: int, *, now: datetime) -> tuple[datetime, datetime]:
    """When the first of the last ``days`` days (UTC) begins, and when today ends."""
    end = datetime.combine(now.astimezone(UTC) + timedelta(days=1), time(), UTC)
    return end - timedelta(days=days), end


def _cells(row: CostRow) -> tuple[object, ...]:
    return (
        row.key,
        row.pictures,
        row.unpriced,
        row.input_tokens,
        row.output_tokens,
        f"{row.estimated_cost_usd:.6f}",
    )
