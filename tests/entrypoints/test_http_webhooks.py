"""The calls with which owners manage their webhooks. ``test_http_matrix`` has who may make them."""

import json
from datetime import datetime, timedelta, timezone
from typing import Any
from uuid import uuid4

import pytest
from jsonschema_rs import Draft202012Validator

from adapters.webhooks.inbox import InMemoryWebhookSender, Message
from domain.dispatch import Dispatcher, DispatchPolicy, Payloads
from domain.endpoints import ALL_EVENTS, DeliveryStatus
from domain.views import SessionViews
from entrypoints.worker.dispatching import DispatchLog, session_data
from tests.support.examples import FAILURE, LEASE, MANY, STORE, a_session, picture_of
from tests.support.http import Answer, Api
from tests.support.service import seeded_random
from tests.support.webhooks import a_result, an_attempt, an_outcome

pytestmark = pytest.mark.anyio

HOOKS = "/api/v1/webhooks"
ALERT = "/api/v1/credits/alert"
URL = "https://shop.example/hooks?key=hidden"


@pytest.fixture
def api() -> Api:
    return Api()


async def created(api: Api, **fields: Any) -> Any:
    answer = await api.call("POST", HOOKS, body={"url": URL} | fields, owner=STORE)
    assert answer.status == 201, answer.body
    return answer.data


async def post(api: Api, path: str, body: object = b"") -> Answer:
    kind = None if body == b"" else "application/json"
    return await api.call("POST", f"{HOOKS}/{path}", owner=STORE, body=body, content_type=kind)


async def patched(api: Api, endpoint: Any, **fields: object) -> Answer:
    target = f"{HOOKS}/{endpoint['endpoint_id']}"
    return await api.call("PATCH", target, owner=STORE, body=fields)


async def delivered(api: Api, endpoint: Any, status: DeliveryStatus, code: int = 200) -> None:
    """A turn at the endpoint: all that is due ends like this."""
    hooks = api.service.webhooks
    (turn,) = await hooks.claim(limit=1, window=8, lease=LEASE)
    assert str(turn.endpoint.id) == endpoint["endpoint_id"]
    attempt = an_attempt(code, response="said no" if code >= 300 else "ok")
    outcomes = [an_outcome(due.id, status=status, attempt=attempt) for due in turn.due]
    assert await hooks.settle(a_result(turn, *outcomes))


async def test_secret_is_shown_at_creation_only(api: Api) -> None:
    """It signs from then on. Every other answer has the endpoint as it was created, without it."""
    endpoint = await created(api, description="till", events=["credits.low"])
    shown = await api.get(f"{HOOKS}/{endpoint['endpoint_id']}", owner=STORE)
    listed = await api.get(HOOKS, owner=STORE)

    secret = endpoint.pop("secret")
    (stored,) = await api.service.webhooks.all(STORE)
    assert stored.secrets.current == secret
    assert (endpoint["url"], endpoint["events"], endpoint["description"], endpoint["enabled"]) == (
        URL, ["credits.low"], "till", True
    )  # fmt: skip
    assert shown.data == endpoint
    assert listed.data == {"items": [endpoint]}


async def test_endpoint_asks_for_everything_by_default(api: Api) -> None:
    endpoint = await created(api)

    assert endpoint["events"] == ["credits.low", "generation.completed", "generation.failed"]


@pytest.mark.parametrize(
    ("fields", "named"),
    [
        ({"url": "http://shop.example/"}, "url"),
        ({"url": "https://127.0.0.1/"}, "url"),
        ({"url": "https://2130706433/"}, "url"),
        ({"url": "https://user@shop.example/"}, "url"),
        ({"url": "https://shop.example:8443/"}, "url"),
        ({"url": "https://db.internal/"}, "url"),
        ({"url": "gopher://shop.example/"}, "url"),
        ({"url": "https://shop.example/" + "x" * 2_048}, "url"),
        ({"url": 1}, "url"),
        ({"url": ""}, "url"),
        ({"events": []}, "events"),
        ({"events": ["webhook.test"]}, "events[0]"),
        ({"events": "credits.low"}, "events"),
        ({"description": "x" * 201}, "description"),
        ({"description": "a\0b"}, "description"),
        ({"secret": "whsec_mine"}, "secret"),
    ],
)
async def test_unusable_field_is_named(api: Api, fields: dict[str, object], named: str) -> None:
    """When an endpoint is created and when it is changed; then nothing changes."""
    endpoint = await created(api)
    before = await api.service.webhooks.all(STORE)
    create = await api.call("POST", HOOKS, body={"url": URL} | fields, owner=STORE)
    change = await patched(api, endpoint, **fields)

    for answer in (create, change):
        assert answer.error == (400, "VALIDATION_ERROR")
        assert answer.message.startswith(f"{named}: "), answer.message
    assert await api.service.webhooks.all(STORE) == before


async def test_url_is_required(api: Api) -> None:
    answer = await api.call("POST", HOOKS, body={}, owner=STORE)

    assert (answer.error[0], answer.message) == (400, "url: is required")


