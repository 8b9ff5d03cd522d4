"""POST /api/v1/generations/batch: each item gets its own answer, in order."""

import json
from dataclasses import replace
from typing import Any

import pytest

from domain.plans import AccountLimits, Plan, PlanRates
from entrypoints.http.batch import MAX_BATCH_BYTES
from tests.support.examples import HAT, MODEL_URL, OPERATOR, OTHER, STORE, USER
from tests.support.http import BATCH, Answer, Api

pytestmark = pytest.mark.anyio

ITEM: dict[str, Any] = {"model_image_url": MODEL_URL}
BAD = {"model_image_url": "ftp://x"}


@pytest.fixture
async def api() -> Api:
    api = Api()
    await api.service.accounts.grant(USER, 9, note="test")
    return api


async def send(api: Api, *items: object, key: str | None = None, **options: Any) -> Answer:
    headers = [] if key is None else [("idempotency-key", key)]
    return await api.call("POST", BATCH, **{"body": {"items": items}} | options, headers=headers)


def codes(answer: Answer) -> list[Any]:
    """The status of each item, with its code for a rejected one."""
    assert (answer.status, answer.json["error"]) == (202, None)
    return [
        item["status"] if item["error"] is None else (item["status"], item["error"]["code"])
        for item in answer.data["items"]
    ]


def messages(answer: Answer) -> list[str | None]:
    return [item["error"] and item["error"]["message"] for item in answer.data["items"]]


async def test_each_item_is_answered_like_a_single_request(api: Api) -> None:
    accessories = [{"type": "hat", "url": HAT.url}]
    answer = await send(api, ITEM, ITEM | {"accessories": accessories, "age_verified": True})

    single = await api.submit(body=ITEM)
    assert codes(answer) == [202, 202]
    items = answer.data["items"]
    assert all(item["data"].keys() == single.data.keys() for item in items)
    assert [item["data"]["credits_remaining"] for item in items] == [8, 7]
    assert [item["replayed"] for item in items] == [False, False]
    sessions = [await api.get(item["data"]["status_url"]) for item in items]
    assert [one.data["accessories"] for one in sessions] == [[], accessories]
    assert {one.data["request_id"] for one in sessions} == {answer.headers["x-request-id"]}
    tasks = [str(task.session_id) for task in api.service.waiting()]
    assert tasks[:2] == [item["data"]["session_id"] for item in items]


REJECTED: dict[str, tuple[object, str]] = {
    "bad url": (BAD, "model_image_url: must be an http or https URL"),
    "missing field": ({}, "model_image_url: is required"),
    "unknown field": (ITEM | {"size": 1}, "size: is not a field of this request"),
    "wrong type": (ITEM | {"accessories": [{"type": "hat", "url": 1}]}, "accessories[0].url: "),
    "no object": (7, "body: expected object, got int"),
    "key too long": (ITEM | {"idempotency_key": "k" * 256}, "idempotency_key: has more than 255"),
    "empty key": (ITEM | {"idempotency_key": ""}, "idempotency_key: "),
    "key with a space": (ITEM | {"idempotency_key": "a b"}, "idempotency_key: contains a char"),
    "prompt of a user": (ITEM | {"prompt": "x"}, "prompt: only stores may give a prompt"),
}


@pytest.mark.parametrize("name", REJECTED)
async def test_invalid_item_does_not_affect_the_others(api: Api, name: str) -> None:
    """Its own 400 names its field."""
    item, message = REJECTED[name]

    answer = await send(api, ITEM, item, ITEM)

    assert codes(answer) == [202, (400, "VALIDATION_ERROR"), 202]
    assert (messages(answer)[1] or "").startswith(message)
    assert len(api.service.waiting()) == 2
    assert api.service.balance() == 7


async def test_repeated_name_in_an_item(api: Api) -> None:
    """The item's own 400, however it is written."""
    url = json.dumps(MODEL_URL)
    twice = f'{{"model_image_url":{url},"\\u006dodel_image_url":{url}}}'
    body = f'{{"items":[{json.dumps(ITEM)},{twice}]}}'.encode()

    answer = await send(api, body=body)

    assert codes(answer) == [202, (400, "VALIDATION_ERROR")]
    assert messages(answer)[1] == "model_image_url: is given more than once"


