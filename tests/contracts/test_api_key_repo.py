"""ApiKeyRepoPort: keys are added, looked up, listed and revoked."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from adapters.auth.postgres import PostgresApiKeyRepo
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.account_ports import Store, StoreChange
from domain.callers import Caller
from domain.credits import Channel, Owner
from domain.errors import DatabaseUnavailable, IdempotencyKeyReused
from domain.ports import ApiKey, ApiKeyRepoPort
from tests.contracts.backends import Backend
from tests.support.clock import START
from tests.support.examples import OPERATOR, STORE

pytestmark = pytest.mark.anyio

OTHER_STORE = Owner(channel=Channel.B2B, id="store-2")
NAMESAKE = Owner(channel=Channel.B2C, id=STORE.id)


def a_key(**changes: Any) -> ApiKey:
    key = ApiKey(
        id=uuid4(),
        owner=STORE,
        key_sha256=uuid4().hex * 2,
        label="till 1, Straße",
        prefix="wk_1a2b3c",
        created_at=START,
    )
    return replace(key, **changes)


async def test_key_belongs_to_its_owner(backend: Backend) -> None:
    """Also among several keys and several owners."""
    keys = [a_key(owner=owner) for owner in (STORE, STORE, OTHER_STORE, NAMESAKE)]

    for key in keys:
        await backend.api_keys.add(key)

    callers = [await backend.api_keys.caller_of(key.key_sha256) for key in keys]
    assert callers == [Caller(owner=key.owner) for key in keys]


@pytest.mark.parametrize(
    "changed", [str.upper, lambda sha256: sha256[:-1], lambda _: "", lambda _: "\N{TOP HAT}"]
)
async def test_unknown_key_has_no_owner(backend: Backend, changed: Callable[[str], str]) -> None:
    """The hash has to match exactly."""
    key = a_key(key_sha256="ab" * 32)
    await backend.api_keys.add(key)

    assert await backend.api_keys.caller_of(changed(key.key_sha256)) is None


async def test_revoked_key_has_no_owner(backend: Backend) -> None:
    """The owner's other keys keep working."""
    revoked, kept = a_key(), a_key()
    for key in (revoked, kept):
        await backend.api_keys.add(key)

    assert await backend.api_keys.revoke(revoked.id)

    assert await backend.api_keys.caller_of(revoked.key_sha256) is None
    assert await backend.api_keys.caller_of(kept.key_sha256) == Caller(owner=STORE)


async def test_key_is_revoked_once(backend: Backend) -> None:
    """False for a revoked key, whose time does not change, and for an unknown one."""
    key = a_key()
    await backend.api_keys.add(key)
    assert await backend.api_keys.revoke(key.id)
    (revoked,) = await backend.api_keys.all(STORE)

    again = [await backend.api_keys.revoke(key_id) for key_id in (key.id, uuid4())]

    assert again == [False, False]
    assert await backend.api_keys.all(STORE) == [revoked]


async def test_one_of_several_concurrent_revocations_succeeds(backend: Backend) -> None:
    """The others return False."""
    key = a_key()
    await backend.api_keys.add(key)

    results = await asyncio.gather(*(backend.api_keys.revoke(key.id) for _ in range(20)))

    assert Counter(results) == {True: 1, False: 19}


async def test_keys_are_listed_newest_first(backend: Backend) -> None:
    """With all their fields; revoked ones with the time of their revocation."""
    oldest, middle, newest = (
        a_key(created_at=START + timedelta(days=day), label=f"day {day}") for day in range(3)
    )
    for key in (middle, newest, oldest):
        await backend.api_keys.add(key)
    await backend.api_keys.revoke(middle.id)

    listed = await backend.api_keys.all(STORE)

    revoked_at = listed[1].revoked_at
    assert revoked_at is not None
    assert revoked_at.utcoffset() is not None
    assert listed == [newest, replace(middle, revoked_at=revoked_at), oldest]


async def test_keys_are_listed_for_one_owner_or_all(backend: Backend) -> None:
    """An owner with the same id on the other channel is another owner."""
    keys = {owner: a_key(owner=owner) for owner in (STORE, OTHER_STORE, NAMESAKE)}
    for key in keys.values():
        await backend.api_keys.add(key)

    listed = {owner: await backend.api_keys.all(owner) for owner in keys}
    of_all = await backend.api_keys.all(None)

    assert listed == {owner: [key] for owner, key in keys.items()}
    assert sorted(key.id for key in of_all) == sorted(key.id for key in keys.values())
    assert await backend.api_keys.all(Owner(channel=Channel.B2B, id="nobody")) == []


