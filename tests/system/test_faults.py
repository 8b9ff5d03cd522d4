"""Faults while work is in flight: afterwards every session is settled and the books are right."""

import signal

from tests.system.deployment import Deployment, eventually, kill


def test_redis_down_at_submit(deployment: Deployment) -> None:
    """Redis unavailable is a 503 with Retry-After; the session fails with its refund."""
    before = deployment.balance()

    deployment.valkey.stop()
    answer = deployment.submit()
    deployment.valkey.start()
    latest = deployment.get("/api/v1/generations?limit=1").data["items"][0]

    assert answer.status == 503
    assert answer.body["error"] == {
        "code": "SERVICE_UNAVAILABLE",
        "message": "Generation service temporarily unavailable",
    }
    assert int(answer.headers["retry-after"]) > 0
    assert (latest["status"], latest["error_code"]) == ("failed", "QUEUE_UNAVAILABLE")
    assert deployment.balance() == before
    assert deployment.entries(latest["session_id"]) == ["debit", "refund"]
    deployment.assert_books_are_right()


def test_worker_killed_in_mid_task(deployment: Deployment) -> None:
    """When a worker dies its lease runs out, and another worker finishes the session."""
    doomed = deployment.start("worker", WEARON_LOCAL_GENERATOR_SECONDS="60")
    session_id = deployment.submit().data["session_id"]
    deployment.wait_for(session_id, "processing")

    kill(doomed)
    deployment.start("worker")
    session = deployment.wait_for(session_id, "completed", "failed")

    assert (session["status"], session["attempt"]) == ("completed", 2)
    assert deployment.entries(session_id) == ["debit"]
    deployment.assert_books_are_right()


def test_redis_flushed_with_a_backlog(deployment: Deployment) -> None:
    """When Redis loses everything it held, every waiting session is still completed."""
    sessions = [deployment.submit().data["session_id"] for _ in range(12)]
    redis = deployment.redis()

    assert redis.llen("wearon:tasks:generation") == len(sessions)
    redis.flushall()
    redis.close()
    deployment.start("worker")

    for session_id in sessions:
        assert deployment.wait_for(session_id, "completed", "failed")["status"] == "completed"
    deployment.assert_books_are_right()


def test_postgres_killed_under_a_worker(deployment: Deployment) -> None:
    """When PostgreSQL crashes and comes back, API and worker go on without a restart."""
    worker = deployment.start("worker", WEARON_LOCAL_GENERATOR_SECONDS="0.5")
    session_id = deployment.submit().data["session_id"]
    deployment.wait_for(session_id, "processing")

    deployment.postgres.kill()
    answer = deployment.submit()
    deployment.postgres.start()
    eventually(lambda: deployment.get("/health/ready").status == 200)

    assert answer.status == 503
    assert deployment.wait_for(session_id, "completed", "failed")["status"] == "completed"
    assert worker.poll() is None
    deployment.assert_books_are_right()


def test_worker_drains_on_sigterm(deployment: Deployment) -> None:
    """SIGTERM: the task in hand is finished, nothing new is taken, the exit code is 0."""
    worker = deployment.start("worker", "--concurrency", "1", WEARON_LOCAL_GENERATOR_SECONDS="1.5")
    in_hand = deployment.submit().data["session_id"]
    deployment.wait_for(in_hand, "processing")
    waiting = deployment.submit().data["session_id"]

    exit_code = kill(worker, signal.SIGTERM)

    assert exit_code == 0
    assert deployment.session(in_hand)["status"] == "completed"
    assert deployment.session(waiting)["status"] == "queued"


def test_work_beyond_the_drain_time_is_requeued(deployment: Deployment) -> None:
    """A task that does not finish in the drain time goes back; another worker completes it."""
    worker = deployment.start(
        "worker", WEARON_LOCAL_GENERATOR_SECONDS="60", WEARON_DRAIN_SECONDS="5"
    )
    session_id = deployment.submit().data["session_id"]
    deployment.wait_for(session_id, "processing")

    exit_code = kill(worker, signal.SIGTERM)
    given_back = deployment.session(session_id)
    deployment.start("worker")

    assert exit_code == 0
    assert given_back["status"] == "queued"
    deployment.wait_for(session_id, "completed")
    deployment.assert_books_are_right()
