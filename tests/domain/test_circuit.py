"""The circuit breaker: nothing begins while it is open, and one probe at a time while it is
half-open."""

import pytest

from domain.causes import Cause, CauseKind
from domain.circuit import Circuit, Opening, Permit

CAUSE = Cause(CauseKind.PROVIDER, "401 invalid_api_key")
OTHER_CAUSE = Cause(CauseKind.PROVIDER, "500 server_error")


class Time:
    def __init__(self) -> None:
        self.seconds = 0.0

    def __call__(self) -> float:
        return self.seconds


@pytest.fixture
def time() -> Time:
    return Time()


@pytest.fixture
def circuit(time: Time) -> Circuit:
    return Circuit(first_seconds=5, cap_seconds=60, clock=time)


def granted(circuit: Circuit) -> Permit:
    permit = circuit.permit()
    assert permit is not None
    return permit


def open_circuit(circuit: Circuit, time: Time, *, times: int = 1) -> None:
    """Reject one probe after the other; the last rejection has just opened the circuit."""
    for _ in range(times):
        time.seconds += 1_000
        permit = granted(circuit)
        assert permit.record_rejection(CAUSE) is not None
        permit.close()


def test_closed_circuit_grants_every_permit(circuit: Circuit) -> None:
    """Any number at once; a success of any of them changes nothing."""
    permits = [granted(circuit) for _ in range(10)]

    assert all(permit.is_valid for permit in permits)
    assert not any(permit.record_success() for permit in permits)


def test_rejection_opens_the_circuit(circuit: Circuit, time: Time) -> None:
    """No permit is granted for the time that it returns, and earlier permits become invalid."""
    rejected, waiting = granted(circuit), granted(circuit)

    assert rejected.record_rejection(CAUSE) == 5

    time.seconds = 4.999
    assert circuit.permit() is None
    assert not waiting.is_valid


def test_concurrent_rejections_open_the_circuit_once(circuit: Circuit, time: Time) -> None:
    """The later rejections of work that was in flight make the wait no longer."""
    permits = [granted(circuit) for _ in range(4)]

    assert [permit.record_rejection(CAUSE) for permit in permits] == [5, None, None, None]

    time.seconds = 5.0
    assert circuit.permit() is not None


def test_half_open_circuit_grants_one_probe(circuit: Circuit, time: Time) -> None:
    """No other permit is granted until the probe has ended."""
    open_circuit(circuit, time)
    time.seconds += 5

    probe = granted(circuit)

    assert probe.is_valid
    assert circuit.permit() is None
    time.seconds += 1_000
    assert circuit.permit() is None


def test_probe_success_closes_the_circuit(circuit: Circuit, time: Time) -> None:
    """All work may begin again at once, and the next opening is a short one."""
    open_circuit(circuit, time, times=3)
    time.seconds += 1_000
    probe = granted(circuit)

    assert probe.record_success()

    permits = [granted(circuit) for _ in range(10)]
    assert permits[0].record_rejection(CAUSE) == 5


def test_probe_without_a_result_makes_room_for_the_next(circuit: Circuit, time: Time) -> None:
    """It found no task, or a task with nothing to do: the next probe may begin, and only one."""
    open_circuit(circuit, time)
    time.seconds += 5
    granted(circuit).close()

    granted(circuit)

    assert circuit.permit() is None


def test_open_time_doubles_up_to_its_cap(circuit: Circuit, time: Time) -> None:
    """Whatever the number of rejected probes in a row."""
    waits = []
    for _ in range(100):
        time.seconds += 1_000
        permit = granted(circuit)
        waits.append(permit.record_rejection(CAUSE))
        permit.close()

    assert waits == [5, 10, 20, 40] + [60] * 96


def test_success_of_earlier_work_does_not_close_the_circuit(circuit: Circuit, time: Time) -> None:
    """Work that began before the opening says nothing about the time after it."""
    early = granted(circuit)
    open_circuit(circuit, time)

    assert not early.record_success()
    early.close()

    assert circuit.permit() is None


def test_failures_of_different_work_open_the_circuit(circuit: Circuit) -> None:
    """One that fails again and again may be at fault itself."""
    same = [granted(circuit).record_failure("one", CAUSE) for _ in range(10)]

    others = [granted(circuit).record_failure(number, CAUSE) for number in range(4)]

    assert same == [None] * 10
    assert others == [None, None, None, 5]
    assert circuit.permit() is None


def test_success_between_failures_keeps_the_circuit_closed(circuit: Circuit) -> None:
    """Then the dependency works."""
    for number in range(20):
        assert granted(circuit).record_failure(number, CAUSE) is None
        if number % 4 == 3:
            granted(circuit).record_success()

    assert circuit.is_closed


def test_failing_probes_open_it_for_a_shorter_time_at_most(circuit: Circuit, time: Time) -> None:
    """Than rejected ones: what is temporary ends by itself."""
    for number in range(5):
        granted(circuit).record_failure(number, CAUSE)

    seconds = []
    for number in range(5):
        time.seconds += 1_000
        probe = granted(circuit)
        seconds.append(probe.record_failure(number, CAUSE))
        probe.close()

    assert seconds == [10, 20, 30, 30, 30]


def test_failure_of_earlier_work_leaves_an_open_circuit_alone(circuit: Circuit) -> None:
    """It began before the circuit opened, so it says nothing new."""
    earlier = granted(circuit)
    granted(circuit).record_rejection(CAUSE)

    assert earlier.record_failure("earlier", CAUSE) is None


def test_open_circuit_names_its_latest_cause(circuit: Circuit, time: Time) -> None:
    """Also while it is half-open: nothing has shown yet that the cause is gone."""
    granted(circuit).record_rejection(CAUSE)
    opened = circuit.opening
    time.seconds = 5
    probe = granted(circuit)
    half_open = circuit.opening
    probe.record_rejection(OTHER_CAUSE)

    assert opened == half_open == Opening(5, CAUSE)
    assert circuit.opening == Opening(15, OTHER_CAUSE)


def test_failures_name_the_cause_of_the_last_one(circuit: Circuit) -> None:
    for number in range(4):
        granted(circuit).record_failure(number, CAUSE)
    before = circuit.opening
    granted(circuit).record_failure(5, OTHER_CAUSE)

    assert before is None
    assert circuit.opening == Opening(5, OTHER_CAUSE)


def test_closed_circuit_has_no_cause(circuit: Circuit, time: Time) -> None:
    open_circuit(circuit, time)
    time.seconds += 5
    granted(circuit).record_success()

    assert circuit.opening is None
