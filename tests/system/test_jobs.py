"""A provider's jobs outlive the workers that began them."""

import signal
from collections.abc import Iterator
from subprocess import Popen

import pytest
from aiohttp import web

from tests.support.provider import hangs, in_thread
from tests.support.replicate import TOKEN, FakeReplicate
from tests.system.deployment import Deployment, eventually, kill


@pytest.fixture
def fake() -> Iterator[FakeReplicate]:
    with in_thread(FakeReplicate()) as fake:
        yield fake


def worker(deployment: Deployment, fake: FakeReplicate, **settings: str) -> Popen[bytes]:
    return deployment.start(
        "worker",
        WEARON_GENERATOR="replicate",
        REPLICATE_API_TOKEN=TOKEN,
        WEARON_REPLICATE_BASE_URL=fake.url,
        **settings,
    )


def noted(deployment: Deployment, session_id: str) -> str | None:
    """The job that the database knows."""
    (row,) = deployment.sql(
        "SELECT provider_job FROM generation_sessions WHERE id = $1", session_id
    )
    job: str | None = row["provider_job"]
    return job


def test_job_outlives_its_worker(deployment: Deployment, fake: FakeReplicate) -> None:
    """SIGKILL between the job and its result: the next worker waits for the same job, and the
    provider was asked for one picture."""
    fake.seconds = 4
    doomed = worker(deployment, fake)
    session_id = deployment.submit().data["session_id"]
    eventually(lambda: noted(deployment, session_id))

    kill(doomed)
    unfinished = deployment.session(session_id)["status"]
    worker(deployment, fake)
    session = deployment.wait_for(session_id, "completed", "failed")

    assert unfinished == "processing"
    assert (session["status"], session["attempt"]) == ("completed", 2)
    assert (fake.count("begin"), list(fake.jobs), fake.cancelled) == (1, ["job1"], [])
    assert noted(deployment, session_id) == "replicate:job1"
    assert deployment.entries(session_id) == ["debit"]
    deployment.assert_books_are_right()


@pytest.mark.parametrize("is_idempotent", [True, False])
def test_worker_killed_before_it_records_its_job(
    deployment: Deployment, fake: FakeReplicate, *, is_idempotent: bool
) -> None:
    """SIGKILL while the provider, which has begun the job, responds. A provider with idempotency
    keys has one job in the end; at another one the first job is lost. The customer pays once."""
    fake.is_idempotent = is_idempotent

    async def begins_and_hangs(request: web.Request) -> web.StreamResponse:
        fake.accept(await request.json(), request.headers["Idempotency-Key"])
        return await hangs(request)

    fake.script.begin = [begins_and_hangs]
    doomed = worker(deployment, fake)
    session_id = deployment.submit().data["session_id"]
    eventually(lambda: fake.jobs)

    kill(doomed)
    known = noted(deployment, session_id)
    worker(deployment, fake)
    session = deployment.wait_for(session_id, "completed", "failed")

    assert known is None
    assert (session["status"], session["attempt"]) == ("completed", 2)
    assert (fake.count("begin"), len(fake.jobs)) == (2, 1 if is_idempotent else 2)
    assert deployment.entries(session_id) == ["debit"]
    deployment.assert_books_are_right()


def test_stopping_worker_cancels_its_job(deployment: Deployment, fake: FakeReplicate) -> None:
    """A job that outlasts the drain time is cancelled at the provider. The session goes back, and
    another worker completes it."""
    fake.seconds = 60
    stopping = worker(deployment, fake, WEARON_DRAIN_SECONDS="5")
    session_id = deployment.submit().data["session_id"]
    eventually(lambda: noted(deployment, session_id))

    exit_code = kill(stopping, signal.SIGTERM)
    given_back = deployment.session(session_id)["status"]
    fake.seconds = 0
    worker(deployment, fake)
    session = deployment.wait_for(session_id, "completed", "failed")

    assert (exit_code, given_back) == (0, "queued")
    assert fake.cancelled == ["job1"]
    assert (session["status"], list(fake.jobs)) == ("completed", ["job1", "job2"])
    assert deployment.entries(session_id) == ["debit"]
    deployment.assert_books_are_right()


def test_lost_database_costs_no_second_job(deployment: Deployment, fake: FakeReplicate) -> None:
    """PostgreSQL is down for longer than a lease while a job runs, and the worker has to stop: the
    job is left to the next attempt."""
    fake.seconds = 6
    worker(deployment, fake)
    session_id = deployment.submit().data["session_id"]
    eventually(lambda: noted(deployment, session_id))

    deployment.postgres.kill()
    eventually(lambda: "overtaken" in (deployment.folder / "worker.log").read_text())
    deployment.postgres.start()
    eventually(lambda: deployment.get("/health/ready").status == 200)
    session = deployment.wait_for(session_id, "completed", "failed")

    assert session["status"] == "completed"
    assert (fake.count("begin"), fake.cancelled) == (1, [])
    deployment.assert_books_are_right()
