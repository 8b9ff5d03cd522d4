"""``wearon doctor``: does everything that the service needs work?"""

import os
from typing import TYPE_CHECKING

import rich_click as click

from config.printable import printable
from entrypoints.cli.output import ignore_errors_after_interrupt, json_option, print_json

if TYPE_CHECKING:
    from config.settings import Settings
    from domain.doctor import Finding

_MARKS = {"ok": "ok     ", "warning": "WARNING", "failed": "FAILED "}


@click.command("doctor")
@json_option
@click.pass_context
def doctor(context: click.Context, *, as_json: bool) -> None:
    """Check settings, database, Redis, storage, provider, user keys, clocks and this machine.

    Nothing is paid for, and no secret is printed. Each check ends within 5 seconds, and one that
    fails stops no other. Run it where the API or a worker runs, with their settings.

    \b
    Exit codes:
      0  all is well, perhaps with warnings
      1  a check failed
      2  invalid command line
    """
    from config.doctor import settings_findings  # noqa: PLC0415 - help needs no adapters

    settings, found = settings_findings(os.environ)
    if settings is not None:
        found += _diagnosed(settings)
    if as_json:
        print_json({"ok": not _has_failed(found), "findings": found})
    else:
        _print(found)
    if _has_failed(found):
        context.exit(1)


def _diagnosed(settings: "Settings") -> list["Finding"]:
    import asyncio  # noqa: PLC0415 - help needs no event loop

    from config.closing import close  # noqa: PLC0415
    from config.container import Container  # noqa: PLC0415
    from config.doctor import diagnose  # noqa: PLC0415

    async def work() -> list["Finding"]:
        ignore_errors_after_interrupt()
        container = Container(settings=settings)
        try:
            return await diagnose(container)
        finally:
            await close(container)

    return asyncio.run(work())


def _has_failed(found: list["Finding"]) -> bool:
    return any(finding.level == "failed" for finding in found)


def _print(found: list["Finding"]) -> None:
    width = max(len(finding.subject) for finding in found)
    for finding in found:
        subject = finding.subject.ljust(width)
        click.echo(printable(f"{_MARKS[finding.level]}  {subject}  {finding.sentence}"))
        if finding.advice:
            click.echo(printable(f"{' ' * (width + 11)}{finding.advice}"))
