"""The page of metrics, read as Prometheus reads it."""

import asyncio
import os
from collections.abc import Awaitable, Callable
from datetime import timedelta
from decimal import Decimal
from typing import Any
from uuid import uuid4

import pytest
from prometheus_client.openmetrics import parser as openmetrics
from prometheus_client.parser import text_string_to_metric_families

from config.cells import Cells, Totals
from config.counted import Kind
from config.metrics import COUNTERS, HISTOGRAMS, SUBMISSIONS
from domain.alarms import AlarmCode, Measured, alarms
from domain.operator_ports import BookCheck, Pause, Snapshot, Switch, WorkerState
from domain.status import Report
from entrypoints.metrics import reading
from entrypoints.metrics.gauges import GAUGES
from entrypoints.metrics.page import Page, all_metrics
from entrypoints.metrics.reading import ServiceReader
from tests.support.clock import START

MINUTE = timedelta(minutes=1)
PLAIN = "text/plain"
OPEN = "application/openmetrics-text; version=1.0.0"

Samples = dict[tuple[str, tuple[tuple[str, str], ...]], float]


def a_worker(**changes: Any) -> WorkerState:
    state: dict[str, Any] = {
        "id": uuid4(), "host": "a", "pid": 7, "version": "1", "started_at": START, "slots": 4,
        "busy": 1, "seen_at": START,
    }  # fmt: skip
    return WorkerState(**state | changes)


def a_report(snapshot: Snapshot | None, **changes: Any) -> Report:
    parts: dict[str, Any] = {
        "at": START, "snapshot": snapshot, "waiting": 5, "dead_letters": 2, "max_waiting": 100,
    }  # fmt: skip
    measured = Measured(**parts | changes)
    return Report(measured=measured, alarms=alarms(measured))


def samples_of(page: Page, accept: str = PLAIN) -> Samples:
    body, _ = page.text(accept)
    parse = (
        openmetrics.text_string_to_metric_families
        if accept == OPEN
        else text_string_to_metric_families
    )
    return {
        (sample.name, tuple(sorted(sample.labels.items()))): sample.value
        for family in parse(body.decode())
        for sample in family.samples
    }


def page_of(report: Report | None = None, totals: Totals | None = None) -> Page:
    return Page(
        role="api",
        version="1.2",
        totals=lambda: totals or {},
        process_ids=lambda: [os.getpid()],
        report=lambda: report,
    )


TROUBLED = Snapshot(
    at=START,
    queued=41,
    oldest_queued_at=START - 6 * MINUTE,
    processing=3,
    unconfirmed=1,
    dead_leases=2,
    owed_refunds=1,
    oldest_owed_at=START - 2 * MINUTE,
    waits=(4.0, 38.0),
    works=(9.0, 21.0),
    spent_today_usd=Decimal("38.20"),
    workers=(
        a_worker(circuit_until=START, circuit_cause="storage ENOSPC", throttled_until=START),
        a_worker(limit_is_local=True, circuit_until=START, circuit_cause="user keys 500"),
        a_worker(seen_at=START - MINUTE),
    ),
    pauses=(Pause(switch=Switch.WORKERS, since=START, actor="op", reason="test"),),
    books=BookCheck(at=START - MINUTE, took=MINUTE, discrepancies=7),
)


