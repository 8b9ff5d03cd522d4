"""However many wait for messages, and whenever they give up: each message goes to one of them, or
stays in the queue, in its place."""

import asyncio
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import count
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.queue.pops import SharedPops
from domain.errors import QueueUnavailable, Unavailable
from tests.support.clock import VirtualTimeLoop, loop_time

pytestmark = pytest.mark.anyio


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


@dataclass(kw_only=True)
class Queue:
    """A list as Redis keeps it: the last message is the next. A reply takes ``reply_seconds`` on
    its way, and who takes messages has them from the moment in which they leave the list."""

    reply_seconds: float = 0.0
    messages: deque[bytes] = field(default_factory=deque)
    commands: list[str] = field(default_factory=list)
    error: Exception | None = None
    _more: asyncio.Event = field(default_factory=asyncio.Event)

    def send(self, message: bytes) -> None:
        self.messages.appendleft(message)
        self._more.set()

    async def take(self, count: int) -> Sequence[bytes]:
        self.commands.append(f"take {count}")
        self._check()
        found = [self.messages.pop() for _ in range(min(count, len(self.messages)))]
        await asyncio.sleep(self.reply_seconds)
        return found

    async def await_next(self, seconds: float) -> bytes | None:
        self.commands.append(f"await {seconds:g}")
        self._check()
        try:
            async with asyncio.timeout(seconds):
                while not self.messages:
                    self._more.clear()
                    await self._more.wait()
                    self._check()
        except TimeoutError:
            return None
        message = self.messages.pop()
        await asyncio.sleep(self.reply_seconds)
        return message

    async def put_back(self, messages: Sequence[bytes]) -> None:
        self.commands.append(f"put back {len(messages)}")
        self._check()
        self.messages.extend(messages)
        await asyncio.sleep(self.reply_seconds)

    def fail(self, error: Exception) -> None:
        self.error = error
        self._more.set()

    def _check(self) -> None:
        if self.error is not None:
            raise self.error

    def pops(self) -> SharedPops:
        return SharedPops(take=self.take, await_next=self.await_next, put_back=self.put_back)

    def next_ones(self) -> list[bytes]:
        return list(reversed(self.messages))


def popping(pops: SharedPops, waiting: int, *, seconds: float = 100) -> list[asyncio.Task[Any]]:
    return [asyncio.create_task(pops.pop(seconds)) for _ in range(waiting)]


async def a_moment() -> None:
    """Longer than everything that happens at once, and shorter than a second."""
    await asyncio.sleep(0.01)


async def test_first_come_first_served() -> None:
    """By as few commands as there can be: one that waits, and one for all that came meanwhile."""
    queue = Queue()
    tasks = popping(queue.pops(), 3)
    await a_moment()
    for message in (b"1", b"2", b"3"):
        queue.send(message)

    assert await asyncio.gather(*tasks) == [b"1", b"2", b"3"]
    assert queue.commands == ["await 100", "take 2"]


async def test_where_there_is_plenty_no_single_one_is_waited_for() -> None:
    """What a take brings one for each of is followed by another take: a message that comes by
    itself is claimed by itself. One that brings less is not."""
    queue = Queue()
    pops = queue.pops()
    for message in (b"1", b"2", b"3", b"4", b"5"):
        queue.send(message)
    await asyncio.gather(*popping(pops, 3))

    assert await asyncio.gather(*popping(pops, 2)) == [b"4", b"5"]
    assert queue.commands == ["await 100", "take 2", "take 2"]
    for _ in range(2):
        assert await pops.pop(1) is None
    assert queue.commands[3:] == ["take 1", "await 1", "await 1"]


async def test_whoever_has_a_message_begins_with_it_first() -> None:
    """A worker's claim, which a task of its own sends, comes before the command that asks for more
    for those that still wait."""
    queue = Queue()
    pops = queue.pops()

    async def claim() -> None:
        queue.commands.append("claim")

    async def slot() -> None:
        await pops.pop(100)
        await asyncio.create_task(claim())

    slots = [asyncio.create_task(slot()) for _ in range(2)]
    await a_moment()
    queue.send(b"1")
    await a_moment()
    queue.send(b"2")
    await asyncio.gather(*slots)

    assert queue.commands[:4] == ["await 100", "claim", "take 1", "await 99.99"]


async def test_never_more_than_are_waited_for() -> None:
    """What nobody can work on stays for other processes."""
    queue = Queue()
    for message in (b"1", b"2", b"3", b"4"):
        queue.send(message)

    assert await asyncio.gather(*popping(queue.pops(), 3)) == [b"1", b"2", b"3"]
    assert queue.next_ones() == [b"4"]
    assert "put back 1" not in queue.commands


