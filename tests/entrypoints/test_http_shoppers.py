"""Shoppers: what a browser with a client token may do, and all that it may not."""

from datetime import timedelta
from typing import Any
from uuid import UUID, uuid4

import pytest

from domain.plans import AccountLimits, Plan, PlanRates
from domain.sessions import DEFAULT_PROMPT
from tests.support.clock import VirtualTimeLoop
from tests.support.examples import STORE, USAGE, USER
from tests.support.http import GENERATIONS, MAX_SHOPPER_UPLOADS, MAX_UPLOADS, UPLOADS, Answer, Api
from tests.support.images import A_PICTURE
from tests.support.shoppers import (
    MODEL,
    ORIGIN,
    OTHER_ORIGIN,
    OTHER_STORE,
    Browser,
    browser,
    create_token,
)

pytestmark = pytest.mark.anyio

STATS = f"{GENERATIONS}/stats"


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
async def api() -> Api:
    api = Api()
    for store in (STORE, OTHER_STORE):
        await api.service.accounts.grant(store, 100, note="test")
    await api.service.accounts.grant(USER, 100, note="test")
    return api


@pytest.fixture
async def anna(api: Api) -> Browser:
    return await browser(api)


async def store_s(api: Api, **fields: object) -> str:
    """A session that the store itself requested."""
    answer = await api.submit(owner=STORE, body={"model_image_url": MODEL} | fields)
    return str(answer.data["session_id"])


async def test_shopper_submits(api: Api, anna: Browser) -> None:
    """The store pays and is told nothing of its balance; the token says what is left."""
    answer = await anna.submit()

    assert answer.status == 202
    assert answer.data["credits_remaining"] is None
    assert answer.data["pictures_remaining"] == 4
    assert api.service.balance(STORE) == 99
    (session,) = await api.service.sessions()
    assert session.owner == STORE
    assert session.shopper is not None
    assert (session.shopper.id, str(session.shopper.token_id)) == ("anna", anna.token_id)


async def test_store_is_not_told_of_pictures(api: Api) -> None:
    """Its balance is what it has left."""
    answer = await api.submit(owner=STORE, body={"model_image_url": MODEL})

    assert (answer.data["credits_remaining"], answer.data["pictures_remaining"]) == (99, None)


async def test_token_is_used_up(api: Api) -> None:
    """403, and nothing is charged; another token of the shopper goes on."""
    page = await browser(api, pictures=2)
    for _ in range(2):
        await page.submitted()

    answer = await page.submit()

    assert answer.error == (403, "FORBIDDEN")
    assert answer.message == "The client token allows no further pictures"
    assert api.service.balance(STORE) == 98
    assert (await (await browser(api)).submit()).status == 202


async def test_refunds_cannot_be_looped(api: Api) -> None:
    """A cancelled picture may be requested again, until the token had three times as many
    submissions as it has pictures."""
    page = await browser(api, pictures=1)

    for _ in range(3):
        await page.cancel(await page.submitted())

    assert (await page.submit()).error == (403, "FORBIDDEN")
    assert api.service.balance(STORE) == 100


async def test_two_tokens_of_a_shopper_share_its_sessions(api: Api, anna: Browser) -> None:
    """Each sees, counts and cancels what the other requested."""
    again = await browser(api)
    first, second = await anna.submitted(), await again.submitted()

    seen = [
        (await page.get(f"{GENERATIONS}/{id_}")).status
        for page in (anna, again)
        for id_ in (first, second)
    ]
    listed = [set(await page.listed()) for page in (anna, again)]
    counts = [(await page.get(STATS)).data["queued"] for page in (anna, again)]
    cancelled = await again.cancel(first)

    assert seen == [200] * 4
    assert listed == [{first, second}] * 2
    assert counts == [2, 2]
    assert cancelled.data["error_code"] == "CANCELLED"


async def test_shopper_cancels_what_is_processed(api: Api, anna: Browser) -> None:
    """Its own sessions only: another shopper's is answered like an unknown id, and goes on."""
    ben = await browser(api, "ben")
    session_id = await anna.submitted()
    await api.service.claimed(UUID(session_id))

    refused, unknown = await ben.cancel(session_id), await ben.cancel(str(uuid4()))
    untouched = await anna.get(f"{GENERATIONS}/{session_id}")
    requested = await anna.cancel(session_id)

    assert (refused.status, refused.json) == (404, unknown.json)
    assert untouched.data["cancel_requested_at"] is None
    assert (requested.status, requested.data["status"]) == (202, "processing")


