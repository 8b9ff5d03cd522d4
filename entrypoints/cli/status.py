"""``wearon status``: what is wrong, and what the service does."""

import os
import sys
from typing import TYPE_CHECKING, Any

import rich_click as click

from entrypoints.cli.output import json_option, print_json, run

if TYPE_CHECKING:
    from config.container import Container
    from domain.status import Report

WATCH_SECONDS = 2.0
_REDRAW = "\x1b[H\x1b[2J"
"""Cursor to the top, and erase the screen (ECMA-48)."""


@click.command("status")
@json_option
@click.option("--watch", is_flag=True, help="Show it again every 2 seconds until Ctrl-C.")
@click.pass_context
def status(context: click.Context, *, watch: bool, as_json: bool) -> None:
    """Show on one screen what the service does, and first of all what is wrong.

    Every alarm has a paragraph in docs/runbook.md. A server that does not answer is an alarm, and
    the rest is shown all the same.

    \b
    Exit codes:
      0    nothing needs a person now; warnings can wait
      1    a person must act, or a setting is invalid
      2    invalid command line
      130  Ctrl-C
    """

    async def show(container: "Container") -> "Report":
        import asyncio  # noqa: PLC0415 - help needs no event loop

        while True:
            report = await container.status().read()
            _print(report, as_json=as_json, redraw=watch)
            if not watch:
                return report
            await asyncio.sleep(WATCH_SECONDS)

    if run(show).must_act:
        context.exit(1)


def _print(report: "Report", *, as_json: bool, redraw: bool) -> None:
    if as_json:
        print_json(report_fields(report))
        return
    from entrypoints.cli.screen import screen  # noqa: PLC0415 - help needs no screen

    is_terminal = sys.stdout.isatty()
    # https://no-color.org: any value but the empty one.
    is_coloured = is_terminal and not os.environ.get("NO_COLOR")
    lines = [
        click.style(line.text, fg=line.colour, bold=True)
        if is_coloured and line.colour
        else line.text
        for line in screen(report)
    ]
    if redraw:
        lines.insert(0, "") if not is_terminal else lines.insert(0, _REDRAW + lines.pop(0))
    # What follows the last line would scroll the first one off a terminal of 24 lines.
    click.echo("\n".join(lines), color=is_terminal, nl=not (redraw and is_terminal))


def report_fields(report: "Report") -> dict[str, Any]:
    """The report as ``--json`` has it."""
    measured = report.measured
    return {
        "at": measured.at,
        "must_act": report.must_act,
        "alarms": [
            {
                "code": alarm.code,
                "severity": alarm.severity,
                "sentence": alarm.sentence,
                "advice": alarm.advice,
                "runbook": f"docs/runbook.md#{alarm.code.anchor}",
            }
            for alarm in report.alarms
        ],
        "waiting": measured.waits,
        "tasks_in_redis": measured.waiting,
        "dead_letters": measured.dead_letters,
        "snapshot": measured.snapshot,
    }
