"""``wearon status`` on one screen."""

import json
from dataclasses import replace
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import UUID

import msgspec
import pytest

from config.operating import server_at
from domain.alarms import Alarm, AlarmCode, Measured, Severity, alarms
from domain.operator_ports import BookCheck, Pause, Snapshot, Switch, Window, WorkerState
from domain.status import Report
from entrypoints.cli.screen import HEIGHT, WIDTH, Line, screen
from entrypoints.cli.status import report_fields
from tests.support.clock import START

MINUTE = timedelta(minutes=1)


def a_worker(number: int = 1, **changes: Any) -> WorkerState:
    state = WorkerState(
        id=UUID(int=number), host=f"host-{number}", pid=2267, version="0.3.0", started_at=START,
        slots=4, busy=3, seen_at=START - timedelta(seconds=2),
    )  # fmt: skip
    return replace(state, **changes)


BUSY = Snapshot(
    at=START,
    queued=41,
    oldest_queued_at=START - timedelta(seconds=72),
    processing=4,
    last_minute=Window(completed=11),
    last_quarter=Window(completed=98, failed=2, by_code={"GENERATION_FAILED": 2}),
    causes={"input 404": 97, "provider 500 server_error": 41},
    recent_causes={"provider 500 server_error": 41},
    waits=(4.0, 38.0),
    works=(9.04, 21.0),
    spent_today_usd=Decimal("38.2"),
    workers=(a_worker(1), a_worker(2, throttled_until=START)),
    pauses=(Pause(switch=Switch.INTAKE, since=START - MINUTE, actor="cli:ann", reason="move"),),
    books=BookCheck(at=START - 2 * MINUTE, took=MINUTE, discrepancies=0),
)


def a_report(snapshot: Snapshot | None = BUSY, **changes: Any) -> Report:
    parts: dict[str, Any] = {"waiting": 39, "dead_letters": 3, "max_waiting": 1_000}
    measured = Measured(at=START, snapshot=snapshot, **parts | changes)
    return Report(measured=measured, alarms=alarms(measured))


def text(report: Report) -> str:
    return "\n".join(line.text for line in screen(report))


def an_alarm(code: AlarmCode) -> Alarm:
    return Alarm(
        code=code, severity=Severity.PAGE, sentence="a long sentence " * 20, advice="advice " * 40
    )


def test_screen_tells_what_the_service_does() -> None:
    """All numbers of a busy service, below its alarms."""
    assert (
        text(a_report())
        == """\
2026-01-01 12:00:00 UTC  3 to know of
WARN throttled: 1 of 2 workers waits for the provider's limit.
     Raise WEARON_PROVIDER_PER_MINUTE if the provider allows more.
WARN dead-letters: 3 dead letters.
     See `wearon dead list`, then requeue or discard each.
WARN intake-paused: New requests are refused: paused for 1 min 0 s by cli:ann:
     move.
     `wearon resume intake` ends the pause.
waiting  41   oldest 1 min 12 s   tasks in Redis 39   dead letters 3
working  4   slots 6 of 8 busy   done 11 within a minute   spent today $38.20
failed   2 of 100 within 15 min, 2%: GENERATION_FAILED 2
times    waits p50 4.0 s p95 38.0 s   works p50 9.0 s p95 21.0 s   (last hour)
credit   refunds owed 0   unconfirmed 0   dead leases 0   books ok 2 min 0 s ago
paused   intake for 1 min 0 s
causes   of failed attempts, 15 min / 24 h:
     41 / 41     provider 500 server_error
      0 / 97     input 404
workers  2 report
         host-1/2267 0.3.0  3/4 busy  2 s ago
         host-2/2267 0.3.0  3/4 busy  2 s ago  throttled"""
    )


def test_quiet_service_has_a_quiet_screen() -> None:
    """Nothing is left out because it is zero."""
    quiet = text(a_report(Snapshot(at=START), waiting=0, dead_letters=0))

    assert quiet.splitlines()[0] == "2026-01-01 12:00:00 UTC  no alarm"
    assert "waiting  0   oldest -   tasks in Redis 0   dead letters 0" in quiet
    assert "books never checked" in quiet
    assert "workers  0 report, none known" in quiet


@pytest.mark.parametrize("workers", [0, 1, 2, 3, 100])
@pytest.mark.parametrize("number", [0, 1, 5, 18])
def test_screen_has_24_lines_of_80_characters(number: int, workers: int) -> None:
    """However much there is to tell; what does not fit is counted."""
    crowd = [
        a_worker(each, host="h" * 90, circuit_until=START, circuit_cause="provider " + "x" * 90)
        for each in range(workers)
    ]
    causes = {f"provider {each} {'x' * 200}": each for each in range(20)}
    snapshot = replace(BUSY, workers=crowd, causes=causes)
    report = replace(a_report(snapshot), alarms=[an_alarm(code) for code in AlarmCode][:number])

    lines = screen(report)

    assert len(lines) <= HEIGHT
    assert max(len(line.text) for line in lines) <= WIDTH
    shown = sum(line.text.startswith("PAGE") for line in lines)
    assert shown == number or f"  {number - shown} more: " in "\n".join(x.text for x in lines)
    listed = sum("/2267" in line.text or "hhh" in line.text for line in lines)
    assert listed == workers or f"and {workers - listed} more" in lines[-1].text


