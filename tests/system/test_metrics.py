"""``/metrics`` of real processes: one page for all API processes of a host, one for each worker."""

import os
import signal
from urllib.error import URLError
from urllib.request import urlopen

from prometheus_client.parser import text_string_to_metric_families

from tests.system.deployment import Deployment, eventually, free_port
from tests.system.test_server import answer_to, start, workers

REQUESTS = 40
LIVE = {"method": "GET", "route": "/health/live", "status": "200"}


def samples(port: int) -> dict[str, list[tuple[dict[str, str], float]]]:
    """All samples of a page by their name; empty while nothing listens."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=30) as answer:
            text = answer.read().decode()
    except URLError:
        return {}
    found: dict[str, list[tuple[dict[str, str], float]]] = {}
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            found.setdefault(sample.name, []).append((sample.labels, sample.value))
    return found


def lived(port: int) -> float:
    """How many requests for ``/health/live`` were counted."""
    series = samples(port).get("wearon_http_requests_total", [])
    return sum(value for labels, value in series if labels == LIVE)


def pids(port: int) -> set[int]:
    series = samples(port).get("wearon_process_resident_memory_bytes", [])
    return {int(labels["pid"]) for labels, _ in series}


def test_counters_survive_the_processes_that_counted(deployment: Deployment) -> None:
    """One page for two API processes. One is killed and replaced: nothing it counted is lost, and
    the page no longer shows its memory."""
    metrics = free_port()
    api, port = start(deployment, WEARON_API_WORKERS="2", WEARON_METRICS_PORT=str(metrics))
    for _ in range(REQUESTS):
        assert answer_to(port).startswith(b"HTTP/1.1 200")
    eventually(lambda: len(pids(metrics)) == 2)
    before = lived(metrics)
    killed, kept = sorted(workers(api))

    os.kill(killed, signal.SIGKILL)
    eventually(lambda: len(pids(metrics) - {killed}) == 2)
    after = lived(metrics)
    for _ in range(REQUESTS):
        assert answer_to(port).startswith(b"HTTP/1.1 200")

    assert before >= REQUESTS
    assert after >= before
    assert kept in pids(metrics)
    assert killed not in pids(metrics)
    assert lived(metrics) >= before + REQUESTS


def test_service_is_shown_by_the_api_and_not_by_workers(deployment: Deployment) -> None:
    of_api, of_worker = free_port(), free_port()
    start(deployment, WEARON_METRICS_PORT=str(of_api))
    deployment.start("worker", "--metrics-port", str(of_worker))

    eventually(lambda: samples(of_worker))

    state, worker = samples(of_api), samples(of_worker)
    assert state["wearon_database_up"] == [({}, 1.0)]
    assert state["wearon_redis_up"] == [({}, 1.0)]
    assert state["wearon_sessions_queued"] == [({}, 0.0)]
    assert "wearon_database_up" not in worker
    assert ({"outcome": "completed"}, 0.0) in worker["wearon_tasks_total"]


def test_console_shows_the_service(deployment: Deployment) -> None:
    """On a port of its own, as the API does."""
    metrics = free_port()
    deployment.start(
        "console",
        "--metrics-port",
        str(metrics),
        WEARON_CONSOLE_PORT=str(free_port()),
        WEARON_CONSOLE_SECRET="c" * 64,
    )

    eventually(lambda: samples(metrics))

    assert samples(metrics)["wearon_database_up"] == [({}, 1.0)]


def test_second_worker_on_a_port_says_what_to_change(deployment: Deployment) -> None:
    metrics = free_port()
    deployment.start("worker", WEARON_METRICS_PORT=str(metrics))
    eventually(lambda: samples(metrics))

    second = deployment.start("worker", WEARON_METRICS_PORT=str(metrics))

    assert second.wait(30) == 1
    log = (deployment.folder / "worker.log").read_text()
    assert f"WEARON_METRICS_PORT: cannot listen on 127.0.0.1, port {metrics}" in log
