"""The page of metrics, in the format that the scraper asks for."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import accumulate

from prometheus_client.core import (
    CounterMetricFamily,
    GaugeMetricFamily,
    HistogramMetricFamily,
)
from prometheus_client.core import (
    Metric as Family,
)
from prometheus_client.exposition import choose_encoder
from prometheus_client.registry import Collector, CollectorRegistry

from config.cells import Totals
from config.counted import Counter, Histogram, Kind, Metric, of_metric
from config.metrics import COUNTERS, HISTOGRAMS
from domain.status import Report
from entrypoints.metrics.gauges import GAUGES
from entrypoints.metrics.processes import OF_PROCESSES, process_values

BUILD_INFO = Metric(
    name="wearon_build_info",
    kind=Kind.GAUGE,
    help="1; the labels say what answers",
    labels=("version", "role"),
)


def all_metrics() -> list[Metric]:
    """All that any page may have."""
    return [
        BUILD_INFO,
        *(each.metric for each in (*COUNTERS, *HISTOGRAMS, *GAUGES)),
        *OF_PROCESSES,
    ]


class Page(Collector):
    """``totals`` returns what the processes ``process_ids`` counted. ``report`` reads the state of
    the service; it is None where this process does not show it, and returns None if the state
    could not be read."""

    def __init__(
        self,
        *,
        role: str,
        version: str,
        totals: Callable[[], Totals],
        process_ids: Callable[[], Sequence[int]],
        report: Callable[[], Report | None] | None,
    ) -> None:
        self._role = role
        self._version = version
        self._totals = totals
        self._process_ids = process_ids
        self._report = report
        self._registry = CollectorRegistry(auto_describe=False)
        self._registry.register(self)

    def text(self, accept: str) -> tuple[bytes, str]:
        """The page and its content type, for a request's ``Accept``."""
        encode, content_type = choose_encoder(accept)
        return encode(self._registry), content_type

    def collect(self) -> Iterator[Family]:
        yield _gauge(BUILD_INFO, {(self._version, self._role): 1.0})
        totals = self._totals()
        yield from (_counter(each, totals) for each in COUNTERS)
        yield from (_histogram(each, totals) for each in HISTOGRAMS)
        for metric, values in process_values(self._process_ids()):
            if metric.kind is Kind.COUNTER:
                yield _counter_family(metric, values)
            else:
                yield _gauge(metric, values)
        report = self._report() if self._report else None
        if report is not None:
            yield from (_gauge(each.metric, each.values(report)) for each in GAUGES)

    def describe(self) -> Iterator[Family]:
        """Nothing is known of what ``collect`` finds."""
        yield from ()


def _counter(counter: Counter, totals: Totals) -> Family:
    series = of_metric(totals, counter.metric)
    return _counter_family(counter.metric, {labels: value for labels, (value,) in series.items()})


def _counter_family(metric: Metric, values: dict[tuple[str, ...], float]) -> Family:
    family = CounterMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in sorted(values.items()):
        family.add_metric(labels, value)
    return family


def _histogram(histogram: Histogram, totals: Totals) -> Family:
    metric = histogram.metric
    family = HistogramMetricFamily(metric.name, metric.help, labels=metric.labels)
    bounds = [*map(str, histogram.bounds), "+Inf"]
    for labels, (*counts, total) in sorted(of_metric(totals, metric).items()):
        buckets = list(zip(bounds, accumulate(counts), strict=True))
        family.add_metric(labels, buckets, sum_value=total)
    return family


def _gauge(metric: Metric, values: Mapping[tuple[str, ...], float]) -> Family:
    family = GaugeMetricFamily(metric.name, metric.help, labels=metric.labels)
    for labels, value in sorted(values.items()):
        family.add_metric(labels, value)
    return family
