"""The successful response of each route."""

import asyncio
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID

import pytest
from structlog.testing import capture_logs

from domain.causes import Cause, CauseKind
from domain.credits import Owner
from domain.errors import InvalidInput, QueueUnavailable
from domain.picture_ports import Picture
from domain.sessions import SessionStatus
from entrypoints.http.middleware import BODY_SECONDS, UPLOAD_SECONDS, RequestContext
from tests.support.clock import START, VirtualTimeLoop, loop_time
from tests.support.examples import (
    FAILURE,
    HAT,
    MODEL_URL,
    OTHER,
    OUTFIT_URL,
    STORE,
    STORED_PICTURE,
    USAGE,
    USER,
)
from tests.support.http import GENERATIONS, PUBLIC_URL, Api

pytestmark = pytest.mark.anyio

PNG = Picture(data=b"\x89PNG ...", media_type="image/png")
TRY_ON = {
    "model_image_url": MODEL_URL,
    "outfit_image_url": OUTFIT_URL,
    "accessories": [{"type": "hat", "url": HAT.url}],
}


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def api() -> Api:
    return Api()


def z(moment: datetime) -> str:
    """The contract's timestamp: ISO 8601, UTC, ending in Z."""
    return moment.astimezone(UTC).isoformat().replace("+00:00", "Z")


@pytest.mark.parametrize(
    ("owner", "extra"), [(USER, {}), (STORE, {"prompt": "In the rain"})], ids=["user", "store"]
)
async def test_submit(api: Api, owner: Owner, extra: dict[str, str]) -> None:
    """202 with the session and its path; one credit is debited and one task queued, with the
    request's id. One route serves users and stores."""
    await api.service.accounts.grant(owner, 3, note="test")

    answer = await api.submit(
        owner=owner, body=TRY_ON | extra, headers=[("x-request-id", "mine-1")]
    )

    (task,) = api.service.waiting()
    status_url = f"{GENERATIONS}/{task.session_id}"
    assert answer.status == 202
    assert answer.headers["location"] == status_url
    assert answer.json == {
        "data": {
            "session_id": str(task.session_id),
            "status": "queued",
            "status_url": status_url,
            "credits_remaining": 2,
            "pictures_remaining": None,
            "created_at": "2026-01-01T12:00:00Z",
        },
        "error": None,
    }
    assert (task.owner, task.request_id) == (owner, "mine-1")
    assert task.image_urls == (MODEL_URL, OUTFIT_URL, HAT.url)
    assert api.service.balance(owner) == 2


@pytest.mark.parametrize(
    "optional",
    [
        {},
        {"outfit_image_url": None, "prompt": None},
        {"accessories": []},
        {"accessories": [{"type": "hat", "url": HAT.url}] * 8},
    ],
)
async def test_optional_fields(api: Api, optional: dict[str, Any]) -> None:
    """Missing, null, empty, or eight accessories: a model picture is enough."""
    await api.service.accounts.grant(USER, 1, note="test")

    answer = await api.submit(body={"model_image_url": MODEL_URL, **optional})

    (task,) = api.service.waiting()
    assert answer.status == 202
    assert task.image_urls == (MODEL_URL, *[HAT.url] * len(optional.get("accessories", [])))


async def test_prompt_is_for_stores(api: Api) -> None:
    """400 for a user, and nothing is charged."""
    await api.service.accounts.grant(USER, 1, note="test")

    answer = await api.submit(body=TRY_ON | {"prompt": "In the rain"})

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.message == "prompt: only stores may give a prompt of their own"
    assert api.service.balance() == 1


async def test_queued_session(api: Api) -> None:
    """Every field is present, null without a value, and the queue position is set."""
    await api.service.backlog(2)
    await api.service.accounts.grant(USER, 1, note="test")
    await api.submit(body=TRY_ON, headers=[("x-request-id", "mine-1")])
    session_id = api.service.waiting()[-1].session_id

    answer = await api.get(f"{GENERATIONS}/{session_id}")

    assert answer.status == 200
    assert answer.json == {
        "data": {
            "session_id": str(session_id),
            "status": "queued",
            "channel": "b2c",
            **TRY_ON,
            "shopper_id": None,
            "prompt": None,
            "age_verified": None,
            "generated_image_url": None,
            "image_expired": False,
            "media_type": None,
            "error_code": None,
            "error_message": None,
            "attempt": 0,
            "queue_position": 3,
            "request_id": "mine-1",
            "created_at": z(START + timedelta(seconds=2)),
            "started_at": None,
            "cancel_requested_at": None,
            "completed_at": None,
            "processing_time_ms": None,
            "erased_at": None,
            "input_tokens": None,
            "output_tokens": None,
            "estimated_cost_usd": None,
            "status_url": f"{GENERATIONS}/{session_id}",
        },
        "error": None,
    }