def test_gauges_say_what_status_says() -> None:
    samples = samples_of(page_of(a_report(TROUBLED, write_problem="OOM")))

    gauges = {
        key: value
        for key, value in samples.items()
        if not key[0].startswith(("wearon_process", "wearon_build", "wearon_alarm"))
    }
    assert gauges == {
        ("wearon_must_act", ()): 1.0,
        ("wearon_database_up", ()): 1.0,
        ("wearon_redis_up", ()): 1.0,
        ("wearon_redis_writable", ()): 0.0,
        ("wearon_sessions_queued", ()): 41.0,
        ("wearon_oldest_queued_age_seconds", ()): 360.0,
        ("wearon_sessions_processing", ()): 3.0,
        ("wearon_sessions_unconfirmed", ()): 1.0,
        ("wearon_dead_leases", ()): 2.0,
        ("wearon_refunds_owed", ()): 1.0,
        ("wearon_oldest_refund_owed_age_seconds", ()): 120.0,
        ("wearon_queue_tasks", ()): 5.0,
        ("wearon_queue_max_tasks", ()): 100.0,
        ("wearon_dead_letters", ()): 2.0,
        ("wearon_workers", ()): 2.0,
        ("wearon_worker_slots", ()): 8.0,
        ("wearon_worker_slots_busy", ()): 2.0,
        ("wearon_workers_throttled", ()): 1.0,
        ("wearon_workers_with_local_limit", ()): 1.0,
        ("wearon_workers_circuit_open", (("kind", "provider"),)): 0.0,
        ("wearon_workers_circuit_open", (("kind", "storage"),)): 1.0,
        ("wearon_workers_circuit_open", (("kind", "user keys"),)): 1.0,
        ("wearon_paused", (("switch", "intake"),)): 0.0,
        ("wearon_paused", (("switch", "workers"),)): 1.0,
        ("wearon_books_discrepancies", ()): 7.0,
        ("wearon_books_check_age_seconds", ()): 60.0,
        ("wearon_spent_today_usd", ()): 38.2,
        ("wearon_session_wait_seconds", (("quantile", "0.5"),)): 4.0,
        ("wearon_session_wait_seconds", (("quantile", "0.95"),)): 38.0,
        ("wearon_session_work_seconds", (("quantile", "0.5"),)): 9.0,
        ("wearon_session_work_seconds", (("quantile", "0.95"),)): 21.0,
    }
    on = {key[1][0][1] for key, value in samples.items() if key[0] == "wearon_alarm" and value}
    assert on == {
        "REDIS_REJECTS_WRITES", "QUEUE_STALLED", "STORAGE", "CIRCUIT_OPEN", "REFUNDS_OWED",
        "BOOKS_WRONG", "DEAD_LEASES", "THROTTLED", "LIMIT_IS_LOCAL", "DEAD_LETTERS",
        "WORKERS_PAUSED",
    }  # fmt: skip


def test_quiet_service_shows_every_alarm_as_0() -> None:
    quiet = Snapshot(at=START, workers=(a_worker(),))

    samples = samples_of(page_of(a_report(quiet, dead_letters=0)))

    shown = {key[1][0][1]: value for key, value in samples.items() if key[0] == "wearon_alarm"}
    assert shown == dict.fromkeys(AlarmCode, 0.0)


def test_unknown_values_are_missing_while_the_database_is_down() -> None:
    """A 0 would say that nothing waits and that no alarm is on."""
    report = a_report(None, database_problem="No answer from the database: refused")

    samples = samples_of(page_of(report))

    names = {name for name, _ in samples}
    alarm = {key[1][0][1]: value for key, value in samples.items() if key[0] == "wearon_alarm"}
    assert samples["wearon_database_up", ()] == 0.0
    assert samples["wearon_queue_tasks", ()] == 5.0
    assert "wearon_sessions_queued" not in names
    assert alarm["DATABASE_UNAVAILABLE"] == 1.0
    assert "BOOKS_WRONG" not in alarm
    assert "wearon_process_resident_memory_bytes" in names


@pytest.mark.parametrize("accept", [PLAIN, OPEN])
def test_counters_and_histograms_are_read_by_prometheus(accept: str) -> None:
    request = ("POST", "/api/v1/generations")
    totals = {
        ("wearon_http_requests_total", (*request, "202")): [3.0],
        ("wearon_http_request_duration_seconds", request): [1.0, 2.0, *[0.0] * 10, 4.0, 31.5],
    }

    samples = samples_of(page_of(totals=totals), accept)

    method, route = ("method", "POST"), ("route", "/api/v1/generations")
    seconds = "wearon_http_request_duration_seconds"
    assert samples["wearon_http_requests_total", (method, route, ("status", "202"))] == 3.0
    assert samples[f"{seconds}_bucket", (("le", "0.001"), method, route)] == 1.0
    assert samples[f"{seconds}_bucket", (("le", "0.0025"), method, route)] == 3.0
    assert samples[f"{seconds}_bucket", (("le", "+Inf"), method, route)] == 7.0
    assert samples[f"{seconds}_count", (method, route)] == 7.0
    assert samples[f"{seconds}_sum", (method, route)] == 31.5


