"""AccountRepoPort: plans and suspensions, each change in the audit log once."""

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from adapters.credits.postgres import PostgresCreditRepo
from adapters.postgres.database import Database
from adapters.postgres.limits import DatabaseLimits
from domain.account_ports import AccountRepoPort
from domain.credits import CreditAccount
from domain.errors import DatabaseUnavailable
from domain.plans import Plan
from tests.contracts.backends import Backend
from tests.support.examples import OPERATOR, OTHER, USER

pytestmark = pytest.mark.anyio


@pytest.mark.parametrize("balance", [0, 5])
async def test_plan_of_an_owner(backend: Backend, balance: int) -> None:
    """With and without an account, which gets created; the credits stay, and so do other owners."""
    if balance:
        await backend.credits.grant(USER, balance, note="test")
    before = await backend.credits.account(USER)

    account = await backend.accounts.set_plan(USER, Plan.SCALE, by=OPERATOR)

    assert before.plan is Plan.DEFAULT
    assert account == CreditAccount(
        owner=USER, balance=balance, total_granted=balance, plan=Plan.SCALE
    )
    assert await backend.credits.account(USER) == account
    assert await backend.credits.account(OTHER) == CreditAccount(owner=OTHER)
    assert await backend.credits.audit(limit=10) == []


async def test_suspension_of_an_owner(backend: Backend) -> None:
    """Until it is resumed; the credits and the plan stay."""
    await backend.credits.grant(USER, 5, note="test")
    await backend.accounts.set_plan(USER, Plan.SCALE, by=OPERATOR)

    suspended = await backend.accounts.suspend(USER, by=OPERATOR)
    granted = (await backend.credits.grant(USER, 1, note="test")).account
    resumed = await backend.accounts.resume(USER, by=OPERATOR)

    assert [one.suspended for one in (suspended, granted, resumed)] == [True, True, False]
    assert [one.plan for one in (suspended, granted, resumed)] == [Plan.SCALE] * 3
    assert resumed.balance == 6
    assert await backend.credits.account(USER) == resumed
    assert await backend.credits.audit(limit=10) == []


async def test_owner_without_an_account_is_suspended(backend: Backend) -> None:
    """For an abuser who has not called yet. Resuming one creates no account."""
    suspended = await backend.accounts.suspend(USER, by=OPERATOR)
    resumed = await backend.accounts.resume(OTHER, by=OPERATOR)

    assert suspended == CreditAccount(owner=USER, suspended=True)
    assert resumed == CreditAccount(owner=OTHER)
    assert await backend.actions(OTHER) == []


async def test_changes_are_in_the_audit_log_once(backend: Backend) -> None:
    """Repetitions, also concurrent ones, change nothing and are not there."""
    for change in CALLS.values():
        await asyncio.gather(*(change(backend.accounts) for _ in range(10)))

    actions = await backend.actions(USER)

    assert [(action.action, action.actor, action.reason) for action in actions] == [
        (action, OPERATOR.actor, OPERATOR.reason)
        for action in ("owner.plan", "owner.suspend", "owner.resume")
    ]
    assert [action.details for action in actions] == [{"plan": "scale"}, {}, {}]


CALLS: dict[str, Callable[[AccountRepoPort], Awaitable[object]]] = {
    "set_plan": lambda repo: repo.set_plan(USER, Plan.SCALE, by=OPERATOR),
    "suspend": lambda repo: repo.suspend(USER, by=OPERATOR),
    "resume": lambda repo: repo.resume(USER, by=OPERATOR),
}


@pytest.mark.parametrize("method", CALLS)
async def test_database_that_is_down_is_unavailable(method: str, tmp_path: Path) -> None:
    """Every method raises DatabaseUnavailable."""
    database = Database(f"postgresql://wearon@/wearon?host={tmp_path}", limits=DatabaseLimits())

    with pytest.raises(DatabaseUnavailable):
        await CALLS[method](PostgresCreditRepo(database))

    await database.close()


def test_every_method_is_called_without_a_server() -> None:
    """A new method cannot be forgotten above."""
    assert set(CALLS) == {name for name in vars(AccountRepoPort) if not name.startswith("_")}