async def test_endpoints_are_bounded(api: Api) -> None:
    """The eleventh is a 409."""
    for _ in range(10):
        await created(api)
    answer = await api.call("POST", HOOKS, body={"url": URL}, owner=STORE)

    assert answer.error == (409, "CONFLICT")
    assert len((await api.get(HOOKS, owner=STORE)).data["items"]) == 10


async def test_endpoint_is_changed(api: Api) -> None:
    """Only the fields that are given; it can be disabled and enabled."""
    endpoint = await created(api, description="till")
    endpoint.pop("secret")
    disabled = (await patched(api, endpoint, enabled=False, events=["credits.low"])).data
    enabled = (await patched(api, endpoint, enabled=True)).data
    unchanged = (await patched(api, endpoint)).data

    assert (disabled["enabled"], disabled["disabled_reason"]) == (False, "owner")
    assert disabled["disabled_at"] is not None
    assert enabled == unchanged == endpoint | {"events": ["credits.low"]}


async def test_endpoint_is_deleted(api: Api) -> None:
    """With its deliveries. A repetition is a 404."""
    endpoint = await created(api)
    sent = (await post(api, f"{endpoint['endpoint_id']}/test")).data
    target = f"{HOOKS}/{endpoint['endpoint_id']}"
    deleted = await api.call("DELETE", target, owner=STORE, content_type=None)
    again = await api.call("DELETE", target, owner=STORE, content_type=None)
    retried = await post(api, f"deliveries/{sent['delivery_id']}/retry")

    assert deleted.data == {"endpoint_id": endpoint["endpoint_id"], "deleted": True}
    assert again.error == retried.error == (404, "NOT_FOUND")
    assert (await api.get(HOOKS, owner=STORE)).data == {"items": []}


async def test_rotation_shows_the_new_secret_only(api: Api) -> None:
    """The one before signs for another day, and is not shown again."""
    endpoint = await created(api)
    rotated = await post(api, f"{endpoint['endpoint_id']}/rotate")

    (stored,) = await api.service.webhooks.all(STORE)
    now = api.service.clock.now()
    assert stored.secrets.at(now) == (rotated.data["secret"], endpoint["secret"])
    assert rotated.data["secret"] != endpoint["secret"]
    assert endpoint["secret"] not in rotated.body.decode()
    until = datetime.fromisoformat(rotated.data["previous_secret_until"])
    assert timedelta(hours=23) < until - now <= timedelta(days=1)


async def test_deliveries_are_listed_with_their_attempts(api: Api) -> None:
    """Newest first, in pages, and by status."""
    endpoint = await created(api)
    target = f"{HOOKS}/{endpoint['endpoint_id']}/deliveries"
    sent = []
    for status, code in [(DeliveryStatus.FAILED, 500), (DeliveryStatus.DELIVERED, 204)]:
        sent.append((await post(api, f"{endpoint['endpoint_id']}/test")).data)
        await delivered(api, endpoint, status, code)
        api.service.clock.advance(timedelta(seconds=1))
    first = (await api.get(f"{target}?limit=1", owner=STORE)).data
    second = (await api.get(f"{target}?limit=1&cursor={first['next_cursor']}", owner=STORE)).data
    failed = (await api.get(f"{target}?status=failed", owner=STORE)).data

    assert sent[0]["event"] == "webhook.test"
    assert (sent[0]["status"], sent[0]["attempts"]) == ("pending", [])
    assert sent[0]["next_attempt_at"] is not None
    pages = [*first["items"], *second["items"]]
    assert [item["delivery_id"] for item in pages] == [
        sent[1]["delivery_id"],
        sent[0]["delivery_id"],
    ]
    assert second["next_cursor"] is None
    assert failed["items"] == second["items"]
    (attempt,) = pages[1]["attempts"]
    assert {name: attempt[name] for name in ("status", "error", "duration_ms", "response")} == {
        "status": 500, "error": None, "duration_ms": 12, "response": "said no"
    }  # fmt: skip
    assert (pages[1]["status"], pages[1]["next_attempt_at"]) == ("failed", None)


@pytest.mark.parametrize(
    "query", ["limit=0", "limit=51", "cursor=x", "status=lost", "limit=1&limit=2", "page=1"]
)
async def test_bad_query_is_named(api: Api, query: str) -> None:
    endpoint = await created(api)
    answer = await api.get(f"{HOOKS}/{endpoint['endpoint_id']}/deliveries?{query}", owner=STORE)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith(query.partition("=")[0]), answer.message


async def test_delivery_is_retried(api: Api) -> None:
    """Under the same id, even if it was delivered."""
    endpoint = await created(api)
    sent = (await post(api, f"{endpoint['endpoint_id']}/test")).data
    await delivered(api, endpoint, DeliveryStatus.DELIVERED)
    retried = (await post(api, f"deliveries/{sent['delivery_id']}/retry")).data

    assert (retried["delivery_id"], retried["status"]) == (sent["delivery_id"], "pending")
    assert retried["attempt_count"] == len(retried["attempts"]) == 1


