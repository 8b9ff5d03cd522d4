"""Every route for every principal, from every origin: the answers, what they show, and effects."""

import json
from collections.abc import Sequence
from uuid import uuid4

import pytest

from tests.support.http import Answer, Api
from tests.support.matrix import OWNERS, REQUESTING, SHOPPERS, STRANGE_PAGE, World
from tests.support.routes import A_TOKEN, API, ROUTES, Route

pytestmark = pytest.mark.anyio

FORBIDDEN = (403, "FORBIDDEN")
MISMATCH = (403, "DOMAIN_MISMATCH")
UNKNOWN = (404, "NOT_FOUND")

KINDS = {
    "none": "INVALID_TOKEN",
    "user": "user",
    "other_user": "user",
    "anonymous_user": "user",
    "suspended_user": "user",
    "expired_user": "INVALID_TOKEN",
    "store": "store",
    "other_store": "store",
    "suspended_store": "store",
    "revoked_key": "INVALID_API_KEY",
    "shopper": "shopper",
    "same_shopper": "shopper",
    "other_shopper": "shopper",
    "foreign_shopper": "shopper",
    "suspended_shopper": "shopper",
    "revoked_token": "INVALID_TOKEN",
    "expired_token": "INVALID_TOKEN",
    "grants": "grants",
    "stores": "stores",
    "keys": "keys",
    "read": "read",
    "revoked_service": "INVALID_API_KEY",
}
"""What each principal is: a kind of caller, a service's scope, or the code of its 401."""
OF_OWNERS = {"user", "store", "shopper"}
SERVICES = {"grants", "stores", "keys", "read"}

SEES: dict[str, set[str]] = {
    "store": {"store", "shopper", "other_shopper"},
    "other_store": {"other_store", "foreign_shopper"},
    "suspended_store": {"suspended_store", "suspended_shopper"},
    "same_shopper": {"shopper"},
}
"""Whose sessions a principal sees; all others see only their own."""


OWNED_BY_ACCOUNTS = {"endpoints", "deliveries"}
OWNED = [
    name
    for name, route in ROUTES.items()
    if route.target in {"queued", "final", "tokens"} | OWNED_BY_ACCOUNTS
]
READS = [name for name in ROUTES if name.startswith("GET ")]


@pytest.fixture(scope="module")
async def shared() -> World:
    """For calls that must not change it."""
    return await World().open()


def expected(name: str, route: Route, origin: str | None, world: World) -> int | tuple[int, str]:
    """The status of an answer, with its code for a refusal."""
    kind = KINDS[name]
    if "anyone" in route.kinds:
        return route.status
    if kind.startswith("INVALID_"):
        return 401, kind
    if not _may_come_from(name, origin, world):
        return MISMATCH
    if kind not in route.kinds or (route.suspended and name.startswith("suspended_")):
        return FORBIDDEN
    return route.status


def _may_come_from(name: str, origin: str | None, world: World) -> bool:
    if origin is None:
        return KINDS[name] != "shopper"
    return KINDS[name] not in SERVICES and origin == world.principals[name].page


def origins_of(world: World, name: str) -> list[str | None]:
    """No origin and a strange one; for credentials that work somewhere, every principal's page."""
    if KINDS[name] not in OF_OWNERS:
        return [None, STRANGE_PAGE]
    pages = {principal.page for principal in world.principals.values() if principal.page}
    return [None, STRANGE_PAGE, *sorted(pages)]


def whose(name: str) -> str:
    """The principal whose resources ``name`` has."""
    return "shopper" if name == "same_shopper" else name


async def send(
    world: World,
    route_name: str,
    name: str,
    origin: str | None = None,
    *,
    method: str | None = None,
    resource: str | None = None,
) -> Answer:
    """Call the route with a valid request, for the principal's own resource by default. Those who
    have none name the first user's or store's."""
    route = ROUTES[route_name]
    verb, template = route_name.split(" ")
    body = route.body
    if body is A_TOKEN:
        body = {**A_TOKEN, "origin": OWNERS.get(name, OWNERS["store"])[1]}
    target = _target(route, template, resource or _own(world, route, name))
    return await world.call(
        name, method or verb, target, body=body, origin=origin, headers=route.headers
    )


def _own(world: World, route: Route, name: str) -> str:
    match route.target:
        case "queued" | "final":
            sessions: dict[str, str] = getattr(world, route.target)
            return sessions.get(whose(name), sessions["store"])
        case "tokens":
            owned = {"other_store": "foreign_shopper", "suspended_store": "suspended_shopper"}
            return world.tokens[owned.get(name, "shopper")]
        case "endpoints" | "deliveries":
            owned_by: dict[str, str] = getattr(world, route.target)
            return owned_by.get(name, owned_by["store"])
        case None:
            return ""
        case link_or_key:
            return str(getattr(world, link_or_key))


