"""Commands for operators: owners' webhooks. ``listen`` is for developers of receivers."""

import os
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, TypeVar
from urllib.parse import urlsplit
from uuid import UUID

import rich_click as click

from domain.credits import MAX_GRANT, Owner
from domain.endpoints import (
    ALL_EVENTS,
    Delivery,
    DeliveryStatus,
    Endpoint,
    EndpointChange,
    IssuedSecret,
    WebhookEvent,
)
from domain.operators import Operator
from domain.webhooks import MAX_PAGE
from entrypoints.cli.output import json_option, print_json, print_table, run
from entrypoints.cli.owner_options import (
    check_known,
    operator_options,
    required_owner,
    store_option,
    user_option,
)

if TYPE_CHECKING:
    from config.container import Container
    from entrypoints.http.webhook_schemas import EndpointItem

T = TypeVar("T")

endpoint_argument = click.argument("endpoint_id", metavar="ID", type=click.UUID)
event_option = click.option(
    "--event",
    "events",
    multiple=True,
    type=click.Choice(sorted(event.value for event in ALL_EVENTS)),
    help="What the endpoint is told of; repeatable.",
)


@click.group("webhooks")
def webhooks_group() -> None:
    """Webhooks of users and stores: where their events are sent, and what came of it."""


@webhooks_group.command("list")
@user_option
@store_option
@json_option
def list_endpoints(user: Owner | None, store: Owner | None, *, as_json: bool) -> None:
    """List an owner's endpoints, newest first."""
    found = _of(user, store, lambda container, owner: container.webhooks().all(owner))
    if as_json:
        print_json([_item(endpoint) for endpoint in found])
        return
    print_table(
        ("ID", "URL", "EVENTS", "STATE", "CREATED (UTC)"),
        [
            (one.id, _shown(one.url), " ".join(sorted(one.events)), _state(one), one.created_at)
            for one in found
        ],
    )


def _state(endpoint: Endpoint) -> str:
    if endpoint.disabled_reason is not None:
        return f"disabled ({endpoint.disabled_reason})"
    return "failing" if endpoint.failures else "enabled"


def _shown(url: str) -> str:
    """Without its query, which may carry a credential. ``--json`` and ``show`` have all of it."""
    address, mark, _ = url.partition("?")
    return f"{address}?…" if mark else address


@webhooks_group.command("add")
@click.argument("url")
@user_option
@store_option
@event_option
@click.option("--description", default="", help="Words for lists.")
@operator_options
@json_option
def add_endpoint(
    *,
    url: str,
    user: Owner | None,
    store: Owner | None,
    events: tuple[str, ...],
    description: str,
    operator: Operator,
    as_json: bool,
) -> None:
    """Send an owner's events to URL. Prints the secret that signs them, which cannot be shown
    again."""
    issued = _of(
        user,
        store,
        lambda container, owner: container.webhooks().create(
            owner, url=url, events=events or ALL_EVENTS, description=description, by=operator
        ),
    )
    _print_secret(issued, as_json=as_json)


@webhooks_group.command("show")
@endpoint_argument
@user_option
@store_option
@json_option
def show_endpoint(
    endpoint_id: UUID, user: Owner | None, store: Owner | None, *, as_json: bool
) -> None:
    """Show the endpoint ID, without its secret."""
    endpoint = _of(
        user, store, lambda container, owner: container.webhooks().get(endpoint_id, owner)
    )
    _print_endpoint(endpoint, as_json=as_json)


@webhooks_group.command("update")
@endpoint_argument
@user_option
@store_option
@click.option("--url", help="Where events are sent, including those that wait.")
@event_option
@click.option("--description", help="Words for lists.")
@click.option(
    "--enable/--disable",
    "enabled",
    default=None,
    help="While it is disabled, its messages wait. Enabling it also ends a pause.",
)
@operator_options
@json_option
def update_endpoint(
    *,
    endpoint_id: UUID,
    user: Owner | None,
    store: Owner | None,
    url: str | None,
    events: tuple[str, ...],
    description: str | None,
    enabled: bool | None,
    operator: Operator,
    as_json: bool,
) -> None:
    """Change the endpoint ID. What is not given stays as it is; events replace all of them."""
    change = EndpointChange(
        url=url,
        events=frozenset(map(WebhookEvent, events)) or None,
        description=description,
        enabled=enabled,
    )
    if change == EndpointChange():
        raise click.UsageError("Give what to change: see --help.")
    endpoint = _of(
        user,
        store,
        lambda container, owner: container.webhooks().update(
            endpoint_id, owner, change, by=operator
        ),
    )
    _print_endpoint(endpoint, as_json=as_json)