WHOLE: dict[str, tuple[bytes, str]] = {
    "no JSON": (b"{", "body: is not valid JSON"),
    "a list": (b"[]", "body: expected object, got array"),
    "no items": (b"{}", "items: is required"),
    "items is no list": (b'{"items":{}}', "items: expected array, got object"),
    "empty": (b'{"items":[]}', "items: expected array of length >= 1"),
    "101 items": (
        json.dumps({"items": [ITEM] * 101}).encode(),
        "items: has more than 100 items",
    ),
    "101 items, one of them bad": (
        json.dumps({"items": [ITEM] * 100 + [BAD | {"x": 1}]}).encode(),
        "items: has more than 100 items",
    ),
    "unknown field": (b'{"items":[{}],"x":1}', "x: is not a field of this request"),
    "items twice": (b'{"items":[{}],"\\u0069tems":[{}]}', "items: is given more than once"),
    "no body": (b"", "body: is required"),
}


@pytest.mark.parametrize("name", WHOLE)
async def test_invalid_batch(api: Api, name: str) -> None:
    """A 400 for the call; nothing is created."""
    body, message = WHOLE[name]

    answer = await send(api, body=body)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith(message)
    assert api.service.waiting() == []


async def test_hundred_items(api: Api) -> None:
    """The balance is enough for nine; the others are told so."""
    answer = await send(api, *[ITEM] * 100)

    assert codes(answer) == [202] * 9 + [(402, "INSUFFICIENT_CREDITS")] * 91


async def test_size_limit_of_its_own(api: Api) -> None:
    """2 MB, however the length is announced."""
    body = json.dumps({"items": [ITEM]}).encode()

    largest = await send(api, body=body.ljust(MAX_BATCH_BYTES))
    too_large = [
        await send(api, body=body.ljust(MAX_BATCH_BYTES + 1)),
        await send(api, body=[body.ljust(MAX_BATCH_BYTES), b" "]),
    ]

    assert codes(largest) == [202]
    assert [answer.error for answer in too_large] == [(413, "PAYLOAD_TOO_LARGE")] * 2


async def test_header_gives_keys_to_items_without_one(api: Api) -> None:
    """``K/index``; a repetition is answered with the same sessions."""
    mine = ITEM | {"idempotency_key": "mine"}
    first = await send(api, ITEM, mine, ITEM | {"idempotency_key": None}, key="K")
    await api.service.submission.confirm_pushed()

    again = await send(api, ITEM, mine, ITEM, key="K")

    keys = {session.idempotency_key for session in await api.service.sessions()}
    assert keys == {"K/0", "mine", "K/2"}
    assert [item["data"] for item in again.data["items"]] == [
        item["data"] | {"credits_remaining": 6} for item in first.data["items"]
    ]
    assert [item["replayed"] for item in again.data["items"]] == [True] * 3
    assert api.service.balance() == 6


async def test_single_request_and_item_share_keys(api: Api) -> None:
    single = await api.submit(body=ITEM, headers=[("idempotency-key", "K/1")])
    await api.service.submission.confirm_pushed()

    answer = await send(api, ITEM, ITEM, ITEM | {"idempotency_key": "K/1", "age_verified": True})
    of_header = await send(api, BAD, ITEM, key="K")

    assert codes(answer) == [202, 202, (422, "IDEMPOTENCY_KEY_REUSED")]
    assert codes(of_header) == [(400, "VALIDATION_ERROR"), 202]
    assert of_header.data["items"][1]["data"]["session_id"] == single.data["session_id"]


async def test_repeated_keys_in_one_batch(api: Api) -> None:
    item = ITEM | {"idempotency_key": "a"}

    answer = await send(api, item, item, item | {"age_verified": True})

    assert codes(answer) == [202, 202, (422, "IDEMPOTENCY_KEY_REUSED")]
    first, again, _ = answer.data["items"]
    assert first["data"]["session_id"] == again["data"]["session_id"]
    assert (first["replayed"], again["replayed"]) == (False, True)
    assert api.service.balance() == 8


@pytest.mark.parametrize(
    ("key", "accepted"), [("k" * 252, True), ("k" * 254, False), ("a b", False), ("", False)]
)
async def test_key_of_the_header_with_the_index(api: Api, key: str, *, accepted: bool) -> None:
    """The whole key has to keep the rule: else the call is a 400."""
    answer = await send(api, ITEM, ITEM, key=key)

    if accepted:
        assert codes(answer) == [202, 202]
    else:
        assert answer.error == (400, "VALIDATION_ERROR")
        assert answer.message.startswith("Idempotency-Key: ")
        assert api.service.waiting() == []


