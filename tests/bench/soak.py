"""Soak: the memory of an API and a worker must not grow under steady use."""

import json
import threading
import time
from contextlib import closing
from http.client import HTTPConnection
from itertools import cycle

from entrypoints.http.schemas import GENERATIONS_PATH
from tests.bench.figures import Finding, Sample, at_most, slope
from tests.bench.load import BODY, HOST, Void
from tests.bench.stage import Stage, rss_kb

WARM_UP_SECONDS = 60.0
SAMPLE_SECONDS = 1.0
CLIENTS = 4
PAUSE_SECONDS = 0.02
FLAT = at_most(64)
"""In kB per minute, which is 90 MB per day; the noise of the allocator is below that."""


def soak(stage: Stage, *, seconds: float) -> tuple[list[Finding], list[dict[str, Sample]]]:
    """Clients submit, poll and list, a worker completes, and the memory is sampled every second.

    The first minute does not count; in a short run the first third.
    """
    port = stage.port_of("wearon")
    stop, failures = threading.Event(), list[str]()
    clients = [
        threading.Thread(target=_client, args=(stage, port, number, stop, failures))
        for number in range(CLIENTS)
    ]
    minutes_and_kb: dict[str, list[tuple[float, float]]] = {"api": [], "worker": []}
    with stage.worker(concurrency=stage.settings.worker_concurrency) as worker:
        for client in clients:
            client.start()
        started_at = time.monotonic()
        try:
            while (now := time.monotonic() - started_at) < seconds and not failures:
                api_kb = sum(map(rss_kb, stage.pids_of("wearon")))
                minutes_and_kb["api"].append((now / 60, float(api_kb)))
                minutes_and_kb["worker"].append((now / 60, float(rss_kb(worker))))
                time.sleep(SAMPLE_SECONDS)
        finally:
            stop.set()
            for client in clients:
                client.join()
    if failures:
        raise Void(failures[0])
    warm_up = min(WARM_UP_SECONDS, seconds / 3) / 60
    findings = []
    for name, points in minutes_and_kb.items():
        kb_per_minute = slope([point for point in points if point[0] >= warm_up])
        findings.append(
            Finding(
                name=f"soak_{name}",
                title=f"memory of the {name}, growth in kB per minute",
                aim=FLAT,
                value=kb_per_minute,
                values=[kb_per_minute],
            )
        )
    return findings, [
        {
            name: {"first_kb": points[0][1], "last_kb": points[-1][1], "minutes_and_kb": points}
            for name, points in minutes_and_kb.items()
        }
    ]


def _client(
    stage: Stage, port: int, number: int, stop: threading.Event, failures: list[str]
) -> None:
    """Submit a session, read it, and list all, one call at a time."""
    tokens = cycle(stage.spread[number::CLIENTS])
    try:
        with closing(HTTPConnection(HOST, port, timeout=10)) as http:
            while not stop.wait(PAUSE_SECONDS):
                token = next(tokens)
                submitted = _call(http, "POST", GENERATIONS_PATH, token)
                _call(http, "GET", submitted["status_url"], token)
                _call(http, "GET", GENERATIONS_PATH, token)
    except (OSError, Void) as error:
        failures.append(str(error))


def _call(http: HTTPConnection, method: str, path: str, token: str) -> dict[str, str]:
    headers = {"Authorization": f"Bearer {token}", "Content-Type": "application/json"}
    http.request(method, path, BODY if method == "POST" else None, headers)
    with http.getresponse() as answer:
        if answer.status >= 300:
            raise Void(f"{method} {path} returned {answer.status}")
        data: dict[str, str] = json.load(answer)["data"]
    return data
