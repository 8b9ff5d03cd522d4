"""Commands for operators: sessions, credits, API keys and the queue."""

import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import rich_click as click

from domain.credits import MAX_GRANT, Channel, CreditAccount, Owner
from domain.errors import InvalidInput
from domain.ports import ApiKey
from domain.sessions import AttemptFault, GenerationSession, SessionStatus
from domain.tasks import GenerationTask
from entrypoints.cli.fields import flat, session_fields
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run

if TYPE_CHECKING:
    from config.container import Container

MAX_DISCREPANCIES = 100


def _one_owner(user: Owner | None, store: Owner | None) -> Owner | None:
    if user is not None and store is not None:
        raise click.UsageError("Give --user or --store, not both.")
    return user or store


def _required_owner(user: Owner | None, store: Owner | None) -> Owner:
    owner = _one_owner(user, store)
    if owner is None:
        raise click.UsageError("Give --user UUID or --store ID.")
    return owner


def _a_user(_: click.Context, __: click.Parameter, value: UUID | None) -> Owner | None:
    return None if value is None else Owner(channel=Channel.B2C, id=str(value))


def one_store(_: click.Context, __: click.Parameter, value: str | None) -> Owner | None:
    """The value of an option that names a store."""
    try:
        return None if value is None else Owner(channel=Channel.B2B, id=value)
    except InvalidInput as error:
        raise click.BadParameter(str(error).removeprefix(f"{error.field}: ")) from error


async def _check_known(container: "Container", owner: Owner | None) -> None:
    """Fail for an owner who has nothing here: most likely a mistyped id."""
    if (
        owner is not None
        and await container.accounts().account(owner) == CreditAccount(owner=owner)
        and not await container.api_keys().all(owner)
    ):
        raise click.ClickException(f"{owner} is unknown: no credits were granted, no key was made.")


user_option = click.option(
    "--user", type=click.UUID, callback=_a_user, metavar="UUID", help="A user (b2c)."
)
store_option = click.option("--store", callback=one_store, metavar="ID", help="A store (b2b).")


@click.group("credits")
def credits_group() -> None:
    """Balances, grants and the audit of the ledger."""


@credits_group.command("grant")
@user_option
@store_option
@click.option(
    "--note", default="granted by an operator", show_default=True, help="A note for the ledger."
)
@click.argument("amount", type=click.IntRange(1, MAX_GRANT))
@json_option
def grant_credits(
    user: Owner | None, store: Owner | None, note: str, amount: int, *, as_json: bool
) -> None:
    """Grant AMOUNT credits to a user or a store."""
    owner = _required_owner(user, store)
    account = run(lambda container: container.grants().grant(owner, amount, note=note))
    if as_json:
        print_json(flat(account))
    else:
        click.echo(f"{owner} now has {account.balance} credit(s)")


@credits_group.command("balance")
@user_option
@store_option
@limit_option
@json_option
def show_balance(user: Owner | None, store: Owner | None, limit: int, *, as_json: bool) -> None:
    """Show a balance and its latest ledger entries."""
    owner = _required_owner(user, store)

    async def read(container: "Container") -> tuple[Any, Any]:
        await _check_known(container, owner)
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
        ("ENTRY", "KIND", "AMOUNT", "SESSION", "NOTE", "WHEN (UTC)"),
        [
            (entry.id, entry.kind, entry.amount, entry.session_id, entry.note, entry.created_at)
            for entry in entries
        ],
    )


@credits_group.command("verify")
@json_option
def verify_credits(*, as_json: bool) -> None:
    """Check every balance against the ledger, and every session's debit and refund.

    Lists discrepancies and exits with 1 if there are any. A session that an external consumer set
    to failed is one until recovery refunds it, a few seconds later.
    """
    found = run(lambda container: container.accounts().audit(limit=MAX_DISCREPANCIES))
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
    callback=one_store,
    metavar="ID",
    help="The store that owns the key.",
)
@click.option("--label", default="", help="What the key is used for.")
@json_option
def create_key(store: Owner, label: str, *, as_json: bool) -> None:
    """Create a key and print it. It cannot be shown again: only its hash is stored."""
    issued = run(lambda container: container.key_issuer().issue(store, label=label))
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
        await _check_known(container, store)
        return await container.api_keys().all(store)

    found = run(read)
    if as_json:
        print_json([flat(key) for key in found])
        return
    print_table(
        ("ID", "STORE", "LABEL", "CREATED (UTC)", "REVOKED (UTC)"),
        [(key.id, key.owner.id, key.label, key.created_at, key.revoked_at) for key in found],
    )


@keys_group.command("revoke")
@click.argument("key_id", type=click.UUID)
def revoke_key(key_id: UUID) -> None:
    """Revoke the key with the id KEY_ID; it stops working within WEARON_AUTH_CACHE_SECONDS."""
    if not run(lambda container: container.api_keys().revoke(key_id)):
        raise click.ClickException("No such key, or it is already revoked.")
    click.echo("Revoked.")


@click.group("sessions")
def sessions_group() -> None:
    """Generation sessions of all owners."""


@sessions_group.command("show")
@click.argument("session_id", type=click.UUID)
@json_option
def show_session(session_id: UUID, *, as_json: bool) -> None:
    """Show everything that is stored of the session with the id SESSION_ID."""

    async def read(container: "Container") -> tuple[GenerationSession, list[AttemptFault]]:
        sessions = container.sessions()
        return await sessions.get(session_id, None), await sessions.attempt_faults(session_id)

    session, faults = run(read)
    if as_json:
        print_json(session_fields(session) | {"faults": faults})
        return
    print_table(("FIELD", "VALUE"), _rows(session_fields(session)))
    if faults:
        click.echo()
        print_table(
            ("FAILED ATTEMPT", "AT (UTC)", "WORKER", "CODE", "CAUSE"),
            [(item.attempt, item.at, item.worker, item.code, item.cause) for item in faults],
        )


def _rows(fields: dict[str, Any]) -> list[tuple[str, object]]:
    """The fields as rows, with a row for each accessory."""
    accessories = fields.pop("accessories")
    return [
        *fields.items(),
        *(
            (f"accessories[{index}]", f"{accessory['type']}: {accessory['url']}")
            for index, accessory in enumerate(accessories)
        ),
    ]


@sessions_group.command("list")
@user_option
@store_option
@click.option(
    "--status",
    type=click.Choice([status.value for status in SessionStatus]),
    help="Only sessions in this status.",
)
@limit_option
@json_option
def list_sessions(
    user: Owner | None,
    store: Owner | None,
    status: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """List sessions, newest first."""
    owner = _one_owner(user, store)
    wanted = None if status is None else SessionStatus(status)

    async def read(container: "Container") -> list[GenerationSession]:
        await _check_known(container, owner)
        return await container.sessions().history(owner, status=wanted, limit=limit, after=None)

    found = run(read)
    if as_json:
        print_json([session_fields(session) for session in found])
        return
    print_table(
        ("ID", "OWNER", "STATUS", "ATTEMPT", "ERROR", "CREATED (UTC)"),
        [
            (
                session.id,
                session.owner,
                session.status,
                session.attempt,
                session.failure.code if session.failure else None,
                session.created_at,
            )
            for session in found
        ],
    )


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