async def test_other_sessions_do_not_exist_for_a_shopper(api: Api, anna: Browser) -> None:
    """Those of other shoppers, of the store itself, of the shopper with the same id in another
    store, and of users: each is answered exactly like an unknown id, and stays as it was."""
    ben, elsewhere = await browser(api, "ben"), await browser(api, store=OTHER_STORE)
    user_s = await api.submit(owner=USER, body={"model_image_url": MODEL})
    others = [
        await ben.submitted(),
        await store_s(api),
        await elsewhere.submitted(),
        user_s.data["session_id"],
        str(uuid4()),
    ]

    reads = [await anna.get(f"{GENERATIONS}/{id_}") for id_ in others]
    cancels = [await anna.cancel(id_) for id_ in others]

    for answers in (reads, cancels):
        assert {answer.status for answer in answers} == {404}
        assert {answer.body for answer in answers} == {answers[0].body}
    assert await anna.listed() == []
    assert (await anna.get(STATS)).data["total"] == 0
    assert {session.status for session in await api.service.sessions()} == {"queued"}


async def test_store_sees_and_cancels_its_shoppers_sessions(api: Api, anna: Browser) -> None:
    """With the shopper's id."""
    session_id = await anna.submitted()

    seen = await api.get(f"{GENERATIONS}/{session_id}", owner=STORE)
    cancelled = await api.cancel(session_id, owner=STORE)

    assert seen.data["shopper_id"] == "anna"
    assert cancelled.status == 200


async def test_shopper_sees_nothing_of_the_store(api: Api, anna: Browser) -> None:
    """Neither prompt nor costs, in no call that returns a session; the store does."""
    session_id = await anna.submitted()
    session = await api.service.claimed(api.service.waiting()[0].session_id)
    picture = await api.storage.save(session.object_prefix, A_PICTURE)
    await api.service.repo.complete(session.id, attempt=1, picture=picture, usage=USAGE)
    cancelled = await anna.cancel(await anna.submitted())

    one = (await anna.get(f"{GENERATIONS}/{session_id}")).data
    items = (await anna.get(GENERATIONS)).data["items"]
    by_store = (await api.get(f"{GENERATIONS}/{session_id}", owner=STORE)).data

    hidden = ("prompt", "input_tokens", "output_tokens", "estimated_cost_usd", "shopper_id")
    for shown in (one, *items, cancelled.data):
        assert [shown[name] for name in hidden] == [None] * len(hidden)
    assert one["generated_image_url"] is not None
    assert [by_store[name] for name in hidden] == [
        DEFAULT_PROMPT,
        USAGE.input_tokens,
        USAGE.output_tokens,
        str(USAGE.estimated_cost_usd),
        "anna",
    ]


async def test_shopper_erases_its_own_sessions_only(api: Api, anna: Browser) -> None:
    """Those of others do not exist for it, and the answer shows nothing of the store."""
    ben = await browser(api, "ben")
    own, others = await anna.submitted(), [await ben.submitted(), await store_s(api)]
    for session_id in (own, *others):
        await api.cancel(session_id, owner=STORE)

    async def erase(session_id: str) -> Answer:
        return await anna.call("DELETE", f"{GENERATIONS}/{session_id}/picture", content_type=None)

    erased = await erase(own)
    refused = [await erase(session_id) for session_id in others]

    assert erased.status == 200
    assert [erased.data[name] for name in ("model_image_url", "shopper_id", "prompt")] == [None] * 3
    assert [answer.error for answer in refused] == [(404, "NOT_FOUND")] * 2


async def test_shopper_gives_no_prompt(api: Api, anna: Browser) -> None:
    """Only the store's server may: the store pays for what is drawn."""
    answer = await anna.submit(prompt="Something else entirely")

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message == "prompt: only stores may give a prompt of their own"
    assert api.service.balance(STORE) == 100


@pytest.mark.parametrize("shopper_id", ["anna", "ben"])
async def test_shopper_asks_for_no_shopper(api: Api, anna: Browser, shopper_id: str) -> None:
    """Not even for itself."""
    await (await browser(api, "ben")).submitted()

    answer = await anna.get(f"{GENERATIONS}?shopper_id={shopper_id}")

    assert answer.message == "shopper_id: only stores may give it"


@pytest.mark.parametrize("target", ["/api/v1/credits", "/api/v1/credits/ledger"])
async def test_shopper_sees_no_credits(anna: Browser, target: str) -> None:
    """The account is the store's."""
    assert (await anna.get(target)).error == (403, "FORBIDDEN")


@pytest.mark.parametrize(
    "origin", [OTHER_ORIGIN, "https://evil.example", "null", f"{ORIGIN}/", f"{ORIGIN}:443", ""]
)
async def test_token_is_for_its_own_origin(api: Api, anna: Browser, origin: str) -> None:
    """Not even for another one of the store's; and before any effect."""
    page = Browser(api=api, token=anna.token, token_id=anna.token_id, origin=origin)

    answers = [await page.submit(), await page.get(GENERATIONS), await page.upload()]

    assert [answer.error for answer in answers] == [(403, "DOMAIN_MISMATCH")] * 3
    assert await api.service.sessions() == []


