"""Administration over HTTP: every route, its scope, its idempotency and its entry in the log."""

from typing import Any
from uuid import uuid4

import pytest

from adapters.auth.api_keys import key_sha256
from domain.callers import Caller, Scope
from domain.credits import Channel, Owner
from domain.plans import Plan
from tests.support.examples import OPERATOR, OTHER, STORE, USER
from tests.support.http import Answer, Api

pytestmark = pytest.mark.anyio

ADMIN = "/api/v1/admin"
UNKNOWN_STORE = Owner(channel=Channel.B2B, id="store-l")
ACCOUNT = f"{ADMIN}/accounts/b2c/{USER.id}"
KEYS = f"{ADMIN}/stores/{STORE.id}/keys"


class Billing:
    """A service with some scopes, of an API with one store."""

    def __init__(self, api: Api, token: str) -> None:
        self.api = api
        self._headers = [("authorization", f"Bearer {token}")]

    async def call(
        self, method: str, target: str, body: object = b"", key: str | None = None
    ) -> Answer:
        headers = [*self._headers, *([] if key is None else [("idempotency-key", key)])]
        content_type = None if body == b"" else "application/json"
        return await self.api.call(
            method, target, owner=None, headers=headers, body=body, content_type=content_type
        )

    async def post(self, path: str, key: Any = None, **body: Any) -> Answer:
        return await self.call("POST", f"{ADMIN}/{path}", body, key)

    @property
    def actions(self) -> list[tuple[str, str]]:
        """Action and subject of all entries of the log, but for the service keys'."""
        return [
            (entry.action, entry.subject)
            for entry in self.api.service.audit_log.entries
            if not entry.action.startswith("service.")
        ]


async def service(*scopes: Scope) -> Billing:
    api = Api()
    await api.administration.stores.ensure(STORE)
    return Billing(api, await api.service_key(*scopes))


@pytest.fixture
async def billing() -> Billing:
    return await service(*Scope)


def a_grant(owner: Owner = USER, **changes: object) -> dict[str, object]:
    values = {"channel": owner.channel, "owner_id": owner.id, "amount": 5, "reference": "i-1"}
    return {**values, **changes}


async def test_grant(billing: Billing) -> None:
    """Once per reference. The response has the entry and the account as it is now."""
    first = await billing.post("grants", **a_grant(note="July"))
    await billing.post("grants", **a_grant(reference="i-2"))
    again = await billing.post("grants", **a_grant(note="July"))

    assert (first.status, again.status) == (200, 200)
    assert first.data["entry"] == again.data["entry"]
    entry = first.data["entry"]
    assert (entry["kind"], entry["amount"], entry["note"]) == ("grant", 5, "July")
    assert (first.data["replayed"], again.data["replayed"]) == (False, True)
    assert (first.data["account"]["balance"], again.data["account"]["balance"]) == (5, 10)
    assert entry["reference"] == "i-1"
    assert billing.actions == [("credits.grant", str(USER))] * 2


async def test_grant_with_a_used_reference(billing: Billing) -> None:
    """422 for another amount or owner, and nothing is booked."""
    await billing.post("grants", **a_grant())

    answers = [
        await billing.post("grants", **a_grant(**changes))
        for changes in ({"amount": 6}, {"owner_id": OTHER.id})
    ]

    assert [answer.error for answer in answers] == [(422, "IDEMPOTENCY_KEY_REUSED")] * 2
    assert [billing.api.service.balance(owner) for owner in (USER, OTHER)] == [5, 0]


async def test_adjustment(billing: Billing) -> None:
    """Once per reference; the reason is in the owner's ledger and in the log."""
    await billing.post("grants", **a_grant())
    body = a_grant(amount=3, reference="i-2", reason="a mistake")
    first = await billing.post("adjustments", **body)
    again = await billing.post("adjustments", **body)
    own = await billing.api.get("/api/v1/credits/ledger")

    assert (first.status, first.data["replayed"], again.data["replayed"]) == (200, False, True)
    assert first.data["account"] == {
        "channel": "b2c",
        "owner_id": USER.id,
        "balance": 2,
        "total_granted": 5,
        "total_debited": 0,
        "total_refunded": 0,
        "total_adjusted": -3,
        "plan": "default",
        "suspended": False,
    }
    assert {**own.data["items"][0], "reference": "i-2"} == first.data["entry"]
    assert own.data["items"][0]["note"] == "a mistake"
    last = billing.api.service.audit_log.entries[-1]
    assert (last.actor, last.reason) == ("service:billing", "a mistake")