@webhooks_group.command("remove")
@endpoint_argument
@user_option
@store_option
@operator_options
def remove_endpoint(
    endpoint_id: UUID, user: Owner | None, store: Owner | None, operator: Operator
) -> None:
    """Delete the endpoint ID with its deliveries, also those that wait."""
    _of(
        user,
        store,
        lambda container, owner: container.webhooks().delete(endpoint_id, owner, by=operator),
    )
    click.echo("Removed.")


@webhooks_group.command("rotate")
@endpoint_argument
@user_option
@store_option
@operator_options
@json_option
def rotate_secret(
    endpoint_id: UUID,
    user: Owner | None,
    store: Owner | None,
    operator: Operator,
    *,
    as_json: bool,
) -> None:
    """Give the endpoint ID a new secret and print it. The one before signs as well for 24 hours."""
    issued = _of(
        user,
        store,
        lambda container, owner: container.webhooks().rotate(endpoint_id, owner, by=operator),
    )
    _print_secret(issued, as_json=as_json)


@webhooks_group.command("test")
@endpoint_argument
@user_option
@store_option
@operator_options
@json_option
def send_test(
    endpoint_id: UUID,
    user: Owner | None,
    store: Owner | None,
    operator: Operator,
    *,
    as_json: bool,
) -> None:
    """Send a test event to the endpoint ID; `wearon webhooks deliveries ID` shows what came of
    it."""
    delivery = _of(
        user,
        store,
        lambda container, owner: container.webhooks().send_test(endpoint_id, owner, by=operator),
    )
    _print_deliveries([delivery], as_json=as_json, one=True)


@webhooks_group.command("deliveries")
@endpoint_argument
@user_option
@store_option
@click.option(
    "--status",
    type=click.Choice([status.value for status in DeliveryStatus]),
    help="Only deliveries in this status.",
)
@click.option(
    "--limit",
    type=click.IntRange(1, MAX_PAGE),
    default=20,
    show_default=True,
    help="The maximum number of rows.",
)
@json_option
def list_deliveries(
    endpoint_id: UUID,
    user: Owner | None,
    store: Owner | None,
    status: str | None,
    limit: int,
    *,
    as_json: bool,
) -> None:
    """List deliveries to the endpoint ID, newest first, each with its latest attempt. With --json,
    with all of its latest attempts and the beginnings of their responses."""
    wanted = None if status is None else DeliveryStatus(status)
    found = _of(
        user,
        store,
        lambda container, owner: container.webhooks().deliveries(
            endpoint_id, owner, status=wanted, limit=limit
        ),
    )
    _print_deliveries(found, as_json=as_json)


@webhooks_group.command("retry")
@endpoint_argument
@user_option
@store_option
@click.option(
    "--since",
    type=click.DateTime(["%Y-%m-%dT%H:%M:%S", "%Y-%m-%d %H:%M:%S", "%Y-%m-%d"]),
    metavar="TIME",
    help="ID is an endpoint: retry all of its failed and expired deliveries created since this"
    " time (UTC).",
)
@operator_options
@json_option
def retry(
    *,
    endpoint_id: UUID,
    user: Owner | None,
    store: Owner | None,
    since: datetime | None,
    operator: Operator,
    as_json: bool,
) -> None:
    """Send the delivery ID once more, whatever its status. With --since, ID is an endpoint."""
    if since is None:
        delivery = _of(
            user,
            store,
            lambda container, owner: container.webhooks().retry(endpoint_id, owner, by=operator),
        )
        _print_deliveries([delivery], as_json=as_json, one=True)
        return
    retried = _of(
        user,
        store,
        lambda container, owner: container.webhooks().retry_failed(
            endpoint_id, owner, since=since.replace(tzinfo=UTC), by=operator
        ),
    )
    if as_json:
        print_json({"retried": retried})
    else:
        click.echo(f"{retried} deliveries are sent again.")


