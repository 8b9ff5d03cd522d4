"""All workers together keep to the provider's limit."""

import time
from collections.abc import Iterator

import pytest

from adapters.limits.memory import Pace
from tests.support.provider import KEY, FakeProvider, provider_in_thread
from tests.system.deployment import Deployment, eventually

PER_MINUTE = 120
WORKERS = 3
TASKS = 20


@pytest.fixture
def provider() -> Iterator[FakeProvider]:
    with provider_in_thread() as provider:
        yield provider


def test_three_workers_share_one_limit(deployment: Deployment, provider: FakeProvider) -> None:
    """Twelve slots, a provider that responds at once, and more tasks than may start: at every
    moment the calls are as many as the limit permits, and no more. Every session is completed."""
    ids = [deployment.submit().data["session_id"] for _ in range(TASKS)]
    began = time.monotonic()

    for _ in range(WORKERS):
        deployment.start(
            "worker",
            WEARON_GENERATOR="openai",
            OPENAI_API_KEY=KEY,
            WEARON_OPENAI_BASE_URL=provider.url,
            WEARON_PROVIDER_PER_MINUTE=str(PER_MINUTE),
        )
    eventually(
        lambda: all(deployment.session(session)["status"] == "completed" for session in ids),
        seconds=60,
    )

    pace = Pace.of(PER_MINUTE)
    assert len(provider.calls) == TASKS
    for number, call in enumerate(provider.calls, 1):
        assert number <= pace.burst + (call.at - began) * 1e6 / pace.interval_us
    attempts = deployment.sql("SELECT DISTINCT attempt FROM generation_sessions")
    assert [row["attempt"] for row in attempts] == [1]
    deployment.assert_books_are_right()
