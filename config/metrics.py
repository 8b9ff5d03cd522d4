"""What the processes count. Each is incremented where the event's log line is written, except for
sessions that end: adapters count those when the database has confirmed the commit.

``docs/metrics.md`` is made of these declarations.
"""

from config.counted import Counter, Histogram
from domain.causes import CauseKind
from domain.endpoints import DeliveryStatus
from domain.generation import Outcome
from domain.recovery import RecoveryReport
from domain.sessions import ErrorCode, SessionStatus

COMPLETED, FAILED = SessionStatus.COMPLETED.value, SessionStatus.FAILED.value

HTTP_REQUESTS = Counter(
    "wearon_http_requests_total",
    "Requests, by route template and status; 0 if the client left before a response",
    ("method", "route", "status"),
)
HTTP_SECONDS = Histogram(
    "wearon_http_request_duration_seconds",
    "How long requests took, with the waits and streams that the client asked for",
    ("method", "route"),
    bounds=(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0),
)
SUBMISSIONS = Counter(
    "wearon_submissions_total",
    "Requests for a picture: `accepted`, `replayed`, or the code of the refusal",
    ("outcome",),
    known=[("accepted",), ("replayed",), ("SERVICE_UNAVAILABLE",), ("INTERNAL_ERROR",)],
)
SESSIONS_ENDED = Counter(
    "wearon_sessions_ended_total",
    "Sessions that this process ended, counted as the database confirms the commit. Each `failed`"
    " one was refunded with that commit. `code` is its `error_code`, empty if `completed`",
    ("status", "code"),
    known=[(COMPLETED, ""), *((FAILED, code.value) for code in ErrorCode)],
)
TASKS = Counter(
    "wearon_tasks_total",
    "Tasks that a worker has handled, by what came of them",
    ("outcome",),
    known=[(outcome.value,) for outcome in Outcome],
)
TASK_SECONDS = Histogram(
    "wearon_task_duration_seconds",
    "How long a worker handled a task whose session then ended, from taking the task on",
    ("status",),
    bounds=(0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 20.0, 40.0, 80.0, 160.0, 320.0),
)
ATTEMPTS_FAILED = Counter(
    "wearon_attempts_failed_total",
    "Attempts that failed, by the kind of the cause and the `error_code` that it stands for",
    ("kind", "code"),
)
CIRCUIT_OPENINGS = Counter(
    "wearon_circuit_openings_total",
    "How often a worker stopped taking tasks, by the kind of the cause",
    ("kind",),
    known=[(CauseKind.PROVIDER.value,), (CauseKind.STORAGE.value,)],
)
RECOVERED = Counter(
    "wearon_recovered_total",
    "What recovery did, by its rule; `refunded` are sessions that an external consumer failed",
    ("rule",),
    known=[(rule,) for rule in RecoveryReport().counts()],
)
WEBHOOKS = Counter(
    "wearon_webhook_attempts_total",
    "Attempts to deliver a webhook, by what became of the delivery; `pending` ones are repeated",
    ("status",),
    known=[(status.value,) for status in DeliveryStatus],
)

COUNTERS = (
    HTTP_REQUESTS,
    SUBMISSIONS,
    SESSIONS_ENDED,
    TASKS,
    ATTEMPTS_FAILED,
    CIRCUIT_OPENINGS,
    RECOVERED,
    WEBHOOKS,
)
HISTOGRAMS = (HTTP_SECONDS, TASK_SECONDS)
OF_API = (SUBMISSIONS, SESSIONS_ENDED)
OF_WORKER = (SESSIONS_ENDED, TASKS, CIRCUIT_OPENINGS, RECOVERED, WEBHOOKS)


def count_ended(status: SessionStatus, code: str, sessions: int) -> None:
    """This process ended ``sessions``, as the database has confirmed."""
    if sessions:
        SESSIONS_ENDED.inc(status.value, code, by=sessions)


def count_recovered(report: RecoveryReport) -> None:
    """What a run of recovery did."""
    for rule, number in report.counts().items():
        if number:
            RECOVERED.inc(rule, by=number)
