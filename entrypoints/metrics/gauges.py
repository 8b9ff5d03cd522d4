"""The gauges: the state of the service, as ``wearon status`` reports it.

What is not known has no value: while the database does not answer, ``wearon_database_up`` is 0 and
its other gauges are missing.
"""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import datetime
from typing import TypeAlias

from config.counted import Kind, Metric
from domain.alarms import AlarmCode, Measured
from domain.causes import CauseKind
from domain.operator_ports import Snapshot, Switch, WorkerState
from domain.status import Report

Values: TypeAlias = Mapping[tuple[str, ...], float]
"""By the values of the labels."""

_CIRCUITS = (CauseKind.PROVIDER, CauseKind.STORAGE)


@dataclass(frozen=True, slots=True)
class Gauge:
    """A metric, and how its values follow from a report."""

    metric: Metric
    values: Callable[[Report], Values]


def _gauge(name: str, text: str, read: Callable[[Measured], float | None]) -> Gauge:
    def values(report: Report) -> Values:
        value = read(report.measured)
        return {} if value is None else {(): float(value)}

    return Gauge(Metric(name=name, kind=Kind.GAUGE, help=text), values)


def _of_snapshot(name: str, text: str, read: Callable[[Snapshot], float | None]) -> Gauge:
    def value(measured: Measured) -> float | None:
        return None if measured.snapshot is None else read(measured.snapshot)

    return _gauge(name, text, value)


def _labelled(
    name: str, text: str, label: str, read: Callable[[Snapshot], Mapping[str, float]]
) -> Gauge:
    def values(report: Report) -> Values:
        snapshot = report.measured.snapshot
        return {} if snapshot is None else {(key,): n for key, n in read(snapshot).items()}

    return Gauge(Metric(name=name, kind=Kind.GAUGE, help=text, labels=(label,)), values)


def _age(at: datetime, since: datetime | None) -> float:
    """In seconds; 0 without a beginning."""
    return 0.0 if since is None else max(0.0, (at - since).total_seconds())


def _live(count: Callable[[WorkerState], int]) -> Callable[[Snapshot], float]:
    return lambda snapshot: sum(map(count, snapshot.live_workers()))


def _circuits(snapshot: Snapshot) -> Mapping[str, float]:
    causes = [each.circuit_cause for each in snapshot.live_workers() if each.circuit_cause]
    kinds = Counter(_kind_of(cause) for cause in causes)
    return {kind.value: float(kinds[kind.value]) for kind in _CIRCUITS} | dict(kinds)


def _kind_of(cause: str) -> str:
    """The kind of a cause that a worker reported; ``other`` for one that this version does not
    know."""
    found = (kind.value for kind in CauseKind if cause == kind or cause.startswith(f"{kind} "))
    return next(found, "other")


def _alarms(report: Report) -> Values:
    wrong = Counter(alarm.code for alarm in report.alarms)
    return {(code.value,): float(wrong[code] > 0) for code in AlarmCode if _is_known(code, report)}


def _pages(report: Report) -> Values:
    return {(): float(report.must_act)}


_OF_SERVERS = frozenset(
    {
        AlarmCode.DATABASE_UNAVAILABLE,
        AlarmCode.REDIS_UNAVAILABLE,
        AlarmCode.REDIS_REJECTS_WRITES,
        AlarmCode.QUEUE_STALLED,
        AlarmCode.QUEUE_NEARLY_FULL,
        AlarmCode.DEAD_LETTERS,
    }
)
"""Alarms that are known without the database."""


def _is_known(code: AlarmCode, report: Report) -> bool:
    return code in _OF_SERVERS or report.measured.snapshot is not None