async def test_adjustment_above_the_balance(billing: Billing) -> None:
    """409 with what is left; nothing is taken."""
    await billing.post("grants", **a_grant())

    answer = await billing.post(
        "adjustments", **a_grant(amount=6, reference="i-2", reason="a mistake")
    )

    assert answer.error == (409, "CONFLICT")
    assert answer.message == "Only 5 credit(s) are left; nothing was taken"
    assert billing.api.service.balance(USER) == 5


SHOP = {"id": "corner-shop", "name": "Corner Shop", "origins": ["HTTPS://Shop.example:443"]}


async def test_store_is_created_once(billing: Billing) -> None:
    """201, then 200 with the same store; another one is a 409."""
    first = await billing.post("stores", **SHOP, plan="growth")
    again = await billing.post("stores", **SHOP, plan="growth")
    other = await billing.post("stores", **SHOP)
    read = await billing.call("GET", f"{ADMIN}/stores/corner-shop")

    assert (first.status, again.status, other.error) == (201, 200, (409, "CONFLICT"))
    assert first.data == again.data == read.data
    assert {**first.data, "created_at": ""} == {
        "id": "corner-shop",
        "name": "Corner Shop",
        "origins": ["https://shop.example"],
        "plan": "growth",
        "created_at": "",
    }
    assert billing.actions == [("store.create", "b2b:corner-shop")]


async def test_store_is_changed(billing: Billing) -> None:
    """What the body does not name stays. Once more changes nothing."""
    path = f"{ADMIN}/stores/corner-shop"
    await billing.post("stores", **SHOP)
    named = await billing.call("PATCH", path, {"name": "Shop", "reason": "they asked"})
    again = await billing.call("PATCH", path, {"name": "Shop"})
    emptied = await billing.call("PATCH", path, {"origins": [], "plan": "scale"})

    assert (named.status, named.data["name"], named.data["origins"]) == (
        200, "Shop", ["https://shop.example"]
    )  # fmt: skip
    assert again.data == named.data
    assert (emptied.data["name"], emptied.data["origins"], emptied.data["plan"]) == (
        "Shop", [], "scale"
    )  # fmt: skip
    assert [action for action, _ in billing.actions] == ["store.create", *["store.change"] * 2]


async def test_key_is_shown_once(billing: Billing) -> None:
    """It works; the repetition and every listing have its record without it."""
    first = await billing.post(f"stores/{STORE.id}/keys", "k-1", label="till")
    again = await billing.post(f"stores/{STORE.id}/keys", "k-1", label="till")
    listed = await billing.call("GET", KEYS)

    key = first.data["key"]
    record = {name: value for name, value in first.data.items() if name != "key"}
    assert (first.status, again.status) == (201, 200)
    assert again.data == {**record, "key": None}
    assert listed.data == {"items": [record]}
    assert record["prefix"] == key[:9]
    assert record["store_id"] == STORE.id
    assert await billing.api.keys.caller_of(key_sha256(key)) == Caller(owner=STORE)
    assert key.encode() not in again.body + listed.body


async def test_key_needs_an_idempotency_key(billing: Billing) -> None:
    """A lost response would otherwise leave a key that nobody knows."""
    answers = [
        await billing.post(f"stores/{STORE.id}/keys", key, label="till")
        for key in (None, "", "a b")
    ]
    await billing.post(f"stores/{STORE.id}/keys", "k-1", label="till")
    reused = await billing.post(f"stores/{STORE.id}/keys", "k-1", label="another")

    assert [answer.error for answer in answers] == [(400, "VALIDATION_ERROR")] * 3
    assert all(answer.message.startswith("Idempotency-Key: ") for answer in answers)
    assert reused.error == (422, "IDEMPOTENCY_KEY_REUSED")


