"""SharedPops: each message goes to one waiting pop or stays in its place in the queue, however
many pops wait and whenever they are cancelled."""

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
    """A list like that of Redis: the last message is the next. A reply arrives ``reply_seconds``
    after its messages have left the list."""

    reply_seconds: float = 0.0
    messages: deque[bytes] = field(default_factory=deque)
    commands: list[str] = field(default_factory=list)
    lost: list[bytes] = field(default_factory=list)
    """Messages that could not be put back, because the queue failed just then."""
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
        if self.error is not None:
            self.lost.extend(messages)
            raise self.error
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
    """Longer than anything that takes no time, and shorter than a second."""
    await asyncio.sleep(0.01)


async def test_first_come_first_served() -> None:
    """With two commands: one that waits, and one for all messages that arrived meanwhile."""
    queue = Queue()
    tasks = popping(queue.pops(), 3)
    await a_moment()
    for message in (b"1", b"2", b"3"):
        queue.send(message)

    assert await asyncio.gather(*tasks) == [b"1", b"2", b"3"]
    assert queue.commands == ["await 100", "take 2"]


async def test_full_rpop_is_followed_by_another() -> None:
    """A BRPOP would return a single message, which is then claimed by itself. After an RPOP that
    returned less than its batch, BRPOP waits."""
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


async def test_claim_is_sent_before_the_next_command() -> None:
    """A pop's caller sends its claim, from a task of its own, before the next RPOP."""
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


async def test_no_more_messages_than_waiting_pops() -> None:
    """The others stay for other processes."""
    queue = Queue()
    for message in (b"1", b"2", b"3", b"4"):
        queue.send(message)

    assert await asyncio.gather(*popping(queue.pops(), 3)) == [b"1", b"2", b"3"]
    assert queue.next_ones() == [b"4"]
    assert "put back 1" not in queue.commands


async def test_timeout_returns_none() -> None:
    """To every waiting pop."""
    queue = Queue()
    began = loop_time()

    assert await asyncio.gather(*popping(queue.pops(), 3, seconds=5)) == [None] * 3
    assert loop_time() - began == 5


async def test_shortest_timeout_ends_all_waiting_pops() -> None:
    """Whichever pop came first; the callers pop again."""
    queue = Queue()
    pops = queue.pops()
    began = loop_time()

    results = await asyncio.gather(*(pops.pop(seconds) for seconds in (100, 5, 50)))

    assert results == [None] * 3
    assert loop_time() - began == 5


async def test_message_of_a_cancelled_pop_goes_to_another_pop() -> None:
    queue = Queue(reply_seconds=1)
    pops = queue.pops()
    first, second = popping(pops, 2)
    await a_moment()
    queue.send(b"1")
    await a_moment()

    first.cancel()

    assert await second == b"1"
    assert first.cancelled()


async def test_messages_of_cancelled_pops_are_put_back_in_order() -> None:
    """At the head of the queue, so that the next pop gets the oldest one."""
    queue = Queue(reply_seconds=1)
    pops = queue.pops()
    tasks = popping(pops, 4)
    await a_moment()
    for message in (b"1", b"2", b"3", b"4", b"5"):
        queue.send(message)
    await asyncio.sleep(1.5)  # The first pop has its message; the other replies are on their way.

    for task in tasks[2:]:
        task.cancel()
    results = await asyncio.gather(*tasks[:2])
    await asyncio.sleep(3)

    assert results == [b"1", b"2"]
    assert queue.next_ones() == [b"3", b"4", b"5"]


async def test_failure_reaches_all_waiting_pops() -> None:
    """The next pop tries again."""
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


async def test_unexpected_error_reaches_all_waiting_pops() -> None:
    """Otherwise they would hang."""
    queue = Queue()
    tasks = popping(queue.pops(), 2)
    await a_moment()

    queue.fail(ValueError("a bug"))
    results = await asyncio.gather(*tasks, return_exceptions=True)

    assert [type(result) for result in results] == [ValueError] * 2


async def test_consecutive_pops() -> None:
    """A pop that arrives at the moment when the previous one gets its message is served too."""
    queue = Queue()
    pops = queue.pops()
    for number in range(20):
        queue.send(b"%d" % number)

    assert [await pops.pop(1) for _ in range(20)] == [b"%d" % number for number in range(20)]


@dataclass(frozen=True, slots=True, kw_only=True)
class Wait:
    starts_after: int
    seconds: int
    cancelled_after: int | None


some_seconds = st.integers(0, 8)
some_waits = st.lists(
    st.builds(
        Wait,
        starts_after=some_seconds,
        seconds=st.integers(1, 8),
        cancelled_after=st.one_of(st.none(), some_seconds),
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
@settings(max_examples=5 * settings().max_examples)
def test_no_message_is_lost_or_delivered_twice(
    waits: list[Wait], sent_at: list[int], reply_seconds: int, failed_at: int | None
) -> None:
    """Whichever pops are cancelled. Only a failing queue loses messages: those that cannot be put
    back."""
    delivered: list[bytes] = []

    async def one(pops: SharedPops, wait: Wait) -> None:
        await asyncio.sleep(wait.starts_after)
        task = asyncio.create_task(pops.pop(wait.seconds))
        if wait.cancelled_after is not None:
            asyncio.get_running_loop().call_later(wait.cancelled_after, task.cancel)
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
    assert sorted(delivered + left + queue.lost) == [
        b"%02d" % number for number in range(len(sent_at))
    ]
    assert left == sorted(left)
