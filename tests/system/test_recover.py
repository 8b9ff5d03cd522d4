"""``wearon recover``: the reconciler of a deployment whose tasks other programs work on."""

import os
import signal

from redis import Redis

from tests.system.deployment import Deployment, eventually, kill

TASKS = "wearon:tasks:generation"


def popped(redis: Redis, deployment: Deployment) -> str:
    """A session whose task an external consumer has taken, and whose push is confirmed."""
    session_id: str = deployment.submit().data["session_id"]
    assert redis.brpop([TASKS], timeout=5) is not None
    confirmed = "SELECT FROM generation_sessions WHERE confirmed AND id = $1::text::uuid"
    eventually(lambda: deployment.sql(confirmed, session_id) != [])
    return session_id


def test_recover_once(deployment: Deployment) -> None:
    """A session that an external consumer failed is refunded, and one whose task it lost is queued
    again. No task is taken."""
    redis = deployment.redis()
    redis.flushall()
    before = deployment.balance()
    failed, lost = popped(redis, deployment), popped(redis, deployment)
    deployment.sql(
        "UPDATE generation_sessions SET status = 'failed', error_code = 'TIMEOUT',"
        " error_message = 'no picture' WHERE id = $1::text::uuid",
        failed,
    )
    deployment.sql(
        "UPDATE generation_sessions SET push_again_at = now() WHERE id = $1::text::uuid", lost
    )

    first = deployment.wearon("recover")
    second = deployment.wearon("recover")

    assert deployment.entries(failed) == ["debit", "refund"]
    assert deployment.session(lost)["status"] == "queued"
    assert [lost in str(raw) for raw in redis.lrange(TASKS, 0, -1)] == [True]
    assert deployment.balance() == before - 1
    assert '"recovered"' in first.stderr
    assert '"recovered"' not in second.stderr
    redis.close()


def test_recover_watches_until_a_signal(deployment: Deployment) -> None:
    """``--watch`` goes on by itself, and stops with the exit status 0."""
    redis = deployment.redis()
    redis.flushall()
    recovery = deployment.start("recover", "--watch")

    session_id = popped(redis, deployment)
    deployment.sql(
        "UPDATE generation_sessions SET status = 'failed', error_code = 'TIMEOUT'"
        " WHERE id = $1::text::uuid",
        session_id,
    )
    eventually(lambda: deployment.entries(session_id) == ["debit", "refund"])

    assert kill(recovery, signal.SIGTERM) == 0
    redis.close()


def test_recover_without_the_database(deployment: Deployment) -> None:
    """Something may be left: exit status 75, and a line in the log instead of a traceback."""
    nowhere = "postgresql://postgres@127.0.0.1:1/none"

    done = deployment.wearon("recover", check=False, DATABASE_URL=nowhere)

    assert done.returncode == os.EX_TEMPFAIL
    assert '"recovery_postponed"' in done.stderr
    assert "Traceback" not in done.stderr
