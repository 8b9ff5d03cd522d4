"""Commands for stores."""

from collections.abc import Awaitable, Callable
from typing import TYPE_CHECKING

import rich_click as click

from domain.account_ports import Store, StoreChange
from domain.operators import Operator
from domain.plans import Plan
from entrypoints.cli.output import json_option, limit_option, print_json, print_table, run
from entrypoints.cli.owner_options import operator_options

if TYPE_CHECKING:
    from config.container import Container

plan_choice = click.Choice([plan.value for plan in Plan])
store_argument = click.argument("store_id", metavar="ID")


@click.group("stores")
def stores_group() -> None:
    """Stores: their names, origins and plans. A store has to exist before it gets keys or
    credits."""


@stores_group.command("create")
@store_argument
@click.option("--name", required=True, help="The store's name.")
@click.option(
    "--origin",
    "origins",
    multiple=True,
    metavar="URL",
    help="A web page's origin from which the store's keys may be used; repeatable.",
)
@click.option(
    "--plan",
    type=plan_choice,
    default=Plan.DEFAULT.value,
    show_default=True,
    help="Decides how often the store may call.",
)
@operator_options
@json_option
def create_store(
    store_id: str,
    name: str,
    origins: tuple[str, ...],
    plan: str,
    operator: Operator,
    *,
    as_json: bool,
) -> None:
    """Create the store ID. Repeating the same command changes nothing."""
    created = run(
        lambda container: container.stores().create(
            store_id, name=name, origins=origins, plan=Plan(plan), by=operator
        )
    )
    if as_json:
        print_json(_fields(created.store) | {"replayed": created.replayed})
    else:
        click.echo(f"{'Exists already' if created.replayed else 'Created'}: {store_id}")


@stores_group.command("list")
@limit_option
@json_option
def list_stores(limit: int, *, as_json: bool) -> None:
    """List stores, ordered by id."""
    found = run(lambda container: container.stores().all(limit=limit))
    if as_json:
        print_json([_fields(store) for store in found])
        return
    print_table(
        ("ID", "NAME", "PLAN", "ORIGINS", "CREATED (UTC)"),
        [
            (store.id, store.name, store.plan, len(store.origins), store.created_at)
            for store in found
        ],
    )


@stores_group.command("show")
@store_argument
@json_option
def show_store(store_id: str, *, as_json: bool) -> None:
    """Show the store ID."""
    _show(lambda container: container.stores().get(store_id), as_json=as_json)


@stores_group.command("rename")
@store_argument
@click.argument("name")
@operator_options
@json_option
def rename_store(store_id: str, name: str, operator: Operator, *, as_json: bool) -> None:
    """Give the store ID another NAME."""
    change = StoreChange(name=name)
    _show(
        lambda container: container.stores().change(store_id, change, by=operator), as_json=as_json
    )


@stores_group.command("origins")
@store_argument
@click.option("--add", "added", multiple=True, metavar="URL", help="Add one; repeatable.")
@click.option("--remove", "removed", multiple=True, metavar="URL", help="Remove one; repeatable.")
@click.option(
    "--set",
    "replaced",
    multiple=True,
    metavar="URL",
    help="Replace all of them; repeatable.",
)
@operator_options
@json_option
def change_origins(
    store_id: str,
    added: tuple[str, ...],
    removed: tuple[str, ...],
    replaced: tuple[str, ...],
    operator: Operator,
    *,
    as_json: bool,
) -> None:
    """Show or change the origins from which the keys of the store ID may be used.

    An origin is scheme://host or scheme://host:port, exactly as browsers send it; https, except for
    localhost.
    """
    change = StoreChange(origins=replaced or None, add_origins=added, remove_origins=removed)

    async def work(container: "Container") -> Store:
        if change == StoreChange():
            return await container.stores().get(store_id)
        return await container.stores().change(store_id, change, by=operator)

    store = run(work)
    if as_json:
        print_json(list(store.origins))
    else:
        print_table(("ORIGIN",), [(origin,) for origin in store.origins])


def _show(work: Callable[["Container"], Awaitable[Store]], *, as_json: bool) -> None:
    store = run(work)
    fields = _fields(store)
    if as_json:
        print_json(fields)
        return
    del fields["origins"]
    origins = [(f"origins[{index}]", origin) for index, origin in enumerate(store.origins)]
    print_table(("FIELD", "VALUE"), [*fields.items(), *origins])


def _fields(store: Store) -> dict[str, object]:
    return {
        "id": store.id,
        "name": store.name,
        "plan": store.plan,
        "origins": list(store.origins),
        "created_at": store.created_at,
    }
