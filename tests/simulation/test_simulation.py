"""Money and work survive every simulated fault. More seeds: ``make simulate SEEDS=...``."""

from itertools import product

import pytest

from tests.simulation.fates import FAULTS, SAME_WITHOUT_EFFECT, Fate
from tests.simulation.scenarios import distinct_faults, run_plan, run_seed
from tests.simulation.situations import (
    run_backlog,
    run_blip,
    run_broken_feed,
    run_cancellation,
    run_dead_endpoint,
    run_failed_reads,
    run_long_work,
    run_repeated_batches,
    run_repetitions,
    run_shortage,
    run_unpublished,
    run_unsound,
)

SEEDS = 1_000
BATCH = 25
QUICK_BATCH = 1
CALLS_OF_A_CANCELLATION = 6


@pytest.mark.parametrize("first", range(0, SEEDS, BATCH))
def test_random_faults(first: int, *, quick: bool) -> None:
    """Whatever fails, hangs, repeats or dies: no rule is broken at any step, and everything settles
    within the bound after the last fault."""
    for seed in range(first, first + (QUICK_BATCH if quick else BATCH)):
        run_seed(seed)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_or_two_faults_at_every_call(fault: Fate, *, quick: bool) -> None:
    """Every call of a submission, its work and its recovery has every fault; and after each of
    these, every later call has every fault again. Faults that make the same run have one run."""
    for first, faults in enumerate(distinct_faults({})):
        if fault not in faults:
            continue
        if quick:
            run_plan({first: fault})
            continue
        calls = distinct_faults({first: fault})
        for second in range(first + 1, len(calls)):
            for other in calls[second]:
                run_plan({first: fault, second: other})


@pytest.mark.parametrize("cancel_after", [0.0, 0.6])
@pytest.mark.parametrize("fault", FAULTS)
def test_one_or_two_faults_beside_a_cancellation(
    fault: Fate, cancel_after: float, *, quick: bool
) -> None:
    """One fault at every call, of a session that is cancelled about when it is claimed, or while
    its picture is made; and two faults among the calls that the cancellation brings about."""
    calls = run_plan({}, cancel_after=cancel_after)
    begin = calls.index("api cancel")
    for first in range(len(calls)):
        run_plan({first: fault}, cancel_after=cancel_after)
        if quick or not begin <= first < begin + CALLS_OF_A_CANCELLATION:
            continue
        for second, other in product(range(first + 1, first + 3), FAULTS):
            run_plan({first: fault, second: other}, cancel_after=cancel_after)


@pytest.mark.parametrize("fault", FAULTS)
def test_one_or_two_faults_beside_a_webhook(fault: Fate, *, quick: bool) -> None:
    """One fault at every call, of a session of whose end an endpoint is told; and two faults among
    the calls that deliver the message."""
    calls = run_plan({}, has_webhook=True)
    begin, end = calls.index("worker complete"), calls.index("worker settle") + 1
    for first in range(begin, end) if quick else range(len(calls)):
        run_plan({first: fault}, has_webhook=True)
        if quick or not begin <= first < end:
            continue
        for second, other in product(range(first + 1, first + 4), FAULTS):
            run_plan({first: fault, second: other}, has_webhook=True)


@pytest.mark.parametrize("fault", SAME_WITHOUT_EFFECT)
def test_faults_of_a_call_without_effect_make_the_same_run(fault: Fate, *, quick: bool) -> None:
    """At each such call the run equals that of the fault which is tried in its place."""
    same = SAME_WITHOUT_EFFECT[fault]
    idle = [number for number, faults in enumerate(distinct_faults({})) if fault not in faults]

    assert idle
    for number in idle[:: 5 if quick else 1]:
        assert run_plan({number: fault}) == run_plan({number: same})


@pytest.mark.parametrize("seed", [7, 10])
def test_seed_replays_exactly(seed: int) -> None:
    """The same seed gives the same run, so that a failure can be reproduced, with webhooks and
    without."""
    assert run_seed(seed) == run_seed(seed)


def test_live_worker_keeps_its_session() -> None:
    """However long the work takes, its lease is renewed and no other attempt begins."""
    run_long_work()


def test_cancelled_session_stops_in_time() -> None:
    """At once by a hint, else at the next renewal; and so does the provider's job."""
    run_cancellation()


def test_key_is_answered_with_one_session() -> None:
    """Whatever becomes of the push and of the undo of the first request."""
    run_repetitions()


def test_batch_is_answered_with_its_sessions() -> None:
    """Whatever becomes of the push and of the undo of the first batch."""
    run_repeated_batches()


def test_streams_need_no_published_change() -> None:
    """The rounds find every change, also of sessions that are new."""
    run_unpublished()


def test_streams_read_after_a_break_of_the_feed() -> None:
    """At once: what was published meanwhile is lost."""
    run_broken_feed()


def test_streams_survive_reads_that_fail() -> None:
    """The rounds repeat them."""
    run_failed_reads()


def test_dead_endpoint_costs_a_message_per_pause() -> None:
    """Whatever its backlog, and without delay for another endpoint."""
    run_dead_endpoint()


def test_lost_backlog_is_restored_in_order() -> None:
    """Lost tasks are pushed once, before all younger ones, so that the oldest task in the queue
    shows which sessions are not in it."""
    run_backlog()


def test_full_storage_fails_no_session() -> None:
    """Pictures that are paid for are held until there is room, and no others are begun."""
    run_shortage()


def test_blip_of_the_provider_fails_no_session() -> None:
    """The sessions wait, with few calls, until the provider is back."""
    run_blip()


def test_session_that_cannot_be_refunded_delays_no_other() -> None:
    """Recovery names it, passes it over, and refunds it once it can be refunded."""
    run_unsound()