async def test_completed_session(api: Api) -> None:
    """The picture's signed link and format, the times and the usage, its cost as an unrounded
    text; no queue position."""
    session = (await api.service.submitted(STORE)).session
    api.service.clock.advance(timedelta(seconds=1))
    await api.service.claimed(session.id)
    api.service.clock.advance(timedelta(seconds=2))
    picture = await api.storage.save(session.object_prefix, PNG)
    await api.service.repo.complete(session.id, attempt=1, picture=picture, usage=USAGE)

    data = (await api.get(f"{GENERATIONS}/{session.id}", owner=STORE)).data

    assert (data["status"], data["media_type"], data["attempt"]) == ("completed", "image/png", 1)
    assert data["generated_image_url"] == api.storage.url(picture.object_key)
    assert data["image_expired"] is False
    assert data["prompt"] == session.input.prompt
    assert data["queue_position"] is None
    assert data["started_at"] == z(START + timedelta(seconds=1))
    assert data["completed_at"] == z(START + timedelta(seconds=3))
    assert data["processing_time_ms"] == 2000
    assert (data["input_tokens"], data["output_tokens"]) == (1_923, 6_240)
    assert data["estimated_cost_usd"] == "0.215064"


async def test_session_with_deleted_picture(api: Api) -> None:
    """``image_expired`` and no link; all other fields stay. The same in lists."""
    session = (await api.service.submitted()).session
    await api.service.claimed(session.id)
    await api.service.repo.complete(session.id, attempt=1, picture=STORED_PICTURE)
    before = (await api.get(f"{GENERATIONS}/{session.id}")).data

    await api.service.repo.mark_images_deleted([session.id])

    data = (await api.get(f"{GENERATIONS}/{session.id}")).data
    assert data == before | {"image_expired": True, "generated_image_url": None}
    assert (await api.get(GENERATIONS)).data["items"] == [data]


async def test_failed_session(api: Api) -> None:
    """The reason, once for programs and once for people."""
    session = (await api.service.submitted()).session
    await api.service.claimed(session.id)
    await api.service.repo.fail(session.id, FAILURE, attempt=1)

    data = (await api.get(f"{GENERATIONS}/{session.id}")).data

    assert data["status"] == "failed"
    assert (data["error_code"], data["error_message"]) == (FAILURE.code, FAILURE.message)
    assert data["generated_image_url"] is None


async def test_history(api: Api) -> None:
    """Newest first in pages of ``limit``; each page's cursor leads to the next, the last page has
    none. Only the caller's sessions are listed, even with another owner's cursor."""
    ids = [str(session_id) for session_id in await api.service.backlog(5)]
    await api.service.submitted(OTHER)

    first = (await api.get(f"{GENERATIONS}?limit=2")).data
    second = (await api.get(f"{GENERATIONS}?limit=2&cursor={first['next_cursor']}")).data
    third = (await api.get(f"{GENERATIONS}?limit=2&cursor={second['next_cursor']}")).data
    of_other = (await api.get(f"{GENERATIONS}?cursor={first['next_cursor']}", owner=OTHER)).data

    pages = [[item["session_id"] for item in page["items"]] for page in (first, second, third)]
    assert pages == [[ids[4], ids[3]], [ids[2], ids[1]], [ids[0]]]
    assert third["next_cursor"] is None
    assert of_other == {"items": [], "next_cursor": None}


async def test_history_of_one_instant(api: Api) -> None:
    """Sessions created at the same instant are neither skipped nor repeated across pages."""
    ids = {str(session_id) for session_id in await api.service.backlog(5, apart=timedelta(0))}
    target: str | None = f"{GENERATIONS}?limit=2"
    seen = []

    while target:
        page = (await api.get(target)).data
        seen += [item["session_id"] for item in page["items"]]
        cursor = page["next_cursor"]
        target = cursor and f"{GENERATIONS}?limit=2&cursor={cursor}"

    assert len(seen) == 5
    assert set(seen) == ids


async def test_history_by_status(api: Api) -> None:
    """Only sessions in that status, complete except for the queue position. A full page is the last
    one if nothing follows."""
    claimed, cancelled, queued = await api.service.backlog(3)
    await api.service.claimed(claimed)
    await api.service.submission.cancel(cancelled, USER)

    of_status = {
        status.value: (await api.get(f"{GENERATIONS}?status={status}&limit=1")).data
        for status in SessionStatus
    }

    one = (await api.get(f"{GENERATIONS}/{queued}")).data
    assert of_status["queued"]["items"] == [one | {"queue_position": None}]
    assert [item["session_id"] for item in of_status["processing"]["items"]] == [str(claimed)]
    assert [item["session_id"] for item in of_status["failed"]["items"]] == [str(cancelled)]
    assert of_status["completed"] == {"items": [], "next_cursor": None}
    assert of_status["queued"]["next_cursor"] is None