_IDS = ("session_id", "token_id", "key_id", "endpoint_id", "delivery_id")


def _target(route: Route, template: str, resource: str) -> str:
    if resource.startswith("/"):
        return resource
    return (template + route.query).format(
        **dict.fromkeys(_IDS, resource) | dict(route.in_path or {})
    )


def test_matrix_is_complete() -> None:
    """A new route has to be added to ``ROUTES``, and a new principal to ``KINDS``."""
    assert sorted(f"{method} {path}" for method, path in Api().routes) == sorted(ROUTES)


async def test_principals_are_complete(shared: World) -> None:
    """Every principal of the world has a kind."""
    assert shared.principals.keys() == KINDS.keys()


@pytest.mark.parametrize("route_name", ROUTES)
async def test_refused(shared: World, route_name: str) -> None:
    """The exact status and code, no data, and no effect: for every principal from every origin
    that the route refuses."""
    route, before, refused = ROUTES[route_name], shared.state(), 0

    for name in KINDS:
        for origin in origins_of(shared, name):
            wanted = expected(name, route, origin, shared)
            if isinstance(wanted, tuple):
                answer = await send(shared, route_name, name, origin)
                assert (name, origin, answer.error) == (name, origin, wanted)
                assert answer.json["data"] is None
                refused += 1
        assert shared.state() == before, f"{name} changed something"

    assert (refused == 0) is ("anyone" in route.kinds)


@pytest.mark.parametrize("route_name", READS)
async def test_head_is_refused_like_get(shared: World, route_name: str) -> None:
    """The same status."""
    for name in KINDS:
        wanted = expected(name, ROUTES[route_name], None, shared)
        answer = await send(shared, route_name, name, method="HEAD")
        status = wanted[0] if isinstance(wanted, tuple) else wanted
        assert (name, answer.status) == (name, status)


@pytest.mark.parametrize("route_name", ROUTES)
async def test_allowed(shared: World, route_name: str) -> None:
    """The exact status, an effect exactly where there should be one and on nothing of another
    owner's, and nothing that only others may know."""
    route, allowed = ROUTES[route_name], set()

    for name, kind in KINDS.items():
        for origin in origins_of(shared, name):
            if expected(name, route, origin, shared) == route.status:
                await _check_allowed(shared, route_name, name, origin)
                allowed.add(kind)

    assert allowed == (set(KINDS.values()) if "anyone" in route.kinds else route.kinds)


async def _check_allowed(shared: World, route_name: str, name: str, origin: str | None) -> None:
    route = ROUTES[route_name]
    world = await World().open() if route.changes else shared
    is_owners = bool(route.kinds & OF_OWNERS)
    before, others = world.state(), _others(world, name) if is_owners else ""
    answer = await send(world, route_name, name, origin)
    assert (name, origin, answer.status) == (name, origin, route.status), answer.body
    assert (world.state() != before) is route.changes, f"{name} from {origin}"
    if is_owners:
        assert _others(world, name) == others, f"{name} changed another owner's"
        _check_shows_only_own(world, name, answer)


def _others(world: World, name: str) -> str:
    """What ``name`` must not change. Sessions that its request creates are its own."""
    owner_name = SHOPPERS[name][0] if name in SHOPPERS else name
    created = set(map(str, world.api.service.repo._rows)) - set(world.marks())
    mine = {mark for seen in _seen(name) for mark in (world.queued[seen], world.final[seen])}
    return world.held_by_others(OWNERS[owner_name][0], mine | created)


def _seen(name: str) -> set[str]:
    return SEES.get(name, {name})


def _check_shows_only_own(world: World, name: str, answer: Answer) -> None:
    """No other owner's ids, links, notes and names, which are all different."""
    shown = answer.body.decode() + json.dumps(answer.headers)
    known = world.marks()
    foreign = [mark for mark, owner in known.items() if owner not in _knows(name)]
    assert [mark for mark in foreign if mark in shown] == []


def _knows(name: str) -> set[str]:
    """Whose ids, links and names ``name`` may see."""
    tokens = {each for each, (store, _) in SHOPPERS.items() if store == name}
    return _seen(name) | tokens | {name}


@pytest.mark.parametrize("route_name", OWNED)
async def test_another_owners_resource_does_not_exist(shared: World, route_name: str) -> None:
    """For all who may call the route: exactly the answer to an id that does not exist, and no
    effect. From their own page or, for servers, from none."""
    route, before, tried = ROUTES[route_name], shared.state(), 0

    for name, kind in KINDS.items():
        if kind not in route.kinds:
            continue
        page = shared.principals[name].page
        missing = await send(shared, route_name, name, page, resource=str(uuid4()))
        assert (name, missing.error) == (name, UNKNOWN)
        for resource in _foreign(shared, route, name):
            answer = await send(shared, route_name, name, page, resource=resource)
            assert _as_seen(answer) == _as_seen(missing), f"{name} is told of {resource}"
            assert shared.state() == before, f"{name} changed {resource}"
            tried += 1

    assert tried > 10