async def test_none_when_the_time_is_over() -> None:
    """For each that waits."""
    queue = Queue()
    began = loop_time()

    assert await asyncio.gather(*popping(queue.pops(), 3, seconds=5)) == [None] * 3
    assert loop_time() - began == 5


async def test_the_time_of_the_most_impatient_counts() -> None:
    """Whoever came first; the others ask again."""
    queue = Queue()
    pops = queue.pops()
    began = loop_time()

    results = await asyncio.gather(*(pops.pop(seconds) for seconds in (100, 5, 50)))

    assert results == [None] * 3
    assert loop_time() - began == 5


async def test_what_was_taken_for_one_that_gave_up_goes_to_another() -> None:
    queue = Queue(reply_seconds=1)
    pops = queue.pops()
    first, second = popping(pops, 2)
    await a_moment()
    queue.send(b"1")
    await a_moment()

    first.cancel()

    assert await second == b"1"
    assert first.cancelled()


async def test_what_was_taken_for_those_that_gave_up_goes_back_in_its_order() -> None:
    """To the place that it had, so that whoever is next gets the oldest."""
    queue = Queue(reply_seconds=1)
    pops = queue.pops()
    tasks = popping(pops, 4)
    await a_moment()
    for message in (b"1", b"2", b"3", b"4", b"5"):
        queue.send(message)
    await asyncio.sleep(1.5)  # One has its message, and those of the others are on their way.

    for task in tasks[2:]:
        task.cancel()
    results = await asyncio.gather(*tasks[:2])
    await asyncio.sleep(3)

    assert results == [b"1", b"2"]
    assert queue.next_ones() == [b"3", b"4", b"5"]


async def test_all_that_wait_hear_of_a_failure() -> None:
    """And whoever comes afterwards tries again."""
    queue = Queue()
    pops = queue.pops()
    tasks = popping(pops, 2)
    await a_moment()

    queue.fail(QueueUnavailable("gone"))
    results = await asyncio.gather(*tasks, return_exceptions=True)
    queue.error = None
    queue.send(b"1")

    assert [type(result) for result in results] == [QueueUnavailable] * 2
    assert await pops.pop(1) == b"1"


async def test_also_of_one_that_nobody_expected() -> None:
    """Or they would wait for ever."""
    queue = Queue()
    tasks = popping(queue.pops(), 2)
    await a_moment()

    queue.fail(ValueError("a slip of ours"))
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in results] == [ValueError] * 2


async def test_a_pop_is_never_left_behind() -> None:
    """Also one that comes in the moment in which the one before has its message."""
    queue = Queue()
    pops = queue.pops()
    for number in range(20):
        queue.send(b"%d" % number)

    assert [await pops.pop(1) for _ in range(20)] == [b"%d" % number for number in range(20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    arrives: int
    seconds: int
    goes_away: int | None


some_seconds = st.integers(0, 8)
some_waits = st.lists(
    st.builds(
        Wait,
        arrives=some_seconds,
        seconds=st.integers(1, 8),
        goes_away=st.one_of(st.none(), some_seconds),
    ),
    min_size=1,
    max_size=8,
)


@given(
    waits=some_waits,
    sent_at=st.lists(some_seconds, max_size=10),
    reply_seconds=st.sampled_from([0, 1, 2]),
    failed_at=st.one_of(st.none(), some_seconds),
)
@settings(max_examples=500)
def test_nothing_is_lost_or_delivered_twice(
    waits: list[Wait], sent_at: list[int], reply_seconds: int, failed_at: int | None
) -> None:
    """Whoever gives up when, as long as the queue itself loses nothing."""
    delivered: list[bytes] = []

    async def one(pops: SharedPops, wait: Wait) -> None:
        await asyncio.sleep(wait.arrives)
        task = asyncio.create_task(pops.pop(wait.seconds))
        if wait.goes_away is not None:
            asyncio.get_running_loop().call_later(wait.goes_away, task.cancel)
        try:
            message = await task
        except (Unavailable, asyncio.CancelledError):
            return
        if message is not None:
            delivered.append(message)

    async def run() -> Queue:
        queue = Queue(reply_seconds=reply_seconds)
        pops = queue.pops()
        loop = asyncio.get_running_loop()
        numbers = count()
        for at in sent_at:
            loop.call_later(at, lambda: queue.send(b"%02d" % next(numbers)))
        if failed_at is not None:
            loop.call_later(failed_at, queue.fail, QueueUnavailable("gone"))
            loop.call_later(failed_at, setattr, queue, "error", None)
        await asyncio.gather(*(one(pops, wait) for wait in waits))
        await asyncio.sleep(100)
        return queue

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        queue = runner.run(run())

    left = queue.next_ones()
    assert sorted(delivered + left) == [b"%02d" % number for number in range(len(sent_at))]
    assert left == sorted(left)
