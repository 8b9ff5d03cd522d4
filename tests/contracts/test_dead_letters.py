"""DeadLetterPort: dead letters are listed, counted, read, requeued and discarded."""

import asyncio
from collections import Counter
from datetime import UTC, datetime, timedelta
from pathlib import Path
from uuid import uuid4

import pytest

from adapters.queue.payload import MAX_LETTER_BYTES, decode, encode
from adapters.queue.redis import RedisTaskQueue, redis_client
from domain.errors import QueueUnavailable
from domain.ports import DeadLetterPort
from domain.tasks import DeadLetter, UnreadableTask
from tests.contracts.backends import QueueBackend
from tests.support.clock import START
from tests.support.examples import a_task

pytestmark = pytest.mark.anyio

MESSAGES = {
    "text": "Grüße {".encode(),
    "not UTF-8": b'{"session_id": "\xff\xfe\x00"}',
    "empty": b"",
}


async def buried(backend: QueueBackend, raw: bytes, reason: str = "unreadable") -> DeadLetter:
    """The letter of a new unreadable message."""
    await backend.queue.bury(UnreadableTask(raw=raw, reason=reason, session_id=None), reason=reason)
    (letter,) = await backend.letters.dead(limit=1)
    return letter


async def test_buried_task_is_kept_as_it_was_sent(queue_backend: QueueBackend) -> None:
    """In the contract's JSON, with its session, the reason and the time."""
    task, before = a_task(), datetime.now(UTC)

    await queue_backend.queue.bury(task, reason="3 attempts ended without a sign of life")

    (letter,) = await queue_backend.letters.dead(limit=10)
    assert (letter.raw, letter.session_id) == (encode(task), task.session_id)
    assert decode(letter.raw) == task
    assert letter.reason == "3 attempts ended without a sign of life"
    assert before - timedelta(seconds=1) < letter.buried_at <= datetime.now(UTC)
    assert await queue_backend.messages() == []


@pytest.mark.parametrize("raw", MESSAGES.values(), ids=MESSAGES)
async def test_buried_message_is_kept_byte_for_byte(
    queue_backend: QueueBackend, raw: bytes
) -> None:
    """With the session that it names and the given reason."""
    named = uuid4()
    message = UnreadableTask(raw=raw, reason="not this one", session_id=named)

    await queue_backend.queue.bury(message, reason="it cannot be read")

    (letter,) = await queue_backend.letters.dead(limit=10)
    assert (letter.raw, letter.session_id, letter.reason) == (raw, named, "it cannot be read")


async def test_letters_are_listed_newest_first(queue_backend: QueueBackend) -> None:
    """Up to the limit, each with its own id, even if a message was buried twice."""
    for raw in (b"1", b"2", b"2"):
        await buried(queue_backend, raw)

    letters = {limit: await queue_backend.letters.dead(limit=limit) for limit in (0, 1, 2, 10)}

    assert [letter.raw for letter in letters[10]] == [b"2", b"2", b"1"]
    assert len({letter.id for letter in letters[10]}) == 3
    assert letters[2] == letters[10][:2]
    assert letters[1] == letters[10][:1]
    assert letters[0] == []


async def test_letters_are_counted(queue_backend: QueueBackend) -> None:
    """All of them, tasks not included."""
    empty = await queue_backend.letters.count()
    letters = [await buried(queue_backend, raw) for raw in (b"1", b"2", b"2")]
    await queue_backend.queue.push(a_task())
    buried_all = await queue_backend.letters.count()
    await queue_backend.letters.requeue(letters[0].id)
    await queue_backend.letters.discard(letters[1].id)

    assert (empty, buried_all, await queue_backend.letters.count()) == (0, 3, 1)


@pytest.mark.parametrize("raw", [*MESSAGES.values(), encode(a_task())], ids=[*MESSAGES, "a task"])
async def test_letter_is_read_by_its_id(queue_backend: QueueBackend, raw: bytes) -> None:
    """As it is listed; None for an unknown id, and once the letter is gone."""
    twin, letter = [await buried(queue_backend, raw) for _ in range(2)]

    found = [await queue_backend.letters.get(item.id) for item in (twin, letter)]
    unknown = await queue_backend.letters.get(uuid4())
    await queue_backend.letters.discard(letter.id)

    assert found == [twin, letter]
    assert unknown is None
    assert await queue_backend.letters.get(letter.id) is None
    assert await queue_backend.letters.get(twin.id) == twin


