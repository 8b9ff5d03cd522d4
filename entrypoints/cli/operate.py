"""Commands for whoever looks after a running wearon: they read and write the store."""

import sys
from typing import TYPE_CHECKING, Any
from uuid import UUID

import rich_click as click

from domain.credits import MAX_GRANT, Channel, Owner
from domain.errors import InvalidInput
from domain.sessions import GenerationSession, SessionStatus
from domain.tasks import GenerationTask
from entrypoints.cli.dead import ALL_LETTERS
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
        raise click.UsageError("Whose? Give --user UUID or --store ID.")
    return owner


def _a_user(_: click.Context, __: click.Parameter, value: UUID | None) -> Owner | None:
    return None if value is None else Owner(channel=Channel.B2C, id=str(value))


def _a_store(_: click.Context, __: click.Parameter, value: str | None) -> Owner | None:
    try:
        return None if value is None else Owner(channel=Channel.B2B, id=value)
    except InvalidInput as error:
        raise click.BadParameter(str(error).removeprefix(f"{error.field}: ")) from error


user_option = click.option(
    "--user", type=click.UUID, callback=_a_user, metavar="UUID", help="A user (b2c)."
)
store_option = click.option("--store", callback=_a_store, metavar="ID", help="A store (b2b).")


@click.group("credits")
def credits_group() -> None:
    """Balances, grants and the audit of the books."""


@credits_group.command("grant")
@user_option
@store_option
@click.option("--note", default="granted by an operator", show_default=True, help="For the ledger.")
@click.argument("amount", type=click.IntRange(1, MAX_GRANT))
@json_option
def grant_credits(
    user: Owner | None, store: Owner | None, note: str, amount: int, *, as_json: bool
) -> None:
    """Give AMOUNT credits to a user or a store."""
    owner = _required_owner(user, store)
    account = run(lambda container: container.accounts().grant(owner, amount, note=note))
    if as_json:
        print_json(account)
    else:
        click.echo(f"{owner} now has {account.balance} credit(s)")


@credits_group.command("balance")
@user_option
@store_option
@limit_option
@json_option
def show_balance(user: Owner | None, store: Owner | None, limit: int, *, as_json: bool) -> None:
    """Show a balance and the latest ledger entries behind it."""
    owner = _required_owner(user, store)

    async def read(container: "Container") -> tuple[Any, Any]:
        accounts = container.accounts()
        return (
            await accounts.account(owner),
            await accounts.ledger(owner, limit=limit, before_id=None),
        )

    account, entries = run(read)
    if as_json:
        print_json({"account": account, "entries": entries})
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
    """Recompute every balance from the ledger, and every session's debit and refund.

    Exits 1 and lists what is off. A session that another system's consumer failed is off until
    recovery has refunded it, a few seconds later.
    """
    found = run(lambda container: container.accounts().audit(limit=MAX_DISCREPANCIES))
    if as_json:
        print_json({"ok": not found, "discrepancies": found})
    elif found:
        print_table(("WHAT", "PROBLEM"), [(item.subject, item.problem) for item in found])
    else:
        click.echo("The books are right: every balance is the sum of its ledger entries,")
        click.echo("every session has one debit, every failed one a refund and no other has.")
    if found:
        sys.exit(1)


@click.group("keys")
def keys_group() -> None:
    """API keys of stores."""


@keys_group.command("create")
@click.option(
    "--store",
    required=True,
    callback=_a_store,
    metavar="ID",
    help="The store that the key is for.",
)
@click.option("--label", default="", help="A reminder of what the key is used for.")
@json_option
def create_key(store: Owner, label: str, *, as_json: bool) -> None:
    """Make a key and show it, this once: only its hash is stored."""
    from domain.ports import ApiKey  # noqa: PLC0415

    async def create(container: "Container") -> tuple[str, ApiKey]:
        secret = container.new_api_key()
        key = ApiKey(
            id=container.new_id()(),
            owner=store,
            key_sha256=container.key_sha256(secret),
            label=label,
            created_at=container.clock()(),
        )
        await container.api_keys().add(key)
        return secret, key

    secret, key = run(create)
    if as_json:
        print_json({"key": secret, "id": key.id, "store_id": store.id})
    else:
        click.echo(f"{secret}\n(id {key.id}; keep the key now, it cannot be shown again)")


