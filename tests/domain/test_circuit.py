"""The circuit breaker: nothing is begun while it is open, and one thing at a time while it asks."""

import pytest

from domain.circuit import Circuit, Permit


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


def begun(circuit: Circuit) -> Permit:
    permit = circuit.permit()
    assert permit is not None
    return permit


def opened(circuit: Circuit, time: Time, *, times: int = 1) -> None:
    """Permit away one probe after the other; what opened last stays open."""
    for _ in range(times):
        time.seconds += 1_000
        permit = begun(circuit)
        assert permit.record_rejection() is not None
        permit.close()


def test_closed_lets_everything_begin(circuit: Circuit) -> None:
    """Any number at once; a success of any of them changes nothing."""
    permits = [begun(circuit) for _ in range(10)]

    assert all(permit.is_valid for permit in permits)
    assert not any(permit.record_success() for permit in permits)


def test_one_that_is_turned_away_opens_it(circuit: Circuit, time: Time) -> None:
    """Nothing begins for the time that it tells; what had its permit before may no longer begin."""
    refused, waiting = begun(circuit), begun(circuit)

    assert refused.record_rejection() == 5

    time.seconds = 4.999
    assert circuit.permit() is None
    assert not waiting.is_valid


def test_many_that_are_turned_away_open_it_once(circuit: Circuit, time: Time) -> None:
    """What was under way ends as the first one did, and makes the wait no longer."""
    permits = [begun(circuit) for _ in range(4)]

    assert [permit.record_rejection() for permit in permits] == [5, None, None, None]

    time.seconds = 5.0
    assert circuit.permit() is not None


def test_half_open_lets_one_probe_begin(circuit: Circuit, time: Time) -> None:
    """The others wait until it has ended."""
    opened(circuit, time)
    time.seconds += 5

    probe = begun(circuit)

    assert probe.is_valid
    assert circuit.permit() is None
    time.seconds += 1_000
    assert circuit.permit() is None


def test_a_probe_that_succeeds_closes_it(circuit: Circuit, time: Time) -> None:
    """All may begin again at once, and the next opening is a short one."""
    opened(circuit, time, times=3)
    time.seconds += 1_000
    probe = begun(circuit)

    assert probe.record_success()

    permits = [begun(circuit) for _ in range(10)]
    assert permits[0].record_rejection() == 5


def test_a_probe_that_proves_nothing_leaves_its_place(circuit: Circuit, time: Time) -> None:
    """It found no task, or one with nothing to do: the next probe may begin, and only that."""
    opened(circuit, time)
    time.seconds += 5
    begun(circuit).close()

    begun(circuit)

    assert circuit.permit() is None


def test_waits_double_to_a_cap(circuit: Circuit, time: Time) -> None:
    """Whatever the number of openings in a row."""
    waits = []
    for _ in range(100):
        time.seconds += 1_000
        permit = begun(circuit)
        waits.append(permit.record_rejection())
        permit.close()

    assert waits == [5, 10, 20, 40] + [60] * 96


def test_what_began_before_the_opening_does_not_close_it(circuit: Circuit, time: Time) -> None:
    """Its success is of a time when all was well."""
    early = begun(circuit)
    opened(circuit, time)

    assert not early.record_success()
    early.close()

    assert circuit.permit() is None