async def test_key_is_found_by_its_id(backend: Backend) -> None:
    """Also a revoked one."""
    key = a_key()

    assert await backend.api_keys.add(key) == key
    assert await backend.api_keys.get(key.id) == key
    assert await backend.api_keys.get(uuid4()) is None


async def test_key_has_the_origins_of_its_store(backend: Backend) -> None:
    """As they are now; a user's key, and one of a store without a row, have none."""
    store = Store(id=STORE.id, name="Shop", origins=("https://a.example",), created_at=START)
    keys = [a_key(owner=owner) for owner in (STORE, OTHER_STORE, NAMESAKE)]
    await backend.stores.create(store)
    for key in keys:
        await backend.api_keys.add(key)

    before = [await backend.api_keys.caller_of(key.key_sha256) for key in keys]
    change = StoreChange(add_origins=["https://b.example"])
    await backend.stores.change(STORE.id, change, by=OPERATOR)
    after = await backend.api_keys.caller_of(keys[0].key_sha256)

    assert [caller.origins for caller in before if caller is not None] == [
        frozenset({"https://a.example"}), frozenset(), frozenset()
    ]  # fmt: skip
    assert after is not None
    assert after.origins == {"https://a.example", "https://b.example"}


async def test_key_is_added_once(backend: Backend) -> None:
    """Of many concurrent calls with one idempotency key, one adds its key, and all return it."""
    keys = [a_key() for _ in range(20)]

    added = await asyncio.gather(
        *(backend.api_keys.add(key, idempotency_key="k", by=OPERATOR) for key in keys)
    )

    assert len({key.id for key in added}) == 1
    assert await backend.api_keys.all(None) == added[:1]
    assert [action.action for action in await backend.actions()] == ["key.create"]


@pytest.mark.parametrize("changes", [{"owner": OTHER_STORE}, {"label": "till 2"}])
async def test_idempotency_key_of_another_key(backend: Backend, changes: dict[str, Any]) -> None:
    """Rejected if the owner or the label differs; other keys and none at all are free."""
    first = a_key()
    await backend.api_keys.add(first, idempotency_key="k")

    with pytest.raises(IdempotencyKeyReused):
        await backend.api_keys.add(a_key(**changes), idempotency_key="k")
    for other in ("l", None, None):
        await backend.api_keys.add(a_key(**changes), idempotency_key=other)

    assert len(await backend.api_keys.all(None)) == 4


async def test_keys_are_listed_up_to_a_limit(backend: Backend) -> None:
    """The newest."""
    keys = [a_key(created_at=START + timedelta(days=day)) for day in range(3)]
    for key in keys:
        await backend.api_keys.add(key)

    assert await backend.api_keys.all(STORE, limit=2) == keys[:0:-1]


async def test_changes_of_keys_are_in_the_audit_log(backend: Backend) -> None:
    """Who, why and which key, once; nothing for a call that changes nothing, or for one that no
    operator makes."""
    key = a_key()
    await backend.api_keys.add(a_key())
    await backend.api_keys.add(key, by=OPERATOR)
    for _ in range(2):
        await backend.api_keys.revoke(key.id, by=OPERATOR)

    created, revoked = await backend.actions(STORE)

    details = {"key_id": str(key.id), "prefix": "wk_1a2b3c", "label": "till 1, Straße"}
    assert (created.action, created.actor, created.reason) == (
        "key.create", OPERATOR.actor, OPERATOR.reason
    )  # fmt: skip
    assert (revoked.action, revoked.subject) == ("key.revoke", str(STORE))
    assert created.details == revoked.details == details


CALLS: dict[str, Callable[[ApiKeyRepoPort], Awaitable[object]]] = {
    "caller_of": lambda repo: repo.caller_of("ab" * 32),
    "get": lambda repo: repo.get(uuid4()),
    "add": lambda repo: repo.add(a_key()),
    "all": lambda repo: repo.all(STORE),
    "revoke": lambda repo: repo.revoke(uuid4()),
}


@pytest.mark.parametrize("method", CALLS)
async def test_unreachable_database_raises_database_unavailable(
    method: str, tmp_path: Path
) -> None:
    """From every method."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresApiKeyRepo(database))

    await database.close()


def test_every_method_of_the_port_is_called_without_a_server() -> None:
    """No new method is missing above."""
    assert set(CALLS) == {name for name in vars(ApiKeyRepoPort) if not name.startswith("_")}