@pytest.mark.parametrize(("query", "count"), [("", 20), ("?limit=1", 1), ("?limit=50", 50)])
async def test_history_page_size(api: Api, query: str, count: int) -> None:
    """20 by default, 1 to 50 on request."""
    await api.service.backlog(51)

    data = (await api.get(GENERATIONS + query)).data

    assert len(data["items"]) == count
    assert data["next_cursor"] is not None


async def test_stats(api: Api) -> None:
    """Counts by status; active sessions are those that are not final. Other owners' are not
    counted."""
    claimed, cancelled, _, _ = await api.service.backlog(4)
    await api.service.claimed(claimed)
    await api.service.submission.cancel(cancelled, USER)
    await api.service.submitted(OTHER)

    answer = await api.get(f"{GENERATIONS}/stats")

    assert answer.json == {
        "data": {
            "total": 4,
            "queued": 2,
            "processing": 1,
            "completed": 0,
            "failed": 1,
            "active": 3,
        },
        "error": None,
    }


async def test_cancel(api: Api) -> None:
    """200 with the session's new state, failed with CANCELLED, and the credit is refunded."""
    session_id = (await api.service.submitted()).session.id

    answer = await api.cancel(session_id)

    assert answer.status == 200
    assert (answer.data["status"], answer.data["error_code"]) == ("failed", "CANCELLED")
    assert answer.data == (await api.get(f"{GENERATIONS}/{session_id}")).data
    assert api.service.balance() == 1


async def test_cancel_while_processing(api: Api) -> None:
    """202 with the session, still processed, also when repeated; its time is that of the first
    request. Once it has failed, 409."""
    session_id = (await api.service.submitted()).session.id
    running = asyncio.create_task(api.service.work())
    api.service.generator.seconds = 60
    await asyncio.sleep(1)

    first = await api.cancel(session_id)
    again = await api.cancel(session_id)
    await running
    late = await api.cancel(session_id)

    seen = await api.get(f"{GENERATIONS}/{session_id}")
    assert (first.status, again.status, late.status) == (202, 202, 409)
    assert (first.data["status"], first.data["error_code"]) == ("processing", None)
    assert first.data == again.data
    assert (seen.data["status"], seen.data["error_code"]) == ("failed", "CANCELLED")
    assert seen.data["cancel_requested_at"] == first.data["cancel_requested_at"] is not None
    assert api.service.balance() == 1


async def test_credits(api: Api) -> None:
    """Balance and totals of the caller's account."""
    await api.service.submitted(STORE)
    await api.service.submission.cancel(api.service.waiting()[0].session_id, STORE)
    await api.service.submitted(STORE)
    await api.service.submitted(USER)

    answer = await api.get("/api/v1/credits", owner=STORE)

    assert answer.json == {
        "data": {
            "channel": "b2b",
            "owner_id": STORE.id,
            "balance": 1,
            "total_granted": 2,
            "total_debited": 2,
            "total_refunded": 1,
            "total_adjusted": 0,
        },
        "error": None,
    }


async def test_credits_of_a_new_owner(api: Api) -> None:
    """An owner without a grant has an account of zeros."""
    data = (await api.get("/api/v1/credits")).data

    assert data["balance"] == data["total_granted"] == 0


async def test_ledger(api: Api) -> None:
    """The caller's entries, newest first, in pages; grants have a note, the others a session."""
    session_id = (await api.service.submitted()).session.id
    await api.service.submission.cancel(session_id, USER)
    await api.service.submitted(OTHER)

    first = (await api.get("/api/v1/credits/ledger?limit=2")).data
    rest = (await api.get(f"/api/v1/credits/ledger?limit=2&cursor={first['next_cursor']}")).data

    assert [entry["kind"] for entry in first["items"]] == ["refund", "debit"]
    assert first["items"][1] == {
        "id": 2,
        "kind": "debit",
        "amount": -1,
        "session_id": str(session_id),
        "note": None,
        "created_at": "2026-01-01T12:00:00Z",
    }
    assert [(entry["note"], entry["session_id"]) for entry in rest["items"]] == [("test", None)]
    assert rest["next_cursor"] is None


async def test_liveness(api: Api) -> None:
    """200 without a token, even if dependencies are down."""
    api.readiness["database"] = _refuses

    answer = await api.get("/health/live", owner=None)

    assert (answer.status, answer.json) == (200, {"data": {"status": "ok"}, "error": None})


async def test_readiness(api: Api) -> None:
    """200 without a token, with the state of each dependency."""
    answer = await api.get("/health/ready", owner=None)

    assert answer.status == 200
    assert answer.json == {"data": {"database": "ok", "queue": "ok"}, "error": None}