def _as_seen(answer: Answer) -> object:
    headers = {key: text for key, text in answer.headers.items() if key != "x-request-id"}
    return answer.status, headers, answer.body


def _foreign(world: World, route: Route, name: str) -> list[str]:
    """The ids of all resources that are not the principal's. Sessions are queued and completed
    ones, whatever the route is for."""
    if route.target == "tokens":
        return [world.tokens[each] for each, (store, _) in SHOPPERS.items() if store != name] + [
            world.queued[name]
        ]
    if route.target in OWNED_BY_ACCOUNTS:
        owned = (world.endpoints, world.deliveries)
        return [ids[each] for ids in owned for each in OWNERS if each != name] + [
            world.queued[name]
        ]
    foreign = [each for each in REQUESTING if each not in _seen(name)]
    return [ids[each] for each in foreign for ids in (world.queued, world.final)]


async def test_lists_hold_the_callers_own(shared: World) -> None:
    """Exactly the sessions that a principal sees, in the list and in the numbers."""
    for name, kind in KINDS.items():
        if kind not in OF_OWNERS:
            continue
        page = shared.principals[name].page
        listed = await send(shared, f"GET {API}/generations", name, page)
        stats = await send(shared, f"GET {API}/generations/stats", name, page)

        own = {ids[seen] for seen in _seen(name) for ids in (shared.queued, shared.final)}
        assert {item["session_id"] for item in listed.data["items"]} == own, name
        assert (stats.data["total"], stats.data["completed"]) == (len(own), len(own) // 2), name


async def test_books_hold_the_callers_own(shared: World) -> None:
    """Each owner has a balance and a ledger of its own: its grant and its debits."""
    for number, name in enumerate(OWNERS):
        spent = 2 * len(_seen(name))
        credits_ = await send(shared, f"GET {API}/credits", name)
        ledger = await send(shared, f"GET {API}/credits/ledger", name)

        assert credits_.data["balance"] == 1_000 + number - spent, name
        own = {ids[seen] for seen in _seen(name) for ids in (shared.queued, shared.final)}
        *debits, grant = ledger.data["items"]
        assert grant["note"] == f"note-{name}"
        assert {entry["session_id"] for entry in debits} == own, name
        if KINDS[name] == "store":
            balance = await send(shared, f"GET {API}/credits/balance", name)
            assert balance.data["balance"] == 1_000 + number - spent


async def test_shoppers_are_those_of_the_store(shared: World) -> None:
    """Two stores' shoppers with the same id are different people."""
    for store in ("store", "other_store", "suspended_store"):
        listed = await send(shared, f"GET {API}/client-tokens", store)
        numbers = await send(shared, f"GET {API}/shoppers/{{shopper_id}}", store)
        config = await send(shared, f"GET {API}/stores/config", store)

        live = {
            shared.tokens[name]
            for name, owner in SHOPPERS.items()
            if owner == (store, "anna") and not KINDS[name].startswith("INVALID_")
        }
        assert {item["token_id"] for item in listed.data["items"]} == live
        assert numbers.data["sessions"]["total"] == 2
        assert config.data["store_id"] == OWNERS[store][0].id


@pytest.mark.parametrize(
    ("route_name", "link"),
    [("GET /files/{key}", "upload_link"), ("PUT /uploads/{key}", "picture_link")],
)
async def test_a_credential_does_not_replace_a_signature(
    shared: World, route_name: str, link: str
) -> None:
    """404 for everyone, without a signature and with that of another link."""
    method, template = route_name.split(" ")
    own = shared.picture_link if "/files/" in template else shared.upload_link
    path, signature = own.partition("?")[0], getattr(shared, link).partition("?")[2]
    before = shared.state()

    for target in (path, f"{path}?{signature}"):
        for name in KINDS:
            body = ROUTES[route_name].body
            answer = await shared.call(name, method, target, body=body)
            assert (name, answer.error) == (name, UNKNOWN)
    assert shared.state() == before


async def test_preflight_needs_no_credential(shared: World) -> None:
    """Every route answers it from every page, with no effect."""
    before = shared.state()
    asks: Sequence[tuple[str, str]] = [("access-control-request-method", "POST")]

    for route_name in ROUTES:
        target = route_name.split(" ")[1]
        answer = await shared.call("none", "OPTIONS", target, origin=STRANGE_PAGE, headers=asks)
        assert (route_name, answer.status) == (route_name, 204)
        assert answer.headers["access-control-allow-origin"] == STRANGE_PAGE
    assert shared.state() == before
