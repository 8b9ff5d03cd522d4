"""OperatorRepoPort: the people who may use the console."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path

import pytest

from adapters.operators.postgres import PostgresOperatorRepo
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.console_ports import ConsoleOperator, OperatorRepoPort, Role
from domain.errors import DatabaseUnavailable
from tests.contracts.backends import Backend
from tests.support.examples import OPERATOR

pytestmark = pytest.mark.anyio

LIFETIME = timedelta(minutes=15)


async def invited(
    backend: Backend, name: str = "alice", role: Role = Role.OPERATOR, link: str = "a"
) -> ConsoleOperator:
    return await backend.operators.invite(
        name, role, link_sha256=link * 64, lifetime=LIFETIME, by=OPERATOR
    )


async def test_invited_operator_has_no_password(backend: Backend) -> None:
    """The operator has its role and its first epoch, and is found by name and by link."""
    alice = await invited(backend)

    assert (alice.name, alice.role, alice.epoch) == ("alice", Role.OPERATOR, 1)
    assert (alice.password_hash, alice.revoked_at) == (None, None)
    assert alice.made_at.utcoffset() is not None
    assert await backend.operators.get("alice") == alice
    assert await backend.operators.by_link("a" * 64) == alice
    assert await backend.operators.by_link("b" * 64) is None
    assert await backend.operators.get("bob") is None


async def test_operators_are_listed_by_name(backend: Backend) -> None:
    """Up to the limit, including revoked ones."""
    for name in ("carol", "alice", "bob"):
        await invited(backend, name, link=name[0])
    await backend.operators.revoke("bob", by=OPERATOR)

    listed = await backend.operators.all(limit=10)

    assert [operator.name for operator in listed] == ["alice", "bob", "carol"]
    assert [operator.revoked_at is None for operator in listed] == [True, False, True]
    assert await backend.operators.all(limit=2) == listed[:2]


async def test_link_sets_the_password_once(backend: Backend) -> None:
    """Of many concurrent calls one uses the link: the operator has its password, and the next
    epoch."""
    alice = await invited(backend)
    await invited(backend, "bob", link="b")

    results = await asyncio.gather(
        *(backend.operators.set_password("a" * 64, f"hash {n}") for n in range(10))
    )

    (changed,) = (result for result in results if result is not None)
    assert changed == replace(alice, epoch=2, password_hash=changed.password_hash)
    assert changed.password_hash == f"hash {results.index(changed)}"
    assert await backend.operators.get("alice") == changed
    assert await backend.operators.by_link("a" * 64) is None
    bob = await backend.operators.get("bob")
    assert bob is not None
    assert bob.password_hash is None


async def test_link_expires(backend: Backend) -> None:
    """After its lifetime it is like an unknown one."""
    alice = await invited(backend)
    await backend.advance(LIFETIME - timedelta(minutes=1))
    before = await backend.operators.by_link("a" * 64)
    await backend.advance(timedelta(minutes=1))

    assert before is not None
    assert await backend.operators.by_link("a" * 64) is None
    assert await backend.operators.set_password("a" * 64, "hash") is None
    assert await backend.operators.get("alice") == alice


async def test_second_invitation_replaces_the_first(backend: Backend) -> None:
    """Role and link are new; password, revocation and the sign-ins of before are gone."""
    alice = await invited(backend)
    await backend.operators.set_password("a" * 64, "hash")
    await backend.operators.revoke("alice", by=OPERATOR)

    again = await invited(backend, role=Role.ADMIN, link="b")
    last = await invited(backend, role=Role.ADMIN, link="c")

    assert again == replace(alice, role=Role.ADMIN, epoch=4)
    assert last.epoch == 5
    assert await backend.operators.by_link("b" * 64) is None
    assert await backend.operators.by_link("c" * 64) == last


async def test_revoked_operator_has_no_way_in(backend: Backend) -> None:
    """No password, no link, another epoch; a second revocation changes nothing."""
    await invited(backend)
    await invited(backend, "bob", link="b")
    await backend.operators.set_password("a" * 64, "hash")

    results = [await backend.operators.revoke(name, by=OPERATOR) for name in ("alice", "alice")]
    await backend.operators.revoke("bob", by=OPERATOR)

    alice = await backend.operators.get("alice")
    assert results == [True, False]
    assert alice is not None
    assert (alice.epoch, alice.password_hash) == (3, None)
    assert alice.revoked_at is not None
    assert await backend.operators.by_link("b" * 64) is None
    assert await backend.operators.set_password("b" * 64, "hash") is None
    assert not await backend.operators.revoke("carol", by=OPERATOR)


async def test_changes_of_operators_are_in_the_audit_log(backend: Backend) -> None:
    """Each change once; a password is set by the operator."""
    await invited(backend)
    for _ in range(2):
        await backend.operators.set_password("a" * 64, "hash")
    for _ in range(2):
        await backend.operators.revoke("alice", by=OPERATOR)

    entries = await backend.actions("operator:alice")

    by, why = OPERATOR.actor, OPERATOR.reason
    assert [(entry.action, entry.actor, entry.reason) for entry in entries] == [
        ("operator.invite", by, why),
        ("operator.password", "console:alice", None),
        ("operator.revoke", by, why),
    ]
    assert entries[0].details == {"role": "operator"}


CALLS: dict[str, Callable[[OperatorRepoPort], Awaitable[object]]] = {
    "invite": lambda repo: repo.invite(
        "alice", Role.ADMIN, link_sha256="a" * 64, lifetime=LIFETIME, by=OPERATOR
    ),
    "get": lambda repo: repo.get("alice"),
    "all": lambda repo: repo.all(limit=1),
    "by_link": lambda repo: repo.by_link("a" * 64),
    "set_password": lambda repo: repo.set_password("a" * 64, "hash"),
    "revoke": lambda repo: repo.revoke("alice", by=OPERATOR),
}


@pytest.mark.parametrize("method", CALLS)
async def test_database_that_is_down_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method raises DatabaseUnavailable."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresOperatorRepo(database))

    await database.close()


def test_every_method_is_called_without_a_server() -> None:
    """A new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(OperatorRepoPort) if not name.startswith("_")}
