"""StoreRepoPort: a store has an account, is created once, and is changed in part."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from adapters.stores.postgres import PostgresStoreRepo
from domain.account_ports import MAX_ORIGINS, Store, StoreChange, StoreRepoPort
from domain.credits import CreditAccount
from domain.errors import DatabaseUnavailable, InvalidInput
from domain.plans import Plan
from tests.contracts.backends import Backend
from tests.support.clock import START
from tests.support.examples import OPERATOR, STORE

pytestmark = pytest.mark.anyio

A, B, C = (f"https://{name}.example" for name in "abc")


def a_store(**changes: Any) -> Store:
    store = Store(id=STORE.id, name="Straße 1", origins=(A, B), created_at=START)
    return replace(store, **changes)


async def created(backend: Backend, **changes: Any) -> Store:
    store = await backend.stores.create(a_store(**changes), by=OPERATOR)
    assert store is not None
    return store


async def test_store_is_created_with_its_account(backend: Backend) -> None:
    """With the plan, and without credits."""
    store = await created(backend, plan=Plan.GROWTH)

    assert store == a_store(plan=Plan.GROWTH, created_at=store.created_at)
    assert await backend.stores.get(STORE.id) == store
    assert await backend.credits.account(STORE) == CreditAccount(owner=STORE, plan=Plan.GROWTH)
    assert store.created_at.utcoffset() is not None


async def test_account_that_exists_stays(backend: Backend) -> None:
    """It gets the plan, and keeps its credits."""
    await backend.credits.grant(STORE, 5, note="test")

    await created(backend, plan=Plan.GROWTH)

    account = await backend.credits.account(STORE)
    assert (account.balance, account.plan) == (5, Plan.GROWTH)


async def test_store_is_created_once(backend: Backend) -> None:
    """Of many concurrent calls one creates it; the others return None and change nothing."""
    results = await asyncio.gather(
        *(backend.stores.create(a_store(name=f"store {n}"), by=OPERATOR) for n in range(20))
    )

    (store,) = (result for result in results if result is not None)
    assert await backend.stores.get(STORE.id) == store
    (action,) = await backend.actions(STORE)
    assert (action.action, action.details["name"]) == ("store.create", store.name)


async def test_unknown_store(backend: Backend) -> None:
    """None, also for another case of the id."""
    await created(backend)

    assert await backend.stores.get(STORE.id.upper()) is None
    assert await backend.stores.change("store-2", StoreChange(name="x"), by=OPERATOR) is None
    assert len(await backend.actions()) == 1


async def test_stores_are_listed_by_id(backend: Backend) -> None:
    """Up to the limit, with their plans."""
    stores = {id_: await created(backend, id=id_, plan=Plan.SCALE) for id_ in ("b", "c", "a")}

    assert await backend.stores.all(limit=10) == [stores[id_] for id_ in "abc"]
    assert await backend.stores.all(limit=2) == [stores[id_] for id_ in "ab"]


@pytest.mark.parametrize(
    ("change", "fields"),
    [
        (StoreChange(name="other"), {"name": "other"}),
        (StoreChange(plan=Plan.SCALE), {"plan": Plan.SCALE}),
        (StoreChange(origins=[C]), {"origins": (C,)}),
        (StoreChange(origins=[]), {"origins": ()}),
        (StoreChange(add_origins=[C, A]), {"origins": (A, B, C)}),
        (StoreChange(remove_origins=[A, C]), {"origins": (B,)}),
        (StoreChange(add_origins=[C], remove_origins=[A]), {"origins": (B, C)}),
        (StoreChange(origins=[C, B, C], add_origins=[A], remove_origins=[B]), {"origins": (A, C)}),
    ],
)
async def test_store_is_changed_in_part(
    backend: Backend, change: StoreChange, fields: dict[str, Any]
) -> None:
    """What is not named stays; origins are sorted, each once. Once more changes nothing."""
    store = await created(backend)
    other = await created(backend, id="other")

    changed = await backend.stores.change(STORE.id, change, by=OPERATOR)
    again = await backend.stores.change(STORE.id, change, by=OPERATOR)

    assert changed == again == replace(store, **fields)
    assert await backend.stores.get(STORE.id) == changed
    assert await backend.stores.get("other") == other
    assert (await backend.credits.account(STORE)).plan is changed.plan
    first, last = await backend.actions(STORE)
    assert (first.action, last.action) == ("store.create", "store.change")
    assert (last.actor, last.reason) == (OPERATOR.actor, OPERATOR.reason)
    assert last.details == {
        "name": changed.name, "origins": list(changed.origins), "plan": changed.plan
    }  # fmt: skip


async def test_concurrent_changes_add_up(backend: Backend) -> None:
    """Nobody's origin is lost, nor another field's change."""
    await created(backend, origins=())
    changes = [StoreChange(add_origins=[f"https://{n:02}.example"]) for n in range(20)]

    await asyncio.gather(
        *(
            backend.stores.change(STORE.id, change, by=OPERATOR)
            for change in (*changes, StoreChange(name="other"), StoreChange(plan=Plan.SCALE))
        )
    )

    store = await backend.stores.get(STORE.id)
    assert store is not None
    assert len(store.origins) == 20
    assert (store.name, store.plan) == ("other", Plan.SCALE)
    assert len(await backend.actions(STORE)) == 23


async def test_too_many_origins(backend: Backend) -> None:
    """The bound holds for what the store would have, and nothing changes."""
    full = tuple(f"https://{n:03}.example" for n in range(MAX_ORIGINS))
    store = await created(backend, origins=full)

    with pytest.raises(InvalidInput, match=r"^origins: has more than 100 items$"):
        await backend.stores.change(
            STORE.id, StoreChange(name="other", add_origins=[A]), by=OPERATOR
        )

    assert await backend.stores.get(STORE.id) == store
    assert len(await backend.actions(STORE)) == 1


CALLS: dict[str, Callable[[StoreRepoPort], Awaitable[object]]] = {
    "create": lambda repo: repo.create(a_store()),
    "get": lambda repo: repo.get(STORE.id),
    "all": lambda repo: repo.all(limit=1),
    "change": lambda repo: repo.change(STORE.id, StoreChange(name="x"), by=OPERATOR),
}


@pytest.mark.parametrize("method", CALLS)
async def test_database_that_is_down_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method raises DatabaseUnavailable."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresStoreRepo(database))

    await database.close()


def test_every_method_is_called_without_a_server() -> None:
    """A new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(StoreRepoPort) if not name.startswith("_")}
