"""Streams of events, and requests that wait for the end of a session."""

import asyncio
import json
from typing import Any

import pytest

from domain.changes import NEVER_READ
from domain.sessions import FINAL_REVISION
from domain.watching import MAX_IDS
from entrypoints.http.streams import CHECK_SECONDS
from tests.support.clock import VirtualTimeLoop, loop_time
from tests.support.examples import FAILURE, LEASE, MODEL_URL, OTHER, STORE, STORED_PICTURE, USER
from tests.support.http import GENERATIONS, Api

pytestmark = pytest.mark.anyio

BODY = {"model_image_url": MODEL_URL}
EVENTS = "/api/v1/events"
ABSENT = "01a220eb-8fa9-7232-989a-46ee1bfd8dd7"
QUEUED = 1


@pytest.fixture(scope="module")
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@pytest.fixture
def api() -> Api:
    return Api()


async def submitted(api: Api) -> str:
    return str((await api.service.submitted()).session.id)


async def finish(api: Api, session_id: str) -> None:
    """As a worker does that fails it at once."""
    (session,) = [s for s in await api.service.sessions() if str(s.id) == session_id]
    await api.service.repo.claim(session.id, lease=LEASE)
    await api.service.repo.fail(session.id, FAILURE, attempt=1)
    api.service.changes.publish(session)


def now() -> float:
    return asyncio.get_running_loop().time()


def shown(event: tuple[int, dict[str, Any]]) -> tuple[int, str]:
    revision, data = event
    return revision, data["status"]


async def test_stream_shows_what_a_read_shows(api: Api) -> None:
    """Each state as one event with its revision; then the response ends."""
    session_id = await submitted(api)
    stream = await api.stream(f"{GENERATIONS}/{session_id}/events")
    status, headers = stream.status, stream.headers
    (first,) = await stream.events(1)
    await finish(api, session_id)
    (last,) = await stream.events(1)
    read = await api.get(f"{GENERATIONS}/{session_id}")

    assert status == 200
    assert headers["content-type"] == "text/event-stream"
    assert headers["cache-control"] == "no-store"
    assert headers["x-accel-buffering"] == "no"
    assert shown(first) == (QUEUED, "queued")
    assert last == (FINAL_REVISION, read.data)
    assert await stream.event() is None


async def test_stream_resumes_after_an_event(api: Api) -> None:
    """With the event's id, only what is newer is sent. If nothing will be, the answer is a 204,
    which an EventSource takes as the end."""
    session_id = await submitted(api)
    path = f"{GENERATIONS}/{session_id}/events"
    stream = await api.stream(path, last_event_id=str(QUEUED))
    await finish(api, session_id)
    (event,) = await stream.events(1)
    over = await api.get(path, headers=[("last-event-id", str(event[0]))])

    assert shown(event) == (FINAL_REVISION, "failed")
    assert (over.status, over.body) == (204, b"")


@pytest.mark.parametrize("given", ["x", "-1", "1.5", "9" * 30, "²"])
async def test_last_event_id_that_is_none(api: Api, given: str) -> None:
    session_id = await submitted(api)
    headers = [("last-event-id", given)]
    answer = await api.get(f"{GENERATIONS}/{session_id}/events", headers=headers)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert "Last-Event-ID" in answer.json["error"]["message"]


async def test_ping_is_a_comment(api: Api) -> None:
    """It has no id, so the client's last one stays. The stream says when to come again."""
    session_id = await submitted(api)
    stream = await api.stream(f"{GENERATIONS}/{session_id}/events")
    retry = await stream.event()
    await stream.events(1)
    ping = await stream.event()
    await stream.close()

    assert isinstance(retry, str)
    assert retry.startswith("retry: ")
    assert 1_000 <= int(retry.removeprefix("retry: ")) <= 3_000
    assert ping == ": ping"


async def test_client_that_leaves_waits_no_more(api: Api) -> None:
    """From that moment on, not only after the next ping or the stream's lifetime."""
    stream = await api.stream(f"{GENERATIONS}/{await submitted(api)}/events")
    await stream.events(1)
    before, left_at = len(api.watching), now()
    await stream.close()

    assert (before, len(api.watching)) == (1, 0)
    assert now() == left_at


