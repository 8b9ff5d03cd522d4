"""What all commands share: tables or JSON on standard output, one line for a failure."""

import asyncio
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from domain.errors import WearonError

if TYPE_CHECKING:
    from config.container import Container

T = TypeVar("T")


class CommandGroup(click.RichGroup):
    """Turns an expected failure into one line on standard error and exit code 1."""

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click has it
        """Run the command."""
        from config.settings import SettingsError  # noqa: PLC0415 - help needs no settings

        try:
            return super().invoke(ctx)
        except (WearonError, SettingsError) as error:
            raise click.ClickException(str(error)) from error


json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON, for programs.")


@asynccontextmanager
async def operating() -> AsyncIterator["Container"]:
    """The container of one command, closed at its end."""
    from config.container import Container, close  # noqa: PLC0415 - help needs no adapters
    from config.settings import load_settings  # noqa: PLC0415

    container = Container(settings=load_settings(os.environ))
    try:
        yield container
    finally:
        await close(container)


def run(work: Callable[["Container"], Awaitable[T]]) -> T:
    """Give ``work`` a container and run it."""

    async def with_container() -> T:
        async with operating() as container:
            return await work(container)

    return asyncio.run(with_container())


def print_json(value: object) -> None:
    """One JSON document."""
    import msgspec  # noqa: PLC0415

    sys.stdout.write(msgspec.json.format(msgspec.json.encode(value)).decode() + "\n")


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Columns as wide as the terminal allows; when piped, as wide as they need."""
    from rich.console import Console  # noqa: PLC0415
    from rich.table import Table  # noqa: PLC0415

    table = Table(*columns, box=None, pad_edge=False, header_style="bold")
    for row in rows:
        table.add_row(*(_cell(value) for value in row))
    console = Console()
    console.print(table, width=None if console.is_terminal else 400, no_wrap=True, crop=False)


def _cell(value: object) -> str:
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return str(value)
