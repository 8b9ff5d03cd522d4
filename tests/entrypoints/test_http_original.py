"""The original's calls: its names and statuses, our effects and errors."""

import json
from dataclasses import replace
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.age import AgeVerification
from domain.credits import Channel, LedgerKind, Owner
from domain.picture_ports import Picture
from domain.plans import Plan
from domain.sessions import DEFAULT_PROMPT
from domain.submission import SubmissionPolicy
from entrypoints.http.original import DISCLOSURE
from tests.support.examples import (
    BAG,
    FAILURE,
    HAT,
    MANY,
    MODEL_URL,
    OPERATOR,
    OUTFIT_URL,
    STORE,
    TRACEPARENT,
    USER,
)
from tests.support.http import GENERATIONS, Answer, Api

pytestmark = pytest.mark.anyio

CREATE = "/api/v1/generation/create"
STATUS = "/api/v1/generation/{}"
BALANCE = "/api/v1/credits/balance"
CONFIG = "/api/v1/stores/config"
ANOTHER = Owner(channel=Channel.B2B, id="store-2")
BODY: dict[str, Any] = {"image_urls": [MODEL_URL, OUTFIT_URL, HAT.url, BAG.url]}


@pytest.fixture
async def api() -> Api:
    """A store has 9 credits."""
    api = Api()
    await api.service.accounts.grant(STORE, 9, note="test")
    return api


async def create(api: Api, body: object = BODY, **options: Any) -> Answer:
    return await api.call("POST", CREATE, body=body, **{"owner": STORE} | options)


async def test_creation(api: Api) -> None:
    """201 with id and status. One credit, one session and one task, as with our own call."""
    headers = [("x-request-id", "r-1"), ("traceparent", TRACEPARENT)]
    answer = await create(api, BODY | {"prompt": " wear it "}, headers=headers)

    assert answer.status == 201
    (session,) = await api.service.sessions()
    assert session.traceparent == TRACEPARENT
    assert answer.json == {
        "data": {"session_id": str(session.id), "status": "queued"},
        "error": None,
    }
    (task,) = api.service.waiting()
    assert (task.session_id, task.image_urls) == (session.id, tuple(BODY["image_urls"]))
    assert (task.prompt, task.request_id, task.owner) == ("wear it", "r-1", STORE)
    assert api.service.money_of(session.id) == [LedgerKind.DEBIT]
    assert api.service.balance(STORE) == 8


async def test_session_is_that_of_our_own_call(api: Api) -> None:
    """Both calls show it, and other calls act on it."""
    session_id = (await create(api)).data["session_id"]

    ours = (await api.get(f"{GENERATIONS}/{session_id}", owner=STORE)).data

    assert ours["outfit_image_url"] == OUTFIT_URL
    assert [item["url"] for item in ours["accessories"]] == [HAT.url, BAG.url]
    assert (await api.cancel(session_id, owner=STORE)).status == 200
    assert (await api.get(STATUS.format(session_id), owner=STORE)).data["status"] == "failed"


@pytest.mark.parametrize("count", [1, 2, 10])
async def test_one_to_ten_pictures(api: Api, count: int) -> None:
    """In the order of the request: the model, then the outfit, then accessories."""
    urls = [f"https://pictures.example/{number}.jpg" for number in range(count)]

    await create(api, {"image_urls": urls})

    (task,) = api.service.waiting()
    assert list(task.image_urls) == urls


@pytest.mark.parametrize("prompt", [None, "", "  "])
async def test_blank_prompt_is_the_default_one(api: Api, prompt: str | None) -> None:
    await create(api, BODY | {"prompt": prompt})

    (task,) = api.service.waiting()
    assert task.prompt == DEFAULT_PROMPT


