"""How a worker process ends: its exit codes."""

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
    """The exit code of a worker with ``--once``."""
    worker = deployment.start("worker", "--once", *options, **settings)
    return worker.wait(DEADLINE_SECONDS)


def logged(deployment: Deployment) -> str:
    """The log of the deployment's workers."""
    return (deployment.folder / "worker.log").read_text()


def test_once(deployment: Deployment) -> None:
    """It works through more tasks than it has slots, then ends by itself; with an empty queue it
    ends too. Each task has its line in the log."""
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
    """It does not wait for the server. Work may be left, here for the next run."""
    session_id = deployment.submit().data["session_id"]

    exit_code = once(deployment, **{variable: url})

    assert exit_code == os.EX_TEMPFAIL
    assert once(deployment) == 0
    assert deployment.session(session_id)["status"] == "completed"


def test_once_with_a_wrong_key(deployment: Deployment) -> None:
    """The provider rejects every request: work is left, and no session fails. A log line warns that
    a stop might cut off a paid call."""
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
    """One column has another name, as in a database of another version."""
    rename = "ALTER TABLE generation_sessions RENAME COLUMN {} TO {}"
    deployment.sql(rename.format("lease_expires_at", "renamed"))
    try:
        yield
    finally:
        deployment.sql(rename.format("renamed", "lease_expires_at"))


def test_once_with_an_unexpected_error(deployment: Deployment) -> None:
    """The error is logged, the exit code is 1, and the task is in the queue for the next run."""
    session_id = deployment.submit().data["session_id"]

    with without_a_column(deployment):
        exit_code = once(deployment, "--no-recovery")

    assert exit_code == 1
    assert "ClaimFailed" in logged(deployment)
    assert once(deployment) == 0
    assert deployment.session(session_id)["status"] == "completed"


def test_worker_that_cannot_start(deployment: Deployment) -> None:
    """An invalid setting and an invalid command line have exit codes of their own."""
    without_secret = deployment.start("worker", WEARON_SIGNING_SECRET="")
    misspelt = deployment.start("worker", "--twice")

    assert without_secret.wait(DEADLINE_SECONDS) == 1
    assert misspelt.wait(DEADLINE_SECONDS) == 2


def test_second_signal_requeues_the_work(deployment: Deployment) -> None:
    """A worker that has a minute to finish its task stops at once. Nothing is lost, and the exit
    code is 0."""
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