@pytest.mark.parametrize("raw", [*MESSAGES.values(), encode(a_task())], ids=[*MESSAGES, "a task"])
async def test_requeued_letter_waits_behind_all_tasks(
    queue_backend: QueueBackend, raw: bytes
) -> None:
    """Byte for byte, and it is no longer a dead letter; the others stay."""
    other = await buried(queue_backend, b"other")
    letter = await buried(queue_backend, raw)
    waiting = a_task()
    await queue_backend.queue.push(waiting)

    assert await queue_backend.letters.requeue(letter.id)

    assert await queue_backend.messages() == [encode(waiting), raw]
    assert await queue_backend.letters.dead(limit=10) == [other]


async def test_requeued_letter_wakes_a_waiting_pop(queue_backend: QueueBackend) -> None:
    """Long before its timeout."""
    task = a_task()
    letter = await buried(queue_backend, encode(task))
    pop = asyncio.create_task(queue_backend.queue.pop(timeout_seconds=5))

    await queue_backend.letters.requeue(letter.id)

    async with asyncio.timeout(3):
        assert await pop == task


async def test_letter_is_requeued_once(queue_backend: QueueBackend) -> None:
    """One of 20 concurrent calls moves it; its twin stays."""
    twin = await buried(queue_backend, b"x")
    letter = await buried(queue_backend, b"x")

    moved = await asyncio.gather(*(queue_backend.letters.requeue(letter.id) for _ in range(20)))

    assert Counter(moved) == {True: 1, False: 19}
    assert await queue_backend.messages() == [b"x"]
    assert await queue_backend.letters.dead(limit=10) == [twin]


async def test_letter_is_discarded_once(queue_backend: QueueBackend) -> None:
    """By one of 20 concurrent calls; its twin stays."""
    kept = await buried(queue_backend, b"x")
    letter = await buried(queue_backend, b"x")

    gone = await asyncio.gather(*(queue_backend.letters.discard(letter.id) for _ in range(20)))

    assert Counter(gone) == {True: 1, False: 19}
    assert await queue_backend.letters.dead(limit=10) == [kept]
    assert await queue_backend.messages() == []


async def test_unknown_letter(queue_backend: QueueBackend) -> None:
    """False, and nothing changes, whether there are other letters or not."""
    without = (
        await queue_backend.letters.requeue(uuid4()),
        await queue_backend.letters.discard(uuid4()),
    )
    letter = await buried(queue_backend, b"x")

    among = (
        await queue_backend.letters.requeue(uuid4()),
        await queue_backend.letters.discard(uuid4()),
    )

    assert without == among == (False, False)
    assert await queue_backend.letters.dead(limit=10) == [letter]
    assert await queue_backend.messages() == []


async def test_only_the_newest_letters_are_kept(queue_backend: QueueBackend) -> None:
    """Up to the adapter's limit; the oldest kept one can still be requeued."""
    backend = queue_backend.keeping(3)
    for number in range(5):
        await buried(backend, b"%d" % number)

    letters = await backend.letters.dead(limit=10)

    assert [letter.raw for letter in letters] == [b"4", b"3", b"2"]
    assert await backend.letters.count() == 3
    assert await backend.letters.requeue(letters[-1].id)


async def test_the_oldest_of_many_letters_is_found(queue_backend: QueueBackend) -> None:
    """By ``get`` and ``discard``, however many newer ones there are."""
    letter = await buried(queue_backend, b"oldest")
    for number in range(1_001):
        await queue_backend.queue.bury(a_task(), reason=str(number))

    assert await queue_backend.letters.get(letter.id) == letter
    assert await queue_backend.letters.discard(letter.id)

    assert len(await queue_backend.letters.dead(limit=10_000)) == 1_001


