"""Whatever arrives when, fails or is given up: each call gets its own answer, and what is shared is
only the way there."""

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapters.coalescing import APART, Apart, BatchLimits, Coalescer
from domain.errors import DatabaseUnavailable, Unavailable
from tests.support.clock import VirtualTimeLoop, loop_time

pytestmark = pytest.mark.anyio

T = TypeVar("T")


@pytest.fixture
def anyio_backend() -> tuple[str, dict[str, Any]]:
    return "asyncio", {"loop_factory": VirtualTimeLoop}


class TooManyWait(DatabaseUnavailable):
    pass


class Poisoned(Exception):
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Call:
    """``arrives`` and ``goes_away`` are seconds; ``poisoned`` fails every batch that it is in."""

    number: int
    key: str = "k"
    arrives: int = 0
    poisoned: bool = False
    goes_away: int | None = None


@dataclass(kw_only=True)
class Batch:
    calls: Sequence[Call]
    began: float
    ended: float | None = None
    apart: bool = False
    down: bool = False
    held: str = ""

    @property
    def failed(self) -> bool:
        return self.down or any(call.poisoned for call in self.calls)

    def keys(self) -> set[str]:
        return {call.key for call in self.calls}


@dataclass(kw_only=True)
class Server:
    """Carries out a batch in so many seconds, or is down, or finds the keys of some calls held, by
    what comes next in ``durations``, ``downs`` and ``helds``; these begin anew at their end. Notes
    what no run may be given: too much, or two that share a key, at once."""

    limits: BatchLimits
    durations: Sequence[int] = (1,)
    downs: Sequence[bool] = (False,)
    helds: Sequence[str] = ("",)
    batches: list[Batch] = field(default_factory=list)
    arrived: list[int] = field(default_factory=list)
    violations: list[str] = field(default_factory=list)

    async def run(self, calls: Sequence[Call]) -> Sequence[int | Apart]:
        return await self._run(calls, apart=False)

    async def run_apart(self, calls: Sequence[Call]) -> Sequence[int | Apart]:
        if len({call.key for call in calls}) != 1:
            self.violations.append("several keys in a batch of one")
        return await self._run(calls, apart=True)

    async def _run(self, calls: Sequence[Call], *, apart: bool) -> Sequence[int | Apart]:
        number = len(self.batches)
        batch = Batch(
            calls=calls,
            began=loop_time(),
            apart=apart,
            down=self.downs[number % len(self.downs)],
            held="" if apart else self.helds[number % len(self.helds)],
        )
        others = [other for other in self.batches if other.ended is None]
        if sum(other.apart == apart for other in others) >= self.limits.in_flight:
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
        return [APART if call.key in batch.held else call.number for call in calls]

    def times_run(self) -> Counter[int]:
        """How often each call was in a batch."""
        return Counter(call.number for batch in self.batches for call in batch.calls)

    def carried_out(self) -> list[int]:
        """The calls that took effect, in their order."""
        return [
            call.number
            for batch in self.batches
            for call in batch.calls
            if not batch.failed and call.key not in batch.held
        ]

    def coalescer(self) -> Coalescer[Call, int]:
        apart = Coalescer(
            self.run_apart,
            limits=self.limits,
            key=lambda call: call.key,
            one_key=True,
            too_many=lambda: TooManyWait("too many"),
        )
        return Coalescer(
            self.run,
            limits=self.limits,
            key=lambda call: call.key,
            apart=apart,
            too_many=lambda: TooManyWait("too many"),
        )


async def answer_to(coalescer: Coalescer[Call, int], call: Call) -> int | BaseException:
    """The result, or what was raised."""
    task = asyncio.ensure_future(coalescer(call))
    if call.goes_away is not None:
        asyncio.get_running_loop().call_later(call.goes_away, task.cancel)
    try:
        return await task
    except (Unavailable, Poisoned, asyncio.CancelledError) as error:
        return error


