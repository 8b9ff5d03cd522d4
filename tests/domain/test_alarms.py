"""Alarms: each rule at its boundary, and what an operator reads."""

from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime, timedelta
from typing import Any
from uuid import uuid4

import pytest

from domain.alarms import Alarm, AlarmCode, Measured, Severity, alarms, duration, must_act
from domain.operator_ports import BookCheck, Pause, Snapshot, Switch, Window, WorkerState
from tests.support.clock import START

SECOND = timedelta(seconds=1)


def a_worker(seen: timedelta = SECOND, **changes: Any) -> WorkerState:
    """A worker that reported ``seen`` ago."""
    state = WorkerState(
        id=uuid4(), host="host-a", pid=7, version="1.0", started_at=START, slots=4,
        seen_at=START - seen,
    )  # fmt: skip
    return replace(state, **changes)


def a_snapshot(**changes: Any) -> Snapshot:
    """A quiet service with one worker."""
    quiet: dict[str, Any] = {"at": START, "workers": (a_worker(),)}
    return Snapshot(**quiet | changes)


def measured(snapshot: Snapshot | None = None, **changes: Any) -> Measured:
    parts: dict[str, Any] = {
        "at": START, "snapshot": snapshot or a_snapshot(), "waiting": 0, "dead_letters": 0,
        "max_waiting": 100,
    }  # fmt: skip
    return Measured(**parts | changes)


def found(snapshot: Snapshot | None = None, **changes: Any) -> list[Alarm]:
    return alarms(measured(snapshot, **changes))


def codes(found: Sequence[Alarm]) -> list[str]:
    return [alarm.code for alarm in found]


def waiting(seconds: float, **changes: Any) -> Snapshot:
    """One session waits for that long."""
    since = START - timedelta(seconds=seconds)
    return a_snapshot(**{"queued": 1, "oldest_queued_at": since} | changes)


def open_circuit(cause: str, *, seconds: float = 18) -> WorkerState:
    until = START + timedelta(seconds=seconds)
    return a_worker(circuit_until=until, circuit_cause=cause)


def ended(completed: int, **by_code: int) -> Snapshot:
    window = Window(completed=completed, failed=sum(by_code.values()), by_code=by_code)
    return a_snapshot(last_quarter=window)


def ago(**time: float) -> datetime:
    return START - timedelta(**time)


OF_SNAPSHOT: list[tuple[AlarmCode, Snapshot, Snapshot]] = [
    (AlarmCode.NO_WORKER, a_snapshot(workers=(a_worker(30 * SECOND),)),
     a_snapshot(workers=(a_worker(29 * SECOND),))),
    (AlarmCode.NO_WORKER, waiting(30, workers=()), waiting(29, workers=())),
    (AlarmCode.QUEUE_STALLED, waiting(121), waiting(120)),
    (AlarmCode.CIRCUIT_OPEN, a_snapshot(workers=(open_circuit("provider 401"),)),
     a_snapshot()),
    (AlarmCode.STORAGE, a_snapshot(workers=(open_circuit("storage read-only"),)),
     a_snapshot()),
    (AlarmCode.BUDGET_SPENT,
     a_snapshot(workers=(open_circuit("provider budget of $5.00 for 2026-11-28 is spent"),)),
     a_snapshot()),
    (AlarmCode.FAILURE_RATE, ended(89, GENERATION_FAILED=11), ended(90, GENERATION_FAILED=10)),
    (AlarmCode.FAILURE_RATE, ended(0, GENERATION_FAILED=20), ended(0, GENERATION_FAILED=19)),
    (AlarmCode.REFUNDS_OWED, a_snapshot(owed_refunds=1, oldest_owed_at=ago(seconds=61)),
     a_snapshot(owed_refunds=1, oldest_owed_at=ago(seconds=60))),
    (AlarmCode.BOOKS_WRONG,
     a_snapshot(books=BookCheck(at=START, took=SECOND, discrepancies=1, first="b2c:x: off")),
     a_snapshot(books=BookCheck(at=START, took=SECOND, discrepancies=0))),
    (AlarmCode.DEAD_LEASES, a_snapshot(dead_leases=1), a_snapshot()),
    (AlarmCode.THROTTLED, a_snapshot(workers=(a_worker(throttled_until=START),)),
     a_snapshot()),
    (AlarmCode.LIMIT_IS_LOCAL, a_snapshot(workers=(a_worker(limit_is_local=True),)),
     a_snapshot()),
    (AlarmCode.INTAKE_PAUSED,
     a_snapshot(pauses=(Pause(switch=Switch.INTAKE, since=START, actor="a", reason="r"),)),
     a_snapshot()),
    (AlarmCode.WORKERS_PAUSED,
     a_snapshot(pauses=(Pause(switch=Switch.WORKERS, since=START, actor="a", reason="r"),)),
     a_snapshot()),
]  # fmt: skip