async def test_key_is_revoked(billing: Billing) -> None:
    """As often as it is asked; an unknown key is a 404."""
    created = await billing.post(f"stores/{STORE.id}/keys", "k-1")
    path = f"{ADMIN}/keys/{created.data['id']}"
    first = await billing.call("DELETE", path)
    again = await billing.call("DELETE", path)
    unknown = [
        await billing.call("DELETE", f"{ADMIN}/keys/{key_id}") for key_id in (uuid4(), "wk_1")
    ]

    assert (first.status, again.status) == (200, 200)
    assert first.data == again.data
    assert first.data["revoked_at"] is not None
    assert await billing.api.keys.caller_of(key_sha256(created.data["key"])) is None
    assert [answer.error for answer in unknown] == [(404, "NOT_FOUND")] * 2
    assert [action for action, _ in billing.actions] == ["key.create", "key.revoke"]


async def test_account_is_read(billing: Billing) -> None:
    """A user without one has a balance of 0; an id in another form is the same user."""
    empty = await billing.call("GET", ACCOUNT)
    await billing.post("grants", **a_grant())
    full = await billing.call("GET", ACCOUNT.replace(USER.id, USER.id.upper()))

    assert (empty.status, empty.data["balance"]) == (200, 0)
    assert (full.data["owner_id"], full.data["balance"]) == (USER.id, 5)


async def test_ledger_is_read_in_pages(billing: Billing) -> None:
    """The same items as the owner's own, with their references."""
    for number in range(3):
        await billing.post("grants", **a_grant(reference=f"i-{number}"))

    first = await billing.call("GET", f"{ACCOUNT}/ledger?limit=2")
    cursor = first.data["next_cursor"]
    second = await billing.call("GET", f"{ACCOUNT}/ledger?limit=2&cursor={cursor}")
    own = await billing.api.get("/api/v1/credits/ledger")

    items = [*first.data["items"], *second.data["items"]]
    assert [item.pop("reference") for item in items] == ["i-2", "i-1", "i-0"]
    assert items == own.data["items"]
    assert second.data["next_cursor"] is None


async def test_owner_is_suspended_and_resumed(billing: Billing) -> None:
    """Meanwhile it can upload nothing. Repetitions change nothing."""
    await billing.post("grants", **a_grant())
    path = f"accounts/b2c/{USER.id}"
    suspended = [await billing.post(f"{path}/suspend", reason="abuse") for _ in range(2)]
    upload = await billing.api.call("POST", "/api/v1/uploads", body={"content_type": "image/png"})
    resumed = [await billing.post(f"{path}/resume", reason="paid") for _ in range(2)]
    after = await billing.api.call("POST", "/api/v1/uploads", body={"content_type": "image/png"})

    assert [answer.data["suspended"] for answer in (*suspended, *resumed)] == [True] * 2 + [
        False
    ] * 2
    assert upload.error == (403, "FORBIDDEN")
    assert after.status == 201
    assert billing.actions[1:] == [("owner.suspend", str(USER)), ("owner.resume", str(USER))]


async def test_plan_of_an_owner(billing: Billing) -> None:
    """Set and read."""
    answer = await billing.call("PUT", f"{ACCOUNT}/plan", {"plan": "scale", "reason": "a contract"})
    read = await billing.call("GET", ACCOUNT)

    assert (answer.status, answer.data["plan"]) == (200, Plan.SCALE)
    assert read.data == answer.data
    assert billing.actions == [("owner.plan", str(USER))]


def a_call(method: str, path: str, scope: Scope, body: object = b"") -> Any:
    return pytest.param(method, path, scope, body, id=f"{method} {path}")


def of(owner: Owner) -> str:
    return f"{ADMIN}/accounts/{owner.channel}/{owner.id}"


