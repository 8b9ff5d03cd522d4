"""Client tokens: a store's server creates, lists and revokes them."""

from datetime import timedelta
from typing import Any
from uuid import uuid4

import pytest

from adapters.auth.api_keys import key_sha256
from domain.client_tokens import MAX_LIVE
from domain.credits import Owner
from tests.support.clock import START, VirtualTimeLoop
from tests.support.examples import STORE, USER
from tests.support.http import GENERATIONS, Answer, Api
from tests.support.shoppers import (
    CLIENT_TOKENS,
    MODEL,
    ORIGIN,
    OTHER_ORIGIN,
    OTHER_STORE,
    SHOPPERS,
    browser,
    create_token,
)

pytestmark = pytest.mark.anyio


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
async def api() -> Api:
    api = Api()
    for store in (STORE, OTHER_STORE):
        await api.service.accounts.grant(store, 100, note="test")
    return api


def z(seconds: int) -> str:
    return (START + timedelta(seconds=seconds)).isoformat().replace("+00:00", "Z")


async def tokens_of(api: Api, shopper_id: str, store: Owner = STORE) -> list[dict[str, object]]:
    answer = await api.get(f"{CLIENT_TOKENS}?shopper_id={shopper_id}", owner=store)
    assert answer.status == 200
    items: list[dict[str, object]] = answer.data["items"]
    return items


async def revoke(api: Api, token_id: object, store: Owner = STORE) -> Answer:
    return await api.call("DELETE", f"{CLIENT_TOKENS}/{token_id}", owner=store, content_type=None)


async def test_token_is_created(api: Api) -> None:
    """With all that was asked for. It is shown once, and only its hash is kept."""
    answer = await create_token(api, pictures=3, lifetime_seconds=600)

    data = answer.data
    token = data["client_token"]
    assert answer.status == 201
    assert data == {
        "client_token": token,
        "token_id": data["token_id"],
        "shopper_id": "anna",
        "origin": ORIGIN,
        "pictures": 3,
        "expires_at": z(600),
    }
    (kept,) = await api.service.tokens.live(STORE, shopper_id="anna", limit=10)
    assert kept.token_sha256 == key_sha256(token)
    assert token not in repr(kept)


async def test_token_has_defaults(api: Api) -> None:
    """One picture, within a quarter of an hour."""
    answer = await create_token(api)

    assert (answer.data["pictures"], answer.data["expires_at"]) == (1, z(900))


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shopper_id", ""),
        ("shopper_id", "a" * 129),
        ("shopper_id", "anna@shop.example"),
        ("shopper_id", "anna b"),
        ("shopper_id", "anna\n"),
        ("shopper_id", "../anna"),
        ("shopper_id", "ann\N{LATIN SMALL LETTER A WITH DIAERESIS}"),
        ("shopper_id", None),
        ("origin", "https://evil.example"),
        ("origin", f"{ORIGIN}/"),
        ("origin", ORIGIN.upper()),
        ("origin", "null"),
        ("origin", "*"),
        ("origin", ""),
        ("lifetime_seconds", 59),
        ("lifetime_seconds", 3_601),
        ("lifetime_seconds", 1.5),
        ("pictures", 0),
        ("pictures", 1_001),
        ("pictures", -1),
        ("pictures", 2**70),
        ("colour", "red"),
    ],
)
async def test_invalid_request_names_the_field(api: Api, field: str, value: object) -> None:
    """And creates nothing."""
    fields: dict[str, Any] = {field: value}
    answer = await create_token(api, **fields)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith(f"{field}: ")
    assert await api.service.tokens.live(STORE, shopper_id=None, limit=10) == []


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("shopper_id", "a" * 128),
        ("shopper_id", "gid:Customer_7.x-1"),
        ("lifetime_seconds", 60),
        ("lifetime_seconds", 3_600),
        ("pictures", 1_000),
        ("origin", OTHER_ORIGIN),
    ],
)
async def test_values_within_the_limits(api: Api, field: str, value: object) -> None:
    """The limits themselves are allowed."""
    fields: dict[str, Any] = {field: value}

    assert (await create_token(api, **fields)).status == 201


