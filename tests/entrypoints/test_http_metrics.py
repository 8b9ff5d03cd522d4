"""What the API counts: every request by its route, every submission by what came of it."""

from uuid import UUID, uuid4

import pytest

from domain.sessions import ErrorCode
from tests.support.counted import Counted
from tests.support.examples import MODEL_URL, STORE, USER
from tests.support.http import BATCH, GENERATIONS, Api

pytestmark = pytest.mark.anyio

TRY_ON = {"model_image_url": MODEL_URL}


@pytest.fixture
async def api() -> Api:
    """With two credits for a user."""
    api = Api()
    await api.service.accounts.grant(USER, 2, note="test")
    return api


async def test_requests_are_counted_by_route_and_never_by_path(api: Api) -> None:
    """Whatever a client invents as a path or a method takes one series at most."""
    counted = Counted()

    created = await api.submit(body=TRY_ON)
    await api.get(f"{GENERATIONS}/{created.data['session_id']}")
    await api.call("HEAD", f"{GENERATIONS}/{created.data['session_id']}", content_type=None)
    await api.get(f"{GENERATIONS}/{uuid4()}")
    await api.call("POST", BATCH, body={"items": [TRY_ON]}, owner=None)
    for path in ("/nothing", "/nothing/else", f"{GENERATIONS}/a/b/c"):
        await api.get(path)

    one = f"{GENERATIONS}/{{session_id}}"
    assert counted("wearon_http_requests_total") == {
        ("POST", GENERATIONS, "202"): 1,
        ("GET", one, "200"): 1,
        ("HEAD", one, "200"): 1,
        ("GET", one, "404"): 1,
        ("POST", BATCH, "401"): 1,
        ("GET", "other", "404"): 3,
    }


async def test_submissions_are_counted_by_what_came_of_them(api: Api) -> None:
    counted = Counted()
    key = [("idempotency-key", "k-1")]

    await api.submit(body=TRY_ON, headers=key)
    await api.submit(body=TRY_ON, headers=key)
    await api.submit(body={})
    await api.call("POST", BATCH, body={"items": [TRY_ON, TRY_ON, {}]})
    await api.call("POST", BATCH, body={"items": []})

    assert counted("wearon_submissions_total") == {
        ("accepted",): 2,
        ("replayed",): 1,
        ("INSUFFICIENT_CREDITS",): 1,
        ("VALIDATION_ERROR",): 3,
    }


@pytest.mark.parametrize("batch", [False, True], ids=["single", "batch"])
async def test_submission_that_is_undone_is_refused_and_failed(api: Api, *, batch: bool) -> None:
    """The session that it created was failed here, with its refund."""
    counted = Counted()
    api.service.queue.faults.away |= {"push", "push_many"}

    if batch:
        await api.call("POST", BATCH, body={"items": [TRY_ON]})
    else:
        await api.submit(body=TRY_ON)

    assert counted("wearon_submissions_total") == {("SERVICE_UNAVAILABLE",): 1}
    assert counted("wearon_sessions_ended_total") == {("failed", "QUEUE_UNAVAILABLE"): 1}


async def test_cancelled_session_has_failed(api: Api) -> None:
    """But not a second time, when the request is repeated."""
    created = await api.submit(body=TRY_ON)
    counted = Counted()

    await api.cancel(created.data["session_id"])
    await api.cancel(created.data["session_id"])

    assert counted("wearon_sessions_ended_total") == {("failed", ErrorCode.CANCELLED): 1}


async def test_session_that_is_worked_on_has_not_failed_yet(api: Api) -> None:
    """Its worker ends it, and counts that."""
    created = await api.submit(body=TRY_ON)
    await api.service.claimed(UUID(created.data["session_id"]))
    counted = Counted()

    answer = await api.cancel(created.data["session_id"])

    assert answer.status == 202
    assert counted("wearon_sessions_ended_total") == {}


async def test_original_route_counts_submissions_too(api: Api) -> None:
    await api.service.accounts.grant(STORE, 1, note="test")
    counted = Counted()
    body = {"image_urls": [MODEL_URL]}

    answers = [
        await api.call("POST", "/api/v1/generation/create", body=body, owner=STORE)
        for _ in range(2)
    ]

    assert [answer.status for answer in answers][1] == 402
    assert counted("wearon_submissions_total") == {
        ("accepted",): 1,
        ("INSUFFICIENT_CREDITS",): 1,
    }