async def test_unknown_fields_and_content_types_are_ignored(api: Api) -> None:
    """As the original does: programs that rely on it need no change."""
    answers = [
        await create(api, BODY | {"product_id": "7", "nested": {"a": 1}}),
        await create(api, content_type=None),
        await create(api, content_type="text/plain"),
    ]

    assert [answer.status for answer in answers] == [201] * 3


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"image_urls": []},
        {"image_urls": [MODEL_URL] * 11},
        {"image_urls": MODEL_URL},
        {"image_urls": [7]},
        {"image_urls": ["http://127.0.0.1/"]},
        BODY | {"prompt": "x" * 4_001},
        BODY | {"age_verified": "yes"},
        [],
        b"{",
        b'{"image_urls": ["https://a.example/"], "image_urls": ["https://b.example/"]}',
    ],
    ids=lambda body: json.dumps(body)[:40] if not isinstance(body, bytes) else str(body[:40]),
)
async def test_invalid_request_is_a_validation_error(api: Api, body: object) -> None:
    """400, and nothing is charged."""
    answer = await create(api, body)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert api.service.balance(STORE) == 9


async def test_required_age_is_refused(api: Api) -> None:
    """403 with the original's code, before any charge."""
    required = AgeVerification.REQUIRED
    api.service.limit(SubmissionPolicy(max_active=MANY, max_waiting=MANY, age_b2b=required))

    refused = await create(api)
    accepted = await create(api, BODY | {"age_verified": True})

    assert refused.error == (403, "AGE_VERIFICATION_REQUIRED")
    assert (accepted.status, api.service.balance(STORE)) == (201, 8)
    (session,) = await api.service.sessions()
    assert session.input.age_verified is True


async def test_paused_intake_is_refused(api: Api) -> None:
    """As in our own calls, and nothing is charged."""
    api.service.submission.is_paused = True

    refused = await create(api)

    assert refused.error == (503, "SERVICE_UNAVAILABLE")
    assert refused.headers["retry-after"] == "30"
    assert api.service.balance(STORE) == 9


async def test_errors_are_ours(api: Api) -> None:
    """No credits, no queue, too large, and the key of another request."""
    key = [("idempotency-key", "k")]
    assert (await create(api, headers=key)).status == 201
    replay = await create(api, headers=key)
    reused = await create(api, BODY | {"prompt": "another"}, headers=key)
    large = await create(api, {"image_urls": ["https://a.example/" + "x" * 70_000]})
    api.service.queue.faults.away.add("push")
    away = await create(api)
    poor = await create(api, owner=ANOTHER)

    assert (replay.status, replay.headers["idempotency-replayed"]) == (201, "true")
    assert reused.error == (422, "IDEMPOTENCY_KEY_REUSED")
    assert large.error == (413, "PAYLOAD_TOO_LARGE")
    assert away.error == (503, "SERVICE_UNAVAILABLE")
    assert poor.error == (402, "INSUFFICIENT_CREDITS")
    assert api.service.balance(STORE) == 8


async def test_status_of_a_queued_session(api: Api) -> None:
    """Every field of the original; what has no value is null."""
    created = await create(api, headers=[("x-request-id", "r-1")])

    data = (await api.get(STATUS.format(created.data["session_id"]), owner=STORE)).data

    created_at = data.pop("created_at")
    assert created_at.endswith("Z")
    assert data == {
        "session_id": created.data["session_id"],
        "status": "queued",
        "model_image_url": MODEL_URL,
        "outfit_image_url": OUTFIT_URL,
        "generated_image_url": None,
        "error_message": None,
        "credits_used": 1,
        "request_id": "r-1",
        "completed_at": None,
    }


async def test_status_of_final_sessions(api: Api) -> None:
    """A completed one has a link to its picture, a failed one a message for people."""
    done, failed = [UUID((await create(api)).data["session_id"]) for _ in range(2)]
    session = await api.service.claimed(done)
    picture = Picture(data=b"a picture", media_type="image/png")
    stored = await api.storage.save(session.object_prefix, picture)
    await api.service.repo.complete(done, attempt=1, picture=stored)
    await api.service.claimed(failed)
    await api.service.repo.fail(failed, FAILURE, attempt=1)

    completed = (await api.get(STATUS.format(done), owner=STORE)).data
    refused = (await api.get(STATUS.format(failed), owner=STORE)).data

    assert (completed["status"], refused["status"]) == ("completed", "failed")
    link = completed["generated_image_url"].removeprefix("http://127.0.0.1:8000")
    assert (await api.get(link, owner=None)).body == picture.data
    assert completed["completed_at"].endswith("Z")
    assert refused["error_message"] == FAILURE.message