def test_processes_show_what_linux_says_of_them() -> None:
    gone = 2**22 + 1
    page = Page(
        role="worker",
        version="1.2",
        totals=dict,
        process_ids=lambda: [os.getpid(), gone],
        report=None,
    )

    samples = samples_of(page)

    me = (("pid", str(os.getpid())),)
    assert samples["wearon_build_info", (("role", "worker"), ("version", "1.2"))] == 1.0
    assert samples["wearon_process_resident_memory_bytes", me] > 1_000_000
    assert samples["wearon_process_cpu_seconds_total", me] > 0
    assert samples["wearon_process_open_fds", me] > 2
    assert samples["wearon_process_uptime_seconds", me] > 0
    assert not [key for key in samples if ("pid", str(gone)) in key[1]]
    assert not [key for key in samples if key[0] == "wearon_database_up"]


def test_metrics_are_named_as_prometheus_advises() -> None:
    metrics = all_metrics()

    names = [metric.name for metric in metrics]
    assert len(set(names)) == len(names)
    assert all(name.startswith("wearon_") for name in names)
    counters = {metric.name for metric in metrics if metric.kind is Kind.COUNTER}
    assert counters == {name for name in names if name.endswith("_total")}
    assert not {label for metric in metrics for label in metric.labels} & {
        "owner",
        "session",
        "path",
    }
    assert {metric.kind for metric in metrics} == set(Kind)
    assert len(metrics) == len(COUNTERS) + len(HISTOGRAMS) + len(GAUGES) + 5


def test_submissions_are_counted_in_the_process_cells() -> None:
    before = SUBMISSIONS.value("accepted")

    SUBMISSIONS.inc("accepted")

    assert SUBMISSIONS.value("accepted") == before + 1
    assert Cells().totals() == {}


class Reads:
    """Reports that are read, in turn: one that is an exception is raised."""

    def __init__(self, *outcomes: Report | Exception) -> None:
        self.outcomes = list(outcomes)
        self.is_closed = False

    def open(self) -> tuple[Callable[[], Awaitable[Report]], Callable[[], Awaitable[None]]]:
        return self.read, self.close

    async def read(self) -> Report:
        outcome = self.outcomes.pop(0)
        if isinstance(outcome, Exception):
            raise outcome
        return outcome

    async def close(self) -> None:
        self.is_closed = True


def test_report_serves_all_scrapes_of_two_seconds() -> None:
    reads = Reads(report := a_report(TROUBLED))
    reader = ServiceReader(reads.open)
    reader.start()

    seen = [reader.read() for _ in range(3)]
    reader.close()

    assert seen == [report] * 3
    assert reads.is_closed


def test_failing_read_leaves_the_page_without_gauges() -> None:
    """And the next scrape tries again."""
    reads = Reads(RuntimeError("a bug"), report := a_report(TROUBLED))
    reader = ServiceReader(reads.open)
    reader.start()

    seen = [reader.read(), reader.read()]
    reader.close()

    assert seen == [None, report]


def test_scrape_waits_for_the_database_a_bounded_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(reading, "READ_SECONDS", 0.05)
    reads = Reads()

    async def hang() -> Report:
        await asyncio.Event().wait()
        raise AssertionError

    reader = ServiceReader(lambda: (hang, reads.close))
    reader.start()
    assert reader._is_ready.wait(30)

    seen = reader.read()
    reader.close()

    assert seen is None
    assert reads.is_closed
