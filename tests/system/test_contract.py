"""What other programs rely on: the bytes in the Redis list, and external consumers."""

import json
import re
from typing import Any
from uuid import UUID

import pytest

from domain.traces import traceparent_of
from tests.system.deployment import STORE_ID, USER_ID, Deployment, eventually

TASKS = "wearon:tasks:generation"


@pytest.mark.parametrize(
    ("channel", "owner"),
    [("b2c", {"user_id": str(USER_ID)}), ("b2b", {"store_id": STORE_ID})],
)
def test_task_in_the_list_follows_the_contract(
    deployment: Deployment, channel: str, owner: dict[str, str]
) -> None:
    """One JSON object with exactly the contract's fields: snake_case, only the owner key of the
    channel, and the pictures in the order model, outfit, accessories."""
    url = deployment.url
    redis = deployment.redis()
    redis.flushall()

    answer = deployment.submit(
        channel,
        outfit_image_url=f"{url}/samples/outfit.png",
        accessories=[
            {"type": "hat", "url": f"{url}/samples/hat.png"},
            {"type": "bag", "url": f"{url}/samples/bag.png"},
        ],
    )
    (raw,) = redis.lrange(TASKS, 0, -1)
    task = json.loads(raw)

    assert answer.status == 202
    assert str(UUID(task["task_id"])) == task.pop("task_id")
    assert "Virtual try-on" in task.pop("prompt")
    assert re.fullmatch(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z", task["created_at"])
    assert task.pop("created_at") == answer.data["created_at"]
    assert task == {
        "channel": channel,
        **owner,
        "session_id": answer.data["session_id"],
        "image_urls": [f"{url}/samples/{name}.png" for name in ("model", "outfit", "hat", "bag")],
        "request_id": answer.headers["x-request-id"],
        "version": 1,
        "traceparent": traceparent_of(
            UUID(answer.data["session_id"]), answer.headers["x-request-id"], None
        ),
    }
    redis.close()


def test_external_consumer_s_result_is_shown(deployment: Deployment) -> None:
    """An external consumer pops with plain BRPOP and writes the row by SQL, without a lease. The
    owner sees its picture, with the time of completion."""
    redis = deployment.redis()
    redis.flushall()
    session_id = deployment.submit().data["session_id"]

    task = json.loads(_popped(redis.brpop([TASKS], timeout=5)))
    deployment.sql(
        "UPDATE generation_sessions SET status = 'processing' WHERE id = $1", task["session_id"]
    )
    deployment.sql(
        "UPDATE generation_sessions SET status = 'completed', processing_time_ms = 42,"
        " generated_image_url = 'https://elsewhere.example/p.png' WHERE id = $1",
        task["session_id"],
    )
    session = deployment.session(session_id)

    assert session["status"] == "completed"
    assert session["generated_image_url"] == "https://elsewhere.example/p.png"
    assert session["processing_time_ms"] == 42
    assert session["completed_at"] is not None
    assert deployment.entries(session_id) == ["debit"]
    deployment.assert_books_are_right()
    redis.close()


def test_external_consumer_s_failure_is_refunded(deployment: Deployment) -> None:
    """An external consumer only writes status = 'failed'. Recovery refunds the session once."""
    session_id = deployment.submit().data["session_id"]

    deployment.sql("UPDATE generation_sessions SET status = 'failed' WHERE id = $1", session_id)
    deployment.start("worker")
    eventually(lambda: deployment.entries(session_id) == ["debit", "refund"])

    assert deployment.session(session_id)["error_code"] == "GENERATION_FAILED"
    deployment.assert_books_are_right()


def test_unreadable_message_becomes_a_dead_letter_and_its_session_is_refunded(
    deployment: Deployment,
) -> None:
    """A message of a newer version becomes a dead letter with its raw text and a reason. The
    session that it names fails with its refund, and the next task is worked on."""
    redis = deployment.redis()
    redis.flushall()
    doomed = deployment.submit().data["session_id"]
    message = json.loads(_popped(redis.brpop([TASKS], timeout=5))) | {"version": 99}
    redis.lpush(TASKS, json.dumps(message))
    fine = deployment.submit().data["session_id"]

    deployment.start("worker")

    assert deployment.wait_for(doomed, "failed")["error_code"] == "INVALID_TASK"
    deployment.wait_for(fine, "completed")
    (dead,) = redis.lrange("wearon:tasks:dead", 0, -1)
    assert json.loads(json.loads(dead)["raw"]) == message
    assert "version 99" in json.loads(dead)["reason"]
    assert deployment.entries(doomed) == ["debit", "refund"]
    deployment.assert_books_are_right()
    redis.close()


def _popped(reply: Any) -> bytes:
    """The text of BRPOP's reply."""
    _, raw = reply
    assert isinstance(raw, bytes)
    return raw
