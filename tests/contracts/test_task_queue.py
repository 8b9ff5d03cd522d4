"""TaskQueuePort, and the payload: the contract with external producers and consumers."""

import asyncio
import json
import time
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import pytest

from adapters.queue.payload import encode
from adapters.queue.redis import RedisTaskQueue, redis_client
from domain.errors import QueueUnavailable
from domain.ports import TaskQueuePort
from domain.tasks import GenerationTask, UnreadableTask
from tests.contracts.backends import QueueBackend
from tests.support.examples import STORE, TRACEPARENT, USER, a_task

pytestmark = pytest.mark.anyio

TASK_ID = "0d4ff3a4-4c5b-4c70-8b3c-6f4b6d3f6a01"
SESSION_ID = "c0a8d1f2-7f1d-4f6b-9d52-2f7a5a1d9b02"
TASK = a_task(
    task_id=UUID(TASK_ID),
    owner=STORE,
    session_id=UUID(SESSION_ID),
    image_urls=("https://pictures.example/model.jpg", "https://pictures.example/hat.jpg"),
    prompt='Grüße, "im" Regen 👒',
    request_id="req_42",
    created_at=datetime(2026, 1, 2, 3, 4, 5, 678901, tzinfo=UTC),
    traceparent=TRACEPARENT,
)
PAYLOAD: dict[str, Any] = {
    "task_id": TASK_ID,
    "channel": "b2b",
    "store_id": STORE.id,
    "session_id": SESSION_ID,
    "image_urls": ["https://pictures.example/model.jpg", "https://pictures.example/hat.jpg"],
    "prompt": 'Grüße, "im" Regen 👒',
    "request_id": "req_42",
    "version": 1,
    "created_at": "2026-01-02T03:04:05.678901Z",
    "traceparent": TRACEPARENT,
}
USERS_PAYLOAD = {
    **{key: value for key, value in PAYLOAD.items() if key != "store_id"},
    "channel": "b2c",
    "user_id": USER.id,
}


def without(*keys: str) -> dict[str, Any]:
    return {key: value for key, value in PAYLOAD.items() if key not in keys}


async def pop(backend: QueueBackend) -> GenerationTask | UnreadableTask | None:
    """The next message, which is already in the queue."""
    return await backend.queue.pop(timeout_seconds=1)


async def pop_all(backend: QueueBackend) -> list[GenerationTask | UnreadableTask | None]:
    return [await pop(backend) for _ in range(await backend.queue.depth())]


async def test_first_in_first_out(queue_backend: QueueBackend) -> None:
    """A pushed task waits behind all others and is popped unchanged."""
    tasks = [a_task(owner=owner) for owner in (USER, STORE, USER)]

    for task in tasks:
        await queue_backend.queue.push(task)

    assert await pop_all(queue_backend) == tasks


async def test_push_next_goes_before_all_others(queue_backend: QueueBackend) -> None:
    """The last one of its tasks is popped first; earlier messages follow."""
    waiting, first, second, third = (a_task() for _ in range(4))
    await queue_backend.queue.push(waiting)

    await queue_backend.queue.push_next([first, second])
    await queue_backend.queue.push_next([third])

    assert await pop_all(queue_backend) == [third, second, first, waiting]


async def test_push_next_of_nothing(queue_backend: QueueBackend) -> None:
    """An empty sequence is no error and changes nothing."""
    task = a_task()
    await queue_backend.queue.push(task)

    await queue_backend.queue.push_next([])

    assert await pop_all(queue_backend) == [task]


async def test_pop_timeout(queue_backend: QueueBackend) -> None:
    """None if no message arrived, and not before the timeout."""
    began = time.monotonic()

    popped = await queue_backend.queue.pop(timeout_seconds=0.3)

    assert popped is None
    assert 0.25 < time.monotonic() - began < 2


async def test_pop_with_a_timeout_of_zero(queue_backend: QueueBackend) -> None:
    """Returns immediately: the next message, or None from an empty queue."""
    task = a_task()
    async with asyncio.timeout(1):
        from_empty = await queue_backend.queue.pop(timeout_seconds=0)
    await queue_backend.queue.push(task)

    async with asyncio.timeout(1):
        from_full = await queue_backend.queue.pop(timeout_seconds=0)

    assert from_empty is None
    assert from_full == task


@pytest.mark.parametrize("push_next", [False, True])
async def test_waiting_pop_gets_a_new_task(queue_backend: QueueBackend, *, push_next: bool) -> None:
    """It returns when the task arrives, long before its timeout."""
    task = a_task()
    pop = asyncio.create_task(queue_backend.queue.pop(timeout_seconds=5))
    await asyncio.sleep(0.05)  # It most likely waits by now; if not, the test holds as well.

    if push_next:
        await queue_backend.queue.push_next([task])
    else:
        await queue_backend.queue.push(task)

    async with asyncio.timeout(3):
        assert await pop == task


