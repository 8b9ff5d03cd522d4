"""How a worker process ends, as whoever started it sees: by its exit code."""

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager

import pytest

from tests.support.provider import provider_in_thread
from tests.system.deployment import DEADLINE_SECONDS, Deployment, eventually, kill

NOBODY = "127.0.0.1:1"
"""Where no server listens."""


def once(deployment: Deployment, *options: str, **settings: str) -> int:
    """The exit code of a worker that does what waits and ends."""
    worker = deployment.start("worker", "--once", *options, **settings)
    return worker.wait(DEADLINE_SECONDS)


def logged(deployment: Deployment) -> str:
    """What the workers of this deployment said."""
    return (deployment.folder / "worker.log").read_text()


def test_once(deployment: Deployment) -> None:
    """More than it has slots are done, then it ends by itself; and so it does if none waits. Each
    has its line in the log."""
    sessions = [deployment.submit().data["session_id"] for _ in range(5)]

    exit_codes = [once(deployment, "--concurrency", "2"), once(deployment)]

    assert exit_codes == [0, 0]
    assert {deployment.session(id_)["status"] for id_ in sessions} == {"completed"}
    done = [line for line in logged(deployment).splitlines() if "task_done" in line]
    assert all(sum(id_ in line for line in done) == 1 for id_ in sessions)
    deployment.assert_books_are_right()


@pytest.mark.parametrize(
    ("variable", "url"),
    [("REDIS_URL", f"redis://{NOBODY}/0"), ("DATABASE_URL", f"postgresql://{NOBODY}/wearon")],
)
def test_once_without_a_server(deployment: Deployment, variable: str, url: str) -> None:
    """It does not wait for it: work may be left, and here it is, for the next run."""
    session_id = deployment.submit().data["session_id"]

    exit_code = once(deployment, **{variable: url})

    assert exit_code == os.EX_TEMPFAIL
    assert once(deployment) == 0
    assert deployment.session(session_id)["status"] == "completed"


def test_once_with_a_wrong_key(deployment: Deployment) -> None:
    """The provider turns everybody away: work is left and nobody harmed. A log line says that a
    stop might cut off a call that is paid for."""
    session_id = deployment.submit().data["session_id"]

    with provider_in_thread() as fake:
        exit_code = once(
            deployment,
            WEARON_GENERATOR="openai",
            OPENAI_API_KEY="sk-wrong",
            WEARON_OPENAI_BASE_URL=fake.url,
        )

    assert exit_code == os.EX_TEMPFAIL
    assert deployment.session(session_id)["status"] == "queued"
    assert "drain_shorter_than_attempt" in logged(deployment)
    assert once(deployment) == 0
    assert deployment.session(session_id)["status"] == "completed"


@contextmanager
def without_a_column(deployment: Deployment) -> Iterator[None]:
    """One has another name, as in a database of another version."""
    rename = "ALTER TABLE generation_sessions RENAME COLUMN {} TO {}"
    deployment.sql(rename.format("lease_expires_at", "renamed"))
    try:
        yield
    finally:
        deployment.sql(rename.format("renamed", "lease_expires_at"))


def test_once_with_an_error_that_nobody_expects(deployment: Deployment) -> None:
    """It says so, fails, and the task is in the queue for the next run."""
    session_id = deployment.submit().data["session_id"]

    with without_a_column(deployment):
        exit_code = once(deployment, "--no-recovery")

    assert exit_code == 1
    assert "ClaimFailed" in logged(deployment)
    assert once(deployment) == 0
    assert deployment.session(session_id)["status"] == "completed"


def test_a_worker_that_cannot_be_started(deployment: Deployment) -> None:
    """A setting is a failure, a command line that cannot be understood is another."""
    without_secret = deployment.start("worker", WEARON_SIGNING_SECRET="")
    misspelt = deployment.start("worker", "--twice")

    assert without_secret.wait(DEADLINE_SECONDS) == 1
    assert misspelt.wait(DEADLINE_SECONDS) == 2


def test_a_second_signal_gives_the_work_back(deployment: Deployment) -> None:
    """A worker that has a minute to finish its task is gone at once, as it was told: nothing is
    lost, and the exit code is 0."""
    (deployment.folder / "worker.log").write_text("")
    worker = deployment.start(
        "worker", WEARON_LOCAL_GENERATOR_SECONDS="60", WEARON_DRAIN_SECONDS="60"
    )
    session_id = deployment.submit().data["session_id"]
    deployment.wait_for(session_id, "processing")

    worker.send_signal(signal.SIGTERM)
    eventually(lambda: "worker_draining" in logged(deployment))
    exit_code = kill(worker, signal.SIGINT)

    assert exit_code == 0
    assert deployment.session(session_id)["status"] == "queued"
    assert once(deployment) == 0
    assert deployment.session(session_id)["status"] == "completed"
    deployment.assert_books_are_right()