OF_SERVERS: list[tuple[AlarmCode, dict[str, Any], dict[str, Any]]] = [
    (AlarmCode.DATABASE_UNAVAILABLE, {"database_problem": "No answer"}, {}),
    (AlarmCode.REDIS_UNAVAILABLE, {"queue_problem": "No answer"}, {}),
    (AlarmCode.REDIS_REJECTS_WRITES, {"write_problem": "OOM"}, {}),
    (AlarmCode.QUEUE_NEARLY_FULL, {"waiting": 80}, {"waiting": 79}),
    (AlarmCode.DEAD_LETTERS, {"dead_letters": 1}, {"dead_letters": 0}),
]


def test_quiet_service_has_no_alarm() -> None:
    """A worker reports, nothing waits."""
    assert found() == []


@pytest.mark.parametrize(("code", "loud", "quiet"), OF_SNAPSHOT)
def test_rule_of_the_snapshot_has_its_boundary(
    code: AlarmCode, loud: Snapshot, quiet: Snapshot
) -> None:
    """Just beyond it there is the one alarm, just within it there is none."""
    assert codes(found(loud)) == [code]
    assert found(quiet) == []


@pytest.mark.parametrize(("code", "loud", "quiet"), OF_SERVERS)
def test_rule_of_the_servers_has_its_boundary(
    code: AlarmCode, loud: dict[str, Any], quiet: dict[str, Any]
) -> None:
    """The same for what is not in the snapshot."""
    assert codes(found(**loud)) == [code]
    assert found(**quiet) == []


def test_every_alarm_has_a_boundary_above() -> None:
    """Both tables together name each code."""
    assert {code for code, *_ in (*OF_SNAPSHOT, *OF_SERVERS)} == set(AlarmCode)


def test_alarms_are_in_the_order_of_reading() -> None:
    """What explains others comes first, whatever found it."""
    snapshot = waiting(
        500, workers=(a_worker(60 * SECOND),), dead_leases=1, owed_refunds=2,
        oldest_owed_at=ago(hours=1),
    )  # fmt: skip

    assert codes(found(snapshot, waiting=100, dead_letters=3, write_problem="OOM")) == [
        "REDIS_REJECTS_WRITES", "NO_WORKER", "QUEUE_STALLED", "REFUNDS_OWED", "DEAD_LEASES",
        "QUEUE_NEARLY_FULL", "DEAD_LETTERS",
    ]  # fmt: skip


def test_worker_that_never_was_is_missed_only_if_something_waits() -> None:
    """A new service without sessions is at rest."""
    assert found(a_snapshot(workers=())) == []


def test_external_consumers_need_no_worker_of_ours() -> None:
    """They do not report, but what they work on shows that they live. Dead leases show the
    opposite."""
    external = waiting(60, workers=(), processing=2, dead_leases=1)
    nothing_lives = waiting(60, workers=(), processing=1, dead_leases=1)

    assert codes(found(external)) == ["DEAD_LEASES"]
    assert codes(found(nothing_lives)) == ["NO_WORKER", "DEAD_LEASES"]


def test_redis_that_does_not_answer_is_not_said_to_reject_writes() -> None:
    """One cause, one alarm."""
    assert codes(found(queue_problem="No answer", write_problem="No answer")) == [
        "REDIS_UNAVAILABLE"
    ]


def test_queue_tells_its_age_while_the_database_is_down() -> None:
    """The oldest task in Redis stands in for the oldest session."""
    unknown = Measured(
        at=START, database_problem="No answer from db:5432: timeout", waiting=41,
        oldest_task_at=ago(seconds=372), max_waiting=1_000,
    )  # fmt: skip

    assert [alarm.sentence for alarm in alarms(unknown)] == [
        "No answer from db:5432: timeout.",
        "41 sessions waiting, the oldest for 6 min 12 s.",
    ]


