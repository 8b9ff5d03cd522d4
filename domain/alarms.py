"""What is wrong with the service, and what an operator does about it.

Pure rules over what was measured. ``wearon status``, the console and alerts use the same ones. The
code of an alarm, in lower case with hyphens, is the heading of its paragraph in docs/runbook.md.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from enum import StrEnum

from domain.causes import CauseKind
from domain.operator_ports import WORKER_GONE, Snapshot, Switch, Window, WorkerState
from domain.sessions import CALLERS_FAULTS, ErrorCode

STALLED_AFTER = timedelta(seconds=120)
REFUND_IS_LATE = timedelta(seconds=60)
MIN_ENDED = 20
"""Fewer sessions in 15 minutes say nothing about a rate."""
MAX_OWN_FAILURES = 0.10
MAX_FAILURES = 0.50
NEARLY_FULL = 0.80
MAX_REASON = 120
"""Longest part of a dead letter's reason that an alarm repeats."""
BUDGET_CAUSE = f"{CauseKind.PROVIDER} budget "
"""How the cause of a circuit begins that opened because the day's budget is spent."""
STORAGE_CAUSE = f"{CauseKind.STORAGE} "


class AlarmCode(StrEnum):
    """All alarms, in the order in which an operator should read them."""

    DATABASE_UNAVAILABLE = "DATABASE_UNAVAILABLE"
    REDIS_UNAVAILABLE = "REDIS_UNAVAILABLE"
    REDIS_REJECTS_WRITES = "REDIS_REJECTS_WRITES"
    NO_WORKER = "NO_WORKER"
    QUEUE_STALLED = "QUEUE_STALLED"
    CIRCUIT_OPEN = "CIRCUIT_OPEN"
    STORAGE = "STORAGE"
    BUDGET_SPENT = "BUDGET_SPENT"
    FAILURE_RATE = "FAILURE_RATE"
    REFUNDS_OWED = "REFUNDS_OWED"
    BOOKS_WRONG = "BOOKS_WRONG"
    DEAD_LEASES = "DEAD_LEASES"
    QUEUE_NEARLY_FULL = "QUEUE_NEARLY_FULL"
    THROTTLED = "THROTTLED"
    LIMIT_IS_LOCAL = "LIMIT_IS_LOCAL"
    DEAD_LETTERS = "DEAD_LETTERS"
    INTAKE_PAUSED = "INTAKE_PAUSED"
    WORKERS_PAUSED = "WORKERS_PAUSED"

    @property
    def anchor(self) -> str:
        """The heading of its paragraph in docs/runbook.md, as a link names it."""
        return self.value.lower().replace("_", "-")


class Severity(StrEnum):
    """Whether a person must act now."""

    PAGE = "page"
    WARN = "warn"