async def test_stream_of_several_sessions(api: Api) -> None:
    """Each one's current state and its changes. Repeated ids count once."""
    first, second = await submitted(api), await submitted(api)
    stream = await api.stream(f"{EVENTS}?ids={first},{second},{first}")
    current = await stream.events(2)
    await finish(api, first)
    await finish(api, second)
    later = await stream.events(2)

    assert {data["session_id"] for _, data in current} == {first, second}
    assert [shown(event) for event in (*current, *later)] == [(QUEUED, "queued")] * 2 + [
        (FINAL_REVISION, "failed")
    ] * 2
    assert await stream.event() is None


async def test_stream_of_all_sessions(api: Api) -> None:
    """Of the caller: what changes from now on."""
    await submitted(api)
    stream = await api.stream(EVENTS)
    await asyncio.sleep(0.1)
    await api.service.submitted(OTHER)
    new = await submitted(api)
    await finish(api, new)
    (event,) = await stream.events(1)
    await stream.close()

    assert (event[0], event[1]["session_id"]) == (FINAL_REVISION, new)


async def revoke_key(api: Api) -> None:
    (key,) = await api.keys.all(STORE)
    assert await api.keys.revoke(key.id)


async def test_stream_ends_once_its_credential_is_revoked(api: Api) -> None:
    """Within two minutes, also if nothing happens."""
    session = (await api.service.submitted(STORE)).session
    stream = await api.stream(f"{GENERATIONS}/{session.id}/events", owner=STORE)
    await stream.events(1)
    began = loop_time()
    await revoke_key(api)
    while (event := await stream.event()) is not None:
        assert event == ": ping"

    assert loop_time() - began <= 120


async def test_busy_stream_ends_once_its_credential_is_revoked(api: Api) -> None:
    """Before it shows anything after the check."""
    await api.service.submitted(STORE)
    stream = await api.stream(EVENTS, owner=STORE)
    began = loop_time()
    await revoke_key(api)
    shown_until = began
    while shown_until < began + 2 * CHECK_SECONDS:
        await asyncio.sleep(1)
        await api.service.submitted(STORE)
        while isinstance(event := await stream.event(), str):
            pass
        if event is None:
            break
        shown_until = loop_time()

    assert CHECK_SECONDS / 2 < shown_until - began <= CHECK_SECONDS


async def test_stream_goes_on_if_its_credential_cannot_be_checked(api: Api) -> None:
    session = (await api.service.submitted(STORE)).session
    stream = await api.stream(f"{GENERATIONS}/{session.id}/events", owner=STORE)
    api.keys.faults.away.add("caller_of")
    calls = len(api.keys.faults.calls)
    await asyncio.sleep(3 * CHECK_SECONDS)
    checks = len(api.keys.faults.calls) - calls
    await api.service.repo.claim(session.id, lease=LEASE)
    await api.service.repo.fail(session.id, FAILURE, attempt=1)
    revision = NEVER_READ
    while revision != FINAL_REVISION:
        ((revision, _),) = await stream.events(1)

    assert checks


@pytest.mark.parametrize(
    ("query", "message"),
    [
        ("?ids=", "ids: must be ids of sessions, separated by commas"),
        ("?ids=x", "ids: must be ids of sessions, separated by commas"),
        (f"?ids={ABSENT},", "ids: must be ids of sessions, separated by commas"),
        ("?ids=a&ids=b", "ids: is given more than once"),
        ("?id=a", "id: is not a parameter of this request"),
        ("?ids=" + ",".join([ABSENT] * (MAX_IDS + 1)), f"ids: at most {MAX_IDS}"),
    ],
)
async def test_ids_that_are_none(api: Api, query: str, message: str) -> None:
    answer = await api.get(EVENTS + query)

    assert answer.error == (400, "VALIDATION_ERROR")
    assert answer.json["error"]["message"].startswith(message)


@pytest.mark.parametrize("path", [f"{GENERATIONS}/{ABSENT}/events", f"{GENERATIONS}/x/events"])
async def test_stream_of_an_unknown_session(api: Api, path: str) -> None:
    assert (await api.get(path)).error == (404, "NOT_FOUND")


async def test_head_of_a_stream_is_short(api: Api) -> None:
    path = f"{GENERATIONS}/{await submitted(api)}/events"
    began = now()
    answer = await api.call("HEAD", path, content_type=None)

    assert (answer.status, answer.headers["content-type"]) == (200, "text/event-stream")
    assert len(api.watching) == 0
    assert now() == began


async def test_streams_end_when_the_process_stops(api: Api) -> None:
    """New ones get a 503 with ``Retry-After``."""
    path = f"{GENERATIONS}/{await submitted(api)}/events"
    stream = await api.stream(path)
    await stream.events(1)
    api.watching.drain()
    ended = await stream.event()
    refused = await api.get(path)

    assert ended is None
    assert refused.error == (503, "SERVICE_UNAVAILABLE")
    assert refused.headers["retry-after"]