async def test_header_given_twice(api: Api) -> None:
    answer = await api.call(
        "POST",
        BATCH,
        body={"items": [ITEM]},
        headers=[("idempotency-key", "a"), ("idempotency-key", "b")],
    )
    assert answer.error == (400, "VALIDATION_ERROR")


async def test_rates_and_retry_after(api: Api) -> None:
    """Rates count each item; Retry-After is the longest of all."""
    rates = PlanRates(submissions_per_minute=2)
    limits = replace(AccountLimits(), rates={Plan.DEFAULT: rates})
    api.service.repo._limits._limits = limits

    first = await send(api, ITEM)
    second = await send(api, ITEM, ITEM)

    assert first.headers["x-ratelimit-remaining"] == "1"
    assert "retry-after" not in first.headers
    assert codes(second) == [202, (429, "RATE_LIMIT_EXCEEDED")]
    assert second.headers["x-ratelimit-remaining"] == "0"
    assert int(second.headers["retry-after"]) >= 1


async def test_unavailable_queue(api: Api) -> None:
    """Each item's own 503, with the header for all."""
    api.service.queue.faults.away.add("push_many")

    answer = await send(api, ITEM, BAD, ITEM)

    unavailable = (503, "SERVICE_UNAVAILABLE")
    assert codes(answer) == [unavailable, (400, "VALIDATION_ERROR"), unavailable]
    assert messages(answer)[0] == "Generation service temporarily unavailable"
    assert answer.headers["retry-after"] == "5"
    assert api.service.balance() == 9


async def test_unexpected_error(api: Api) -> None:
    api.service.repo.faults.broken.add("create_many")

    answer = await send(api, ITEM, ITEM)

    assert codes(answer) == [(500, "INTERNAL_ERROR")] * 2


async def test_refusals_of_the_caller_are_for_the_call(api: Api) -> None:
    """Before its body is read."""
    assert (await send(api, owner=None, body=b"{")).error == (401, "INVALID_TOKEN")
    query = await api.call("POST", f"{BATCH}?x=1", body={"items": [ITEM]})
    assert query.error == (400, "VALIDATION_ERROR")
    form = await send(api, ITEM, content_type="text/plain")
    assert form.error == (415, "UNSUPPORTED_MEDIA_TYPE")


async def test_each_owner_pays_for_its_own(api: Api) -> None:
    await api.service.accounts.grant(STORE, 1, note="test")

    of_store = await send(api, ITEM | {"prompt": "x"}, owner=STORE)
    of_other = await send(api, ITEM, owner=OTHER)

    assert (codes(of_store), codes(of_other)) == ([202], [(402, "INSUFFICIENT_CREDITS")])
    assert api.service.balance() == 9


async def test_suspended_owner(api: Api) -> None:
    """A 403 for the call: it concerns the owner, not an item. Earlier requests are still known."""
    await send(api, ITEM, key="K")
    await api.service.submission.confirm_pushed()
    await api.service.accounts.suspend(USER, by=OPERATOR)

    refused = await send(api, ITEM, BAD)
    replayed = await send(api, ITEM, ITEM, key="K")

    assert refused.error == (403, "FORBIDDEN")
    assert codes(replayed) == [202, (403, "FORBIDDEN")]


async def test_other_spelling_of_the_path(api: Api) -> None:
    """Litestar leads there as well, and answers other methods."""
    answer = await api.call("POST", f"{BATCH}/", body={"items": [ITEM]})
    wrong = await api.call("PUT", BATCH, body={"items": [ITEM]})

    assert codes(answer) == [202]
    assert wrong.error == (405, "METHOD_NOT_ALLOWED")


async def test_paused_intake_is_each_items_answer(api: Api) -> None:
    """Nothing is charged, and Retry-After is that of the items; a repetition is answered."""
    first = await send(api, ITEM, key="order")
    api.service.submission.is_paused = True

    answer = await send(api, ITEM, ITEM, key="order")

    assert codes(first) == [202]
    assert codes(answer) == [202, (503, "SERVICE_UNAVAILABLE")]
    assert answer.headers["retry-after"] == "30"
    assert api.service.balance() == 8
