"""ServiceKeyRepoPort and AuditLogPort: service keys, and the log of what was changed."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any
from uuid import uuid4

import pytest

from adapters.audit_log.postgres import PostgresAuditLog
from adapters.auth.postgres import PostgresServiceKeyRepo
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.account_ports import AuditLogPort, ServiceKey, ServiceKeyRepoPort
from domain.callers import Scope, Service
from domain.errors import DatabaseUnavailable
from domain.operators import Operator
from tests.contracts.backends import Backend
from tests.support.clock import START
from tests.support.examples import OPERATOR, OTHER, USER

pytestmark = pytest.mark.anyio


def a_key(**changes: Any) -> ServiceKey:
    key = ServiceKey(
        id=uuid4(),
        key_sha256=uuid4().hex * 2,
        label="billing",
        scopes=frozenset({Scope.GRANTS, Scope.READ}),
        prefix="wa_1a2b3c",
        created_at=START,
    )
    return replace(key, **changes)


async def test_key_stands_for_its_service(backend: Backend) -> None:
    """With exactly its scopes."""
    keys = [a_key(), a_key(label="shop", scopes=frozenset(Scope))]
    for key in keys:
        await backend.service_keys.add(key, by=OPERATOR)

    services = [await backend.service_keys.service_of(key.key_sha256) for key in keys]

    assert services == [Service(key_id=key.id, label=key.label, scopes=key.scopes) for key in keys]
    assert await backend.service_keys.service_of("ab" * 32) is None


async def test_revoked_key_stands_for_nobody(backend: Backend) -> None:
    """It is revoked once, and other keys of the service keep working."""
    revoked, kept = a_key(), a_key()
    for key in (revoked, kept):
        await backend.service_keys.add(key, by=OPERATOR)

    results = [
        await backend.service_keys.revoke(key_id, by=OPERATOR)
        for key_id in (revoked.id, revoked.id, uuid4())
    ]

    assert results == [True, False, False]
    assert await backend.service_keys.service_of(revoked.key_sha256) is None
    assert await backend.service_keys.service_of(kept.key_sha256) is not None


async def test_keys_are_listed_newest_first(backend: Backend) -> None:
    """With all their fields, up to the limit."""
    oldest, middle, newest = (
        a_key(created_at=START + timedelta(days=day), label=f"day {day}") for day in range(3)
    )
    for key in (middle, newest, oldest):
        await backend.service_keys.add(key, by=OPERATOR)
    await backend.service_keys.revoke(middle.id, by=OPERATOR)

    listed = await backend.service_keys.all(limit=10)

    revoked_at = listed[1].revoked_at
    assert revoked_at is not None
    assert listed == [newest, replace(middle, revoked_at=revoked_at), oldest]
    assert await backend.service_keys.all(limit=2) == listed[:2]


async def test_changes_of_keys_are_in_the_audit_log(backend: Backend) -> None:
    """Who, why and which scopes; the subject is the service."""
    key = a_key()
    await backend.service_keys.add(key, by=OPERATOR)
    for _ in range(2):
        await backend.service_keys.revoke(key.id, by=OPERATOR)

    created, revoked = await backend.actions("service:billing")

    assert (created.action, revoked.action) == ("service.create", "service.revoke")
    for action in (created, revoked):
        assert (action.actor, action.reason) == (OPERATOR.actor, OPERATOR.reason)
        assert action.details == {
            "key_id": str(key.id), "prefix": "wa_1a2b3c", "scopes": ["grants", "read"]
        }  # fmt: skip
        assert action.at.utcoffset() is not None


async def test_audit_log_is_read_in_pages(backend: Backend) -> None:
    """Newest first, of all subjects or of one; each page starts after the previous one."""
    for amount in range(1, 4):
        for owner in (USER, OTHER):
            await backend.credits.grant(owner, amount, note="n", by=Operator(actor="service:x"))

    of_all = await backend.audit_log.actions(subject=None, limit=10)
    of_one = await backend.audit_log.actions(subject=str(USER), limit=10)
    first = await backend.audit_log.actions(subject=str(USER), limit=2)
    second = await backend.audit_log.actions(subject=str(USER), limit=2, before_id=first[-1].id)

    assert [action.details["amount"] for action in of_all] == [3, 3, 2, 2, 1, 1]
    assert [action.details["amount"] for action in of_one] == [3, 2, 1]
    assert {action.subject for action in of_one} == {str(USER)}
    assert [*first, *second] == of_one
    assert of_one[0].reason is None
    assert await backend.audit_log.actions(subject="b2c", limit=10) == []


async def test_audit_log_of_an_actor(backend: Backend) -> None:
    """Only this actor's entries, of all subjects or of one, in pages."""
    for owner in (USER, OTHER, USER):
        for actor in ("console:a", "console:b"):
            await backend.credits.grant(owner, 1, note="n", by=Operator(actor=actor))
    log = backend.audit_log

    of_actor = await log.actions(subject=None, actor="console:a", limit=10)
    of_both = await log.actions(subject=str(USER), actor="console:a", limit=10)
    page = await log.actions(subject=None, actor="console:a", limit=1, before_id=of_actor[0].id)

    assert [entry.subject for entry in of_actor] == [str(USER), str(OTHER), str(USER)]
    assert {entry.actor for entry in (*of_actor, *of_both)} == {"console:a"}
    assert of_both == [of_actor[0], of_actor[2]]
    assert page == of_actor[1:2]


