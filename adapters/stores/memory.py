"""Stores in this process's memory."""

from collections.abc import Callable
from dataclasses import replace
from datetime import datetime

from adapters.audit_log.memory import InMemoryAuditLog
from adapters.credits.memory import InMemoryCreditRepo
from domain.account_ports import MAX_ORIGINS, Store, StoreChange, StoreRepoPort
from domain.errors import InvalidInput
from domain.operators import Operator


class InMemoryStoreRepo(StoreRepoPort):
    """Lost at exit. ``accounts`` keeps the plans."""

    def __init__(
        self, *, accounts: InMemoryCreditRepo, log: InMemoryAuditLog, clock: Callable[[], datetime]
    ) -> None:
        self._stores: dict[str, Store] = {}
        self._accounts = accounts
        self._log = log
        self._clock = clock

    async def create(self, store: Store, *, by: Operator | None = None) -> Store | None:
        if store.id in self._stores:
            return None
        self._stores[store.id] = replace(store, created_at=self._clock())
        self._accounts.put_plan(store.owner, store.plan)
        self._log.record(
            by,
            "store.create",
            store.owner,
            name=store.name,
            origins=list(store.origins),
            plan=store.plan,
        )
        return self._stores[store.id]

    async def get(self, store_id: str) -> Store | None:
        store = self._stores.get(store_id)
        return None if store is None else self._with_plan(store)

    async def all(self, *, limit: int) -> list[Store]:
        return [self._with_plan(self._stores[id_]) for id_ in sorted(self._stores)][:limit]

    async def change(self, store_id: str, change: StoreChange, *, by: Operator) -> Store | None:
        old = await self.get(store_id)
        if old is None:
            return None
        new = replace(
            old,
            name=change.name or old.name,
            plan=change.plan or old.plan,
            origins=change.origins_after(old.origins),
        )
        if len(new.origins) > MAX_ORIGINS:
            raise InvalidInput("origins", f"has more than {MAX_ORIGINS} items")
        self._stores[store_id] = new
        self._accounts.put_plan(new.owner, new.plan)
        if new != old:
            self._log.record(
                by,
                "store.change",
                new.owner,
                name=new.name,
                origins=list(new.origins),
                plan=new.plan,
            )
        return new

    def origins_of(self, store_id: str) -> frozenset[str]:
        """Empty for a store that does not exist."""
        store = self._stores.get(store_id)
        return frozenset() if store is None else frozenset(store.origins)

    def _with_plan(self, store: Store) -> Store:
        return replace(store, plan=self._accounts.balance_of(store.owner).plan)