async def test_token_is_for_browsers(api: Api, anna: Browser) -> None:
    """Without an Origin it is refused: a stolen token is of no use to a script that is honest."""
    page = Browser(api=api, token=anna.token, token_id=anna.token_id, origin=None)

    assert (await page.submit()).error == (403, "DOMAIN_MISMATCH")
    assert (await page.get(GENERATIONS)).error == (403, "DOMAIN_MISMATCH")


async def test_token_expires_while_it_is_used(api: Api) -> None:
    """Everything is 401 from then on; the sessions stay, and another token shows them."""
    page = await browser(api, lifetime_seconds=60)
    session_id = await page.submitted()
    api.service.clock.advance(timedelta(seconds=59))
    before = await page.get(f"{GENERATIONS}/{session_id}")
    api.service.clock.advance(timedelta(seconds=1))

    answers = [
        await page.submit(),
        await page.get(f"{GENERATIONS}/{session_id}"),
        await page.cancel(session_id),
        await page.upload(),
    ]

    assert before.status == 200
    assert [answer.error for answer in answers] == [(401, "INVALID_TOKEN")] * 4
    assert answers[0].message == "The client token has expired"
    assert answers[0].headers["www-authenticate"] == "Bearer"
    assert await (await browser(api)).listed() == [session_id]


@pytest.mark.parametrize(
    "change",
    [
        lambda token: token[:-1],
        lambda token: token + "0",
        str.upper,
        lambda token: "wc_" + token[3:].upper(),
        lambda token: token[3:],
        lambda _: "wc_",
        lambda token: token.replace("wc_", "wk_"),
        lambda token: token.replace("wc_", "wc-"),
        lambda _: "wc_" + "0" * 32,
    ],
)
async def test_changed_token_is_unknown(api: Api, change: object) -> None:
    """Truncated, longer, in upper case, with another prefix."""
    page = await browser(api, "anna-b")
    token = change(page.token)  # type: ignore[operator]
    changed = Browser(api=api, token=token, token_id=page.token_id)

    answer = await changed.submit()

    assert answer.status == 401
    assert api.service.balance(STORE) == 100


async def test_removed_origin_ends_its_tokens(api: Api, anna: Browser) -> None:
    """The store no longer names the page."""
    api.service.origins -= {ORIGIN}
    mobile = await create_token(api, origin=OTHER_ORIGIN)

    assert (await anna.submit()).error == (401, "INVALID_TOKEN")
    assert mobile.status == 201


async def test_idempotency_keys_are_apart(api: Api, anna: Browser) -> None:
    """The same key of the store, of two shoppers, and of the shopper with the same id in another
    store: four sessions, of which each caller gets its own again."""
    ben, elsewhere = await browser(api, "ben"), await browser(api, store=OTHER_STORE)

    async def submit_all() -> list[str]:
        by_store = await _by_store(api, "order-1")
        answers = [by_store, *[await page.submit(key="order-1") for page in (anna, ben, elsewhere)]]
        assert {answer.status for answer in answers} == {202}
        return [answer.data["session_id"] for answer in answers]

    ids = await submit_all()

    assert len(set(ids)) == 4
    assert await submit_all() == ids


async def test_key_of_another_caller_is_worth_nothing(api: Api, anna: Browser) -> None:
    """Also spelled as it is stored, or as part of that: nobody gets another one's session."""
    ben = await browser(api, "ben", pictures=20)
    theirs = {await anna.submitted(key="order-1"), await anna.submitted(key="order-2")}
    stored = [str(session.idempotency_key) for session in await api.service.sessions()]
    spellings = [
        spelling
        for key in stored
        for spelling in (key, key.replace(" ", ""), key.replace(" ", ":"), key.split(" ")[1])
    ]

    answers = [await _by_store(api, key) for key in spellings]
    answers += [await ben.submit(key=key) for key in spellings]

    assert len(spellings) == 8
    assert not any(session_id in str(answer.body) for answer in answers for session_id in theirs)
    assert not any("idempotency-replayed" in answer.headers for answer in answers)


async def _by_store(api: Api, key: str) -> Answer:
    """The store's own request with this key."""
    body, headers = {"model_image_url": MODEL}, [("idempotency-key", key)]
    return await api.submit(owner=STORE, body=body, headers=headers)


async def test_shopper_replays(api: Api, anna: Browser) -> None:
    """Also with another token, with one that has expired since, and with one that is used up: one
    session and one debit. The answer says nothing of the store's balance."""
    single = await browser(api, pictures=1)
    first = await single.submit(key="k" * 255)

    answers = [await single.submit(key="k" * 255), await anna.submit(key="k" * 255)]

    for answer in answers:
        assert answer.status == 202
        assert answer.headers["idempotency-replayed"] == "true"
        assert answer.data["session_id"] == first.data["session_id"]
        assert answer.data["credits_remaining"] is None
    assert api.service.balance(STORE) == 99


