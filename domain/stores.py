"""Operators' use cases for stores."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import datetime
from difflib import get_close_matches

from domain.account_ports import MAX_ORIGINS, Store, StoreChange, StoreRepoPort
from domain.credits import Channel, Owner
from domain.errors import Conflict, InvalidInput, UnknownStore
from domain.labels import MAX_NAME_LENGTH, checked_label
from domain.operators import Operator
from domain.origins import origin_of_store
from domain.plans import Plan

MAX_COMPARED = 1_000
"""Stores whose ids and names are compared with an unknown id: some 20 ms, in which a process
answers nobody else."""

MAX_SIMILAR = 3
_COMPARED_LENGTH = 40


@dataclass(frozen=True, slots=True, kw_only=True)
class CreatedStore:
    """A store. ``replayed`` means that an earlier call created it."""

    store: Store
    replayed: bool


class Stores:
    """Creates and changes stores."""

    def __init__(self, *, stores: StoreRepoPort, clock: Callable[[], datetime]) -> None:
        self._stores = stores
        self._clock = clock

    async def create(
        self,
        store_id: str,
        *,
        name: str,
        origins: Sequence[str] = (),
        plan: Plan = Plan.DEFAULT,
        by: Operator | None = None,
    ) -> CreatedStore:
        """A new store, or the one that is exactly as asked for. Raises ``InvalidInput``, and
        ``Conflict`` if there is another store with the id."""
        asked = Store(
            id=store_named(store_id, field="id").id,
            name=checked_label("name", name, max_length=MAX_NAME_LENGTH),
            origins=checked_origins(origins),
            plan=plan,
            created_at=self._clock(),
        )
        created = await self._stores.create(asked, by=by)
        if created is not None:
            return CreatedStore(store=created, replayed=False)
        found = await self.get(store_id)
        if (found.name, found.origins, found.plan) != (asked.name, asked.origins, asked.plan):
            raise Conflict(f"There is another store with the id {store_id}")
        return CreatedStore(store=found, replayed=True)

    async def ensure(self, owner: Owner) -> None:
        """Create the store, under its id, unless there is one."""
        if await self._stores.get(owner.id) is None:
            store = Store(id=owner.id, name=owner.id, created_at=self._clock())
            await self._stores.create(store)

    async def get(self, store_id: str) -> Store:
        """Raises ``InvalidInput``, and ``UnknownStore``, which names similar stores."""
        store = await self._stores.get(store_named(store_id).id)
        if store is None:
            raise await self._unknown(store_id)
        return store

    async def all(self, *, limit: int) -> list[Store]:
        """Stores, ordered by id."""
        return await self._stores.all(limit=limit)

    async def change(self, store_id: str, change: StoreChange, *, by: Operator) -> Store:
        """Raises ``InvalidInput`` and ``UnknownStore``."""
        owner = store_named(store_id)
        store = await self._stores.change(owner.id, _checked(change), by=by)
        if store is None:
            raise await self._unknown(store_id)
        return store

    async def _unknown(self, store_id: str) -> UnknownStore:
        known = await self._stores.all(limit=MAX_COMPARED)
        return UnknownStore(store_id, similar=similar_stores(store_id, known))


def store_named(store_id: str, *, field: str = "store_id") -> Owner:
    """The owner with this id. Raises ``InvalidInput`` for ``field`` if no store can have it."""
    try:
        return Owner(channel=Channel.B2B, id=store_id)
    except InvalidInput as error:
        raise InvalidInput(field, str(error).removeprefix(f"{error.field}: ")) from error


def similar_stores(store_id: str, stores: Sequence[Store]) -> list[str]:
    """The stores whose id or name is most like ``store_id``, as texts to show."""
    shown = {
        text[:_COMPARED_LENGTH].casefold(): _shown(store)
        for store in stores
        for text in (store.name, store.id)
    }
    wanted = store_id[:_COMPARED_LENGTH].casefold()
    found = get_close_matches(wanted, shown, n=2 * MAX_SIMILAR)
    return list(dict.fromkeys(shown[text] for text in found))[:MAX_SIMILAR]


def _shown(store: Store) -> str:
    name = store.name[:_COMPARED_LENGTH]
    return store.id if store.id == store.name else f"{store.id} ({name})"


def checked_origins(origins: Sequence[str]) -> tuple[str, ...]:
    """The origins as browsers send them, sorted, each once. Raises ``InvalidInput``."""
    if len(origins) > MAX_ORIGINS:
        raise InvalidInput("origins", f"has more than {MAX_ORIGINS} items")
    return tuple(sorted({origin_of_store(origin) for origin in origins}))


def _checked(change: StoreChange) -> StoreChange:
    name, origins = change.name, change.origins
    return StoreChange(
        name=None if name is None else checked_label("name", name, max_length=MAX_NAME_LENGTH),
        plan=change.plan,
        origins=None if origins is None else checked_origins(origins),
        add_origins=checked_origins(change.add_origins),
        remove_origins=checked_origins(change.remove_origins),
    )
