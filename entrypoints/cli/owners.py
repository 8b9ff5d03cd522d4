"""Commands for owners: their accounts, plans and suspensions. And the audit log."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import rich_click as click

from domain.credits import CreditAccount, Owner
from domain.operators import Operator
from domain.plans import Plan
from entrypoints.cli.erase import erase_owner
from entrypoints.cli.fields import flat
from entrypoints.cli.output import (
    json_option,
    limit_option,
    print_actions,
    print_json,
    print_table,
    run,
)
from entrypoints.cli.owner_options import (
    check_known,
    one_owner,
    operator_options,
    reason_required,
    required_owner,
    store_option,
    user_option,
)
from entrypoints.cli.stores import plan_choice

if TYPE_CHECKING:
    from config.container import Container


@click.group("owners")
def owners_group() -> None:
    """Users and stores: what their accounts allow."""


@owners_group.command("show")
@user_option
@store_option
@json_option
def show_owner(user: Owner | None, store: Owner | None, *, as_json: bool) -> None:
    """Show an owner's account: balance, totals, plan, and whether it is suspended."""
    owner = required_owner(user, store)

    async def read(container: "Container") -> CreditAccount:
        await check_known(container, owner)
        return await container.owners().account(owner)

    _show(read, as_json=as_json)


@owners_group.command("plan")
@user_option
@store_option
@click.argument("plan", type=plan_choice)
@operator_options
@json_option
def set_plan(
    user: Owner | None, store: Owner | None, plan: str, operator: Operator, *, as_json: bool
) -> None:
    """Give an owner the PLAN, which decides how often it may call: default, starter, growth, scale
    or enterprise."""
    owner = required_owner(user, store)
    _show(
        lambda container: container.owners().set_plan(owner, Plan(plan), by=operator),
        as_json=as_json,
    )


@owners_group.command("suspend")
@user_option
@store_option
@reason_required
@json_option
def suspend_owner(
    user: Owner | None, store: Owner | None, operator: Operator, *, as_json: bool
) -> None:
    """Suspend an owner: it can request and upload nothing until it is resumed. What it requested
    before goes on."""
    owner = required_owner(user, store)
    _show(lambda container: container.owners().suspend(owner, by=operator), as_json=as_json)


@owners_group.command("resume")
@user_option
@store_option
@operator_options
@json_option
def resume_owner(
    user: Owner | None, store: Owner | None, operator: Operator, *, as_json: bool
) -> None:
    """End an owner's suspension."""
    owner = required_owner(user, store)
    _show(lambda container: container.owners().resume(owner, by=operator), as_json=as_json)


def _show(work: Callable[["Container"], Awaitable[CreditAccount]], *, as_json: bool) -> None:
    fields = flat(run(work))
    if as_json:
        print_json(fields)
    else:
        print_table(("FIELD", "VALUE"), list(fields.items()))


owners_group.add_command(erase_owner)


@click.group("audit")
def audit_group() -> None:
    """The log of what operators and their services changed."""


@audit_group.command("list")
@user_option
@store_option
@click.option("--subject", metavar="TEXT", help="What was changed, such as service:billing.")
@limit_option
@json_option
def list_actions(
    user: Owner | None, store: Owner | None, subject: str | None, limit: int, *, as_json: bool
) -> None:
    """List changes, newest first: of all accounts, stores and keys, or of one owner's."""
    owner = one_owner(user, store)
    if owner is not None and subject is not None:
        raise click.UsageError("Give --subject or an owner, not both.")
    wanted = subject if owner is None else str(owner)
    found = run(lambda container: container.audit_log().actions(subject=wanted, limit=limit))
    print_actions(found, as_json=as_json)