async def waited_submit(api: Api, prefer: str = "wait=30", **headers: str) -> Any:
    await api.service.accounts.grant(USER, 1, note="test")
    given = [("prefer", prefer), *headers.items()]
    return await api.submit(body=BODY, headers=given)


async def test_submission_waits_for_the_end(api: Api) -> None:
    """200 with the session as a read shows it, and with the headers of a 202."""
    waiting = asyncio.create_task(waited_submit(api))
    await asyncio.sleep(1.5)
    sessions = await api.service.sessions()
    await finish(api, str(sessions[0].id))
    answer = await waiting
    read = await api.get(answer.headers["location"])

    assert answer.status == 200
    assert answer.json == read.json
    assert answer.data["status"] == "failed"
    assert answer.headers["preference-applied"] == "wait=30"


async def test_submission_waits_no_longer_than_asked(api: Api) -> None:
    """Then it is the usual 202. The request did wait."""
    began = asyncio.get_running_loop().time()
    answer = await waited_submit(api, "respond-async, wait=7")

    assert answer.status == 202
    assert answer.data["status"] == "queued"
    assert answer.headers["preference-applied"] == "wait=7"
    assert 7 <= asyncio.get_running_loop().time() - began < 7.1


@pytest.mark.parametrize("prefer", ["wait=0", "wait=x", "wait", "wait=-1", "return=minimal", ""])
async def test_other_preferences_are_ignored(api: Api, prefer: str) -> None:
    """As RFC 7240 asks for."""
    began = asyncio.get_running_loop().time()
    answer = await waited_submit(api, prefer)

    assert answer.status == 202
    assert "preference-applied" not in answer.headers
    assert asyncio.get_running_loop().time() == began


async def test_wait_is_cut_to_a_minute(api: Api) -> None:
    answer = await waited_submit(api, "wait=3600")

    assert answer.headers["preference-applied"] == "wait=60"


async def test_accepted_submission_stays_accepted_if_it_cannot_wait(api: Api) -> None:
    """With too many waiting clients, or while the process stops, it is answered at once."""
    api.watching.drain()
    answer = await waited_submit(api)

    assert answer.status == 202
    assert "preference-applied" not in answer.headers


async def test_replay_waits_too(api: Api) -> None:
    """For the session of the first request."""
    first = await waited_submit(api, "", **{"idempotency-key": "k"})
    session_id = first.data["session_id"]
    waiting = asyncio.create_task(waited_submit(api, **{"idempotency-key": "k"}))
    await asyncio.sleep(1.5)
    await finish(api, session_id)
    answer = await waiting

    assert (answer.status, answer.data["session_id"]) == (200, session_id)
    assert answer.headers["idempotency-replayed"] == "true"


async def test_read_waits_for_the_end(api: Api) -> None:
    session_id = await submitted(api)
    path, headers = f"{GENERATIONS}/{session_id}", [("prefer", "wait=10")]
    waiting = asyncio.create_task(api.get(path, headers=headers))
    await asyncio.sleep(3)
    await finish(api, session_id)
    answer = await waiting
    again = await api.get(path, headers=headers)

    assert (answer.status, answer.data["status"]) == (200, "failed")
    assert answer.headers["preference-applied"] == "wait=10"
    assert "preference-applied" not in again.headers
    assert again.json == answer.json


async def test_read_waits_no_longer_than_asked(api: Api) -> None:
    """The answer then has the position in the queue, like any other read."""
    answer = await api.get(f"{GENERATIONS}/{await submitted(api)}", headers=[("prefer", "wait=3")])

    assert (answer.status, answer.data["status"]) == (200, "queued")
    assert answer.data["queue_position"] == 1
    assert answer.headers["preference-applied"] == "wait=3"


async def test_picture_of_an_event_is_signed(api: Api) -> None:
    session_id = await submitted(api)
    (session,) = await api.service.sessions()
    await api.service.repo.claim(session.id, lease=LEASE)
    await api.service.repo.complete(session.id, attempt=1, picture=STORED_PICTURE)
    stream = await api.stream(f"{GENERATIONS}/{session_id}/events")
    (event,) = await stream.events(1)

    link = event[1]["generated_image_url"]
    assert link.startswith(api.storage.url(STORED_PICTURE.object_key).partition("?")[0])
    assert json.dumps(event[1])
