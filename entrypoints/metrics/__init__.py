"""``/metrics`` for Prometheus, on a port of its own, beside an API, a worker or a console.

``page`` writes what the processes counted, ``gauges`` what is read of the service, ``reading``
reads it, ``server`` answers, and ``running`` puts them together for each kind of process.
"""

from entrypoints.metrics.running import Role, serving_metrics, show_known

__all__ = ["Role", "serving_metrics", "show_known"]