async def test_message_is_popped_once(queue_backend: QueueBackend) -> None:
    """Each of several waiting pops gets a different task; the remaining ones get None."""
    tasks = [a_task() for _ in range(3)]
    pops = [asyncio.create_task(queue_backend.queue.pop(timeout_seconds=0.5)) for _ in range(5)]

    for task in tasks:
        await queue_backend.queue.push(task)

    popped = await asyncio.gather(*pops)
    got = [message.session_id for message in popped if isinstance(message, GenerationTask)]
    assert sorted(got) == sorted(task.session_id for task in tasks)
    assert popped.count(None) == 2


async def test_oldest_stays_in_place(queue_backend: QueueBackend) -> None:
    """It is the message that the next pop returns, and stays in the queue."""
    older, younger = a_task(), a_task()
    assert await queue_backend.queue.oldest() is None
    await queue_backend.queue.push(older)
    await queue_backend.queue.push(younger)

    assert await queue_backend.queue.oldest() == older
    assert await queue_backend.queue.oldest() == older

    assert await pop_all(queue_backend) == [older, younger]


async def test_depth_counts_waiting_messages(queue_backend: QueueBackend) -> None:
    """Readable or not; buried ones no longer count."""
    depths = [await queue_backend.queue.depth()]
    await queue_backend.queue.push(a_task())
    depths.append(await queue_backend.queue.depth())
    await queue_backend.send(b"not JSON")
    depths.append(await queue_backend.queue.depth())
    await pop(queue_backend)
    unreadable = await pop(queue_backend)
    assert isinstance(unreadable, UnreadableTask)
    await queue_backend.queue.bury(unreadable, reason=unreadable.reason)
    depths.append(await queue_backend.queue.depth())

    assert depths == [0, 1, 2, 0]


@pytest.mark.parametrize(
    ("task", "payload"),
    [
        (TASK, PAYLOAD),
        (
            a_task(**vars(TASK) | {"owner": USER}),
            USERS_PAYLOAD,
        ),
    ],
    ids=["store", "user"],
)
async def test_payload_on_the_wire(
    queue_backend: QueueBackend, task: GenerationTask, payload: dict[str, Any]
) -> None:
    """The JSON has the keys of the contract's table, and no others."""
    await queue_backend.queue.push(task)
    await queue_backend.queue.push_next([task])

    assert [json.loads(raw) for raw in await queue_backend.messages()] == [payload, payload]


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"user_id": None},
        {"user_id": "somebody"},
        {"new_key": {"of": ["a", "newer", "producer"]}},
        {"version": ...},
        {"created_at": "2026-01-02T04:04:05.678901+01:00"},
    ],
    ids=lambda changes: ",".join(changes) or "as is",
)
async def test_accepted_payloads_of_other_producers(
    queue_backend: QueueBackend, changes: dict[str, Any]
) -> None:
    """Unknown keys are ignored, the version may be missing, and the owner key that does not apply
    may be missing or null. Such messages keep their place among ours."""
    ours = a_task()
    payload = {key: value for key, value in (PAYLOAD | changes).items() if value is not ...}
    await queue_backend.queue.push(ours)

    await queue_backend.send(json.dumps(payload).encode())

    assert await pop_all(queue_backend) == [ours, TASK]


NAMED = UUID(SESSION_ID)
UNREADABLE: dict[str, tuple[bytes | dict[str, Any], UUID | None]] = {
    "empty": (b"", None),
    "not JSON": (b"\x00\x01 hello", None),
    "not UTF-8": (b'{"session_id": "\xff\xfe"}', None),
    "cut off": (encode(TASK)[:-1], None),
    "an array": (b"[1, 2]", None),
    "null": (b"null", None),
    "a number that is none": (b'{"version": 1e400}', None),
    "200,000 brackets": (b"[" * 200_000, None),
    "an empty object": ({}, None),
    "no session": (without("session_id"), None),
    "a session that is no UUID": (PAYLOAD | {"session_id": "42"}, None),
    "a session that is a number": (PAYLOAD | {"session_id": 42}, None),
    "no task id": (without("task_id"), NAMED),
    "a newer version": (PAYLOAD | {"version": 2}, NAMED),
    "version 0": (PAYLOAD | {"version": 0}, NAMED),
    "a version that is text": (PAYLOAD | {"version": "1"}, NAMED),
    "an unknown channel": (PAYLOAD | {"channel": "b2x"}, NAMED),
    "no channel": (without("channel"), NAMED),
    "no owner": (without("store_id"), NAMED),
    "an owner that is null": (PAYLOAD | {"store_id": None}, NAMED),
    "the other channel's owner": (USERS_PAYLOAD | {"channel": "b2b"}, NAMED),
    "an owner that could escape": (PAYLOAD | {"store_id": "../up"}, NAMED),
    "no pictures": (PAYLOAD | {"image_urls": []}, NAMED),
    "pictures that are text": (PAYLOAD | {"image_urls": "https://pictures.example/"}, NAMED),
    "a picture that is null": (PAYLOAD | {"image_urls": [None]}, NAMED),
    "no prompt": (without("prompt"), NAMED),
    "a prompt that is null": (PAYLOAD | {"prompt": None}, NAMED),
    "no request id": (without("request_id"), NAMED),
    "no time": (without("created_at"), NAMED),
    "a time without a zone": (PAYLOAD | {"created_at": "2026-01-02T03:04:05"}, NAMED),
    "a time that is a number": (PAYLOAD | {"created_at": 1767323045}, NAMED),
}


