"""Commands for service keys."""

from uuid import UUID

import rich_click as click

from domain.callers import Scope
from domain.operators import Operator
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run
from entrypoints.cli.owner_options import operator_options, shortened


@click.group("services")
def services_group() -> None:
    """Keys of the operator's own services, such as a billing system, for /api/v1/admin."""


@services_group.command("create")
@click.option("--label", required=True, help="The service's name in the audit log.")
@click.option(
    "--scope",
    "scopes",
    required=True,
    multiple=True,
    type=click.Choice([scope.value for scope in Scope]),
    help="What the key may do; repeatable.",
)
@operator_options
@json_option
def create_service(
    label: str, scopes: tuple[str, ...], operator: Operator, *, as_json: bool
) -> None:
    """Create a key and print it. It cannot be shown again: only its hash is stored."""
    wanted = [Scope(scope) for scope in scopes]
    issued = run(
        lambda container: container.service_key_issuer().issue(
            label=label, scopes=wanted, by=operator
        )
    )
    if as_json:
        key = issued.key
        print_json(
            {"key": issued.secret, "id": key.id, "label": key.label, "scopes": sorted(key.scopes)}
        )
    else:
        click.echo(
            f"{issued.secret}\n(id {issued.key.id}; save the key now: it is not shown again)"
        )


@services_group.command("list")
@limit_option
@json_option
def list_services(limit: int, *, as_json: bool) -> None:
    """List service keys, newest first, including revoked ones."""
    found = run(lambda container: container.service_key_issuer().all(limit=limit))
    if as_json:
        print_json(
            [
                {
                    "id": key.id,
                    "prefix": key.prefix,
                    "label": key.label,
                    "scopes": sorted(key.scopes),
                    "created_at": key.created_at,
                    "revoked_at": key.revoked_at,
                }
                for key in found
            ]
        )
        return
    print_table(
        ("ID", "KEY", "LABEL", "SCOPES", "CREATED (UTC)", "REVOKED (UTC)"),
        [
            (
                key.id,
                shortened(key.prefix),
                key.label,
                " ".join(sorted(key.scopes)),
                key.created_at,
                key.revoked_at,
            )
            for key in found
        ],
    )


@services_group.command("revoke")
@click.argument("key_id", type=click.UUID)
@operator_options
def revoke_service(key_id: UUID, operator: Operator) -> None:
    """Revoke the key with the id KEY_ID; it stops working within WEARON_AUTH_CACHE_SECONDS."""
    if not run(lambda container: container.service_key_issuer().revoke(key_id, by=operator)):
        raise click.ClickException("No such key, or it is already revoked.")
    click.echo("Revoked.")
