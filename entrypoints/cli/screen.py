"""The status on one screen: at most 24 lines of 80 characters, the alarms first."""

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta

from config.printable import printable
from domain.alarms import Alarm, Severity, duration, most
from domain.operator_ports import WORKER_GONE, Snapshot, WorkerState
from domain.status import Report

WIDTH = 80
HEIGHT = 24
MAX_ALARM_LINES = 10
MAX_CAUSES = 3
_COLOURS = {Severity.PAGE: "red", Severity.WARN: "yellow"}


@dataclass(frozen=True, slots=True)
class Line:
    """A line without control characters, and its colour on a terminal."""

    text: str
    colour: str | None = None


def screen(report: Report) -> list[Line]:
    """What ``wearon status`` prints."""
    top = [_heading(report), *_alarm_lines(report.alarms)]
    snapshot = report.measured.snapshot
    if snapshot is None:
        return [*top, *_fitted(_of_queue(report))]
    top += _fitted([*_of_queue(report), *_numbers(snapshot), *_causes(snapshot)])
    return [*top, *_fitted(_workers(snapshot, HEIGHT - len(top)))]


def _heading(report: Report) -> Line:
    at = report.measured.at.strftime("%Y-%m-%d %H:%M:%S UTC")
    if not report.alarms:
        return Line(f"{at}  no alarm", "green")
    pages = sum(alarm.severity is Severity.PAGE for alarm in report.alarms)
    parts = [
        f"{number} {name}"
        for number, name in ((pages, "to act on"), (len(report.alarms) - pages, "to know of"))
        if number
    ]
    worst = Severity.PAGE if pages else Severity.WARN
    return Line(f"{at}  {', '.join(parts)}", _COLOURS[worst])


def _alarm_lines(alarms: Sequence[Alarm]) -> list[Line]:
    """As many alarms as fit, the others by name."""
    lines: list[Line] = []
    for number, alarm in enumerate(alarms):
        block = _alarm(alarm)
        is_last = number == len(alarms) - 1
        if len(lines) + len(block) > MAX_ALARM_LINES - (not is_last):
            names = ", ".join(other.code.anchor for other in alarms[number:])
            return [*lines, Line(_cut(f"  {len(alarms) - number} more: {names}"))]
        lines += block
    return lines


def _alarm(alarm: Alarm) -> list[Line]:
    sentence = printable(f"{alarm.severity.upper()} {alarm.code.anchor}: {alarm.sentence}")
    return [
        *[Line(text, _COLOURS[alarm.severity]) for text in _wrapped(sentence, max_lines=2)],
        *[Line(text) for text in _wrapped(f"     {alarm.advice}", max_lines=2)],
    ]


def _wrapped(text: str, *, max_lines: int) -> list[str]:
    return textwrap.wrap(
        text,
        WIDTH,
        subsequent_indent="     ",
        max_lines=max_lines,
        placeholder=" ...",
        break_on_hyphens=False,  # of names of hosts
    )


def _fitted(lines: "Iterator[str] | Sequence[str]") -> list[Line]:
    return [Line(_cut(printable(line))) for line in lines]


def _cut(text: str) -> str:
    return text if len(text) <= WIDTH else f"{text[: WIDTH - 4]} ..."


def _of_queue(report: Report) -> Iterator[str]:
    measured = report.measured
    waits = "?" if measured.snapshot is None and measured.waiting is None else measured.waits
    tasks = "?" if measured.waiting is None else measured.waiting
    dead = "?" if measured.dead_letters is None else measured.dead_letters
    since = measured.oldest_task_at if measured.snapshot is None else measured.oldest_waits
    oldest = duration(measured.oldest_waits) if since else "-"
    yield f"waiting  {waits}   oldest {oldest}   tasks in Redis {tasks}   dead letters {dead}"


def _numbers(snapshot: Snapshot) -> Iterator[str]:
    live = snapshot.live_workers()
    quarter = snapshot.last_quarter
    codes = ", ".join(f"{code} {count}" for code, count in most(quarter.by_code, 2))
    busy, slots = sum(each.busy for each in live), sum(each.slots for each in live)
    yield (
        f"working  {snapshot.processing}   slots {busy} of {slots} busy"
        f"   done {snapshot.last_minute.completed} within a minute"
        f"   spent today ${snapshot.spent_today_usd:.2f}"
    )
    yield (
        f"failed   {quarter.failed} of {quarter.completed + quarter.failed} within 15 min,"
        f" {quarter.failed_share:.0%}{f': {codes}' if codes else ''}"
    )
    yield (
        f"times    waits {_percentiles(snapshot.waits)}   works {_percentiles(snapshot.works)}"
        "   (last hour)"
    )
    yield (
        f"credit   refunds owed {snapshot.owed_refunds}   unconfirmed {snapshot.unconfirmed}"
        f"   dead leases {snapshot.dead_leases}   books {_books(snapshot)}"
    )
    paused = ", ".join(
        f"{pause.switch} for {duration(snapshot.at - pause.since)}" for pause in snapshot.pauses
    )
    yield f"paused   {paused or 'nothing'}"


def _percentiles(pair: tuple[float, float] | None) -> str:
    return "-" if pair is None else f"p50 {pair[0]:.1f} s p95 {pair[1]:.1f} s"


def _books(snapshot: Snapshot) -> str:
    if snapshot.books is None:
        return "never checked"
    wrong = snapshot.books.discrepancies
    return f"{f'{wrong} wrong' if wrong else 'ok'} {_ago(snapshot, snapshot.books.at)}"


def _ago(snapshot: Snapshot, moment: datetime) -> str:
    return f"{duration(max(timedelta(), snapshot.at - moment))} ago"


def _causes(snapshot: Snapshot) -> Iterator[str]:
    """Those of now first: they may be few beside what failed earlier in the day."""
    recent, of_day = snapshot.recent_causes, snapshot.causes
    earlier = [pair for pair in most(of_day, len(of_day)) if pair[0] not in recent]
    yield f"causes   of failed attempts, 15 min / 24 h:{'' if of_day else ' none'}"
    for cause, _ in [*most(recent, MAX_CAUSES), *earlier][:MAX_CAUSES]:
        yield f"{recent.get(cause, 0):>7} / {of_day.get(cause, 0):<5}  {cause}"


def _workers(snapshot: Snapshot, room: int) -> Iterator[str]:
    """The latest first; those that do not fit are counted."""
    workers = snapshot.workers
    yield f"workers  {len(snapshot.live_workers())} report" + ("" if workers else ", none known")
    shown = workers if len(workers) < room else workers[: max(0, room - 2)]
    for worker in shown:
        yield f"         {_worker(snapshot, worker)}"
    if len(shown) < len(workers):
        yield f"         and {len(workers) - len(shown)} more: see --json"


def _worker(snapshot: Snapshot, worker: WorkerState) -> str:
    seen = worker.seen_at
    is_gone = seen is None or snapshot.at - seen >= WORKER_GONE
    states = {
        "GONE": is_gone,
        "draining": worker.draining,
        "throttled": worker.throttled_until is not None,
        "limit is local": worker.limit_is_local,
        f"CIRCUIT {worker.circuit_cause}": worker.circuit_cause is not None,
    }
    return "  ".join(
        [
            f"{worker.host}/{worker.pid} {worker.version}",
            f"{worker.busy}/{worker.slots} busy",
            "never seen" if seen is None else _ago(snapshot, seen),
            *[name for name, holds in states.items() if holds],
        ]
    )