@dataclass(frozen=True, slots=True, kw_only=True)
class Alarm:
    """``sentence`` has the cause and the number, ``advice`` what to do first."""

    code: AlarmCode
    severity: Severity
    sentence: str
    advice: str


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What is known at ``at``. ``snapshot`` is None if the database failed; ``waiting``,
    ``oldest_task_at``, ``dead_letters`` and the reason of the newest of these come from the queue,
    None if unknown. A problem is a sentence without a full stop that names the server and the
    error; None if there is none."""

    at: datetime
    snapshot: Snapshot | None = None
    waiting: int | None = None
    oldest_task_at: datetime | None = None
    dead_letters: int | None = None
    newest_reason: str | None = None
    database_problem: str | None = None
    queue_problem: str | None = None
    write_problem: str | None = None
    max_waiting: int

    @property
    def waits(self) -> int:
        """The sessions that wait: the database's count, or else the queue's."""
        return self.waiting or 0 if self.snapshot is None else self.snapshot.queued

    @property
    def oldest_waits(self) -> timedelta:
        """How long the oldest one has waited since its creation; 0 if none waits."""
        oldest = self.oldest_task_at if self.snapshot is None else self.snapshot.oldest_queued_at
        return max(timedelta(), self.at - oldest) if oldest else timedelta()


def alarms(measured: Measured) -> list[Alarm]:
    """All that is wrong, in the order of ``AlarmCode``."""
    found = [*_servers(measured), *_queue(measured)]
    if measured.snapshot is not None:
        found += [alarm for rule in _OF_SNAPSHOT for alarm in rule(measured.snapshot)]
    order = list(AlarmCode)
    return sorted(found, key=lambda alarm: order.index(alarm.code))


def must_act(found: Sequence[Alarm]) -> bool:
    """Whether a person must act now."""
    return any(alarm.severity is Severity.PAGE for alarm in found)


def _page(code: AlarmCode, sentence: str, advice: str) -> Alarm:
    return Alarm(code=code, severity=Severity.PAGE, sentence=sentence, advice=advice)


def _warn(code: AlarmCode, sentence: str, advice: str) -> Alarm:
    return Alarm(code=code, severity=Severity.WARN, sentence=sentence, advice=advice)


def _servers(measured: Measured) -> Iterator[Alarm]:
    if measured.database_problem is not None:
        yield _page(
            AlarmCode.DATABASE_UNAVAILABLE,
            f"{measured.database_problem}.",
            "Every request gets a 503: check the server, then run `wearon doctor`.",
        )
    if measured.queue_problem is not None:
        yield _page(
            AlarmCode.REDIS_UNAVAILABLE,
            f"{measured.queue_problem}.",
            "New requests get a 503: start Redis; recovery rebuilds the list.",
        )
    elif measured.write_problem is not None:
        yield _page(
            AlarmCode.REDIS_REJECTS_WRITES,
            f"{measured.write_problem}.",
            "New requests get a 503: look at Redis' memory, disk and role.",
        )


def _queue(measured: Measured) -> Iterator[Alarm]:
    waits = f"{_count(measured.waits, 'session')} waiting"
    oldest = measured.oldest_waits
    cause = "" if measured.snapshot is None else _most_frequent_cause(measured.snapshot)
    if measured.snapshot is not None:
        yield from _no_worker(measured, measured.snapshot, waits)
    if oldest > STALLED_AFTER:
        yield _page(
            AlarmCode.QUEUE_STALLED,
            f"{waits}, the oldest for {duration(oldest)}{cause}.",
            "Start more workers, unless an alarm below says what holds them up.",
        )
    length = measured.waits if measured.waiting is None else measured.waiting
    if length >= NEARLY_FULL * measured.max_waiting:
        yield _page(
            AlarmCode.QUEUE_NEARLY_FULL,
            f"{length} of {measured.max_waiting} places of the queue are taken.",
            "Start more workers, or raise WEARON_MAX_WAITING: at the limit, requests get a 503.",
        )
    if letters := measured.dead_letters:
        yield _warn(
            AlarmCode.DEAD_LETTERS,
            f"{_count(letters, 'dead letter')}{_newest(measured.newest_reason)}.",
            "See `wearon dead list`, then requeue or discard each.",
        )


def _newest(reason: str | None) -> str:
    """Why the newest dead letter is one. Senders choose parts of the reason, so it is shortened."""
    if not reason:
        return ""
    return f", the newest: {reason[:MAX_REASON].rstrip('.')}"


def _no_worker(measured: Measured, snapshot: Snapshot, waits: str) -> Iterator[Alarm]:
    """No worker reports, although one is missing. That is so if a worker died within a day: one
    that stops leaves no trace. Or if a session has waited for as long as a dead worker takes to be
    noticed, while nothing is being worked on: external consumers do not report."""
    if snapshot.live_workers():
        return
    latest = max((each.seen_at for each in snapshot.workers if each.seen_at), default=None)
    if latest is not None:
        gone = f"No worker has reported for {duration(snapshot.at - latest)}; {waits}."
    elif measured.oldest_waits >= WORKER_GONE and snapshot.processing <= snapshot.dead_leases:
        gone = f"No worker reports; {waits}, the oldest for {duration(measured.oldest_waits)}."
    else:
        return
    yield _page(
        AlarmCode.NO_WORKER, gone, "Start a worker (`wearon worker`); its log says why it ended."
    )


def _circuits(snapshot: Snapshot) -> Iterator[Alarm]:
    yield from _circuit(
        snapshot,
        AlarmCode.CIRCUIT_OPEN,
        lambda cause: not cause.startswith((BUDGET_CAUSE, STORAGE_CAUSE)),
        "No session fails meanwhile: fix the key, quota, model or server, then `wearon doctor`.",
    )
    yield from _circuit(
        snapshot,
        AlarmCode.STORAGE,
        lambda cause: cause.startswith(STORAGE_CAUSE),
        "Pictures cannot be kept, so no task is taken: make room or fix the storage's access.",
    )
    yield from _circuit(
        snapshot,
        AlarmCode.BUDGET_SPENT,
        lambda cause: cause.startswith(BUDGET_CAUSE),
        "Sessions wait for the next day (UTC): raise WEARON_PROVIDER_BUDGET_USD or pause intake.",
    )


def _circuit(
    snapshot: Snapshot, code: AlarmCode, is_such: Callable[[str], bool], advice: str
) -> Iterator[Alarm]:
    live = snapshot.live_workers()
    opened = [each for each in live if each.circuit_cause and is_such(each.circuit_cause)]
    if not opened:
        return
    (cause, _), *others = Counter(each.circuit_cause for each in opened).most_common()
    more = f" (and {_count(len(others), 'other cause')})" if others else ""
    until = min((each.circuit_until for each in opened if each.circuit_until), default=snapshot.at)
    yield _page(
        code,
        f"{_of(opened, live)} {_verb('take', opened)} no task: {cause}{more};"
        f" {_next_try(until - snapshot.at)}.",
        advice,
    )


def _next_try(wait: timedelta) -> str:
    return f"next try in {duration(wait)}" if wait >= timedelta(seconds=1) else "tries again now"


def _failures(snapshot: Snapshot) -> Iterator[Alarm]:
    """Failures that callers can cause at will page only if most sessions fail, because then the
    fault may be ours: a worker without a name server finds no caller's picture. Cancelled sessions
    count as ended, not as failed."""
    window = snapshot.last_quarter
    ended = window.completed + window.failed
    if ended < MIN_ENDED:
        return
    failed = window.failed - window.by_code.get(ErrorCode.CANCELLED, 0)
    own = window.failed - sum(window.by_code.get(code, 0) for code in CALLERS_FAULTS)
    is_page = own > MAX_OWN_FAILURES * ended or failed > MAX_FAILURES * ended
    if not is_page and failed <= MAX_OWN_FAILURES * ended:
        return
    yield Alarm(
        code=AlarmCode.FAILURE_RATE,
        severity=Severity.PAGE if is_page else Severity.WARN,
        sentence=f"{failed} of {ended} sessions failed within 15 min{_reasons(window, snapshot)}.",
        advice="Look at the causes: `wearon sessions list --status failed --since 15m`.",
    )


def _reasons(window: Window, snapshot: Snapshot) -> str:
    codes = ", ".join(f"{code} {count}" for code, count in most(window.by_code, 2))
    return f": {codes or 'no code'}{_most_frequent_cause(snapshot)}"


def _most_frequent_cause(snapshot: Snapshot) -> str:
    """Of the attempts that failed lately; empty if none did."""
    (cause, count), *_ = most(snapshot.recent_causes, 1) or [("", 0)]
    return f"; most attempts failed by {cause} ({count})" if count else ""


def _refunds(snapshot: Snapshot) -> Iterator[Alarm]:
    if not snapshot.oldest_owed_at or snapshot.at - snapshot.oldest_owed_at <= REFUND_IS_LATE:
        return
    yield _page(
        AlarmCode.REFUNDS_OWED,
        f"{_count(snapshot.owed_refunds, 'refund')} owed, the oldest for"
        f" {duration(snapshot.at - snapshot.oldest_owed_at)}.",
        "Recovery refunds within seconds: run `wearon recover`, and look at a worker's log.",
    )


def _books(snapshot: Snapshot) -> Iterator[Alarm]:
    books = snapshot.books
    if books is None or not books.discrepancies:
        return
    first = f", first {books.first}" if books.first else ""
    yield _page(
        AlarmCode.BOOKS_WRONG,
        f"{_count(books.discrepancies, 'discrepancy')} in the books{first}, checked"
        f" {duration(snapshot.at - books.at)} ago.",
        "See `wearon credits verify`; change nothing by hand before you know the cause.",
    )


def _dead_leases(snapshot: Snapshot) -> Iterator[Alarm]:
    if snapshot.dead_leases:
        yield _warn(
            AlarmCode.DEAD_LEASES,
            f"{_count(snapshot.dead_leases, 'session')} of dead workers to be taken up again.",
            "Recovery does so within seconds; if the number stays, run `wearon recover`.",
        )


def _limits(snapshot: Snapshot) -> Iterator[Alarm]:
    live = snapshot.live_workers()
    if throttled := [each for each in live if each.throttled_until]:
        yield _warn(
            AlarmCode.THROTTLED,
            f"{_of(throttled, live)} {_verb('wait', throttled)} for the provider's limit.",
            "Raise WEARON_PROVIDER_PER_MINUTE if the provider allows more.",
        )
    if local := [each for each in live if each.limit_is_local]:
        yield _warn(
            AlarmCode.LIMIT_IS_LOCAL,
            f"{_of(local, live)} {_verb('keep', local)} the provider's limit alone, without Redis.",
            "Until Redis is back, WEARON_PROVIDER_FALLBACK_PER_MINUTE holds for each process.",
        )


def _pauses(snapshot: Snapshot) -> Iterator[Alarm]:
    codes = {
        Switch.INTAKE: (AlarmCode.INTAKE_PAUSED, "New requests are refused"),
        Switch.WORKERS: (AlarmCode.WORKERS_PAUSED, "Workers take no task"),
    }
    for pause in snapshot.pauses:
        code, effect = codes[pause.switch]
        yield _warn(
            code,
            f"{effect}: paused for {duration(snapshot.at - pause.since)} by {pause.actor}:"
            f" {pause.reason}.",
            f"`wearon resume {pause.switch}` ends the pause.",
        )


_OF_SNAPSHOT = (_circuits, _failures, _refunds, _books, _dead_leases, _limits, _pauses)


def most(counts: Mapping[str, int], number: int) -> list[tuple[str, int]]:
    """The ``number`` largest counts, largest first, with their names."""
    return sorted(counts.items(), key=lambda pair: (-pair[1], pair[0]))[:number]


def duration(time: timedelta) -> str:
    """A length of time in its two largest units: ``6 min 12 s``."""
    seconds = max(0, int(time.total_seconds()))
    minutes, hours, days = seconds // 60, seconds // 3_600, seconds // 86_400
    if days:
        return f"{days} d {hours % 24} h"
    if hours:
        return f"{hours} h {minutes % 60} min"
    return f"{minutes} min {seconds % 60} s" if minutes else f"{seconds} s"


def _count(number: int, noun: str) -> str:
    plural = f"{noun[:-1]}ies" if noun.endswith("cy") else f"{noun}s"
    return f"{number} {noun if number == 1 else plural}"


def _of(some: Sequence[WorkerState], live: Sequence[WorkerState]) -> str:
    return f"{len(some)} of {_count(len(live), 'worker')}"


def _verb(verb: str, some: Sequence[WorkerState]) -> str:
    return f"{verb}s" if len(some) == 1 else verb
