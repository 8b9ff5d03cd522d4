"""Output of all commands: tables or JSON on standard output, one line for an error."""

import json
import os
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from datetime import datetime
from typing import TYPE_CHECKING, Any, TypeVar

import rich_click as click

from config.printable import printable
from domain.errors import DatabaseUnavailable, QueueUnavailable, Unavailable, WearonError
from domain.operators import OperatorAction
from entrypoints.program import INTERRUPTED, say_interrupted

if TYPE_CHECKING:
    from config.container import Container

T = TypeVar("T")


class CommandGroup(click.RichGroup):
    """Prints errors as plain lines on standard error, without a box, because programs read them.

    Exit codes: 1 for a failed command, 2 for an invalid command line, INTERRUPTED after Ctrl-C.
    """

    def main(self, *args: Any, **extra: Any) -> Any:  # noqa: ANN401 - as click has it
        """Run the command line and exit."""
        try:
            exit_code = super().main(*args, **extra | {"standalone_mode": False})
        except click.ClickException as error:
            error.show()
            sys.exit(error.exit_code)
        except click.Abort as error:
            # A question that was answered with no, or not at all, is no interruption.
            if not isinstance(error.__context__, KeyboardInterrupt):
                click.echo("Aborted.", err=True)
                sys.exit(1)
            say_interrupted()
            sys.exit(INTERRUPTED)
        sys.exit(exit_code)

    def invoke(self, ctx: click.Context) -> Any:  # noqa: ANN401 - as click has it
        """Run the command."""
        from config.settings import SettingsError  # noqa: PLC0415 - help needs no settings

        try:
            return super().invoke(ctx)
        except KeyboardInterrupt:
            raise click.Abort from None
        except DatabaseUnavailable as error:
            raise click.ClickException(f"DATABASE_URL: {_with_cause(error)}") from error
        except QueueUnavailable as error:
            raise click.ClickException(f"REDIS_URL: {_with_cause(error)}") from error
        except (WearonError, SettingsError) as error:
            raise click.ClickException(str(error)) from error


def _with_cause(error: Unavailable) -> str:
    """The error's message and, unless that says it already, its cause."""
    message, detail = str(error), error.cause.detail
    return message if detail == message else f"{message}: {detail}"


MAX_LISTED = 1_000

json_option = click.option("--json", "as_json", is_flag=True, help="Print JSON.")
limit_option = click.option(
    "--limit",
    type=click.IntRange(1, MAX_LISTED),
    default=20,
    show_default=True,
    help="The maximum number of rows.",
)


@asynccontextmanager
async def operating() -> AsyncIterator["Container"]:
    """The container for one command, closed at its end."""
    from config.closing import close  # noqa: PLC0415 - help needs no adapters
    from config.container import Container  # noqa: PLC0415 - help needs no adapters
    from config.loading import load_settings  # noqa: PLC0415

    container = Container(settings=load_settings(os.environ))
    try:
        yield container
    finally:
        await close(container)


def ignore_errors_after_interrupt() -> None:
    """From the running command: what its calls in flight come to after Ctrl-C is no news, so
    asyncio prints no error of theirs."""
    import asyncio  # noqa: PLC0415 - help needs no event loop

    command = asyncio.current_task()

    def handle(loop: asyncio.AbstractEventLoop, context: dict[str, Any]) -> None:
        # Some are told of only once the loop is closed, when the command has ended.
        if command is None or not (command.cancelling() or command.cancelled()):
            loop.default_exception_handler(context)

    asyncio.get_running_loop().set_exception_handler(handle)


def run(work: Callable[["Container"], Awaitable[T]]) -> T:
    """Run ``work`` with a container."""
    import asyncio  # noqa: PLC0415 - help needs no event loop

    async def with_container() -> T:
        ignore_errors_after_interrupt()
        async with operating() as container:
            return await work(container)

    return asyncio.run(with_container())


def print_json(value: object) -> None:
    """Print one JSON document."""
    import msgspec  # noqa: PLC0415

    # With a flush: a reader that is gone is noticed here, and not when the interpreter ends.
    click.echo(msgspec.json.format(msgspec.json.encode(value)).decode())


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print a table. Columns are as wide as their contents: terminals wrap long lines."""
    lines = [list(columns), *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for line in lines:
        cells = (cell.ljust(width) for cell, width in zip(line, widths, strict=True))
        click.echo("  ".join(cells).rstrip())


def print_actions(actions: Sequence[OperatorAction], *, as_json: bool) -> None:
    """Print entries of the audit log."""
    if as_json:
        print_json(actions)
        return
    print_table(
        ("ID", "AT (UTC)", "BY", "ACTION", "SUBJECT", "REASON", "DETAILS"),
        [
            (item.id, item.at, item.actor, item.action, item.subject, item.reason,
                json.dumps(item.details, ensure_ascii=False))
            for item in actions
        ],
    )  # fmt: skip


def _cell(value: object) -> str:
    """A cell's text."""
    if value is None:
        return "-"
    if isinstance(value, datetime):
        return value.strftime("%Y-%m-%d %H:%M:%S")
    return printable(str(value))