@keys_group.command("list")
@store_option
@json_option
def list_keys(store: Owner | None, *, as_json: bool) -> None:
    """List keys, of one store or of all."""
    found = run(lambda container: container.api_keys().all(store))
    if as_json:
        print_json(found)
        return
    print_table(
        ("ID", "STORE", "LABEL", "CREATED (UTC)", "REVOKED (UTC)"),
        [(key.id, key.owner.id, key.label, key.created_at, key.revoked_at) for key in found],
    )


@keys_group.command("revoke")
@click.argument("key_id", type=click.UUID)
def revoke_key(key_id: UUID) -> None:
    """Make the key with the id KEY_ID useless for ever, within WEARON_CALLER_SECONDS."""
    if not run(lambda container: container.api_keys().revoke(key_id)):
        raise click.ClickException("There is no such key, or it was revoked before.")
    click.echo("Revoked.")


@click.group("sessions")
def sessions_group() -> None:
    """Generation sessions, of everybody."""


@sessions_group.command("show")
@click.argument("session_id", type=click.UUID)
@json_option
def show_session(session_id: UUID, *, as_json: bool) -> None:
    """Show all that is stored of the session with the id SESSION_ID."""
    session = run(lambda container: container.sessions().get(session_id, None))
    if as_json:
        print_json(_flat(session))
    else:
        print_table(("FIELD", "VALUE"), _fields(session))


def _flat(session: GenerationSession) -> dict[str, Any]:
    """The session for JSON, with the fields of its input beside its own."""
    import msgspec  # noqa: PLC0415

    flat: dict[str, Any] = {}
    for name, value in msgspec.to_builtins(session).items():
        flat |= value if name == "input" else {name: value}
    return flat


def _fields(session: GenerationSession) -> list[tuple[str, object]]:
    picture, failure, usage = session.picture, session.failure, session.usage
    return [
        ("id", session.id),
        ("owner", session.owner),
        ("status", session.status),
        ("attempt", session.attempt),
        ("lease until", session.lease_expires_at),
        ("pushed", "confirmed" if session.confirmed else "not confirmed"),
        ("picture", picture.object_key if picture else session.generated_image_url),
        ("picture deleted", session.image_deleted_at if picture else None),
        ("failure", f"{failure.code}: {failure.message}" if failure else None),
        ("request id", session.request_id),
        *((f"image {index}", url) for index, url in enumerate(session.input.image_urls, 1)),
        ("created", session.created_at),
        ("started", session.started_at),
        ("completed", session.completed_at),
        ("took ms", session.processing_time_ms),
        ("provider job", session.provider_job),
        ("input tokens", usage.input_tokens if usage else None),
        ("output tokens", usage.output_tokens if usage else None),
        ("estimated cost USD", usage.estimated_cost_usd if usage else None),
    ]


@sessions_group.command("list")
@user_option
@store_option
@click.option(
    "--status", type=click.Choice([status.value for status in SessionStatus]), help="Only those."
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
    found = run(
        lambda container: container.sessions().history(
            owner, status=wanted, limit=limit, after=None
        )
    )
    if as_json:
        print_json([_flat(session) for session in found])
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
    """Show how many tasks wait, which one is next, and how many dead letters there are."""

    async def read(container: "Container") -> dict[str, object]:
        waiting = await container.queue().depth()
        oldest = await container.queue().oldest()
        dead = await container.queue().dead(limit=ALL_LETTERS)
        task = oldest if isinstance(oldest, GenerationTask) else None
        return {
            "waiting": waiting,
            "next_session_id": oldest.session_id if oldest else None,
            "next_created_at": task.created_at if task else None,
            "dead": len(dead),
        }

    status = run(read)
    if as_json:
        print_json(status)
    else:
        print_table(("WAITING", "NEXT SESSION", "CREATED (UTC)", "DEAD"), [tuple(status.values())])