@pytest.mark.parametrize("field", ["shopper_id", "origin"])
async def test_field_is_required(api: Api, field: str) -> None:
    """The others have defaults."""
    body = {"shopper_id": "anna", "origin": ORIGIN}
    del body[field]

    answer = await api.call("POST", CLIENT_TOKENS, owner=STORE, body=body)

    assert answer.message == f"{field}: is required"


async def test_live_tokens_of_a_shopper_are_bounded(api: Api) -> None:
    """Expired and revoked ones do not count, nor do other shoppers'."""
    for _ in range(MAX_LIVE - 1):
        await create_token(api, lifetime_seconds=60)
    last = await create_token(api, lifetime_seconds=120)

    refused = await create_token(api)
    others = await create_token(api, shopper_id="ben")
    await revoke(api, last.data["token_id"])
    after_revocation = await create_token(api)
    refused_again = await create_token(api)
    api.service.clock.advance(timedelta(seconds=60))
    after_expiry = await create_token(api)

    assert refused.error == refused_again.error == (429, "TOO_MANY_ACTIVE")
    assert refused.headers["retry-after"]
    answers = (others, after_revocation, after_expiry)
    assert [answer.status for answer in answers] == [201, 201, 201]


async def test_live_tokens_are_listed_newest_first(api: Api) -> None:
    """Of one shopper of the store, without the tokens themselves."""
    expiring = await browser(api, lifetime_seconds=60)
    api.service.clock.advance(timedelta(seconds=60))
    older = await browser(api, pictures=2)
    api.service.clock.advance(timedelta(seconds=1))
    newer = await browser(api)
    revoked = await browser(api)
    await revoke(api, revoked.token_id)
    await browser(api, "ben")
    await browser(api, store=OTHER_STORE)

    listed = await tokens_of(api, "anna")

    assert [token["token_id"] for token in listed] == [newer.token_id, older.token_id]
    assert listed[1] == {
        "token_id": older.token_id,
        "shopper_id": "anna",
        "origin": ORIGIN,
        "pictures": 2,
        "pictures_used": 0,
        "submissions": 0,
        "pictures_left": 2,
        "created_at": z(60),
        "expires_at": z(960),
    }
    assert expiring.token not in str(listed)


async def test_pictures_are_counted(api: Api) -> None:
    """A refund gives the picture back, but not the submission; the balance is the store's."""
    page = await browser(api, pictures=2)
    await page.submitted()
    await page.cancel(await page.submitted())

    (listed,) = await tokens_of(api, "anna")

    counted = (listed["pictures_used"], listed["submissions"], listed["pictures_left"])
    assert counted == (1, 2, 1)
    assert api.service.balance(STORE) == 99


async def test_token_is_revoked(api: Api) -> None:
    """At once here, where nothing is cached; again with the same answer."""
    page, kept = await browser(api), await browser(api)

    answers = [await revoke(api, page.token_id) for _ in range(2)]

    assert [answer.status for answer in answers] == [200, 200]
    assert answers[0].data == answers[1].data == {"token_id": page.token_id, "revoked": True}
    assert (await page.submit()).error == (401, "INVALID_TOKEN")
    assert (await kept.submit()).status == 202


async def test_other_stores_token_does_not_exist(api: Api) -> None:
    """Exactly like an unknown one, and it keeps working."""
    page = await browser(api)

    answers = [
        await revoke(api, page.token_id, OTHER_STORE),
        await revoke(api, uuid4(), OTHER_STORE),
        await revoke(api, "token", OTHER_STORE),
    ]

    assert {answer.body for answer in answers} == {answers[0].body}
    assert answers[0].error == (404, "NOT_FOUND")
    assert (await page.submit()).status == 202
    assert await tokens_of(api, "anna", OTHER_STORE) == []