async def test_task_that_is_buried_once(queue_backend: QueueBackend) -> None:
    """Any further one of its session is dropped, until the letter is requeued. Other sessions are
    not affected."""
    task, other = a_task(), a_task()
    for _ in range(3):
        for item in (task, other, a_task(session_id=task.session_id)):
            await queue_backend.queue.bury(item, reason="unknown", once=True)
    letters = await queue_backend.letters.dead(limit=10)
    assert [letter.session_id for letter in letters] == [other.session_id, task.session_id]

    assert await queue_backend.letters.requeue(letters[1].id)
    await queue_backend.queue.bury(task, reason="unknown", once=True)

    found = [letter.raw for letter in await queue_backend.letters.dead(limit=10)]
    assert found == [encode(task), encode(other)]


async def test_discarded_letter_is_not_buried_again(queue_backend: QueueBackend) -> None:
    """An operator has seen it."""
    task = a_task()
    await queue_backend.queue.bury(task, reason="unknown", once=True)
    (letter,) = await queue_backend.letters.dead(limit=10)
    await queue_backend.letters.discard(letter.id)

    await queue_backend.queue.bury(task, reason="unknown", once=True)

    assert await queue_backend.letters.dead(limit=10) == []


async def test_buried_sessions_are_remembered_up_to_the_limit(queue_backend: QueueBackend) -> None:
    """As many as letters are kept: then the oldest may be buried again."""
    backend = queue_backend.keeping(2)
    tasks = [a_task() for _ in range(3)]
    for task in tasks:
        await backend.queue.bury(task, reason="unknown", once=True)

    for task in (tasks[2], tasks[0]):
        await backend.queue.bury(task, reason="unknown", once=True)

    letters = await backend.letters.dead(limit=10)
    assert [letter.session_id for letter in letters] == [
        tasks[0].session_id,
        tasks[2].session_id,
    ]


HUGE = {
    "text": b"x" * 1_000_000,
    "not UTF-8": b"\xff" * 1_000_000,
    "cut within a character": b"x" + "ü".encode() * MAX_LETTER_BYTES,
}


@pytest.mark.parametrize("raw", HUGE.values(), ids=HUGE)
async def test_of_a_huge_message_the_beginning_is_kept(
    queue_backend: QueueBackend, raw: bytes
) -> None:
    """With its size. It cannot be requeued, because it is no longer the message, but discarded."""
    letter = await buried(queue_backend, raw)

    assert (letter.raw, letter.size) == (raw[:MAX_LETTER_BYTES], len(raw))
    assert letter.is_truncated
    assert not await queue_backend.letters.requeue(letter.id)
    assert await queue_backend.messages() == []
    assert await queue_backend.letters.dead(limit=10) == [letter]
    assert await queue_backend.letters.discard(letter.id)


async def test_longest_letter_is_kept_whole(queue_backend: QueueBackend) -> None:
    """Up to the limit, and it can be requeued."""
    raw = b"x" * MAX_LETTER_BYTES
    letter = await buried(queue_backend, raw)

    assert (letter.raw, letter.size, letter.is_truncated) == (raw, len(raw), False)
    assert await queue_backend.letters.requeue(letter.id)


CALLS = {
    "dead": lambda letters: letters.dead(limit=1),
    "get": lambda letters: letters.get(uuid4()),
    "count": lambda letters: letters.count(),
    "requeue": lambda letters: letters.requeue(uuid4()),
    "discard": lambda letters: letters.discard(uuid4()),
}


@pytest.mark.parametrize("method", CALLS)
async def test_unreachable_server_raises_queue_unavailable(method: str, tmp_path: Path) -> None:
    """From every method."""
    client = redis_client(f"unix://{tmp_path}/nobody.sock")
    letters: DeadLetterPort = RedisTaskQueue(client=client, timeout_seconds=1, clock=lambda: START)

    with pytest.raises(QueueUnavailable):
        await CALLS[method](letters)


def test_every_method_of_the_port_is_called_without_a_server() -> None:
    """No new method is missing above."""
    assert set(CALLS) == {name for name in vars(DeadLetterPort) if not name.startswith("_")}