async def answers_to(server: Server, calls: Sequence[Call]) -> list[int | BaseException]:
    """Of all calls, in their order. On this loop, waiting for ever is an error."""
    coalescer = server.coalescer()

    async def in_time(call: Call) -> int | BaseException:
        await asyncio.sleep(call.arrives)
        server.arrived.append(call.number)
        return await answer_to(coalescer, call)

    answers = await asyncio.gather(*(in_time(call) for call in calls))
    assert server.violations == []
    return answers


def on_virtual_time(run: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await run()

    with asyncio.Runner(loop_factory=VirtualTimeLoop) as runner:
        return runner.run(main())


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
        Call(number=number, key=key, arrives=arrives, poisoned=poisoned, goes_away=goes_away)
        for number, (key, arrives, poisoned, goes_away) in enumerate(
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
    helds=st.lists(st.sampled_from(["", "", "a", "ab"]), min_size=1, max_size=5),
)
@settings(max_examples=500)
def test_each_call_gets_its_own_answer(
    calls: list[Call],
    limits: BatchLimits,
    durations: list[int],
    downs: list[bool],
    helds: list[str],
) -> None:
    """Whatever happens to the others, and at whatever moment."""
    server = Server(limits=limits, durations=durations, downs=downs, helds=helds)

    answers = on_virtual_time(lambda: answers_to(server, calls))

    carried_out = Counter(server.carried_out())
    assert max(carried_out.values(), default=1) == 1
    for call, answer in zip(calls, answers, strict=True):
        mine = [batch for batch in server.batches if call in batch.calls]
        match answer:
            case int():
                assert answer == call.number
                assert carried_out[call.number] == 1
            case Poisoned():
                assert call.poisoned
                assert answer.args == (call.number,)
            case TooManyWait():
                assert limits.waiting == 2
                assert not mine
            case DatabaseUnavailable():
                assert mine[-1].down
            case asyncio.CancelledError():
                assert call.goes_away is not None
        assert not any(batch.down for batch in mine[:-1]), "tried again though it may have worked"
    turns = {number: turn for turn, number in enumerate(server.arrived)}
    for key in "abc":
        of_key = [turns[number] for number in server.carried_out() if calls[number].key == key]
        assert of_key == sorted(of_key)


NO_LIMITS = BatchLimits(calls=10, in_flight=1, waiting=100)


async def test_a_lone_call_begins_at_once() -> None:
    """No timer holds it up: what arrives alone is alone."""
    server = Server(limits=NO_LIMITS, durations=(3,))

    answers = await answers_to(server, [Call(number=1), Call(number=2, arrives=10)])

    assert answers == [1, 2]
    assert [(batch.began, batch.ended) for batch in server.batches] == [(0, 3), (10, 13)]


async def test_what_arrives_meanwhile_goes_together() -> None:
    """Into one batch, as soon as the one under way is done."""
    server = Server(limits=NO_LIMITS, durations=(3,))
    calls = [Call(number=number, arrives=number) for number in range(3)]

    answers = await answers_to(server, calls)

    assert answers == [0, 1, 2]
    assert [(batch.began, len(batch.calls)) for batch in server.batches] == [(0, 1), (3, 2)]


async def test_batches_are_bounded() -> None:
    """In what they hold, and in how many there are at once."""
    server = Server(limits=BatchLimits(calls=4, in_flight=2, patience_seconds=0))
    calls = [Call(number=number, key=str(number)) for number in range(20)]

    assert await answers_to(server, calls) == list(range(20))

    assert [(batch.began, len(batch.calls)) for batch in server.batches] == [
        (0, 4),
        (0, 4),
        (1, 4),
        (1, 4),
        (2, 4),
    ]


async def test_a_batch_that_is_stuck_holds_up_nobody_who_comes_later() -> None:
    """What arrives within the patience waits for the batch under way, to go together; what arrives
    after it does not."""
    server = Server(
        limits=BatchLimits(calls=4, in_flight=2, patience_seconds=2), durations=(100, 1, 1)
    )
    calls = [Call(number=n, key=str(n), arrives=at) for n, at in enumerate((0, 1, 1, 5))]

    assert await answers_to(server, calls) == [0, 1, 2, 3]

    assert [(batch.began, len(batch.calls)) for batch in server.batches] == [(0, 1), (2, 2), (5, 1)]


async def test_who_waits_behind_a_stuck_batch_needs_nobody_to_come() -> None:
    """The last call of a while does not wait for the next one to get going."""
    limits = BatchLimits(calls=4, in_flight=2, patience_seconds=2)
    server = Server(limits=limits, durations=(100, 1))

    assert await answers_to(server, [Call(number=0), Call(number=1, key="b", arrives=1)]) == [0, 1]

    assert [batch.began for batch in server.batches] == [0, 2]


async def test_a_key_waits_for_its_own_batch_only() -> None:
    """Calls of one key are never under way apart, and delay nobody else."""
    server = Server(limits=BatchLimits(calls=4, in_flight=2, patience_seconds=0), durations=(5, 1))
    calls = [
        Call(number=1, key="a"),
        Call(number=2, key="a", arrives=1),
        Call(number=3, key="b", arrives=1),
    ]

    assert await answers_to(server, calls) == [1, 2, 3]

    began = {batch.calls[0].number: batch.began for batch in server.batches}
    assert began == {1: 0, 3: 1, 2: 5}


async def test_a_poisoned_batch_is_split() -> None:
    """What is wrong with one call fails that one; the others are carried out, in their order."""
    server = Server(limits=NO_LIMITS)
    first = Call(number=0)
    calls = [Call(number=n, arrives=0, poisoned=n == 2) for n in (1, 2, 3)]

    answers = await answers_to(server, [first, *calls])

    assert isinstance(answers[2], Poisoned)
    assert answers[2].args == (2,)
    assert server.carried_out() == [0, 1, 3]
    assert answers[0:2] + answers[3:] == [0, 1, 3]


async def test_a_batch_of_unknown_outcome_fails_whole() -> None:
    """It may have taken effect, so nothing is carried out again."""
    server = Server(limits=NO_LIMITS, downs=(True, False))
    calls = [Call(number=n) for n in range(3)] + [Call(number=3, arrives=1)]

    *failed, answer = await answers_to(server, calls)

    assert [type(error) for error in failed] == [DatabaseUnavailable] * 3
    assert answer == 3
    assert server.times_run() == {0: 1, 1: 1, 2: 1, 3: 1}


async def test_who_goes_away_while_it_waits_takes_its_call_along() -> None:
    server = Server(limits=NO_LIMITS, durations=(3,))
    calls = [Call(number=0), Call(number=1, arrives=1, goes_away=1), Call(number=2, arrives=1)]

    answers = await answers_to(server, calls)

    assert isinstance(answers[1], asyncio.CancelledError)
    assert server.carried_out() == [0, 2]


async def test_who_goes_away_under_way_disturbs_nobody() -> None:
    server = Server(limits=NO_LIMITS, durations=(3,))
    calls = [Call(number=0), Call(number=1, goes_away=1), Call(number=2)]

    answers = await answers_to(server, calls)

    assert isinstance(answers[1], asyncio.CancelledError)
    assert [answers[0], answers[2]] == [0, 2]
    assert server.carried_out() == [0, 1, 2]


async def test_what_waits_is_bounded() -> None:
    """Whoever finds so many before it is turned away at once, and has no effect."""
    server = Server(limits=BatchLimits(calls=1, waiting=2), durations=(9,))
    calls = [Call(number=number, arrives=number) for number in range(5)]

    answers = await answers_to(server, calls)

    assert [type(answer) for answer in answers[3:]] == [TooManyWait] * 2
    assert server.carried_out() == [0, 1, 2]


async def test_what_is_held_waits_apart() -> None:
    """With all that comes after it of its key, and in their order; its neighbours are answered."""
    limits = BatchLimits(calls=2, waiting=3)
    server = Server(limits=limits, durations=(1, 9, 1, 1, 1), helds=("a", "", "", "", ""))
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
        (batch.apart, batch.began, sorted(call.number for call in batch.calls))
        for batch in server.batches
    ] == [
        (False, 0, [0, 1]),
        (True, 1, [0, 1]),
        (False, 4, [4]),
        (False, 5, [5]),
        (False, 6, [6]),
        (True, 10, [2, 3]),
    ]