async def test_sessions_of_a_shopper_are_listed_and_counted(api: Api) -> None:
    """For its store alone; other shoppers' and the store's own are not among them."""
    first, second, ben = (
        await browser(api),
        await browser(api, pictures=2),
        await browser(api, "ben"),
    )
    await api.submit(owner=STORE, body={"model_image_url": MODEL})
    sessions = [await first.submitted(), await second.submitted()]
    cancelled = await first.submitted()
    await first.cancel(cancelled)
    await ben.submitted()

    listed = await api.get(f"{GENERATIONS}?shopper_id=anna&limit=50", owner=STORE)
    numbers = await api.get(f"{SHOPPERS}/anna", owner=STORE)
    elsewhere = await api.get(f"{GENERATIONS}?shopper_id=anna", owner=OTHER_STORE)

    items = listed.data["items"]
    assert {item["session_id"] for item in items} == {*sessions, cancelled}
    assert {item["shopper_id"] for item in items} == {"anna"}
    assert numbers.data == {
        "shopper_id": "anna",
        "sessions": {
            "total": 3, "queued": 2, "processing": 0, "completed": 0, "failed": 1, "active": 2,
        },
        "live_tokens": 2,
        "pictures_left": 4 + 1,
    }  # fmt: skip
    assert elsewhere.data["items"] == []


async def test_unknown_shopper_has_no_numbers(api: Api) -> None:
    """Its id is the store's own, so it is neither known nor unknown to us."""
    await (await browser(api)).submitted()

    answers = [
        await api.get(f"{SHOPPERS}/nobody", owner=STORE),
        await api.get(f"{SHOPPERS}/anna", owner=OTHER_STORE),
    ]

    for answer in answers:
        numbers = dict(answer.data)
        assert numbers.pop("sessions")["total"] == 0
        assert (numbers["live_tokens"], numbers["pictures_left"]) == (0, 0)


@pytest.mark.parametrize(
    "target",
    [
        f"{CLIENT_TOKENS}?shopper_id=anna%40shop.example",
        f"{CLIENT_TOKENS}?shopper_id=",
        CLIENT_TOKENS,
        f"{SHOPPERS}/anna%40shop.example",
        f"{GENERATIONS}?shopper_id=anna%40shop.example",
    ],
)
async def test_invalid_shopper_id(api: Api, target: str) -> None:
    """400, which names it."""
    answer = await api.get(target, owner=STORE)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert "shopper_id" in answer.message


async def test_users_cannot_ask_for_a_shopper(api: Api) -> None:
    """They have none."""
    answer = await api.get(f"{GENERATIONS}?shopper_id=anna", owner=USER)

    assert answer.message == "shopper_id: only stores may give it"


@pytest.mark.parametrize(
    ("method", "target"),
    [
        ("POST", CLIENT_TOKENS),
        ("GET", f"{CLIENT_TOKENS}?shopper_id=anna"),
        ("DELETE", f"{CLIENT_TOKENS}/018f6b9e-7c3a-7d21-9a40-3f0c5f6d2b11"),
        ("GET", f"{SHOPPERS}/anna"),
    ],
)
async def test_only_stores_have_client_tokens(api: Api, method: str, target: str) -> None:
    """Neither users nor shoppers: 403, whatever they send."""
    body = {"shopper_id": "anna", "origin": ORIGIN} if method == "POST" else b""
    page = await browser(api)

    by_user = await api.call(method, target, owner=USER, body=body)
    by_shopper = await page.call(method, target, body=body)

    assert by_user.error == by_shopper.error == (403, "FORBIDDEN")


async def test_database_fails(api: Api) -> None:
    """503, and not a 401 that would make a page give its token up."""
    page = await browser(api)
    api.service.tokens.faults.away |= {"find", "add"}

    answers = [await page.submit(), await create_token(api)]

    assert [answer.error for answer in answers] == [(503, "SERVICE_UNAVAILABLE")] * 2
