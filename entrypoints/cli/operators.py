"""Commands for the people who may use the console."""

from typing import TYPE_CHECKING

import rich_click as click

from domain.console_ports import ConsoleOperator, Role
from domain.operators import Operator
from entrypoints.cli.output import (
    json_option,
    limit_option,
    print_actions,
    print_json,
    print_table,
    run,
)
from entrypoints.cli.owner_options import operator_options

if TYPE_CHECKING:
    from config.container import Container

name_argument = click.argument("name")


@click.group("operators")
def operators_group() -> None:
    """People who may use the console, and what they did."""


@operators_group.command("add")
@name_argument
@click.option(
    "--role",
    required=True,
    type=click.Choice([role.value for role in Role]),
    help="viewer: reads. operator: also grants, cancels, requeues. admin: also takes credits back"
    " and manages keys.",
)
@operator_options
@json_option
def add_operator(name: str, role: str, operator: Operator, *, as_json: bool) -> None:
    """Add the operator NAME and print a one-time link for setting the password, valid for 15
    minutes.

    An operator who exists gets the role and a new link; the old password and all sign-ins end.
    """

    from config.console import operators  # noqa: PLC0415 - help needs no adapters

    async def invite(container: "Container") -> tuple[ConsoleOperator, str]:
        invited = await operators(container).invite(name, Role(role), by=operator)
        settings = container.settings()
        host = f"[{settings.console_host}]" if ":" in settings.console_host else None
        base = f"http://{host or settings.console_host}:{settings.console_port}"
        return invited.operator, f"{base}/console/link/{invited.token}"

    added, link = run(invite)
    if as_json:
        print_json(_fields(added) | {"link": link})
    else:
        click.echo(f"{link}\n(for {added.name}, {added.role}; valid once, for 15 minutes)")


@operators_group.command("list")
@json_option
def list_operators(*, as_json: bool) -> None:
    """List operators by name, including revoked ones."""
    from config.console import operators  # noqa: PLC0415

    found = run(lambda container: operators(container).all())
    if as_json:
        print_json([_fields(operator) for operator in found])
        return
    print_table(
        ("NAME", "ROLE", "STATE", "ADDED (UTC)"),
        [(item.name, item.role, _state(item), item.made_at) for item in found],
    )


@operators_group.command("revoke")
@name_argument
@operator_options
def revoke_operator(name: str, operator: Operator) -> None:
    """End all sign-ins of the operator NAME within seconds, and allow no new one."""
    from config.console import operators  # noqa: PLC0415

    run(lambda container: operators(container).revoke(name, by=operator))
    click.echo("Revoked.")


@operators_group.command("log")
@click.option("--name", help="Only what this operator did in the console.")
@limit_option
@json_option
def list_actions(name: str | None, limit: int, *, as_json: bool) -> None:
    """List what operators did, newest first: in the console, by commands and through services."""
    actor = None if name is None else f"console:{name}"
    found = run(
        lambda container: container.audit_log().actions(subject=None, actor=actor, limit=limit)
    )
    print_actions(found, as_json=as_json)


def _fields(operator: ConsoleOperator) -> dict[str, object]:
    return {
        "name": operator.name,
        "role": operator.role,
        "state": _state(operator),
        "made_at": operator.made_at,
        "revoked_at": operator.revoked_at,
    }


def _state(operator: ConsoleOperator) -> str:
    if operator.revoked_at is not None:
        return "revoked"
    return "active" if operator.password_hash is not None else "invited"
