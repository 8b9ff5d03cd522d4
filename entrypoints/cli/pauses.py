"""Commands that pause and resume the service."""

import rich_click as click

from domain.operator_ports import Switch
from domain.operators import Operator
from entrypoints.cli.output import json_option, print_json, run
from entrypoints.cli.owner_options import operator_options, reason_required

_switch = click.argument("switch", type=click.Choice([switch.value for switch in Switch]))

_PAUSED = {
    Switch.INTAKE: "New requests get a 503 within a few seconds; all others go on.",
    Switch.WORKERS: "Within a few seconds workers take no more tasks; they finish those they have.",
}


@click.command()
@_switch
@reason_required
@json_option
def pause(switch: str, operator: Operator, *, as_json: bool) -> None:
    """Pause the SWITCH `intake` (new requests) or `workers` (taking tasks), until `wearon resume`.

    With the intake paused, new requests get a 503 with Retry-After and are not charged; repetitions
    of accepted requests, reads, cancellations and streams go on. Paused workers finish the tasks
    that they have and take no others: requests wait, and expire after WEARON_QUEUE_TTL_SECONDS with
    a refund.
    """
    wanted = Switch(switch)
    changed = run(lambda container: container.pauses().pause(wanted, by=operator))
    if as_json:
        print_json({"switch": switch, "paused": True, "changed": changed})
    elif changed:
        click.echo(f"Paused: {switch}. {_PAUSED[wanted]}")
    else:
        click.echo(f"Paused already: {switch}. Nothing changed; the first reason stays.")


@click.command()
@_switch
@operator_options
@json_option
def resume(switch: str, operator: Operator, *, as_json: bool) -> None:
    """Resume what `wearon pause` has paused with this SWITCH. It takes a few seconds."""
    changed = run(lambda container: container.pauses().resume(Switch(switch), by=operator))
    if as_json:
        print_json({"switch": switch, "paused": False, "changed": changed})
    else:
        click.echo(f"Resumed: {switch}." if changed else f"Not paused: {switch}. Nothing changed.")
