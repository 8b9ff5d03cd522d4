"""Commands for operators: client tokens of stores' shoppers."""

from datetime import UTC, datetime
from uuid import UUID

import rich_click as click

from domain.credits import Owner
from entrypoints.cli.fields import flat
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run
from entrypoints.cli.owner_options import as_store


@click.group("tokens")
def tokens_group() -> None:
    """Client tokens of stores' shoppers. A store's server creates them."""


@tokens_group.command("list")
@click.option("--store", required=True, callback=as_store, metavar="ID", help="The store.")
@click.option("--shopper", metavar="ID", help="Only tokens of this shopper, by the store's id.")
@limit_option
@json_option
def list_tokens(store: Owner, shopper: str | None, limit: int, *, as_json: bool) -> None:
    """List the tokens of a store that are neither expired nor revoked, newest first."""
    found = run(
        lambda container: container.client_token_repo().live(store, shopper_id=shopper, limit=limit)
    )
    if as_json:
        print_json([_fields(token) for token in found])
        return
    now = datetime.now(UTC)
    print_table(
        ("ID", "SHOPPER", "ORIGIN", "USED", "SUBMISSIONS", "EXPIRES IN"),
        [
            (
                token.id,
                token.shopper_id,
                token.origin,
                f"{token.used}/{token.pictures}",
                token.submissions,
                f"{(token.expires_at - now).total_seconds():.0f} s",
            )
            for token in found
        ],
    )


def _fields(token: object) -> dict[str, object]:
    fields = flat(token)
    del fields["token_sha256"]
    return {"store_id": fields.pop("store")["id"], **fields}


@tokens_group.command("revoke")
@click.argument("token_id", type=click.UUID)
def revoke_token(token_id: UUID) -> None:
    """Revoke the token with the id TOKEN_ID: it creates no more sessions from now on, and stops
    working for anything else within WEARON_AUTH_CACHE_SECONDS."""
    if not run(lambda container: container.client_token_repo().revoke(token_id, None)):
        raise click.ClickException("No such client token; it may have expired and been deleted.")
    click.echo("Revoked.")