@webhooks_group.command("low-credits")
@user_option
@store_option
@click.option("--below", type=click.IntRange(1, MAX_GRANT), help="The balance to tell of.")
@click.option("--off", is_flag=True, help="Tell of no balance any more.")
@operator_options
@json_option
def low_credits(
    *,
    user: Owner | None,
    store: Owner | None,
    below: int | None,
    off: bool,
    operator: Operator,
    as_json: bool,
) -> None:
    """Show or set the balance below which an owner's webhooks are sent `credits.low`."""
    if off and below is not None:
        raise click.UsageError("Give --below or --off, not both.")

    async def work(container: "Container", owner: Owner) -> int | None:
        if off or below is not None:
            await container.webhooks().set_low_credits(owner, below, by=operator)
        return await container.webhooks().low_credits(owner)

    threshold = _of(user, store, work)
    if as_json:
        print_json({"low_credits": threshold})
    else:
        click.echo("off" if threshold is None else f"below {threshold} credit(s)")


@webhooks_group.command("listen")
@click.option("--forward-to", required=True, metavar="URL", help="Where your receiver listens.")
@click.option(
    "--api",
    default="http://127.0.0.1:8000",
    show_default=True,
    metavar="URL",
    help="The API whose sessions to follow.",
)
@click.option(
    "--count", type=click.IntRange(1), metavar="N", help="Stop after N webhooks; for scripts."
)
def listen(forward_to: str, api: str, count: int | None) -> None:
    """Forward your webhooks to a URL on your machine, for development.

    The API key, or a user's token, is read from the variable API_KEY, or asked for. Each session of
    yours that ends is posted to the URL, signed like a real webhook, with a secret made for this
    run. Ctrl-C stops it.
    """
    for option, url in (("--forward-to", forward_to), ("--api", api)):
        if urlsplit(url).scheme not in {"http", "https"} or not urlsplit(url).hostname:
            raise click.UsageError(f"{option} must be an http or https URL.")
    key = os.environ.get("API_KEY", "").strip() or click.prompt(
        "API key or token", hide_input=True, err=True
    )
    from entrypoints.cli.listen import forward  # noqa: PLC0415 - help needs no HTTP client

    forward(api, forward_to, key=key, count=count)


def _of(
    user: Owner | None,
    store: Owner | None,
    work: Callable[["Container", Owner], Awaitable[T]],
) -> T:
    """Run ``work`` for the owner that was given, which has to be known."""
    owner = required_owner(user, store)

    async def for_owner(container: "Container") -> T:
        await check_known(container, owner)
        return await work(container, owner)

    return run(for_owner)


def _item(endpoint: Endpoint) -> "EndpointItem":
    """As the API shows it."""
    from entrypoints.http.webhook_schemas import EndpointItem  # noqa: PLC0415 - help needs none

    return EndpointItem.of(endpoint)


def _print_endpoint(endpoint: Endpoint, *, as_json: bool) -> None:
    item = _item(endpoint)
    if as_json:
        print_json(item)
        return
    fields = {name: getattr(item, name) for name in item.__struct_fields__}
    fields["events"] = " ".join(item.events)
    print_table(("FIELD", "VALUE"), list(fields.items()))


def _print_secret(issued: IssuedSecret, *, as_json: bool) -> None:
    from entrypoints.http.webhook_schemas import SecretItem  # noqa: PLC0415 - help needs none

    if as_json:
        print_json(SecretItem.issued(issued))
        return
    click.echo(
        f"{issued.secret}\n(id {issued.endpoint.id}; save the secret now: it is not shown again)"
    )


def _print_deliveries(found: list[Delivery], *, as_json: bool, one: bool = False) -> None:
    from entrypoints.http.webhook_schemas import DeliveryItem  # noqa: PLC0415 - help needs none

    if as_json:
        items = [DeliveryItem.of(delivery) for delivery in found]
        print_json(items[0] if one else items)
        return
    print_table(
        ("ID", "EVENT", "SESSION", "STATUS", "ATTEMPTS", "LATEST", "MS", "CREATED (UTC)", "NEXT"),
        [_row(delivery) for delivery in found],
    )


def _row(delivery: Delivery) -> tuple[object, ...]:
    latest = delivery.attempts[0] if delivery.attempts else None
    return (
        delivery.id,
        delivery.event,
        delivery.session_id,
        delivery.status,
        delivery.attempt_count,
        None if latest is None else latest.status or latest.error,
        None if latest is None else latest.duration_ms,
        delivery.created_at,
        delivery.next_attempt_at,
    )