async def test_action_begins_once(backend: Backend) -> None:
    """Of many concurrent calls with one id, one adds the entry; another id adds another one."""
    one, other = uuid4(), uuid4()

    begun = await asyncio.gather(
        *(
            backend.audit_log.begin(OPERATOR, "dead.requeue", "letter:1", action_id=one, n=index)
            for index in range(10)
        )
    )
    again = await backend.audit_log.begin(OPERATOR, "dead.requeue", "letter:1", action_id=other)

    assert sorted(begun) == [False] * 9 + [True]
    assert again
    first, _ = await backend.actions("letter:1")
    assert (first.actor, first.action, first.reason) == (
        OPERATOR.actor,
        "dead.requeue",
        OPERATOR.reason,
    )
    assert first.details == {"n": begun.index(True)}


CALLS: dict[str, Callable[[ServiceKeyRepoPort], Awaitable[object]]] = {
    "service_of": lambda repo: repo.service_of("ab" * 32),
    "add": lambda repo: repo.add(a_key(), by=OPERATOR),
    "all": lambda repo: repo.all(limit=1),
    "revoke": lambda repo: repo.revoke(uuid4(), by=OPERATOR),
}
LOG_CALLS: dict[str, Callable[[AuditLogPort], Awaitable[object]]] = {
    "actions": lambda log: log.actions(subject=None, limit=1),
    "begin": lambda log: log.begin(OPERATOR, "session.cancel", "b2c:someone", action_id=uuid4()),
    "add": lambda log: log.add(OPERATOR, "owner.erase", "b2c:someone"),
}


@pytest.mark.parametrize("method", CALLS)
async def test_database_that_is_down_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method raises DatabaseUnavailable."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresServiceKeyRepo(database))
    for call in LOG_CALLS.values():
        with pytest.raises(DatabaseUnavailable):
            await call(PostgresAuditLog(database))

    await database.close()


async def test_entry_of_many_transactions(backend: Backend) -> None:
    """A change that takes many transactions is recorded by itself, with its details."""
    await backend.audit_log.add(OPERATOR, "owner.erase", "b2b:store-1", one_shopper=True)

    (entry,) = await backend.audit_log.actions(subject="b2b:store-1", limit=9)
    assert (entry.action, entry.actor, entry.reason) == (
        "owner.erase",
        OPERATOR.actor,
        OPERATOR.reason,
    )
    assert entry.details == {"one_shopper": True}


def test_every_method_is_called_without_a_server() -> None:
    """A new method cannot be forgotten above."""
    for port, calls in ((ServiceKeyRepoPort, set(CALLS)), (AuditLogPort, set(LOG_CALLS))):
        assert calls == {name for name in vars(port) if not name.startswith("_")}