async def test_key_of_another_request(anna: Browser) -> None:
    """422, as for all callers."""
    await anna.submitted(key="order-1")

    answer = await anna.submit(key="order-1", outfit_image_url=MODEL)

    assert answer.error == (422, "IDEMPOTENCY_KEY_REUSED")


@pytest.mark.parametrize("key", ["anna order-1", "\xe4", "", "k" * 256])
async def test_malformed_key(api: Api, anna: Browser, key: str) -> None:
    """A space cannot be sent: it parts the shopper from the key where that is kept."""
    assert (await anna.submit(key=key)).error == (400, "VALIDATION_ERROR")
    assert (await _by_store(api, key)).error == (400, "VALIDATION_ERROR")


async def test_shopper_uploads(anna: Browser) -> None:
    """Into its own folder, which does not show its id; the store's own uploads are elsewhere."""
    offer = (await anna.upload()).data

    assert f"/b2b/{STORE.id}/shopper-" in offer["image_url"]
    assert "anna" not in offer["image_url"]


async def test_shopper_has_a_share_of_the_uploads(api: Api, anna: Browser) -> None:
    """Per day, whatever the token; all shoppers together have what the store has."""
    ben, again = await browser(api, "ben"), await browser(api)
    assert MAX_SHOPPER_UPLOADS == MAX_UPLOADS - 1
    for page in (anna, again):
        await _send(api, (await page.upload()).data["upload_url"])

    refused = [await anna.upload(), await again.upload()]
    last = await ben.upload()
    await _send(api, last.data["upload_url"])
    of_all = [
        await ben.upload(),
        await api.call("POST", UPLOADS, owner=STORE, body={"content_type": "image/jpeg"}),
    ]

    assert [answer.error for answer in refused] == [(429, "RATE_LIMIT_EXCEEDED")] * 2
    assert [answer.error for answer in of_all] == [(429, "RATE_LIMIT_EXCEEDED")] * 2


async def _send(api: Api, url: str) -> None:
    """A picture that is stored."""
    path = url.partition("/uploads/")[2].partition("?")[0]
    await api.storage.keep_upload(f"uploads/{path}", b"picture")


async def test_used_up_token_uploads_nothing(api: Api) -> None:
    """The picture could not be used."""
    page = await browser(api, pictures=1)
    await page.submitted()

    answer = await page.upload()

    assert answer.error == (403, "FORBIDDEN")


@pytest.mark.parametrize("signed", [True, False])
@pytest.mark.parametrize("field", ["model_image_url", "outfit_image_url", "accessories[0].url"])
async def test_upload_of_another_shopper_is_not_used(
    api: Api, anna: Browser, field: str, *, signed: bool
) -> None:
    """Even with its whole link: workers read a store's uploads without looking at the signature.
    The store's own uploads may be used, and the store may use its shoppers'."""
    ben = await browser(api, "ben")
    theirs = (await ben.upload()).data["image_url"]
    theirs = theirs if signed else theirs.partition("?")[0]
    offer = await api.call("POST", UPLOADS, owner=STORE, body={"content_type": "image/jpeg"})
    picture = theirs if field != "accessories[0].url" else [{"type": "hat", "url": theirs}]

    fields: dict[str, Any] = {field.partition("[")[0]: picture}

    refused = await anna.submit(**fields)
    accepted = [
        await ben.submit(model_image_url=theirs),
        await anna.submit(outfit_image_url=offer.data["image_url"]),
        await api.submit(owner=STORE, body={"model_image_url": theirs}),
    ]

    assert refused.error == (400, "VALIDATION_ERROR")
    assert refused.message == f"{field}: is not an upload of this shopper"
    assert [answer.status for answer in accepted] == [202] * 3


async def test_rates_of_the_store_are_not_shown(api: Api, anna: Browser) -> None:
    """They would tell how busy the shop is; they hold all the same."""
    rates = PlanRates(submissions_per_minute=2, submissions_per_hour=None)
    api.service.repo._limits._limits = AccountLimits(rates={Plan.DEFAULT: rates})

    by_store = await api.submit(owner=STORE, body={"model_image_url": MODEL})
    by_shopper, limited = await anna.submit(), await anna.submit()

    assert "ratelimit" in by_store.headers
    assert not any("ratelimit" in name for name in by_shopper.headers)
    assert limited.error == (429, "RATE_LIMIT_EXCEEDED")


async def test_upload_is_used_in_a_request(api: Api, anna: Browser) -> None:
    """The link of a shopper's upload is one of ours."""
    offer = (await anna.upload()).data
    await _send(api, offer["upload_url"])

    answer = await anna.submit(model_image_url=offer["image_url"])

    assert answer.status == 202
