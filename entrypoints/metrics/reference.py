"""``docs/metrics.md``, from the declarations: ``python -m entrypoints.metrics.reference``."""

import sys

from config.counted import Kind, Metric
from config.metrics import COUNTERS, HISTOGRAMS
from entrypoints.metrics.gauges import GAUGES
from entrypoints.metrics.page import BUILD_INFO
from entrypoints.metrics.processes import OF_PROCESSES

_HEAD = """\
# Metrics

`WEARON_METRICS_PORT` turns on `/metrics`, in the formats of Prometheus and OpenMetrics, on \
`WEARON_METRICS_HOST`, by default the loopback address. Without it nothing is served. This page is \
made of the code by `python -m entrypoints.metrics.reference`.

- The API processes of a host share one port, and their page is the sum of what they count. When a \
process is replaced, what it has counted stays, even if it was killed.
- Each worker, and the console, needs a port of its own: `wearon worker --metrics-port 9102`.
- The page has nothing secret, but no access control either: do not publish its port.
- What is not known is missing. While the database does not answer, `wearon_database_up` is 0, and \
the gauges that come from the database have no value.

Alerts, a dashboard and an example of a configuration are in `deploy/`; what each alert means is \
in [runbook.md](runbook.md). Tests compare all of them with this table.
"""
_SECTIONS = (
    (
        "The state of the service",
        "Read from the database and Redis at a scrape, at most once in 2 s: the same report as that"
        " of `wearon status`. The pages of the API and of the console have it; those of workers do"
        " not, because it is needed most when all workers are dead. Every API and console says the"
        " same, so aggregate with `max`.",
        tuple(gauge.metric for gauge in GAUGES),
    ),
    (
        "What processes count",
        "Each is counted where the event's log line is written; the end of a session is counted"
        " when the database has confirmed its commit, so an end whose confirmation is lost with"
        " the connection or the process is not counted. Aggregate with `sum`. Sessions that an"
        " external consumer ends are counted by no process, and `wearon recover` and"
        " `wearon worker --once` serve no page.",
        tuple(each.metric for each in (*COUNTERS, *HISTOGRAMS)),
    ),
    ("The processes", "Of those that run now.", (BUILD_INFO, *OF_PROCESSES)),
)


def page() -> str:
    """The page as Markdown."""
    return "\n".join([_HEAD, *(_section(*section) for section in _SECTIONS)])


def _section(title: str, text: str, metrics: tuple[Metric, ...]) -> str:
    rows = "".join(f"{_row(metric)}\n" for metric in metrics)
    return (
        f"## {title}\n\n{text}\n\n| metric | type | labels | meaning |\n|---|---|---|---|\n{rows}"
    )


def _row(metric: Metric) -> str:
    labels = ", ".join(f"`{label}`" for label in metric.labels)
    kind = Kind(metric.kind).value
    return f"| `{metric.name}` | {kind} | {labels} | {metric.help} |"


if __name__ == "__main__":
    sys.stdout.write(page())
