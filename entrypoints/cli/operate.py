"""Commands for operators: credits, API keys and the queue."""

import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import rich_click as click

from domain.credits import MAX_GRANT, Booked, Owner
from domain.operators import Operator
from domain.ports import ApiKey
from domain.tasks import GenerationTask
from entrypoints.cli.fields import flat
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run
from entrypoints.cli.owner_options import (
    as_store,
    check_known,
    operator_options,
    reason_required,
    reference_option,
    required_owner,
    shortened,
    store_option,
    user_option,
)

if TYPE_CHECKING:
    from config.container import Container

MAX_DISCREPANCIES = 100


@click.group("credits")
def credits_group() -> None:
    """Balances, grants and the audit of the ledger."""


@credits_group.command("grant")
@user_option
@store_option
@click.option(
    "--note",
    default="granted by an operator",
    show_default=True,
    help="A note for the ledger, which the owner can read.",
)
@reference_option
@operator_options
@click.argument("amount", type=click.IntRange(1, MAX_GRANT))
@json_option
def grant_credits(
    *,
    user: Owner | None,
    store: Owner | None,
    note: str,
    reference: str | None,
    operator: Operator,
    amount: int,
    as_json: bool,
) -> None:
    """Grant AMOUNT credits to a user or a store."""
    owner = required_owner(user, store)
    booked = run(
        lambda container: container.grants().grant(
            owner, amount, note=note, reference=reference, by=operator
        )
    )
    _print_booked(booked, as_json=as_json)


@credits_group.command("adjust")
@user_option
@store_option
@reference_option
@reason_required
@click.argument("amount", type=click.IntRange(1, MAX_GRANT))
@json_option
def adjust_credits(
    user: Owner | None,
    store: Owner | None,
    reference: str | None,
    operator: Operator,
    amount: int,
    *,
    as_json: bool,
) -> None:
    """Take AMOUNT credits of a mistaken grant back from a user or a store: all of them, or none if
    the balance is smaller. The owner can read the reason in its ledger."""
    owner = required_owner(user, store)
    booked = run(
        lambda container: container.grants().adjust(owner, amount, reference=reference, by=operator)
    )
    _print_booked(booked, as_json=as_json)


def _print_booked(booked: Booked, *, as_json: bool) -> None:
    account, entry = booked.account, booked.entry
    if as_json:
        fields = {"entry_id": entry.id, "reference": entry.reference, "replayed": booked.replayed}
        print_json(flat(account) | fields)
        return
    click.echo(f"{account.owner} now has {account.balance} credit(s)")
    if booked.replayed:
        click.echo(f"Nothing was booked: entry {entry.id} has this reference already.")


@credits_group.command("balance")
@user_option
@store_option
@limit_option
@json_option
def show_balance(user: Owner | None, store: Owner | None, limit: int, *, as_json: bool) -> None:
    """Show a balance and its latest ledger entries."""
    owner = required_owner(user, store)

    async def read(container: "Container") -> tuple[Any, Any]:
        await check_known(container, owner)
        accounts = container.accounts()
        return (
            await accounts.account(owner),
            await accounts.ledger(owner, limit=limit, before_id=None),
        )

    account, entries = run(read)
    if as_json:
        print_json({"account": flat(account), "entries": [flat(entry) for entry in entries]})
        return
    click.echo(f"{owner}: {account.balance} credit(s)")
    print_table(
        ("ENTRY", "KIND", "AMOUNT", "SESSION", "REFERENCE", "NOTE", "WHEN (UTC)"),
        [
            (
                entry.id,
                entry.kind,
                entry.amount,
                entry.session_id,
                entry.reference,
                entry.note,
                entry.created_at,
            )
            for entry in entries
        ],
    )


@credits_group.command("verify")
@json_option
def verify_credits(*, as_json: bool) -> None:
    """Check every balance against the ledger, and every session's debit and refund.

    Lists discrepancies and exits with 1 if there are any. A session that an external consumer set
    to failed is one until recovery refunds it, a few seconds later. The result is kept for
    `wearon status`.
    """
    found = run(lambda container: container.books().verify(limit=MAX_DISCREPANCIES))
    if as_json:
        print_json({"ok": not found, "discrepancies": found})
    elif found:
        print_table(("SUBJECT", "PROBLEM"), [(item.subject, item.problem) for item in found])
    else:
        click.echo(
            "No discrepancies: every balance is the sum of its ledger entries, every session"
        )
        click.echo("has one debit, and exactly the failed sessions have a refund.")
    if found:
        sys.exit(1)


@click.group("keys")
def keys_group() -> None:
    """API keys of stores."""


@keys_group.command("create")
@click.option(
    "--store",
    required=True,
    callback=as_store,
    metavar="ID",
    help="The store that owns the key.",
)
@click.option("--label", default="", help="What the key is used for.")
@operator_options
@json_option
def create_key(store: Owner, label: str, operator: Operator, *, as_json: bool) -> None:
    """Create a key and print it. It cannot be shown again: only its hash is stored."""
    issued = run(lambda container: container.key_issuer().issue(store, label=label, by=operator))
    if as_json:
        print_json({"key": issued.secret, **flat(issued.key)})
    else:
        click.echo(
            f"{issued.secret}\n(id {issued.key.id}; save the key now: it is not shown again)"
        )


@keys_group.command("list")
@store_option
@json_option
def list_keys(store: Owner | None, *, as_json: bool) -> None:
    """List the keys of one store or of all stores."""

    async def read(container: "Container") -> list[ApiKey]:
        await check_known(container, store)
        return await container.api_keys().all(store)

    found = run(read)
    if as_json:
        print_json([flat(key) for key in found])
        return
    print_table(
        ("ID", "STORE", "KEY", "LABEL", "CREATED (UTC)", "REVOKED (UTC)"),
        [
            (
                key.id,
                key.owner.id,
                shortened(key.prefix),
                key.label,
                key.created_at,
                key.revoked_at,
            )
            for key in found
        ],
    )


@keys_group.command("revoke")
@click.argument("key_id", type=click.UUID)
@operator_options
def revoke_key(key_id: UUID, operator: Operator) -> None:
    """Revoke the key with the id KEY_ID; it stops working within WEARON_AUTH_CACHE_SECONDS."""
    if not run(lambda container: container.api_keys().revoke(key_id, by=operator)):
        raise click.ClickException("No such key, or it is already revoked.")
    click.echo("Revoked.")


@click.group("queue")
def queue_group() -> None:
    """The task queue."""


@queue_group.command("status")
@json_option
def queue_status(*, as_json: bool) -> None:
    """Show the number of waiting tasks, the next one, and the number of dead letters."""

    async def read(container: "Container") -> dict[str, object]:
        queue = container.queue()
        oldest = await queue.oldest()
        task = oldest if isinstance(oldest, GenerationTask) else None
        return {
            "waiting": await queue.depth(),
            "next_session_id": oldest.session_id if oldest else None,
            "next_created_at": task.created_at if task else None,
            "dead": await queue.count(),
        }

    status = run(read)
    if as_json:
        print_json(status)
    else:
        print_table(("WAITING", "NEXT SESSION", "CREATED (UTC)", "DEAD"), [tuple(status.values())])
