"""The command that erases an owner's personal data."""

import os
from typing import TYPE_CHECKING

import rich_click as click

from domain.credits import Channel, Owner
from domain.operators import Operator
from entrypoints.cli.output import json_option, print_json, print_table, run
from entrypoints.cli.owner_options import (
    reason_required,
    required_owner,
    store_option,
    user_option,
)

if TYPE_CHECKING:
    from config.container import Container
    from domain.erasure import ErasureReport


@click.command("erase")
@user_option
@store_option
@click.option("--shopper", metavar="ID", help="Only this shopper of the store.")
@reason_required
@click.option("--yes", is_flag=True, help="Do not ask.")
@json_option
@click.pass_context
def erase_owner(
    context: click.Context,
    user: Owner | None,
    store: Owner | None,
    shopper: str | None,
    operator: Operator,
    *,
    yes: bool,
    as_json: bool,
) -> None:
    """Erase the personal data of a user, a store or one shopper of a store, for good.

    Deletes pictures, uploads, links, prompts, shopper ids, client tokens, webhooks, dead letters.
    Queued sessions are cancelled and refunded. The account, its ledger, and the sessions' times and
    statuses stay. Stopped halfway, it goes on when it is repeated. The reason is kept for good:
    name no person in it.

    \b
    Exit codes:
      0   everything is erased
      1   failed: nothing is known to be erased; repeat it
      75  something is left: sessions in progress (repeat it when they have
          ended), or sessions whose change the database rejects
    """
    owner = required_owner(user, store)
    if shopper is not None and owner.channel is not Channel.B2B:
        raise click.UsageError("--shopper needs --store.")
    whose = str(owner) if shopper is None else f"shopper {shopper!r} of {owner}"
    if not yes:
        click.confirm(f"Erase the personal data of {whose} for good?", abort=True, err=True)

    async def erase(container: "Container") -> "ErasureReport":
        settings = container.settings()
        settings.require_shared(*settings.for_storage)
        return await container.erasure().erase_owner(
            owner,
            shopper=shopper,
            record=lambda: container.repositories().audit_log.add(
                operator, "owner.erase", str(owner), one_shopper=shopper is not None
            ),
        )

    report = run(erase)
    _print(report, as_json=as_json)
    if report.is_empty:
        click.echo(f"Nothing was left to erase of {whose}. Is the id right?", err=True)
    if not report.is_complete:
        context.exit(os.EX_TEMPFAIL)


def _print(report: "ErasureReport", *, as_json: bool) -> None:
    import msgspec  # noqa: PLC0415 - help needs no encoder

    counts = msgspec.to_builtins(report)
    if as_json:
        print_json(counts)
        return
    rejected = counts.pop("rejected")
    print_table([name.upper().replace("_", " ") for name in counts], [tuple(counts.values())])
    if report.unfinished:
        click.echo(f"{report.unfinished} session(s) are in progress: repeat this in some minutes.")
    for session_id in rejected:
        click.echo(f"The database rejects the change of session {session_id}.")