def test_screen_without_a_database_shows_the_queue() -> None:
    """And what failed, first."""
    report = a_report(None, database_problem="No answer from PostgreSQL at db:5432: timeout")

    assert text(report).splitlines()[1:] == [
        "PAGE database-unavailable: No answer from PostgreSQL at db:5432: timeout.",
        "     Every request gets a 503: check the server, then run `wearon doctor`.",
        "WARN dead-letters: 3 dead letters.",
        "     See `wearon dead list`, then requeue or discard each.",
        "waiting  39   oldest -   tasks in Redis 39   dead letters 3",
    ]


def test_screen_without_a_queue_shows_the_database() -> None:
    """Unknown numbers are no zeros."""
    shown = text(a_report(waiting=None, dead_letters=None, queue_problem="No answer"))

    assert "PAGE redis-unavailable: No answer." in shown
    assert "waiting  41   oldest 1 min 12 s   tasks in Redis ?   dead letters ?" in shown


def test_worker_shows_its_state() -> None:
    """Dead, draining, with an open circuit."""
    cause = {"circuit_until": START, "circuit_cause": "provider 401"}
    workers = (
        a_worker(1, seen_at=START - MINUTE),
        a_worker(2, draining=True, **cause),
        a_worker(3, limit_is_local=True),
    )

    shown = text(a_report(replace(BUSY, workers=workers, causes={})))

    assert "host-1/2267 0.3.0  3/4 busy  1 min 0 s ago  GONE" in shown
    assert "host-2/2267 0.3.0  3/4 busy  2 s ago  draining  CIRCUIT provider 401" in shown


def test_worst_alarm_colours_the_first_line() -> None:
    """Red for what a person must act on, yellow for the rest."""
    page, warn = a_report(write_problem="OOM"), a_report()

    assert screen(page)[0] == Line("2026-01-01 12:00:00 UTC  1 to act on, 3 to know of", "red")
    assert screen(warn)[0].colour == "yellow"
    assert [line.colour for line in screen(page)][1:3] == ["red", None]


def test_foreign_text_moves_no_cursor() -> None:
    """A reason, a cause or a host name may hold control characters."""
    pause = Pause(switch=Switch.WORKERS, since=START, actor="a\x1b[2J", reason="b\nPAGE c")
    snapshot = replace(
        BUSY, pauses=(pause,), causes={"\x1b[31m": 1}, workers=(a_worker(host="\r"),)
    )

    shown = text(a_report(snapshot))

    assert not set(shown) & {"\x1b", "\r"}
    assert "\nPAGE c" not in shown


def test_name_of_a_host_is_not_broken() -> None:
    """It would not be found by copying."""
    problem = f"No answer from PostgreSQL at {'db-' * 8}1.example:5432: timeout"

    assert f"{'db-' * 8}1.example:5432" in text(a_report(None, database_problem=problem))


@pytest.mark.parametrize(
    ("url", "server"),
    [
        ("postgresql://u:hunter2@db.example:5432/x?password=hunter2", "X at db.example:5432"),
        ("postgresql://u@/x?host=/run/postgresql", "X at /run/postgresql"),
        ("postgresql://u@a:1,b:2/x", "X at a:1,b:2"),
        ("redis://:hunter2@[::1]:6379/0", "X at [::1]:6379"),
        ("unix://:hunter2@/run/redis.sock?db=1", "X at /run/redis.sock"),
        ("unix:///run/redis.sock", "X at /run/redis.sock"),
        ("postgresql:///x", "X"),
        (None, "X"),
    ],
)
def test_server_is_named_without_its_password(url: str | None, server: str) -> None:
    """Host and port, or the socket."""
    assert server_at(url, name="X") == server


def test_json_has_the_alarms_and_all_that_was_read() -> None:
    """Each alarm with its paragraph in the runbook."""
    fields = json.loads(msgspec.json.encode(report_fields(a_report(write_problem="OOM"))))

    assert fields["must_act"] is True
    assert fields["alarms"][0] == {
        "code": "REDIS_REJECTS_WRITES", "severity": "page", "sentence": "OOM.",
        "advice": "New requests get a 503: look at Redis' memory, disk and role.",
        "runbook": "docs/runbook.md#redis-rejects-writes",
    }  # fmt: skip
    assert (fields["waiting"], fields["tasks_in_redis"], fields["dead_letters"]) == (41, 39, 3)
    assert fields["snapshot"]["workers"][0]["host"] == "host-1"
    assert fields["snapshot"]["spent_today_usd"] == "38.2"