async def test_what_is_held_waits_apart_also_when_a_batch_is_split() -> None:
    """Or the second one of its key would overtake the first."""
    server = Server(
        limits=NO_LIMITS, durations=(1, 1, 1, 9, 1), helds=("", "", "a", "", ""), downs=(False,)
    )
    calls = [
        Call(number=0, key="b", poisoned=True),
        Call(number=1, key="a"),
        Call(number=2, key="a"),
    ]

    await answers_to(server, calls)

    assert server.carried_out() == [1, 2]
    assert server.batches[-1].apart


async def test_a_call_is_never_left_behind() -> None:
    """Also one that comes in the very moment in which the last batch has ended: whoever was
    answered asks again at once."""
    server = Server(limits=NO_LIMITS, durations=(0,))
    coalescer = server.coalescer()

    async def again_and_again(times: int) -> list[int]:
        return [await coalescer(Call(number=number)) for number in range(times)]

    assert await again_and_again(20) == list(range(20))


async def test_a_runner_that_was_cancelled_takes_only_its_batch_along() -> None:
    """What carries a batch out may be cancelled from inside, by a connection that is closed: then
    its callers hear of it, and those that waited go on."""
    runs: list[list[int]] = []
    begun, may_end = asyncio.Event(), asyncio.Event()

    async def run(calls: Sequence[Call]) -> Sequence[int]:
        runs.append([call.number for call in calls])
        begun.set()
        await may_end.wait()
        if len(runs) == 1:
            raise asyncio.CancelledError
        return runs[-1]

    coalescer = Coalescer(
        run, limits=NO_LIMITS, key=lambda call: call.key, too_many=lambda: TooManyWait("too many")
    )
    waiting = [asyncio.create_task(answer_to(coalescer, Call(number=n))) for n in range(2)]
    await begun.wait()
    late = asyncio.create_task(answer_to(coalescer, Call(number=2)))
    may_end.set()

    answers = await asyncio.gather(*waiting, late)

    assert [type(answer) for answer in answers] == [asyncio.CancelledError] * 2 + [int]
    assert runs == [[0, 1], [2]]