GAUGES = (
    Gauge(
        Metric(
            name="wearon_alarm",
            kind=Kind.GAUGE,
            help="1 while `wearon status` reports the alarm, by its code",
            labels=("code",),
        ),
        _alarms,
    ),
    Gauge(
        Metric(
            name="wearon_must_act", kind=Kind.GAUGE, help="1 while an alarm needs a person at once"
        ),
        _pages,
    ),
    _gauge("wearon_database_up", "Whether the database answers", lambda m: m.snapshot is not None),
    _gauge("wearon_redis_up", "Whether Redis answers", lambda m: m.queue_problem is None),
    _gauge(
        "wearon_redis_writable",
        "Whether Redis answers and accepts writes",
        lambda m: m.queue_problem is None and m.write_problem is None,
    ),
    _of_snapshot("wearon_sessions_queued", "Sessions that wait for a worker", lambda s: s.queued),
    _of_snapshot(
        "wearon_oldest_queued_age_seconds",
        "How long ago the oldest queued session was created",
        lambda s: _age(s.at, s.oldest_queued_at),
    ),
    _of_snapshot(
        "wearon_sessions_processing", "Sessions that are being worked on", lambda s: s.processing
    ),
    _of_snapshot(
        "wearon_sessions_unconfirmed",
        "Sessions queued for more than 5 s whose push is not known to have worked",
        lambda s: s.unconfirmed,
    ),
    _of_snapshot(
        "wearon_dead_leases",
        "Sessions of dead workers that recovery has not taken up yet",
        lambda s: s.dead_leases,
    ),
    _of_snapshot(
        "wearon_refunds_owed", "Failed sessions that are not refunded yet", lambda s: s.owed_refunds
    ),
    _of_snapshot(
        "wearon_oldest_refund_owed_age_seconds",
        "Since when the oldest refund is owed",
        lambda s: _age(s.at, s.oldest_owed_at),
    ),
    _gauge("wearon_queue_tasks", "Tasks in Redis' list", lambda m: m.waiting),
    _gauge("wearon_queue_max_tasks", "WEARON_MAX_WAITING of this process", lambda m: m.max_waiting),
    _gauge("wearon_dead_letters", "Tasks that no worker can work on", lambda m: m.dead_letters),
    _of_snapshot(
        "wearon_workers", "Workers that reported within 30 s", lambda s: len(s.live_workers())
    ),
    _of_snapshot("wearon_worker_slots", "Slots of these workers", _live(lambda w: w.slots)),
    _of_snapshot("wearon_worker_slots_busy", "Slots that have a task", _live(lambda w: w.busy)),
    _of_snapshot(
        "wearon_workers_throttled",
        "Workers that wait for the provider's limit",
        _live(lambda w: w.throttled_until is not None),
    ),
    _of_snapshot(
        "wearon_workers_with_local_limit",
        "Workers that keep the provider's limit alone, without Redis",
        _live(lambda w: w.limit_is_local),
    ),
    _labelled(
        "wearon_workers_circuit_open",
        "Workers that take no task, by the kind of the cause",
        "kind",
        _circuits,
    ),
    _labelled(
        "wearon_paused",
        "Whether operators have paused it",
        "switch",
        lambda s: {
            each.value: float(each in {pause.switch for pause in s.pauses}) for each in Switch
        },
    ),
    _of_snapshot(
        "wearon_books_discrepancies",
        "What the latest complete check of the books found",
        lambda s: None if s.books is None else s.books.discrepancies,
    ),
    _of_snapshot(
        "wearon_books_check_age_seconds",
        "How long ago the books were checked",
        lambda s: None if s.books is None else _age(s.at, s.books.at),
    ),
    _of_snapshot(
        "wearon_spent_today_usd",
        "The estimated cost of the pictures of this day (UTC)",
        lambda s: float(s.spent_today_usd),
    ),
    _labelled(
        "wearon_session_wait_seconds",
        "How long sessions completed in the last hour waited for their last attempt",
        "quantile",
        lambda s: _quantiles(s.waits),
    ),
    _labelled(
        "wearon_session_work_seconds",
        "How long the last attempt of these sessions took",
        "quantile",
        lambda s: _quantiles(s.works),
    ),
)


def _quantiles(pair: tuple[float, float] | None) -> Mapping[str, float]:
    return {} if pair is None else dict(zip(("0.5", "0.95"), pair, strict=True))
