"""Idempotency-Key: a repeated request is answered again, and charged once."""

from datetime import timedelta
from typing import Any
from uuid import UUID

import pytest

from domain.sessions import SessionStatus
from domain.submission import SubmissionPolicy
from tests.support.examples import HAT, LEASE, MODEL_URL, OTHER, STORE, STORED_PICTURE, USER
from tests.support.http import GENERATIONS, Answer, Api

pytestmark = pytest.mark.anyio

KEY = "idempotency-key"
TRY_ON: dict[str, Any] = {
    "model_image_url": MODEL_URL,
    "accessories": [{"type": "hat", "url": HAT.url}],
}


@pytest.fixture
def api() -> Api:
    return Api()


async def send(api: Api, *keys: str, **options: Any) -> Answer:
    """Submit with these keys; usually there is one."""
    return await api.submit(**{"body": TRY_ON} | options, headers=[(KEY, key) for key in keys])


async def test_replay(api: Api) -> None:
    """202 with the same session and the replay header; nothing is charged or queued again, even if
    the JSON is formatted differently."""
    await api.service.accounts.grant(USER, 2, note="test")
    first = await send(api, "order-1")

    again = await send(api, "order-1")
    rewritten = await send(
        api, "order-1", body={**dict(reversed(TRY_ON.items())), "outfit_image_url": None}
    )

    for answer in (again, rewritten):
        assert (answer.status, answer.json) == (202, first.json)
        assert answer.headers["location"] == first.data["status_url"]
        assert answer.headers["idempotency-replayed"] == "true"
        assert answer.headers["x-request-id"] != first.headers["x-request-id"]
    assert "idempotency-replayed" not in first.headers
    assert len(api.service.waiting()) == 1
    assert api.service.balance() == 1


async def test_replay_has_the_current_status_and_balance(api: Api) -> None:
    """Those at the time of the replay."""
    await api.service.accounts.grant(USER, 2, note="test")
    session_id = UUID((await send(api, "order-1")).data["session_id"])
    await api.service.claimed(session_id)

    processing = await send(api, "order-1")
    await api.service.repo.complete(session_id, attempt=1, picture=STORED_PICTURE)
    await send(api, "order-2")
    completed = await send(api, "order-1")

    assert (processing.data["status"], processing.data["credits_remaining"]) == ("processing", 1)
    assert (completed.data["status"], completed.data["credits_remaining"]) == ("completed", 0)
    assert completed.data["session_id"] == str(session_id)
    assert (await api.service.session(session_id)).status is SessionStatus.COMPLETED


async def test_key_of_a_different_request(api: Api) -> None:
    """422, nothing is charged, and the first request can still be repeated."""
    await api.service.accounts.grant(STORE, 2, note="test")
    first = await send(api, "order-1", owner=STORE)

    other = await send(api, "order-1", owner=STORE, body=TRY_ON | {"prompt": "In the rain"})

    assert other.error == (422, "IDEMPOTENCY_KEY_REUSED")
    assert api.service.balance(STORE) == 1
    assert (await send(api, "order-1", owner=STORE)).data == first.data


async def test_keys_are_per_owner(api: Api) -> None:
    """The same key of three owners makes three sessions."""
    for owner in (USER, OTHER, STORE):
        await api.service.accounts.grant(owner, 1, note="test")

    answers = [await send(api, "order-1", owner=owner) for owner in (USER, OTHER, STORE)]

    assert len({answer.data["session_id"] for answer in answers}) == 3
    assert not any("idempotency-replayed" in answer.headers for answer in answers)


BAD_KEYS = {
    "empty": [""],
    "256 characters": ["x" * 256],
    "a space": ["order 1"],
    "a space at its end": ["order-1 "],
    "a tab": ["order\t1"],
    "a line end": ["order-1\n"],
    "NUL": ["order-1\x00"],
    "DEL": ["order-1\x7f"],
    "latin-1": ["ordr\xe9"],
    "UTF-8": ["\xc3\xa9"],
    "given twice": ["order-1", "order-1"],
    "two different": ["order-1", "order-2"],
}


