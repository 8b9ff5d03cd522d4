"""Operators' use cases for stores: created once, found by similar names, changed in part."""

import pytest

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.credits.memory import InMemoryCreditRepo
from adapters.stores.memory import InMemoryStoreRepo
from domain.account_ports import MAX_ORIGINS, Store, StoreChange
from domain.errors import Conflict, InvalidInput, UnknownStore
from domain.plans import Plan
from domain.stores import Stores, similar_stores
from tests.support.clock import START, FakeClock
from tests.support.examples import OPERATOR

pytestmark = pytest.mark.anyio

ORIGIN = "https://shop.example"


@pytest.fixture
def stores() -> Stores:
    clock = FakeClock().now
    log = InMemoryAuditLog(clock=clock)
    accounts = InMemoryCreditRepo(clock=clock)
    repo = InMemoryStoreRepo(accounts=accounts, log=log, clock=clock)
    return Stores(stores=repo, clock=clock)


async def test_store_is_created_once(stores: Stores) -> None:
    """The same call again, with origins in another form and order, returns the store."""
    given = ["HTTPS://Shop.Example:443", "https://a.example"]
    first = await stores.create("shop", name=" Shop ", origins=given, plan=Plan.GROWTH)
    again = await stores.create("shop", name="Shop", origins=given[::-1] * 2, plan=Plan.GROWTH)

    assert (first.replayed, again.replayed) == (False, True)
    assert first.store == again.store
    assert first.store == Store(
        id="shop",
        name="Shop",
        origins=("https://a.example", ORIGIN),
        plan=Plan.GROWTH,
        created_at=START,
    )


@pytest.mark.parametrize(
    "other", [{"name": "Other"}, {"origins": ["https://b.example"]}, {"plan": Plan.SCALE}]
)
async def test_another_store_with_the_same_id(stores: Stores, other: dict[str, object]) -> None:
    """``Conflict`` whatever differs, and the store stays."""
    created = await stores.create("shop", name="Shop")

    with pytest.raises(Conflict, match="another store with the id shop"):
        await stores.create("shop", **{"name": "Shop", **other})  # type: ignore[arg-type]

    assert await stores.get("shop") == created.store


@pytest.mark.parametrize(
    ("field", "values"),
    [
        ("id", {"store_id": "a b"}),
        ("id", {"store_id": ""}),
        ("name", {"name": " "}),
        ("name", {"name": "x" * 201}),
        ("name", {"name": "a\x07"}),
        ("origins", {"origins": ["http://shop.example"]}),
        ("origins", {"origins": [f"https://{n}.example" for n in range(MAX_ORIGINS + 1)]}),
    ],
)
async def test_invalid_stores(stores: Stores, field: str, values: dict[str, object]) -> None:
    """``InvalidInput`` names the field, and there is no store."""
    with pytest.raises(InvalidInput, match=rf"^{field}: "):
        await stores.create(**{"store_id": "shop", "name": "Shop", **values})  # type: ignore[arg-type]

    assert await stores.all(limit=10) == []


async def test_unknown_store_names_similar_ones(stores: Stores) -> None:
    """By id and by name, whatever their case."""
    await stores.create("corner-shop", name="Corner Shop")
    await stores.create("s-4711", name="Boutique")

    messages = []
    for unknown in ("corner-shp", "BOUTIQE", "zzz"):
        with pytest.raises(UnknownStore) as error:
            await stores.get(unknown)
        messages.append(str(error.value))
    with pytest.raises(UnknownStore, match=r"similar: corner-shop \(Corner Shop\)"):
        await stores.change("Corner-Shop", StoreChange(name="Shop"), by=OPERATOR)

    assert messages == [
        "No store has the id corner-shp; similar: corner-shop (Corner Shop)",
        "No store has the id BOUTIQE; similar: s-4711 (Boutique)",
        "No store has the id zzz",
    ]


def test_similar_stores_are_few() -> None:
    """The three that are most alike, each once."""
    stores = [Store(id=f"store-{n}", name=f"store-{n}", created_at=START) for n in range(100)]

    assert similar_stores("store-1x", stores)[0] == "store-1"
    assert len(set(similar_stores("store-1x", stores))) == 3


async def test_change_is_checked(stores: Stores) -> None:
    """Origins in the form of browsers, also those to remove; everything else stays."""
    await stores.create("shop", name="Shop", origins=[ORIGIN])

    added = await stores.change("shop", StoreChange(add_origins=["https://B.example"]), by=OPERATOR)
    removed = await stores.change(
        "shop", StoreChange(remove_origins=["https://SHOP.example"]), by=OPERATOR
    )
    for change in (StoreChange(name=""), StoreChange(origins=["*"])):
        with pytest.raises(InvalidInput):
            await stores.change("shop", change, by=OPERATOR)

    assert added.origins == ("https://b.example", ORIGIN)
    assert removed.origins == ("https://b.example",)
    assert await stores.get("shop") == removed


async def test_ensured_store_stays_as_it_is(stores: Stores) -> None:
    """It gets its id as a name only if there was none."""
    created = await stores.create("shop", name="Shop", origins=[ORIGIN])

    await stores.ensure(created.store.owner)

    assert await stores.all(limit=10) == [created.store]