async def test_failed_deliveries_are_retried_since_a_time(api: Api) -> None:
    """Those created at that time or later, whatever zone it is written in; once."""
    endpoint = await created(api)
    times = []
    for _ in range(3):
        sent = await post(api, f"{endpoint['endpoint_id']}/test")
        times.append(datetime.fromisoformat(sent.data["created_at"]))
        await delivered(api, endpoint, DeliveryStatus.FAILED, 500)
        api.service.clock.advance(timedelta(hours=1))
    body = {"since": times[1].astimezone(timezone(timedelta(hours=9))).isoformat()}
    path = f"{endpoint['endpoint_id']}/deliveries/retry"

    answers = [await post(api, path, body) for _ in range(2)]

    assert [answer.data for answer in answers] == [{"retried": 2}, {"retried": 0}]


@pytest.mark.parametrize("since", ["yesterday", "2026-01-01T12:00:00", 5, None])
async def test_time_of_a_retry_is_checked(api: Api, since: object) -> None:
    """It needs an offset, or Z."""
    endpoint = await created(api)
    path = f"{endpoint['endpoint_id']}/deliveries/retry"
    answer = await post(api, path, {"since": since})

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message.startswith("since: ")


async def test_threshold_of_low_credits(api: Api) -> None:
    """Set, shown and ended; a wrong one is named."""
    answers = [await api.get(ALERT, owner=STORE)]
    for body in ({"low_credits": 100}, {"low_credits": None}):
        answers.append(await api.call("PUT", ALERT, owner=STORE, body=body))
        answers.append(await api.get(ALERT, owner=STORE))
    wrong = [
        await api.call("PUT", ALERT, owner=STORE, body=body)
        for body in ({"low_credits": 0}, {"low_credits": 1_000_000_001}, {"low_credits": 1.5}, {})
    ]

    assert [answer.data["low_credits"] for answer in answers] == [None, 100, 100, None, None]
    for answer in wrong:
        assert answer.error == (400, "VALIDATION_ERROR")
        assert answer.message.startswith("low_credits: ")


@pytest.mark.parametrize("path", ["{}", "{}/deliveries"])
async def test_malformed_id_is_unknown(api: Api, path: str) -> None:
    """Exactly like one that does not exist."""
    unknown = await api.get(f"{HOOKS}/{path.format(uuid4())}", owner=STORE)
    malformed = await api.get(f"{HOOKS}/{path.format('x')}", owner=STORE)

    assert unknown.error == malformed.error == (404, "NOT_FOUND")
    assert unknown.body == malformed.body


async def test_no_log_has_a_secret_or_a_url(api: Api, capfd: pytest.CaptureFixture[str]) -> None:
    """A URL may carry a credential."""
    endpoint = await created(api)
    rotated = await post(api, f"{endpoint['endpoint_id']}/rotate")
    await patched(api, endpoint, url=f"{URL}2")
    await patched(api, endpoint, url="https://db.internal/?key=hidden")

    printed = "".join(capfd.readouterr())
    for secret in (endpoint["secret"], rotated.data["secret"], "hidden"):
        assert secret.removeprefix("whsec_") not in printed
    assert api.service.audit_log.entries == []


async def received(api: Api) -> list[Message]:
    """What an endpoint receives of a completed and a failed session, and of low credits."""
    sender, hooks, repo = InMemoryWebhookSender(), api.service.webhooks, api.service.repo
    await api.service.accounts.grant(STORE, 2, note="test")
    await hooks.set_threshold(STORE, 2)
    completed, failed = a_session(owner=STORE), a_session(owner=STORE)
    for session in (completed, failed):
        await repo.create(session, max_active=MANY)
        await repo.claim(session.id, lease=LEASE)
    await repo.complete(completed.id, attempt=1, picture=picture_of(completed.id))
    await repo.fail(failed.id, FAILURE, attempt=1)
    dispatcher = Dispatcher(
        outbox=hooks,
        sender=sender,
        payloads=Payloads(
            session_data=session_data,
            view_of=SessionViews(reads=repo, storage=api.storage).view_of,
            accounts=api.service.accounts,
            alerts=hooks,
        ),
        events=DispatchLog(),
        policy=DispatchPolicy(),
        random=seeded_random(),
        clock=api.service.clock.now,
    )
    await dispatcher.run_once()
    return sender.received


async def test_messages_are_those_of_the_document(api: Api) -> None:
    """Each event is described in the section ``webhooks``: its body, and its headers."""
    await created(api)
    messages = {json.loads(message.body)["type"]: message for message in await received(api)}

    described = api.document["webhooks"]
    assert described.keys() == messages.keys() == ALL_EVENTS
    for event, message in messages.items():
        operation = described[event]["post"]
        schema = operation["requestBody"]["content"]["application/json"]["schema"]
        whole = schema | {"components": api.document["components"]}
        Draft202012Validator(whole).validate(json.loads(message.body))
        headers = {parameter["name"] for parameter in operation["parameters"]}
        assert headers == set(message.headers)
        assert all(parameter["required"] for parameter in operation["parameters"])