async def test_sessions_of_others_do_not_exist(api: Api) -> None:
    session_id = (await create(api)).data["session_id"]

    for target in (session_id, uuid4(), "x"):
        answer = await api.get(STATUS.format(target), owner=ANOTHER)
        assert answer.error == (404, "NOT_FOUND")


async def test_balance(api: Api) -> None:
    """What was bought less what was spent. A refund is not spent; an unknown store has nothing."""
    session_id = (await create(api)).data["session_id"]
    await create(api)
    await api.cancel(session_id, owner=STORE)

    answer = await api.get(BALANCE, owner=STORE)
    nothing = await api.get(BALANCE, owner=ANOTHER)

    assert answer.json == {
        "data": {"balance": 8, "total_purchased": 9, "total_spent": 1},
        "error": None,
    }
    assert nothing.data == {"balance": 0, "total_purchased": 0, "total_spent": 0}


@pytest.mark.parametrize(
    ("origins", "domain"),
    [
        ((), None),
        (("https://shop.example", "https://a.example:8443"), "a.example"),
        (("https://a.example", "https://my.myshopify.com"), "my.myshopify.com"),
    ],
)
async def test_configuration(api: Api, origins: tuple[str, ...], domain: str | None) -> None:
    """The store pays: no other billing mode exists. The shop's domain is one of its origins."""
    await api.administration.stores.create(
        STORE.id, name="A shop", origins=origins, plan=Plan.DEFAULT, by=OPERATOR
    )

    answer = await api.get(CONFIG, owner=STORE)

    assert (answer.status, answer.data) == (
        200,
        {
            "store_id": STORE.id,
            "shop_domain": domain,
            "billing_mode": "absorb_mode",
            "retail_credit_price": None,
            "shopify_variant_id": None,
            "subscription_tier": None,
            "status": "active",
            "privacy_disclosure": DISCLOSURE,
        },
    )


async def test_configuration_shows_plan_and_suspension(api: Api) -> None:
    """A plan other than the default one is the tier."""
    account = api.service.accounts.balance_of(STORE)
    await api.administration.stores.create(STORE.id, name="A shop", by=OPERATOR)
    changed = replace(account, plan=Plan.GROWTH, suspended=True)
    api.service.accounts._accounts[STORE] = changed

    data = (await api.get(CONFIG, owner=STORE)).data

    assert (data["subscription_tier"], data["status"]) == ("growth", "suspended")


async def test_calls_are_for_stores_alone(api: Api) -> None:
    """A user's token is valid, and forbidden here."""
    await api.service.accounts.grant(USER, 1, note="test")

    answers = [
        await create(api, owner=USER),
        *[
            await api.get(target, owner=USER)
            for target in (STATUS.format(uuid4()), BALANCE, CONFIG)
        ],
    ]

    assert {answer.error for answer in answers} == {(403, "FORBIDDEN")}
    assert (await create(api, owner=None)).status == 401
    assert api.service.balance() == 1


def test_calls_are_documented_as_deprecated() -> None:
    """Under a tag of their own; no other call is deprecated."""
    deprecated = {
        (path, method): operation["tags"]
        for path, methods in Api().document["paths"].items()
        for method, operation in methods.items()
        if operation.get("deprecated")
    }

    assert deprecated == {
        (CREATE, "post"): ["Original"],
        (STATUS.format("{session_id}"), "get"): ["Original"],
        (BALANCE, "get"): ["Original"],
        (CONFIG, "get"): ["Original"],
    }