@pytest.mark.parametrize("keys", BAD_KEYS.values(), ids=BAD_KEYS)
async def test_invalid_keys(api: Api, keys: list[str]) -> None:
    """400 with the header's name, and nothing is charged."""
    await api.service.accounts.grant(USER, 1, note="test")

    answer = await send(api, *keys)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith("Idempotency-Key: ")
    assert api.service.balance() == 1
    assert await api.service.sessions() == []


@pytest.mark.parametrize("key", ["!", "~" * 255, "8e03978e-40d5-43dd-bc93-6894a57f9324", '"a"'])
async def test_valid_keys(api: Api, key: str) -> None:
    """1 to 255 visible ASCII characters."""
    await api.service.accounts.grant(USER, 1, note="test")

    answers = [await send(api, key) for _ in range(2)]

    assert [answer.status for answer in answers] == [202, 202]
    assert answers[0].data == answers[1].data


async def test_key_after_a_402(api: Api) -> None:
    """Usable again once there are credits: nothing was created."""
    rejected = await send(api, "order-1")
    await api.service.accounts.grant(USER, 1, note="test")

    answer = await send(api, "order-1")

    assert rejected.error == (402, "INSUFFICIENT_CREDITS")
    assert (answer.status, answer.data["status"]) == (202, "queued")
    assert "idempotency-replayed" not in answer.headers


async def test_key_after_a_503(api: Api) -> None:
    """The first request was undone, so its repetition is a new one: charged and queued."""
    await api.service.accounts.grant(USER, 1, note="test")
    api.service.queue.faults.away.add("push")
    failed = await send(api, "order-1")
    api.service.queue.faults.away.clear()

    answer = await send(api, "order-1")

    (task,) = api.service.waiting()
    assert failed.error == (503, "SERVICE_UNAVAILABLE")
    assert int(failed.headers["retry-after"]) > 0
    assert answer.data["session_id"] == str(task.session_id)
    assert "idempotency-replayed" not in answer.headers
    assert api.service.balance() == 0


async def test_key_of_a_request_that_is_not_settled(api: Api) -> None:
    """409 with Retry-After. Nothing is charged or queued for it, and a later repetition gets the
    session."""
    await api.service.accounts.grant(USER, 2, note="test")
    api.service.limit(SubmissionPolicy(deadline=timedelta(seconds=0.1)))
    api.service.repo.faults.deaf.add("create")
    failed = await send(api, "order-1")
    api.service.repo.faults.clear()

    answer = await send(api, "order-1")

    assert failed.error == (503, "SERVICE_UNAVAILABLE")
    assert answer.error == (409, "CONFLICT")
    assert int(answer.headers["retry-after"]) > 0
    assert api.service.waiting() == []
    assert api.service.balance() == 1
    (session,) = await api.service.sessions()
    await api.service.repo.claim(session.id, lease=LEASE)
    assert (await send(api, "order-1")).data["session_id"] == str(session.id)


async def test_key_after_a_cancellation(api: Api) -> None:
    """A replay of the cancelled session: nothing is created again."""
    await api.service.accounts.grant(USER, 1, note="test")
    session_id = (await send(api, "order-1")).data["session_id"]
    await api.cancel(session_id)

    answer = await send(api, "order-1")

    assert (answer.data["session_id"], answer.data["status"]) == (session_id, "failed")
    assert api.service.balance() == 1


async def test_key_is_documented(api: Api) -> None:
    """As an optional header of this route only, with its response header and its errors. A batch
    and the original's call take it too, and services send one to create an API key."""
    operations = api.document["paths"]
    submit = operations[GENERATIONS]["post"]
    (header,) = [item for item in submit["parameters"] if item["name"] == "Idempotency-Key"]

    assert (header["in"], header["required"]) == ("header", False)
    assert "255" in header["description"]
    assert "Idempotency-Replayed" in submit["responses"]["202"]["headers"]
    assert {"409", "422", "429"} <= submit["responses"].keys()
    takes_it_too = {"/api/v1/generation/create", f"{GENERATIONS}/batch"}
    others = [
        item
        for path, items in operations.items()
        for item in items.values()
        if item != submit and "/admin/" not in path and path not in takes_it_too
    ]
    assert "Idempotency" not in str(others)
