"""Batching of concurrent calls: each call gets its own answer, whenever the calls arrive, fail or
are cancelled."""

import asyncio
from collections import Counter
from collections.abc import Coroutine, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.coalescing import BLOCKED, BatchLimits, Blocked, Coalescer
from domain.errors import DatabaseUnavailable, Unavailable
from tests.support.clock import VirtualTimeLoop, loop_time

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class TooManyWait(DatabaseUnavailable):
    pass


def too_many() -> TooManyWait:
    return TooManyWait("too many")


class Poisoned(Exception):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``arrives`` and ``cancelled_after`` are seconds; ``poisoned`` fails every batch it is in."""

    number: int
    key: str = "k"
    arrives: int = 0
    poisoned: bool = False
    cancelled_after: int | None = None


@dataclass(kw_only=True)
class Batch:
    calls: Sequence[Call]
    began: float
    ended: float | None = None
    blocked: bool = False
    down: bool = False
    locked: str = ""

    @property
    def failed(self) -> bool:
        return self.down or any(call.poisoned for call in self.calls)

    def keys(self) -> set[str]:
        return {call.key for call in self.calls}


@dataclass(kw_only=True)
class Server:
    """Batch n takes ``durations[n]`` seconds, fails if ``downs[n]``, and finds the keys in
    ``locks[n]`` locked; each list repeats from its start. Records in ``violations`` too many calls
    or batches, and keys that are in two batches at once."""

    limits: BatchLimits
    durations: Sequence[int] = (1,)
    downs: Sequence[bool] = (False,)
    locks: Sequence[str] = ("",)
    batches: list[Batch] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    async def run(self, calls: Sequence[Call]) -> Sequence[int | Blocked]:
        return await self._run(calls, blocked=False)

    async def run_blocked(self, calls: Sequence[Call]) -> Sequence[int | Blocked]:
        if len({call.key for call in calls}) != 1:
            self.violations.append("several keys in a batch of one key")
        return await self._run(calls, blocked=True)

    async def _run(self, calls: Sequence[Call], *, blocked: bool) -> Sequence[int | Blocked]:
        number = len(self.batches)
        batch = Batch(
            calls=calls,
            began=loop_time(),
            blocked=blocked,
            down=self.downs[number % len(self.downs)],
            locked="" if blocked else self.locks[number % len(self.locks)],
        )
        others = [other for other in self.batches if other.ended is None]
        if sum(other.blocked == blocked for other in others) >= self.limits.in_flight:
            self.violations.append("too many batches")
        if not 0 < len(calls) <= self.limits.calls:
            self.violations.append("too many calls")
        if any(batch.keys() & other.keys() for other in others):
            self.violations.append("a key in two batches")
        self.batches.append(batch)
        await asyncio.sleep(self.durations[number % len(self.durations)])
        batch.ended = loop_time()
        if batch.down:
            raise DatabaseUnavailable("down")
        for call in calls:
            if call.poisoned:
                raise Poisoned(call.number)
        return [BLOCKED if call.key in batch.locked else call.number for call in calls]

    def batch_counts(self) -> Counter[int]:
        """The number of batches that each call was in."""
        return Counter(call.number for batch in self.batches for call in batch.calls)

    def starts(self) -> list[tuple[float, int]]:
        """When each batch started, with its number of calls."""
        return [(batch.began, len(batch.calls)) for batch in self.batches]

    def executed(self) -> list[int]:
        """The calls that took effect, in order."""
        return [
            call.number
            for batch in self.batches
            for call in batch.calls
            if not batch.failed and call.key not in batch.locked
        ]

    def coalescer(self) -> Coalescer[Call, int]:
        blocked = Coalescer(
            self.run_blocked,
            limits=self.limits,
            key=lambda call: call.key,
            one_key=True,
            too_many=too_many,
        )
        return Coalescer(
            self.run,
            limits=self.limits,
            key=lambda call: call.key,
            blocked=blocked,
            too_many=too_many,
        )


async def answer_to(coalescer: Coalescer[Call, int], call: Call) -> int | BaseException:
    """The result or the error."""
    task = asyncio.ensure_future(coalescer(call))
    if call.cancelled_after is not None:
        asyncio.get_running_loop().call_later(call.cancelled_after, task.cancel)
    try:
        return await task
    except (Unavailable, Poisoned, asyncio.CancelledError) as error:
        return error


async def answers_to(server: Server, calls: Sequence[Call]) -> list[int | BaseException]:
    """One answer per call, in order. On this loop, waiting for ever is an error."""
    coalescer = server.coalescer()

    async def in_time(call: Call) -> int | BaseException:
        await asyncio.sleep(call.arrives)
        server.arrived.append(call.number)
        return await answer_to(coalescer, call)

    answers = await asyncio.gather(*map(in_time, calls))
    assert server.violations == []
    return answers


def on_virtual_time(work: Coroutine[Any, Any, T]) -> T:
    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(work)


@st.composite
def many_calls(draw: st.DrawFn) -> list[Call]:
    seconds = st.integers(0, 6)
    one = st.tuples(
        st.sampled_from("abc"),
        seconds,
        st.sampled_from([False] * 5 + [True]),
        st.one_of(st.none(), st.none(), seconds),
    )
    return [
        Call(number=number, key=key, arrives=arrives, poisoned=poisoned, cancelled_after=after)
        for number, (key, arrives, poisoned, after) in enumerate(
            draw(st.lists(one, min_size=1, max_size=16))
        )
    ]


some_limits = st.builds(
    BatchLimits,
    calls=st.integers(1, 5),
    in_flight=st.integers(1, 3),
    patience_seconds=st.integers(0, 2),
    waiting=st.sampled_from([2, 100]),
)


@given(
    calls=many_calls(),
    limits=some_limits,
    durations=st.lists(st.integers(0, 3), min_size=1, max_size=5),
    downs=st.lists(st.sampled_from([False, False, False, True]), min_size=1, max_size=5),
    locks=st.lists(st.sampled_from(["", "", "a", "ab"]), min_size=1, max_size=5),
)
@settings(max_examples=5 * settings().max_examples)
def test_each_call_gets_its_own_answer(
    calls: list[Call],
    limits: BatchLimits,
    durations: list[int],
    downs: list[bool],
    locks: list[str],
) -> None:
    """No call takes effect twice or runs again after an unknown outcome, and the calls of a key
    keep their order, whatever happens to other calls."""
    server = Server(limits=limits, durations=durations, downs=downs, locks=locks)

    answers = on_virtual_time(answers_to(server, calls))

    executed = Counter(server.executed())
    assert max(executed.values(), default=1) == 1
    for call, answer in zip(calls, answers, strict=True):
        mine = [batch for batch in server.batches if call in batch.calls]
        match answer:
            case int():
                assert answer == call.number
                assert executed[call.number] == 1
            case Poisoned():
                assert call.poisoned
                assert answer.args == (call.number,)
            case TooManyWait():
                assert limits.waiting == 2
                assert not mine
            case DatabaseUnavailable():
                assert mine[-1].down
            case asyncio.CancelledError():
                assert call.cancelled_after is not None
        assert not any(batch.down for batch in mine[:-1]), "run again after an unknown outcome"
    turns = {number: turn for turn, number in enumerate(server.arrived)}
    for key in "abc":
        of_key = [turns[number] for number in server.executed() if calls[number].key == key]
        assert of_key == sorted(of_key)


NO_LIMITS = BatchLimits(calls=10, in_flight=1, waiting=100)


async def test_lone_call_starts_at_once() -> None:
    """No timer delays a call that arrives alone."""
    server = Server(limits=NO_LIMITS, durations=(3,))

    answers = await answers_to(server, [Call(number=1), Call(number=2, arrives=10)])

    assert answers == [1, 2]
    assert [(batch.began, batch.ended) for batch in server.batches] == [(0, 3), (10, 13)]


async def test_calls_that_arrive_during_a_batch_form_the_next_one() -> None:
    """It starts as soon as the batch in flight is done."""
    server = Server(limits=NO_LIMITS, durations=(3,))
    calls = [Call(number=number, arrives=number) for number in range(3)]

    answers = await answers_to(server, calls)

    assert answers == [0, 1, 2]
    assert server.starts() == [(0, 1), (3, 2)]


async def test_batches_are_bounded() -> None:
    """In their number of calls, and in the number of batches in flight."""
    server = Server(limits=BatchLimits(calls=4, in_flight=2, patience_seconds=0))
    calls = [Call(number=number, key=str(number)) for number in range(20)]

    assert await answers_to(server, calls) == list(range(20))

    assert server.starts() == [(0, 4), (0, 4), (1, 4), (1, 4), (2, 4)]


async def test_stuck_batch_delays_no_later_call() -> None:
    """Calls that arrive within ``patience_seconds`` wait and share the next batch. Later calls
    start a batch beside the stuck one."""
    server = Server(
        limits=BatchLimits(calls=4, in_flight=2, patience_seconds=2), durations=(100, 1, 1)
    )
    calls = [Call(number=n, key=str(n), arrives=at) for n, at in enumerate((0, 1, 1, 5))]

    assert await answers_to(server, calls) == [0, 1, 2, 3]

    assert server.starts() == [(0, 1), (2, 2), (5, 1)]


async def test_stuck_batch_delays_no_call_after_a_batch_beside_it() -> None:
    """A timer that was set during the other batch ends with it."""
    server = Server(
        limits=BatchLimits(calls=4, in_flight=3, patience_seconds=10), durations=(100, 2, 1, 1)
    )
    calls = [Call(number=n, key=str(n), arrives=at) for n, at in enumerate((0, 10, 11, 14))]

    assert await answers_to(server, calls) == [0, 1, 2, 3]

    assert server.starts() == [(0, 1), (10, 1), (12, 1), (14, 1)]


async def test_extra_runner_starts_without_a_further_call() -> None:
    """A call behind a stuck batch runs after ``patience_seconds``, even if no other arrives."""
    limits = BatchLimits(calls=4, in_flight=2, patience_seconds=2)
    server = Server(limits=limits, durations=(100, 1))

    assert await answers_to(server, [Call(number=0), Call(number=1, key="b", arrives=1)]) == [0, 1]

    assert [batch.began for batch in server.batches] == [0, 2]


async def test_key_waits_only_for_its_own_batch() -> None:
    """Two batches in flight never share a key, and a key delays no other key."""
    server = Server(limits=BatchLimits(calls=4, in_flight=2, patience_seconds=0), durations=(5, 1))
    calls = [
        Call(number=1, key="a"),
        Call(number=2, key="a", arrives=1),
        Call(number=3, key="b", arrives=1),
    ]

    assert await answers_to(server, calls) == [1, 2, 3]

    began = {batch.calls[0].number: batch.began for batch in server.batches}
    assert began == {1: 0, 3: 1, 2: 5}


async def test_poisoned_batch_is_split() -> None:
    """An invalid call fails alone; the other calls of its batch take effect, in order."""
    server = Server(limits=NO_LIMITS)
    calls = [Call(number=n, poisoned=n == 2) for n in range(4)]

    answers = await answers_to(server, calls)

    assert isinstance(answers[2], Poisoned)
    assert answers[2].args == (2,)
    assert server.executed() == [0, 1, 3]
    assert answers[0:2] + answers[3:] == [0, 1, 3]


async def test_batch_with_unknown_outcome_fails_as_a_whole() -> None:
    """It may have taken effect, so none of its calls runs again."""
    server = Server(limits=NO_LIMITS, downs=(True, False))
    calls = [Call(number=n) for n in range(3)] + [Call(number=3, arrives=1)]

    *failed, answer = await answers_to(server, calls)

    assert [type(error) for error in failed] == [DatabaseUnavailable] * 3
    assert answer == 3
    assert server.batch_counts() == {0: 1, 1: 1, 2: 1, 3: 1}


async def test_cancelled_queued_call_is_dropped() -> None:
    server = Server(limits=NO_LIMITS, durations=(3,))
    calls = [Call(number=n, arrives=min(n, 1)) for n in range(3)]
    calls[1] = replace(calls[1], cancelled_after=1)

    answers = await answers_to(server, calls)

    assert isinstance(answers[1], asyncio.CancelledError)
    assert server.executed() == [0, 2]


async def test_cancelled_call_in_flight_still_takes_effect() -> None:
    server = Server(limits=NO_LIMITS, durations=(3,))
    calls = [Call(number=0), Call(number=1, cancelled_after=1), Call(number=2)]

    answers = await answers_to(server, calls)

    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answers[0], answers[2]] == [0, 2]
    assert server.executed() == [0, 1, 2]


async def test_queued_calls_are_bounded() -> None:
    """A call that finds ``waiting`` calls queued is rejected at once, without an effect."""
    server = Server(limits=BatchLimits(calls=1, waiting=2), durations=(9,))
    calls = [Call(number=number, arrives=number) for number in range(5)]

    answers = await answers_to(server, calls)

    assert [type(answer) for answer in answers[3:]] == [TooManyWait] * 2
    assert server.executed() == [0, 1, 2]


async def test_blocked_calls_delay_no_other_key() -> None:
    """They and all later calls of their key wait in order; calls of other keys are answered."""
    limits = BatchLimits(calls=2, waiting=3)
    server = Server(limits=limits, durations=(1, 9, 1, 1, 1), locks=("a", "", "", "", ""))
    calls = [
        Call(number=0, key="a"),
        Call(number=1, key="a"),
        Call(number=2, key="a"),
        Call(number=3, key="a", arrives=5),
        *(Call(number=number, key="b", arrives=number) for number in (4, 5, 6)),
    ]

    answers = await answers_to(server, calls)

    assert answers == list(range(7))
    assert [
        (batch.blocked, batch.began, sorted(call.number for call in batch.calls))
        for batch in server.batches
    ] == [
        (False, 0, [0, 1]),
        (True, 1, [0, 1]),
        (False, 4, [4]),
        (False, 5, [5]),
        (False, 6, [6]),
        (True, 10, [2, 3]),
    ]


async def test_blocked_calls_keep_their_order_when_a_batch_is_split() -> None:
    """The second call of a locked key does not overtake the first."""
    server = Server(limits=NO_LIMITS, durations=(1, 1, 1, 9, 1), locks=("", "", "a", "", ""))
    calls = [Call(number=n, key=key, poisoned=n == 0) for n, key in enumerate("baa")]

    await answers_to(server, calls)

    assert server.executed() == [1, 2]
    assert server.batches[-1].blocked


async def test_queued_calls_do_not_overtake_a_split_batch() -> None:
    """The first call of a split batch is blocked: the rest of the batch follows it, and then the
    calls of its key that are still queued."""
    server = Server(limits=BatchLimits(calls=3, in_flight=1), locks=("a",))
    calls = [Call(number=number, key="a", poisoned=number == 2) for number in range(4)]

    await answers_to(server, calls)

    assert server.executed() == [0, 1, 3]


async def test_call_during_the_end_of_the_last_batch_gets_a_runner() -> None:
    """An answered caller calls again at once, just as the runner finds its queue empty."""
    server = Server(limits=NO_LIMITS, durations=(0,))
    coalescer = server.coalescer()

    async def again_and_again(times: int) -> list[int]:
        return [await coalescer(Call(number=number)) for number in range(times)]

    assert await again_and_again(20) == list(range(20))


async def test_cancelled_run_cancels_only_its_own_batch() -> None:
    """A closed connection may cancel a run from inside: then the callers of its batch are
    cancelled, and the queued calls run next."""
    runs: list[list[int]] = []
    started, may_end = asyncio.Event(), asyncio.Event()

    async def run(calls: Sequence[Call]) -> Sequence[int]:
        runs.append([call.number for call in calls])
        started.set()
        await may_end.wait()
        if len(runs) == 1:
            raise asyncio.CancelledError
        return runs[-1]

    coalescer = Coalescer(run, limits=NO_LIMITS, key=lambda call: call.key, too_many=too_many)
    waiting = [asyncio.create_task(answer_to(coalescer, Call(number=n))) for n in range(2)]
    await started.wait()
    late = asyncio.create_task(answer_to(coalescer, Call(number=2)))
    may_end.set()

    answers = await asyncio.gather(*waiting, late)

    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 2 + [int]
    assert runs == [[0, 1], [2]]


async def test_wrong_number_of_results_fails_the_batch() -> None:
    """Otherwise a call could get the result of another."""

    async def run(calls: Sequence[Call]) -> Sequence[int]:
        return [call.number for call in calls[1:]]

    coalescer = Coalescer(run, limits=NO_LIMITS, too_many=too_many)

    results = await asyncio.gather(
        *(coalescer(Call(number=number)) for number in range(3)), return_exceptions=True
    )

    assert [type(result) for result in results] == [RuntimeError] * 3


async def test_has_reports_queued_and_in_flight_keys() -> None:
    """A key is reported until its last call is answered, and no longer."""
    started: asyncio.Queue[int] = asyncio.Queue()
    may_end = [asyncio.Event(), asyncio.Event()]

    async def run(calls: Sequence[Call]) -> Sequence[int]:
        (call,) = calls
        started.put_nowait(call.number)
        await may_end[call.number].wait()
        return [call.number]

    coalescer = Coalescer(
        run,
        limits=BatchLimits(calls=1, in_flight=1),
        key=lambda call: call.key,
        too_many=too_many,
    )
    tasks = [asyncio.create_task(coalescer(Call(number=n, key=str(n)))) for n in range(2)]

    reported = []
    for task in tasks:
        number = await started.get()
        reported.append([coalescer.has(str(n)) for n in range(2)])
        may_end[number].set()
        await task
    reported.append([coalescer.has(str(n)) for n in range(2)])

    assert reported == [[True, True], [False, True], [False, False]]