@pytest.mark.parametrize("traceparent", [..., None, "", "no trace", 1, ["a", "list"]])
async def test_missing_or_invalid_trace_is_none(
    queue_backend: QueueBackend, traceparent: object
) -> None:
    """The trace is no reason to reject a task."""
    payload = {**PAYLOAD, "traceparent": traceparent}
    given = {key: value for key, value in payload.items() if value is not ...}

    await queue_backend.send(json.dumps(given).encode())

    assert await pop(queue_backend) == replace(TASK, traceparent=None)


@pytest.mark.parametrize("case", UNREADABLE)
async def test_invalid_message_is_popped_with_its_reason(
    queue_backend: QueueBackend, case: str
) -> None:
    """With its raw bytes and the session that it names; later messages are not affected."""
    message, named = UNREADABLE[case]
    raw = message if isinstance(message, bytes) else json.dumps(message).encode()
    good = a_task()
    await queue_backend.send(raw)
    await queue_backend.queue.push(good)

    seen = await queue_backend.queue.oldest()
    popped = await pop(queue_backend)

    assert isinstance(popped, UnreadableTask)
    assert popped == seen
    assert popped.raw == raw
    assert popped.reason
    assert popped.session_id == named
    assert await pop(queue_backend) == good


@pytest.mark.parametrize("raw", ["Grüße {".encode(), b"\xff\xfe\x00", b""])
@pytest.mark.parametrize("named", [None, uuid4()])
async def test_buried_messages_are_kept(
    queue_backend: QueueBackend, raw: bytes, named: UUID | None
) -> None:
    """Raw text, reason and session, separately from the tasks, newest first."""
    first = UnreadableTask(raw=raw, reason="it cannot be read", session_id=named)
    second = UnreadableTask(raw=b"other", reason="neither can this", session_id=None)
    await queue_backend.queue.push(TASK)

    await queue_backend.queue.bury(first, reason=first.reason)
    await queue_backend.queue.bury(second, reason=second.reason)

    assert await queue_backend.dead() == [second, first]
    assert await queue_backend.messages() == [encode(TASK)]


CALLS = {
    "push": lambda queue: queue.push(TASK),
    "push_many": lambda queue: queue.push_many([TASK]),
    "push_next": lambda queue: queue.push_next([TASK]),
    "pop": lambda queue: queue.pop(timeout_seconds=0.1),
    "oldest": lambda queue: queue.oldest(),
    "depth": lambda queue: queue.depth(),
    "bury": lambda queue: queue.bury(TASK, reason=""),
}


@pytest.mark.parametrize("method", CALLS)
async def test_unreachable_server_raises_queue_unavailable(method: str, tmp_path: Path) -> None:
    """From every method."""
    client = redis_client(f"unix://{tmp_path}/nobody.sock")
    queue: TaskQueuePort = RedisTaskQueue(
        client=client, timeout_seconds=1, clock=lambda: TASK.created_at
    )

    with pytest.raises(QueueUnavailable):
        await CALLS[method](queue)


def test_every_method_of_the_port_is_called_without_a_server() -> None:
    """No new method is missing above."""
    assert set(CALLS) == {name for name in vars(TaskQueuePort) if not name.startswith("_")}


async def test_probe_of_writes_changes_nothing(queue_backend: QueueBackend) -> None:
    """Whether the queue is empty or not."""
    await queue_backend.probe.check_writes()
    empty = await queue_backend.messages()
    await queue_backend.queue.push(TASK)
    await queue_backend.probe.check_writes()

    assert empty == []
    assert await queue_backend.queue.depth() == 1
    assert await queue_backend.letters.count() == 0
