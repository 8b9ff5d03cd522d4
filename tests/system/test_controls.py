"""What operators switch off, and the budget, across real processes."""

from collections.abc import Iterator
from contextlib import contextmanager
from decimal import Decimal

import pytest

from tests.support.provider import KEY, FakeProvider, provider_in_thread
from tests.system.deployment import Deployment, eventually

COST = Decimal("0.215064")
"""What a picture of the fake provider costs by the estimates."""
SPENT = """
    SELECT FROM workers
    WHERE circuit_cause LIKE 'provider budget of $0.43 for % is spent' AND pid = ANY ($1)"""
SUM = "SELECT sum(estimated_cost_usd) AS usd FROM generation_sessions WHERE provider = 'openai'"
WORKERS = 2
SLOTS = 2


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with provider_in_thread() as provider:
        yield provider


@contextmanager
def paused(deployment: Deployment, switch: str) -> Iterator[None]:
    """`wearon pause`, and in any case `wearon resume`."""
    deployment.wearon("pause", switch, "--reason", "a test")
    try:
        yield
    finally:
        deployment.wearon("resume", switch)


def test_paused_intake(deployment: Deployment) -> None:
    """A new request is refused and not charged; it is accepted again after `wearon resume`."""
    with paused(deployment, "intake"):
        eventually(lambda: deployment.submit().status != 202)
        before = deployment.balance()
        refused = deployment.submit()
        after = deployment.balance()

    assert refused.status == 503
    assert refused.body["error"] == {
        "code": "SERVICE_UNAVAILABLE",
        "message": "Paused by the operator; try again later",
    }
    assert refused.headers["retry-after"] == "30"
    assert before == after
    assert eventually(lambda: deployment.submit().status == 202)
    deployment.assert_books_are_right()


def test_paused_workers(deployment: Deployment) -> None:
    """A worker that starts during a pause takes nothing until `wearon resume`."""
    session_id = deployment.submit().data["session_id"]
    with paused(deployment, "workers"):
        worker = deployment.start("worker")
        eventually(lambda: deployment.sql("SELECT FROM workers WHERE pid = $1", worker.pid))
        while_paused = deployment.session(session_id)["status"]

    assert while_paused == "queued"
    assert deployment.wait_for(session_id, "completed")["attempt"] == 1
    deployment.assert_books_are_right()


def test_budget_of_all_workers(deployment: Deployment, provider: FakeProvider) -> None:
    """Two workers that start at once stop together; more than the budget is spent only by what is
    in flight and by what the other worker makes until the next report."""
    ids = [deployment.submit().data["session_id"] for _ in range(20)]
    workers = [
        deployment.start(
            "worker",
            WEARON_GENERATOR="openai",
            OPENAI_API_KEY=KEY,
            WEARON_OPENAI_BASE_URL=provider.url,
            WEARON_WORKER_CONCURRENCY=str(SLOTS),
            WEARON_PROVIDER_BUDGET_USD=str(2 * COST),
        )
        for _ in range(WORKERS)
    ]
    pids = [worker.pid for worker in workers]
    eventually(lambda: len(deployment.sql(SPENT, pids)) == WORKERS)
    statuses = eventually(lambda: settled(deployment, ids))

    # Each worker stops by itself after two pictures, beside what its other slot has in flight.
    done = statuses.count("completed")
    assert 2 <= done == len(provider.calls) <= WORKERS * (2 + SLOTS - 1)
    (row,) = deployment.sql(SUM)
    assert row["usd"] == done * COST
    deployment.assert_books_are_right()


def settled(deployment: Deployment, ids: list[str]) -> list[str]:
    """The statuses of the sessions, once none is worked on; until then nothing."""
    statuses = [deployment.session(each)["status"] for each in ids]
    return [] if {*statuses} - {"completed", "queued"} else statuses