async def _refuses() -> None:
    raise QueueUnavailable("refused", cause=Cause(CauseKind.QUEUE, "NOAUTH"))


async def test_failed_readiness(api: Api) -> None:
    """503 with the name of the unavailable dependency, in data and message. Why is in the log."""
    api.readiness["queue"] = _refuses

    with capture_logs() as logs:
        answer = await api.get("/health/ready", owner=None)

    (entry,) = [entry for entry in logs if entry["event"] == "not_ready"]
    assert (entry["dependency"], entry["cause"]) == ("queue", "queue NOAUTH")

    assert answer.error == (503, "SERVICE_UNAVAILABLE")
    assert answer.message == "Unavailable: queue"
    assert answer.data == {"database": "ok", "queue": "unavailable"}
    assert int(answer.headers["retry-after"]) > 0


async def test_readiness_deadline(api: Api) -> None:
    """A dependency that does not answer in time is unavailable."""

    async def hangs() -> None:
        # The loop's time is virtual: without a deadline the test would still end.
        await asyncio.sleep(3600)

    api.readiness["database"] = hangs
    before = api.service.clock.now()

    answer = await api.get("/health/ready", owner=None)

    assert answer.error == (503, "SERVICE_UNAVAILABLE")
    assert api.service.clock.now() - before <= timedelta(seconds=2)


async def test_picture(api: Api) -> None:
    """The signed link serves the picture with its media type; only the client may cache it, until
    the link expires."""
    picture = await api.storage.save("generated/someone/1", PNG)
    link = api.storage.url(picture.object_key)
    api.service.clock.advance(timedelta(minutes=10))

    answer = await api.get(link.removeprefix(PUBLIC_URL), owner=None)

    assert (answer.status, answer.body) == (200, PNG.data)
    assert answer.headers["content-type"] == "image/png"
    assert answer.headers["cache-control"] == "private, max-age=3000"
    assert answer.headers["x-content-type-options"] == "nosniff"


@pytest.mark.parametrize(
    ("path", "seconds"),
    [("/uploads/2026-11-24/x.jpg", UPLOAD_SECONDS), (GENERATIONS, BODY_SECONDS)],
)
async def test_body_deadline(path: str, seconds: float) -> None:
    """Longer for pictures, which are large."""
    waited: list[float] = []

    async def read_body(_: Any, receive: Any, __: Any) -> None:
        try:
            while True:
                await receive()
        finally:
            waited.append(loop_time())

    async def drip() -> Any:
        await asyncio.sleep(0.9)
        return {"type": "http.request", "body": b".", "more_body": True}

    async def ignore(_: Any) -> None:
        """No response is expected."""

    scope: Any = {
        "type": "http", "method": "PUT", "path": path, "query_string": b"", "headers": [],
        "state": {},
    }  # fmt: skip

    with pytest.raises(InvalidInput, match="did not arrive in time"):
        await RequestContext(read_body, methods={})(scope, drip, ignore)

    assert waited == [pytest.approx(seconds, abs=0.01)]


async def test_invalid_picture_links(api: Api) -> None:
    """Expired, forged, truncated and missing: all get the same 404."""
    picture = await api.storage.save("generated/someone/1", PNG)
    link = api.storage.url(picture.object_key).removeprefix(PUBLIC_URL)
    path, _, query = link.partition("?")
    targets = [
        path,
        f"{path}?",
        link[:-1],
        link.replace("expires=", "expires=9"),
        link.replace("expires=", "expires=-"),
        link.replace("expires=", "expires=%EF%BC%91"),
        link.replace("someone", "else"),
        f"/files/?{query}",
        f"/files/../{picture.object_key}?{query}",
        f"{path}%00?{query}",
        f"{path}?expires=99999999999&signature=%FF%00",
        f"{path}?expires=99999999999999999999&signature=a",
    ]

    answers = [await api.get(target, owner=None) for target in targets]
    api.service.clock.advance(timedelta(hours=1))
    answers.append(await api.get(link, owner=None))

    assert {answer.error for answer in answers} == {(404, "NOT_FOUND")}
    assert len({answer.body for answer in answers}) == 1


async def test_sample_picture(api: Api) -> None:
    """A PNG for trying the service; 404 for other names."""
    model = await api.get("/samples/model.png", owner=None)
    unknown = await api.get("/samples/..%2Fmodel.png", owner=None)

    assert (model.status, model.headers["content-type"]) == (200, "image/png")
    assert model.body.startswith(b"\x89PNG")
    assert unknown.error == (404, "NOT_FOUND")


async def test_session_id_is_case_insensitive(api: Api) -> None:
    """As every UUID."""
    session_id = (await api.service.submitted()).session.id

    answer = await api.get(f"{GENERATIONS}/{str(session_id).upper()}")

    assert UUID(answer.data["session_id"]) == session_id
