"""What workers report of themselves to operators, from real processes."""

import signal
from collections.abc import Iterator

import asyncpg
import pytest

from tests.support.provider import KEY, FakeProvider, error, provider_in_thread, says
from tests.system.deployment import Deployment, eventually, kill

NO_SERVER = "http://127.0.0.1:1"
"""Where no server listens."""


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with provider_in_thread() as provider:
        yield provider


@pytest.fixture(autouse=True)
def nothing_before(deployment: Deployment) -> None:
    """No sessions, faults or workers of other tests."""
    deployment.clear()
    deployment.sql("TRUNCATE workers, attempt_faults")


def workers(deployment: Deployment) -> list[asyncpg.Record]:
    return deployment.sql("SELECT * FROM workers ORDER BY started_at")


def cause_with(deployment: Deployment, **settings: str) -> str:
    """The cause that a worker with these settings reports, once it does."""
    deployment.start("worker", "--concurrency", "6", **settings)

    def look() -> str | None:
        return next((row["circuit_cause"] for row in workers(deployment)), None)

    cause = eventually(look, seconds=60)
    assert cause is not None
    return cause


def openai(url: str, key: str = KEY) -> dict[str, str]:
    return {
        "WEARON_GENERATOR": "openai",
        "OPENAI_API_KEY": key,
        "WEARON_OPENAI_BASE_URL": url,
    }


def test_worker_reports_until_it_ends(deployment: Deployment) -> None:
    """A worker that is killed is still known; one that stops is not."""
    killed, stopped = deployment.start("worker"), deployment.start("worker", "--concurrency", "3")
    eventually(lambda: len(workers(deployment)) == 2)
    session_id = deployment.submit().data["session_id"]
    deployment.wait_for(session_id, "completed")
    eventually(lambda: sum(row["done"] for row in workers(deployment)) == 1)
    kill(killed)
    kill(stopped, signal.SIGTERM)

    (left,) = workers(deployment)
    assert left["pid"] == killed.pid
    assert (left["busy"], left["circuit_cause"]) == (0, None)


def test_rejected_key_is_named(deployment: Deployment, provider: FakeProvider) -> None:
    deployment.submit()

    assert cause_with(deployment, **openai(provider.url, "sk-wrong")).startswith("provider 401 ")


def test_unreachable_provider_is_named(deployment: Deployment) -> None:
    for _ in range(6):
        deployment.submit()

    cause = cause_with(deployment, **openai(NO_SERVER))
    (fault,) = deployment.sql("SELECT DISTINCT cause FROM attempt_faults")
    assert fault["cause"] == cause == "provider connection refused"


def test_broken_provider_is_named(deployment: Deployment, provider: FakeProvider) -> None:
    broken = says(500, error("server_error", type_="server_error"))
    provider.replies.extend([broken] * 100)
    for _ in range(6):
        deployment.submit()

    assert cause_with(deployment, **openai(provider.url)).startswith("provider 500 ")


def test_storage_that_keeps_nothing_is_named_while_nothing_waits(deployment: Deployment) -> None:
    """Its folder cannot be made, because a file has that name."""
    file = deployment.folder / "no-folder"
    file.touch()

    assert cause_with(deployment, WEARON_DATA_DIR=str(file)) == "storage not a directory"


def test_operators_check_of_the_books_is_kept(deployment: Deployment) -> None:
    deployment.wearon("credits", "verify")

    (check,) = deployment.sql("SELECT checked_at, discrepancies FROM book_checks")
    assert check["checked_at"] is not None
    assert check["discrepancies"] == 0