def test_sentences_have_cause_and_number() -> None:
    """As the console shows them."""
    workers = (
        open_circuit("provider 401 invalid_api_key"),
        open_circuit("provider 401 invalid_api_key", seconds=30),
        open_circuit("storage no space left on device"),
        a_worker(),
    )
    pause = Pause(
        switch=Switch.INTAKE, since=ago(minutes=90), actor="cli:ann", reason="ticket 7"
    )  # fmt: skip
    snapshot = a_snapshot(
        workers=workers,
        pauses=(pause,),
        causes={"input 404": 99},
        recent_causes={"provider 500": 41, "input 404": 12},
        queued=3,
        oldest_queued_at=ago(minutes=4),
        last_quarter=Window(completed=70, failed=30, by_code={"GENERATION_FAILED": 30}),
    )

    assert [alarm.sentence for alarm in found(snapshot, dead_letters=2)] == [
        "3 sessions waiting, the oldest for 4 min 0 s; most attempts failed by provider 500 (41).",
        "2 of 4 workers take no task: provider 401 invalid_api_key; next try in 18 s.",
        "1 of 4 workers takes no task: storage no space left on device; next try in 18 s.",
        "30 of 100 sessions failed within 15 min: GENERATION_FAILED 30;"
        " most attempts failed by provider 500 (41).",
        "2 dead letters.",
        "New requests are refused: paused for 1 h 30 min by cli:ann: ticket 7.",
    ]


def test_newest_dead_letter_says_why() -> None:
    """The first 120 characters of its reason, because a sender may have chosen them."""
    (short,) = found(dead_letters=1, newest_reason="not a JSON object.")
    (long,) = found(dead_letters=2, newest_reason=f"{'r' * 120}x")

    assert short.sentence == "1 dead letter, the newest: not a JSON object."
    assert long.sentence == f"2 dead letters, the newest: {'r' * 120}."


def test_several_causes_are_counted() -> None:
    """The most frequent one is named."""
    workers = (open_circuit("provider 403"), *[open_circuit("provider 401")] * 2)

    (alarm,) = found(a_snapshot(workers=workers))

    assert "3 of 3 workers take no task: provider 401 (and 1 other cause)" in alarm.sentence


@pytest.mark.parametrize(
    ("seconds", "end"),
    [(1, "next try in 1 s."), (0.9, "tries again now."), (-4, "tries again now.")],
)
def test_circuit_whose_time_is_over_is_being_tried(seconds: float, end: str) -> None:
    """A worker reports every few seconds, so the time of its next try may have passed."""
    (alarm,) = found(a_snapshot(workers=(open_circuit("provider 401", seconds=seconds),)))

    assert alarm.sentence == f"1 of 1 worker takes no task: provider 401; {end}"


def test_circuit_of_a_dead_worker_does_not_count() -> None:
    """Its last report says nothing about now."""
    dead = replace(open_circuit("provider 401"), seen_at=ago(minutes=5))

    assert found(a_snapshot(workers=(a_worker(), dead))) == []


@pytest.mark.parametrize(
    ("snapshot", "severity"),
    [
        (ended(89, MODERATION_BLOCKED=11), Severity.WARN),
        (ended(50, IMAGE_UNREACHABLE=50), Severity.WARN),
        (ended(49, IMAGE_UNREACHABLE=51), Severity.PAGE),
        (ended(70, INVALID_IMAGE=19, EXPIRED=11), Severity.PAGE),
        (ended(10, CANCELLED=90), None),
    ],
)
def test_failures_that_callers_cause_page_only_if_most_fail(
    snapshot: Snapshot, severity: Severity | None
) -> None:
    """A shop whose pictures are refused wakes no one up; a broken name server does."""
    assert [alarm.severity for alarm in found(snapshot)] == ([severity] if severity else [])


def test_only_pages_need_a_person() -> None:
    """Warnings can wait for the morning."""
    assert must_act(found(write_problem="OOM"))
    assert not must_act(found(dead_letters=5))


def test_anchors_are_headings() -> None:
    """Of docs/runbook.md."""
    assert AlarmCode.REDIS_REJECTS_WRITES.anchor == "redis-rejects-writes"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [
        (-1, "0 s"), (59.9, "59 s"), (60, "1 min 0 s"), (3_599, "59 min 59 s"),
        (3_600, "1 h 0 min"), (86_399, "23 h 59 min"), (90_000, "1 d 1 h"),
    ],
)  # fmt: skip
def test_durations_have_two_units(seconds: float, text: str) -> None:
    """The two largest ones."""
    assert duration(timedelta(seconds=seconds)) == text