WHY = {"reason": "a ticket"}
KEY_ID = "0198c0de-0000-7000-8000-000000000001"
CALLS = [
    a_call("POST", f"{ADMIN}/grants", Scope.GRANTS, a_grant(UNKNOWN_STORE)),
    a_call("POST", f"{ADMIN}/adjustments", Scope.GRANTS, a_grant(UNKNOWN_STORE, **WHY)),
    a_call("POST", f"{ADMIN}/stores", Scope.STORES, SHOP),
    a_call("GET", f"{ADMIN}/stores/{UNKNOWN_STORE.id}", Scope.READ),
    a_call("PATCH", f"{ADMIN}/stores/{UNKNOWN_STORE.id}", Scope.STORES, {"name": "x"}),
    a_call("POST", f"{ADMIN}/stores/{UNKNOWN_STORE.id}/keys", Scope.KEYS, {"label": "x"}),
    a_call("GET", f"{ADMIN}/stores/{UNKNOWN_STORE.id}/keys", Scope.READ),
    a_call("DELETE", f"{ADMIN}/keys/{KEY_ID}", Scope.KEYS),
    a_call("GET", of(UNKNOWN_STORE), Scope.READ),
    a_call("GET", f"{of(UNKNOWN_STORE)}/ledger", Scope.READ),
    a_call("POST", f"{of(UNKNOWN_STORE)}/suspend", Scope.STORES, WHY),
    a_call("POST", f"{of(UNKNOWN_STORE)}/resume", Scope.STORES, WHY),
    a_call("PUT", f"{of(UNKNOWN_STORE)}/plan", Scope.STORES, {"plan": "scale"}),
]
every_call = pytest.mark.parametrize(("method", "path", "scope", "body"), CALLS)


def test_every_route_is_called() -> None:
    """A new one cannot be forgotten above."""
    documented = {
        (method.upper(), path.count("/"))
        for path, methods in Api().document["paths"].items()
        for method in methods
        if path.startswith(ADMIN)
    }

    assert {(call.values[0], str(call.values[1]).count("/")) for call in CALLS} == documented
    assert len(CALLS) == 13


@every_call
async def test_only_the_scope_allows_a_call(
    method: str, path: str, scope: Scope, body: object
) -> None:
    """All other scopes together do not: 403, and nothing is done."""
    without = await service(*(other for other in Scope if other is not scope))
    with_it = await service(scope)

    refused = await without.call(method, path, body, "k-1")
    allowed = await with_it.call(method, path, body, "k-1")

    assert refused.error == (403, "FORBIDDEN")
    assert refused.message == f"This service key lacks the scope {scope}"
    assert without.actions == []
    assert allowed.status in {201, 404}


@every_call
@pytest.mark.parametrize("owner", [USER, STORE])
async def test_users_and_stores_may_not_administrate(
    owner: Owner, method: str, path: str, scope: Scope, body: object
) -> None:
    """403 for both, whatever the call."""
    del scope
    api = Api()

    answer = await api.call(method, path, owner=owner, body=body)

    assert answer.error == (403, "FORBIDDEN")
    assert api.service.audit_log.entries == []


@every_call
async def test_unknown_store(
    billing: Billing, method: str, path: str, scope: Scope, body: object
) -> None:
    """404 names the store that may be meant, and nothing is done."""
    del scope
    if path in {f"{ADMIN}/stores", f"{ADMIN}/keys/{KEY_ID}"}:
        return

    answer = await billing.call(method, path, body, "k-1")

    assert answer.error == (404, "NOT_FOUND")
    assert answer.message == "No store has the id store-l; similar: store-1"
    assert billing.actions == []