async def test_a_wrong_number_of_results_is_nobodys_answer() -> None:
    """Rather an error for all than another one's result for one."""

    async def run(calls: Sequence[Call]) -> Sequence[int]:
        return [call.number for call in calls[1:]]

    coalescer = Coalescer(run, limits=NO_LIMITS, too_many=lambda: TooManyWait("too many"))

    results = await asyncio.gather(
        *(coalescer(Call(number=number)) for number in range(3)), return_exceptions=True
    )

    assert [type(result) for result in results] == [RuntimeError] * 3


async def test_it_knows_whose_calls_it_has() -> None:
    """While they wait, and while they are under way; not a moment longer."""
    begun: asyncio.Queue[int] = asyncio.Queue()
    may_end = [asyncio.Event(), asyncio.Event()]

    async def run(calls: Sequence[Call]) -> Sequence[int]:
        (call,) = calls
        begun.put_nowait(call.number)
        await may_end[call.number].wait()
        return [call.number]

    coalescer = Coalescer(
        run,
        limits=BatchLimits(calls=1, in_flight=1),
        key=lambda call: call.key,
        too_many=lambda: TooManyWait("too many"),
    )
    tasks = [asyncio.create_task(coalescer(Call(number=n, key=str(n)))) for n in range(2)]

    had = []
    for task in tasks:
        number = await begun.get()
        had.append([coalescer.has(str(n)) for n in range(2)])
        may_end[number].set()
        await task
    had.append([coalescer.has(str(n)) for n in range(2)])

    assert had == [[True, True], [False, True], [False, False]]