@pytest.mark.parametrize(
    ("path", "body", "field"),
    [
        ("grants", a_grant(amount=0), "amount"),
        ("grants", a_grant(amount=1_000_000_001), "amount"),
        ("grants", a_grant(amount=2**70), "amount"),
        ("grants", a_grant(amount=1.5), "amount"),
        ("grants", a_grant(channel="b2x"), "channel"),
        ("grants", a_grant(owner_id="me"), "owner_id"),
        ("grants", a_grant(STORE, owner_id="a b"), "owner_id"),
        ("grants", a_grant(owner_id="x" * 129), "owner_id"),
        ("grants", a_grant(reference=""), "reference"),
        ("grants", a_grant(reference="x" * 256), "reference"),
        ("grants", a_grant(reference="a b"), "reference"),
        ("grants", a_grant(reference=None), "reference"),
        ("grants", a_grant(note="x" * 501), "note"),
        ("grants", a_grant(note="a\x00b"), "note"),
        ("grants", a_grant(other=1), "other"),
        ("grants", {"channel": "b2c", "owner_id": USER.id, "amount": 1}, "reference"),
        ("adjustments", a_grant(), "reason"),
        ("adjustments", a_grant(reason=""), "reason"),
        ("adjustments", a_grant(reason="\u202e"), "reason"),
        ("adjustments", a_grant(amount=-1, reason="x"), "amount"),
        ("stores", {**SHOP, "id": "a b"}, "id"),
        ("stores", {**SHOP, "id": ""}, "id"),
        ("stores", {**SHOP, "name": "x" * 201}, "name"),
        ("stores", {**SHOP, "name": " "}, "name"),
        ("stores", {**SHOP, "origins": ["http://shop.example"]}, "origins"),
        ("stores", {**SHOP, "origins": ["https://a.example"] * 101}, "origins"),
        ("stores", {**SHOP, "plan": "gold"}, "plan"),
        (f"stores/{STORE.id}/keys", {"label": "x" * 201}, "label"),
        (f"accounts/b2c/{USER.id}/suspend", {}, "reason"),
        (f"accounts/b2c/{USER.id}/suspend", {"reason": " "}, "reason"),
        ("accounts/b2c/me/suspend", WHY, "owner_id"),
    ],
)
async def test_invalid_bodies(billing: Billing, path: str, body: object, field: str) -> None:
    """400 names the field, and nothing is done."""
    answer = await billing.call("POST", f"{ADMIN}/{path}", body, "k-1")

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith(f"{field}: "), answer.message
    assert billing.actions == []


@pytest.mark.parametrize("store_id", ["a%20b", "%00", "x" * 129, "%F0%9F%A9", "-a"])
@pytest.mark.parametrize(("method", "path"), [
    ("GET", "stores/{}"), ("PATCH", "stores/{}"), ("GET", "stores/{}/keys"),
    ("POST", "stores/{}/keys"), ("GET", "accounts/b2b/{}"),
])  # fmt: skip
async def test_invalid_store_in_the_path(
    billing: Billing, method: str, path: str, store_id: str
) -> None:
    """400: no database is asked for what no store can be called."""
    body = b"" if method == "GET" else {}

    answer = await billing.call(method, f"{ADMIN}/{path.format(store_id)}", body, "k-1")

    assert answer.error == (400, "VALIDATION_ERROR")


async def test_unknown_channel_in_the_path(billing: Billing) -> None:
    """404: there is no such resource."""
    answer = await billing.call("GET", f"{ADMIN}/accounts/b2x/{USER.id}")

    assert answer.error == (404, "NOT_FOUND")


@pytest.mark.parametrize("token", ["wa_" + "0" * 32, "wa_1", "wa_" + "A" * 32])
async def test_invalid_service_keys(token: str) -> None:
    """401, with the code of keys."""
    answer = await Billing(Api(), token).call("GET", ACCOUNT)

    assert answer.error == (401, "INVALID_API_KEY")


async def test_revoked_service_key(billing: Billing) -> None:
    """401 from the next request on, without a cache."""
    (key,) = await billing.api.service_keys.all(limit=10)
    await billing.api.service_keys.revoke(key.id, by=OPERATOR)

    assert (await billing.call("GET", ACCOUNT)).error == (401, "INVALID_API_KEY")


async def test_service_key_in_a_browser(billing: Billing) -> None:
    """403 from any page, before any effect."""
    billing._headers.append(("origin", "https://shop.example"))

    answer = await billing.post("grants", **a_grant())

    assert answer.error == (403, "DOMAIN_MISMATCH")
    assert billing.actions == []


@pytest.mark.parametrize("path", ["/api/v1/credits", "/api/v1/generations"])
async def test_service_key_on_other_routes(billing: Billing, path: str) -> None:
    """403: a service owns nothing."""
    assert (await billing.call("GET", path)).error == (403, "FORBIDDEN")
